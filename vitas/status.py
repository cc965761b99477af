"""How far a run is, by its files: which stages are done, what runs, what stopped it. No torch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitas.errors import UserError
from vitas.plain_data import parse_json, read_text
from vitas.run import END, STAGES, RunFolder
from vitas.run_files import recorded_configuration
from vitas.slurm import lock, queries
from vitas.slurm.signals import EXIT_CODE

NOT_STARTED, RUNNING, STOPPED, FAILED, DONE = "not started", "running", "stopped", "failed", "done"

# What is read of the end of a log.
_TAIL = 2**16
_STAMPED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (\w+): (.*)")
# The last line of a stage that is done.
_LAST_LINES = re.compile(
    r"the (?:supernet|network) is in |all \d+ epochs are done|ends after epoch|best: |grew \d+ networks|results are in "
)
_EPOCHS = re.compile(r"epoch ([\d.]+)/(\d+)  step (\d+)/(\d+) .*?(?:left (\d+):(\d\d):(\d\d))?$")
_GENERATION = re.compile(r"generation (\d+)/(\d+)  ")
_TOPOLOGIES = re.compile(r"(\d+)/(\d+) topologies")
_BEST = re.compile(r"best top-1 ([\d.]+)%")


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is.

    done, total: of `unit`. seconds_left: by its own pace; None where it is not known, or nothing runs.
    best: its best top-1 in percent: of `sample` a score on val images, of `test` the result.
    updated: when its log last grew, as Unix time.
    """

    name: str
    state: str
    done: float = 0
    total: float = 0
    unit: str = ""
    seconds_left: float | None = None
    best: float | None = None
    updated: float | None = None

    def __str__(self) -> str:
        parts = [self.state]
        if self.total and self.state != DONE:
            parts.append(f"{self.done:g} of {self.total:g} {self.unit}")
        if self.best is not None:
            parts.append(f"best top-1 {self.best:.2f}%" if self.name != "test" else f"top-1 {self.best:.2f}%")
        return ", ".join(parts)


@dataclass(frozen=True)
class Status:
    """How far a run is.

    stages: those of its configuration, in order. job: the Slurm job of the last start, and what Slurm says of it.
    writer: who holds the run's lock, in words; None where nothing runs.
    error: what the last start that failed said; None where the last one did not fail.
    """

    save_path: str
    stages: tuple[StageStatus, ...]
    job: str | None = None
    job_state: str | None = None
    writer: str | None = None
    error: str | None = None
    image_size: int | None = None
    num_classes: int | None = None

    @property
    def summary(self) -> str:
        """The stage that matters, in a line."""
        begun = [stage for stage in self.stages if stage.state != NOT_STARTED]
        if not begun:
            return NOT_STARTED
        text = f"{begun[-1].name} {begun[-1]}"
        return f"{text}: {self.error}" if self.error else text

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def read_status(folder: RunFolder) -> Status:
    """How far a run is. Raises `UserError` for a folder that is not there."""
    if not folder.root.is_dir():
        raise UserError(f"{folder.root}: no such folder; it must be the save_path of a run")
    # A file that is just being written, or damaged, is no reason to say nothing.
    recorded: Mapping[str, Any] = {}
    with suppress(UserError):
        recorded = (recorded_configuration(folder) or (None, {}))[1]
    holders = {home: _holder(folder, home) for home in ("search", "retrain", "inference")}
    logs = {name: _Log.newest(folder, name) for name in STAGES}
    stages = []
    for name, stage in STAGES.items():
        settings = recorded.get(name)
        log = logs[name]
        if not isinstance(settings, Mapping) and log is None:
            continue
        # Of the stages of a program, the one whose log grew last.
        of_program = [
            each for other in STAGES.values() if other.program == stage.program and (each := logs[other.name])
        ]
        is_last = log is not None and log.updated == max(each.updated for each in of_program)
        holder = holders[stage.program]
        end = _end(folder, stage.program)
        settings = settings if isinstance(settings, Mapping) else {}
        stages.append(_stage(name, settings, log, holder if is_last else None, end if is_last else None, folder))
    start = _last_start(folder)
    job = start.get("slurm_job")
    live = [holder for holder in holders.values() if holder is not None and holder[1] is not False]
    model = recorded.get("model")
    model = model if isinstance(model, Mapping) else {}
    return Status(
        str(folder.root),
        tuple(stages),
        job if isinstance(job, str) else None,
        _job_state(job) if isinstance(job, str) else None,
        str(live[0][0]) if live else None,
        None if live else _last_error(folder, bool(stages) and stages[-1].state == DONE),
        model.get("image_size"),
        model.get("num_classes"),
    )


@dataclass(frozen=True)
class _Log:
    """The newest log of a stage. lines: (Unix time, text) of its end. updated: when it was last written to."""

    updated: float
    lines: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def newest(cls, folder: RunFolder, stage: str) -> _Log | None:
        home = folder.log(stage, None).parent
        # One a job, and one without: search-12.log is none of `search_x`.
        paths = [path for path in home.glob(f"{stage}*.log") if re.fullmatch(rf"{stage}(-\d+)?\.log", path.name)]
        if not paths:
            return None
        path = max(paths, key=lambda path: path.stat().st_mtime)
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
        stamped = (_STAMPED.match(line) for line in text.splitlines())
        lines = [(_unix(match[1]), match[3]) for match in stamped if match and match[2] == stage]
        return cls(path.stat().st_mtime, lines)

    def last(self, pattern: re.Pattern[str]) -> tuple[float, re.Match[str]] | None:
        return next(((when, found) for when, text in reversed(self.lines) if (found := pattern.match(text))), None)


def _unix(stamp: str) -> float:
    try:
        return time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S"))
    except (ValueError, OverflowError):
        return 0.0


def _stage(
    name: str,
    settings: Mapping[str, Any],
    log: _Log | None,
    holder: tuple[lock.Holder, bool | None] | None,
    end: Mapping[str, Any] | None,
    folder: RunFolder,
) -> StageStatus:
    """holder, end: of the stage's program, where the stage is what it ran last."""
    best = _best(name, folder)
    if log is None:
        return StageStatus(name, NOT_STARTED)
    runs = holder is not None and holder[1] is not False
    is_done = bool(log.lines) and bool(_LAST_LINES.match(log.lines[-1][1]) or (log.last(_LAST_LINES) and not runs))
    if is_done and not _is_raised(log, settings):
        state = DONE
    elif runs:
        state = RUNNING
    else:
        state = FAILED if end is not None and end["code"] not in (0, EXIT_CODE) else STOPPED
    done, total, unit, left = _progress(log)
    if best is None and (found := _last_best(log)) is not None:
        best = found
    return StageStatus(name, state, done, total, unit, left if state == RUNNING else None, best, log.updated)


def _is_raised(log: _Log, settings: Mapping[str, Any]) -> bool:
    """Whether the run's configuration asks for more epochs than the log says are done."""
    epochs = log.last(_EPOCHS)
    ended_early = any(text.startswith("ends after epoch") for _, text in log.lines)
    wanted = settings.get("epochs")
    return epochs is not None and not ended_early and isinstance(wanted, int) and int(epochs[1][2]) < wanted


def _progress(log: _Log) -> tuple[float, float, str, float | None]:
    """What is done, of how much, in which unit, and the seconds that are left by its pace."""
    if epochs := log.last(_EPOCHS):
        when, found = epochs
        left = None
        if found[5]:
            left = max(0.0, int(found[5]) * 3600 + int(found[6]) * 60 + int(found[7]) - (time.time() - when))
        return float(found[1]), float(found[2]), "epochs", left
    for pattern, unit in ((_GENERATION, "generations"), (_TOPOLOGIES, "topologies")):
        if last := log.last(pattern):
            when, found = last
            done, total = int(found[1]), int(found[2])
            first = next((at, match) for at, text in log.lines if (match := pattern.match(text)))
            # A resumed run goes through what it has already in no time.
            pace = (when - first[0]) / (done - int(first[1][1])) if done > int(first[1][1]) else None
            left = None if pace is None else max(0.0, pace * (total - done) - (time.time() - when))
            return done, total, unit, left
    return 0, 0, "", None


def _last_best(log: _Log) -> float | None:
    found = [match for _, text in log.lines if (match := _BEST.search(text))]
    return float(found[-1][1]) if found else None


def _best(name: str, folder: RunFolder) -> float | None:
    if name != "test" or not folder.results.exists():
        return None
    with suppress(UserError, TypeError, ValueError):
        results = parse_json(read_text(folder.results), str(folder.results))
        return float(results["top1"])  # type: ignore[index]
    return None


def _holder(folder: RunFolder, program: str) -> tuple[lock.Holder, bool | None] | None:
    return lock.peek(folder.lock(program))


def _end(folder: RunFolder, program: str) -> dict[str, Any] | None:
    """How the newest start of a program ended; None where it runs, or was killed."""
    starts = [path for path in folder.starts() if re.fullmatch(rf"{program}(-\d+)?", path.parent.name)]
    return _end_in(max(starts, key=lambda path: path.stat().st_mtime).parent) if starts else None


def _end_in(start: Path) -> dict[str, Any] | None:
    try:
        end = json.loads((start / END).read_text())
        return end if {"time", "code", "message"} <= end.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _last_error(folder: RunFolder, is_done: bool) -> str | None:
    """What the last start of a run said where it failed, or what ranks of it printed that were killed; else None.

    is_done: whether the run's last stage is; earlier versions left no word of that.
    """
    starts = sorted(folder.starts(), key=lambda path: path.stat().st_mtime)
    if not starts:
        return None
    start = starts[-1].parent
    end = _end_in(start)
    if end is not None:
        return None if end["code"] in (0, EXIT_CODE) else str(end["message"])
    if is_done:
        return None
    # Standard error of the ranks of a job, which ends with the traceback.
    for path in sorted(start.glob("rank_*.err"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError):
            if lines := path.read_bytes()[-_TAIL:].decode(errors="replace").strip().splitlines():
                return f"{path.name}: {lines[-1]}"
    return "the last start left no word: it was killed, or its machine went down; the same command resumes it"


def _last_start(folder: RunFolder) -> Mapping[str, Any]:
    """The environment of the run's last start."""
    paths = [path.with_name("environment.json") for path in folder.starts()]
    with suppress(OSError, ValueError):
        newest = max((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime)
        found = json.loads(newest.read_text())
        return found if isinstance(found, Mapping) else {}
    return {}


def _job_state(job: str) -> str | None:
    if not queries.installed():
        return None
    with suppress(queries.SlurmError, UserError):
        return queries.state(job) or "ended"
    return None
