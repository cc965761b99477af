"""The `test` stage: top-1, top-5, loss, costs and speed of one checkpoint or a range of epochs."""

from __future__ import annotations

import json
import time
from pathlib import Path

from torch import nn

from vitas import checkpoint, interruption
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data import EvaluationSet
from vitas.distributed import World, gather
from vitas.engine import evaluate
from vitas.errors import UserError
from vitas.files import write_text
from vitas.models import create_model
from vitas.report import Report, shown_path
from vitas.space import Network, costs, parse_network

# While a checkpoint that is not written yet is waited for: between looks, and between lines that say so.
POLL_SECONDS, TELL_SECONDS = 10.0, 600.0


def test(config: RunConfig, world: World) -> None:
    """Measure; `save_path/retrain/results.json` holds the last checkpoint's numbers, and all under `checkpoints`."""
    settings, model = config.test, config.model
    report = Report("test", config.folder, world)
    paths = checkpoints_to_test(config)
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    by_preference = settings.load_name is None and (settings.start is None or folder.epoch_of(paths[0]) is None)
    others = ", ".join(path.name for path in folder.candidates()[1:]) if by_preference else ""
    if others:
        report.line(f"takes {paths[0].name}; there are {others} too, which test.load_name chooses")
    # A mistake should come before the images are decoded, not after.
    if paths[0].exists():
        architecture_of(paths[0], config)
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, everything=False)
    rows = []
    for path in paths:
        wait_for(path, report, world)
        architecture = architecture_of(path, config)
        network = load_network(path, architecture, config).to(world.device)
        score = evaluate(network, images, settings.batch_size, settings.amp, world, warm_up=True)
        row = {
            "checkpoint": str(path),
            "weights": settings.weights,
            "architecture": str(architecture),
            "top1": score.top1,
            "top5": score.top5,
            "loss": score.loss,
            **costs(architecture, model.image_size, model.num_classes),
            "images_per_second": score.images_per_second,
            "images": images.total,
            "device": str(world.device.type),
        }
        rows.append(row)
        report.line(
            f"{shown_path(path)}: top-1 {score.top1:.2f}%  top-5 {score.top5:.2f}%  loss {score.loss:.4f}  "
            f"{row['macs']:,} MACs{_released(row)}  {row['parameters']:,} parameters  "
            f"{score.images_per_second:,.0f} images/s"
        )
        epoch = CheckpointFolder.epoch_of(path)
        report.scalars(epoch or 0, {name: row[name] for name in ("top1", "top5", "loss", "images_per_second")})
        if world.is_main:
            write_text(config.folder.results, json.dumps(rows[-1] | {"checkpoints": rows}, indent=2) + "\n")
    if world.is_main:
        report.line(f"results are in {shown_path(config.folder.results)}")
    report.close()


def _released(row: dict) -> str:
    return "" if row["macs_released"] is None else f" ({row['macs_released']:,} released)"


def checkpoints_to_test(config: RunConfig) -> list[Path]:
    """The files that `load_name`, or `start`, `end` and `strip`, or nothing, choose.

    With `test.wait`, those of a range may not be written yet. Raises
    `UserError` for what is not there, and will not be.
    """
    settings = config.test
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    if settings.start is None:
        return [folder.resolve(settings.load_name)]
    epochs = range(settings.start, settings.end + 1, settings.strip)
    held = folder.epochs()
    missing = [epoch for epoch in epochs if epoch not in held]
    if settings.wait:
        # A downloaded file alone: nothing is being trained here that could be waited for.
        if folder.newest() is None and folder.candidates():
            return [folder.resolve()]
        missing = [epoch for epoch in missing if held and epoch < held[-1]]
    if missing:
        raise UserError(
            f"test.start, test.end: no checkpoint of epoch {missing[0]} in {folder.folder}; "
            f"it holds epochs {', '.join(map(str, held)) or 'none'} (retrain.keep says how many stay)"
        )
    return [folder.epoch_path(epoch) for epoch in epochs]


def wait_for(path: Path, report: Report, world: World) -> None:
    """Return once every rank sees a file. Raises `Interrupted` where the run is asked to stop meanwhile."""
    began = told = time.monotonic()
    while True:
        there = all(gather(path.exists(), world))
        if reason := interruption.requested(world, at_once=True):
            report.close()
            raise interruption.Interrupted(reason)
        if there:
            return
        if began == told or time.monotonic() - told > TELL_SECONDS:
            report.line(f"waits for {shown_path(path)}, which retrain has not written yet")
            told = time.monotonic()
        time.sleep(POLL_SECONDS)


def architecture_of(path: Path, config: RunConfig) -> Network:
    """What `test.architecture` says, else what the checkpoint says, else what `retrain.architecture` says."""
    if config.test.architecture is not None:
        return config.architecture(config.test.architecture)
    text = checkpoint.read(path).get("architecture")
    if isinstance(text, str):
        return parse_network(text)
    if config.retrain is None:
        raise UserError(f"{path} does not say its architecture; set test.architecture")
    return config.architecture(config.retrain.architecture)


def load_network(path: Path, architecture: Network, config: RunConfig) -> nn.Module:
    """The network of a checkpoint, with the weights that `test.weights` chooses, in eval mode on the CPU."""
    network = create_model(architecture, config.model.num_classes, config.model.image_size)
    checkpoint.load_weights(network, path, config.test.weights)
    return network.eval()
