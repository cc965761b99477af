"""Journals: files of JSON lines that survive any death of their writer, and reading their records."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vitas.errors import UserError
from vitas.files import NO_ROOM, may_write, no_room, sync_folder
from vitas.plain_data import parse_json

# Bytes of a line.
MAX_LINE = 2**20

# How a line ends: with the CRC-32 of all of it before this, so that a changed digit of a score is noticed. A line
# without it, of an older version or edited by hand, is read too.
_SUM = b'"crc32": "%08x"}\n'
_SUMMED = re.compile(rb'(?s)(.*?)(?:, )?"crc32": "([0-9a-f]{8})"\}\n')

Read = TypeVar("Read")


class Journal:
    """A file of JSON lines that only ever gains whole lines.

    `lines` holds the records in it, those of earlier processes included. A half-written
    last line is cut off. Raises `UserError`, with the line's number, where any other line is broken or no mapping, or
    is another than was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines, unfinished = _read(path)
        if unfinished:
            os.truncate(path, path.stat().st_size - unfinished)

    def append(self, *records: dict[str, Any]) -> None:
        """Append records, of finite numbers, and flush them to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        try:
            with may_write(), open(self.path, "ab") as file:
                file.write(b"".join(_line(record) for record in records))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                # Otherwise a power cut could take the file away with all its lines.
                sync_folder(self.path.parent)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise no_room(error, self.path) from None
            raise
        self.lines += records


def _line(record: dict[str, Any]) -> bytes:
    content = json.dumps(record, allow_nan=False).encode()[:-1]
    return content + (b", " if record else b"") + _SUM % zlib.crc32(content)


_MEND = "; fix it, or move the file away"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a journal whose writer may be at work: its whole lines, and the file is left as it is.

    Raises `UserError`, with the line's number, where a line is broken or no mapping.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a journal's whole lines, and how many bytes the half-written one after them has."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records, 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            place = f"{path}: line {len(records) + 1}"
            if not line.endswith(b"\n"):
                if len(line) == MAX_LINE:
                    raise UserError(f"{place} has more than {MAX_LINE:,} bytes{_MEND}")
                return records, len(line)
            summed = _SUMMED.fullmatch(line)
            if summed and zlib.crc32(summed[1]) != int(summed[2], 16):
                raise UserError(
                    f"{place} is another than was written, by its checksum: a disk or a copy changed it; "
                    "move the file away, or, if you changed the line yourself, remove its crc32"
                )
            try:
                record = parse_json(summed[1] + b"}" if summed else line, place)
            except UserError as error:
                raise UserError(f"{error}{_MEND}") from None
            if not isinstance(record, dict):
                raise UserError(f"{place} holds {record!r}; it must be a mapping of keys{_MEND}")
            records.append(record)
    return records, 0


def read_records(
    path: Path, records: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], Read], first: int = 1
) -> list[Read]:
    """What `read` makes of records, which are the lines of a journal from line `first` on.

    Raises `UserError`, with the file and the line, where `read` does.
    """
    found = []
    for number, record in enumerate(records, first):
        try:
            found.append(read(record))
        except UserError as error:
            raise UserError(f"{path}: line {number}: {error}{_MEND}") from None
    return found
