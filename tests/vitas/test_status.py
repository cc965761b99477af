"""`vitas status`: what the files of a run say of it."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.processes import run_here
from vitas.run import RunFolder
from vitas.slurm import queries
from vitas.slurm.lock import Lock
from vitas.status import DONE, FAILED, NOT_STARTED, RUNNING, STOPPED, read_status


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run whose four stages have sections, and none has begun."""
    folder = RunFolder(tmp_path / "run")
    start(folder, "search")
    return folder


def start(folder: RunFolder, program: str, job: str | None = None) -> Path:
    """What a program writes when it starts."""
    where = folder.start(program, job)
    where.mkdir(parents=True, exist_ok=True)
    sections = {"search": {"epochs": 10}, "sample": {"generations": 8}, "retrain": {"epochs": 3}, "test": {}}
    data = {"model": {"image_size": 32, "num_classes": 10}, **sections}
    (where / "config.yaml").write_text(json.dumps(data))
    (where / "environment.json").write_text(json.dumps({"slurm_job": job}))
    return where


def log(folder: RunFolder, stage: str, *lines: str, ago: float = 0, job: str | None = None) -> None:
    """Lines of a stage's log, a second apart, the last so many seconds ago."""
    path = folder.log(stage, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    first = time.time() - ago - len(lines) + 1
    stamps = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first + i)) for i in range(len(lines))]
    with open(path, "a") as file:
        file.writelines(f"{stamp} {stage}: {line}\n" for stamp, line in zip(stamps, lines, strict=True))
    os.utime(path, (time.time() - ago, time.time() - ago))


STEP = "epoch {done:.2f}/10  step 5/100  loss 1.2  lr 0.001  99 images/s  left 1:02:03"


def stages(folder: RunFolder) -> dict:
    return {stage.name: stage for stage in read_status(folder).stages}


def test_a_run_that_has_not_begun(run):
    assert [stage.state for stage in stages(run).values()] == [NOT_STARTED] * 4
    assert read_status(run).summary == NOT_STARTED


def test_a_training_that_runs_says_how_far_it_is_and_what_is_left(run):
    log(run, "search", "trains", STEP.format(done=2.5), "something else")
    lock = Lock(run.lock("search"))
    try:
        status, stage = read_status(run), stages(run)["search"]
    finally:
        lock.release()
    assert (stage.state, stage.done, stage.total, stage.unit) == (RUNNING, 2.5, 10, "epochs")
    assert stage.seconds_left == pytest.approx(3723, abs=5)
    assert f"process {os.getpid()}" in status.writer
    assert status.error is None


def test_a_search_that_runs_says_its_best_score_and_time_left_by_its_pace(run):
    log(run, "search", "the supernet is in x", ago=50)
    log(run, "sample", *(f"generation {i}/8  best top-1 {70 + i}.25%  {i} scored  mean" for i in range(5)))
    lock = Lock(run.lock("search"))
    try:
        found = stages(run)
    finally:
        lock.release()
    assert found["search"].state == DONE
    stage = found["sample"]
    assert (stage.state, stage.done, stage.total, stage.best) == (RUNNING, 4, 8, 74.25)
    assert stage.seconds_left == pytest.approx(4, abs=2)


def test_a_start_that_was_killed_left_no_word(run):
    log(run, "search", STEP.format(done=2.5))
    assert stages(run)["search"].state == STOPPED
    assert "it was killed" in read_status(run).error
    # A rank under Slurm leaves its traceback.
    (run.start("search", None) / "rank_3.err").write_text("Traceback\n  x\nRuntimeError: no memory\n")
    assert read_status(run).error == "rank_3.err: RuntimeError: no memory"


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [(0, STOPPED, None), (75, STOPPED, None), (2, FAILED, "it says why"), (1, FAILED, "it says why")],
)
def test_a_start_says_how_it_ended(run, code, state, error):
    log(run, "search", STEP.format(done=2.5))
    end = {"time": "2026-01-01 00:00:00", "code": code, "message": "it says why"}
    run.end("search", None).write_text(json.dumps(end))
    assert stages(run)["search"].state == state
    assert read_status(run).error == error


def test_a_training_whose_epochs_were_raised_is_not_done(run):
    log(run, "retrain", "epoch 3.00/3  step 9/9  loss 1", "the network is in x")
    assert stages(run)["retrain"].state == DONE
    config = run.start("search", None) / "config.yaml"
    config.write_text(config.read_text().replace('"retrain": {"epochs": 3}', '"retrain": {"epochs": 5}'))
    assert stages(run)["retrain"].state == STOPPED


def test_the_job_is_that_of_the_last_start_and_slurm_is_asked_for_it(run, monkeypatch):
    where = start(run, "retrain", "42")
    os.utime(where / "environment.json", (time.time() + 5,) * 2)
    monkeypatch.setattr(queries, "installed", lambda: True)
    monkeypatch.setattr(queries, "state", lambda job: {"42": "PENDING"}.get(job))
    status = read_status(run)
    assert (status.job, status.job_state) == ("42", "PENDING")

    def fails(job: str) -> str:
        raise queries.SlurmError("no controller")

    monkeypatch.setattr(queries, "state", fails)
    assert read_status(run).job_state is None


def test_damaged_files_are_no_reason_to_say_nothing(run):
    log(run, "search", "\udcff not a line".encode("utf-8", "replace").decode(), STEP.format(done=1))
    (run.start("search", None) / "config.yaml").write_text("{")
    (run.start("search", None) / "environment.json").write_text("{")
    (run.start("search", None) / "end.json").write_text("[]")
    run.lock("search").write_text("nothing")
    run.results.parent.mkdir(parents=True, exist_ok=True)
    run.results.write_text("{")
    assert stages(run)["search"].state == STOPPED


def test_a_whole_run_is_told_stage_by_stage(vitas, make_config, tmp_path):
    path = make_config({"sample.generations": 0})
    run_here("search", path)
    code, out, _ = vitas("status", tmp_path / "run", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert [stage["state"] for stage in found["stages"]] == [DONE, DONE, NOT_STARTED, NOT_STARTED]
    assert 0 < found["stages"][1]["best"] <= 100
    assert (found["image_size"], found["num_classes"], found["error"], found["writer"]) == (32, 10, None, None)
    with pytest.raises(SystemExit):
        run_here(
            "retrain", path, "retrain.architecture=best", "retrain.batch_size=1000", "retrain.from_checkpoint=gone"
        )
    code, out, _ = vitas("status", tmp_path / "run")
    assert code == 0
    assert "last error: gone: no such file" in out


def test_a_folder_that_is_not_there_is_refused(vitas, tmp_path):
    code, _, err = vitas("status", tmp_path / "gone")
    assert (code, "it must be the save_path of a run" in err) == (2, True)
