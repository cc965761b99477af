"""The folder of a run: what counts as getting on, by which a job that dies in place is told from one that does not."""

import json
import os
from pathlib import Path

import pytest

from vitas.files import write_text
from vitas.journal import Journal
from vitas.run import STAGES, RunFolder

# No progress of their own: what is written anew with each results.json, and what only shows what there is.
BESIDE = {"predictions", "report"}
# Every file that a stage may write, by its name here; those of a stage that is still to come are found as well.
OUTPUTS = {
    name: path
    for name in dir(RunFolder)
    if name not in BESIDE
    and isinstance(getattr(RunFolder, name), property)
    and (path := getattr(RunFolder(Path()), name)).suffix
}
# What is given away on request, by no stage.
GIVEN_AWAY = {"exports"}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_stages_files_are_known():
    assert {"population", "topologies", "growth", "panel", "latency", "results", "front"} <= OUTPUTS.keys()
    properties = {name for name in dir(RunFolder) if isinstance(getattr(RunFolder, name), property)}
    assert properties - OUTPUTS.keys() == GIVEN_AWAY | BESIDE


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_what_shows_what_there_is_is_no_progress(run, name):
    before = run.progress()
    write_text(getattr(run, name), "anything")
    assert run.progress() == before


@pytest.mark.parametrize("name", OUTPUTS)
def test_whatever_a_stage_writes_is_progress(run, name):
    before = run.progress()
    write_text(run.root / OUTPUTS[name], "{}\n")
    first = run.progress()
    assert first != before
    write_text(run.root / OUTPUTS[name], "{}\n{}\n")
    assert run.progress() not in (before, first)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_any_stage_is_progress_and_so_is_one_of_the_same_name(run, stage):
    path = run.checkpoints(stage) / "recent_ckpt.pth.tar"
    before = run.progress()
    write_text(path, "step 1")
    first = run.progress()
    write_text(path, "step 2")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert len({before, first, run.progress()}) == 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_journal_of_any_stage_is_progress(run, stage):
    before = run.progress()
    Journal(run.checkpoints(stage).with_name("not_known_here.jsonl")).append({"a": 1})
    assert run.progress() != before


def test_what_a_start_that_gets_no_further_writes_is_no_progress(run):
    journal = Journal(run.growth)
    journal.append({"score": 1})
    with open(run.growth, "ab") as file:
        file.write(b'{"sco')
    write_text(run.results, json.dumps({"images_per_second": 100.0}, indent=2) + "\n")
    before = run.progress()
    Journal(run.growth)
    assert not run.growth.read_bytes().endswith(b"sco")
    os.utime(run.growth)
    write_text(run.results, json.dumps({"images_per_second": 99.0}, indent=2) + "\n")
    write_text(run.start("search", "7") / "environment.json", "{}\n")
    Journal(run.start("search", "7") / "requeues.jsonl").append({"restarts": 1})
    write_text(run.log("search", "7"), "it starts\n")
    write_text(run.events("search") / "events.out.tfevents", "x\n")
    write_text(run.lock("search"), "x\n")
    assert run.progress() == before
