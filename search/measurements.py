"""What is measured of candidates, each once, by all ranks together, and journalled before it is used."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from vitas import interruption
from vitas.distributed import World, barrier, broadcast, gather
from vitas.errors import UserError
from vitas.files import Journal
from vitas.interruption import Interrupted
from vitas.report import Report, shown_path

Candidate = TypeVar("Candidate", bound=Hashable)
Value = TypeVar("Value")


class Measurements(Generic[Candidate, Value]):
    """One value of each candidate, in a journal that a restart goes on from.

    path: the journal. Its first line is `origin`, each other one the record of a candidate.
    origin: plain data about what the values depend on.
    read: record -> candidate and value.
    noun: what the values are called, as in "goes on from 12 scores".

    values: by candidate.

    Raises `UserError` for a journal of another origin.
    """

    def __init__(
        self,
        path: Path,
        origin: dict,
        read: Callable[[dict], tuple[Candidate, Value]],
        noun: str,
        report: Report,
        world: World,
    ) -> None:
        self._noun, self._report, self._world = noun, report, world
        self._journal = Journal(path) if world.is_main else None
        lines = broadcast(self._journal.lines if self._journal else None, world)
        if not lines:
            if self._journal:
                self._journal.append(origin)
        elif lines[0] != origin:
            differing = [name for name in {**origin, **lines[0]} if origin.get(name) != lines[0].get(name)]
            raise UserError(
                f"{path} holds {noun} made with another {' and another '.join(differing)}; "
                "move it away, or choose another save_path"
            )
        self.values: dict[Candidate, Value] = dict(map(read, lines[1:]))
        if self.values:
            report.line(f"goes on from {len(self.values)} {noun} in {shown_path(path)}")

    def of(
        self,
        candidates: Sequence[Candidate],
        measure: Callable[[Candidate], Value],
        record: Callable[[Candidate, Value], dict],
        ranks: int,
    ) -> list[Value]:
        """The values of candidates, in order; new ones are measured, whole ones on `ranks` ranks in waves.

        record: what the journal holds of a candidate; `read` is its inverse.

        Raises `Interrupted` after a wave, which is then in the journal.
        """
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self.values]
        for start in range(0, len(new), ranks):
            wave = new[start : start + ranks]
            own = measure(wave[self._world.rank]) if self._world.rank < len(wave) else None
            values = gather(own, self._world)[: len(wave)]
            if self._journal:
                # Before anything may stop this process: no value is lost, and none is measured twice.
                self._journal.append(*(record(*pair) for pair in zip(wave, values, strict=True)))
            self.values |= dict(zip(wave, values, strict=True))
            if reason := interruption.requested(self._world, at_once=True):
                self._report.line(f"stops after {len(self.values)} {self._noun}, which are saved ({reason})")
                self._report.close()
                barrier(self._world)
                raise Interrupted(reason)
        return [self.values[candidate] for candidate in candidates]
