"""Resizing the crops of training, which the loader does in torch, on bytes, beside Pillow: from pixels to a tensor.

Both round to bytes between the columns and the rows, and otherwise: `changed` is the share of values that differ, and
`most` the largest difference. How far either is from exact arithmetic, on average and at most, are `error`,
`largest_error`, `pillow_error` and `pillow_largest_error`. All in levels of 255.
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

from vitas.costs import Array
from vitas.data.cropping import RandomResizedCrop, Rectangle
from vitas.data.folders import Augmentation
from vitas.data.pictures import pixels_of

from .loader import SIZE
from .photos import write_photos
from .rounds import in_turn, ratio


def measure(images: int = 200, rounds: int = 5) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    augmentation = Augmentation()
    crop = RandomResizedCrop(SIZE, augmentation.scale, augmentation.ratio, "bicubic")
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), images)
        photos = [Image.open(path).convert("RGB") for path in sorted(Path(folder).rglob("*.jpg"))]
    random.seed(0)
    drawn = [(photo, np.array(photo), crop.draw(photo.size)) for photo in photos]

    def ours(_: Image.Image, pixels: Array, rectangle: Rectangle) -> Tensor:
        return crop.resized(pixels, rectangle)

    def pillows(photo: Image.Image, _: Array, rectangle: Rectangle) -> Tensor:
        part = photo.crop(_box(rectangle)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(part)).permute(2, 0, 1)

    def exact(_: Image.Image, pixels: Array, rectangle: Rectangle) -> Tensor:
        part = torch.from_numpy(pixels_of(pixels, _box(rectangle))).permute(2, 0, 1)[None].double()
        return F.interpolate(part, (SIZE, SIZE), mode="bicubic", antialias=True)[0].clamp(0, 255)

    seconds = in_turn(
        {"ours": lambda: [ours(*each) for each in drawn], "pillow": lambda: [pillows(*each) for each in drawn]}, rounds
    )
    torchs, theirs, right = (torch.stack([how(*each) for each in drawn]) for how in (ours, pillows, exact))
    errors = {"": (torchs - right).abs(), "pillow_": (theirs - right).abs()}
    found: dict[str, float] = {"changed": round(float((torchs != theirs).float().mean()), 4)}
    found["most"] = int((torchs.int() - theirs.int()).abs().max())
    for whose, error in errors.items():
        found[f"{whose}error"] = round(float(error.mean()), 4)
        found[f"{whose}largest_error"] = round(float(error.max()), 1)
    row = {"what": f"500 x 375 to {SIZE} x {SIZE}, bicubic, {images} photos"}
    return [row | ratio(seconds["ours"], seconds["pillow"]) | found | {"goal": None}]


def _box(rectangle: Rectangle) -> tuple[int, int, int, int]:
    left, top, width, height = rectangle
    return left, top, left + width, top + height
