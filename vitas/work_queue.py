"""A queue of work: each rank takes the next unit when it is free, and results come together on rank 0 as they are made.

It lives in the store of the ranks' rendezvous, which counts for all of them. Ranks use a connection of their own to it:
the process group's is locked while a rank waits for an answer, and NCCL's threads use that one.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch.distributed as dist

from vitas import distributed
from vitas.distributed import World, barrier

Result = TypeVar("Result")

# Added to the tickets of a queue that is closed: more than any queue has units.
_CLOSED = 2**40
# Every rank makes the same queues in the same order.
_numbers = itertools.count()
_store: dist.Store | None = None


class WorkQueue(Generic[Result]):
    """Units 0 to `count` - 1, taken in this order, each by one of the first `ranks` ranks.

    Every rank makes the queue, `take`s until it gets None and `put`s a result for each unit that it took. Rank 0 also
    calls `ready` now and then, and `rest` in the end.
    """

    def __init__(self, count: int, world: World, ranks: int) -> None:
        self._count, self._world, self._takes = count, world, world.rank < ranks
        self._is_closed = False
        self._tickets = itertools.count()
        # On rank 0, its own results, and how many of the others' it has read.
        self._own: list[tuple[int, Result]] = []
        self._read = self._returned = 0
        self._shared = dist.PrefixStore(f"queue {next(_numbers)}", _connection()) if world.size > 1 else None

    def take(self) -> int | None:
        """The next unit; None if all are taken, or the queue is closed."""
        if not self._takes:
            return None
        ticket = self._shared.add("taken", 1) - 1 if self._shared else next(self._tickets)
        self._is_closed |= ticket >= _CLOSED
        self._takes = not self._is_closed and ticket < self._count
        return ticket if self._takes else None

    def put(self, unit: int, result: Result) -> None:
        """Hand over the result of a unit that this rank took."""
        if self._shared is None or self._world.is_main:
            self._own.append((unit, result))
        else:
            number = self._shared.add("done", 1)
            self._shared.set(f"result {number}", pickle.dumps((unit, result)))  # type: ignore[arg-type]  # it takes bytes

    def close(self) -> None:
        """Have no rank take a unit any more; those that are taken are still to be done."""
        self._is_closed, self._takes = True, False
        if self._shared:
            self._shared.add("taken", _CLOSED)

    def ready(self) -> list[tuple[int, Result]]:
        """For rank 0: the units and results that came since it last asked."""
        done = self._shared.add("done", 0) if self._shared else 0
        found, self._own = [*self._own, *(self._next() for _ in range(self._read, done))], []
        self._returned += len(found)
        return found

    def rest(self) -> Iterator[list[tuple[int, Result]]]:
        """For every rank, once it gets no unit: on rank 0, results as the others' last units end."""
        if self._world.is_main:
            yield self.ready()
            # Of a closed queue nobody knows yet which units were taken.
            while self._returned < self._count and not self._is_closed:
                self._returned += 1
                yield [self._next()]
        barrier(self._world)
        if self._world.is_main:
            yield self.ready()
            if self._shared:
                for counter in ("taken", "done"):
                    self._shared.delete_key(counter)

    def _next(self) -> tuple[int, Result]:
        """The next result of another rank; waits for it."""
        assert self._shared
        self._read += 1
        key = f"result {self._read}"
        found: tuple[int, Result] = pickle.loads(self._shared.get(key))
        self._shared.delete_key(key)
        return found


def _connection() -> dist.Store:
    global _store
    if _store is None:
        _store = distributed.connect_to_store()
    return _store
