"""The handwritten digits of scikit-learn as image folders, to try the pipeline on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from vitas.errors import UserError

IMAGE_SIZE = 32
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def write_digits(folder: Path, seed: int = 0) -> None:
    """Write the 1,797 digits to `folder/train`, `val` and `test`, one folder per class, as 32 x 32 PNG.

    The split is stratified. Does nothing if the folder exists: it is written
    under another name and then renamed, so an existing folder is complete.
    """
    if folder.exists():
        return
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UserError("the digits come with scikit-learn; pip install 'vitas[quickstart]'") from None
    digits = load_digits()
    indices = np.arange(len(digits.target))
    train, rest = train_test_split(indices, train_size=SHARES["train"], stratify=digits.target, random_state=seed)
    val, test = train_test_split(
        rest,
        train_size=SHARES["val"] / (SHARES["val"] + SHARES["test"]),
        stratify=digits.target[rest],
        random_state=seed,
    )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name, part in (("train", train), ("val", val), ("test", test)):
        for index in part:
            pixels = (digits.images[index] * (255 / 16)).round().astype(np.uint8)
            image = Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            path = unfinished / name / str(digits.target[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(path)
    unfinished.rename(folder)
