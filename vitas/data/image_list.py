"""The images of a folder as a list of paths and labels that a million files fit in.

A tuple and a string for each file would be Python objects, whose counts of references are written whenever they are
looked at; so each worker of a loader would in time hold a copy of all of them. Here they are a few arrays, which
processes share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from vitas.costs import Array
from vitas.data.folders import PathAndLabel
from vitas.data.pictures import Picture, Reduction, read_image, read_picture

# Images that are looked up at once where all are gone through.
_CHUNK = 4096


class ImageList(Sequence[PathAndLabel]):
    """Paths and labels.

    root: what stands before each name, with its last slash. names: the bytes of all names, as the file system has them.
    starts, ends: int64 [n], where each name lies in them. labels: int32 [n].
    """

    def __init__(self, root: str, names: bytes, starts: Array, ends: Array, labels: Array) -> None:
        self.root, self.names, self.starts, self.ends, self.labels = root, names, starts, ends, labels

    @classmethod
    def of(cls, root: str, names: Sequence[str], labels: Sequence[int]) -> ImageList:
        """The list of some names."""
        encoded = [os.fsencode(name) for name in names]
        lengths = np.array([len(name) for name in encoded], dtype=np.int64)
        ends = lengths.cumsum()
        return cls(root, b"".join(encoded), ends - lengths, ends, np.array(labels, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> PathAndLabel: ...
    @overload
    def __getitem__(self, index: slice) -> ImageList: ...
    def __getitem__(self, index: int | slice) -> PathAndLabel | ImageList:
        if isinstance(index, slice):
            return self._chosen(index)
        name = self.names[self.starts[index] : self.ends[index]]
        return self.root + os.fsdecode(name), int(self.labels[index])

    def __iter__(self) -> Iterator[PathAndLabel]:
        for first in range(0, len(self), _CHUNK):
            part = slice(first, first + _CHUNK)
            columns = (column[part].tolist() for column in (self.starts, self.ends, self.labels))
            for start, end, label in zip(*columns, strict=True):
                yield self.root + os.fsdecode(self.names[start:end]), label

    def take(self, indices: Sequence[int]) -> ImageList:
        """The images of some indices, in their order."""
        return self._chosen(np.array(indices, dtype=np.int64))

    def _chosen(self, which: slice | Array) -> ImageList:
        return ImageList(self.root, self.names, self.starts[which], self.ends[which], self.labels[which])


@dataclass(frozen=True)
class ImageFolder:
    """An image folder, or a part of it, undecoded. classes: by label. samples: the path and the label of each image."""

    classes: list[str]
    samples: ImageList

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Array:
        """The label of each image [n]."""
        return self.samples.labels

    def label(self, index: int) -> int:
        """The label of an image."""
        return int(self.samples.labels[index])

    def part(self, indices: Sequence[int]) -> ImageFolder:
        """The images of some indices, in their order."""
        return replace(self, samples=self.samples.take(indices))

    def loader(self, path: str | Path) -> Image.Image:
        """The image of a path of `samples`. Raises `BadImage`."""
        return read_image(path)

    def read(self, index: int, reduction: Reduction | None = None) -> Picture:
        """An image in RGB, reduced by what `reduction` says; it raises what `read_picture` raises."""
        return read_picture(self.samples[index][0], reduction=reduction)
