"""One writer at a time under a save_path, and no lock that outlives its holder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.processes import REPOSITORY
from vitas.errors import UserError
from vitas.slurm import lock as lock_module
from vitas.slurm import queries
from vitas.slurm.lock import Holder, Lock, check_free


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


# Where nobody can see whether the holder's process runs: another machine, or another container of this one


def elsewhere(monkeypatch) -> None:
    """This process is as one of another machine, from now on."""
    monkeypatch.setattr(lock_module.socket, "gethostname", lambda: "elsewhere")


def untouched(path: Path, seconds: float) -> None:
    """The lock is as one that was last touched so many seconds ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_the_refusal_names_the_lock_its_age_and_its_holder_and_when_it_is_free(path, monkeypatch):
    Lock(path)
    untouched(path, 20)
    with pytest.raises(UserError, match=rf"process {os.getpid()} of .*Its lock, {path}, was touched 2\d s ago$"):
        Lock(path)
    elsewhere(monkeypatch)
    with pytest.raises(UserError, match=r"if that process has ended, it is free when nobody has touched it for 60 s$"):
        check_free(path)


def test_a_lock_that_nobody_touches_is_taken_over_on_another_machine_and_never_on_the_holders(path, monkeypatch):
    first = Lock(path)
    untouched(path, 3600)
    with pytest.raises(UserError, match="is being written by"):
        Lock(path)
    elsewhere(monkeypatch)
    Lock(path).check()
    with pytest.raises(RuntimeError, match=r"was taken over by process .* on elsewhere"):
        first.check()


def test_of_two_containers_with_one_name_and_like_process_ids_none_is_taken_for_the_other(path):
    left_by(path, machine="boot pid:[1]", started=1)
    with pytest.raises(UserError, match="is being written by"):
        Lock(path)
    untouched(path, 3600)
    Lock(path).check()


def test_a_lock_of_a_version_that_does_not_touch_it_is_the_users_to_remove(path):
    left_by(path, host="elsewhere", machine="")
    untouched(path, 3600)
    with pytest.raises(UserError, match=r"if that process has ended, it is yours to remove$"):
        Lock(path)


def test_a_holder_that_lives_touches_its_lock_until_it_releases_it(path, monkeypatch):
    monkeypatch.setattr(lock_module, "TOUCH_SECONDS", 0.05)
    lock = Lock(path)
    untouched(path, 3600)
    end = time.monotonic() + 30
    while time.time() - path.stat().st_mtime > 1800:
        assert time.monotonic() < end, "nobody touches it"
        time.sleep(0.05)
    lock.release()
    time.sleep(0.3)
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00\x80" * 100,
        b"\0" * 4096,
        b"[" * 100_000,
        b'{"user": 1, "host": [], "pid": "x", "started": {}, "since": null}',
        b'{"user": "u", "host": "h", "pid": 1, "started": 1, "since": "s", "job": "--help"}',
    ],
    ids=["binary", "zeros", "deep", "other types", "no job"],
)
def test_a_lock_that_is_damaged_holds_nothing(path, content):
    """As one that its writer did not finish; a holder that lives writes it again."""
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    check_free(path)
    lock = Lock(path)
    path.write_bytes(content)
    lock.check()
    assert holder(path).pid == os.getpid()


def test_a_lock_of_a_later_version_that_says_more_is_one(path):
    lock = Lock(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(UserError, match="is being written by"):
        Lock(path)
    lock.check()


def test_a_lock_that_cannot_be_opened_is_named(path):
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=f"save_path: its lock, {path}, cannot be opened: Is a directory"):
        Lock(path)


# Writes a checkpoint and a record, over and over, as a stage does.
WRITER = """
import sys, time
from pathlib import Path
from vitas.files import guard_writes, write_text
from vitas.journal import Journal
from vitas.slurm.lock import Lock

folder = Path(sys.argv[1])
lock = Lock(folder / "search.lock")
guard_writes(lock.held)
journal = Journal(folder / "scores.jsonl")
while True:
    write_text(folder / "checkpoint", "of the first")
    journal.append({"by": "the first"})
    print("writes", flush=True)
"""


def taken_over(path: Path, process: subprocess.Popen, monkeypatch) -> Lock:
    """Stop a process that writes, at any moment, and take its lock over; it may be in the middle of a write."""
    monkeypatch.setattr(lock_module, "_FLOCK_SECONDS", 1.0)
    while True:
        process.send_signal(signal.SIGSTOP)
        while "T" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            time.sleep(0.01)
        untouched(path, 3600)
        try:
            return Lock(path)
        except UserError as error:
            # Then nobody takes it over, and it goes on.
            if "does not let go of it" not in str(error):
                raise
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)


def test_a_holder_that_slept_while_its_lock_was_taken_over_writes_nothing_more(path, monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path.parent], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "writes\n"
        elsewhere(monkeypatch)
        lock = taken_over(path, process, monkeypatch)
        (path.parent / "checkpoint").write_text("of the second")
        records = (path.parent / "scores.jsonl").read_bytes()
        process.send_signal(signal.SIGCONT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "was taken over by process" in error.splitlines()[-1]
    assert (path.parent / "checkpoint").read_text() == "of the second"
    assert (path.parent / "scores.jsonl").read_bytes() == records
    lock.check()
