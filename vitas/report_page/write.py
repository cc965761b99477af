"""`write_report`: the page, and its figures as SVG and PNG."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO

from vitas.errors import UserError
from vitas.files import make_folder, write_atomically, write_text
from vitas.report_page.figure import SCHEMA, Figure, Spec, theme
from vitas.report_page.javascript import PACKAGE, bundle, vl_convert
from vitas.report_page.page import Page, make_page
from vitas.report_page.read import read_run

# Pixels of a figure's file; PNGs have twice as many.
_WIDE, _HALF = 760, 440
# At the end of an SVG: of what it was drawn, so that only figures that changed are drawn again.
_MARK = re.compile(rb"<!-- vitas report ([0-9a-f]{16}) -->\s*$")


def write_report(save_paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of a run, or of several side by side, and its figures; returns the page's path.

    output: the page, `SAVE_PATH/report.html` by default, and of several runs `report.html` in the working folder. The
        figures are in `report/` beside it, under their names, as SVG and PNG; those that did not change are kept.

    Raises `UserError` for a folder that holds no run, and where vl-convert is not installed.
    """
    runs = [read_run(path) for path in save_paths]
    if output is None:
        output = runs[0].folder.report if len(runs) == 1 else Path("report.html")
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output: found {str(output)!r}; it must end in .html")
    make_folder(output.parent, "--output")
    page = make_page(runs)
    write_text(output, page.html(bundle()))
    write_figures(page, output.with_suffix(""))
    return output


def write_figures(page: Page, folder: Path) -> None:
    """Write a page's figures to a folder, and remove those of an earlier page that this one does not have."""
    # What each file is drawn from, and how.
    drawn: dict[str, tuple[str, Callable[[], str]]] = {}
    for found in page.figures:
        spec = standalone(found)
        drawn[found.name] = json.dumps(spec) + version(PACKAGE), partial(vl_convert().vegalite_to_svg, spec)
    for name, drawing in page.drawings.items():
        drawn[name] = drawing, partial(str, drawing)
    for path in _ours(folder):
        if path.stem not in drawn:
            for ending in (".svg", ".png"):
                with suppress(OSError):
                    path.with_suffix(ending).unlink()
    for name, (source, draw) in drawn.items():
        path = folder / f"{name}.svg"
        digest = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:16]
        if _mark_of(path) == digest and path.with_suffix(".png").exists():
            continue
        svg = draw()
        write_atomically(path.with_suffix(".png"), partial(_write, vl_convert().svg_to_png(svg, scale=2)))
        # Last, since its mark says that both are there.
        write_text(path, f"{svg}\n<!-- vitas report {digest} -->\n")


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def standalone(figure: Figure) -> Spec:
    """A figure's specification as it is drawn to a file: with a size, its title, and light colours."""
    width = _HALF if figure.half else _WIDE
    config = theme(dark=False) | {"background": "white", "padding": 12}
    title = {
        "text": figure.title,
        "subtitle": textwrap.wrap(f"{figure.text} {figure.legend}".strip(), width // 6),
        "anchor": "start",
        "fontSize": 13,
        "fontWeight": 600,
        "subtitleFontSize": 10.5,
        "subtitleColor": "#59636e",
        "subtitlePadding": 5,
        "offset": 10,
    }
    return {"$schema": SCHEMA, **figure.spec, "width": width, "title": title, "config": config}


def _ours(folder: Path) -> Iterable[Path]:
    return [path for path in folder.glob("*.svg") if _mark_of(path)] if folder.is_dir() else []


def _mark_of(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            match = _MARK.search(file.read())
    except OSError:
        return None
    return match[1].decode() if match else None
