"""Opening image folders, decoding image files as for evaluation, and normalising."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from vitas.errors import UserError

INTERPOLATION = InterpolationMode.BICUBIC


def open_image_folder(data_dir: str) -> ImageFolder:
    """The images of a folder, undecoded. Raises `UserError` for a class without images."""
    try:
        return ImageFolder(data_dir)
    except FileNotFoundError as error:
        raise UserError(f"data_dir {data_dir!r}: {error}") from None


def evaluation_transform(image_size: int, crop_fraction: float) -> Compose:
    """An image -> uint8 [3, image_size, image_size]: resized, then its central `crop_fraction` is cropped."""
    return Compose([Resize(round(image_size / crop_fraction), INTERPOLATION), CenterCrop(image_size), PILToTensor()])


def channels(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """The mean or std of the three channels as a tensor [1, 3, 1, 1]."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images uint8 [b, 3, H, W] -> the float input of networks; mean and std as `channels` returns them."""
    return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Decoded:
    """A batch. images: uint8 [b, 3, H, W], one per path in `paths`. refused: files that failed, with the reason."""

    paths: list[Path]
    images: Tensor
    refused: dict[Path, str]


def find_pictures(places: Sequence[str | Path]) -> list[Path]:
    """The files in `places`, and the image files (by extension, sorted) below its folders, each once.

    Raises `UserError` for a place that does not exist, and for a folder without images.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"found {str(place)!r}, which does not exist; give image files, or folders of them")
        pictures = _below(place) if place.is_dir() else [place]
        if not pictures:
            raise UserError(f"found {str(place)!r}, which holds no image ({', '.join(IMG_EXTENSIONS)})")
        found |= dict.fromkeys(pictures)
    return list(found)


def _below(folder: Path) -> list[Path]:
    walked = os.walk(folder, followlinks=True)
    names = (Path(parent, name) for parent, _, files in walked for name in files)
    return sorted(path for path in names if path.name.lower().endswith(IMG_EXTENSIONS))


def decode(
    paths: Sequence[Path], image_size: int, crop_fraction: float, batch_size: int, workers: int
) -> Iterator[Decoded]:
    """Decode files in batches of `batch_size`, in order, in `workers` processes.

    A single batch is decoded in this process, which is faster than starting workers.
    """
    # Unlike those of a stage, these workers do not ignore signals: they must end with an interrupted program.
    yield from DataLoader(
        _Pictures(paths, evaluation_transform(image_size, crop_fraction)),
        batch_size=batch_size,
        num_workers=workers if len(paths) > batch_size else 0,
        collate_fn=_collate,
    )


def spread_images(data_dir: str, count: int, image_size: int, crop_fraction: float) -> Tensor:
    """Up to `count` images, evenly spread over an image folder, uint8 [n, 3, image_size, image_size].

    Raises `UserError` for a folder without images, and for a file that is not an image.
    """
    paths = [Path(path) for path, _ in open_image_folder(data_dir).samples]
    # Spread, because neighbours are of the same class.
    spread = [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
    (batch,) = decode(spread, image_size, crop_fraction, count, workers=0)
    for path, reason in batch.refused.items():
        raise UserError(f"{path} {reason}")
    return batch.images


def draw_images(
    data_dir: str, count: int, image_size: int, crop_fraction: float, seed: int, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Up to `count` random images of an image folder, uint8 [n, 3, image_size, image_size], and their labels [n].

    As many of each class as there are, to one. Raises `UserError` as `spread_images` does.
    """
    samples = open_image_folder(data_dir).samples
    order = np.random.default_rng(seed).permutation(len(samples))
    # The first of every class, the second of every class, and so on.
    seen: Counter = Counter()
    turns = []
    for index in order:
        seen[samples[index][1]] += 1
        turns.append(seen[samples[index][1]])
    chosen = order[np.argsort(turns, kind="stable")][:count]
    paths = [Path(samples[index][0]) for index in chosen]
    batches = list(decode(paths, image_size, crop_fraction, 64, workers))
    for batch in batches:
        for path, reason in batch.refused.items():
            raise UserError(f"{path} {reason}")
    return torch.cat([batch.images for batch in batches]), torch.tensor([samples[index][1] for index in chosen])


class _Pictures(Dataset):
    """Items are a path and its image uint8 [3, H, W], or the reason why it has none."""

    def __init__(self, paths: Sequence[Path], transform: Compose) -> None:
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | str]:
        path = self._paths[index]
        try:
            return path, self._transform(default_loader(path))
        except UnidentifiedImageError:
            return path, "is not an image"
        except OSError as error:
            return path, f"cannot be read ({error.strerror or error})"
        except Exception as error:
            # A damaged file makes PIL's readers raise many kinds of exceptions.
            return path, f"is a damaged image ({error})"


def _collate(items: list[tuple[Path, Tensor | str]]) -> Decoded:
    good = [(path, image) for path, image in items if isinstance(image, Tensor)]
    refused = {path: reason for path, reason in items if isinstance(reason, str)}
    images = torch.stack([image for _, image in good]) if good else torch.empty(0, dtype=torch.uint8)
    return Decoded([path for path, _ in good], images, refused)
