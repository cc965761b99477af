"""Every image of a folder, opened: which are bad, and which files two folders have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vitas.data.folders import class_names, images_in, listing
from vitas.data.pack_index import read_index
from vitas.data.packed import PackedFolder, order_of
from vitas.data.pictures import BadImage, read_image
from vitas.data.processes import in_order
from vitas.errors import UserError

# Files that a process opens at once.
_CHUNK = 64


@dataclass(frozen=True)
class Census:
    """What was found in an image folder.

    images: of each class. bad: what is wrong with files that are no images. contents: a digest of each whole file.
    """

    images: Mapping[str, int]
    bad: Mapping[Path, str] = field(default_factory=dict)
    contents: Mapping[str, Path] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.images.values())

    def in_common(self, other: Census) -> list[tuple[Path, Path]]:
        """Files of this folder whose content is that of a file of the other, and these."""
        return [(path, other.contents[digest]) for digest, path in self.contents.items() if digest in other.contents]


def open_all(data_dir: str, processes: int, progress: Callable[[int, int], None] = lambda done, total: None) -> Census:
    """Open every image of a folder, in so many processes. progress: is told how many of how many are done.

    Of a pack, also what is read without opening an image is looked at. Raises `UserError` for one that is damaged so.
    """
    if read_index(data_dir) is not None:
        return _open_packed(data_dir, processes, progress)
    of_class = {name: sorted(images_in(Path(data_dir, name))) for name in class_names(data_dir)}
    paths = [path for listed in of_class.values() for path in listed]
    counts = {name: len(listed) for name, listed in of_class.items()}
    opened = in_order(_open, paths, max(1, processes), _CHUNK)
    return _counted(counts, paths, opened, progress)


def _open_packed(data_dir: str, processes: int, progress: Callable[[int, int], None]) -> Census:
    folder = PackedFolder(data_dir)
    samples = list(folder.samples)
    places = [order_of(name) for name in folder.names()]
    if places != sorted(set(places)) or listing(folder.classes, samples) != folder.listing():
        raise UserError(f"found {data_dir!r}, whose names are not those of its index; pack the folder again")
    opened = in_order(partial(_open_of_pack, folder), range(len(folder)), max(1, processes), _CHUNK)
    counts = {name: count for name, (count, _) in folder.index.classes.items()}
    return _counted(counts, [Path(path) for path, _ in samples], opened, progress)


def _counted(
    counts: Mapping[str, int],
    paths: Sequence[Path],
    opened: Iterable[tuple[str | None, str | None]],
    progress: Callable[[int, int], None],
) -> Census:
    """opened: for each path, a digest of its content, or what is wrong with it."""
    bad: dict[Path, str] = {}
    contents: dict[str, Path] = {}
    for done, (path, (digest, reason)) in enumerate(zip(paths, opened, strict=True), 1):
        if reason is not None:
            bad[path] = reason
        elif digest is not None:
            contents[digest] = path
        progress(done, len(paths))
    return Census(counts, bad, contents)


def _open_of_pack(folder: PackedFolder, places: Sequence[int]) -> list[tuple[str | None, str | None]]:
    """`_open` for images of a pack, by their places."""
    found: list[tuple[str | None, str | None]] = []
    for place in places:
        try:
            content = folder.content(place)
            read_image(folder.samples[place][0], content)
            found.append((hashlib.sha256(content).hexdigest(), None))
        except BadImage as error:
            found.append((None, error.reason))
    return found


def _open(paths: Sequence[Path]) -> list[tuple[str | None, str | None]]:
    """For each file, a digest of its content, or what is wrong with it."""
    found: list[tuple[str | None, str | None]] = []
    for path in paths:
        try:
            read_image(path)
            found.append((hashlib.sha256(path.read_bytes()).hexdigest(), None))
        except BadImage as error:
            found.append((None, error.reason))
        except OSError as error:
            found.append((None, os.strerror(error.errno or 0)))
    return found
