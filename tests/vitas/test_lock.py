"""One writer at a time under a save_path, and no lock that outlives its holder."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.processes import REPOSITORY
from vitas.errors import UserError
from vitas.slurm import queries
from vitas.slurm.lock import Holder, Lock


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run" / "search" / "search.lock"


def in_job(monkeypatch, job: str, restart: int = 0) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def holder(path: Path) -> Holder:
    return Holder(**json.loads(path.read_text()))


def left_by(path: Path, **differences: object) -> Holder:
    """A lock that somebody else left: as this process would, but for the differences."""
    Lock(path).release()
    Lock(path)
    other = replace(holder(path), **differences)
    path.write_text(json.dumps(asdict(other)))
    return other


def test_a_second_lock_is_refused_and_names_the_first(path):
    first = Lock(path)
    with pytest.raises(UserError, match=f"process {os.getpid()} of .* wait for it, stop it"):
        Lock(path)
    first.check()
    first.release()
    assert not path.exists()
    Lock(path).release()


def test_a_dead_process_holds_nothing(path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left_by(path, pid=int(done.stdout))
    Lock(path).check()


def test_another_process_of_the_same_number_holds_nothing(path):
    left_by(path, started=1)
    Lock(path).check()


def test_a_process_of_another_machine_is_taken_to_live(path):
    left_by(path, host="elsewhere", pid=1)
    with pytest.raises(UserError, match=r"process 1 of .* on elsewhere"):
        Lock(path)


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "SUSPENDED", "CONFIGURING"])
def test_a_job_that_has_not_ended_holds_its_lock(path, monkeypatch, state):
    left_by(path, job="12", host="elsewhere")
    in_job(monkeypatch, "13")
    monkeypatch.setattr(queries, "state", {"12": state}.__getitem__)
    with pytest.raises(UserError, match=r"is being written by Slurm job 12 of .* on elsewhere"):
        Lock(path)
    assert holder(path).job == "12"


@pytest.mark.parametrize("state", [None, "CANCELLED", "FAILED", "TIMEOUT", "COMPLETED", "NODE_FAIL"])
def test_a_job_that_has_ended_holds_nothing(path, monkeypatch, state):
    left_by(path, job="12", host="elsewhere")
    monkeypatch.setattr(queries, "state", {"12": state}.__getitem__)
    Lock(path)
    assert holder(path).job is None


def test_where_slurm_does_not_answer_nothing_is_taken_over(path, monkeypatch):
    def state(job: str) -> str:
        raise queries.SlurmError("no controller")

    left_by(path, job="12")
    monkeypatch.setattr(queries, "state", state)
    with pytest.raises(UserError, match=rf"whether that still runs \(no controller\); if it does not, remove {path}"):
        Lock(path)


def test_a_requeued_job_takes_its_lock_over_and_what_lingers_of_its_last_start_learns_of_it(path, monkeypatch):
    in_job(monkeypatch, "12")
    lingering = Lock(path)
    in_job(monkeypatch, "12", restart=1)
    again = Lock(path)
    again.check()
    with pytest.raises(RuntimeError, match="was taken over by Slurm job 12"):
        lingering.check()
    lingering.release()
    again.check()


def test_a_lock_that_somebody_removed_is_put_back(path):
    lock = Lock(path)
    path.unlink()
    lock.check()
    with pytest.raises(UserError, match="is being written by"):
        Lock(path)


def test_a_second_start_within_a_job_is_refused(path, monkeypatch):
    in_job(monkeypatch, "12")
    Lock(path)
    with pytest.raises(UserError, match="is being written by Slurm job 12"):
        Lock(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"user": 1}'])
def test_a_lock_that_its_writer_did_not_finish_holds_nothing(path, text):
    path.parent.mkdir(parents=True)
    path.write_text(text)
    Lock(path).check()


def test_of_many_that_start_at_once_one_wins(path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from vitas.errors import UserError\n"
        "from vitas.slurm.lock import Lock\n"
        "sys.stdin.read(1)\n"
        "try:\n    Lock(Path(sys.argv[1])); print('won', flush=True); time.sleep(3)\n"
        "except UserError: print('lost', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left_by(path, pid=int(done.stdout))  # A stale one, so that all of them find something to take over.
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path], cwd=REPOSITORY, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    assert sorted(process.communicate(timeout=60)[0].strip() for process in processes) == ["lost"] * 7 + ["won"]
