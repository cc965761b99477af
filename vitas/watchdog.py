"""Notices within minutes that a rank has stopped, says which, and ends the job. Nothing here imports torch.

In training all ranks go step by step together, so when one stops, all do. In scoring each takes the next piece of work
when it is free, and in the end all wait for the last one. A thread in each rank watches the steps of its own. When none
has come for too long, it writes a file beside those of the other ranks: they tell a rank that waits from one that
hangs, and a rank without a file is stopped, or cut off. Then the rank ends its process, and the launcher (srun,
torchrun) ends the others.

Watching is per process, so this module keeps its state in a global variable. A program `start`s it; without that, as
in a world of one process, `watching`, `beat` and `patient` do nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# The limit where none is given: so many times the slowest step seen, within bounds, in seconds.
SLOW_STEPS, SHORTEST, LONGEST = 10, 120.0, 1800.0
# A file of a rank that was last written so many seconds ago is no answer any more.
FRESH_SECONDS = 15.0
# The thread of a process that was stopped itself, as by `scontrol suspend`, wakes so many seconds late.
LATE_SECONDS = 5.0
# The modules that a rank is in while it waits for others; some collectives run within the backward pass.
_COLLECTIVES = ("torch.distributed", "torch.autograd", "vitas.distributed", "vitas.work_queue")


class _Watch:
    """What a rank is at.

    at: when its last step ended, by the monotonic clock; None before the first.
    apart: whether other ranks may get on while one does not.
    """

    def __init__(self, what: str, apart: bool) -> None:
        self.what, self.apart = what, apart
        self.at: float | None = None
        self.step: int | None = None
        self.slowest: float | None = None


class _Watchdog:
    """The thread of a rank, and its files. See `start` for the arguments."""

    def __init__(
        self, folder: Path, rank: int, hosts: Sequence[str], limit: float | None, end: Callable[[str, bool], None]
    ) -> None:
        self.watch: _Watch | None = None
        self.patience: str | None = None
        self._folder, self._rank, self._hosts, self._limit, self._end = folder, rank, hosts, limit, end
        self._tick = min(1.0, (limit or SHORTEST) / 10)
        # Time for the others to answer.
        self._grace = max(2.0, min(15.0, (limit or SHORTEST) / 4))
        self._main, self._stopped, self._has_answered = threading.get_ident(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(5)

    def _run(self) -> None:
        while self._sleeps_on_time():
            with suppress(OSError):  # The file system does not answer; the others have a file less.
                self._look()

    def _sleeps_on_time(self) -> bool:
        """Wait a moment; whether to go on. If the process itself was stopped meanwhile, its clocks start anew."""
        before = time.monotonic()
        if self._stopped.wait(self._tick):
            return False
        watch, now = self.watch, time.monotonic()
        if now - before > self._tick + LATE_SECONDS and watch is not None and watch.at is not None:
            watch.at = now
        return True

    def _look(self) -> None:
        # The main thread changes it at any moment.
        watch = self.watch
        if watch is None:
            # Ranks watch together, so none waits for this one; the file system has other things to do.
            self._withdraw()
            return
        at = watch.at
        if at is None or self.patience:
            if self._is_asked():
                self._answer(busy=True)
            else:
                self._withdraw()
            return
        idle, limit = time.monotonic() - at, self._limit_of(watch)
        if idle < min(limit / 2, SHORTEST / 2):
            if watch.apart and self._is_asked():
                self._answer(gets_on=True)
            else:
                self._withdraw()
            return
        if idle < limit and not self._is_asked():
            self._withdraw()
            return
        asked = time.monotonic()
        while self.watch is watch and watch.at == at and not self.patience:
            # Written again and again: it says that this rank lives, and makes a network file system look for others'.
            self._answer()
            if not self._sleeps_on_time():
                return
            now = time.monotonic()
            if now - at < limit:
                asked = now
            elif now - asked >= self._grace:
                self._judge(watch, now - at)

    def _limit_of(self, watch: _Watch) -> float:
        if self._limit is not None:
            return self._limit
        return LONGEST if watch.slowest is None else min(LONGEST, max(SHORTEST, SLOW_STEPS * watch.slowest))

    def _file(self, rank: int, asks: bool = True) -> Path:
        """The file of a rank that waits; or of one that is busy or gets on, which asks no other for an answer."""
        return self._folder / f"rank_{rank}{'' if asks else '.busy'}"

    def _is_asked(self) -> bool:
        """Whether another rank waits."""
        return any(path != self._file(self._rank) for path in self._folder.glob("rank_*[0-9]"))

    def _answer(self, busy: bool = False, gets_on: bool = False) -> None:
        frame, watch = sys._current_frames().get(self._main), self.watch
        about = {
            "host": socket.gethostname(),
            "step": watch and watch.step,
            "what": watch and watch.what,
            "busy": (self.patience or "prepares") if busy else None,
            "gets_on": gets_on,
            "waits": frame is not None and frame.f_globals.get("__name__", "").startswith(_COLLECTIVES),
            "at": frame and f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})",
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        asks = not (busy or gets_on)
        path = self._file(self._rank, asks)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(about) + "\n")
        os.replace(temporary, path)
        self._file(self._rank, not asks).unlink(missing_ok=True)
        self._has_answered = True

    def _withdraw(self) -> None:
        if self._has_answered:
            self._has_answered = False
            for asks in (False, True):
                self._file(self._rank, asks).unlink(missing_ok=True)
            with suppress(OSError):
                self._folder.rmdir()

    def _judge(self, watch: _Watch, idle: float) -> None:
        """End the job, with a message that names who keeps it, unless a rank says that it is busy."""
        answers = self._answers()
        if any(answer["busy"] for answer in answers.values()) and idle < LONGEST:
            return
        # Who waits for a rank that gets on has no reason to complain; who hangs beside it has.
        if any(answer["gets_on"] for answer in answers.values()) and answers.get(self._rank, {}).get("waits"):
            return
        limit = "null" if self._limit is None else f"{self._limit:g}"
        verdict = _verdict(answers, self._hosts, watch)
        message = f"error: no step of {watch.what} for {idle:.0f} s: {verdict} (stall_seconds is {limit})"
        speaks = True
        try:
            # Ranks have limits of their own; the first to come to a verdict tells it.
            with open(self._folder / "verdict", "x") as file:
                file.write(message + "\n")
        except FileExistsError:
            speaks = False
            # The first process to end has the others ended.
            time.sleep(3)
        self._end(message, speaks)

    def _answers(self) -> dict[int, dict[str, Any]]:
        """What each rank has written lately, by rank. Their clock is the file system's."""
        now = self._file(self._rank).stat().st_mtime
        found = {}
        for rank, asks in itertools.product(range(len(self._hosts)), (True, False)):
            with suppress(OSError, ValueError), open(self._file(rank, asks)) as file:
                if now - os.fstat(file.fileno()).st_mtime < FRESH_SECONDS:
                    found[rank] = json.load(file)
        return found


def _verdict(answers: dict[int, dict[str, Any]], hosts: Sequence[str], watch: _Watch) -> str:
    """Which ranks keep the others, in words."""
    silent = [rank for rank in range(len(hosts)) if rank not in answers]
    if silent:
        names = _listed([f"rank {rank} on {hosts[rank]}" for rank in silent])
        return (
            f"{names} does not answer, as when it is stopped or cut off from the others and the files; its last step "
            f"is {watch.step}, or the one before or after"
        )
    # A rank that has not come as far; else one that does something instead of waiting.
    least = min((answer["step"] or 0) for answer in answers.values())
    behind = [rank for rank, answer in answers.items() if (answer["step"] or 0) == least]
    if len(behind) == len(answers):
        behind = [rank for rank in behind if not answers[rank]["waits"]]
    if 0 < len(behind) < len(answers):
        names = _listed([_described(rank, answers[rank]) for rank in behind])
        return f"{names}; the others wait"
    names = _listed([_described(rank, answer) for rank, answer in answers.items()])
    return f"no rank is behind the others, as when the network between them is cut: {names}"


def _described(rank: int, answer: dict[str, Any]) -> str:
    return f"rank {rank} on {answer['host']} is after step {answer['step']}, in {answer['at']}"


def _listed(names: list[str]) -> str:
    return "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else "")


_watchdog: _Watchdog | None = None


def start(folder: Path, rank: int, hosts: Sequence[str], limit: float | None, end: Callable[[str, bool], None]) -> None:
    """Watch this rank from now on.

    folder: for the files of ranks that wait; all ranks must see it.
    hosts: of all ranks.
    limit: seconds without a step; None is ten times the slowest step seen, 2 to 30 minutes, and 30 before two are seen.
    end: (message, whether this rank is the one to tell it) -> None; must end the process.
    """
    global _watchdog
    stop()
    _watchdog = _Watchdog(folder, rank, hosts, limit, end)


def stop() -> None:
    """Watch no longer."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.stop()
        _watchdog = None


def forget(folder: Path) -> None:
    """Remove the files that ranks of an earlier start left."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def watching(what: str, apart: bool = False) -> Iterator[None]:
    """Within it all ranks `beat`, and are watched from the first beat on.

    what: for messages, e.g. a stage. apart: whether ranks get on each by itself, not all together.
    """
    dog = _watchdog
    if dog is None:
        yield
        return
    outer, dog.watch = dog.watch, _Watch(what, apart)
    try:
        yield
    finally:
        _rewind(outer)
        dog.watch = outer


def beat(step: int) -> None:
    """A step is done. Costs a look at the clock."""
    watch = _watchdog and _watchdog.watch
    if watch:
        now = time.monotonic()
        if watch.at is not None:
            watch.slowest = max(watch.slowest or 0.0, now - watch.at)
        watch.step, watch.at = step, now


@contextmanager
def patient(why: str) -> Iterator[None]:
    """Within it, this rank may take its time (half an hour), and tells the others that wait for it so."""
    dog = _watchdog
    if dog is None:
        yield
        return
    outer, dog.patience = dog.patience, why
    try:
        yield
    finally:
        _rewind(dog.watch)
        dog.patience = outer


def _rewind(watch: _Watch | None) -> None:
    """Let a watch begin its next step now."""
    if watch is not None and watch.at is not None:
        watch.at = time.monotonic()
