"""Work on many files in several processes: the results in the files' order, and no process left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Parts that are given to each process before their results are asked for: these are held in memory.
_AHEAD = 3


def in_order(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], processes: int, chunk: int
) -> Iterator[Result]:
    """What `work`, a function of a module, makes of the items, in their order; it is given `chunk` of them at once.

    A single process is this one.
    """
    chunks = (items[start : start + chunk] for start in range(0, len(items), chunk))
    if processes == 1:
        for part in chunks:
            yield from work(part)
        return
    # Of its own, whatever threads this process has.
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_end_with_parent) as pool:
        waiting: deque[Future[Sequence[Result]]] = deque()
        try:
            waiting.extend(pool.submit(work, part) for part in islice(chunks, processes * _AHEAD))
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(work, part) for part in islice(chunks, 1))
                yield from found
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end when the one that started it was killed. Ctrl-C is for that one alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
