"""Resizing the crops of training in torch, on bytes, beside Pillow, which the loader takes: from image to tensor.

Torch is the faster, and gives other values in some places: `changed` is their share, and `most` the largest difference,
in levels of 255. So it is not what the loader does (docs/performance.md).
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vitas.data.cropping import RESAMPLING, RandomResizedCrop, Rectangle
from vitas.data.folders import Augmentation

from .loader import SIZE
from .photos import write_photos
from .rounds import in_turn, ratio


def measure(images: int = 200, rounds: int = 5) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    augmentation = Augmentation()
    crop = RandomResizedCrop(SIZE, augmentation.scale, augmentation.ratio, RESAMPLING["bicubic"])
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), images)
        photos = [Image.open(path).convert("RGB") for path in sorted(Path(folder).rglob("*.jpg"))]
    random.seed(0)
    drawn = [(photo, crop.draw(photo.size)) for photo in photos]

    def in_pillow(photo: Image.Image, rectangle: Rectangle) -> Tensor:
        return torch.from_numpy(np.array(crop.resized(photo, rectangle))).permute(2, 0, 1)

    def in_torch(photo: Image.Image, rectangle: Rectangle) -> Tensor:
        left, top, width, height = rectangle
        pixels = torch.from_numpy(np.array(photo.crop((left, top, left + width, top + height))))
        return F.interpolate(pixels.permute(2, 0, 1)[None], (SIZE, SIZE), mode="bicubic", antialias=True)[0]

    seconds = in_turn(
        {"torch": lambda: [in_torch(*each) for each in drawn], "pillow": lambda: [in_pillow(*each) for each in drawn]},
        rounds,
    )
    differences = torch.stack([in_torch(*each).int() - in_pillow(*each).int() for each in drawn]).abs()
    row = {"what": f"500 x 375 to {SIZE} x {SIZE}, bicubic, {images} photos"}
    return [
        row
        | ratio(seconds["torch"], seconds["pillow"])
        | {"changed": round(float((differences > 0).float().mean()), 4), "most": int(differences.max()), "goal": None}
    ]
