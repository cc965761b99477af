"""Bad images of a folder: recorded by name, and refused beyond a share of the folder's images.

`bad_images.txt` in a stage's folder has a line for each: its path, a tab and the reason. It is the union over ranks and
starts of the run; a file that two ranks find in the same moment may stand there twice, and counts once.
"""

from __future__ import annotations

import ast
import math
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress

from vitas.data.pack_index import read_index
from vitas.data.packed import PackedFolder
from vitas.data.pictures import BadImage, read_image
from vitas.errors import UserError, printable
from vitas.report import Report

# How many an error message lists.
_LISTED = 10
# What `printable` writes for a character that cannot be printed.
_ESCAPE = re.compile(r"\\(?:[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


class BadImages:
    """What is known to be bad of one folder of images.

    data_dir: the folder. images: how many it has, good and bad.
    share: of them that may be bad (`bad_images` of the data's section of the YAML).
    report: of the stage, into whose file and log they go; without one they go to stderr.

    Raises `UserError` if more are known already.
    """

    def __init__(self, data_dir: str, images: int, share: float, report: Report | None = None) -> None:
        self._data_dir, self._images, self._share, self._report = data_dir, images, share, report
        self._file = report.bad_images if report else None
        # 0.29 * 100 is a little less than 29.
        self.allowed = math.floor(share * images + 1e-9)
        self._below = os.path.join(os.path.abspath(data_dir), "")
        # Reasons by path; those that this process has found itself; and those that were mended since they were found.
        self._known: dict[str, str] = {}
        self._own: set[str] = set()
        self._mended: set[str] = set()
        self._read()
        self._check()

    def record(self, found: Mapping[str, str], write: bool = True) -> None:
        """Take up the bad images that were found, reasons by path. Raises `UserError` if there are too many now.

        write: whether to file and log them; False where another rank does, which has found the same.
        """
        shown = {printable(os.path.abspath(path)): printable(reason) for path, reason in found.items()}
        if shown.keys() <= self._own:
            return
        self._own |= shown.keys()
        self._mended -= shown.keys()
        self._read()
        new = {path: reason for path, reason in shown.items() if path not in self._known}
        self._known |= new
        if write and new:
            self._write(new)
        self._check()

    def _read(self) -> None:
        """Add what this and other ranks and starts have filed of this folder; the file has other folders' too."""
        if self._file is None:
            return
        with suppress(FileNotFoundError):
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                path, tab, reason = line.partition("\t")
                if tab and path.startswith(printable(self._below)) and path not in self._mended:
                    self._known[path] = reason

    def _write(self, new: Mapping[str, str]) -> None:
        if self._report is None or self._file is None:
            for path, reason in new.items():
                print(f"warning: {path} {reason}", file=sys.stderr, flush=True)
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{path}\t{reason}\n" for path, reason in new.items())
        # In one write, so that lines of several ranks do not mix.
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
        for number, (path, reason) in enumerate(new.items(), len(self._known) - len(new) + 1):
            self._report.line_of_any_rank(
                f"bad image, {number} of at most {self.allowed:,} of {self._images:,}: {path} {reason}"
            )

    def _check(self) -> None:
        if len(self._known) <= self.allowed:
            return
        # What an earlier start found may have been mended, or removed, since. Few files, and as good as never.
        pack = PackedFolder(self._data_dir) if read_index(self._data_dir) is not None else None
        self._mended |= {path for path in self._known.keys() - self._own if not _is_bad(path, pack)}
        self._known = {path: reason for path, reason in self._known.items() if path not in self._mended}
        bad = len(self._known)
        if bad <= self.allowed:
            return
        listed = [f"  {path} {reason}" for path, reason in list(self._known.items())[:_LISTED]]
        if bad > _LISTED:
            listed.append(f"  and {bad - _LISTED:,} more" + (f"; all are in {self._file}" if self._file else ""))
        raise UserError(
            f"found {bad:,} bad image{'s'[: bad > 1]} among the {self._images:,} of {self._data_dir!r}; bad_images "
            f"({self._share:g} of them) allows {self.allowed:,}: mend or replace them, or allow more\n"
            + "\n".join(listed)
        )


def _is_bad(path: str, pack: PackedFolder | None) -> bool:
    """Whether a path of the file is bad still. It is there as it was printed.

    pack: whose images they are, None for files.
    """
    return any(_is_there_and_bad(named, pack) for named in (path, _as_named(path)))


def _is_there_and_bad(path: str, pack: PackedFolder | None) -> bool:
    if not os.path.lexists(path) if pack is None else pack.find(path) is None:
        return False
    try:
        (pack.loader if pack else read_image)(path)
    except BadImage:
        return True
    return False


def _as_named(path: str) -> str:
    """The name that `printable` wrote so, if it held none of these by itself."""
    return _ESCAPE.sub(lambda found: str(ast.literal_eval(f"'{found[0]}'")), path)
