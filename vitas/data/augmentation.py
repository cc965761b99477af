"""The augmentation of one training image, from its file to bytes: what is random in it follows from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform
from torch import Tensor
from torchvision.transforms import Compose

from vitas.data.cropping import RandomResizedCrop, Rectangle
from vitas.data.erasing import Erased, draw_erased
from vitas.data.folders import Augmentation
from vitas.data.pictures import Picture, Reduction, size_of
from vitas.errors import UserError


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep `bits` bits of each channel; 0 gives black, as in Pillow before 13, which now refuses 0."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _fix_posterize() -> None:
    """timm's RandAugment asks for 0 bits at its highest level, which Pillow refuses; this replaces its operations."""
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        auto_augment.NAME_TO_OP[name] = posterize


@dataclass(frozen=True)
class Transform:
    """What becomes of an image: crop it, flip it, vary it, and erase a part of it.

    flip, erasing: probabilities. vary: an image [image_size x image_size] -> the same, recoloured; None is as it is.
    """

    crop: RandomResizedCrop
    flip: float
    vary: Callable[[Image.Image], Image.Image] | None
    erasing: float

    def __call__(self, read: Callable[[Reduction], Picture], seed: int) -> tuple[Tensor, Erased | None]:
        """The image that `read` gives, augmented by a seed: uint8 [3, image_size, image_size], and what to erase of it.

        read: an image, of what says by how much it may be reduced (see `read_picture`).
        """
        drawn: list[Rectangle] = []

        def draw(size: tuple[int, int]) -> int:
            # Here, because a file that cannot be read for a moment is asked for its crop again.
            _seed_generators(seed)
            drawn.append(self.crop.draw(size))
            return self.crop.reduction(drawn[-1])

        picture = read(draw)
        # What is no JPEG comes whole, whatever its crop allows.
        reduction = self.crop.reduction(drawn[-1]) if drawn else 1
        if not drawn:
            draw(size_of(picture))
        image = self.crop.resized(picture, drawn[-1], reduction)
        if self.flip and _draw_flip(self.flip):
            image = image.flip(2)
        if self.vary:
            image = _as_tensor(self.vary(_as_image(image)))
        erased = draw_erased(self.erasing, self.crop.side) if self.erasing else None
        return image, erased


def training_transform(augmentation: Augmentation, image_size: int, mean: list[float]) -> Transform:
    """The augmentation of a section. mean: what RandAugment fills in. Raises `UserError` for an unknown recipe."""
    _fix_posterize()
    (smallest, largest), (narrowest, widest) = augmentation.scale, augmentation.ratio
    try:
        before, after, _ = create_transform(
            image_size,
            is_training=True,
            separate=True,
            auto_augment=augmentation.auto_augment,
            color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]  # timm knows None as well
            hflip=0.0,
            interpolation=augmentation.interpolation,
            mean=tuple(mean),
        )
    except (AssertionError, KeyError, ValueError):
        raise UserError(
            f"auto_augment: found {augmentation.auto_augment!r}; it must be a recipe that timm knows"
        ) from None
    # The crop, for which timm needs the whole image, and the flip are ours.
    varied = [*before.transforms[1:], *after.transforms]
    crop = RandomResizedCrop(image_size, (smallest, largest), (narrowest, widest), augmentation.interpolation)
    return Transform(crop, augmentation.flip, Compose(varied) if varied else None, augmentation.random_erasing)


def _draw_flip(probability: float) -> bool:
    """The draw of torchvision's `RandomHorizontalFlip`, which compares in 32 bits."""
    return bool(torch.rand(1).item() < np.float32(probability))


# Pillow takes channels together and apart sooner than torch exchanges the dimensions of their pixels.


def _as_image(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] as an RGB image."""
    _, height, width = pixels.shape
    channels = [Image.frombuffer("L", (width, height), channel, "raw", "L", 0, 1) for channel in pixels.numpy()]
    return Image.merge("RGB", channels)


def _as_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3, H, W]."""
    channels = bytearray().join([image.tobytes("raw", channel) for channel in "RGB"])
    return torch.frombuffer(channels, dtype=torch.uint8).view(3, image.height, image.width)


def _seed_generators(seed: int) -> None:
    """Seed the three generators that the transforms of timm and torchvision draw from; not the GPU's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
