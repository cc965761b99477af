"""Val images while `retrain` trains: the best network is kept, the training ends early, and neither disturbs it."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from inference.test import test as measure
from retrain.retrain import retrain
from tests.conftest import small_run
from tests.faults.kills import kill_stage
from tests.faults.stages import Target
from tests.processes import run
from tests.retrain.conftest import write_few_digits
from tests.test_resume import assert_equal
from vitas import config as configuration
from vitas.checkpoint import BEST, CheckpointFolder, read
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.validation import Validation

TEXT = "p8-e32-token-h2q96m64x2"
# A rate at which the top-1 of the val images goes up and down.
WILD = [
    "seed=1", "retrain.lr=4e-3", "retrain.epochs=10", "retrain.warmup_epochs=0", "retrain.ema_decay=0.5",
    "retrain.keep=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for part in ("train", "val", "test"):
        write_few_digits(digits, folder / part, part)
    return folder


@pytest.fixture(scope="module")
def path(images, tmp_path_factory) -> Path:
    """A training of 8 steps an epoch, with 160 val images."""
    folder = tmp_path_factory.mktemp("validation")
    config = small_run(folder / "run", images)
    del config["search"], config["sample"]
    config["retrain"] |= {
        "architecture": TEXT, "batch_size": 20, "log_steps": 4,
        "val": {"data_dir": str(images / "val"), "workers": 0, "crop_fraction": 1.0},
    }  # fmt: skip
    config["test"]["data"] = config["retrain"]["val"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def load(path: Path, folder: Path, *overrides: str) -> RunConfig:
    return configuration.load(path, [f"save_path={folder}", *WILD, *overrides])


def train(path: Path, folder: Path, *overrides: str) -> RunConfig:
    config = load(path, folder, *overrides)
    retrain(config, World())
    return config


def checkpoints(config: RunConfig) -> dict[str, dict]:
    return {file.name: read(file) for file in sorted(config.folder.checkpoints("retrain").iterdir())}


def rows(config: RunConfig) -> list[tuple[int, str, str, str]]:
    """What the CSV says, without what depends on the clock."""
    with open(config.folder.metrics("retrain"), newline="") as file:
        return [
            (int(row["step"]), row["epoch"], row["name"], row["value"])
            for row in csv.DictReader(file)
            if row["name"] != "train/images_per_second"
        ]


def curve(config: RunConfig, name: str = "val/top1") -> dict[int, float]:
    """The values of a name by epoch."""
    return {int(float(epoch)): float(value) for _, epoch, each, value in rows(config) if each == name}


@pytest.fixture(scope="module")
def undisturbed(path, tmp_path_factory) -> RunConfig:
    return train(path, tmp_path_factory.mktemp("undisturbed"))


def test_the_best_network_is_kept_when_its_epoch_is_rotated_away(undisturbed):
    values = curve(undisturbed)
    assert list(values) == list(range(1, 11))
    best = max(values, key=values.get)
    assert 1 < best < 10, "choose another rate: the first or last epoch is the best"
    assert CheckpointFolder(undisturbed.folder.checkpoints("retrain")).epochs() == [10]
    kept = checkpoints(undisturbed)[BEST]
    assert kept["epoch"] == best
    assert kept["validation"]["best_epoch"] == best
    log = undisturbed.folder.log("retrain", None).read_text()
    assert f"best {values[best]:.2f}% after epoch {best}, in {BEST}; test.load_name=best_ckpt chooses it" in log


def test_the_curve_is_of_the_weights_that_test_tests_and_of_those_in_training(path, undisturbed):
    best = checkpoints(undisturbed)[BEST]["epoch"]
    folder = undisturbed.folder.root
    for weights, name in (("ema", "val/top1"), ("model", "val/raw_top1")):
        config = load(path, folder, "test.load_name=best_ckpt", f"test.weights={weights}")
        measure(config, World())
        result = json.loads(config.folder.results.read_text())
        assert result["checkpoint"].endswith(BEST)
        assert result["top1"] == curve(undisturbed, name)[best]
    with open(config.folder.metrics("test"), newline="") as file:
        assert {(row["step"], row["name"]) for row in csv.DictReader(file)} == {
            (str(best), f"test/{name}") for name in ("top1", "top5", "loss", "images_per_second")
        }
    # By default the newest, and the log says that there is another.
    config = load(path, folder)
    measure(config, World())
    assert json.loads(config.folder.results.read_text())["checkpoint"].endswith("epoch_10_ckpt.pth.tar")
    assert f"there are {BEST} too, which test.load_name chooses" in config.folder.log("test", None).read_text()


def test_without_averaged_weights_there_is_one_curve(path, tmp_path):
    config = train(path, tmp_path, "retrain.ema_decay=0", "retrain.epochs=3", "retrain.val_epochs=2")
    assert list(curve(config)) == [2, 3]
    assert not curve(config, "val/raw_top1")


def test_a_training_is_the_same_to_the_bit_with_val_images_and_without(path, tmp_path, undisturbed):
    """Also on coarser tokens, with stochastic depth and mixup."""
    more = ["retrain.tokens=[{until: 0.5, reduce: 2}]", "retrain.mixup=0.8", "retrain.drop_path_rate=0.3"]
    states = []
    for name, val in (("with", []), ("without", ["retrain.val=null"])):
        state = checkpoints(train(path, tmp_path / name, *more, *val))["epoch_10_ckpt.pth.tar"]
        state.pop("validation", None)
        states.append(state)
    assert_equal(*states)


def test_a_measurement_draws_from_no_global_generator(path, tmp_path, monkeypatch):
    real, before = Validation._measure, []

    def watched(validation, network):
        states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        score = real(validation, network)
        assert states == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        assert network.training == (len(before) % 2 == 1), "the averaged weights first, then those in training"
        before.append(score)
        return score

    monkeypatch.setattr(Validation, "_measure", watched)
    train(path, tmp_path, "retrain.epochs=3")
    assert len(before) == 6


# The early end


def test_a_training_ends_after_its_patience_and_says_so_and_goes_no_further(path, tmp_path, undisturbed):
    values = curve(undisturbed)
    best = {epoch: max(range(1, epoch + 1), key=values.get) for epoch in values}
    stop = next((epoch for epoch in values if epoch - best[epoch] >= 2), 10)
    assert stop < 10, "choose another rate: no two epochs without a better one"
    config = train(path, tmp_path, "retrain.patience=2")
    assert max(curve(config)) == stop
    assert set(checkpoints(config)) == {BEST, f"epoch_{stop}_ckpt.pth.tar"}
    before = checkpoints(config), rows(config)
    train(path, tmp_path, "retrain.patience=2")
    log = config.folder.log("retrain", None).read_text()
    assert f"ends after epoch {stop} of 10: best" in log
    assert f"{stop} of 10 epochs are done: best" in log
    assert_equal((checkpoints(config), rows(config)), before)


# Kills


class Killed(BaseException):
    """The process is gone."""


MOMENTS = {
    "before the measurement": (Validation, "_measure", False),
    "after the measurement": (Validation, "after_epoch", True),
    "before the checkpoint": (CheckpointFolder, "save_epoch", False),
    "after the checkpoint": (CheckpointFolder, "save_epoch", True),
    "before the best is kept": (CheckpointFolder, "keep_best", False),
    "after the best is kept": (CheckpointFolder, "keep_best", True),
    "before a checkpoint between": (CheckpointFolder, "save_recent", False),
    "after a checkpoint between": (CheckpointFolder, "save_recent", True),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("often", ["every epoch", "every third epoch"])
def test_a_training_that_is_killed_at_any_moment_has_the_same_best_network_and_end(
    path, tmp_path, monkeypatch, moment, often
):
    overrides = ["retrain.patience=3", f"retrain.checkpoint_epochs={1 if often == 'every epoch' else 3}"]
    wanted = train(path, tmp_path / "undisturbed", *overrides)
    owner, name, after = MOMENTS[moment]
    real = getattr(owner, name)
    # Each process dies at such a moment, and each a moment later in its life, until none comes.
    for moments in range(2, 12):
        calls = []

        def dying(*given, calls=calls, last=moments):
            calls.append(given)
            if len(calls) == last and not after:
                raise Killed
            result = real(*given)
            if len(calls) == last:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            try:
                config = train(path, tmp_path / "killed", *overrides)
                break
            except Killed:
                continue
    else:
        pytest.fail("it gets nowhere")
    assert_equal(checkpoints(config), checkpoints(wanted))
    assert rows(config) == rows(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("forgets", [False, True], ids=["kept", "forgotten"])
def test_a_training_with_val_images_that_is_killed_inside_calls_ends_as_an_undisturbed_one(tmp_path, digits, forgets):
    val = tmp_path / "val"
    write_few_digits(digits, val, "val")
    target = Target(
        tmp_path / "target", f"retrain.val={{data_dir: {val}, workers: 0, crop_fraction: 1.0}}",
        "retrain.ema_decay=0.5", "retrain.lr=4e-3", "retrain.checkpoint_epochs=2", "retrain.epochs=4",
    )  # fmt: skip
    count = kill_stage(target, "retrain", 8, forgets, seed=1)
    assert count.injected == 8
    assert not count.failures, count.examples


def test_a_best_network_that_somebody_removed_comes_back_from_its_epoch_or_is_said_to_be_gone(path, tmp_path):
    overrides = ["retrain.keep=0"]
    config = train(path, tmp_path, *overrides)
    folder = config.folder.checkpoints("retrain")
    best = read(folder / BEST)
    (folder / BEST).unlink()
    train(path, tmp_path, *overrides)
    assert_equal(read(folder / BEST), best)
    (folder / BEST).write_bytes(b"damaged")
    (folder / f"epoch_{best['epoch']}_ckpt.pth.tar").unlink()
    train(path, tmp_path, *overrides)
    assert (
        f"{BEST} of epoch {best['epoch']}, the best one so far, is not there"
        in config.folder.log("retrain", None).read_text()
    )


def test_val_images_that_are_others_or_new_begin_anew(path, tmp_path, images):
    config = train(path, tmp_path, "retrain.val=null", "retrain.keep=0")
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    for epoch in range(4, 11):
        folder.epoch_path(epoch).unlink()
    train(path, tmp_path, "retrain.keep=0")
    assert list(curve(config)) == list(range(3, 11))
    for epoch in range(9, 11):
        folder.epoch_path(epoch).unlink()
    fewer = shutil.copytree(images / "val", tmp_path / "fewer")
    for image in sorted((fewer / "3").iterdir())[:4]:
        image.unlink()
    train(path, tmp_path, "retrain.keep=0", f"retrain.val.data_dir={fewer}")
    assert "the val images are others than those of the checkpoint" in config.folder.log("retrain", None).read_text()
    assert read(folder.folder / BEST)["epoch"] >= 8


@pytest.mark.slow
def test_ranks_measure_their_shares_and_agree(path, tmp_path):
    """Each network is measured whole: top-1 counts images, so the sum over the ranks is exact."""
    overrides = [*WILD, "retrain.epochs=3", "retrain.patience=1"]
    run("retrain", path, f"save_path={tmp_path}", *overrides, processes=2)
    config = load(path, tmp_path, "retrain.epochs=3")
    for epoch, top1 in curve(config).items():
        assert round(top1 * 160 / 100, 6) == round(top1 * 160 / 100), epoch
    assert checkpoints(config)[BEST]["validation"]["best_epoch"] in curve(config)
