"""Nothing that a user or the environment gives becomes a command of an sbatch file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitas import config
from vitas.errors import UserError
from vitas.plain_data import apply_override
from vitas.slurm import queries, submission
from vitas.slurm.cluster import Cluster, load_cluster, sbatch_options
from vitas.slurm.submission import StageJob, sbatch_file

FIELDS = sorted(Cluster.model_fields)
# What ends a comment, a word or a command in some shell, beside what would leave a mark.
PIECES = [
    "\n", "\r", "\r\n", "\0", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\u2028", "\udcff", "\t", " ", "'", '"', "\\",
    "$(touch MARK)", "`touch MARK`", ";touch MARK;", "\ntouch MARK\n", "\ntouch MARK #", "'\ntouch MARK\n'",
    "'$(touch MARK)'", "&& touch MARK", "| touch MARK", "\\\ntouch MARK", "#", "a100", "64G", "runs/x", "ä", "%j", "=",
]  # fmt: skip
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)


@pytest.fixture(scope="module")
def shell(tmp_path_factory) -> Path:
    """A folder of stand-ins for what an sbatch file may start; they do nothing."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("srun", "python", "sbatch", "scontrol"):
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch):
    monkeypatch.setattr(queries, "installed", lambda: False)


def marks_left_by(text: str, shell: Path, folder: Path) -> list[Path]:
    """Run an sbatch file as Slurm does, with bash, and look for what an injected command leaves."""
    path = folder / "job.sh"
    path.write_text(text)
    environment = {"PATH": f"{shell}:{os.environ['PATH']}"}
    subprocess.run(["bash", path], cwd=folder, env=environment, capture_output=True, timeout=60)
    return list(folder.rglob("MARK*"))


def test_the_stand_ins_show_an_injected_command(shell, tmp_path):
    assert marks_left_by("#SBATCH --mem='x\ntouch MARK\n'\n", shell, tmp_path)


@pytest.mark.parametrize(
    "where", [*sorted(set(FIELDS) - {"sbatch"}), "sbatch value", "sbatch name", "save_path", "python"]
)
@settings(max_examples=25)
@given(text=HOSTILE)
def test_no_value_becomes_a_command(shell, tmp_path_factory, where, text):
    folder = tmp_path_factory.mktemp("job")
    given, save_path, python = {}, "runs/x", str(shell / "python")
    if where == "sbatch value":
        given = {"sbatch": {"comment": text}}
    elif where == "sbatch name":
        given = {"sbatch": {text: "x"}}
    elif where == "save_path":
        save_path = text
    elif where == "python":
        python = f"{shell}/{text}"
    else:
        given = {where: text}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission.sys, "executable", python)
        try:
            cluster = load_cluster(given=given)
            job = StageJob("retrain", Path("x.yaml"), (), Path(save_path), cluster)
            written = sbatch_file(job)
        except UserError:
            return
    assert not marks_left_by(written, shell, folder), (where, text)


@pytest.mark.parametrize("name", FIELDS)
def test_a_newline_in_any_option_is_refused_by_name(name, tmp_path):
    if name == "sbatch":
        given, key = {"sbatch": {"comment": "x\ntouch MARK"}}, "--sbatch: "
    else:
        given, key = {name: "x\ntouch MARK"}, f"--{name.replace('_', '-')}: "
    with pytest.raises(UserError, match=re.escape(key)) as refused:
        load_cluster(given=given)
    assert r"'x\ntouch MARK'" in str(refused.value)
    file = tmp_path / "cluster.yaml"
    file.write_text(f'{name}: {{comment: "x\\n"}}' if name == "sbatch" else f'{name}: "x\\n"')
    with pytest.raises(UserError, match=r"cluster.yaml:\n"):
        load_cluster(file)


@pytest.mark.parametrize("name", ["x y", "x;y", "x=y", "-x", "--x", "", "x\ny", "x'", "x-", "ä", "x_y"])
def test_an_option_of_sbatch_has_a_name_as_sbatch_has_them(name):
    with pytest.raises(UserError, match=r"--sbatch: found the option .* e.g. mail-type"):
        load_cluster(given={"sbatch": {name: "x"}})
    assert load_cluster(given={"sbatch": {"mail-type": "END"}}).sbatch == {"mail-type": "END"}


@pytest.mark.parametrize("character", ["\n", "\0", "\r", "\x1b", "\x7f"])
def test_control_characters_are_refused_wherever_they_come_from(make_config, tmp_path, monkeypatch, character):
    message = "it must be one line, without control characters"
    # No text in a YAML file may hold NUL.
    in_yaml = "found a text with the character U" if character == "\0" else f"save_path: found .*{message}"
    with pytest.raises(UserError, match=in_yaml.replace("+", r"\+")):
        config.load(make_config({"save_path": f"runs/x{character}y"}))
    with pytest.raises(UserError, match=f"CONFIG: found .*{message}"):
        config.find(f"x{character}y", "search")
    with pytest.raises(UserError, match=f"key=value: found .*{message}"):
        apply_override({}, f"save_path=x{character}y")
    with pytest.raises(UserError, match=f"scontrol: found .*{message}"):
        queries.show_job(f"7{character}8")
    folder = tmp_path / "with\na newline"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=f"save_path: found .*{message}"):
        sbatch_file(StageJob("retrain", Path("x.yaml"), (), Path("runs/x"), Cluster()))


def test_a_per_cent_sign_in_the_path_of_a_submitted_job_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"save_path: found '.*/50%j'; Slurm reads a % in the name .* as a pattern"):
        sbatch_file(StageJob("retrain", Path("x.yaml"), (), tmp_path / "50%j", Cluster()))


@pytest.mark.parametrize("text", ["", "7\n", "7;x", "../7", "-7", "seven"])
@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "SLURM_RESTART_COUNT"])
def test_a_number_of_slurms_that_is_none_is_refused(monkeypatch, variable, text):
    """They become names of files and words of commands."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(UserError, match=f"{variable}: found .* in the environment; it must be a whole number"):
        {"SLURM_JOB_ID": queries.job_id, "SLURM_RESTART_COUNT": queries.restarts}[variable]()


def test_options_for_a_shell_are_one_word_each():
    """sbatch $(vitas cluster) ...: the shell splits what it prints."""
    with pytest.raises(UserError, match="a shell splits it at its spaces"):
        sbatch_options(Cluster(sbatch={"comment": "x --wrap=evil"}))


@pytest.mark.parametrize(
    ("save_path", "overrides", "message"),
    [
        ('"runs/x\\ntouch MARK"', (), r"save_path: found 'runs/x\\ntouch MARK'"),
        ("runs/x", ("save_path=runs/x\ntouch MARK",), r"key=value: found 'save_path=runs/x\\ntouch MARK'"),
    ],
)
def test_a_supervisor_refuses_them_too(tmp_path, save_path, overrides, message):
    path = tmp_path / "config.yaml"
    path.write_text(f"save_path: {save_path}\n")
    done = subprocess.run(
        [sys.executable, "-m", "vitas.slurm.supervisor", "search", path, *overrides],
        env=os.environ | {"SLURM_JOB_ID": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == [path]
