"""Every image of a folder, opened: which are bad, and which files two folders have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from vitas.data.folders import class_names, images_in
from vitas.data.pictures import BadImage, read_image

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
    """Open every image of a folder, in so many processes. progress: is told how many of how many are done."""
    of_class = {name: sorted(images_in(Path(data_dir, name))) for name in class_names(data_dir)}
    paths = [path for listed in of_class.values() for path in listed]
    counts = {name: len(listed) for name, listed in of_class.items()}
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    bad: dict[Path, str] = {}
    contents: dict[str, Path] = {}
    done = 0
    # Of its own, whatever threads this process has.
    with ProcessPoolExecutor(max(1, processes), mp_context=get_context("spawn")) as pool:
        for chunk, results in zip(chunks, pool.map(_open, chunks), strict=True):
            for path, (digest, reason) in zip(chunk, results, strict=True):
                if reason is not None:
                    bad[path] = reason
                elif digest is not None:
                    contents[digest] = path
            done += len(chunk)
            progress(done, len(paths))
    return Census(counts, bad, contents)


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
