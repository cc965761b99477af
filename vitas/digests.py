"""A digest at the end of a checkpoint: what a disk or a copy has changed is noticed before it is used.

torch writes a zip archive, and does not look at its checksums when it reads
one. Here an archive ends with a comment that holds the SHA-256 of all before
it; a safetensors file has it in its metadata. Any program still reads both.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO

_MARK = b"vitas sha256 "
_COMMENT = len(_MARK) + 64
# A zip archive ends with the length of its comment, in two bytes, and the comment.
_NO_COMMENT, _OUR_COMMENT = struct.pack("<H", 0), struct.pack("<H", _COMMENT)
_CHUNK = 1 << 22
_CHANGED = "its digest is another than when it was written: a disk or a copy changed it"
_CUT_SHORT = "it is cut short; download or copy it again"

# In the metadata of a safetensors file, the key of the digest, and its value while the digest is made.
DIGEST, NOT_YET = "sha256", "0" * 64


class _Hashing:
    """A file opened for writing that gets a zip archive from its first byte to its last; `finish` adds the comment.

    Its last two bytes are held back: the length of the comment, which changes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._held = file, hashlib.sha256(), b""

    def write(self, data: bytes | memoryview) -> int:
        length = len(data)
        if length < len(_NO_COMMENT):
            data, self._held = self._held + bytes(data), b""
        else:
            self._pass_on(self._held)
            self._held = b""
        self._held = bytes(data[-len(_NO_COMMENT) :])
        self._pass_on(data[: -len(_NO_COMMENT)])
        return length

    def _pass_on(self, data: bytes | memoryview) -> None:
        if len(data):
            self._digest.update(data)
            self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        if self._held != _NO_COMMENT:
            raise RuntimeError("a digest can be added to a zip archive without a comment only")
        self._file.write(_OUR_COMMENT + _MARK + self._digest.hexdigest().encode())


def write_with_digest(file: IO[bytes], write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file with a zip archive, as `torch.save` does, and add its digest."""
    hashing = _Hashing(file)
    write(hashing)  # type: ignore[arg-type]  # of a file, torch writes and flushes alone
    hashing.finish()


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does. Raises `OSError` for a file that is not there."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def damage(path: Path) -> str | None:
    """What is wrong with a file's bytes, in words; None if nothing is, or if nothing can tell.

    A file of ours is compared with its digest. Of another zip archive the
    checksums of its entries are. Raises `OSError` for a file that is not there.
    """
    stat = os.stat(path)
    # Found once for each state of a file: they may be gigabytes, and several callers ask.
    return _damage(str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _damage(path: str, inode: int, size: int, changed: int) -> str | None:
    if not is_archive(Path(path)):
        return None
    with open(path, "rb") as file:
        file.seek(max(size - _COMMENT - len(_OUR_COMMENT), 0))
        end = file.read()
        if end.startswith(_OUR_COMMENT + _MARK):
            return _against_digest(file, size - len(end), end[len(_OUR_COMMENT) + len(_MARK) :])
    return _against_checksums(path, size)


def _against_digest(file: IO[bytes], length: int, expected: bytes) -> str | None:
    file.seek(0)
    digest = hashlib.sha256()
    while length:
        data = file.read(min(_CHUNK, length))
        if not data:
            return _CUT_SHORT
        digest.update(data)
        length -= len(data)
    if digest.hexdigest().encode() == expected:
        return None
    return _CHANGED


def _against_checksums(path: str, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            # What torch writes is not compressed. An archive of a few kB could otherwise fill the memory.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "it is compressed, which torch's files are not"
            if sum(entry.file_size for entry in archive.infolist()) > size:
                return "it says that it holds more than it does"
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, OverflowError):
        # The table of an archive's entries is at its end.
        return "it is a damaged archive" if zipfile.is_zipfile(path) else _CUT_SHORT
    return None if wrong is None else f"the checksum of its part {wrong!r} is wrong: a disk or a copy changed it"


def sealed_safetensors(data: bytes) -> bytes:
    """A safetensors file whose metadata has `DIGEST: NOT_YET`, with the digest of the file in its place."""
    at = _place_of_digest(data)
    if at is None:
        raise RuntimeError(f"the metadata of a file to seal must hold {DIGEST}")
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:at] + digest + data[at + len(digest) :]


def _place_of_digest(data: bytes) -> int | None:
    """Where the value of `DIGEST` begins in a safetensors file, or in its first bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    key = f'"{DIGEST}":"'.encode()
    at = data.find(key, 8, end)
    return None if at < 0 or at + len(key) + len(NOT_YET) > end else at + len(key)


def safetensors_damage(path: Path) -> str | None:
    """As `damage`, of a safetensors file; only one of ours has a digest."""
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if length > os.stat(path).st_size:
            return _CUT_SHORT
        head += file.read(length)
        at = _place_of_digest(head)
        if at is None:
            return None
        end = at + len(NOT_YET)
        digest = hashlib.sha256(head[:at] + NOT_YET.encode() + head[end:])
        while data := file.read(_CHUNK):
            digest.update(data)
    if digest.hexdigest().encode() == head[at:end]:
        return None
    return _CHANGED
