"""Training images from files, beside timm's loader with the same files and the same recipe, on one core.

An epoch of each in turn, decoded, augmented and normalised in this process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
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


def measure(images: int = 300, rounds: int = 5) -> list[dict[str, Any]]:
    """images: photos of about 500 x 375 pixels; a third as many of 2,000 x 1,500."""
    torch.set_num_threads(1)
    rows = []
    for enlarged, count in ((1, images), (4, images // 3)):
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), count, enlarged=enlarged)
            for name, recipe in RECIPES.items():
                seconds = in_turn(
                    {"ours": epochs_of_ours(folder, recipe), "timm": epochs_of_timm(folder, recipe)}, rounds
                )
                what = f"{500 * enlarged:,} x {375 * enlarged:,} to {SIZE} x {SIZE}, {name}, {count} photos"
                rows.append({"what": what, **speed(seconds["ours"], seconds["timm"])})
    return rows


def consume(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    for images, _ in batches:
        # Waits for the device.
        images.mean().item()


def epochs_of_ours(data_dir: str, recipe: Augmentation) -> Callable[[], None]:
    """What loads another epoch at each call."""
    data = TrainingData(data_dir=data_dir, workers=0, augmentation=recipe)
    model = Model()
    loader = TrainingLoader(data, SIZE, model.mean, model.std, BATCH, World(device=DEVICE), seed=0)
    epoch = 0

    def load() -> None:
        nonlocal epoch
        steps = loader.steps_per_epoch
        consume(loader.batches(epoch * steps, (epoch + 1) * steps))
        epoch += 1

    return load


def epochs_of_timm(data_dir: str, recipe: Augmentation) -> Callable[[], None]:
    """The same of timm's, which leaves the last, smaller batch out as well."""
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
    return lambda: consume(loader)
