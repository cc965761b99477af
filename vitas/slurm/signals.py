"""Stopping cleanly: on a signal, or shortly before the job's time limit.

Slurm signals every process of a job that it preempts or is about to end. A
stage asks `vitas.distributed.stop_requested` between its steps; once all ranks
agree, it saves its state and raises `Interrupted`. Signals are per process, so
this module keeps them in global variables.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from vitas.errors import number_from_environment
from vitas.slurm import queries

# Exit code of a program that stopped and can resume: EX_TEMPFAIL of sysexits.h.
EXIT_CODE = 75

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_TIME_LIMIT = 1000  # Larger than every signal's number.

_received = 0
_deadline: float | None = None
_guard: Callable[[], None] | None = None


class Interrupted(Exception):  # noqa: N818 (it is not an error)
    """A stage was asked to stop, and has saved all it needs to resume."""


def listen() -> None:
    """Record signals from now on, instead of ending. A second Ctrl-C ends the process at once."""
    for number in SIGNALS:
        signal.signal(number, _remember)


def ignore() -> None:
    """Ignore signals, as the workers of a data loader: Slurm signals every process, and a rank's step needs them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def watch_time_limit() -> None:
    """Request a stop some time before this job's time limit, if it has one. Called on rank 0.

    The margin is `VITAS_STOP_MARGIN` seconds; by default two minutes, or a fifth of a limit shorter
    than 10 minutes. A step, a score and two checkpoints, that of the last step and the one before it, must fit into it.
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
    """Have `stop_code` call `check` every few seconds on this rank; it raises if the run must not go on.

    None stops that.
    """
    global _guard
    if check is None:
        _guard = None
        return
    last = time.monotonic()

    def every_few_seconds() -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            check()
            last = time.monotonic()

    _guard = every_few_seconds


def stop_code() -> int:
    """Why this process should stop, as a number for `reason`; 0 if it should not. Ranks agree on the largest."""
    if _guard:
        _guard()
    return _received or (_TIME_LIMIT if _deadline is not None and time.monotonic() > _deadline else 0)


def reason(code: int) -> str | None:
    """A `stop_code` in words; None for 0."""
    if not code:
        return None
    return "the time limit" if code == _TIME_LIMIT else signal.Signals(code).name


def _remember(number: int, frame: object) -> None:
    global _received
    if number == signal.SIGINT:
        if _received == signal.SIGINT:
            raise KeyboardInterrupt
        # os.write, because a signal may arrive during a print, which is not reentrant.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
    _received = number
