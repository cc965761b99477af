"""Stopping in good order: on a signal, or shortly before the job's time limit.

Slurm tells a job that it is preempted, or about to end, by a signal to every
process. A stage asks `requested` between its steps; once it says yes, on every
rank at the same step, the stage writes what it has and raises `Interrupted`.
Signals belong to the process, and so does what this module remembers of them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitas import slurm
from vitas.errors import number_from_environment

if TYPE_CHECKING:
    from vitas.distributed import World

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again.
EXIT_CODE = 75

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_TIME_LIMIT = 1000  # beyond every signal's number

_received = 0
_deadline: float | None = None
_pending: tuple | None = None
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
    job = slurm.job_id()
    try:
        limit = slurm.time_limit(job) if job else None
    except slurm.SlurmError:
        limit = None
    margin = number_from_environment("VITAS_STOP_MARGIN")
    if limit is not None:
        margin = min(120, limit.whole / 5) if margin is None else margin
        _deadline = time.monotonic() + limit.left - margin


def guard(check: Callable[[], None]) -> None:
    """Have `check` called, on the rank that sets it, every few seconds; it raises where the run may not go on."""
    global _guard
    last = time.monotonic()

    def now_and_then() -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            check()
            last = time.monotonic()

    _guard = now_and_then


def requested(world: World, at_once: bool = False) -> str | None:
    """Why the stage is to stop, or None. Every rank must call it at the same points, and all get one answer.

    The ranks agree by a reduction that runs beside the next step: the answer is
    the one of the call before, so no step waits. With `at_once` it is today's.
    """
    global _pending
    if _guard:
        _guard()
    code = _received or (_TIME_LIMIT if _deadline is not None and time.monotonic() > _deadline else 0)
    if world.size > 1:
        import torch
        import torch.distributed as dist

        agreed = _answer(_pending)
        flag = torch.tensor(code)
        _pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag)
        if at_once:
            agreed = max(agreed, _answer(_pending))
            _pending = None
        code = agreed
    if not code:
        return None
    return "the time limit" if code == _TIME_LIMIT else signal.Signals(code).name


def settle() -> None:
    """Let a reduction that is still under way come to its end, before the process group goes."""
    global _pending
    _answer(_pending)
    _pending = None


def _answer(pending: tuple | None) -> int:
    if pending is None:
        return 0
    work, flag = pending
    work.wait()
    return int(flag)


def _remember(number: int, frame: object) -> None:
    global _received
    if number == signal.SIGINT:
        if _received == signal.SIGINT:
            raise KeyboardInterrupt
        # os.write, since print may not be entered twice, which a signal can do.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
    _received = number
