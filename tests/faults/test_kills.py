"""Stages that are killed inside a call, on a disk that forgets: the quick part of `script/faults.sh`."""

import os
from pathlib import Path

import pytest

from tests.faults.disk import BESIDE, Disk
from tests.faults.kills import calls_of, kill_stage
from tests.faults.stages import ORDER, Target
from vitas.files import write_atomically
from vitas.journal import Journal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Target:
    return Target(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize("forgets", [False, True], ids=["kept", "forgotten"])
@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_that_is_killed_inside_calls_ends_as_an_undisturbed_one(target, stage, forgets) -> None:
    count = kill_stage(target, stage, 4, forgets, seed=0)
    assert count.injected == 4
    assert not count.failures, count.examples


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_kills_come_inside_calls_that_are_made_beside_the_training(target, stage) -> None:
    """So that the tests above kill writes of checkpoints while the training goes on."""
    calls = calls_of(target, stage)
    assert {f"{kind}{BESIDE}" for kind in ("open", "write", "fsync", "rename", "renamed", "unlink")} <= calls.keys()
    target.reset(stage)
    assert target.start(stage, lambda: Disk(target.run, 2, kind=f"write{BESIDE}").install()).code == -9


def killed(folder: Path, work, kill_at: int, seed: int) -> int:
    """Do some work in a process that dies at a call, on a disk that forgets; how it ended."""
    pid = os.fork()
    if not pid:
        Disk(folder, kill_at, forgets=True, seed=seed).install()
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_disk_forgets_what_was_not_flushed(tmp_path) -> None:
    """So that the tests above can fail."""
    left = set()
    for seed in range(40):
        path = tmp_path / f"file{seed}"

        def careless(path=path) -> None:
            with open(path, "wb") as file:
                file.write(b"x" * 100)
            # Dies in this call.
            os.unlink(tmp_path / "other")

        assert killed(tmp_path, careless, 3, seed) == -9
        content = path.read_bytes() if path.exists() else None
        left.add("gone" if content is None else "whole" if content == b"x" * 100 else "damaged")
    assert left == {"gone", "whole", "damaged"}


@pytest.mark.parametrize("kill_at", range(1, 12))
def test_a_file_is_old_or_new_wherever_its_writer_dies(tmp_path, kill_at) -> None:
    for seed in range(8):
        path = tmp_path / f"file{seed}"
        path.write_bytes(b"old")
        killed(tmp_path, lambda path=path: write_atomically(path, lambda file: file.write(b"new" * 50)), kill_at, seed)
        assert path.read_bytes() in (b"old", b"new" * 50)


@pytest.mark.parametrize("kill_at", range(1, 14))
def test_a_journal_has_every_line_whose_appending_returned(tmp_path, kill_at) -> None:
    for seed in range(8):
        path, told = tmp_path / f"journal{seed}", tmp_path.parent / f"{tmp_path.name}-told{seed}"

        def work(path=path, told=told) -> None:
            journal = Journal(path)
            for number in range(3):
                journal.append({"number": number})
                told.write_text(str(number + 1))

        killed(tmp_path, work, kill_at, seed)
        count = int(told.read_text()) if told.exists() else 0
        lines = Journal(path).lines
        assert lines[:count] == [{"number": number} for number in range(count)]
