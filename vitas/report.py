"""What a run tells: a bar or lines on the console, lines in a log file, TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vitas.distributed import World
from vitas.run import RunFolder
from vitas.slurm import queries


class Report:
    """The voice of one stage. Only rank 0 speaks; on the others every method does nothing.

    stage: its name, which begins every line and tag.
    folder: the run's, which has a place for the log and the events of every stage.
    """

    def __init__(self, stage: str, folder: RunFolder, world: World) -> None:
        self.stage = stage
        self._speaks = world.is_main
        self._console = Console()
        self._bar: Progress | None = None
        self._log = folder.log(stage, queries.job_id())
        self._events = folder.events(stage)
        self._writer: SummaryWriter | None = None
        if self._speaks:
            self._log.parent.mkdir(parents=True, exist_ok=True)

    def line(self, text: str) -> None:
        """One line, to the log file and to the console (above the bar, if there is one)."""
        if not self._speaks:
            return
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.stage}: {text}"
        with open(self._log, "a") as file:
            file.write(stamped + "\n")
        if self._console.is_terminal:
            self._console.print(f"[bold]{self.stage}[/bold]: ", end="")
            self._console.print(text, markup=False, highlight=False)
        else:
            print(stamped, flush=True)

    def log_only(self, text: str) -> None:
        """A line that the bar already tells: to the log file, and to a console that has no bar."""
        if not self._speaks:
            return
        if self._console.is_terminal:
            with open(self._log, "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.stage}: {text}\n")
        else:
            self.line(text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """TensorBoard scalars, as `STAGE/NAME`. The first call of a resumed run hides what lies after its step."""
        if not self._speaks:
            return
        if self._writer is None:
            self._writer = SummaryWriter(self._events, purge_step=step, filename_suffix=f".{self.stage}")
        for name, value in values.items():
            self._writer.add_scalar(f"{self.stage}/{name}", value, step)
        self._writer.flush()

    @contextmanager
    def progress(self, total: int, done: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        """A bar over `total` units, of which `done` are; yields `update(done, text)`.

        On a terminal it shows rate and time left; elsewhere the caller's lines do.
        """
        if not (self._speaks and self._console.is_terminal):
            yield lambda done, text: None
            return
        columns = (
            TextColumn(f"[bold]{self.stage}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as self._bar:
            task = self._bar.add_task(self.stage, total=total, completed=done, text="")
            yield lambda done, text: self._bar.update(task, completed=done, text=text)
        self._bar = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def shown_path(path: Path) -> str:
    """A path as people like to read it: relative where it lies below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
