"""File names in any encoding: files and class folders whose names are no UTF-8, or no line, go through every stage."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from inference.__main__ import run_predict
from inference.export import export
from tests.conftest import small_run
from tests.processes import ENVIRONMENT, REPOSITORY, run_here
from vitas import config as configuration
from vitas.data.bad_images import BadImages
from vitas.errors import UserError, printable
from vitas.huggingface import CONFIG

# Latin-1, a line break and what a table's markup is; as a system's file names, and as Python reads them.
CLASS, PICTURE, BAD = (os.fsdecode(name) for name in (b"f\xfcnf", b"bild [bold]-\xe9\n1.png", b"\xff kaputt\n.png"))
CLASSES = [*"012346789", CLASS]


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory) -> Path:
    """The digits, a class of them and a picture of it under such names, and one that is no picture."""
    folder = tmp_path_factory.mktemp("names") / "images"
    shutil.copytree(digits, folder)
    for part in ("train", "val", "test"):
        (folder / part / "5").rename(folder / part / CLASS)
        first = min((folder / part / CLASS).iterdir())
        first.rename(first.with_name(PICTURE))
        (folder / part / CLASS / BAD).write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A run on them: its YAML, and what each program printed. One of them is started as users start it."""
    folder = tmp_path_factory.mktemp("run")
    data = small_run(folder / "run", images)
    for section in ("search", "sample", "retrain", "test"):
        data[section]["data"]["bad_images"] = 0.01
    data["retrain"]["checkpoint_steps"] = 5
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    return path, {
        "search": run_here("search", path),
        "retrain": program_output("retrain", path),
        "inference": run_here("inference", path),
    }


def program_output(*words: object, code: int = 0) -> str:
    # Strict, as it is with a locale of UTF-8: what cannot be encoded ends a program that prints it.
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, timeout=300)
    assert done.returncode == code, done.stderr
    return (done.stdout + done.stderr).decode()


def test_every_stage_names_a_bad_file_in_one_line_and_goes_on(run, images):
    path, printed = run
    save_path = path.parent / "run"
    for program, part in (("search", "train"), ("search", "val"), ("retrain", "train"), ("inference", "test")):
        name = printable(str(images / part / CLASS / BAD))
        assert name.isprintable()
        assert f"{name} is not an image" in printed[program], program
        home = "search" if program == "search" else "retrain"
        assert f"{name}\tis not an image\n" in (save_path / home / "bad_images.txt").read_text(encoding="utf-8")
    results = json.loads((save_path / "retrain" / "results.json").read_text())
    assert (results["images"], results["images_left_out"]) == (360, 1)


def test_a_run_resumes_over_such_names_and_refuses_others(run, images, capsys):
    path, _ = run
    assert "all 2 epochs are done" in run_here("retrain", path)
    picture = images / "train" / CLASS / PICTURE
    other = picture.with_name(os.fsdecode(b"\xfe.png"))
    picture.rename(other)
    try:
        with pytest.raises(SystemExit):
            run_here("retrain", path)
    finally:
        other.rename(picture)
    assert f"class {CLASS!r} has" in capsys.readouterr().err


def test_a_bad_file_of_an_earlier_start_counts_until_it_is_mended(images, tmp_path):
    """By the name that bad_images.txt has for it."""
    report = SimpleNamespace(bad_images=tmp_path / "bad_images.txt", line_of_any_rank=print)
    folder, bad = images / "train", images / "train" / CLASS / BAD
    BadImages(str(folder), 1000, 0.001, report).record({str(bad): "is not an image"})
    with pytest.raises(UserError, match="found 1 bad image among the 1,000"):
        BadImages(str(folder), 1000, 0.0, report)
    content = bad.read_bytes()
    shutil.copy(bad.with_name(PICTURE), bad)
    try:
        BadImages(str(folder), 1000, 0.0, report)
    finally:
        bad.write_bytes(content)


def test_predict_answers_them_and_its_csv_has_the_names_of_the_file_system(run, images, tmp_path, capsysbinary):
    path, _ = run
    place = images / "test" / CLASS
    table = program_output("inference", "predict", path, place, "--csv", tmp_path / "found.csv", code=1)
    assert f"error: {printable(str(place / BAD))} is not an image\n" in table
    assert printable(str(place / PICTURE)) in table
    assert printable(CLASS) in table
    with open(tmp_path / "found.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert all(Path(row["image"]).exists() for row in rows)
    assert str(place / PICTURE) in [row["image"] for row in rows]
    assert {row["class_1"] for row in rows} <= set(CLASSES)
    with pytest.raises(SystemExit):
        run_predict([str(path), str(place), "--csv", "-"])
    assert capsysbinary.readouterr().out == (tmp_path / "found.csv").read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "pt2", "hf"])
def test_exports_hold_such_class_names(run, tmp_path, kind):
    path, _ = run
    export(configuration.load(path), kind, tmp_path / "exported")
    if kind == "hf":
        held = json.loads((tmp_path / "exported" / CONFIG).read_text(encoding="utf-8"))
        assert held["label_names"] == CLASSES
