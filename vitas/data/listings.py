"""What an image folder holds, listed once: of a million files that takes minutes on a network's file system.

A listing is kept in the user's cache folder, and used while no folder in it has changed: each folder's times of
modification and of change are those of the listing. A folder that was modified just before it was listed may change
again within the granularity of these times, so its listing is not kept. The cache is a convenience: where it cannot be
read, or written, the folder is listed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitas.data.folders import IMAGE_ENDINGS
from vitas.data.image_list import ImageFolder, ImageList
from vitas.errors import UserError
from vitas.files import remove_leftovers, write_atomically

# Folders of fewer images are listed as quickly as their listing is read.
_FEWEST = 10_000
# Nanoseconds. The coarsest clocks of file systems tick every two seconds.
_UNSURE = 2 * 10**9
# Bytes of a listing, 20 million images: what is larger is none of ours.
_LARGEST = 1 << 31
_MARK = b"vitas listing 1\n"
_DIGEST = hashlib.sha256().digest_size


class _Stamp(NamedTuple):
    """When a folder's content, and anything of it, last changed, in nanoseconds."""

    modified: int
    changed: int


def open_listing(data_dir: str, keep: bool = True) -> ImageFolder:
    """The images below the class folders of a folder, undecoded: by class, then folder, then name.

    keep: whether the listing may be written to the cache; one rank is enough.

    Raises `UserError` for a folder without class folders, for a class without images, and for what cannot be read.
    """
    root = os.path.join(os.path.expanduser(data_dir), "")
    kept = _kept_at(root)
    if kept is not None and (folder := _read(kept, root)) is not None:
        return folder
    began = time.time_ns()
    folder, stamps = _scan(root)
    is_sure = all(stamp is not None and max(stamp) < began - _UNSURE for stamp in stamps.values())
    if keep and kept is not None and is_sure and len(folder) >= _FEWEST:
        # Without room, or with a cache that is another user's, runs go on as without a cache.
        with suppress(OSError, UserError):
            remove_leftovers(kept.parent)
            _write(kept, folder, stamps)
    return folder


def _scan(root: str) -> tuple[ImageFolder, dict[str, _Stamp | None]]:
    """What a folder holds, and of each folder in it, by its path from the root, the stamp of before it was read."""
    stamps = {"": _stamp(root)}
    try:
        with os.scandir(root) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    if not classes:
        raise UserError("holds no class folder; it must hold one folder of images per class")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = []
        top = os.path.join(root, name)
        stamps[name] = _stamp(top)
        for parent, folders, files in os.walk(top, followlinks=True):
            below = parent[len(root) :]
            # They are read after this.
            stamps |= {f"{below}/{folder}": _stamp(os.path.join(parent, folder)) for folder in folders}
            found.append((below, sorted(file for file in files if file.lower().endswith(IMAGE_ENDINGS))))
        paths = [f"{below}/{file}" for below, files in sorted(found) for file in files]
        names += paths
        labels += [label] * len(paths)
    if empty := sorted(set(range(len(classes))) - set(labels)):
        shown = ", ".join(repr(classes[label]) for label in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise UserError(
            f"holds no image ({', '.join(IMAGE_ENDINGS)}) of {len(empty)} of its {len(classes)} classes: {shown}; add "
            "some, or remove their folders"
        )
    return ImageFolder(classes, ImageList.of(root, names, labels)), stamps


def _stamp(folder: str) -> _Stamp | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    # What copies files may set the one back, and nothing the other.
    return _Stamp(status.st_mtime_ns, status.st_ctime_ns)


def _kept_at(root: str) -> Path | None:
    """Where the listing of a folder is kept; None where there is no place for it."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        return None
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return Path(cache, "vitas", "listings", name)


def _write(path: Path, folder: ImageFolder, stamps: Mapping[str, _Stamp | None]) -> None:
    samples = folder.samples
    # JSON escapes what in a name is no Unicode, and gives it back.
    head = json.dumps({"classes": folder.classes, "stamps": stamps, "images": len(samples)}).encode() + b"\n"
    parts = [head, samples.ends.astype("<i8").tobytes(), samples.labels.astype("<i4").tobytes(), samples.names]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_atomically(path, lambda file: file.writelines([_MARK, digest.digest(), *parts]))


def _read(path: Path, root: str) -> ImageFolder | None:
    """A listing that was kept; None without one, for one that is damaged, and where a folder has changed since."""
    try:
        if os.stat(path).st_size > _LARGEST:
            return None
        content = path.read_bytes()
        start = len(_MARK) + _DIGEST
        body = memoryview(content)[start:]
        if content[:start] != _MARK + hashlib.sha256(body).digest():
            return None
        first = content.index(b"\n", start) + 1
        head = json.loads(content[start:first])
        images = head["images"]
        ends = np.frombuffer(content, "<i8", images, first)
        labels = np.frombuffer(content, "<i4", images, first + ends.nbytes)
        names = content[first + ends.nbytes + labels.nbytes :]
        unchanged = all(_stamp(root + name) == _Stamp(*stamp) for name, stamp in head["stamps"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not unchanged:
        return None
    # Copies, so that the whole file does not stay in memory for them.
    ends, labels = ends.astype(np.int64), labels.astype(np.int32)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
    return ImageFolder(head["classes"], ImageList(root, names, starts, ends, labels))
