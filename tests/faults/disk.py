"""A disk that a process can be killed on, inside any call that changes it, and that may forget what was not flushed.

`Disk.install` replaces the calls of this process that change files below a
folder. Each such call counts as one point; at the chosen one the process ends
with SIGKILL, in the middle of the call. With `forgets`, the files are then what
a power cut may leave: writes that no fsync followed are cut or zeroed, and
renames, removals and new files that no fsync of their folder followed may be
undone.

Checkpoints are written by a thread beside the training. Each call is made
whole, or died in, before another thread's begins: so nothing changes once the
disk has begun to forget. The kind of a call says if it was made by another
thread than that which installed the disk.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Ends the kind of a call of another thread.
BESIDE = "-beside"


class Disk:
    """folder: below which calls count.

    kill_at: the number of the call to die in, among those of a kind if `kind` names one; None is never.
    """

    def __init__(
        self, folder: Path, kill_at: int | None = None, forgets: bool = False, seed: int = 0, kind: str | None = None
    ) -> None:
        self._folder, self._kill_at, self._forgets = str(folder.resolve()), kill_at, forgets
        self._kind, self._thread, self._lock = kind, threading.get_ident(), threading.RLock()
        self._rng = random.Random(seed)
        # The kind of each call so far, and how many were of the kind to die in.
        self.calls: list[str] = []
        self._count = 0
        # Of each file that was changed: how many of its bytes are sure to be on the disk.
        self._flushed: dict[str, int] = {}
        # What undoes each change of a folder that was not flushed, with the folder.
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self._real = {name: getattr(os, name) for name in ("replace", "rename", "unlink", "fsync", "truncate", "link")}

    def install(self) -> None:
        real_open = builtins.open

        @self._one_at_a_time
        def opened(file, mode="r", *arguments, **options):
            if isinstance(file, int) or not self._is_here(file) or not set(mode) & set("wax+"):
                return real_open(file, mode, *arguments, **options)
            self._point("open")
            path = os.path.abspath(file)
            is_new = not os.path.exists(path)
            result = real_open(file, mode, *arguments, **options)
            if is_new:
                self._undo.append((os.path.dirname(path), lambda: self._remove(path)))
            if is_new or "w" in mode:
                self._flushed[path] = 0
            else:
                self._flushed.setdefault(path, os.path.getsize(path))
            return _File(result, self, path)

        builtins.open = io.open = opened
        os.replace = os.rename = self._one_at_a_time(self._rename)
        os.unlink = os.remove = self._one_at_a_time(self._unlink)
        os.fsync, os.truncate, os.link = map(self._one_at_a_time, (self._fsync, self._truncate, self._link))

    def _one_at_a_time(self, call: Callable[..., object]) -> Callable[..., object]:
        def made(*arguments, **options):
            with self._lock:
                return call(*arguments, **options)

        return made

    def _is_here(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._folder + os.sep)

    def _point(self, kind: str, partly: Callable[[], object] = lambda: None) -> None:
        """One call; `partly` does a part of it before the process dies in it."""
        kind += "" if threading.get_ident() == self._thread else BESIDE
        self.calls.append(kind)
        if self._kind not in (None, kind):
            return
        self._count += 1
        if self._count == self._kill_at:
            if self._rng.random() < 0.5:
                partly()
            self.die()

    def die(self) -> None:
        if self._forgets:
            self._forget()
        os.kill(os.getpid(), signal.SIGKILL)

    def _rename(self, source, target, **options) -> None:
        if not self._is_here(target):
            self._real["replace"](source, target, **options)
            return
        self._point("rename")
        source, target = os.path.abspath(source), os.path.abspath(target)
        old = Path(target).read_bytes() if os.path.isfile(target) else None
        is_file = os.path.isfile(source)
        self._real["replace"](source, target)
        if is_file:
            self._flushed[target] = self._flushed.pop(source, os.path.getsize(target))
            self._undo.append((os.path.dirname(target), lambda: self._restore(target, old)))
        self._point("renamed")

    def _link(self, source, target, **options) -> None:
        if not self._is_here(target):
            self._real["link"](source, target, **options)
            return
        self._point("link")
        target = os.path.abspath(target)
        self._real["link"](source, target)
        self._flushed[target] = self._flushed.get(os.path.abspath(source), os.path.getsize(target))
        self._undo.append((os.path.dirname(target), lambda: self._remove(target)))
        self._point("linked")

    def _unlink(self, path, **options) -> None:
        if options.get("dir_fd") is not None or not self._is_here(path):
            self._real["unlink"](path, **options)
            return
        self._point("unlink")
        path = os.path.abspath(path)
        old = Path(path).read_bytes() if os.path.isfile(path) else None
        self._real["unlink"](path)
        self._undo.append((os.path.dirname(path), lambda: self._restore(path, old)))

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor if isinstance(descriptor, int) else descriptor.fileno()}")
        if not self._is_here(path) and path != self._folder:
            self._real["fsync"](descriptor)
            return
        self._point("fsync")
        if os.path.isdir(path):
            self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
        elif os.path.exists(path):
            self._flushed[path] = os.path.getsize(path)

    def _truncate(self, path, length: int) -> None:
        if self._is_here(path):
            self._point("truncate")
        self._real["truncate"](path, length)
        if self._is_here(path):
            path = os.path.abspath(path)
            self._flushed[path] = min(length, self._flushed.get(path, length))

    def _forget(self) -> None:
        for _, undo in reversed(self._undo):
            if self._rng.random() < 0.5:
                with suppress(OSError):
                    undo()
        for path, flushed in self._flushed.items():
            with suppress(OSError):
                size, fate = os.path.getsize(path), self._rng.choice(("kept", "cut", "zeroed"))
                if size <= flushed or fate == "kept":
                    continue
                self._real["truncate"](path, self._rng.randint(flushed, size))
                if fate == "zeroed":
                    # The length reached the disk, and the bytes did not.
                    self._real["truncate"](path, size)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._real["unlink"](path)

    def _restore(self, path: str, content: bytes | None) -> None:
        if content is None:
            self._remove(path)
            return
        # Not into a file that may have another name, too.
        self._remove(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, content)
        os.close(descriptor)
        self._flushed[path] = len(content)


class _File:
    """A file that is open for writing; every write of it is a point."""

    def __init__(self, file, disk: Disk, path: str) -> None:
        self._file, self._disk, self._path = file, disk, path

    def write(self, data) -> int:
        def partly() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        with self._disk._lock:
            self._disk._point("write", partly)
            return self._file.write(data)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __iter__(self):
        return iter(self._file)

    def __getattr__(self, name: str):
        return getattr(self._file, name)
