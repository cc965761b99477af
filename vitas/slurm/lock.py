"""One writer at a time: the lock on what a program writes under `save_path`.

The lock is a file that says who holds it. Whether that one still lives is asked
of Slurm, or of the machine that it runs on; so a lock that a dead process left
is taken over, on any file system, and a requeued job finds its own again.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from vitas.errors import UserError
from vitas.slurm import queries


@dataclass(frozen=True)
class Holder:
    """A process that writes. job, restart: of Slurm. started: of the process, in the kernel's clock ticks."""

    user: str
    host: str
    pid: int
    started: int
    since: str
    job: str | None = None
    restart: int = 0

    def __str__(self) -> str:
        who = f"Slurm job {self.job}" if self.job else f"process {self.pid}"
        return f"{who} of {self.user} on {self.host}, since {self.since}"


class Lock:
    """The right to write what a program writes. Raises `UserError`, naming the holder, where another has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder = _this_process()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as file:
            _refuse(_read(file), path)
            self._write(file)

    def check(self) -> None:
        """Raises `RuntimeError` if another has taken over: Slurm lost this node, and runs the job elsewhere.

        A lock that somebody removed is put back.
        """
        with _opened(self._path) as file:
            holder = _read(file)
            if holder is None:
                self._write(file)
        if holder not in (None, self._holder):
            raise RuntimeError(f"{self._path} was taken over by {holder}; this process stops")

    def _write(self, file: IO[str]) -> None:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(self._holder)) + "\n")
        file.flush()
        os.fsync(file.fileno())

    def release(self) -> None:
        with _opened(self._path) as file:
            if _read(file) == self._holder:
                self._path.unlink()


def check_free(path: Path) -> None:
    """Raises `UserError`, naming the holder, where another has the lock; takes nothing."""
    if path.exists():
        with _opened(path) as file:
            _refuse(_read(file), path)


def _refuse(other: Holder | None, path: Path) -> None:
    if other is not None and _lives(other, _this_process(), path):
        raise UserError(
            f"save_path: {path.parent} is being written by {other}; wait for it, stop it, or choose another save_path"
        )


def _this_process() -> Holder:
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Holder(_user(), socket.gethostname(), pid, _started(pid) or 0, since, queries.job_id(), queries.restarts())


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The lock file, read and written by one process at a time where the file system can see to that."""
    while True:
        with open(path, "a+") as file:
            # Without locks on this file system, two starts in the same moment could both win; else all holds.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # The holder may have removed the file between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                yield file
                return


def _read(file: IO[str]) -> Holder | None:
    text = file.read()
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None  # Empty: just made, or its writer died before it wrote.


def _lives(holder: Holder, us: Holder, path: Path) -> bool:
    if holder.job is not None and holder.job == us.job:
        # An earlier start of this job is over, as far as Slurm knows, even where its processes linger.
        return holder.restart == us.restart and _runs(holder, us)
    if holder.job is None:
        return _runs(holder, us)
    try:
        for _ in range(60):
            state = queries.state(holder.job)
            if state != "COMPLETING":
                break
            time.sleep(1)  # It has ended; its last processes are being stopped.
    except queries.SlurmError as error:
        raise UserError(
            f"save_path: {path.parent} was last written by {holder}, and Slurm does not say whether that still "
            f"runs ({error}); if it does not, remove {path}"
        ) from None
    return state in queries.LIVE_STATES


def _runs(holder: Holder, us: Holder) -> bool:
    """Whether the holder's process runs. Of another machine nobody can tell, so it is taken to run."""
    return holder.host != us.host or _started(holder.pid) == holder.started


def _started(pid: int) -> int | None:
    """When a process was started, which tells it from a later one of the same number; None if it does not run."""
    try:
        # The command's name stands in brackets and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        return str(os.getuid())
