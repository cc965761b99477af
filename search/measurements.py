"""Measurements of candidates: each is made once, by whichever ranks are free, and journalled before its use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vitas import distributed, watchdog
from vitas.distributed import World, barrier, broadcast
from vitas.errors import UserError
from vitas.journal import Journal, read_records
from vitas.report import Report, shown_path
from vitas.slurm import signals
from vitas.slurm.signals import Interrupted
from vitas.work_queue import WorkQueue

Candidate = TypeVar("Candidate", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class InPieces(Generic[Candidate, Value]):
    """How a value is measured in pieces, of which several ranks may do one each.

    It is always the same `count` pieces, however many ranks there are, so that sums are the same to the bit.

    measure: (candidate, index of the piece) -> plain data. combine: (those of all pieces, in order) -> the value.
    """

    count: int
    measure: Callable[[Candidate, int], Any]
    combine: Callable[[list[Any]], Value]


class MeasurementJournal(Generic[Candidate, Value]):
    """Measures a value per candidate, and keeps the values in a file from which a restart resumes.

    path: the file. Its first line is `origin`, every other line the record of a candidate.
    origin: plain data that the values depend on.
    read: record -> (candidate, value). Raises `UserError` for a record that `write` does not write.
    write: (candidate, value) -> record.
    noun: what to call the values in messages, e.g. "scores".
    unsaid: names in `origin` that files of earlier versions do not have.

    known: the values by candidate.

    Raises `UserError` for a file of another origin, and with the line for a record that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        origin: dict,
        read: Callable[[dict], tuple[Candidate, Value]],
        write: Callable[[Candidate, Value], dict],
        noun: str,
        report: Report,
        world: World,
        unsaid: Collection[str] = (),
    ) -> None:
        self._write, self._noun, self._report, self._world = write, noun, report, world
        self._file = Journal(path) if world.is_main else None
        lines = broadcast(self._file.lines if self._file else None, world)
        if not lines:
            if self._file:
                self._file.append(origin)
        else:
            origin = {name: value for name, value in origin.items() if name not in unsaid or name in lines[0]}
        if lines and lines[0] != origin:
            differing = [name for name in {**origin, **lines[0]} if origin.get(name) != lines[0].get(name)]
            raise UserError(
                f"{path} holds {noun} made with another {' and another '.join(differing)}; "
                "move it away, or choose another save_path"
            )
        self.known: dict[Candidate, Value] = dict(read_records(path, lines[1:], read, first=2))
        self._forget_lines()
        if self.known:
            report.line(f"resumes from {len(self.known)} {noun} in {shown_path(path)}")

    def _forget_lines(self) -> None:
        # `known` has what they say, in a fraction of the memory.
        if self._file:
            self._file.lines.clear()

    def measure(
        self,
        candidates: Sequence[Candidate],
        how: Callable[[Candidate], Value] | InPieces[Candidate, Value],
        ranks: int,
    ) -> list[Value]:
        """The values of candidates, in order. New ones, or their pieces, are taken in this order by `ranks` ranks.

        Raises `Interrupted` once a rank is asked to stop and all have done what they were at; the file then has all
        values so far.
        """
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self.known]
        if not new:
            return [self.known[candidate] for candidate in candidates]
        pieces = how if isinstance(how, InPieces) else InPieces(1, lambda c, _: how(c), lambda values: values[0])
        units = [(candidate, piece) for candidate in new for piece in range(pieces.count)]
        queue: WorkQueue[Any] = WorkQueue(len(units), self._world, ranks)
        writer = _InOrder(new, pieces, self._save)
        with watchdog.watching(self._noun, apart=True):
            while True:
                unit = queue.take()
                # By the unit that a rank is at, others see whether it is behind.
                watchdog.beat(len(units) if unit is None else unit)
                if unit is None:
                    break
                queue.put(unit, pieces.measure(*units[unit]))
                if signals.stop_code():
                    queue.close()
                if self._world.is_main:
                    writer.add(queue.ready())
            for results in queue.rest():
                writer.add(results)
            self.known |= broadcast(writer.values, self._world)
            if reason := distributed.stop_requested(self._world, at_once=True):
                self._report.line(f"stops after {len(self.known)} {self._noun}, which are saved ({reason})")
                self._report.close()
                barrier(self._world)
                raise Interrupted(reason)
        return [self.known[candidate] for candidate in candidates]

    def _save(self, values: Mapping[Candidate, Value]) -> None:
        """On rank 0, at once: a value that is measured is not lost."""
        if self._file:
            self._file.append(*(self._write(*pair) for pair in values.items()))
            self._forget_lines()


class _InOrder(Generic[Candidate, Value]):
    """Saves values in the order of candidates, each as soon as it and those before it are measured.

    So the file is the same whichever rank measured what. values: those that are saved.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        pieces: InPieces[Candidate, Value],
        save: Callable[[Mapping[Candidate, Value]], None],
    ) -> None:
        self._candidates, self._pieces, self._save = candidates, pieces, save
        self._waiting: dict[int, Any] = {}
        self.values: dict[Candidate, Value] = {}

    def add(self, results: Iterable[tuple[int, Any]]) -> None:
        """Take up the results of units: piece p of candidate c is unit c * pieces + p."""
        self._waiting |= dict(results)
        count, found = self._pieces.count, {}
        for index in range(len(self.values), len(self._candidates)):
            units = range(index * count, (index + 1) * count)
            if not all(unit in self._waiting for unit in units):
                break
            found[self._candidates[index]] = self._pieces.combine([self._waiting.pop(unit) for unit in units])
        if found:
            self._save(found)
            self.values |= found
