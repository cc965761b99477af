"""Training images per second and core, beside timm's loader with the same files and the same recipe.

    OMP_NUM_THREADS=1 python bench/loader.py FOLDER [--image-size 224] [--enlarged 1] [--rounds 5]

FOLDER gets 2,000 photos in 20 classes where it has none yet: parts of scikit-learn's two sample images, around
500 x 375 pixels, as JPEGs of quality 90; `--enlarged 4` makes them 2,000 x 1,500. The goal is twice timm's rate. Epochs
of both loaders alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from timm.data import ImageDataset, create_loader

from vitas.data.folders import Augmentation, TrainingData, WeakAugmentation
from vitas.data.training import TrainingLoader
from vitas.distributed import World

RECIPES = {"DeiT's": Augmentation(), "weak": WeakAugmentation()}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLASSES, QUALITY = 20, 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="of an epoch, and in FOLDER if they are made")
    parser.add_argument("--enlarged", type=int, default=1, help="sides of the photos, in times of about 500 x 375")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    numbers = measure(
        arguments.folder,
        arguments.images,
        arguments.enlarged,
        arguments.image_size,
        arguments.batch_size,
        arguments.workers,
        arguments.rounds,
    )
    if arguments.json:
        print(json.dumps(numbers))
    else:
        show(numbers)


def measure(
    folder: Path,
    images: int = 2000,
    enlarged: int = 1,
    image_size: int = 224,
    batch_size: int = 50,
    workers: Iterable[int] = (0, 2),
    rounds: int = 5,
) -> dict[str, Any]:
    """The setting, and for each recipe and number of workers the images per second and core of each epoch.

    A core is a worker, or without workers this process.
    """
    write_photos(folder, images, enlarged)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, recipe in RECIPES.items():
        for count in workers:
            ours = our_loader(folder, recipe, image_size, batch_size, count, device)
            peer = timms_loader(folder, recipe, image_size, batch_size, count, device)
            row: dict[str, Any] = {"recipe": name, "workers": count, "ours": [], "timm": []}
            for turn in range(rounds):
                steps = ours.steps_per_epoch
                row["ours"].append(rate(ours.batches(turn * steps, (turn + 1) * steps)) / max(1, count))
                row["timm"].append(rate(peer) / max(1, count))
            row["ratio"] = median(row["ours"]) / median(row["timm"])
            rows.append(row)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "image_size": image_size,
        "enlarged": enlarged,
        "images": images,
        "rows": rows,
    }


def rate(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Images per second of an epoch, from the start of its workers to the last batch on the device."""
    began, count = time.perf_counter(), 0
    for images, _ in batches:
        # Waits for the device.
        images.mean().item()
        count += len(images)
    return count / (time.perf_counter() - began)


def our_loader(
    folder: Path, recipe: Augmentation, image_size: int, batch_size: int, workers: int, device: torch.device
) -> TrainingLoader:
    data = TrainingData(data_dir=str(folder), workers=workers, augmentation=recipe)
    return TrainingLoader(data, image_size, MEAN, STD, batch_size, World(device=device), seed=0)


def timms_loader(
    folder: Path, recipe: Augmentation, image_size: int, batch_size: int, workers: int, device: torch.device
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return create_loader(
        ImageDataset(str(folder)),
        image_size,
        batch_size,
        is_training=True,
        auto_augment=recipe.auto_augment,
        color_jitter=recipe.color_jitter or None,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        interpolation=recipe.interpolation,
        mean=tuple(MEAN),
        std=tuple(STD),
        num_workers=workers,
        persistent_workers=False,
        pin_memory=device.type == "cuda",
        device=device,
    )


def write_photos(folder: Path, images: int, enlarged: int) -> None:
    """Write JPEGs of many sizes, upright and across, spread over the classes. Does nothing if the folder exists."""
    if folder.exists():
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    photos, rng = [Image.fromarray(pixels) for pixels in load_sample_images().images], np.random.default_rng(0)
    for index in range(images):
        photo = photos[index % len(photos)]
        width, height = int(rng.integers(430, 571)), int(rng.integers(323, 428))
        left, top = int(rng.integers(0, photo.width - width + 1)), int(rng.integers(0, photo.height - height + 1))
        part = photo.crop((left, top, left + width, top + height))
        if enlarged > 1:
            part = part.resize((width * enlarged, height * enlarged), Image.Resampling.BICUBIC)
        if rng.random() < 0.25:
            part = part.transpose(Image.Transpose.ROTATE_90)
        path = unfinished / f"class{index % CLASSES:02}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=QUALITY)
    unfinished.rename(folder)


def show(numbers: dict[str, Any]) -> None:
    """A table: medians, with the least and the most of the rounds."""
    where = f"{numbers['device']}, torch {numbers['torch']}"
    photos = f"{500 * numbers['enlarged']:,} x {375 * numbers['enlarged']:,}"
    size = numbers["image_size"]
    table = Table(title=f"images per second and core on {where}, photos of about {photos} to {size} x {size}")
    for column in ("recipe", "workers", "ours", "timm", "ratio"):
        table.add_column(column, justify="right")
    for row in numbers["rows"]:
        rates = (f"{median(row[of]):.0f} ({min(row[of]):.0f} to {max(row[of]):.0f})" for of in ("ours", "timm"))
        table.add_row(row["recipe"], str(row["workers"]), *rates, f"{row['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
