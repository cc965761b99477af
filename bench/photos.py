"""Photos for benchmarks of decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

QUALITY = 90


def write_photos(folder: Path, images: int, classes: int = 20, enlarged: int = 1) -> None:
    """Write so many JPEGs of many sizes, upright and across, spread over the classes, below a new folder.

    They are parts of scikit-learn's two sample images, around 500 x 375 pixels, as ImageNet's are; of `enlarged` times
    that along each side.
    """
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
        path = folder / f"class{index % classes:02}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=QUALITY)
