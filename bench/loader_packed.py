"""Training images per second on one core from packed folders, beside timm's loader on the files.

    OMP_NUM_THREADS=1 python bench/loader_packed.py FOLDER [--images 512] [--rounds 7]

The recipe is DeiT's, at 224 x 224: random-resized crop, RandAugment, random erasing by pixel. Everything is done in
this process, and its CPU time is taken, so a number is that of one core, whatever else the machine does. The loaders
take turns, and the files are in the page cache: what is compared is reading, decoding and augmenting, and no disk. The
goal is four times timm's number with `--size 256`.

FOLDER gets the images, 2,000 crops of scikit-learn's two photos as JPEG files of about 500 x 375 in 20 classes, and
their packs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageDataset, create_loader

from vitas.config import Model
from vitas.data.folders import TrainingData
from vitas.data.images import folder_listing, open_image_folder
from vitas.data.packing import PackOptions, pack
from vitas.data.training import TrainingLoader
from vitas.distributed import World

SIZE, BATCH, CLASSES = 224, 64, 20
TIMM = "timm, files"


def write_photos(folder: Path, count: int = 2000) -> None:
    """Write JPEG files of quality 90, as large as ImageNet's are on average. Does nothing if the folder exists."""
    if folder.exists():
        return
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % 2]
        width, height = int(rng.integers(460, 540)), int(rng.integers(340, 410))
        left, top = (int(rng.integers(0, room + 1)) for room in (photo.width - width, photo.height - height))
        path = unfinished / f"class{number % CLASSES:02}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + width, top + height)).save(path, quality=90)
    unfinished.rename(folder)


def of_timm(folder: Path, images: int, seed: int) -> int:
    """Load so many images with timm's loader; their number."""
    torch.manual_seed(seed)
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        re_prob=0.25,
        re_mode="pixel",
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        num_workers=0,
        persistent_workers=False,
    )
    count = 0
    for batch, _ in loader:
        count += len(batch)
        if count >= images:
            break
    return count


def of_vitas(folder: Path, images: int, seed: int) -> int:
    """The same with this project's."""
    model = Model()
    data = TrainingData(data_dir=str(folder), workers=0)
    loader = TrainingLoader(data, SIZE, model.mean, model.std, BATCH, World(), seed)
    return sum(len(batch) for batch, _ in loader.batches(0, -(-images // BATCH)))


def measure(folder: Path, images: int = 512, rounds: int = 7) -> dict[str, Any]:
    """Images per second of each loader, and seconds to open each kind of folder with its listing, as plain data."""
    torch.set_num_threads(1)
    files, as_is, smaller = folder / "photos", folder / "photos.pack", folder / "photos256.pack"
    folder.mkdir(parents=True, exist_ok=True)
    write_photos(files)
    pack(files, as_is, PackOptions(), 1)
    pack(files, smaller, PackOptions(size=256), 1)
    loaders: dict[str, Callable[[int], int]] = {
        TIMM: lambda seed: of_timm(files, images, seed),
        "vitas, files": lambda seed: of_vitas(files, images, seed),
        "vitas, pack": lambda seed: of_vitas(as_is, images, seed),
        "vitas, pack of --size 256": lambda seed: of_vitas(smaller, images, seed),
    }
    opened: dict[str, Callable[[], object]] = {
        TIMM: lambda: ImageDataset(str(files)),
        "vitas, files": lambda: folder_listing(open_image_folder(str(files))),
        "vitas, pack": lambda: folder_listing(open_image_folder(str(as_is))),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    seconds: dict[str, list[float]] = {name: [] for name in opened}
    # The first round fills the page cache, and is not counted.
    for turn in range(rounds + 1):
        for name, load in loaders.items():
            began = time.process_time()
            count = load(turn)
            if turn:
                speeds[name].append(count / (time.process_time() - began))
        for name, read in opened.items():
            began = time.perf_counter()
            read()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    # Of each round, since the machine's speed changes between rounds.
    ratios = {
        name: [mine / theirs for mine, theirs in zip(found, speeds[TIMM], strict=True)]
        for name, found in speeds.items()
    }
    return {
        "images": images,
        "rounds": rounds,
        "bytes": {path.name: sum(part.stat().st_size for part in path.rglob("*")) for path in (files, as_is, smaller)},
        "images_per_second": {name: spread(found) for name, found in speeds.items()},
        "times_timm": {name: spread(found) for name, found in ratios.items()},
        "seconds_to_open": {name: spread(found) for name, found in seconds.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    found = measure(arguments.folder, arguments.images, arguments.rounds)
    print("| of one core | images/s, median | least to most | times timm, median | least to most |")
    print("|---|--:|--:|--:|--:|")
    for name, speed in found["images_per_second"].items():
        ratio = found["times_timm"][name]
        print(
            f"| {name} | {speed['median']:.1f} | {speed['least']:.1f} to {speed['most']:.1f} "
            f"| {ratio['median']:.2f} | {ratio['least']:.2f} to {ratio['most']:.2f} |"
        )
    print("\n| to open | ms, median | least to most |\n|---|--:|--:|")
    for name, taken in found["seconds_to_open"].items():
        print(f"| {name} | {1e3 * taken['median']:.2f} | {1e3 * taken['least']:.2f} to {1e3 * taken['most']:.2f} |")
    print("\n" + ", ".join(f"{name}: {size / 1e6:,.1f} MB" for name, size in found["bytes"].items()))


if __name__ == "__main__":
    main()
