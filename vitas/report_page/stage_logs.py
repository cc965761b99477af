"""What the logs of a run say of its stages: when each ran, whether it is done, what failed and went on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vitas.run import STAGES, RunFolder

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (\w+): (.*)")
# How a stage's last line begins when it is done; a test runs every stage and compares.
_DONE = {
    "search": ("the supernet is in", "grew ", "all "),
    "sample": ("best: ",),
    "retrain": ("the network is in", "all "),
    "test": ("results are in",),
}
# Words of lines that tell of a fault, or of going on after one.
_EVENTS = re.compile(
    r"resumes |stops after|goes back to|leaves out|bad image,|gradients are not finite|is damaged|passed over|"
    r"not written yet|ends after epoch|are exhausted|goes on with|has no room|page is not written"
)
# At most so many lines of a start come before the one that says from where it resumes.
_LINES_BEFORE = 11
# Of one log; a training that is followed closely may have very many lines.
_MOST_EVENTS, _MOST_BYTES = 60, 64 * 2**20


@dataclass
class StageLog:
    """A stage as its logs tell it.

    seconds: that it ran, without the time between a stop and the start that resumed.
    events: the lines that tell of faults and of going on, (time, text); `left_out` more there are.
    """

    stage: str
    began: datetime
    ended: datetime
    last: str
    seconds: float = 0.0
    starts: int = 1
    jobs: set[str] = field(default_factory=set)
    events: list[tuple[datetime, str]] = field(default_factory=list)
    left_out: int = 0

    @property
    def is_done(self) -> bool:
        return self.last.startswith(_DONE[self.stage])


def read_stage_logs(folder: RunFolder) -> dict[str, StageLog]:
    """What the logs say of each stage that has one, in the stages' order."""
    found: dict[str, StageLog] = {}
    for name in STAGES:
        # STAGE.log, and STAGE-JOB.log of each job.
        paths = [folder.log(name, None), *folder.log(name, None).parent.glob(f"{name}-[0-9]*.log")]
        lines = sorted(
            ((at, text, path.stem[len(name) + 1 :], of) for path in paths for at, of, text in _lines(path)),
            key=lambda line: line[0],
        )
        gaps: list[float] = []
        for at, text, job, of in lines:
            log = found.setdefault(name, StageLog(name, at, at, text))
            gaps = [*gaps[-_LINES_BEFORE:], (at - log.ended).total_seconds()]
            log.seconds += gaps[-1]
            if "resumes " in text:
                # A start says other things first; the longest silence before this line is the one between the two.
                log.starts += 1
                log.seconds -= max(gaps)
                gaps = []
            log.ended = at
            if of == name:
                # The report has its line here too.
                log.last = text
            log.jobs |= {job} - {""}
            if _EVENTS.search(text):
                if len(log.events) < _MOST_EVENTS:
                    log.events.append((at, text))
                else:
                    log.left_out += 1
    return found


def _lines(path: Path) -> Iterator[tuple[datetime, str, str]]:
    """When, of which stage, and what."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        while (line := file.readline(2**16)) and file.tell() < _MOST_BYTES:
            match = _LINE.match(line.decode(errors="replace").rstrip("\n"))
            if match:
                try:
                    yield datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S"), match[2], match[3]
                except ValueError:
                    continue
