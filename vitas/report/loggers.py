"""Loggers: programs for looking at numbers, which a run's YAML chooses by name. Rank 0 alone has any.

To add one, write its class here or in a file beside this one, and its entry in
`LOGGERS`. A run goes on where a logger fails, and says so: it must not end
because a web page is not there. The CSV of `metrics.py` has all numbers anyhow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import numpy as np
from PIL import Image

from vitas.files import NO_ROOM, write_text
from vitas.run import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Start:
    """A start of a stage, from which on a logger logs.

    first: the first step that it will report; what an earlier start reported of it and later ones is void.
    settings: of the stage, as flat plain data.
    """

    stage: str
    folder: RunFolder
    first: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, logger: str, fresh: str = "") -> str:
        """By what a logger's server knows this stage of this run, the same at every start; at the first, `fresh`."""
        path = self.folder.metrics(self.stage).with_name(f"{self.stage}.{logger}")
        if not path.exists():
            write_text(path, (fresh or uuid4().hex[:12]) + "\n")
        return path.read_text().strip()


class Logger:
    """Where a stage's numbers go. What a logger does not know to show, it leaves out.

    module: what it needs, as Python imports it. package: the same, as pip installs it.
    """

    module: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, start: Start) -> None:
        raise NotImplementedError

    def scalars(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        """Numbers after a step, by names such as `train/loss`, which are alike in all stages."""

    def text(self, name: str, step: int, markdown: str) -> None:
        """What is no number, e.g. the architectures that were found."""

    def picture(self, name: str, step: int, png: bytes) -> None:
        """What is seen at a glance, e.g. an architecture drawn to scale, as a PNG file's content."""

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """The settings of a stage, at its end, with what came of them."""

    def close(self) -> None:
        """Finish what is not written yet."""


class TensorBoard(Logger):
    """Event files in `events/`."""

    module, package = "tensorboard", "tensorboard"

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _without_writers
        self._writer: SummaryWriter = SummaryWriter(
            start.folder.events(start.stage), purge_step=start.first, filename_suffix=f".{start.stage}"
        )
        self._stage = start.stage

    def scalars(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def text(self, name: str, step: int, markdown: str) -> None:
        self._writer.add_text(name, markdown, step)
        self._writer.flush()

    def picture(self, name: str, step: int, png: bytes) -> None:
        self._writer.add_image(name, np.asarray(_on_white(png)), step, dataformats="HWC")
        self._writer.flush()

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        # `SummaryWriter.add_hparams` would make a folder of its own for them.
        for summary in hparams(dict(settings), dict(results)):
            self._writer._get_file_writer().add_summary(summary)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _without_writers(failure: threading.ExceptHookArgs) -> None:
    """Show no traceback of TensorBoard's thread for want of room: the next call to its writer raises the same."""
    error = failure.exc_value
    if not (isinstance(error, OSError) and error.errno in NO_ROOM and "Writer" in type(failure.thread).__name__):
        threading.__excepthook__(failure)


class WeightsAndBiases(Logger):
    """A run of Weights & Biases for each stage, of one group.

    Its own variables say how and where: WANDB_MODE=offline writes to the stage's folder, for `wandb sync`;
    WANDB_PROJECT is `vitas` by default. A requeued job goes on with its run.
    """

    module, package = "wandb", "wandb"

    def __init__(self, start: Start) -> None:
        import wandb

        folder = start.folder.events(start.stage)
        folder.mkdir(parents=True, exist_ok=True)
        name = start.folder.root.resolve().name
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vitas"),
            dir=str(folder),
            id=start.identity("wandb"),
            name=f"{name} {start.stage}",
            group=name,
            job_type=start.stage,
            config=dict(start.settings),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own steps may only rise, and a resumed run comes to some again.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step, **({} if epoch is None else {"epoch": epoch})})

    def text(self, name: str, step: int, markdown: str) -> None:
        table = self._wandb.Table(columns=["text"], data=[[markdown]])
        self._run.log({name: table, "step": step})

    def picture(self, name: str, step: int, png: bytes) -> None:
        self._run.log({name: self._wandb.Image(_on_white(png)), "step": step})

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        self._run.summary.update({f"final/{name}": value for name, value in results.items()})

    def close(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """A run of MLflow for each stage.

    Its own variables say where: MLFLOW_TRACKING_URI, by default files in the stage's folder; MLFLOW_EXPERIMENT_NAME,
    by default `vitas`. A requeued job goes on with its run.
    """

    module, package = "mlflow", "mlflow-skinny"

    def __init__(self, start: Start) -> None:
        from mlflow import entities
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        folder = (start.folder.events(start.stage) / "mlflow").resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow wants to be told that its files are wanted: its servers prefer a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = folder.as_uri()
        self._entities, self._client = entities, MlflowClient(uri)
        known = start.folder.metrics(start.stage).with_name(f"{start.stage}.mlflow")
        if known.exists():
            try:
                self._id = start.identity("mlflow")
                self._client.update_run(self._id, "RUNNING")
                return
            except MlflowException:
                known.unlink()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vitas")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        root = start.folder.root.resolve()
        tags = {"stage": start.stage, "save_path": str(root)}
        run = self._client.create_run(number, tags=tags, run_name=f"{root.name} {start.stage}")
        self._id = start.identity("mlflow", run.info.run_id)
        # A server takes so many at once, of so many characters each.
        params = [entities.Param(key, str(value)[:500]) for key, value in start.settings.items()]
        for first in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[first : first + 100])

    def scalars(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        now = _milliseconds()
        self._client.log_batch(
            self._id, [self._entities.Metric(name, float(value), now, step) for name, value in values.items()]
        )

    def text(self, name: str, step: int, markdown: str) -> None:
        self._client.log_text(self._id, markdown, f"{name}.md")

    def picture(self, name: str, step: int, png: bytes) -> None:
        self._client.log_image(self._id, _on_white(png), f"{name}.png")

    def hyperparameters(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None:
        now = _milliseconds()
        final = [self._entities.Metric(f"final/{name}", float(value), now, 0) for name, value in results.items()]
        self._client.log_batch(self._id, final)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _on_white(png: bytes) -> Image.Image:
    drawn = Image.open(BytesIO(png)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def _milliseconds() -> int:
    return int(1000 * time.time())


# By the names that `loggers` of the YAML may hold.
LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def missing_package(name: str) -> str | None:
    """The package that must be installed for a logger; None if it is there."""
    logger = LOGGERS[name]
    return None if find_spec(logger.module) else logger.package
