"""Stopping in good order: on a signal, or shortly before the job's time limit.

Slurm tells a job that it is preempted, or about to end, by a signal to every
process. A stage asks `vitas.distributed.stop_requested` between its steps; once
all ranks agree, it writes what it has and raises `Interrupted`. Signals belong
to the process, and so does what this module remembers of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from vitas.errors import number_from_environment
from vitas.slurm import queries

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
EXIT_CODE = 75

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_TIME_LIMIT = 1000  # beyond every signal's number

_received = 0
_deadline: float | None = None
_guard: Callable[[], None] | None = None


class Interrupted(Exception):  # noqa: N818 (it is none)
    """A stage was asked to stop, and has written everything that it needs to go on."""


def listen() -> None:
    """From now on, remember signals instead of dying of them. A second Ctrl-C stops at once."""
    for number in SIGNALS:
        signal.signal(number, _remember)


def ignore(worker: int = 0) -> None:
    """For helper processes, as the `worker_init_fn` of a loader: they stop when their parent does.

    Slurm signals every process of a job, and without its workers a rank could not finish its step.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def watch_time_limit() -> None:
    """Stop some time before this job's time limit, if it has one. Called on rank 0.

    The margin is two minutes, or a fifth of a shorter limit, or `VITAS_STOP_MARGIN` seconds: a step, a
    score and a checkpoint must fit into it.
    """
    global _deadline
    job = queries.job_id()
    try:
        limit = queries.time_limit(job) if job else None
    except queries.SlurmError:
        limit = None
    margin = number_from_environment("VITAS_STOP_MARGIN")
    if limit is not None:
        margin = min(120, limit.whole / 5) if margin is None else margin
        _deadline = time.monotonic() + limit.left - margin


def guard(check: Callable[[], None] | None) -> None:
    """Have `check` called, on the rank that sets it, every few seconds; it raises where the run may not go on.

    None ends it.
    """
    global _guard
    last = time.monotonic()

    def now_and_then() -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            check()
            last = time.monotonic()

    _guard = now_and_then if check else None


def stop_code() -> int:
    """Why this process should stop, as a number for `reason`; 0 where it should not. The largest of several counts."""
    if _guard:
        _guard()
    return _received or (_TIME_LIMIT if _deadline is not None and time.monotonic() > _deadline else 0)


def reason(code: int) -> str | None:
    """What a `stop_code` means, for people; None for 0."""
    if not code:
        return None
    return "the time limit" if code == _TIME_LIMIT else signal.Signals(code).name


def _remember(number: int, frame: object) -> None:
    global _received
    if number == signal.SIGINT:
        if _received == signal.SIGINT:
            raise KeyboardInterrupt
        # os.write, since print may not be entered twice, which a signal can do.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
    _received = number
