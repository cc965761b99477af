"""The `test` stage: top-1, top-5, loss, costs, speed and predictions of one checkpoint or a range of epochs."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from torch import nn

from inference.network import checkpoints_to_test, load_network
from inference.predictions import PredictionsRecorder
from vitas.checkpoint import CheckpointFolder, NoSuchFileError
from vitas.compiled import compiled
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World, gather, stop_requested
from vitas.evaluate import evaluate
from vitas.files import write_text
from vitas.report import Report, shown_path
from vitas.slurm.signals import Interrupted

# While a checkpoint that is not written yet is waited for: between looks, and between lines that say so.
POLL_SECONDS, REMIND_SECONDS = 10.0, 600.0


def test(config: RunConfig, world: World) -> None:
    """Measure; `save_path/retrain/results.json` holds the last checkpoint's numbers, and all under `checkpoints`.

    `predictions.npz` beside it has what the last one said of each image.
    """
    settings, model = config.test, config.model
    report = Report.for_stage("test", config, world)
    paths, loaded = _first_network(config, world)
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    by_preference = (
        settings.load_name is None
        and not settings.from_supernet
        and (settings.start is None or folder.epoch_of(paths[0]) is None)
    )
    if by_preference:
        report.line(*folder.passed_over())
    others = ", ".join(path.name for path in folder.candidates()[1:]) if by_preference else ""
    if others:
        report.line(f"takes {paths[0].name}; there are {others} too, which test.load_name chooses")
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, False, report)
    if images.left_out:
        report.line(
            f"measures on {images.total:,} images; {images.left_out:,} are bad and left out: "
            f"{shown_path(report.bad_images)}"
        )
    # Measured anew, all of it.
    report.begin(-1, per_epoch=1)
    rows = []
    for path in paths:
        if path not in loaded:
            wait_for(path, report, world)
        network = (loaded.pop(path, None) or load_network(path, config)).to(world.device)
        architecture = network.architecture
        said = PredictionsRecorder()
        forward = compiled(network, "test.compile") if settings.compile else network
        score = evaluate(forward, images, settings.batch_size, settings.amp, world, warm_up=True, each=said.add)
        row = {
            "checkpoint": str(path),
            "weights": settings.weights,
            **({"from_supernet": True} if settings.from_supernet else {}),
            "architecture": str(architecture),
            "top1": score.top1,
            "top5": score.top5,
            "loss": score.loss,
            **architecture.costs(model.image_size, model.num_classes),
            "images_per_second": score.images_per_second,
            "images": images.total,
            "images_left_out": images.left_out,
            "device": str(world.device.type),
        }
        rows.append(row)
        subnet = f"{architecture} with the weights of " if settings.from_supernet else ""
        report.line(
            f"{subnet}{shown_path(path)}: top-1 {score.top1:.2f}%  top-5 {score.top5:.2f}%  loss {score.loss:.4f}  "
            f"{row['macs']:,} MACs{_released(row)}  {row['parameters']:,} parameters  "
            f"{score.images_per_second:,.0f} images/s"
        )
        # Only of one whose name does not say it, the file is looked into once more.
        epoch = CheckpointFolder.epoch_of(path) or CheckpointFolder(path.parent).epoch_in(path.name) or 0
        report.scalars(epoch, {f"test/{name}": row[name] for name in ("top1", "top5", "loss", "images_per_second")})
        about = {name: row[name] for name in ("checkpoint", "weights", "architecture", "images")}
        predictions = said.predictions(network, images, settings.amp, about, world)
        if world.is_main:
            write_text(config.folder.results, json.dumps(row | {"checkpoints": rows}, indent=2) + "\n")
            predictions.write(config.folder.predictions)
    if world.is_main:
        report.line(f"results are in {shown_path(config.folder.results)}")
    report.finish()


def _first_network(config: RunConfig, world: World) -> tuple[list[Path], dict[Path, nn.Module]]:
    """The files to measure, the same on all ranks, and the network of the first if it is written.

    It is loaded before the images are decoded, which takes minutes: a file that does not fit is refused at once.
    """
    while True:
        paths: list[Path] = []
        network = None
        # A training that goes on may remove the newest meanwhile, and write another.
        with suppress(NoSuchFileError):
            paths = checkpoints_to_test(config)
        # A rank may see an older newest file than another.
        paths = gather(paths, world)[0]
        with suppress(NoSuchFileError):
            network = load_network(paths[0], config) if paths else None
        written = all(gather(network is not None, world))
        if paths and (written or config.test.start is not None):
            return paths, {paths[0]: network} if written else {}


def _released(row: dict) -> str:
    return "" if row["macs_released"] is None else f" ({row['macs_released']:,} released)"


def wait_for(path: Path, report: Report, world: World) -> None:
    """Return once every rank sees a file. Raises `Interrupted` if the run is asked to stop before that."""
    began = reminded = time.monotonic()
    while True:
        there = all(gather(path.exists(), world))
        if reason := stop_requested(world, at_once=True):
            report.close()
            raise Interrupted(reason)
        if there:
            return
        if began == reminded or time.monotonic() - reminded > REMIND_SECONDS:
            report.line(f"waits for {shown_path(path)}, which retrain has not written yet")
            reminded = time.monotonic()
        time.sleep(POLL_SECONDS)
