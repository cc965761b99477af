"""The `data` sections of the YAML: image folders, their parts and their augmentation.

An image folder has one sub-folder per class, the usual layout of ImageNet; or it is one that was packed
(`vitas/data/packed.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator

from vitas.config_section import AboveZero, Count, Fraction, NonNegative, Probability, Section, Share
from vitas.data.pack_index import read_index, require_pyarrow
from vitas.errors import UserError
from vitas.seeds import stream_seed

# The share of a folder's images that may be bad, by default: 1,281 of ImageNet's, and none of less than a thousand.
BAD_IMAGES = 0.001


class Augmentation(Section):
    """How training images are augmented; the defaults are DeiT's.

    auto_augment: timm's recipe string, or null for none.
    color_jitter: strength; without effect beside auto_augment.
    random_erasing: probability, by pixel.
    flip: probability of a horizontal flip.
    scale, ratio: ranges of area and aspect ratio of the random-resized crop.
    interpolation: of the crop.
    """

    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: NonNegative = 0.4
    random_erasing: Probability = 0.25
    flip: Probability = 0.5
    scale: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    ratio: Annotated[list[AboveZero], Field(min_length=2, max_length=2)] = [3 / 4, 4 / 3]
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"

    @field_validator("scale", "ratio")
    @classmethod
    def _rising(cls, values: list[float]) -> list[float]:
        if values[0] > values[1]:
            raise ValueError(f"found {values}; the first must be at most the second")
        return values

    @field_validator("auto_augment")
    @classmethod
    def _known_recipe(cls, recipe: str | None) -> str | None:
        if recipe is not None and not is_recipe(recipe):
            raise ValueError(
                f"found {recipe!r}; it must be a recipe that timm knows, such as rand-m9-mstd0.5-inc1, or null"
            )
        return recipe


# timm's kinds of auto-augment and the parts that may follow, as in rand-m9-mstd0.5-inc1. timm parses the recipe later,
# when the images are opened; importing it here would take seconds.
_RECIPES = {
    "rand": r"(m|n|mmax|inc)\d+|(mstd|p)\d+(\.\d+)?|t\w+",
    "augmix": r"(m|w|d|b)\d+|(mstd|a)\d+(\.\d+)?",
} | dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), r"mstd\d+(\.\d+)?")


def is_recipe(text: str) -> bool:
    """Whether a string has the form of a timm recipe for auto-augment."""
    kind, *parts = text.split("-")
    return kind in _RECIPES and all(re.fullmatch(_RECIPES[kind], part) for part in parts)


class WeakAugmentation(Augmentation):
    """The augmentation for training the supernet: DeiT's without auto-augment and colour jitter."""

    auto_augment: str | None = None
    color_jitter: NonNegative = 0.0


# The most that is held out: more would leave less to train on than to measure on.
HoldoutShare = Annotated[float, Field(gt=0, le=0.5, strict=True)]

# An image of a folder: its path and its label, as torchvision's `ImageFolder` has them.
PathAndLabel: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Part:
    """Which images of a folder are meant: all, or one of the two parts into which `holdout` splits it.

    holdout: the share of each class that is held out; None is no split.
    held_out: whether the part is that share, and not the rest.

    Each image has a place in its class, by a random number that is a function of the names of the class and the file
    alone; the first `holdout` of a class, at least one, are held out. So the split is the same in every stage and for
    every seed of a run, whose results can then be compared; it does not change where the folder moves; classes that
    are added change nothing for the others; and a larger share holds out the same images, and further ones.
    """

    holdout: float | None = None
    held_out: bool = False

    def indices(self, classes: Sequence[str], samples: Sequence[PathAndLabel]) -> Sequence[int]:
        """Which of the samples are of this part, in order. classes: by label.

        Raises `UserError` for a class of one image, which cannot be in both parts.
        """
        if self.holdout is None:
            return range(len(samples))
        by_class: list[list[tuple[int, str, int]]] = [[] for _ in classes]
        for index, (path, label) in enumerate(samples):
            name = _name_in_class(path, classes[label])
            by_class[label].append((stream_seed(0, "holdout", classes[label], name), name, index))
        held_out: set[int] = set()
        for name, places in zip(classes, by_class, strict=True):
            if len(places) == 1:
                raise UserError(
                    f"class {name!r} has one image, and holdout needs two, one to train on and one to hold out; "
                    "add another, or leave the class out"
                )
            held_out |= {index for _, _, index in sorted(places)[: self._held_out_of(len(places))]}
        return [index for index in range(len(samples)) if (index in held_out) == self.held_out]

    def size(self, images: int) -> int:
        """How many of the images of a class are of this part."""
        if self.holdout is None:
            return images
        return self._held_out_of(images) if self.held_out else images - self._held_out_of(images)

    def _held_out_of(self, images: int) -> int:
        return max(1, round((self.holdout or 0.0) * images)) if images else 0

    def __str__(self) -> str:
        if self.holdout is None:
            return "all images"
        return f"the {self.holdout:.1%} held out" if self.held_out else f"all but {self.holdout:.1%} held out"


class TrainingData(Section):
    """Training images.

    workers: decoding processes of each rank; null is as many as it has cores for (see `vitas/data/workers.py`).
    bad_images: the share of the folder's images that may be bad; the next good ones of the folder take their places.
    holdout: the share of each class that is not trained on (see `Part`); null trains on all.
    """

    data_dir: str
    workers: Count | None = None
    augmentation: Augmentation = Augmentation()
    bad_images: Fraction = BAD_IMAGES
    holdout: HoldoutShare | None = None

    @property
    def part(self) -> Part:
        """The images that are trained on."""
        return Part(self.holdout)


class EvaluationData(Section):
    """Evaluation images.

    workers: decoding processes of each rank; null is as many as it has cores for (see `vitas/data/workers.py`).
    crop_fraction: side of the central crop over the side of the resized image (0.875: 224 of 256).
    bad_images: the share of the folder's images that may be bad; they are left out.
    holdout: measure on this share of each class alone (see `Part`); null measures on all images of the folder.
    """

    data_dir: str
    workers: Count | None = None
    crop_fraction: Share = 0.875
    bad_images: Fraction = BAD_IMAGES
    holdout: HoldoutShare | None = None

    @property
    def part(self) -> Part:
        """The images that are measured on."""
        return Part(self.holdout, held_out=True)


def check_image_folder(data_dir: str, num_classes: int) -> None:
    """Raise `UserError` unless `data_dir` is a folder of `num_classes` class folders, or one that was packed."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UserError(f"found {data_dir!r}, which is not a folder; it must hold one folder of images per class")
    packed = read_index(data_dir)
    if packed is not None:
        require_pyarrow()
        packed.check_shards(data_dir)
    classes = len(class_names(data_dir))
    if classes != num_classes:
        raise UserError(f"found {data_dir!r}, which holds {classes} class folders; model.num_classes is {num_classes}")


def class_names(data_dir: str) -> list[str]:
    """The names of the class folders, in the order of the labels."""
    packed = read_index(data_dir)
    if packed is not None:
        return list(packed.classes)
    return sorted(entry.name for entry in Path(data_dir).iterdir() if entry.is_dir())


# The endings that make a file an image, those of torchvision's `ImageFolder`.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def images_in(folder: Path) -> Iterator[Path]:
    """The image files in a folder and all below it, by their endings, in no order. They are found as they are asked."""
    for parent, _, names in os.walk(folder, followlinks=True):
        yield from (Path(parent, name) for name in names if name.lower().endswith(IMAGE_ENDINGS))


def images_by_class(data_dir: str, most: int | None = None) -> Iterator[tuple[str, int]]:
    """The classes of a folder with their numbers of images, in the order of the labels; they are counted as they are
    asked.

    most: images of a class, where more need not be counted.
    """
    packed = read_index(data_dir)
    if packed is not None:
        yield from ((name, count) for name, (count, _) in packed.classes.items())
        return
    for name in class_names(data_dir):
        yield name, sum(1 for _ in islice(images_in(Path(data_dir, name)), most))


def small_classes(data_dir: str, least: int = 1) -> list[str]:
    """The classes of a folder with fewer images than `least`. Quick also for millions: of a class, no more are looked
    for."""
    return [name for name, count in images_by_class(data_dir, least) if count < least]


def count_images(data_dir: str, part: Part | None = None, enough: int | None = None) -> int:
    """The images of a part of a folder, by default all; classes are counted until there are `enough`."""
    found = 0
    for _, count in images_by_class(data_dir):
        found += (part or Part()).size(count)
        if enough is not None and found >= enough:
            break
    return found


# For each class, its number of images and a digest of their names.
Listing: TypeAlias = dict[str, list[int | str]]


def listing(classes: Sequence[str], samples: Iterable[PathAndLabel]) -> Listing:
    """What an image folder, or a part of it, holds, by name and not by content, to tell whether it changed.

    classes: by label.
    """
    names: dict[str, list[str]] = {name: [] for name in classes}
    for path, label in samples:
        names[classes[label]].append(_name_in_class(path, classes[label]))
    return {
        name: [len(paths), hashlib.sha256("\0".join(sorted(paths)).encode(errors="surrogateescape")).hexdigest()[:16]]
        for name, paths in names.items()
    }


def _name_in_class(path: str, name: str) -> str:
    """An image's path from its class folder on."""
    return path[path.rfind("/" + name + "/") :]


def listing_digest(listed: Listing) -> str:
    """A digest of a listing, to compare folders by it alone."""
    return hashlib.sha256(repr(sorted(listed.items())).encode(errors="surrogateescape")).hexdigest()[:16]


def explain_change(before: Listing, now: Listing) -> str:
    """In words, how two listings differ: the first class that does, and how many do."""
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    name = differing[0]
    counts = [part[name][0] if name in part else 0 for part in (before, now)]
    if counts[0] != counts[1]:
        first = f"class {name!r} had {counts[0]:,} images and has {counts[1]:,}"
    else:
        first = f"class {name!r} has {counts[1]:,} images as before, but other file names"
    more = len(differing) - 1
    return first + (f", and {more} more of {len({**before, **now})} classes differ" if more else "")


def common_image(first: str, second: str) -> str | None:
    """A file that two image folders have in common, also by a link; None if none of those that are compared is.

    Of each class of `second`, the first two files are looked up by name in
    `first`: folders of millions of files must be quick to check. An image of a
    pack is in common with one that has its bytes.
    """
    ours, theirs = Path(first), Path(second)
    if not (ours.is_dir() and theirs.is_dir()):
        return None
    if read_index(first) or read_index(second):
        try:
            return _common_by_content(first, second)
        except UserError:
            # What is wrong with a pack is for `check_image_folder` to say.
            return None
    for name in class_names(second):
        for path in islice(sorted((theirs / name).iterdir()), 2):
            other = ours / name / path.name
            if other.exists() and other.samefile(path):
                return str(path)
    return None


def _common_by_content(first: str, second: str) -> str | None:
    # Imported here: it loads Pillow, and every program reads this module before its YAML is checked.
    from vitas.data.packed import PackedFolder
    from vitas.data.pictures import BadImage

    def opened(folder: str) -> PackedFolder | None:
        return PackedFolder(folder) if read_index(folder) else None

    def content(folder: str, pack: PackedFolder | None, name: str) -> bytes | None:
        path = Path(folder, name)
        if pack is None:
            return path.read_bytes() if path.is_file() else None
        place = pack.find(path)
        try:
            return None if place is None else pack.content(place)
        except BadImage:
            return None

    ours, theirs = opened(first), opened(second)
    if theirs is None:
        folders = [(name, sorted(Path(second, name).iterdir())) for name in class_names(second)]
        names = [f"{name}/{path.name}" for name, paths in folders for path in paths[:2]]
    else:
        counts = [count for count, _ in theirs.index.classes.values()]
        starts = accumulate(counts, initial=0)
        names = [
            theirs.name(place)
            for start, count in zip(starts, counts, strict=False)
            for place in range(start, start + min(2, count))
        ]
    for name in names:
        # Read where the name is in both alone, which it seldom is.
        found = content(first, ours, name)
        if found is not None and found == content(second, theirs, name):
            return os.path.join(second, name)
    return None
