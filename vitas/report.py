"""What a stage reports: a progress bar or lines on the console, a log file, TensorBoard events."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vitas.distributed import World
from vitas.files import NO_ROOM
from vitas.run import RunFolder
from vitas.slurm import queries


class Report:
    """The reports of one stage. Rank 0 reports; on other ranks every method does nothing.

    stage: its name, the prefix of every line and tag.
    folder: the run's folder, where the stage has its log and events.
    bad_images, bad_steps: the files that name what it left out.
    """

    def __init__(self, stage: str, folder: RunFolder, world: World) -> None:
        self.stage = stage
        self._is_main, self._rank = world.is_main, world.rank
        self._console = Console()
        self._bar: Progress | None = None
        self._log = folder.log(stage, queries.job_id())
        self.bad_images, self.bad_steps = folder.bad_images(stage), folder.bad_steps(stage)
        self._events = folder.events(stage)
        self._writer: SummaryWriter | None = None
        self._lacks_room = False
        if self._is_main:
            self._log.parent.mkdir(parents=True, exist_ok=True)

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
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if not self._lacks_room:
                print(f"{self.stage}: {self._log.parent} has no room for logs ({error.strerror})", file=sys.stderr)
            self._lacks_room = True

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write TensorBoard scalars `STAGE/NAME`. The first call of a resumed run hides older ones from `step` on."""
        if not self._is_main:
            return
        with self._going_on_without_room():
            if self._writer is None:
                threading.excepthook = _without_writers
                self._writer = SummaryWriter(self._events, purge_step=step, filename_suffix=f".{self.stage}")
            for name, value in values.items():
                self._writer.add_scalar(f"{self.stage}/{name}", value, step)
            self._writer.flush()

    @contextmanager
    def progress(self, total: int, done: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        """A progress bar over `total` units, `done` of them already done; yields `update(done, text)`.

        Without a terminal there is no bar, and the caller's lines show the progress.
        """
        if not (self._is_main and self._console.is_terminal):
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
        with Progress(*columns, console=self._console) as bar:
            self._bar = bar
            task = bar.add_task(self.stage, total=total, completed=done, text="")
            yield lambda done, text: bar.update(task, completed=done, text=text)
        self._bar = None

    def close(self) -> None:
        if self._writer is not None:
            with self._going_on_without_room():
                self._writer.close()


def _without_writers(failure: threading.ExceptHookArgs) -> None:
    """Show no traceback of TensorBoard's thread for want of room: the next call to its writer raises the same."""
    error = failure.exc_value
    if not (isinstance(error, OSError) and error.errno in NO_ROOM and "Writer" in type(failure.thread).__name__):
        threading.__excepthook__(failure)


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
