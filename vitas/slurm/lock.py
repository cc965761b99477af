"""The lock that allows one writer at a time for each program under `save_path`.

The lock is a file that says who holds it. Slurm or the kernel says whether the
holder still runs; where neither can, as on another machine or in another
container, a holder that lives touches the file every few seconds. So the lock
of a dead process is taken over, on any file system, and a requeued job gets its
own lock back. A holder that only slept finds it gone before it writes again: it
writes while it has the lock file to itself (`Lock.held`, for
`vitas.files.guard_writes`), and nobody takes the lock over meanwhile.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from vitas.errors import UserError
from vitas.files import this_machine
from vitas.slurm import queries

TOUCH_SECONDS = 10.0
# A lock that nobody has touched for so long is free, where nothing else says whether its holder lives.
FREE_SECONDS = 60.0
# How long to wait for flock. Who holds it asks Slurm for a minute at most, unless it was stopped meanwhile.
_FLOCK_SECONDS = 90.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    job, restart: its Slurm job and how often that was requeued. started: its start in the kernel's clock ticks.
    machine: the boot of the kernel and the process namespace that `pid` and `started` are of; empty for an earlier
        version, which does not touch its lock.
    """

    user: str
    host: str
    pid: int
    started: int
    since: str
    job: str | None = None
    restart: int = 0
    machine: str = ""

    def __str__(self) -> str:
        who = f"Slurm job {self.job}" if self.job else f"process {self.pid}"
        return f"{who} of {self.user} on {self.host}, since {self.since}"


class Lock:
    """The lock file of a program, taken on creation and touched from then on.

    Raises `UserError`, naming the holder and the file, if another holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder = _this_process()
        self._released, self._touching = threading.Event(), threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path) as file:
            _refuse(_read(file), path)
            self._write(file)
        threading.Thread(target=self._keep_touching, name="lock", daemon=True).start()

    def _keep_touching(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            # Where the file system does not answer for a moment, the next touch may come in time.
            with self._touching, suppress(OSError, UserError):
                if self._released.is_set() or not self._touch():
                    return

    def _touch(self) -> bool:
        """Touch the file if it is still this process's; whether it is."""
        with _opened(self._path) as file:
            holder = _read(file)
            if holder == self._holder:
                os.utime(self._path)
            return holder in (None, self._holder)

    def check(self) -> None:
        """Raise `RuntimeError` if another process took the lock: Slurm lost this node and runs the job elsewhere.

        If the file was removed, it is written again.
        """
        with self.held():
            pass

    @contextmanager
    def held(self) -> Iterator[None]:
        """`check`, and within it nobody else can take the lock, if the file system supports flock."""
        with _opened(self._path) as file:
            holder = _read(file)
            if holder is None:
                self._write(file)
            elif holder != self._holder:
                raise RuntimeError(f"{self._path} was taken over by {holder}; this process stops")
            yield

    def _write(self, file: IO[str]) -> None:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(asdict(self._holder)) + "\n")
        file.flush()
        os.fsync(file.fileno())

    def release(self) -> None:
        self._released.set()
        with self._touching, _opened(self._path) as file:
            if _read(file) == self._holder:
                self._path.unlink()


def check_free(path: Path) -> None:
    """Raise `UserError`, naming the holder, if another holds the lock; does not take it."""
    if path.exists():
        with _opened(path) as file:
            _refuse(_read(file), path)


def peek(path: Path) -> tuple[Holder, bool | None] | None:
    """Who holds a lock and whether that one still runs, without touching it; None where nobody holds it.

    Whether a Slurm job runs is Slurm's to say; None where Slurm does not.
    """
    try:
        with open(path, errors="replace") as file:
            holder = _read(file)
    except OSError:
        return None
    if holder is None:
        return None
    if holder.job is None:
        return holder, _runs(holder, _this_process(), path)
    try:
        return holder, queries.state(holder.job) in queries.LIVE_STATES
    except queries.SlurmError:
        return holder, None


def _refuse(other: Holder | None, path: Path) -> None:
    us = _this_process()
    if other is None or not _is_alive(other, us, path):
        return
    message = (
        f"save_path: {path.parent} is being written by {other}; wait for it, stop it, or choose another save_path. "
        f"Its lock, {path}, was touched {_age(path):.0f} s ago"
    )
    if other.job is None and not _is_of(other, us):
        after = (
            f"is free when nobody has touched it for {FREE_SECONDS:.0f} s" if other.machine else "is yours to remove"
        )
        message += f"; if that process has ended, it {after}"
    raise UserError(message)


def _this_process() -> Holder:
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    place = _user(), socket.gethostname(), pid, _started(pid) or 0
    return Holder(*place, since, queries.job_id(), queries.restarts(), this_machine())


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Open the lock file, for one process at a time if the file system supports flock.

    Raises `UserError` for a file that cannot be opened, or that another process does not let go of.
    """
    while True:
        try:
            # Whatever lies there instead of a lock is read, and then no lock.
            file = open(path, "a+", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"save_path: its lock, {path}, cannot be opened: {error.strerror}") from None
        with file:
            _flock(file, path)
            # The holder may have removed the file between our open and flock.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                try:
                    yield file
                finally:
                    # Closing does not suffice: a loader's worker that was forked meanwhile has it open too.
                    with suppress(OSError):
                        file.flush()
                        fcntl.flock(file, fcntl.LOCK_UN)
                return


def _flock(file: IO[str], path: Path) -> None:
    """Without flock, two starts at the same moment could both take the lock; nothing else depends on it."""
    end = time.monotonic() + _FLOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(
                    f"save_path: its lock, {path}, is kept open by a process that does not let go of it, as one that "
                    "was stopped while it wrote; end that process, or choose another save_path"
                ) from None
            time.sleep(0.01)
        except OSError:
            return


def _read(file: IO[str]) -> Holder | None:
    """Who holds the lock; None for a file that is no lock.

    It is empty when just created, torn where its writer died, or damaged: a holder that lives writes it again.
    """
    try:
        data = json.loads(file.read(65536))
        # A later version may write more.
        holder = Holder(**{field.name: data[field.name] for field in fields(Holder) if field.name in data})
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = holder.pid, holder.started, holder.restart
    texts = holder.user, holder.host, holder.since, holder.machine, holder.job or ""
    if not all(isinstance(each, int) for each in numbers) or not all(isinstance(each, str) for each in texts):
        return None
    return holder if holder.job is None or holder.job.isdigit() else None


def _is_alive(holder: Holder, us: Holder, path: Path) -> bool:
    if holder.job is not None and holder.job == us.job:
        # Slurm has ended an earlier start of this job, even if its processes linger.
        return holder.restart == us.restart and _runs(holder, us, path)
    if holder.job is None:
        return _runs(holder, us, path)
    try:
        for _ in range(60):
            state = queries.state(holder.job)
            if state != "COMPLETING":
                break
            time.sleep(1)  # The job has ended; Slurm is stopping its last processes.
    except queries.SlurmError as error:
        raise UserError(
            f"save_path: {path.parent} was last written by {holder}, and Slurm does not say whether that still "
            f"runs ({error}); if it does not, remove {path}, which was touched {_age(path):.0f} s ago"
        ) from None
    return state in queries.LIVE_STATES


def _is_of(holder: Holder, us: Holder) -> bool:
    """Whether the holder is of this machine and container, so that its process id says something here."""
    return holder.host == us.host and holder.machine in ("", us.machine)


def _runs(holder: Holder, us: Holder, path: Path) -> bool:
    """Whether the holder's process runs; where we cannot see it, whether it has touched its lock lately."""
    if _is_of(holder, us):
        return _started(holder.pid) == holder.started
    return not holder.machine or _age(path) < FREE_SECONDS


def _age(path: Path) -> float:
    """The seconds since the lock was last touched, by the clock of its file system: machines' clocks differ."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as probe:
            probe.write(b"now")
            probe.flush()
            os.fsync(probe.fileno())
            return max(0.0, os.stat(probe.name).st_mtime - path.stat().st_mtime)
    except OSError:
        return 0.0


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
