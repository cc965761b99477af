"""Bad images in `retrain`: a run goes on as if undisturbed, or stops with one message; and no process is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from inference.test import test as measure
from retrain.retrain import retrain
from tests.processes import ENVIRONMENT, REPOSITORY, command, kill_when
from tests.test_resume import assert_equal
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder, read
from vitas.config import RunConfig
from vitas.distributed import World

ARCHITECTURE = "retrain.architecture=p8-e32-token-h2q96m64x2"


@pytest.fixture
def folder(few_digits, tmp_path) -> Path:
    """160 digits, of which the fourth of each of three classes is damaged."""
    folder = tmp_path / "damaged"
    shutil.copytree(few_digits, folder)
    for digit in (2, 5, 9):
        image = sorted((folder / str(digit)).iterdir())[3]
        image.write_bytes(image.read_bytes()[:-60])
    return folder


@pytest.fixture
def words(make_config, folder) -> list:
    """The YAML, and what makes it a short training on the damaged folder, with workers, that may skip its three."""
    data = {"data_dir": str(folder), "workers": 2, "bad_images": 0.02}
    return [make_config(), f"retrain.data={json.dumps(data)}", "retrain.batch_size=20", ARCHITECTURE]


def newest(config: RunConfig) -> dict:
    return read(CheckpointFolder(config.folder.checkpoints("retrain")).resolve())


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_over_bad_images_ends_as_an_undisturbed_one(words, tmp_path) -> None:
    path, *overrides = words
    overrides += ["retrain.epochs=4", "retrain.checkpoint_steps=3"]
    undisturbed = configuration.load(path, [*overrides, f"save_path={tmp_path / 'undisturbed'}"])
    retrain(undisturbed, World())
    # Another number of workers, and another share; only its limit must hold.
    killed = configuration.load(path, [*overrides, "retrain.data.bad_images=0.5", "retrain.data.workers=0"])
    recent = killed.folder.checkpoints("retrain") / "recent_ckpt.pth.tar"
    kill_when(recent.exists, "retrain", path, *overrides)
    retrain(killed, World())
    assert "resumes at step" in killed.folder.log("retrain", None).read_text()
    assert_equal(newest(undisturbed), newest(killed))
    named = [sorted(config.folder.bad_images("retrain").read_text().splitlines()) for config in (undisturbed, killed)]
    assert len(named[0]) == 3
    assert named[0] == named[1]


def test_training_on_bad_images_is_training_on_the_good_ones_in_their_places(words, folder, tmp_path) -> None:
    path, *overrides = words
    spoilt = configuration.load(path, [*overrides, f"save_path={tmp_path / 'spoilt'}"])
    retrain(spoilt, World())
    for line in spoilt.folder.bad_images("retrain").read_text().splitlines():
        bad = Path(line.split("\t")[0])
        images = sorted(bad.parent.iterdir())
        shutil.copy(images[images.index(bad) + 1], bad)
    mended = configuration.load(path, [*overrides, "retrain.data.bad_images=0.0"])
    retrain(mended, World())
    assert not mended.folder.bad_images("retrain").exists()
    assert_equal(*(newest(config) | {"recipe": None} for config in (spoilt, mended)))


def test_the_stage_test_says_how_many_images_it_left_out(words, folder) -> None:
    path, *overrides = words
    data = f"test.data={{data_dir: {folder}, workers: 0, bad_images: 0.02}}"
    config = configuration.load(path, [*overrides, data, "retrain.epochs=1", "retrain.warmup_epochs=0"])
    retrain(config, World())
    measure(config, World())
    results = json.loads(config.folder.results.read_text())
    assert (results["images"], results["images_left_out"]) == (157, 3)
    assert "measures on 157 images; 3 are bad and left out" in config.folder.log("test", None).read_text()


# The program


def run(arguments: list[str], during=lambda process: None) -> tuple[int, str, str]:
    """Run a program in a session of its own: its exit code, output and errors. All its processes must have ended."""
    process = subprocess.Popen(
        arguments,
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        during(process)
        output, errors = process.communicate(timeout=90)
        end = time.monotonic() + 2
        while (left := processes_of(process.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left, f"left behind: {left}"
        return process.returncode, output, errors
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def processes_of(session: int, parent: int | None = None) -> list[int]:
    """The processes of a session that run, or those of them with a certain parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, its_parent, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z" and parent in (None, int(its_parent)):
                found.append(int(path.parent.name))
    return found


def with_patch(patch: str, words: list) -> list[str]:
    """`python -m retrain`, with something broken in it first."""
    return [sys.executable, "-c", f"import runpy, sys\n{patch}\nsys.argv[0] = 'retrain'\n"
            "runpy.run_module('retrain', run_name='__main__', alter_sys=True)", *map(str, words)]  # fmt: skip


def test_too_many_bad_images_end_the_program_with_one_message_and_no_process_left(words) -> None:
    code, output, errors = run(command("retrain", *words, "retrain.data.bad_images=0"))
    assert code == 2
    assert errors.startswith("error: found ")
    assert "bad_images (0 of them) allows 0" in errors
    assert "is a damaged image" in errors
    assert "Traceback" not in output + errors


@pytest.mark.slow
def test_bad_images_of_every_kind_end_neither_the_program_nor_its_workers(words, folder) -> None:
    (folder / "0" / "text.png").write_text("no picture")
    os.mkfifo(folder / "1" / "fifo.png")
    (folder / "3" / "gone.png").symlink_to(folder / "nowhere")
    code, output, errors = run(command("retrain", *words, "retrain.data.bad_images=0.05"))
    assert (code, errors) == (0, "")
    assert output.count("bad image, ") == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "patch",
    [
        "import vitas.checkpoint as c\ndef broken(*_): raise RuntimeError('out of order')\n"
        "c.CheckpointFolder.save_epoch = broken",
        "import vitas.data.training as t\ndef broken(*_): raise RuntimeError('out of order')\n"
        "t.AugmentedImages._augmented = broken",
        "import os, vitas.data.training as t\ndef broken(*_): os.kill(os.getpid(), 9)\n"
        "t.AugmentedImages._augmented = broken",
    ],
    ids=["in the main process", "in a worker", "of a killed worker"],
)
def test_after_an_exception_the_program_ends_with_its_traceback_and_no_process_left(words, patch) -> None:
    code, _, errors = run(with_patch(patch, words))
    assert code == 1
    assert "Traceback" in errors
    assert "out of order" in errors or "killed by signal" in errors


@pytest.mark.slow
def test_workers_of_a_killed_program_end_though_nobody_takes_their_batches(words, tmp_path) -> None:
    """Which fill the pipe to it: 20 images are nearly as much as a pipe holds."""

    def kill(process: subprocess.Popen) -> None:
        while not list(tmp_path.rglob("recent_ckpt.pth.tar")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()

    code, _, _ = run(command("retrain", *words, "retrain.epochs=40", "retrain.checkpoint_steps=3"), kill)
    assert code == -signal.SIGKILL


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_outlive_a_program_that_ends(words) -> None:
    """It ignores signals, and does not look whether it is still needed."""
    patch = (
        "import time, torch.utils.data as d, vitas.data.training as t\nwhole = t.AugmentedImages._augmented\n"
        "def broken(self, *item):\n    if d.get_worker_info().id: time.sleep(1000)\n"
        "    raise RuntimeError('out of order')\n"
        "t.AugmentedImages._augmented = broken"
    )
    code, _, errors = run(with_patch(patch, words))
    assert code == 1
    assert "out of order" in errors
