"""Teachers: networks whose logits another network learns from."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vitas import checkpoint, loading
from vitas.catalog import parse_architecture
from vitas.config import Model, RunConfig
from vitas.data.images import channels
from vitas.distributed import World
from vitas.elastic import pretrained_network
from vitas.errors import UserError
from vitas.models import create_model
from vitas.pretrained import Images, load_pretrained

# The teacher that `search` trains itself: the largest subnet of a step.
LARGEST = "largest"
# The network of `model.from_pretrained`.
PRETRAINED = "pretrained"


def load_teacher(config: RunConfig, stage: str, world: World) -> Callable[[Tensor], Tensor] | None:
    """The teacher of a stage's `distillation`: normalised images [B, 3, H, W] of the run -> its logits [B, classes].

    None if the stage has no teacher, or one that it trains itself. A model of
    timm gets the images with its own normalisation; timm downloads its weights
    or finds them in its cache.

    Raises `UserError` for a name that timm does not have, for weights that
    cannot be read, and for a network of another class count or image size.
    """
    distillation = getattr(config, stage).distillation
    if distillation is None or distillation.teacher == LARGEST:
        return None
    try:
        network = _find(distillation.teacher, config)
    except UserError as error:
        raise UserError(f"{stage}.distillation.teacher: {error}") from None
    model, device = config.model, world.device
    network.to(device).eval().requires_grad_(False)
    given = getattr(network, "pretrained_cfg", {})
    ours = [channels(values, device) for values in (model.mean, model.std)]
    theirs = [channels(given.get(name, value), device) for name, value in (("mean", model.mean), ("std", model.std))]

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        found: Tensor = network((images * ours[1] + ours[0] - theirs[0]) / theirs[1])
        return found

    return logits


def _find(reference: str, config: RunConfig) -> nn.Module:
    if reference == PRETRAINED:
        return pretrained_network(config)
    path, model = Path(reference), config.model
    if path.exists():
        return _from_checkpoint(path, model)
    if timm.is_model(reference):
        return _from_timm(reference, model)
    name, colon, _ = reference.partition(":")
    if colon and timm.is_model(name):
        found = load_pretrained(reference, Images(model.image_size, model.num_classes, model.mean, model.std))
        if not found.has_classifier:
            raise UserError(f"{reference} has not the {model.num_classes} classes of this run")
        return found.network
    near = get_close_matches(reference, timm.list_models(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"found {reference!r}, which is neither a file nor a model of timm{hint}")


def _from_checkpoint(path: Path, model: Model) -> nn.Module:
    state = checkpoint.read(path)
    text = state.get("architecture")
    if not isinstance(text, str):
        raise UserError(f"{path} does not say its architecture; a teacher must be a checkpoint of `retrain`")
    for name, ours in (("num_classes", model.num_classes), ("image_size", model.image_size)):
        theirs = state.get(name, ours)
        if theirs != ours:
            raise UserError(f"{path} was trained with {name} {theirs}, and this run has {ours}")
    if [*state.get("mean", model.mean), *state.get("std", model.std)] != [*model.mean, *model.std]:
        raise UserError(f"{path} was trained on images of another mean or std than model.mean and model.std")
    network = create_model(parse_architecture(text), model.num_classes, model.image_size)
    loading.load_state(network, state, path)
    return network


def _from_timm(name: str, model: Model) -> nn.Module:
    facts = timm.get_pretrained_cfg(name)
    if facts is None or not facts.has_weights:
        raise UserError(f"timm has no pretrained weights of {name!r}")
    if facts.num_classes != model.num_classes:
        raise UserError(f"{name} has {facts.num_classes} classes, and this run has {model.num_classes}")
    size = facts.input_size[-1]
    if facts.fixed_input_size and size != model.image_size:
        raise UserError(f"{name} takes images of {size} x {size}, and this run has {model.image_size}")
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:
        # A download fails in as many ways as there are networks.
        raise UserError(f"the weights of {name} cannot be loaded: {str(error).splitlines()[0]}") from None
