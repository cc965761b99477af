"""Worker processes of data loaders: how many there are, and that they end however the iteration ends.

Batches depend on neither. By default there are as many workers as the rank has cores for, but no more than have work:
a process that decodes a few small images has done so before it could start another.

Workers of a stage ignore signals (`vitas.slurm.signals.ignore`), so they do not end when Python, at its exit, asks them
to with SIGTERM; and then Python waits for them, for ever. This happens after every exception that is shown with its
traceback, because the traceback keeps the iterators. And a worker whose program was killed notices that within seconds,
but before it ends it would wait until somebody takes the batches that it has made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data import DataLoader

from vitas.distributed import cores
from vitas.slurm import signals

# Of a rank, by default: each holds batches in memory that are ready.
_MOST = 16
# A worker is started for so many images at least. The smallest are decoded and augmented in a tenth of a second, in
# which a process starts.
_IMAGES_OF_A_WORKER = 256

_running: list[Iterator[Any]] = []


def start(worker: int) -> None:
    """The `worker_init_fn` of loaders whose workers end with an interrupted program."""
    # Of priority 0 it comes before the queue's, which waits.
    Finalize(None, _end_if_alone, (os.getppid(),), exitpriority=0)


def start_in_stage(worker: int) -> None:
    """The `worker_init_fn` of a stage's loaders: a stage ends when it chooses to, and needs its workers until then."""
    signals.ignore()
    start(worker)


def _end_if_alone(program: int) -> None:
    if os.getppid() != program:
        os._exit(1)


def number_of_workers(asked: int | None, images: int, computes: bool = False) -> int:
    """How many processes shall decode images: as many as asked for, or by default what the rank has cores for.

    images: how many are decoded, of this rank. computes: whether the rank itself needs a core meanwhile.
    """
    if asked is not None:
        return asked
    return max(0, min(cores() - computes, images // _IMAGES_OF_A_WORKER, _MOST))


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader. Its workers are gone when the last was taken, or this generator is closed."""
    batches = iter(loader)
    _running.append(batches)
    try:
        yield from batches
    finally:
        _end(batches)


@contextmanager
def ending_workers() -> Iterator[None]:
    """When what is within it ends, by an exception too, the workers of all loaders are gone."""
    try:
        yield
    finally:
        for batches in list(_running):
            _end(batches)


def _end(batches: Iterator[Any]) -> None:
    if batches not in _running:
        return
    _running.remove(batches)
    # A loader without workers has none of this. They get five seconds for what they are at.
    workers = getattr(batches, "_workers", [])
    # A worker that was killed breaks the loader's queues; the others must go all the same.
    with suppress(Exception):
        getattr(batches, "_shutdown_workers", lambda: None)()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join(5)
