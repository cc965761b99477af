"""`Predictions`: what a network said of each test image, in a file that is read without torch.

The stage `test` writes it beside `results.json`. Of 50,000 images and 1,000 classes it takes about 4 MB: the five most
probable classes of each, not all; and pixels and attention of the few images alone that it got most wrong.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vitas.costs import Array
from vitas.errors import UserError
from vitas.files import write_atomically

# How many classes of an image are kept, and how many of the images that were got most wrong are.
TOP, WORST = 5, 12
# Bytes of the file, and of what it unfolds to, far above what is ever written: it may come from anyone.
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network said of each image [n], in the order of the image folder.

    about: plain data: the checkpoint, weights and architecture, as in `results.json`.
    classes: names, by label.
    files: the images' paths below the folder, CLASS/NAME.
    labels: the right class [n]. top: the most probable classes [n, k], best first. probabilities: of these [n, k].
    losses: cross-entropy [n]. ranks: how many classes are more probable than the right one [n].
    worst: indices of the images with the largest losses, the largest first.
    pixels: of these, as the network was given them before normalisation, uint8 [w, H, W, 3].
    attention: of these, how the last block's attention is spread over the patches, sums of 1 [w, rows, columns];
        [0, 0, 0] for a network that has no such map.
    """

    about: Mapping[str, Any]
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: Array
    top: Array
    probabilities: Array
    losses: Array
    ranks: Array
    worst: Array
    pixels: Array
    attention: Array

    def right(self) -> Array:
        """Whether each image's most probable class is the right one [n]."""
        found: Array = self.top[:, 0] == self.labels
        return found

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; the same bytes for the same predictions."""
        dims = np.min_scalar_type(max(len(self.classes) - 1, 0))
        stored = {
            "about": _bytes([json.dumps(self.about, sort_keys=True)]),
            "classes": _bytes(self.classes),
            "files": _bytes(self.files),
            "labels": self.labels.astype(dims),
            "top": self.top.astype(dims),
            "probabilities": self.probabilities.astype(np.float16),
            "losses": self.losses.astype(np.float32),
            "ranks": self.ranks.astype(dims),
            "worst": self.worst.astype(np.int32),
            "pixels": self.pixels.astype(np.uint8),
            "attention": self.attention.astype(np.float16),
        }
        buffer = io.BytesIO()
        # numpy gives every member the same date.
        np.savez_compressed(buffer, **stored)  # type: ignore[arg-type]  # none of them is called allow_pickle
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """The predictions of a file. Raises `UserError` for any other file, before that takes memory."""
        try:
            with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > MAX_BYTES:
                    raise UserError(f"{path} unfolds to {size:,} bytes; it may have {MAX_BYTES:,}")
                file.seek(0)
                with np.load(file, allow_pickle=False) as arrays:
                    found = {field.name: arrays[field.name] for field in fields(cls)}
            about = json.loads(_texts(found["about"])[0])
            predictions = cls(**found | {"about": about} | {k: _texts(found[k]) for k in ("classes", "files")})
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} holds no predictions of the stage test ({error})") from None
        predictions._check(path)
        return predictions

    def _check(self, path: Path) -> None:
        """Raise `UserError` unless all parts fit each other."""
        count, classes = len(self.files), len(self.classes)
        shapes = self.top.ndim == 2 and self.top.shape[1:] and self.top.shape[1] >= 1
        rows = (self.labels, self.top, self.probabilities, self.losses, self.ranks)
        of_worst = self.worst.ndim == 1 and self.pixels.ndim == 4 and self.attention.ndim == 3
        if not (
            isinstance(self.about, dict)
            and shapes
            and self.probabilities.shape == self.top.shape
            and all(len(part) == count for part in rows)
            and all(part.ndim == 1 for part in (self.labels, self.losses, self.ranks))
            and all(part.size == 0 or 0 <= part.min() <= part.max() < classes for part in (self.labels, self.top))
            and of_worst
            and len(self.worst) == len(self.pixels)
            and len(self.attention) in (0, len(self.worst))
            and (self.worst.size == 0 or 0 <= self.worst.min() <= self.worst.max() < count)
        ):
            raise UserError(f"{path} holds no predictions of the stage test: its parts do not fit each other")


def _bytes(texts: Sequence[str]) -> Array:
    """Texts as bytes, each ended by a null character, which no path has; names need not be UTF-8."""
    return np.frombuffer(b"".join(os.fsencode(text) + b"\0" for text in texts), dtype=np.uint8)


def _texts(stored: Array) -> tuple[str, ...]:
    return tuple(os.fsdecode(part) for part in stored.tobytes().split(b"\0")[:-1])
