"""The lock that allows one writer at a time for each program under `save_path`.

The lock is a file that says who holds it. Slurm or the kernel says whether the
holder still runs. So the lock of a dead process is taken over, on any file
system, and a requeued job gets its own lock back.
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
    """The process that holds a lock.

    job, restart: its Slurm job and how often that was requeued. started: its start in the kernel's clock ticks.
    """

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
    """The lock file of a program, taken on creation. Raises `UserError`, naming the holder, if another holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder = _this_process()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as file:
            _refuse(_read(file), path)
            self._write(file)

    def check(self) -> None:
        """Raise `RuntimeError` if another process took the lock: Slurm lost this node and runs the job elsewhere.

        If the file was removed, it is written again.
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
    """Raise `UserError`, naming the holder, if another holds the lock; does not take it."""
    if path.exists():
        with _opened(path) as file:
            _refuse(_read(file), path)


def _refuse(other: Holder | None, path: Path) -> None:
    if other is not None and _is_alive(other, _this_process(), path):
        raise UserError(
            f"save_path: {path.parent} is being written by {other}; wait for it, stop it, or choose another save_path"
        )


def _this_process() -> Holder:
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Holder(_user(), socket.gethostname(), pid, _started(pid) or 0, since, queries.job_id(), queries.restarts())


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Open the lock file, for one process at a time if the file system supports flock."""
    while True:
        with open(path, "a+") as file:
            # Without flock, two starts at the same moment could both take the lock; nothing else depends on it.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # The holder may have removed the file between our open and flock.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                yield file
                return


def _read(file: IO[str]) -> Holder | None:
    text = file.read()
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None  # Empty: just created, or its writer died before writing.


def _is_alive(holder: Holder, us: Holder, path: Path) -> bool:
    if holder.job is not None and holder.job == us.job:
        # Slurm has ended an earlier start of this job, even if its processes linger.
        return holder.restart == us.restart and _runs(holder, us)
    if holder.job is None:
        return _runs(holder, us)
    try:
        for _ in range(60):
            state = queries.state(holder.job)
            if state != "COMPLETING":
                break
            time.sleep(1)  # The job has ended; Slurm is stopping its last processes.
    except queries.SlurmError as error:
        raise UserError(
            f"save_path: {path.parent} was last written by {holder}, and Slurm does not say whether that still "
            f"runs ({error}); if it does not, remove {path}"
        ) from None
    return state in queries.LIVE_STATES


def _runs(holder: Holder, us: Holder) -> bool:
    """Whether the holder's process runs; assumed so on another machine, where we cannot tell."""
    return holder.host != us.host or _started(holder.pid) == holder.started


def _started(pid: int) -> int | None:
    """When a process started, to tell it from a later one with the same id; None if it does not run."""
    try:
        # The command's name, in brackets, may contain spaces and brackets.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        return str(os.getuid())
