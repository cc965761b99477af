"""The random-resized crop: drawn from an image's size alone, so that no more of a JPEG is decoded than it needs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
# Of a crop with the asked area and aspect ratio inside the image; then its centre is taken.
_ATTEMPTS = 10


class Rectangle(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of random area and aspect ratio, resized to a square (Szegedy et al., CVPR 2015).

    side: of the square. scale, ratio: ranges of the area, as a share of the image's, and of width / height.
    """

    side: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    resampling: Image.Resampling

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

    def resized(self, image: Image.Image, crop: Rectangle, reduction: int = 1) -> Image.Image:
        """The square [side x side], of an image that was reduced; the crop is of the whole one."""
        square = (self.side, self.side)
        left, top, right, bottom = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
        if reduction == 1:
            # Cropped first: resizing by a box alone would mix in pixels from beyond its edges. What is to stay as it is
            # Pillow would copy twice.
            if image.size != (crop.width, crop.height):
                image = image.crop((left, top, right, bottom))
            return image if image.size == square else image.resize(square, self.resampling)
        part = (left / reduction, top / reduction, right / reduction, bottom / reduction)
        return image.resize(square, self.resampling, part)
