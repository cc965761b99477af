"""What a stage would refuse only when it has started, found beforehand: images, and files that it will read.

`vitas check` asks this of all stages, and a program of the stages that follow
its own: better said now than after the days that these take.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vitas.config.retrain import Retrain
from vitas.config.run_config import RunConfig
from vitas.config.search import AsvitSearch
from vitas.config.training import Training
from vitas.data.folders import count_images, small_classes
from vitas.run import STAGES

# What is a file, and not the name of one of timm's models.
_FILE = re.compile(r".*(/|\.pth(\.tar)?$|\.pt$|\.safetensors$)")
_EPOCH = re.compile(r"epoch_(\d+)_ckpt\.pth\.tar")
# What `retrain` with val images keeps, by which name `test.load_name` may ask for it too.
_BEST = "best_ckpt.pth.tar"
# Classes that are named.
_LISTED = 5


def audit(config: RunConfig, stage: str) -> Iterator[str]:
    """A line per thing that a stage would refuse once it has started, if all flagged stages before it have run."""
    yield from audit_images(config, stage)
    yield from _audit_files(config, stage)
    if stage in ("sample", "test"):
        yield from _audit_checkpoints(config, stage)


def audit_images(config: RunConfig, stage: str) -> Iterator[str]:
    """A line per class with too few images, and where a batch is larger than a folder. No image is opened."""
    section = getattr(config, stage)
    if section is None or section.data is None:
        return
    read = {f"{stage}.data": section.data}
    if stage == "retrain" and section.val is not None:
        read["retrain.val"] = section.val
    for key, data in read.items():
        if not Path(data.data_dir).is_dir():
            continue
        # Of a class, one image at least is held out, and one is left.
        small = small_classes(data.data_dir, 1 if data.holdout is None else 2)
        if small:
            more = f" and {len(small) - _LISTED:,} more" if len(small) > _LISTED else ""
            few = "no image of" if data.holdout is None else "fewer than two images, which holdout needs, of"
            names = ", ".join(map(repr, small[:_LISTED]))
            yield f"{key}.data_dir: found {data.data_dir!r}, which has {few} {names}{more}"
    folder = section.data.data_dir
    if isinstance(section, Training) and Path(folder).is_dir():
        images = count_images(folder, section.data.part, section.batch_size)
        if images < section.batch_size:
            yield (
                f"{stage}.batch_size: found {section.batch_size:,}, more than the {images:,} images of {folder!r}; "
                "an epoch would have no step"
            )


def _audit_files(config: RunConfig, stage: str) -> Iterator[str]:
    """A line per file that the section names, and that is not there."""
    section = getattr(config, stage)
    named: dict[str, str | None] = {}
    if isinstance(section, Training):
        named[f"{stage}.distillation.teacher"] = section.distillation.teacher if section.distillation else None
    if stage == "retrain":
        named["retrain.from_checkpoint"] = section.from_checkpoint
    if stage == "search":
        named["model.from_pretrained"] = config.model.from_pretrained
    for key, name in named.items():
        # NAME:FILE of timm's weights.
        file = (name or "").rpartition(":")[2]
        must_be_one = key == "retrain.from_checkpoint" or _FILE.match(file)
        if name is not None and must_be_one and not Path(name).exists() and not Path(file).exists():
            yield f"{key}: found {name!r}, which is not a file"
    where = config.folder.root.absolute()
    there = next(each for each in (where, *where.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        yield f"save_path: found {config.save_path!r}; {str(there)!r} cannot be written to"


def missing_checkpoint(config: RunConfig, stage: str) -> Iterator[str]:
    """A line where a stage reads the newest checkpoint of another one, which is neither flagged nor has written any."""
    section = getattr(config, stage)
    if stage not in ("sample", "test") or section.load_name is not None or getattr(section, "start", None) is not None:
        return
    reads = "search" if stage == "sample" or section.from_supernet else "retrain"
    folder = config.folder.checkpoints(reads)
    if reads not in config.flagged(tuple(STAGES)) and not any(folder.glob("*.pth*")):
        yield f"{stage}: {str(folder)!r} holds no checkpoint, and {reads}.flag is false; run `{reads}` first"


def _audit_checkpoints(config: RunConfig, stage: str) -> Iterator[str]:
    """A line per checkpoint that the stage asks for, that is not there, and that no flagged stage will write."""
    section = getattr(config, stage)
    reads = "search" if stage == "sample" or section.from_supernet else "retrain"
    folder = config.folder.checkpoints(reads)
    training = getattr(config, reads)
    trains = reads in config.flagged(tuple(STAGES)) and isinstance(training, Training)
    if isinstance(config.search, AsvitSearch) and reads == "search":
        return
    if section.load_name is not None:
        will_be = trains and _will_write(training, section.load_name)
        if not will_be and not (folder / section.load_name).exists() and not Path(section.load_name).exists():
            yield f"{stage}.load_name: found {section.load_name!r}, which is not a file, and not in {str(folder)!r}"
    if section.weights == "ema" and trains and not training.ema_decay:
        yield f"{stage}.weights: found 'ema', but {reads}.ema_decay is 0, so no average of the weights is kept"
    if stage == "test" and section.start is not None and section.end is not None and not section.wait:
        asked = range(section.start, section.end + 1, section.strip)
        missing = [epoch for epoch in asked if not (folder / f"epoch_{epoch}_ckpt.pth.tar").exists()]
        if trains:
            missing = [epoch for epoch in missing if not _will_write(training, f"epoch_{epoch}_ckpt.pth.tar")]
        if missing:
            why = f" (retrain.keep is {training.keep})" if trains and training.keep else ""
            yield (
                f"test.start, test.end: the checkpoint of epoch {missing[0]} is not there and will not be{why}; "
                "keep more of them (retrain.keep), choose others, or let `test` run beside `retrain` (test.wait)"
            )


def _will_write(training: Training, name: str) -> bool:
    """Whether a training that has ended leaves a checkpoint of this name."""
    if Path(name).name in (_BEST, _BEST.partition(".")[0]):
        return isinstance(training, Retrain) and training.val is not None
    match = _EPOCH.fullmatch(Path(name).name)
    if match is None:
        return False
    written = [
        epoch
        for epoch in range(1, training.epochs + 1)
        if epoch % training.checkpoint_epochs == 0 or epoch == training.epochs
    ]
    return int(match[1]) in (written[-training.keep :] if training.keep else written)
