"""The index of a packed folder, `pack.json`: its classes and files. Reading it takes neither pyarrow nor Pillow."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vitas.errors import UserError, is_integer
from vitas.plain_data import json_bytes, parse_json, read_text

INDEX = "pack.json"
_FORMAT, _VERSION = "vitas pack", 1
_SHARD = re.compile(r"\d{5,9}\.arrow")
# A record takes at least so many bytes of its shard: its label, checksum, and where its path and image end.
_LEAST = 20


@dataclass(frozen=True)
class Shard:
    """A file of a pack: its name, how many images it holds, and its size in bytes."""

    name: str
    images: int
    bytes: int


@dataclass(frozen=True)
class Index:
    """What a pack holds.

    classes: by name, in the order of the labels: the number of images, and the digest of their names that
        `vitas.data.folders.listing` has of the folder.
    shards: in the order of the images.
    made: how it was made: plain data.
    """

    classes: Mapping[str, tuple[int, str]]
    shards: tuple[Shard, ...]
    made: Mapping[str, Any]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    def as_json(self) -> bytes:
        """The bytes of the file `pack.json`."""
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "made": dict(self.made),
            "shards": [[shard.name, shard.images, shard.bytes] for shard in self.shards],
            "classes": {name: list(listed) for name, listed in self.classes.items()},
        }
        return json_bytes(data | {"digest": _digest(data)})

    def check_shards(self, folder: str | Path) -> None:
        """Raise `UserError` unless all shards are there, whole by their sizes. No content is read."""
        for shard in self.shards:
            path = Path(folder, shard.name)
            try:
                found = path.stat().st_size
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; it is a part of the pack: copy the pack again") from None
            if found != shard.bytes:
                raise UserError(f"{path} has {found:,} bytes and must have {shard.bytes:,}; copy the pack again")


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def read_index(folder: str | Path) -> Index | None:
    """The index of a pack, None for a folder that is none. Raises `UserError` for an index that is damaged."""
    path = Path(folder, INDEX)
    if not path.is_file():
        return None
    data = parse_json(read_text(path), str(path))
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise UserError(f"{path} is not the index of a packed folder")
    if data.get("version") != _VERSION:
        raise UserError(
            f"{path} is of version {str(data.get('version'))[:20]}, and {_VERSION} is the one that is read here"
        )
    if data.pop("digest", None) != _digest(data):
        raise UserError(f"{path} is not what was written, by its digest: a disk or a copy changed it; copy it again")
    try:
        return _as_index(data)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not the index of a packed folder: its parts do not fit each other") from None


def _as_index(data: Mapping[str, Any]) -> Index:
    """Raises one of several errors for what is none."""
    shards = tuple(Shard(*entry) for entry in data["shards"])
    classes = {name: (count, digest) for name, (count, digest) in data["classes"].items()}
    for shard in shards:
        if not (_SHARD.fullmatch(shard.name) and is_integer(shard.images) and is_integer(shard.bytes)):
            raise ValueError(shard)
        if not 0 <= shard.images * _LEAST <= shard.bytes < 2**60:
            raise ValueError(shard)
    for name, (count, digest) in classes.items():
        # It is shown and looked up, and never opened.
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError(name)
        if not is_integer(count) or count < 1 or not isinstance(digest, str):
            raise ValueError(name)
        os.fsencode(name)
    index = Index(classes, shards, dict(data["made"]))
    if index.images != sum(count for count, _ in classes.values()) or list(classes) != sorted(classes):
        raise ValueError(index.images)
    return index


def require_pyarrow() -> None:
    """Raise `UserError` where pyarrow is not installed. It is not loaded."""
    if find_spec("pyarrow") is None:
        raise UserError("packed folders need pyarrow: pip install 'vitas[pack]'")
