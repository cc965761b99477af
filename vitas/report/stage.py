"""The reports of a stage: a progress bar or lines on the console, a log file, and numbers for files and loggers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitas.config_section import leaves
from vitas.errors import UserError
from vitas.files import NO_ROOM
from vitas.report.callbacks import Callback, load_callbacks
from vitas.report.loggers import LOGGERS, Logger, Start
from vitas.report.metrics import Metrics
from vitas.run import RunFolder
from vitas.slurm import queries

if TYPE_CHECKING:
    from rich.progress import Progress


class Place(Protocol):
    """A process of a job, as `vitas.distributed.World` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def is_main(self) -> bool: ...


class Settings(Protocol):
    """A run's configuration, as `vitas.config.RunConfig` is one."""

    @property
    def folder(self) -> RunFolder: ...

    @property
    def loggers(self) -> Sequence[str]: ...

    @property
    def callbacks(self) -> Sequence[str]: ...

    def model_dump(self, *, mode: str, include: set[str]) -> dict[str, Any]: ...


class Report:
    """The reports of one stage. Rank 0 reports; on other ranks every method does nothing.

    stage: its name, the prefix of every line.
    folder: the run's folder, where the stage has its log, its metrics and its events.
    loggers: names in `LOGGERS`. callbacks: names of entry points.
    settings: of the stage, as flat plain data, for loggers and callbacks.

    bad_images, bad_steps: the files that name what it left out.
    """

    def __init__(
        self,
        stage: str,
        folder: RunFolder,
        world: Place,
        loggers: Sequence[str] = (),
        callbacks: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        from rich.console import Console

        self.stage = stage
        self._is_main, self._rank = world.is_main, world.rank
        self._console = Console()
        self._folder, self._log = folder, folder.log(stage, queries.job_id())
        self.bad_images, self.bad_steps = folder.bad_images(stage), folder.bad_steps(stage)
        self._settings = settings or {}
        self._wanted = loggers
        self._loggers: dict[str, Logger] | None = None
        self._metrics: Metrics | None = None
        # Where it resumes, if it says so, and the steps of an epoch, if it has any.
        self._after: int | None = None
        self._per_epoch: int | None = None
        self._newest: dict[str, float] = {}
        self._lacks_room = False
        self._callbacks: dict[str, Callback] = {}
        if self._is_main:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._callbacks = load_callbacks(callbacks)
            self._tell(lambda each: each.stage_started(stage, folder.root, self._settings))

    @classmethod
    def for_stage(cls, stage: str, config: Settings, world: Place) -> Report:
        """The reports of a stage of a configuration, to whom that says. Raises `UserError` for a callback."""
        given = config.model_dump(mode="json", include={"seed", "model", stage})
        return cls(stage, config.folder, world, config.loggers, config.callbacks, _flat(given))

    # Words

    def line(self, *texts: str) -> None:
        """Print lines to the log file and to the console (above the bar, if there is one)."""
        for text in texts if self._is_main else ():
            stamped = self._write_log(text)
            if self._console.is_terminal:
                self._console.print(f"[bold]{self.stage}[/bold]: ", end="")
                self._console.print(text, markup=False, highlight=False)
            else:
                print(stamped, flush=True)

    def line_of_any_rank(self, text: str) -> None:
        """`line` for what one rank alone knows: other ranks than 0 report it too."""
        if self._is_main:
            self.line(text)
        else:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            print(self._write_log(f"rank {self._rank}: {text}"), flush=True)

    def log_only(self, text: str) -> None:
        """Print a line to the log file, and to the console only if there is no bar, which shows the same."""
        if not self._is_main:
            return
        if self._console.is_terminal:
            self._write_log(text)
        else:
            self.line(text)

    def _write_log(self, text: str) -> str:
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.stage}: {text}"
        with self._going_on_without_room(), open(self._log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(stamped + "\n")
        return stamped

    @contextmanager
    def _going_on_without_room(self) -> Iterator[None]:
        """Go on where a report cannot be written for want of room: a checkpoint that has none says so itself."""
        try:
            yield
        except (OSError, UserError) as error:
            # A file that is written whole has its own words for want of room.
            if isinstance(error, OSError) and error.errno not in NO_ROOM:
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            if not self._lacks_room:
                print(f"{self.stage}: {self._log.parent} has no room for logs ({reason})", file=sys.stderr)
            self._lacks_room = True

    # Numbers

    def begin(self, after: int, per_epoch: int | None = None) -> None:
        """The stage goes on after so many steps: what an earlier start reported of later ones is void.

        per_epoch: steps of an epoch. A stage that replays what it knows does not call this: its first number of other
        value than before voids what follows.
        """
        self._after, self._per_epoch = after, per_epoch
        self._metrics = None

    def step_of(self, epoch: int) -> int:
        """The step at the end of an epoch."""
        return epoch * (self._per_epoch or 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after a step, by names that are alike in all stages, e.g. `train/loss`."""
        if not self._is_main:
            return
        self._newest |= values
        epoch = step / self._per_epoch if self._per_epoch else None
        with self._going_on_without_room():
            if self._metrics is None:
                self._metrics = Metrics(self._folder.metrics(self.stage), self._after)
            self._metrics.add(step, epoch, values)
        self._log_by(step, lambda logger: logger.scalars(step, epoch, values))
        self._tell(lambda each: each.scalars(step, epoch, values))

    def text(self, name: str, step: int, markdown: str) -> None:
        """What is no number, for loggers that show text."""
        if self._is_main:
            self._log_by(step, lambda logger: logger.text(name, step, markdown))

    def picture(self, name: str, step: int, svg: str) -> None:
        """A drawing, for loggers that show pictures; none where the package that draws it is not installed."""
        self._draw(name, step, lambda drawing: drawing.svg_to_png(svg, scale=2))

    def figure(self, name: str, step: int, specification: Mapping[str, Any]) -> None:
        """A figure by its Vega-Lite specification, for the same loggers."""
        self._draw(name, step, lambda drawing: drawing.vegalite_to_png(specification, scale=2))

    def _draw(self, name: str, step: int, draw: Callable[[Any], bytes]) -> None:
        if not self._is_main or not self._wanted:
            return
        try:
            import vl_convert
        except ImportError:
            return
        png = draw(vl_convert)
        self._log_by(step, lambda logger: logger.picture(name, step, png))

    def epoch_ended(self, epoch: int) -> None:
        """So many epochs of a training are done, and their numbers reported."""
        self._tell(lambda each: each.epoch_ended(epoch, self._newest))

    def checkpoint_saved(self, path: Path) -> None:
        """A checkpoint was written."""
        self._tell(lambda each: each.checkpoint_saved(path))

    def _log_by(self, step: int, log: Callable[[Logger], None]) -> None:
        """Have all loggers log; they are made at the first time, which is of a step. One that fails is left out."""
        if self._loggers is None:
            start = Start(self.stage, self._folder, step if self._after is None else self._after + 1, self._settings)
            self._loggers = {}
            for name in self._wanted:
                with self._without(name, self._loggers), self._going_on_without_room():
                    self._loggers[name] = LOGGERS[name](start)
        for name, logger in list(self._loggers.items()):
            with self._without(name, self._loggers), self._going_on_without_room():
                log(logger)

    def _tell(self, tell: Callable[[Callback], None]) -> None:
        for name, callback in list(self._callbacks.items()):
            with self._without(f"callback {name}", self._callbacks, name):
                tell(callback)

    @contextmanager
    def _without(self, what: str, among: dict[str, Any], name: str | None = None) -> Iterator[None]:
        """Go on without what fails within it: a run must not end because its numbers cannot be shown."""
        try:
            yield
        except Exception as error:
            among.pop(what if name is None else name, None)
            self.line(f"{what} fails and is left out from here on: {type(error).__name__}: {error}")

    @contextmanager
    def progress(self, total: int, done: int, unit: str) -> Iterator[Callable[[int, str | None], None]]:
        """A progress bar over `total` units, `done` of them already done; yields `update(done, text)`.

        Where text is None, the last one stays. In a training, whose units are steps, the bar says the epoch.
        Without a terminal there is no bar, and the caller's lines show the progress.
        """
        if not (self._is_main and self._console.is_terminal):
            yield lambda done, text: None
            return
        epochs = total // self._per_epoch if self._per_epoch else 0

        def epoch(done: int) -> str:
            return f"epoch {min(done // (self._per_epoch or 1) + 1, epochs)}/{epochs}" if epochs else ""

        with self._make_bar(unit) as bar:
            task = bar.add_task(self.stage, total=total, completed=done, text="", epoch=epoch(done))

            def update(done: int, text: str | None) -> None:
                fields: dict[str, Any] = {"epoch": epoch(done)} | ({} if text is None else {"text": text})
                bar.update(task, completed=done, **fields)

            yield update

    def _make_bar(self, unit: str) -> Progress:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn(f"[bold]{self.stage}"),
            TextColumn("{task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self._console)

    # The end

    def finish(self) -> None:
        """The stage has done its work: loggers get its settings with its last numbers, and all is closed."""
        if self._metrics is not None:
            with self._going_on_without_room():
                self._metrics.finish()
        if self._loggers and self._newest:
            self._log_by(0, lambda logger: logger.hyperparameters(self._settings, self._newest))
        self._tell(lambda each: each.stage_ended(self._newest))
        self.close()

    def close(self) -> None:
        """Finish what loggers have not written yet; also of a stage that is stopped and will go on."""
        for name, logger in list((self._loggers or {}).items()):
            with self._without(name, self._loggers or {}), self._going_on_without_room():
                logger.close()
        self._loggers = {}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain data by dotted keys; lists and None as text."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in leaves(settings)
    }


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def shown_path(path: Path) -> str:
    """A path for people to read: relative if it is below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
