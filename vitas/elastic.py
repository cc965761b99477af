"""What `search` does first where `model.from_pretrained` is set: it reads the network and orders it by importance.

The result is in `search/pretrained.yaml`, which says what the network is, and
`search/pretrained.pth.tar`, its weights in that order; all that follows reads
these alone.
"""

from __future__ import annotations

from typing import Any

import yaml

from vitas import checkpoint, loading
from vitas.architecture import Architecture
from vitas.config import RunConfig, Search
from vitas.data.evaluation import EvaluationSet
from vitas.data.images import channels, draw_images
from vitas.distributed import World, barrier, broadcast
from vitas.errors import UserError
from vitas.files import write_text
from vitas.importance import IMAGES_OF_A_CLASS, fit_classifier, order_blocks, reordered, score_parts
from vitas.models import VisionTransformer
from vitas.plain_data import read_yaml
from vitas.pretrained import Images, as_checkpoint, load_pretrained
from vitas.report import Report, shown_path
from vitas.seeds import stream_seed

# Blocks are compared n^2 / 2 times, so by fewer images.
_IMAGES_FOR_BLOCKS = 128
# Images that go through the network at once to fit a classifier.
_BATCH = 64


def prepare(config: RunConfig, report: Report, world: World) -> None:
    """Write the run's pretrained network in the order of importance, if it is not there.

    Rank 0 does it, and the others wait. Raises `UserError`, on every rank, as
    `load_pretrained` does, where what is there was made otherwise, and where the
    network's space does not meet the budget.
    """
    mistake = None
    if world.is_main:
        try:
            _prepare(config, report, world)
        except UserError as error:
            mistake = str(error)
    mistake = broadcast(mistake, world)
    if mistake:
        raise UserError(mistake)
    barrier(world)
    budget = config.budget
    if budget and not budget.is_speed:
        try:
            config.macs_model.require(budget)
        except UserError as error:
            raise UserError(f"sample.budget: {error}") from None


def _origin(config: RunConfig) -> dict[str, Any]:
    """What the files depend on, as plain data."""
    model = config.model
    images = {"image_size": model.image_size, "num_classes": model.num_classes, "mean": model.mean, "std": model.std}
    # Of the images that order it, none may be held out. Files of earlier versions held none out.
    holdout = config.search.data.holdout if config.search and config.search.data else None
    origin = {"source": model.from_pretrained, "seed": config.seed, **images, **model.importance.model_dump()}
    return origin | ({} if holdout is None else {"holdout": holdout})


def _prepare(config: RunConfig, report: Report, world: World) -> None:
    path, weights, origin = config.folder.pretrained, config.folder.pretrained_weights, _origin(config)
    if path.exists() and weights.exists():
        found = read_yaml(path)
        if not isinstance(found, dict) or not isinstance(there := found.get("origin"), dict):
            raise UserError(f"{path}: must hold the architecture and the origin that `search` writes; move it away")
        differing = [key for key in {**origin, **there} if there.get(key) != origin.get(key)]
        if differing:
            raise UserError(
                f"{path} was made with {differing[0]} {there.get(differing[0])!r}, and now it is "
                f"{origin.get(differing[0])!r}; set it back, or choose another save_path"
            )
        report.line(f"starts from {origin['source']}: {found.get('architecture')} in {shown_path(weights)}")
        return
    model, search, settings = config.model, config.search, config.model.importance
    if model.from_pretrained is None or not isinstance(search, Search):
        raise ValueError("no section of this run starts from a pretrained network")
    given = Images(model.image_size, model.num_classes, model.mean, model.std)
    try:
        pretrained = load_pretrained(model.from_pretrained, given)
    except UserError as error:
        raise UserError(f"model.from_pretrained: {error}") from None
    network, architecture = pretrained.network.to(world.device), pretrained.network.architecture
    macs = architecture.macs(model.image_size, model.num_classes)
    report.line(f"starts from {pretrained.source}: {architecture}, {macs:,} MACs")
    count = settings.images
    if not pretrained.has_classifier:
        count = max(count, IMAGES_OF_A_CLASS * model.num_classes)
    crop = config.sample.data.crop_fraction if config.sample else 1.0
    data = search.data
    seed = stream_seed(config.seed, "importance")
    pixels, labels = draw_images(
        data.data_dir, count, model.image_size, crop, seed, data.workers, data.bad_images, report, data.part
    )
    drawn = EvaluationSet(pixels, labels, channels(model.mean), channels(model.std), len(pixels))
    if not pretrained.has_classifier:
        top1 = fit_classifier(network, drawn.batches(_BATCH))
        report.line(
            f"it has no classifier of {model.num_classes} classes; one is fitted to {len(pixels)} train images "
            f"(top-1 {top1:.1f}% on these)"
        )
    images, labels = next(drawn.batches(settings.images))
    scores = score_parts(network, images, labels, settings.score)
    block_order = order_blocks(network, images[:_IMAGES_FOR_BLOCKS])
    report.line(
        f"ordered by {settings.score} on {len(images)} train images; its blocks, the most important first: "
        f"{', '.join(map(str, block_order))}"
    )
    state = as_checkpoint(reordered(network, scores), given)
    checkpoint.write(state, weights)
    # Last: what is there is whole.
    about = {"architecture": str(architecture), "block_order": block_order, "origin": origin}
    write_text(path, yaml.safe_dump(about, sort_keys=False, width=120))


def pretrained_network(config: RunConfig) -> VisionTransformer:
    """The run's pretrained network, in the order of importance. Raises `UserError` before `search` has written it."""
    path = config.folder.pretrained_weights
    state = checkpoint.read(path)
    network = VisionTransformer(
        Architecture.parse(state["architecture"]), config.model.num_classes, config.model.image_size
    )
    loading.load_state(network, state, path)
    return network
