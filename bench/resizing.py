"""Resizing the crops of training, which the loader does in torch, on bytes, beside Pillow: from pixels to a tensor.

Both resize along rows and along columns, and round to bytes between; Pillow since 13 takes columns first where that is
less work. `changed` is the share of values that differ, and `most` the largest difference; `changed_from_rows_first`
and `most_from_rows_first` are those from exact arithmetic along rows first, with that rounding. How far either is from
exact arithmetic without it, on average, are `error` and `pillow_error`. All in levels of 255.
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
        part = photo.crop(rectangle.box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(part)).permute(2, 0, 1)

    def exact(_: Image.Image, pixels: Array, rectangle: Rectangle) -> Tensor:
        return _resized(_part(pixels, rectangle), (SIZE, SIZE))

    def rows_first(_: Image.Image, pixels: Array, rectangle: Rectangle) -> Tensor:
        along_rows = _in_bytes(_resized(_part(pixels, rectangle), (rectangle.height, SIZE)))
        return _in_bytes(_resized(along_rows, (SIZE, SIZE)))

    seconds = in_turn(
        {"ours": lambda: [ours(*each) for each in drawn], "pillow": lambda: [pillows(*each) for each in drawn]}, rounds
    )
    made, theirs, right, in_passes = (
        torch.stack([how(*each) for each in drawn]).double() for how in (ours, pillows, exact, rows_first)
    )
    found: dict[str, float] = {}
    for name, other in (("", theirs), ("_from_rows_first", in_passes)):
        found[f"changed{name}"] = round(float((made != other).double().mean()), 4)
        found[f"most{name}"] = int((made - other).abs().max())
    found["error"] = round(float((made - right).abs().mean()), 4)
    found["pillow_error"] = round(float((theirs - right).abs().mean()), 4)
    row = {"what": f"500 x 375 to {SIZE} x {SIZE}, bicubic, {images} photos"}
    return [row | ratio(seconds["ours"], seconds["pillow"]) | found | {"goal": None}]


def _part(pixels: Array, rectangle: Rectangle) -> Tensor:
    """The pixels in a rectangle as [3, H, W] in double precision."""
    return torch.from_numpy(pixels_of(pixels, rectangle.box)).permute(2, 0, 1).double()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 255)


def _in_bytes(image: Tensor) -> Tensor:
    """Rounded to the nearest byte, still in double precision."""
    return (image + 0.5).floor()
