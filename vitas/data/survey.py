"""What the images of a folder are like: how many, of which classes, how large. Few of them are opened."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from vitas.data.folders import class_names, count_images, images_by_class, images_in
from vitas.data.pack_index import read_index
from vitas.data.packed import PackedFolder
from vitas.data.pictures import FORMATS, BadImage
from vitas.errors import UserError

# Images whose size is looked at.
_OPENED = 300
# Names that the folders of a data set's parts go by, or their packs with `.pack`.
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Survey:
    """What was found. parts: the folders of train, val and test images, those that there are.

    images: their number in each part. classes: of train. fewest, most: images of a class of train, and which class.
    side: the median of the shorter sides of train images, in pixels. grey: whether those that were opened are.
    """

    parts: Mapping[str, Path]
    images: Mapping[str, int]
    classes: Sequence[str]
    fewest: tuple[int, str]
    most: tuple[int, str]
    side: int
    grey: bool


def survey(folder: Path) -> Survey:
    """Look at a folder of train, val and test image folders, or of the classes of train images alone.

    Raises `UserError` for a folder without images, or of less than two classes.
    """
    if not folder.is_dir():
        raise UserError(f"found {str(folder)!r}, which is not a folder; it must hold one folder of images per class")
    parts = {
        part: folder / name
        for part, names in _PARTS.items()
        if (name := next((name for name in _with_packs(names) if (folder / name).is_dir()), None)) is not None
    }
    if parts and "train" not in parts:
        raise UserError(f"found {str(folder)!r}, which has no folder train beside {', '.join(parts)}")
    parts = parts or {"train": folder}
    train = parts["train"]
    of_class = dict(images_by_class(str(train)))
    classes = [name for name, count in of_class.items() if count]
    if len(classes) < 2:
        raise UserError(
            f"found {str(train)!r}, which has images of {len(classes)} class{'es' * (len(classes) != 1)}; it must hold "
            "one folder of images per class, of two classes or more"
        )
    counts = sorted((count, name) for name, count in of_class.items())
    sides, grey = _sizes(train)
    images = {part: count_images(str(path)) for part, path in parts.items()}
    return Survey(parts, images, list(of_class), counts[0], counts[-1], sides, grey)


def _with_packs(names: Sequence[str]) -> tuple[str, ...]:
    return *names, *(f"{name}.pack" for name in names)


def _sizes(train: Path) -> tuple[int, bool]:
    """The median of the shorter sides of some of a folder's images, and whether all of those are grey."""
    sides, grey = [], True
    for file in _some(train):
        try:
            # Its head alone is read.
            with Image.open(file, formats=FORMATS) as image:
                sides.append(min(image.size))
                grey = grey and image.mode in ("L", "1", "I", "I;16")
        except Exception:
            # A damaged file makes Pillow's readers raise many kinds of exceptions.
            continue
    if not sides:
        raise UserError(f"none of the images can be opened in {str(train)!r}; vitas check --data says what is wrong")
    return round(median(sides)), grey


def _some(train: Path) -> Iterator[Path | io.BytesIO]:
    """Some image files of a folder, evenly spread."""
    if read_index(train) is None:
        paths = [path for name in class_names(str(train)) for path in sorted(images_in(train / name))]
        yield from (paths[place] for place in _spread(len(paths)))
        return
    pack = PackedFolder(str(train))
    for place in _spread(len(pack)):
        with suppress(BadImage):
            yield io.BytesIO(pack.content(place))


def _spread(count: int) -> Sequence[int]:
    return [place * count // _OPENED for place in range(_OPENED)] if count > _OPENED else range(count)
