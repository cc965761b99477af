"""The command `vitas` runs every stage: alone, in several processes, installed, beside packages of the same names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, REPOSITORY, run_here, run_module
from vitas import config
from vitas.errors import UserError
from vitas.next_step import next_step
from vitas.run import environment_for_programs, load


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with this project as pip installs it from a wheel: packages, and bin/vitas."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("vitas", "search", "retrain", "inference", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "-q")
    for words in (("wheel", *offline, "-w", target / "wheel", source), ("install", *offline, "--target", target)):
        wheel = list((target / "wheel").glob("*.whl")) if words[0] == "install" else []
        done = subprocess.run([*pip, *words, *wheel], capture_output=True, text=True, cwd=target)
        assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder with packages of its own that are named as ours, and fail when they are loaded."""
    for name in ("search", "retrain", "inference"):
        (tmp_path / "work" / name).mkdir(parents=True)
        for module in ("__init__", "__main__", "search", "sample", "retrain", "test", "commands", "objectives"):
            (tmp_path / "work" / name / f"{module}.py").write_text("raise SystemExit('another package was loaded')\n")
    return tmp_path / "work"


@pytest.mark.slow
def test_the_installed_command_runs_all_stages_beside_packages_of_the_same_names(installed, elsewhere, make_config):
    path = make_config({"search.epochs": 1, "search.warmup_epochs": 0, "retrain.epochs": 1, "retrain.warmup_epochs": 0})
    environment = ENVIRONMENT | {"PYTHONPATH": str(installed)}

    def vitas(*words: object) -> str:
        done = subprocess.run(
            [installed / "bin" / "vitas", *map(str, words)],
            cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert vitas("check", path).startswith(f"{path}: nothing to mend")
    assert vitas("search", path).splitlines()[-1] == f"next: vitas sample {path}"
    assert vitas("sample", path, "sample.generations=0").splitlines()[-1] == (
        f"next: vitas retrain {path} sample.generations=0"
    )
    # Its processes are of this project too; before Python 3.11 they look into the working folder first.
    if hasattr(sys.flags, "safe_path"):
        assert "the network is in" in vitas("launch", "retrain", path, "--local")
    else:
        vitas("retrain", path)
    assert f"vitas export {path}" in vitas("test", path).splitlines()[-1]
    assert "-> " in vitas("export", path, "--format", "safetensors")
    assert "json-schema.org" in vitas("schema")


def test_a_stage_of_the_command_is_the_stage_of_its_program_alone_and_flag_or_not(vitas, make_config, tmp_path):
    path = make_config({"search.flag": False, "search.epochs": 1, "search.warmup_epochs": 0})
    code, out, _ = vitas("search", path)
    assert code == 0
    assert "the supernet is in" in out
    assert not (tmp_path / "run" / "search" / "population.jsonl").exists(), "sample is flagged, and another stage"
    out = run_here("search", path)
    assert "sample: best: " in out
    assert out.splitlines()[-1] == f"next: vitas retrain {path}"


@pytest.mark.slow
def test_several_processes_run_it_as_they_run_the_program(make_config):
    path = make_config({"search.epochs": 1, "search.warmup_epochs": 0})
    out = run_module("vitas", "search", path, processes=2)
    assert "2 process(es)" in out
    assert out.count("next: vitas sample") == 1


def test_a_mistake_ends_a_stage_with_code_2_and_a_missing_file_is_guessed(vitas, make_config):
    code, _, err = vitas("search", make_config(), "search.epoch=3")
    assert (code, "did you mean epochs?" in err) == (2, True)
    code, _, err = vitas("search", "quickstrat.yaml")
    assert code == 2
    assert re.search(r"did you mean .*quickstart\.yaml", err)


@pytest.mark.parametrize(
    ("changes", "done", "expected"),
    [
        ({}, "search", "next: vitas sample {path} seed=1 'save_path=a b'"),
        ({}, "test", "next: vitas export {path} seed=1 'save_path=a b' --format onnx, or vitas predict"),
        ({"retrain": None}, "sample", "next: vitas test {path}"),
        ({"retrain": None, "test": None}, "sample", "next: give {path} a section retrain, then vitas retrain {path}"),
        (
            {"search": {"method": "asvit", "growth": {"macs": 10**9}}, "sample.flag": False},
            "search",
            "next: vitas retrain {path}",
        ),
    ],
)
def test_the_last_line_of_a_stage_is_the_command_that_follows(make_config, changes, done, expected):
    path = make_config(changes)
    line = next_step(config.load(path), done, (str(path), "seed=1", "save_path=a b"))
    assert line.startswith(expected.format(path=path))


def test_another_package_of_a_stages_name_is_refused_by_its_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "retrain_other").mkdir()
    (tmp_path / "retrain_other" / "__init__.py").write_text("thing = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="retrain_other is loaded from"):
        load("retrain_other:thing")
    assert load("vitas.errors:MISTAKE") == 2


def test_programs_that_are_started_find_this_project_first():
    environment = environment_for_programs({"PYTHONPATH": f"x{os.pathsep}{REPOSITORY}", "HOME": "y"})
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), "x"]
    assert (environment["PYTHONSAFEPATH"], environment["HOME"]) == ("1", "y")
