"""Packing an image folder into a few large files (`vitas/data/packed.py`), in any number of processes.

The pack grows in a hidden folder beside its place, and is renamed when it is whole. A journal there says which files
each finished shard holds, with their sizes and dates: a packing that was killed goes on after them, and makes a shard
anew whose files have changed. What is written depends on the images and the options alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import PIL

from vitas.data.folders import class_names, images_in, listing, listing_digest
from vitas.data.pack_index import INDEX, Index, Shard, read_index, require_pyarrow
from vitas.data.packed import checksum, schema
from vitas.data.pictures import BadImage
from vitas.data.processes import in_order
from vitas.data.stored_images import stored_image
from vitas.errors import UserError, printable
from vitas.files import make_folder, sync_folder, write_atomically, write_text
from vitas.journal import Journal

LEFT_OUT = "left_out.txt"
_JOURNAL = "packing.jsonl"
# All that an unfinished pack may hold.
_OURS = re.compile(rf"\d{{5,9}}\.arrow|{re.escape(_JOURNAL)}|{re.escape(INDEX)}|{re.escape(LEFT_OUT)}|\..*\.tmp")
# A record batch is what is held in memory, and what a reader checks at once.
_BATCH_BYTES, _BATCH_IMAGES = 32 * 2**20, 1024
# Files that a process reads at once, and of which it holds all pixels.
_CHUNK, _CHUNK_OF_PIXELS = 32, 4
# Bad images that an error lists.
_LISTED = 10


@dataclass(frozen=True)
class PackOptions:
    """What a pack holds beside the folder's images.

    size: the shorter side to which larger images are brought; None packs the files as they are.
    quality: of the JPEG files that are then written, from 1 to 95.
    uncompressed: whether every image is written as its pixels, as a binary PPM: read by little more than a copy.
    shard_bytes: of images, after which a new shard is begun.
    leave_out_bad: whether bad images are left out; otherwise they are refused.
    """

    size: int | None = None
    quality: int = 90
    shard_bytes: int = 10**9
    leave_out_bad: bool = False
    uncompressed: bool = False

    def as_made(self) -> dict[str, Any]:
        """Those that the bytes of a pack depend on, as plain data."""
        quality = None if self.size is None or self.uncompressed else self.quality
        made = {"size": self.size, "quality": quality, "shard_bytes": self.shard_bytes}
        # Left out where it is not asked for: packs from before it are what they would be now.
        return made | ({"uncompressed": True} if self.uncompressed else {})


@dataclass(frozen=True)
class Packed:
    """A pack. left_out: the bad images of the folder that are not in it, reasons by path below it, both `printable`."""

    index: Index
    left_out: dict[str, str]


@dataclass(frozen=True)
class _File:
    """A file to pack: its path below the folder, and its label."""

    name: str
    label: int


@dataclass(frozen=True)
class _Read:
    """What was read of a file: what is packed, or what is wrong with it; its size and date."""

    content: bytes | None
    reason: str
    state: tuple[int, int]


class _Refused(Exception):  # noqa: N818 (it ends the writing of a shard)
    """A bad image where none may be left out."""


def pack(
    folder: Path,
    out: Path,
    options: PackOptions,
    processes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Packed:
    """Pack an image folder as `out`; what an earlier call with the same options has finished is kept.

    progress: is told how many of how many images are done. tell: is told each bad image, as it is found.

    Raises `UserError` for a folder that is none, one without images in a class, an `out` that is something else, and
    for bad images unless they are left out.
    """
    require_pyarrow()
    files, classes = _files_of(folder)
    samples = [(f"{folder}/{file.name}", file.label) for file in files]
    # What the pack is of, so that another one of its name is not taken for it.
    made = options.as_made() | {"source": listing_digest(listing(classes, samples))}
    _check_place(folder, out)
    found = read_index(out) if out.exists() else None
    if found is not None:
        return _whole(out, found, made, options)
    if out.exists():
        raise UserError(f"found {str(out)!r}, which is there already and is no pack; choose another name")
    make_folder(out.parent, "OUT")
    unfinished = out.with_name(f".{out.name}.unfinished")
    with _alone(unfinished):
        packing = _Packing(folder, unfinished, files, options, made)
        packing.run(processes, progress, tell)
        kept = [sample for file, sample in zip(files, samples, strict=True) if file.name not in packing.left_out]
        listed = listing(classes, kept)
        empty = [name for name, (count, _) in listed.items() if not count]
        if empty:
            raise UserError(f"found {str(folder)!r}, which has no good image of class {empty[0]!r}")
        index = Index(
            {name: (int(count), str(digest)) for name, (count, digest) in listed.items()}, tuple(packing.shards), made
        )
        left_out = {printable(name): printable(reason) for name, reason in packing.left_out.items()}
        if left_out:
            write_text(unfinished / LEFT_OUT, "".join(f"{name}\t{reason}\n" for name, reason in left_out.items()))
        write_atomically(unfinished / INDEX, lambda file: file.write(index.as_json()))
        unfinished.rename(out)
        sync_folder(out.parent)
    (out / _JOURNAL).unlink()
    return Packed(index, left_out)


def _files_of(folder: Path) -> tuple[list[_File], list[str]]:
    """The image files of a folder, in the order that torchvision's `ImageFolder` has them, and the classes."""
    if not folder.is_dir():
        raise UserError(f"found {str(folder)!r}, which is not a folder; it must hold one folder of images per class")
    if (folder / INDEX).exists():
        raise UserError(f"found {str(folder)!r}, which is packed already")
    classes = class_names(str(folder))
    if not classes:
        raise UserError(f"found {str(folder)!r}, which holds no folder; it must hold one folder of images per class")
    files = []
    for label, name in enumerate(classes):
        paths = sorted(images_in(folder / name), key=lambda path: (str(path.parent), path.name))
        if not paths:
            raise UserError(f"found {str(folder)!r}, which has no image of class {name!r}")
        above = len(str(folder / name))
        files += [_File(name + str(path)[above:], label) for path in paths]
    return files, classes


def _check_place(folder: Path, out: Path) -> None:
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"found {str(out)!r}, which is in the folder that is packed; choose another place")


def _whole(out: Path, found: Index, made: dict[str, Any], options: PackOptions) -> Packed:
    """A pack that is there already, if it is the one that was asked for."""
    bad = out / LEFT_OUT
    lines = bad.read_text(encoding="utf-8").splitlines() if bad.exists() else []
    differing = [name for name in (*made, "uncompressed") if found.made.get(name) != made.get(name)]
    what = ""
    if "source" in differing:
        what = "of other images"
    elif "uncompressed" in differing:
        what = "with images that are uncompressed" if "uncompressed" in found.made else "with compressed images"
    elif differing:
        what = f"with another {differing[0]}"
    if not what and lines and not options.leave_out_bad:
        what = "with bad images left out"
    if what:
        raise UserError(f"found {str(out)!r}, which is there already, {what}; choose another name, or remove it")
    found.check_shards(out)
    # A packing that was killed in its last moment leaves it.
    (out / _JOURNAL).unlink(missing_ok=True)
    return Packed(found, {name: reason for name, _, reason in (line.partition("\t") for line in lines)})


@contextmanager
def _alone(unfinished: Path) -> Iterator[None]:
    """Have the hidden folder to oneself. On a file system without locks, two would write the same."""
    if unfinished.exists() and not all(_OURS.fullmatch(path.name) for path in unfinished.iterdir()):
        raise UserError(f"found {str(unfinished)!r}, which is no unfinished pack; move it away")
    unfinished.mkdir(exist_ok=True)
    held = os.open(unfinished, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"{unfinished} is being written by another vitas pack; wait for it") from None
        yield
    finally:
        os.close(held)


class _Packing:
    """The work on a pack: the files, and the shards that are finished.

    left_out: bad images so far, reasons by path below the folder.
    """

    def __init__(
        self, folder: Path, place: Path, files: Sequence[_File], options: PackOptions, made: dict[str, Any]
    ) -> None:
        import pyarrow

        self._folder, self._place, self._files, self._options = folder, place, files, options
        self.shards: list[Shard] = []
        self.left_out: dict[str, str] = {}
        # The number of files that are done.
        self._done = 0
        versions = {"pyarrow": pyarrow.__version__, "pillow": PIL.__version__}
        self._resume({"folder": str(folder.resolve()), "made": made, **versions})

    def _resume(self, header: dict[str, Any]) -> None:
        """Take up the shards of an earlier call, up to the first whose files have changed."""
        path = self._place / _JOURNAL
        journal = Journal(path)
        kept: list[dict[str, Any]] = []
        of_shard: list[dict[str, Any]] = []
        for record in journal.lines[1:] if journal.lines[:1] == [header] else []:
            of_shard.append(record)
            if "shard" in record:
                allowed = self._options.leave_out_bad or len(of_shard) == 1
                if not allowed or not self._is_valid(record):
                    break
                kept += of_shard
                self._take(of_shard)
                of_shard = []
        # Lines after the last shard are of one that was not finished.
        if journal.lines != [header, *kept]:
            path.unlink(missing_ok=True)
            journal = Journal(path)
            journal.append(header, *kept)
        self._journal = journal
        for other in self._place.iterdir():
            if other != path and other.name not in {shard.name for shard in self.shards}:
                other.unlink()

    def _is_valid(self, record: dict[str, Any]) -> bool:
        path, start, stop = self._place / record["shard"], record["start"], record["stop"]
        if start != self._done or not path.is_file() or path.stat().st_size != record["bytes"]:
            return False
        digest = hashlib.sha256()
        for file in self._files[start:stop]:
            try:
                _note(digest, file, _state_of(self._folder / file.name))
            except OSError:
                return False
        return bool(stop <= len(self._files) and digest.hexdigest() == record["files"])

    def _take(self, records: Sequence[dict[str, Any]]) -> None:
        *bad, shard = records
        self.left_out |= {record["left_out"]: record["reason"] for record in bad}
        self.shards.append(Shard(shard["shard"], shard["images"], shard["bytes"]))
        self._done = shard["stop"]

    def run(self, processes: int, progress: Callable[[int, int], None], tell: Callable[[str], None]) -> None:
        """Write the shards that are missing."""
        total = len(self._files)
        progress(self._done, total)
        if self._done == total:
            return

        def counted() -> Generator[_Read]:
            names = [str(self._folder / file.name) for file in self._files[start:]]
            work = partial(_read_files, options=self._options)
            chunk = _CHUNK_OF_PIXELS if self._options.uncompressed else _CHUNK
            for place, read in enumerate(in_order(work, names, processes, chunk)):
                if read.content is None:
                    tell(f"{printable(names[place])} {printable(read.reason)}")
                    bad.append(names[place])
                progress(start + place + 1, total)
                yield read

        start, bad = self._done, list[str]()
        reads = counted()
        try:
            while self._done < total:
                self._write_shard(reads)
        except _Refused:
            # All of them, so that they can be mended at once.
            deque(reads, maxlen=0)
        finally:
            reads.close()
        if bad and not self._options.leave_out_bad:
            named = [f"  {printable(name)}" for name in bad[:_LISTED]]
            more = [f"  and {len(bad) - _LISTED:,} more"] if len(bad) > _LISTED else []
            raise UserError(
                f"found {len(bad):,} bad image{'s'[: len(bad) > 1]} among the {total - start:,} of "
                f"{str(self._folder)!r} that were read; mend or remove them, or pack the others with "
                "--leave-out-bad. The finished files are kept\n" + "\n".join(named + more)
            )

    def _write_shard(self, reads: Iterator[_Read]) -> None:
        name = f"{len(self.shards):05}.arrow"
        start, images = self._done, 0
        bad: list[dict[str, Any]] = []
        digest = hashlib.sha256()
        stop = start

        def chosen() -> Iterator[tuple[_File, bytes]]:
            """The good images of this shard."""
            nonlocal stop, images
            held = 0
            while stop < len(self._files) and held < self._options.shard_bytes:
                file, read = self._files[stop], next(reads)
                stop += 1
                _note(digest, file, read.state)
                if read.content is None:
                    if not self._options.leave_out_bad:
                        raise _Refused
                    bad.append({"left_out": file.name, "reason": read.reason})
                    continue
                held += len(read.content)
                images += 1
                yield file, read.content

        path = self._place / name
        write_atomically(path, lambda sink: _write_batches(sink, chosen()))
        record = {"shard": name, "images": images, "bytes": path.stat().st_size, "start": start, "stop": stop}
        records = [*bad, record | {"files": digest.hexdigest()}]
        self._journal.append(*records)
        self._take(records)


def _write_batches(sink: IO[bytes], records: Iterator[tuple[_File, bytes]]) -> None:
    """Write a shard."""
    import pyarrow

    columns = schema()
    with pyarrow.ipc.new_file(sink, columns) as writer:
        for first in records:
            batch, held = [first], len(first[1])
            while held < _BATCH_BYTES and len(batch) < _BATCH_IMAGES and (record := next(records, None)) is not None:
                batch.append(record)
                held += len(record[1])
            paths = [os.fsencode(file.name) for file, _ in batch]
            labels = [file.label for file, _ in batch]
            images = [content for _, content in batch]
            sums = [checksum(*record) for record in zip(paths, labels, images, strict=True)]
            arrays = (
                pyarrow.array(values, kind)
                for values, kind in zip((paths, labels, images, sums), columns.types, strict=True)
            )
            writer.write_batch(pyarrow.record_batch(list(arrays), schema=columns))


def _note(digest: Any, file: _File, state: tuple[int, int]) -> None:
    """Take a file, its size and its date up into a digest."""
    digest.update(json.dumps([file.name, *state]).encode())


def _state_of(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _read_files(names: Sequence[str], options: PackOptions) -> list[_Read]:
    found = []
    for name in names:
        state = (0, 0)
        try:
            state = _state_of(name)
            content = stored_image(name, options.size, options.quality, options.uncompressed)
            found.append(_Read(content, "", state))
        except BadImage as error:
            found.append(_Read(None, error.reason, state))
        except OSError as error:
            found.append(_Read(None, f"cannot be read ({error.strerror})", state))
    return found
