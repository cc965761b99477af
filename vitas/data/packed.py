"""Packed folders: an image folder as a few large Arrow files and an index (`vitas pack`), read by index in any order.

A pack is a folder that holds `pack.json` and shards, `00000.arrow` and on. A shard is an Arrow IPC file of record
batches with the columns of `schema`: any Arrow library reads it. The index is written last, so what has none is no
pack. Shards are mapped into memory: all workers of a machine share the pages that one of them has read.

A pack may come from a stranger, or from a disk that changed it. So the index bears a digest of itself, each record a
checksum of its name, label and bytes, and nothing that a shard says is followed before it was checked against the
index and the file's size.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from vitas.costs import Array
from vitas.data.pack_index import INDEX, Shard, read_index, require_pyarrow
from vitas.data.pictures import BadImage, Picture, Reduction, read_image, read_picture
from vitas.errors import UserError

# Of a record's path; longer ones no file system has.
MAX_PATH = 4096
# An Arrow file begins with its name, padded; then come its messages, as in a stream.
_MAGIC = b"ARROW1\0\0"


def schema() -> Any:
    """The columns of a shard: path below the folder, label, the image file's bytes, and `checksum` of these three."""
    import pyarrow

    columns = {
        "path": pyarrow.binary(),
        "label": pyarrow.int32(),
        "image": pyarrow.large_binary(),
        "crc32": pyarrow.uint32(),
    }
    return pyarrow.schema([pyarrow.field(name, kind, nullable=False) for name, kind in columns.items()])


def checksum(path: bytes, label: int, image: Any) -> int:
    """CRC-32 of a record: of its path, a null character, its label in four bytes, the least first, and its image."""
    return zlib.crc32(image, zlib.crc32(path + b"\0" + label.to_bytes(4, "little")))


def order_of(path: str) -> tuple[str, str, str]:
    """What the images of a pack are sorted by, as torchvision's `ImageFolder` does: class, folder, name.

    path: below the pack.
    """
    folder, _, name = path.rpartition("/")
    return folder.partition("/")[0], folder, name


class PackedFolder:
    """The images of a pack, or of a part of it, undecoded: with what an `ImageFolder` has.

    data_dir: the pack. places: of the images that are meant, rising; None is all.
    Paths are those of the folder that was packed, below `data_dir`: they name images, and are no files.

    Raises `UserError` for what is no pack or no whole one, and where pyarrow is not installed. Opening it reads the
    index alone; it may be opened before processes are forked, and sent to those that are spawned.
    """

    def __init__(self, data_dir: str, places: Array | None = None) -> None:
        index = read_index(data_dir)
        if index is None:
            raise UserError(f"found {data_dir!r}, which holds no {INDEX}; it must be a folder that vitas pack made")
        require_pyarrow()
        index.check_shards(data_dir)
        self.data_dir, self.index, self.classes = data_dir, index, list(index.classes)
        self._places = places
        self._shard_ends = list(accumulate(shard.images for shard in index.shards))
        self._label_ends = list(accumulate(count for count, _ in index.classes.values()))
        self._below = os.path.join(os.path.abspath(data_dir), "")
        self._opened: dict[int, _ShardFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself, and makes the labels sooner than it is sent them.
        return {name: value for name, value in self.__dict__.items() if name != "labels"} | {"_opened": {}}

    def part(self, places: Sequence[int]) -> PackedFolder:
        """The images at some places of the whole pack, rising."""
        return PackedFolder(self.data_dir, np.asarray(places, dtype=np.int64))

    def __len__(self) -> int:
        return self.index.images if self._places is None else len(self._places)

    def read(self, index: int, reduction: Reduction | None = None) -> Picture:
        """An image in RGB, reduced by what `reduction` says (see `read_picture`). Raises `BadImage`."""
        path, _, content = self._record(index)
        return read_picture(path, content, reduction)

    def label(self, index: int) -> int:
        """The label of an image."""
        return int(self.labels[index])

    def content(self, index: int) -> bytes:
        """The bytes of an image file. Raises `BadImage` for one that is not what was packed, by its checksum."""
        return self._record(index)[2]

    def loader(self, path: str | Path) -> Image.Image:
        """The image of a path of `samples`. Raises `BadImage`."""
        index = self.find(path)
        if index is None:
            raise BadImage(path, "is not in the pack")
        name, _, content = self._record(index)
        return read_image(name, content)

    def find(self, path: str | Path) -> int | None:
        """The index of a path of `samples`, however its folder is written; None where it is not among them."""
        name = os.path.abspath(path).removeprefix(self._below)
        index = bisect_left(range(len(self)), order_of(name), key=lambda at: order_of(self.name(at)))
        return index if index < len(self) and self.name(index) == name else None

    def listing(self) -> dict[str, list[int | str]] | None:
        """What the index says that `vitas.data.folders.listing` has of the whole pack; None for a part of it."""
        return None if self._places is not None else {name: [*listed] for name, listed in self.index.classes.items()}

    @property
    def samples(self) -> Samples:
        """The path and label of each image. They are read when they are asked for."""
        return Samples(self)

    @cached_property
    def labels(self) -> Array:
        """The label of each image [n]."""
        labels = np.repeat(np.arange(len(self.classes)), [count for count, _ in self.index.classes.values()])
        return labels if self._places is None else labels[self._places]

    def name(self, index: int) -> str:
        """The path of an image below the pack. Raises `UserError` for a damaged shard."""
        shard, row = self._locate(index)
        return os.fsdecode(self._shard(shard).path(row))

    def names(self) -> Iterator[str]:
        """The path below the pack of each image, in order. Raises `UserError` for a damaged shard."""
        first = 0
        for number, shard in enumerate(self.index.shards):
            places = self._places_in(first, first + shard.images)
            first += shard.images
            if places is not None and not len(places):
                continue
            paths = self._shard(number).paths()
            yield from map(os.fsdecode, paths if places is None else (paths[place] for place in places))

    def _places_in(self, start: int, stop: int) -> Array | None:
        """The places of this part from start to stop, counted from start; None is all."""
        if self._places is None:
            return None
        first, last = np.searchsorted(self._places, (start, stop))
        found: Array = self._places[first:last] - start
        return found

    def _record(self, index: int) -> tuple[str, int, bytes]:
        """An image's path, label and bytes."""
        shard, row = self._locate(index)
        try:
            name, label, image, summed = self._shard(shard).record(row)
        except UserError as error:
            # Its name cannot be told.
            named = os.path.join(self.data_dir, f"{self.index.shards[shard].name}:{row}")
            raise BadImage(named, f"is in a damaged file ({error})") from None
        path = os.path.join(self.data_dir, os.fsdecode(name))
        if checksum(name, label, image) != summed:
            raise BadImage(path, "is not what was packed, by its checksum")
        return path, label, image

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard of an image, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(index if self._places is None else self._places[index])
        shard = bisect_right(self._shard_ends, place)
        return shard, place - (self._shard_ends[shard] - self.index.shards[shard].images)

    def _shard(self, number: int) -> _ShardFile:
        if number not in self._opened:
            shard = self.index.shards[number]
            first = self._shard_ends[number] - shard.images
            self._opened[number] = _ShardFile(Path(self.data_dir, shard.name), shard, first, self)
        return self._opened[number]

    def labels_at(self, start: int, stop: int) -> Array:
        """The labels of places of the whole pack: its images are sorted by class."""
        return np.searchsorted(self._label_ends, np.arange(start, stop), side="right")


class Samples(Sequence[tuple[str, int]]):
    """The paths and labels of a pack's images, read when they are asked for: there may be millions."""

    def __init__(self, folder: PackedFolder) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return len(self._folder)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        folder = self._folder
        return os.path.join(folder.data_dir, folder.name(index)), folder.label(index)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        folder = self._folder
        begin = os.path.join(folder.data_dir, "")
        return ((begin + name, label) for name, label in zip(folder.names(), folder.labels.tolist(), strict=True))


class _ShardFile:
    """A shard, mapped into memory. Raises `UserError` for one that is damaged, here and whenever a part is first read.

    first: the place of its first image in the whole pack.
    """

    def __init__(self, path: Path, shard: Shard, first: int, folder: PackedFolder) -> None:
        self._path, self._first, self._folder = path, first, folder
        self._batches = _read_batches(path)
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self._checked: set[int] = set()
        if (self._ends[-1] if self._ends else 0) != shard.images:
            raise self._damaged(f"it does not hold the {shard.images:,} images that {INDEX} says")

    def record(self, row: int) -> tuple[bytes, int, bytes, int]:
        """A record's path, label, image and checksum."""
        batch, row = self._batch_of(row)
        path, label, image, summed = (batch.column(column)[row] for column in range(4))
        return path.as_py(), label.as_py(), image.as_py(), summed.as_py()

    def path(self, row: int) -> bytes:
        batch, row = self._batch_of(row)
        found: bytes = batch.column(0)[row].as_py()
        return found

    def paths(self) -> list[bytes]:
        for number in range(len(self._batches)):
            self._check(number)
        return [path for batch in self._batches for path in batch.column(0).to_pylist()]

    def _batch_of(self, row: int) -> tuple[Any, int]:
        """The record batch that holds a row of the shard, and the row in it."""
        number = bisect_right(self._ends, row)
        self._check(number)
        batch = self._batches[number]
        return batch, row - (self._ends[number] - batch.num_rows)

    def _check(self, number: int) -> None:
        """Raise `UserError` unless a batch lies within its file, and is what the index says. Images are not read."""
        if number in self._checked:
            return
        import pyarrow

        batch = self._batches[number]
        try:
            # Of its lengths and offsets, without which Arrow would follow them anywhere.
            batch.validate(full=True)
        except pyarrow.ArrowException as error:
            raise self._damaged(str(error)) from None
        if any(column.null_count for column in batch.columns):
            raise self._damaged("it holds records without a value")
        last = self._first + self._ends[number]
        labels = self._folder.labels_at(last - batch.num_rows, last)
        if not np.array_equal(batch.column(1).to_numpy(), labels):
            raise self._damaged(f"its labels are not those of {INDEX}")
        for path, label in zip(batch.column(0).to_pylist(), labels.tolist(), strict=True):
            begin, *inner = path.split(b"/")
            is_named = begin == os.fsencode(self._folder.classes[label]) and inner and b"\0" not in path
            if not is_named or len(path) > MAX_PATH or not {b"", b".", b".."}.isdisjoint(inner):
                raise self._damaged("it names an image that is not in its class")
        self._checked.add(number)

    def _damaged(self, how: str) -> UserError:
        return UserError(f"{self._path} is damaged: {how}; copy it again, or pack again")


def _read_batches(path: Path) -> list[Any]:
    """The record batches of a shard, whose buffers are the mapped file itself. Raises `UserError`."""
    import pyarrow

    try:
        # What was read keeps the mapping when the file is closed: there may be more shards than files may be open.
        with pyarrow.memory_map(str(path)) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise pyarrow.ArrowInvalid("it is no Arrow file")
            messages = iter(pyarrow.ipc.MessageReader.open_stream(file))
            first = next(messages, None)
            if first is None or first.type != "schema" or not pyarrow.ipc.read_schema(first).equals(schema()):
                raise pyarrow.ArrowInvalid("its columns are others")
            batches = []
            for message in messages:
                if message.type != "record batch" or _is_compressed(message):
                    raise pyarrow.ArrowInvalid("it holds other data than images")
                batches.append(pyarrow.ipc.read_record_batch(message, schema()))
            return batches
    except (pyarrow.ArrowException, OSError, ValueError, struct.error) as error:
        # Arrow's own have no number, and are about what the file holds.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is damaged: {error}; copy it again, or pack again") from None


def _is_compressed(message: Any) -> bool:
    """Whether a record batch says so, before Arrow unfolds it to any size: the field `compression` of Message.fbs."""
    described = memoryview(message.metadata)

    def field(table: int, number: int) -> int | None:
        """Where a field of a table is, None if it is left out."""
        vtable = table - struct.unpack_from("<i", described, table)[0]
        at = 4 + 2 * number
        offset = struct.unpack_from("<H", described, vtable + at)[0] if at < _u16(described, vtable) else 0
        return table + offset if offset else None

    def target(at: int) -> int:
        return at + int(struct.unpack_from("<I", described, at)[0])

    header = field(target(0), 2)
    return header is not None and field(target(header), 3) is not None


def _u16(data: memoryview, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])
