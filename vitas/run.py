"""A run: its stages, the programs that run them, and where each writes under `save_path`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vitas.files import make_folder


@dataclass(frozen=True)
class Stage:
    """A stage: its name, and so its section of the YAML.

    program: `python -m PROGRAM` runs it.
    home: the folder under `save_path` that it writes to.
    functions: what runs it, as `module:function` taking (RunConfig, World), by the section's `method`. Text, so that
        this library imports no stage, and nothing is loaded before the configuration is known to be right.
    nodes: what it asks Slurm for where nobody says how many.
    """

    name: str
    program: str
    home: str
    functions: dict[str, str]
    nodes: int = 2

    def function(self, method: str = "") -> Callable:
        """The function that runs it; it loads the stage's module."""
        module, _, name = self.functions[method].partition(":")
        return getattr(import_module(module), name)


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


# What a key of the YAML may hold, where a stage's own registry says it (`module:dict`); those modules load no torch.
_REGISTRIES = {"sample.objectives": "search.objectives:OBJECTIVES"}


def offered_by(key: str) -> Mapping[str, object]:
    """The registry of a stage whose names a key of the YAML may hold."""
    module, _, name = _REGISTRIES[key].partition(":")
    return getattr(import_module(module), name)


def stages_of(program: str) -> tuple[str, ...]:
    """The stages that a program runs, in order."""
    return tuple(name for name, stage in STAGES.items() if stage.program == program)


def _home(name: str) -> str:
    """The folder of a stage, or of a program: where its first stage writes."""
    return STAGES[name if name in STAGES else stages_of(name)[0]].home


def _of_job(name: str, job: str | None) -> str:
    return f"{name}-{job}" if job else name


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie: the one place that knows the layout under `save_path`.

    The `sample` stage writes beside `search`, and `test` beside `retrain`; a
    program's files lie where its first stage writes.
    """

    root: Path

    def checkpoints(self, stage: str) -> Path:
        return self.root / _home(stage) / "checkpoint"

    def events(self, stage: str) -> Path:
        return self.root / _home(stage) / "events"

    def log(self, stage: str, job: str | None) -> Path:
        """The lines of a stage: one file for each Slurm job, and one for all starts without Slurm."""
        return self.root / _home(stage) / "log" / f"{_of_job(stage, job)}.log"

    def start(self, program: str, job: str | None) -> Path:
        """The folder that says how a program was started: its configuration, environment, errors, requeues."""
        return self.root / _home(program) / "log" / _of_job(program, job)

    def lock(self, program: str) -> Path:
        """Who is writing here: one process or job at a time, for each program."""
        return self.root / _home(program) / f"{program}.lock"

    def check_writable(self) -> None:
        """Make the folder. Raises `UserError` where it cannot be made, or not be written to."""
        make_folder(self.root, "save_path")

    @property
    def exports(self) -> Path:
        return self.root / "export"

    @property
    def population(self) -> Path:
        return self.root / "search" / "population.jsonl"

    @property
    def topologies(self) -> Path:
        """As-ViT's scores of topologies."""
        return self.root / "search" / "topologies.jsonl"

    @property
    def growth(self) -> Path:
        """As-ViT's scores of the networks that growth chose among."""
        return self.root / "search" / "growth.jsonl"

    @property
    def speeds(self) -> Path:
        """Measured images per second, where the budget is in them."""
        return self.root / "search" / "speeds.jsonl"

    @property
    def architectures(self) -> Path:
        return self.root / "search" / "architectures.yaml"

    @property
    def results(self) -> Path:
        return self.root / "retrain" / "results.json"
