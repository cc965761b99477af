"""Kill a stage, again and again, and see that its results are those of an undisturbed run."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from tests.faults.disk import Disk
from tests.faults.stages import End, Target


@dataclass
class Count:
    """What came of injected faults.

    seconds: of each start that followed one, until it ended.
    """

    injected: int = 0
    lost: int = 0
    wrong: int = 0
    hung: int = 0
    tracebacks: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        if len(self.examples) < 5:
            self.examples.append(what)

    @property
    def failures(self) -> int:
        return self.lost + self.wrong + self.hung + self.tracebacks + self.refused


def calls_of(target: Target, stage: str) -> dict[str, int]:
    """The calls that change files which a stage makes, undisturbed: how many of each kind."""
    target.reset(stage)
    path = target.folder / "calls"

    def prepare() -> None:
        disk = Disk(target.run)
        disk.install()
        exit_now = os._exit

        def exit_and_tell(code: int) -> None:
            path.write_text(" ".join(disk.calls))
            exit_now(code)

        os._exit = exit_and_tell

    assert target.start(stage, prepare).code == 0
    return Counter(path.read_text().split())


def kill_stage(target: Target, stage: str, kills: int, forgets: bool, seed: int) -> Count:
    """Kill a stage until `kills` kills happened: inside random calls, some at random moments; compare every end."""
    count, rng = Count(), random.Random(seed)
    calls = calls_of(target, stage)
    target.reset(stage)
    deaths = 0
    while count.injected < kills or deaths:
        # Sometimes the start after a kill is killed too.
        again = count.injected < kills and (deaths == 0 or rng.random() < 0.3)
        # By kind first: most calls are the writes of one checkpoint. Numbered by kind: threads take turns as they like.
        kind = rng.choice(list(calls))
        kill_at = rng.randint(1, calls[kind]) if again else None
        after = rng.uniform(0, 1.0) if again and not forgets and rng.random() < 0.3 else None
        chosen = None if after is not None else kill_at
        draws = rng.randrange(2**32)
        disk = partial(Disk, target.run, chosen, forgets, draws, kind)
        end = target.start(stage, lambda disk=disk: disk().install(), after)
        if deaths:
            count.seconds.append(end.seconds)
        if end.code == -9:
            count.injected += 1
            deaths += 1
            continue
        judge(end, target, stage, count)
        deaths = 0
        target.reset(stage)
    return count


def judge(end: End, target: Target, stage: str, count: Count) -> None:
    """Compare the end of a start that was not killed."""
    if end.is_hung:
        count.hung += 1
        count.note(f"{stage} hangs: {end.output[-2000:]}")
    elif end.has_traceback:
        count.tracebacks += 1
        count.note(f"{stage}: {end.output[-2000:]}")
    elif end.code != 0:
        count.refused += 1
        count.note(f"{stage} ends with {end.code}: {end.output[-2000:]}")
    else:
        found, wanted = target.results(stage), target.undisturbed[stage]
        if found != wanted:
            count.wrong += 1
            differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            count.note(f"{stage}: differs in {differing}: {found.get(differing[0])!r} and {wanted.get(differing[0])!r}")
