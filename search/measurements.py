"""Numbers that are measured of architectures, each once, by all ranks together, and journalled before they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vitas import interruption
from vitas.distributed import World, barrier, broadcast, gather
from vitas.errors import UserError
from vitas.files import Journal
from vitas.interruption import Interrupted
from vitas.report import Report, shown_path
from vitas.space import Architecture


class Measurements:
    """One number of each architecture, in a journal that a restart goes on from.

    path: the journal. Its first line is `origin`, each other one the record of an architecture.
    origin: plain data about what the numbers depend on.
    key: of the number in a record.
    noun: what the numbers are called, as in "goes on from 12 scores".

    values: the numbers, by architecture (identities last: one network is one entry).

    Raises `UserError` for a journal of another origin.
    """

    def __init__(self, path: Path, origin: dict, key: str, noun: str, report: Report, world: World) -> None:
        self._key, self._noun, self._report, self._world = key, noun, report, world
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
        self.values = {Architecture.parse(line["architecture"]): line[key] for line in lines[1:]}
        if self.values:
            report.line(f"goes on from {len(self.values)} {noun} in {shown_path(path)}")

    def of(
        self,
        architectures: Sequence[Architecture],
        measure: Callable[[Architecture], float],
        facts: Callable[[Architecture], dict],
        ranks: int,
    ) -> list[float]:
        """The numbers of architectures, in order; new ones are measured, whole ones on `ranks` ranks in waves.

        facts: more of what a record tells.

        Raises `Interrupted` after a wave, which is then in the journal.
        """
        architectures = [architecture.shifted() for architecture in architectures]
        new = [a for a in dict.fromkeys(architectures) if a not in self.values]
        for start in range(0, len(new), ranks):
            wave = new[start : start + ranks]
            own = wave[self._world.rank] if self._world.rank < len(wave) else None
            numbers = gather(measure(own) if own else None, self._world)[: len(wave)]
            if self._journal:
                # Before anything may stop this process: no number is lost, and none is measured twice.
                self._journal.append(
                    *({"architecture": str(a), self._key: n} | facts(a) for a, n in zip(wave, numbers, strict=True))
                )
            self.values |= dict(zip(wave, numbers, strict=True))
            if reason := interruption.requested(self._world, at_once=True):
                self._report.line(f"stops after {len(self.values)} {self._noun}, which are saved ({reason})")
                self._report.close()
                barrier(self._world)
                raise Interrupted(reason)
        return [self.values[a] for a in architectures]
