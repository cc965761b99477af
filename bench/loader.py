"""Training images from files, beside timm's loader with the same files and the same recipe, on one core.

As many images of each in turn, decoded, augmented and normalised in this process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset, create_loader
from torch import Tensor

from vitas.config import Model
from vitas.data.folders import Augmentation, TrainingData, WeakAugmentation
from vitas.data.training import TrainingLoader
from vitas.distributed import World

from .photos import write_photos
from .rounds import DEVICE, in_turn, speed

RECIPES = {"DeiT's recipe": Augmentation(), "weak": WeakAugmentation()}
SIZE, BATCH = 224, 50
# Of each photo, in a folder of very many files.
NAMES = 300


def measure(images: int = 300, rounds: int = 5) -> list[dict[str, Any]]:
    """images: photos of about 500 x 375 pixels, also under `NAMES` times as many names; a third of 2,000 x 1,500."""
    torch.set_num_threads(1)
    rows = []
    for enlarged, count, names in ((1, images, 1), (1, images, NAMES), (4, images // 3, 1)):
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), count, enlarged=enlarged)
            for path in list(Path(folder).rglob("*.jpg")):
                for copy in range(1, names):
                    path.with_stem(f"{path.stem}-{copy}").hardlink_to(path)
            for name, recipe in RECIPES.items():
                steps = count // BATCH
                seconds = in_turn(
                    {"ours": steps_of_ours(folder, recipe, steps), "timm": steps_of_timm(folder, recipe, steps)}, rounds
                )
                what = (
                    f"{500 * enlarged:,} x {375 * enlarged:,} to {SIZE} x {SIZE}, {name}, {count} of {count * names:,}"
                )
                rows.append({"what": what, **speed(seconds["ours"], seconds["timm"])})
    return rows


def consume(batches: Iterable[tuple[Tensor, Tensor]], steps: int) -> None:
    for images, _ in islice(batches, steps):
        # Waits for the device.
        images.mean().item()


def steps_of_ours(data_dir: str, recipe: Augmentation, steps: int) -> Callable[[], None]:
    """What loads so many further batches at each call."""
    data = TrainingData(data_dir=data_dir, workers=0, augmentation=recipe)
    model = Model()
    loader = TrainingLoader(data, SIZE, model.mean, model.std, BATCH, World(device=DEVICE), seed=0)
    done = 0

    def load() -> None:
        nonlocal done
        consume(loader.batches(done, done + steps), steps)
        done += steps

    return load


def steps_of_timm(data_dir: str, recipe: Augmentation, steps: int) -> Callable[[], None]:
    """The same of timm's."""
    loader = create_loader(
        ImageDataset(data_dir),
        SIZE,
        BATCH,
        is_training=True,
        auto_augment=recipe.auto_augment,
        color_jitter=recipe.color_jitter or None,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        interpolation=recipe.interpolation,
        num_workers=0,
        persistent_workers=False,
        pin_memory=DEVICE.type == "cuda",
        device=DEVICE,
    )
    return lambda: consume(loader, steps)
