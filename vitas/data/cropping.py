"""The random-resized crop: drawn from an image's size alone, so that no more of a JPEG is decoded than it needs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitas.data.pictures import Box, Picture, pixels_of, size_of

# By its name in the YAML, that in torch.
RESAMPLING = {"bicubic": "bicubic", "bilinear": "bilinear", "nearest": "nearest-exact"}
# Of a crop with the asked area and aspect ratio inside the image; then its centre is taken.
_ATTEMPTS = 10


class Rectangle(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> Box:
        """Its edges."""
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of random area and aspect ratio, resized to a square (Szegedy et al., CVPR 2015).

    side: of the square. scale, ratio: ranges of the area, as a share of the image's, and of width / height.
    interpolation: a key of `RESAMPLING`.
    """

    side: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str

    def draw(self, size: tuple[int, int]) -> Rectangle:
        """A random crop of an image of this width and height: the draws of timm and torchvision, from `random`."""
        width, height = size
        for _ in range(_ATTEMPTS):
            area = random.uniform(*self.scale) * (width * height)
            aspect = math.exp(random.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                # In this order: the rows are drawn first.
                top = random.randint(0, height - h)
                return Rectangle(random.randint(0, width - w), top, w, h)
        narrowest, widest = self.ratio
        w = round(height * widest) if width / height > widest else width
        h = round(width / narrowest) if width / height < narrowest else height
        return Rectangle((width - w) // 2, (height - h) // 2, w, h)

    def reduction(self, crop: Rectangle) -> int:
        """By how much, of 1, 2, 4 and 8, an image may be reduced whose crop is to be as large as the square still."""
        return max(by for by in (1, 2, 4, 8) if by == 1 or min(crop.width, crop.height) >= by * self.side)

    def resized(self, picture: Picture, crop: Rectangle, reduction: int = 1) -> Tensor:
        """The square, uint8 [3, side, side], of an image that was reduced; the crop is of the whole one.

        In torch, on bytes, in a quarter of the time that Pillow takes: first along rows, then along columns, rounded to
        bytes between. So did Pillow before 13, whose values these are, but for 0.3% that differ by a level or two;
        Pillow 13 takes columns first where that is less work (`python -m bench resizing`).
        """
        width, height = size_of(picture)
        left, right = _whole_pixels(crop.left, crop.width, reduction, width)
        top, bottom = _whole_pixels(crop.top, crop.height, reduction, height)
        # torch wants to be able to write what it reads.
        pixels = np.require(pixels_of(picture, (left, top, right, bottom)), requirements="W")
        part = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        square = (self.side, self.side)
        if part.shape[2:] != square:
            mode = RESAMPLING[self.interpolation]
            part = F.interpolate(part, square, mode=mode, antialias=mode in ("bicubic", "bilinear"))
        # Which it is already, but of few pixels, or where it keeps its size.
        return part[0].contiguous()


def _whole_pixels(first: int, length: int, reduction: int, available: int) -> tuple[int, int]:
    """The edges of a crop along one side of a reduced image: the nearest of its pixels, and at least one pixel, where
    the draw for an image of one or two gives none."""
    start = min(round(first / reduction), available - 1)
    return start, min(max(round((first + length) / reduction), start + 1), available)
