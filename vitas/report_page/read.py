"""`RunRecord`: all that a run's folder holds at this moment that a page can show.

A run may be half done, or have failed anywhere; files may be missing, half-written or broken. What cannot be read
becomes a note on the page, never an error.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vitas.architecture import Architecture
from vitas.asvit.genotype import Genotype
from vitas.catalog import AnyArchitecture, parse_architecture, read_found
from vitas.errors import UserError, is_integer, require_integer, require_number, require_text
from vitas.journal import read_journal
from vitas.plain_data import parse_json, read_text, read_yaml
from vitas.predictions import Predictions
from vitas.report_page.figure import shown
from vitas.report_page.stage_logs import StageLog, read_stage_logs
from vitas.run import STAGES, RunFolder

Read = TypeVar("Read")
# Points of a curve; more are not seen, and make a page slow.
MOST_POINTS = 1000
# Rows of a file of metrics that are read.
_MOST_ROWS = 5_000_000


@dataclass(frozen=True)
class Start:
    """A start of a program. config: with all defaults. environment: code, machine and job.

    requeues: the job's, as the supervisor wrote them. errors: (file, last line) of ranks that ended with one.
    """

    program: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    requeues: Sequence[Mapping[str, Any]]
    errors: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Scored:
    """A subnet that the search scored. rung: how; `unseen` is a finalist's score on images no choice was made by."""

    architecture: Architecture
    top1: float
    loss: float | None
    generation: int
    macs: int
    macs_released: int | None
    parameters: int
    rung: str


@dataclass(frozen=True)
class Topology:
    """As-ViT's scores of a genotype, the mean over its initialisations."""

    genotype: Genotype
    length_distortion: float
    ntk_condition: float


@dataclass
class RunRecord:
    """What a run's folder holds.

    curves: of each stage, by name: (step, epoch, value).
    origin: of the pretrained network that the supernet started from.
    panel: (epoch, subnet, top-1). seen: as `search/seen.yaml` has it.
    notes: what is there and cannot be read, and why.
    """

    folder: RunFolder
    name: str
    starts: list[Start] = field(default_factory=list)
    logs: dict[str, StageLog] = field(default_factory=dict)
    curves: dict[str, dict[str, list[tuple[int, float | None, float]]]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    panel: list[tuple[int, str, float]] = field(default_factory=list)
    seen: Mapping[str, Any] = field(default_factory=dict)
    scored: list[Scored] = field(default_factory=list)
    searched_on: int | None = None
    found: dict[str, AnyArchitecture] = field(default_factory=dict)
    topologies: list[Topology] = field(default_factory=list)
    results: Mapping[str, Any] | None = None
    predictions: Predictions | None = None
    bad_images: dict[str, int] = field(default_factory=dict)
    bad_steps: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def setting(self, key: str, program: str | None = None) -> Any:
        """A value of the resolved configuration, by its dotted key, of the last start (of a program); None without."""
        for start in reversed(self.starts):
            if program in (None, start.program) and start.config:
                found: Any = start.config
                for part in key.split("."):
                    found = found.get(part) if isinstance(found, Mapping) else None
                if found is not None:
                    return found
        return None

    @property
    def size(self) -> tuple[int, int] | None:
        """Image size and classes, where the run says them."""
        for found in (
            (self.setting("model.image_size"), self.setting("model.num_classes")),
            (self.origin.get("image_size"), self.origin.get("num_classes")),
        ):
            image_size, classes = found
            if is_integer(image_size) and is_integer(classes) and min(image_size, classes) > 0:
                return image_size, classes
        return None

    def costs(self, architecture: AnyArchitecture) -> tuple[int, int] | None:
        """MACs and parameters of an architecture on the run's images, where these are known."""
        if self.size is None:
            return None
        try:
            architecture.check_image_size(self.size[0])
            return architecture.macs(*self.size), architecture.parameters(*self.size)
        except UserError:
            # Its patches do not tile these images.
            return None

    @property
    def is_asvit(self) -> bool:
        return bool(self.topologies) or self.setting("search.method", "search") == "asvit"

    @property
    def is_elastic(self) -> bool:
        return self.folder.pretrained.exists()


def read_run(path: Path) -> RunRecord:
    """All that a run's folder holds. Raises `UserError` where no stage has ever written to it."""
    homes = sorted({stage.home for stage in STAGES.values()})
    if not any((path / home).is_dir() for home in homes):
        raise UserError(f"{path} holds no run: it has neither {' nor '.join(f'{home}/' for home in homes)}")
    run = RunRecord(RunFolder(path), shown(path.resolve().name or str(path)))
    folder = run.folder

    def attempt(what: Path, read: Callable[[Path], Read]) -> Read | None:
        if not what.exists():
            return None
        try:
            return read(what)
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            told = str(error) if isinstance(error, UserError) else f"{what} cannot be read ({error})"
            run.notes.append(told)
            return None

    run.starts = sorted(_starts(folder, attempt), key=lambda start: str(start.environment.get("started", "")))
    run.logs = attempt(path, lambda _: read_stage_logs(folder)) or {}
    for stage in STAGES:
        run.curves[stage] = attempt(folder.metrics(stage), read_metrics) or {}
        for kind, lines in (("bad_images", folder.bad_images(stage)), ("bad_steps", folder.bad_steps(stage))):
            if count := attempt(lines, lambda path: path.read_bytes().count(b"\n")):
                getattr(run, kind)[STAGES[stage].home] = count
    run.origin = attempt(folder.pretrained, lambda path: _mapping(_mapping_of_yaml(path).get("origin"), path)) or {}
    run.panel = attempt(folder.panel, _read_panel) or []
    run.seen = attempt(folder.seen, _mapping_of_yaml) or {}
    searched = attempt(folder.population, _read_population)
    if searched:
        run.searched_on, run.scored = searched
    run.found = attempt(folder.architectures, read_found) or {}
    run.topologies = attempt(folder.topologies, _read_topologies) or []
    run.results = attempt(folder.results, _read_results)
    run.predictions = attempt(folder.predictions, Predictions.read)
    if run.predictions and run.results and not _belong_together(run.predictions, run.results):
        run.notes.append(f"{folder.predictions} is of another test than {folder.results.name}; `test` writes both anew")
        run.predictions = None
    return run


def _starts(folder: RunFolder, attempt: Callable[..., Any]) -> Iterator[Start]:
    for program in dict.fromkeys(stage.program for stage in STAGES.values()):
        alone = folder.start(program, None)
        for place in [alone, *sorted(alone.parent.glob(f"{program}-[0-9]*"))]:
            if place.is_dir():
                yield Start(
                    program,
                    place,
                    attempt(place / "config.yaml", _mapping_of_yaml) or {},
                    attempt(place / "environment.json", _mapping_of_json) or {},
                    attempt(place / "requeues.jsonl", read_journal) or [],
                    [found for path in sorted(place.glob("rank_*.err")) if (found := attempt(path, _last_line))],
                )


def _last_line(path: Path) -> tuple[str, str] | None:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2**14))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return (path.name, lines[-1][:500]) if lines else None


def _mapping_of_yaml(path: Path) -> Mapping[str, Any]:
    return _mapping(read_yaml(path), path)


def _mapping_of_json(path: Path) -> Mapping[str, Any]:
    return _mapping(parse_json(read_text(path), str(path)), path)


def _mapping(data: object, path: Path) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{path} must hold a mapping of keys")
    return data


def read_metrics(path: Path) -> dict[str, list[tuple[int, float | None, float]]]:
    """The curves of a file of metrics by name, each as (step, epoch, value); of long ones, evenly spread points.

    A line that is not whole yet, or no number, is left out. Of a step that is there twice the last counts.
    """
    found: dict[str, dict[int, tuple[float | None, float]]] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number > _MOST_ROWS:
                break
            try:
                step, value = int(row["step"]), float(row["value"])
                epoch = float(row["epoch"]) if row["epoch"] else None
            except (KeyError, ValueError, TypeError):
                continue
            if row["name"] and math.isfinite(value):
                found.setdefault(row["name"], {})[step] = epoch, value
    return {name: thinned([(s, *curve[s]) for s in sorted(curve)]) for name, curve in found.items()}


def thinned(points: list[Read], most: int = MOST_POINTS) -> list[Read]:
    """At most so many of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


@contextmanager
def _naming(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: line {number}: {error}") from None


def _read_panel(path: Path) -> list[tuple[int, str, float]]:
    found = []
    for number, line in enumerate(read_journal(path)[1:], 2):
        with _naming(path, number):
            subnet = str(Architecture.parse(line.get("architecture")).compact())  # type: ignore[arg-type]  # checks it
            found.append(
                (require_integer(line.get("epoch"), "epoch"), subnet, require_number(line.get("top1"), "top1", 0, 100))
            )
    return found


def _read_population(path: Path) -> tuple[int | None, list[Scored]]:
    lines = read_journal(path)
    found = []
    for number, line in enumerate(lines[1:], 2):
        with _naming(path, number):
            loss, released = line.get("loss"), line.get("macs_released")
            found.append(
                Scored(
                    Architecture.parse(line.get("architecture")).compact(),  # type: ignore[arg-type]  # checks it
                    require_number(line.get("top1"), "top1", 0, 100),
                    None if loss is None else require_number(loss, "loss"),
                    require_integer(line.get("generation", 0), "generation"),
                    require_integer(line.get("macs"), "macs"),
                    None if released is None else require_integer(released, "macs_released"),
                    require_integer(line.get("parameters"), "parameters"),
                    require_text(line.get("rung", "supernet"), "rung"),
                )
            )
    images = lines[0].get("images") if lines else None
    return (images if is_integer(images) else None), found


def _read_topologies(path: Path) -> list[Topology]:
    """In the order in which they were scored first."""
    scores: dict[Genotype, list[tuple[float, float]]] = {}
    for number, line in enumerate(read_journal(path)[1:], 2):
        with _naming(path, number):
            genotype = Genotype.parse(line.get("architecture"))  # type: ignore[arg-type]  # checks it
            distortion, condition = line.get("length_distortion"), line.get("ntk_condition")
            pair = (
                math.nan if distortion is None else require_number(distortion, "length_distortion"),
                math.inf if condition is None else require_number(condition, "ntk_condition"),
            )
            scores.setdefault(genotype, []).append(pair)
    return [
        Topology(genotype, *(sum(values) / len(values) for values in zip(*pairs, strict=True)))
        for genotype, pairs in scores.items()
    ]


def _read_results(path: Path) -> Mapping[str, Any]:
    results = _mapping_of_json(path)
    for row in [results, *results.get("checkpoints", [])]:
        for key in ("top1", "top5", "loss"):
            require_number(row.get(key), f"{path}: {key}")
        parse_architecture(require_text(row.get("architecture"), f"{path}: architecture"))
    return results


def _belong_together(predictions: Predictions, results: Mapping[str, Any]) -> bool:
    right = predictions.right()
    same = all(predictions.about.get(key) == results.get(key) for key in ("checkpoint", "weights", "architecture"))
    return same and len(right) > 0 and abs(100 * right.mean() - results["top1"]) < 0.5
