"""What becomes of a job when its ranks have ended, for every way in which they can end.

`srun` and `scontrol` are stand-ins here, one line of shell each; tests/cluster/ has the real ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY
from vitas.slurm import supervisor
from vitas.slurm.queries import SlurmError

RUNNING = "JobState=RUNNING Restarts=0"


@pytest.fixture
def job(tmp_path):
    """(what srun does, what `scontrol show job` prints, overrides) -> how the supervisor of a job ended."""
    programs = tmp_path / "bin"
    programs.mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(f"save_path: {tmp_path / 'run'}\n")

    def run(
        srun: str, shown: str = RUNNING, requeue: str = "exit 0", overrides: tuple = (), **variables: str
    ) -> subprocess.CompletedProcess:
        for name, text in (
            ("srun", srun),
            ("scontrol", f'[ "$1" = show ] && echo "{shown}" && exit\necho "$@" >> {tmp_path}/asked; {requeue}'),
        ):
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        return subprocess.run(
            [sys.executable, "-m", "vitas.slurm.supervisor", "search", config, *overrides],
            env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )

    return run


def outcome(code: int, message: str) -> str:
    """What a rank leaves for the supervisor before it ends; srun then tells of a rank that it killed."""
    return f"""echo '{json.dumps({"code": code, "message": message, "rank": 0})}' > $VITAS_OUTCOME; exit 137"""


def asked(tmp_path: Path) -> str:
    path = tmp_path / "asked"
    return path.read_text() if path.exists() else ""


def test_a_program_that_is_done(job, tmp_path):
    done = job('echo "$@" > srun.arguments; exit 0'.replace("srun.arguments", str(tmp_path / "arguments")),
               overrides=("search.epochs=3",), SLURM_CPUS_PER_TASK="6")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "job 7: `search` is done" in done.stdout
    folder = tmp_path / "run" / "search" / "log" / "search-7"
    arguments = (tmp_path / "arguments").read_text()
    assert "--kill-on-bad-exit=1" in arguments
    assert "--cpus-per-task=6" in arguments
    assert arguments.endswith(f"-m search {folder / 'submitted.yaml'} search.epochs=3\n")
    assert (folder / "submitted.yaml").read_text() == (tmp_path / "config.yaml").read_text()
    assert asked(tmp_path) == ""


def test_a_per_cent_sign_in_the_path_is_no_pattern_of_slurms(job, tmp_path):
    save_path = tmp_path / "50%t"
    done = job('echo "$@" > ' + f"{tmp_path}/arguments", overrides=(f"save_path={save_path}",))
    assert done.returncode == 0, done.stderr
    assert f"--error={tmp_path}/50%%t/search/log/search-7/rank_%t.err " in (tmp_path / "arguments").read_text()


def test_the_controller_is_asked_once_where_the_ranks_meet(job, tmp_path):
    shown = "n1 NodeAddr=10.0.0.7 JobState=RUNNING Restarts=0"
    done = job(f"echo $MASTER_ADDR > {tmp_path}/address", shown, SLURM_JOB_NODELIST="n[1-8]")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "address").read_text() == "10.0.0.7\n"


def test_ranks_that_stopped_have_their_job_requeued(job, tmp_path):
    done = job(outcome(75, "stopped by SIGUSR1"))
    assert done.returncode == 75
    assert "stopped by SIGUSR1" in done.stderr
    assert "job 7 stopped; requeued, 1 of at most 100 times" in done.stdout
    assert asked(tmp_path) == "requeue 7\n"


def test_a_mistake_is_told_once_and_not_requeued(job, tmp_path):
    done = job("exit 137")
    assert done.returncode == 1
    done = job(outcome(2, "error: search.lr: found -1"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: search.lr: found -1"]
    assert asked(tmp_path) == "requeue 7\n"  # the first one's


def test_ranks_that_died_are_requeued_and_their_last_words_are_in_the_log(job, tmp_path):
    done = job('for a in "$@"; do case $a in --error=*) f=${a#--error=};; esac; done\n'
               "echo CUDA error: out of memory > ${f/\\%t/3}; : > ${f/\\%t/2}; exit 1")  # fmt: skip
    assert done.returncode == 1
    folder = tmp_path / "run" / "search" / "log" / "search-7"
    assert done.stderr == f"{folder}/rank_3.err: CUDA error: out of memory\n"
    assert not (folder / "rank_2.err").exists()
    assert "job 7 died; requeued, 1 of at most 100 times" in done.stdout


@pytest.mark.parametrize("shown", ["JobState=COMPLETING Restarts=1", "JobState=CANCELLED Restarts=0",
                                   "JobState=RUNNING Restarts=1", "JobState=PENDING Restarts=0"])  # fmt: skip
@pytest.mark.parametrize("ranks", ["exit 1", outcome(75, "stopped by SIGTERM")])
def test_what_slurm_has_decided_stands(job, tmp_path, shown, ranks):
    """It requeues or cancels the job already, or has lost this node and runs the job elsewhere."""
    done = job(ranks, shown)
    assert done.returncode != 0
    assert "ended by Slurm" in done.stdout
    assert asked(tmp_path) == ""


def test_a_job_that_dies_in_place_is_given_up_and_one_that_gets_on_is_not(job, tmp_path):
    scores = tmp_path / "run" / "search" / "growth.jsonl"
    for requeues in (1, 2):
        assert "died; requeued" in job("exit 1").stdout
        assert asked(tmp_path) == "requeue 7\n" * requeues
    scores.write_text("a score\n")
    for requeues in (3, 4):
        assert "died; requeued" in job("exit 1").stdout
        assert asked(tmp_path) == "requeue 7\n" * requeues
    # Being stopped is no death.
    assert "stopped; requeued" in job(outcome(75, "stopped by SIGUSR1")).stdout
    for requeues in (6, 7):
        assert "died; requeued" in job("exit 1").stdout
        assert asked(tmp_path) == "requeue 7\n" * requeues
    done = job("exit 1")
    assert done.returncode == 1
    assert "job 7 died 3 times without progress" in done.stdout
    assert asked(tmp_path) == "requeue 7\n" * 7


def test_requeues_are_bounded(job, tmp_path):
    done = job(outcome(75, "stopped by SIGUSR1"), "JobState=RUNNING Restarts=100", SLURM_RESTART_COUNT="100")
    assert done.returncode == 75
    assert "has been requeued 100 times, the most allowed (max_requeues); submit it again to resume" in done.stdout
    assert asked(tmp_path) == ""


def test_a_job_that_may_not_be_requeued_says_so(job):
    done = job(outcome(75, "stopped by SIGUSR1"), requeue="echo Requested operation is presently disabled >&2; exit 1")
    assert done.returncode == 75
    assert "cannot be requeued (Requested operation is presently disabled); submit it again" in done.stdout


def test_a_requeued_job_keeps_the_yaml_that_it_was_started_with(job, tmp_path):
    config = tmp_path / "config.yaml"
    before = config.read_text()
    job(outcome(75, "stopped"))
    config.write_text(before + "seed: 7\n")
    job("exit 0", SLURM_RESTART_COUNT="1")
    submitted = tmp_path / "run" / "search" / "log" / "search-7" / "submitted.yaml"
    assert submitted.read_text() == before
    job("exit 0")
    assert submitted.read_text() == before + "seed: 7\n"


def test_a_job_that_was_submitted_from_within_another_has_ranks_of_its_own(job, tmp_path):
    launcher = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "old", "TORCHELASTIC_RUN_ID": "x"}
    assert job(f"env > {tmp_path}/variables", **launcher).returncode == 0
    found = {line.partition("=")[0] for line in (tmp_path / "variables").read_text().splitlines()}
    assert not found & launcher.keys()
    # What a user sets for the ranks stays.
    assert job(f"env > {tmp_path}/variables", MASTER_ADDR="mine").returncode == 0
    assert "MASTER_ADDR=mine" in (tmp_path / "variables").read_text().splitlines()


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"code": 2}'])
def test_half_an_outcome_and_that_of_an_earlier_start_are_none(job, tmp_path, text):
    folder = tmp_path / "run" / "search" / "log" / "search-7"
    folder.mkdir(parents=True)
    (folder / "outcome-0.json").write_text('{"code": 2, "message": "of an earlier start"}')
    (folder / "outcome-6.json").write_text('{"code": 2, "message": "of an earlier start"}')
    done = job(f"echo '{text}' > $VITAS_OUTCOME; exit 1")
    assert done.returncode == 1
    assert "died; requeued" in done.stdout
    assert "earlier" not in done.stderr
    assert not list(folder.glob("outcome-*"))


def test_slurm_is_asked_again_while_it_does_not_answer(monkeypatch):
    waits, answers = [], iter([SlurmError("busy"), SlurmError("busy"), {"JobState": "RUNNING"}])

    def ask() -> dict:
        answer = next(answers)
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    monkeypatch.setattr(supervisor.time, "sleep", waits.append)
    assert supervisor.ask_patiently(ask) == {"JobState": "RUNNING"}
    assert waits == [1, 5]

    def never() -> None:
        raise SlurmError("busy")

    with pytest.raises(SlurmError, match="busy"):
        supervisor.ask_patiently(never)
    assert waits == [1, 5, *supervisor.SLURM_RETRIES]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("save_path=7",), "save_path: found 7; it must be a string"),
        (("save_path=/dev/null/run",), "save_path: found '/dev/null/run', which cannot be made: Not a directory"),
        (("save_path",), "argument 'save_path': it must read key=value"),
    ],
)
def test_a_job_that_cannot_start_says_why(job, overrides, message):
    done = job("exit 0", overrides=overrides)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
