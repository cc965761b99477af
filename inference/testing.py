"""The `test` stage: top-1, top-5, loss, costs and speed of one checkpoint or a range of epochs."""

from __future__ import annotations

import json
from pathlib import Path

from vitas import checkpoint, interruption
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data import EvaluationSet
from vitas.distributed import World
from vitas.engine import evaluate
from vitas.errors import UserError
from vitas.files import write_text
from vitas.models import VisionTransformer
from vitas.report import Report, shown_path
from vitas.space import Architecture


def test(config: RunConfig, world: World) -> None:
    """Measure; `save_path/retrain/results.json` holds the last checkpoint's numbers, and all under `checkpoints`."""
    settings, model = config.test, config.model
    report = Report("test", config.folder, world)
    paths = checkpoints_to_test(config)
    if settings.start is None and settings.load_name is None:
        others = CheckpointFolder(config.folder.checkpoints("retrain")).candidates()[1:]
        if others:
            names = ", ".join(path.name for path in others)
            report.line(f"takes {paths[0].name}; there are {names} too, which test.load_name chooses")
    architectures = [architecture_of(path, config) for path in paths]
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, everything=False)
    rows = []
    for path, architecture in zip(paths, architectures, strict=True):
        if reason := interruption.requested(world, at_once=True):
            raise interruption.Interrupted(reason)
        network = load_network(path, architecture, config).to(world.device)
        score = evaluate(network, images, settings.batch_size, settings.amp, world, warm_up=True)
        row = {
            "checkpoint": str(path),
            "weights": settings.weights,
            "architecture": str(architecture),
            "top1": score.top1,
            "top5": score.top5,
            "loss": score.loss,
            "macs": architecture.macs(model.image_size, model.num_classes),
            "macs_released": architecture.macs(model.image_size, model.num_classes, "released"),
            "parameters": architecture.parameters(model.image_size, model.num_classes),
            "images_per_second": score.images_per_second,
            "images": images.total,
            "device": str(world.device.type),
        }
        rows.append(row)
        report.line(
            f"{shown_path(path)}: top-1 {score.top1:.2f}%  top-5 {score.top5:.2f}%  loss {score.loss:.4f}  "
            f"{row['macs']:,} MACs ({row['macs_released']:,} released)  {row['parameters']:,} parameters  "
            f"{score.images_per_second:,.0f} images/s"
        )
        epoch = CheckpointFolder.epoch_of(path)
        report.scalars(epoch or 0, {name: row[name] for name in ("top1", "top5", "loss", "images_per_second")})
    if world.is_main:
        write_text(config.folder.results, json.dumps(rows[-1] | {"checkpoints": rows}, indent=2) + "\n")
        report.line(f"results are in {shown_path(config.folder.results)}")
    report.close()


def checkpoints_to_test(config: RunConfig) -> list[Path]:
    """The files that `load_name`, or `start`, `end` and `strip`, or nothing, choose. Raises `UserError`."""
    settings = config.test
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    if settings.start is None:
        return [folder.resolve(settings.load_name)]
    epochs = range(settings.start, settings.end + 1, settings.strip)
    held = folder.epochs()
    missing = [epoch for epoch in epochs if epoch not in held]
    if missing:
        raise UserError(
            f"test.start, test.end: no checkpoint of epoch {missing[0]} in {folder.folder}; "
            f"it holds epochs {', '.join(map(str, held)) or 'none'} (retrain.keep says how many stay)"
        )
    return [folder.epoch_path(epoch) for epoch in epochs]


def architecture_of(path: Path, config: RunConfig) -> Architecture:
    """What `test.architecture` says, else what the checkpoint says, else what `retrain.architecture` says."""
    if config.test.architecture is not None:
        return config.architecture(config.test.architecture)
    text = checkpoint.read(path).get("architecture")
    if isinstance(text, str):
        return Architecture.parse(text)
    if config.retrain is None:
        raise UserError(f"{path} does not say its architecture; set test.architecture")
    return config.architecture(config.retrain.architecture)


def load_network(path: Path, architecture: Architecture, config: RunConfig) -> VisionTransformer:
    """The network of a checkpoint, with the weights that `test.weights` chooses, in eval mode on the CPU."""
    network = VisionTransformer(architecture, config.model.num_classes, config.model.image_size)
    checkpoint.load_weights(network, path, config.test.weights)
    return network.eval()
