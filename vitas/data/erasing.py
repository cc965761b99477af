"""Random erasing by pixel (Zhong et al., AAAI 2020): where is drawn with the image, the noise is made on the device."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the image's area, and the logarithm of the aspect ratio: timm's.
_AREA = (0.02, 1 / 3)
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
# Of a rectangle inside the image; then none is erased.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Erased:
    """A rectangle that is replaced by noise, which is a function of the seed."""

    top: int
    left: int
    height: int
    width: int
    seed: int


def draw_erased(probability: float, side: int) -> Erased | None:
    """A rectangle of a square image, or None for an image that stays whole. Draws from `random`, as timm does."""
    if random.random() > probability:
        return None
    for _ in range(_ATTEMPTS):
        area = random.uniform(*_AREA) * side**2
        aspect = math.exp(random.uniform(*_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width < side and height < side:
            top, left = random.randint(0, side - height), random.randint(0, side - width)
            return Erased(top, left, height, width, random.getrandbits(63))
    return None


def erase(images: Tensor, erased: Iterable[tuple[int, Erased]]) -> None:
    """Fill rectangles of normalised images [b, 3, H, W] with noise of mean 0 and std 1; each with its image's index.

    The noise depends on the seed and the kind of device alone, not on the other images of the batch.
    """
    generator = torch.Generator(images.device)
    for index, at in erased:
        generator.manual_seed(at.seed)
        # Of its own, and then copied: on a CPU, filling a part of an image in place takes ten times as long.
        noise = torch.randn(3, at.height, at.width, generator=generator, device=images.device)
        images[index, :, at.top : at.top + at.height, at.left : at.left + at.width] = noise
