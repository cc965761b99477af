"""The figures of a report as files, and the plotting library that goes into it."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from tests.vitas.made_runs import END, MARKUP, finished, searched, without_training
from vitas.report_page import javascript
from vitas.report_page.write import write_report

pytest.importorskip("vl_convert")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vitas.report_page.write.bundle", lambda: "/* the library */")


def test_every_figure_is_an_svg_and_a_png_of_one_drawing(tmp_path):
    # Names of classes may be markup, and need not be UTF-8.
    classes = (MARKUP, END, os.fsdecode(b"\xff\xfe"), *"defghij")
    page = write_report([finished(tmp_path / "run", classes=classes).root])
    assert page == tmp_path / "run" / "report.html"
    folder = tmp_path / "run" / "report"
    names = {path.stem for path in folder.glob("*.svg")}
    assert {"search", "best", "retrain-top1", "confusion", "subnet_1"} <= names
    assert {path.stem for path in folder.iterdir()} == names
    for name in names:
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        width, height = (float(root.get(side)) for side in ("width", "height"))
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == pytest.approx((2 * width, 2 * height), abs=2)
            # Not all of one colour.
            assert len(image.convert("RGB").getcolors(1 << 24)) > 3


def test_only_what_changed_is_drawn_again_and_what_is_gone_is_removed(tmp_path):
    folder = finished(tmp_path / "run")
    write_report([folder.root])
    files = folder.root / "report"
    mine = files / "mine.svg"
    mine.write_text("<svg/>")
    before = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    folder.metrics("retrain").unlink()
    lines = folder.population.read_text().splitlines(keepends=True)
    folder.population.write_text("".join(lines[:-1]))
    write_report([folder.root])
    after = {path.name: path.stat().st_mtime_ns for path in files.iterdir()}
    assert set(before) - set(after) == {f"retrain-{n}.{e}" for n in ("loss", "top1", "lr") for e in ("svg", "png")}
    changed = {name for name in after if after[name] != before[name]}
    assert {"search.svg", "search.png"} <= changed
    assert not changed & {"search-loss.svg", "classes.png", "mine.svg"}


def test_the_figures_of_every_kind_of_run_are_drawn(tmp_path):
    for make in (searched, without_training):
        write_report([make(tmp_path / make.__name__).root])
        assert list((tmp_path / make.__name__ / "report").glob("*.png"))


def test_the_library_is_made_once_and_a_broken_copy_is_made_anew(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(javascript.vl_convert(), "javascript_bundle", lambda: made.append(1) or "/* the library */")
    first = javascript.bundle()
    assert javascript.bundle() == first
    assert len(made) == 1
    (kept,) = (tmp_path / "cache" / "vitas").iterdir()
    kept.write_text(kept.read_text()[:10])
    assert javascript.bundle() == first
    assert len(made) == 2
    # A home that cannot be written to is no reason to fail.
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert javascript.bundle() == first
