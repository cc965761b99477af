"""A run: its stages, the programs that run them, and where each writes under `save_path`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from os import pathsep
from pathlib import Path
from typing import Any

from vitas.errors import UserError
from vitas.files import make_folder

# Where `vitas` lies, and beside it the packages of the stages.
_HOME = Path(__file__).resolve().parents[1]


def load(place: str) -> Any:
    """What a text `module:name` names in this project, also where the working folder has a package of that name.

    Raises `UserError` where another package of that name was loaded before.
    """
    module, _, name = place.partition(":")
    package = module.partition(".")[0]
    # Only while it is loaded, and the rest of its package with it: programs that a user runs keep their own path.
    sys.path.insert(0, str(_HOME))
    try:
        found = import_module(module)
    finally:
        sys.path.remove(str(_HOME))
    if not Path(found.__file__ or "").resolve().is_relative_to(_HOME / package):
        raise UserError(f"the package {package} is loaded from {found.__file__}, and not from {_HOME / package}")
    return getattr(found, name)


def environment_for_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python -m search` and the like are this project's, whatever the working folder holds.

    Python before 3.11 looks into the working folder first all the same.
    """
    path = environment.get("PYTHONPATH")
    paths = [str(_HOME), *(path.split(pathsep) if path else [])]
    return {**environment, "PYTHONSAFEPATH": "1", "PYTHONPATH": pathsep.join(dict.fromkeys(paths))}


@dataclass(frozen=True)
class Stage:
    """A stage: its name, and so its section of the YAML.

    program: `python -m PROGRAM` runs it.
    home: the folder under `save_path` that it writes to.
    functions: for each `method` of the section, the `module:function` that runs it, taking (RunConfig, World). Text,
        so that `vitas` imports no stage, and nothing is loaded before the configuration is checked.
    nodes: how many it asks Slurm for by default.
    """

    name: str
    program: str
    home: str
    functions: dict[str, str]
    nodes: int = 2

    def function(self, method: str = "") -> Callable[..., object]:
        """Import and return the function that runs the stage."""
        function: Callable[..., object] = load(self.functions[method])
        return function


# In the order in which they run.
STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "search", "search", "search", {"supernet": "search.search:search", "asvit": "search.asvit.search:search"}
        ),
        Stage("sample", "search", "search", {"": "search.sample:sample"}),
        Stage("retrain", "retrain", "retrain", {"": "retrain.retrain:retrain"}),
        Stage("test", "inference", "retrain", {"": "inference.test:test"}, nodes=1),
    )
}


# For keys of the YAML that hold names from a stage's registry: that registry, `module:dict`. The modules load no torch.
_REGISTRIES = {
    "sample.objectives": "search.objectives:OBJECTIVES",
    "search.subnets.draw": "search.subnets:DRAWS",
    "search.subnets.together": "search.subnets:TOGETHER",
}


def offered_by(key: str) -> Mapping[str, Any]:
    """The registry whose names a key of the YAML may hold."""
    registry: Mapping[str, Any] = load(_REGISTRIES[key])
    return registry


# What `vitas` offers of the programs beside their stages, `module:name`: commands that load no torch; and what
# `vitas space --measure` runs.
EXPORT = "inference.commands:export"
PREDICT = "inference.commands:predict"
MEASURE_COST = "search.cost:measure"


def stages_of(program: str) -> tuple[str, ...]:
    """The stages that a program runs, in order."""
    return tuple(name for name, stage in STAGES.items() if stage.program == program)


def _home(name: str) -> str:
    """The folder that a stage, or the first stage of a program, writes to."""
    return STAGES[name if name in STAGES else stages_of(name)[0]].home


def _with_job(name: str, job: str | None) -> str:
    return f"{name}-{job}" if job else name


# The endings of what stages write line by line, or anew with more lines: scores, measurements, results, architectures.
_RECORDS = (".jsonl", ".json", ".yaml")


# In the folder of a start: how it ended.
END = "end.json"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files; the only place that knows the layout under `save_path`.

    `sample` writes into the folder of `search`, and `test` into that of
    `retrain`. A program's files are in the folder of its first stage.
    """

    root: Path

    def checkpoints(self, stage: str) -> Path:
        return self.root / _home(stage) / "checkpoint"

    def events(self, stage: str) -> Path:
        return self.root / _home(stage) / "events"

    def metrics(self, stage: str) -> Path:
        """The numbers of a stage, as `vitas.report.metrics` writes them."""
        return self.root / _home(stage) / "metrics" / f"{stage}.csv"

    def log(self, stage: str, job: str | None) -> Path:
        """The log of a stage: one file per Slurm job, and one for all starts without Slurm."""
        return self.root / _home(stage) / "log" / f"{_with_job(stage, job)}.log"

    def start(self, program: str, job: str | None) -> Path:
        """The folder for what a start of a program leaves: its configuration, environment, errors and requeues."""
        return self.root / _home(program) / "log" / _with_job(program, job)

    def starts(self) -> list[Path]:
        """The configurations that programs wrote when they started, in no order."""
        homes = sorted({stage.home for stage in STAGES.values()})
        return [path for home in homes for path in (self.root / home / "log").glob("*/config.yaml")]

    def end(self, program: str, job: str | None) -> Path:
        """How the last start of a program in a job, or without one, ended: its exit code and message."""
        return self.start(program, job) / END

    def bad_images(self, stage: str) -> Path:
        """The bad images that a stage, or another of the same folder, has found; one a line, with the reason."""
        return self.root / _home(stage) / "bad_images.txt"

    def bad_steps(self, stage: str) -> Path:
        """The steps of a stage whose gradients were not finite."""
        return self.root / _home(stage) / "bad_steps.txt"

    def lock(self, program: str) -> Path:
        """The lock file: one process or job at a time writes for a program."""
        return self.root / _home(program) / f"{program}.lock"

    def check_writable(self) -> None:
        """Make the folder. Raises `UserError` where it cannot be made or written to."""
        make_folder(self.root, "save_path")

    def progress(self) -> str:
        """A text that changes when any stage has got on: a new checkpoint, or a line more of records or results.

        Whatever lies in the stages' folders counts, so that no stage can be forgotten here. Lines are counted, because
        a start that gets no further may open a journal, cut a half-written line off it, or write results anew.
        """
        facts = []
        for home in sorted({stage.home for stage in STAGES.values()}):
            folder = self.root / home
            records = (path for ending in _RECORDS for path in folder.glob(f"*{ending}"))
            facts += [(path.name, path.read_bytes().count(b"\n")) for path in records]
            facts += [(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*.pth.tar")]
        return sha256(repr(sorted(facts)).encode()).hexdigest()[:16]

    @property
    def pretrained(self) -> Path:
        """What the pretrained network is that the supernet starts from."""
        return self.root / "search" / "pretrained.yaml"

    @property
    def pretrained_weights(self) -> Path:
        """That network's weights, in the order of importance."""
        return self.root / "search" / "pretrained.pth.tar"

    @property
    def exports(self) -> Path:
        return self.root / "export"

    @property
    def front(self) -> Path:
        """What a search with several objectives found, by its objectives."""
        return self.root / "search" / "front.yaml"

    @property
    def latency(self) -> Path:
        """What each kind of layer takes on the run's device."""
        return self.root / "search" / "latency.jsonl"

    @property
    def seen(self) -> Path:
        """What the supernet's training saw."""
        return self.root / "search" / "seen.yaml"

    @property
    def panel(self) -> Path:
        """The scores of the panel while the supernet trains."""
        return self.root / "search" / "panel.jsonl"

    @property
    def population(self) -> Path:
        return self.root / "search" / "population.jsonl"

    @property
    def topologies(self) -> Path:
        """As-ViT's scores of topologies."""
        return self.root / "search" / "topologies.jsonl"

    @property
    def growth(self) -> Path:
        """As-ViT's scores of the candidates of each growth step."""
        return self.root / "search" / "growth.jsonl"

    @property
    def speeds(self) -> Path:
        """Measured images per second of each architecture, where the search needs them."""
        return self.root / "search" / "speeds.jsonl"

    @property
    def architectures(self) -> Path:
        return self.root / "search" / "architectures.yaml"

    @property
    def results(self) -> Path:
        return self.root / "retrain" / "results.json"

    @property
    def predictions(self) -> Path:
        """What the network of `results` said of each test image."""
        return self.root / "retrain" / "predictions.npz"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.root / "report.html"
