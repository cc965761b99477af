"""Writing files: whole or not at all, by one process at a time, and what its death leaves behind."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from vitas.errors import UserError


def make_folder(folder: Path, key: str) -> None:
    """Make a writable folder. Raises `UserError`, beginning with `key`, where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}: found {str(folder)!r}, which cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}: found {str(folder)!r}, which cannot be written to")


_guard: Callable[[], AbstractContextManager[object]] = nullcontext


def guard_writes(guard: Callable[[], AbstractContextManager[object]] | None) -> None:
    """Have this process replace files and append records within `guard()` alone.

    It raises if the process may no longer write: it slept, and another goes on in its place. None stops that.
    """
    global _guard
    _guard = guard or nullcontext


def may_write() -> AbstractContextManager[object]:
    """What changes files of a run outside this module, too, does so within it (see `guard_writes`)."""
    return _guard()


@cache
def this_machine() -> str:
    """What makes process ids comparable: two containers on a machine may have one name and count from 1 each."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "unknown"


# The end of a temporary file's name: .NAME.MACHINE.PID.RANDOM.tmp
_UNFINISHED = ".tmp"
_DAY = 24 * 3600
# Errors that a user mends: no room, over the quota, a file system that went read-only.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class _Watched:
    """A file open for writing that remembers why a write failed: torch raises another error instead."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.written = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.written += count
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _machine_digest() -> str:
    return hashlib.sha256(this_machine().encode()).hexdigest()[:8]


def _unfinished_beside(path: Path) -> Path:
    """A new name for what will become a file."""
    # Processes of several containers may have one number, and each removes its own file alone.
    return path.with_name(f".{path.name}.{_machine_digest()}.{os.getpid()}.{secrets.token_hex(4)}{_UNFINISHED}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], mode: int = 0o666) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`.

    mode: who may read and write it, less what the process's umask takes away.

    A process that dies at any point leaves the old file or the new one. Raises
    `UserError` where there is no room for it; the old file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, watched = _unfinished_beside(path), None
    try:
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            watched = _Watched(file)
            write(watched)  # type: ignore[arg-type]  # all else that a file has, it has by __getattr__
            file.flush()
            os.fsync(file.fileno())
        with may_write():
            os.replace(temporary, path)
        sync_folder(path.parent)
    except Exception as error:
        failure = (watched.error if watched else None) or error
        if isinstance(failure, OSError) and failure.errno in NO_ROOM:
            raise no_room(failure, path, watched.written if watched else 0) from None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def link_atomically(source: Path, path: Path) -> None:
    """Give a file, which is replaced and never changed, a second name; a file system without links gets a copy.

    A process that dies at any point leaves the old file of that name or the new one.
    """
    temporary = _unfinished_beside(path)
    try:
        with may_write():
            os.link(source, temporary)
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError:
        with open(source, "rb") as whole:
            write_atomically(path, lambda file: shutil.copyfileobj(whole, file))
    finally:
        # A rename between two names of one file does nothing.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def no_room(error: OSError, path: Path, written: int = 0) -> UserError:
    """The error for a file that could not be written for want of room."""
    reason, remedy = error.strerror or str(error), "Make it writable"
    if error.errno != errno.EROFS:
        remedy = "Make room"
        with suppress(OSError):
            reason += f"; {shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free there"
    so_far = f" after {written / 1e6:,.1f} MB of it" if written else ""
    return UserError(
        f"{path} cannot be written{so_far} ({reason}); what was there before is whole. {remedy}, and run the same "
        "command again: it resumes"
    )


@contextmanager
def naming_what_has_no_room(root: Path) -> Iterator[None]:
    """Within it an `OSError` for want of room, whatever was being made, becomes the `UserError` of `no_room`.

    root: named where the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(error, Path(error.filename) if error.filename else root) from None


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files below a folder whose writers are dead; returns what was removed.

    A writer on another machine is taken for dead a day after it last wrote.
    """
    removed = []
    for path in folder.rglob(f".*{_UNFINISHED}"):
        machine, pid, *_ = ["", "", "", *path.name.split(".")][-4:]
        with suppress(OSError):
            is_ours = machine == _machine_digest() and pid.isdigit()
            is_dead = not Path("/proc", pid).exists() if is_ours else time.time() - path.stat().st_mtime > _DAY
            if is_dead and path.is_file():
                path.unlink()
                removed.append(path)
    return removed


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """`write_atomically` for text, as UTF-8; names of files in it are written as the file system has them."""
    _write_bytes(path, text.encode(errors="surrogateescape"), mode)


def _write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    write_atomically(path, lambda file: file.write(content), mode)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that it appears whole or not at all; an existing folder is replaced.

    A process that dies between the two renames of a replacement leaves the old folder under a hidden name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old"))
    try:
        temporary.mkdir()
        for name, content in files.items():
            _write_bytes(temporary / name, content)
        if folder.exists():
            # A rename cannot replace a folder that holds files.
            folder.rename(old)
        try:
            temporary.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
