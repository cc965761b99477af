"""Opening image folders, decoding image files as for evaluation, and normalising."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from vitas.data.bad_images import BadImages
from vitas.data.folders import BAD_IMAGES, IMAGE_ENDINGS, Listing, Part, listing
from vitas.data.image_list import ImageFolder
from vitas.data.listings import open_listing
from vitas.data.pack_index import INDEX, read_index
from vitas.data.packed import PackedFolder
from vitas.data.pictures import BadImage, read_image
from vitas.data.workers import batches_of, number_of_workers, start, start_in_stage
from vitas.errors import UserError
from vitas.report import Report

# Numbers whose floats stay in the cache of a core.
_IN_CACHE = 2**18

INTERPOLATION = InterpolationMode.BICUBIC

# A path -> its image, as RGB. Raises `BadImage`.
Load: TypeAlias = Callable[[Path], Image.Image]


def open_image_folder(data_dir: str, part: Part = Part(), keep: bool = True) -> ImageFolder | PackedFolder:
    """The images of a folder, packed or not, or of a part of it, undecoded. keep: see `open_listing`.

    Raises `UserError` for a class without images, for one of a single image where the folder is split, and for a pack
    that is not whole.
    """
    try:
        is_packed = read_index(data_dir) is not None
        folder = PackedFolder(data_dir) if is_packed else open_listing(data_dir, keep)
        return folder if part.holdout is None else folder.part(part.indices(folder.classes, folder.samples))
    except UserError as error:
        raise UserError(f"data_dir {data_dir!r}: {error}") from None


def folder_listing(folder: ImageFolder | PackedFolder) -> Listing:
    """The `listing` of an opened folder; a whole pack knows its own."""
    known = folder.listing() if isinstance(folder, PackedFolder) else None
    return listing(folder.classes, folder.samples) if known is None else known


def evaluation_transform(image_size: int, crop_fraction: float) -> Compose:
    """An image -> uint8 [3, image_size, image_size]: resized, then its central `crop_fraction` is cropped."""
    return Compose([Resize(round(image_size / crop_fraction), INTERPOLATION), CenterCrop(image_size), PILToTensor()])


def channels(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """The mean or std of the three channels as a tensor [1, 3, 1, 1]."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images uint8 [b, 3, H, W] -> the float input of networks; mean and std as `channels` returns them."""
    if not images.is_cpu:
        return (images / 255).sub_(mean).div_(std)
    # Memory takes longer than arithmetic. So some images at a time, which stay in a core's cache, and by numpy, which
    # asks the system for large pages: 50 images of 224 x 224 are 7,000 small ones, which it would clear one by one.
    out = torch.from_numpy(np.empty(images.shape, dtype=np.float32))
    at_once = max(1, _IN_CACHE // max(1, images[:1].numel()))
    for part, of_part in zip(images.split(at_once), out.split(at_once), strict=True):
        torch.div(part, 255, out=of_part).sub_(mean).div_(std)
    return out


@dataclass(frozen=True)
class Decoded:
    """A batch. images: uint8 [b, 3, H, W], one per path in `paths`. refused: bad images, with the reason."""

    paths: list[Path]
    images: Tensor
    refused: dict[Path, str]


@dataclass(frozen=True)
class Pictures:
    """What `find_pictures` found.

    paths: of images, each once. missing: a message for each place, or folder below one, that gave none.
    packed: the pack of each path that is of one, where no file lies.
    """

    paths: list[Path]
    missing: list[str]
    packed: Mapping[Path, PackedFolder]

    def load(self, path: Path) -> Image.Image:
        """The image of one of the paths. Raises `BadImage`."""
        pack = self.packed.get(path)
        return read_image(path) if pack is None else pack.loader(path)


def find_pictures(places: Sequence[str | Path]) -> Pictures:
    """The files in `places`, and the image files (by extension, sorted) below its folders, also in packs.

    There is a message for each place that does not exist, for each folder without images, and for each folder or pack
    that cannot be read.
    """
    found: dict[Path, None] = {}
    missing: list[str] = []
    packed: dict[Path, PackedFolder] = {}
    for place in map(Path, places):
        # Unlike Path.exists, it is False for what may not be looked at, too.
        if not os.path.exists(place):
            missing.append(f"found {str(place)!r}, which does not exist; give image files, or folders of them")
            continue
        unread: list[str] = []
        pictures = _below(place, packed, unread) if place.is_dir() else [place]
        if not pictures and not unread:
            unread = [f"found {str(place)!r}, which holds no image ({', '.join(IMAGE_ENDINGS)})"]
        found |= dict.fromkeys(pictures)
        missing += unread
    return Pictures(list(found), missing, packed)


def _below(folder: Path, packed: dict[Path, PackedFolder], unread: list[str]) -> list[Path]:
    """The images below a folder, sorted. Those of packs are added to `packed`, and to `unread` a message about each
    folder or pack that cannot be read."""

    def tell(error: OSError) -> None:
        unread.append(f"found {error.filename!r}, which cannot be read: {error.strerror}")

    found: list[Path] = []
    for parent, _, files in os.walk(folder, onerror=tell, followlinks=True):
        if INDEX in files:
            try:
                pack = PackedFolder(parent)
                named = [Path(parent, name) for name in pack.names()]
            except UserError as error:
                unread.append(str(error))
                continue
            packed |= dict.fromkeys(named, pack)
            found += named
        else:
            found += (Path(parent, name) for name in files if name.lower().endswith(IMAGE_ENDINGS))
    return sorted(found)


def decode(
    paths: Sequence[Path],
    image_size: int,
    crop_fraction: float,
    batch_size: int,
    workers: int | None,
    stage: bool = False,
    load: Load = read_image,
) -> Iterator[Decoded]:
    """Decode files in batches of `batch_size`, in order, in `workers` processes (see `number_of_workers`).

    stage: whether this is a stage, which ends when it chooses to: then workers ignore signals, as the stage does.
    load: reads the image of a path: the `loader` of the folder that the paths are of, or `Pictures.load`.

    A single batch is decoded in this process, which is faster than starting workers.
    """
    yield from batches_of(
        DataLoader(
            _Pictures(paths, image_size, crop_fraction, load),
            batch_size=batch_size,
            num_workers=number_of_workers(workers, len(paths)) if len(paths) > batch_size else 0,
            collate_fn=_collate,
            worker_init_fn=start_in_stage if stage else start,
        )
    )


def spread_images(
    data_dir: str,
    count: int,
    image_size: int,
    crop_fraction: float,
    bad_images: float = BAD_IMAGES,
    report: Report | None = None,
    part: Part = Part(),
) -> Tensor:
    """Up to `count` images, evenly spread over a part of an image folder, uint8 [n, 3, image_size, image_size].

    bad_images, report: how many of the folder's images may be bad, and where they are named (see `BadImages`). The next
        good image of the folder takes the place of a bad one.

    Raises `UserError` for a folder without images, and for too many bad ones.
    """
    folder = open_image_folder(data_dir, part)
    images = len(folder)
    # Spread, because neighbours are of the same class.
    chosen = [i * images // count for i in range(count)] if images > count else range(images)
    bad = BadImages(data_dir, images, bad_images, report)
    return _decode_chosen(folder, chosen, image_size, crop_fraction, 0, bad)[0]


def draw_images(
    data_dir: str,
    count: int,
    image_size: int,
    crop_fraction: float,
    seed: int,
    workers: int | None = 0,
    bad_images: float = BAD_IMAGES,
    report: Report | None = None,
    part: Part = Part(),
) -> tuple[Tensor, Tensor]:
    """Up to `count` random images of a part of a folder, uint8 [n, 3, image_size, image_size], and their labels [n].

    As many of each class as there are, to one. Bad images are dealt with as by `spread_images`, and it raises the same.
    """
    folder = open_image_folder(data_dir, part)
    order = np.random.default_rng(seed).permutation(len(folder))
    # The first of every class, the second of every class, and so on.
    seen: Counter[int] = Counter()
    turns = []
    for label in folder.labels[order].tolist():
        seen[label] += 1
        turns.append(seen[label])
    chosen = order[np.argsort(turns, kind="stable")][:count].tolist()
    bad = BadImages(data_dir, len(folder), bad_images, report)
    return _decode_chosen(folder, chosen, image_size, crop_fraction, workers, bad)


def _decode_chosen(
    folder: ImageFolder | PackedFolder,
    chosen: Sequence[int],
    image_size: int,
    crop_fraction: float,
    workers: int | None,
    bad: BadImages,
) -> tuple[Tensor, Tensor]:
    """The chosen images and their labels, in order; for a bad one, the next good image that is not among them."""
    samples = folder.samples
    paths = [Path(samples[index][0]) for index in chosen]
    images: dict[Path, Tensor] = {}
    for batch in decode(paths, image_size, crop_fraction, 64, workers, stage=True, load=folder.loader):
        bad.record({str(path): reason for path, reason in batch.refused.items()})
        images |= zip(batch.paths, batch.images, strict=True)
    pictures = _Pictures(paths, image_size, crop_fraction, folder.loader)
    taken = set(chosen)
    found: list[tuple[Tensor, int]] = []
    for index, path in zip(chosen, paths, strict=True):
        for place in places_from(index, len(samples)):
            if place != index and place in taken:
                continue
            taken.add(place)
            image = images.get(path, "") if place == index else pictures.decoded(Path(samples[place][0]))
            if isinstance(image, Tensor):
                found.append((image, samples[place][1]))
                break
            if place != index:
                bad.record({samples[place][0]: image})
    return torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found])


def places_from(index: int, count: int) -> Iterator[int]:
    """The indices of a listing, from one on and round: the image itself, then those that replace it if it is bad."""
    return chain(range(index, count), range(index))


class _Pictures(Dataset[tuple[Path, Tensor | str]]):
    """Items are a path and its image uint8 [3, H, W], or the reason why it has none."""

    def __init__(self, paths: Sequence[Path], image_size: int, crop_fraction: float, load: Load) -> None:
        self._paths, self._load, self._resized = paths, load, round(image_size / crop_fraction)
        self._transform = evaluation_transform(image_size, crop_fraction)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | str]:
        return self._paths[index], self.decoded(self._paths[index])

    def decoded(self, path: Path) -> Tensor | str:
        """Of any file: its image, or why it has none."""
        try:
            image = self._load(path)
            short, long = sorted(image.size)
            # Resized whole before it is cropped, a line of pixels would fill the memory.
            if self._resized**2 * long / short > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise BadImage(path, f"is too narrow to be resized ({image.width} x {image.height} pixels)")
        except BadImage as error:
            return error.reason
        transformed: Tensor = self._transform(image)
        return transformed


def _collate(items: list[tuple[Path, Tensor | str]]) -> Decoded:
    good = [(path, image) for path, image in items if isinstance(image, Tensor)]
    refused = {path: reason for path, reason in items if isinstance(reason, str)}
    images = torch.stack([image for _, image in good]) if good else torch.empty(0, dtype=torch.uint8)
    return Decoded([path for path, _ in good], images, refused)
