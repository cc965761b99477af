"""The numbers of a stage as a CSV: a row for each, in tidy form, exact where a run is resumed.

`step,epoch,seconds,name,value`: after how many steps, and epochs if the stage
has any; when, in seconds of Unix time; what, as loggers call it.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vitas.files import may_write, write_text

HEADER = ["step", "epoch", "seconds", "name", "value"]


class Metrics:
    """The CSV of a stage, for the one process that writes it.

    path: the file. It only ever gains whole lines; of a process that died in the middle of one, it is cut off.
    after: the step that a run resumes from. Rows of later steps are removed, since the run writes them again; of
        that step, those that are missing are added. None is of a stage that replays what it knows: a row that is
        there with the same value stays, with the time at which it was first known; from the first other one on, rows
        are removed.
    """

    def __init__(self, path: Path, after: int | None = None) -> None:
        self._path, self._replays, self._last = path, after is None, -1
        found = path.read_bytes() if path.exists() else b""
        rows = [row for row in _rows(found) if after is None or int(row[0]) <= after]
        # The value of each row that may come again.
        self._known = {(int(row[0]), row[3]): row[4] for row in rows if after is None or int(row[0]) == after}
        if found != (whole := _text([HEADER, *rows]).encode()):
            write_text(path, whole.decode())

    def add(self, step: int, epoch: float | None, values: Mapping[str, float]) -> None:
        """Append a row for each value after a step."""
        new = {name: repr(float(value)) for name, value in values.items()}
        self._last = max(self._last, step)
        if self._replays and any(self._known.get((step, name), value) != value for name, value in new.items()):
            self._remove_from(step)
        shown, now = "" if epoch is None else f"{epoch:.6g}", f"{time.time():.3f}"
        rows = [[str(step), shown, now, name, value] for name, value in new.items() if (step, name) not in self._known]
        if rows:
            self._append(_text(rows).encode())

    def finish(self) -> None:
        """The stage is done: what an earlier one that went further reported of later steps is removed."""
        if self._replays and any(step > self._last for step, _ in self._known):
            self._remove_from(self._last + 1)

    def _remove_from(self, step: int) -> None:
        rows = [row for row in _rows(self._path.read_bytes()) if int(row[0]) < step]
        self._known = {key: value for key, value in self._known.items() if key[0] < step}
        write_text(self._path, _text([HEADER, *rows]))

    def _append(self, lines: bytes) -> None:
        with may_write(), open(self._path, "ab") as file:
            size = file.tell()
            try:
                file.write(lines)
                file.flush()
            except OSError:
                # What comes later must not follow half a line.
                os.truncate(self._path, size)
                raise


def _rows(content: bytes) -> list[list[str]]:
    """The rows of a file that are whole."""
    whole = content[: content.rfind(b"\n") + 1].decode(errors="replace")
    rows = list(csv.reader(io.StringIO(whole)))
    return [row for row in rows[1:] if len(row) == len(HEADER) and row[0].lstrip("-").isdigit()]


def _text(rows: Iterable[list[str]]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()
