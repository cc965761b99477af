"""A run on packed folders ends as the run on the folders, to the bit, wherever one is put in the place of the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import small_run
from tests.processes import kill_when, run_here
from tests.retrain.conftest import write_few_digits
from tests.test_resume import assert_equal
from vitas.data.packing import PackOptions, pack
from vitas.predictions import Predictions

PARTS = {"search": "train", "sample": "val", "retrain": "train", "test": "test"}


@pytest.fixture(scope="module")
def packs(digits, tmp_path_factory) -> Path:
    """The digits as packs of several files; fewer of the train images."""
    folder = tmp_path_factory.mktemp("packs")
    plain = folder / "plain"
    plain.mkdir()
    write_few_digits(digits, plain / "train")
    for part in ("val", "test"):
        (plain / part).symlink_to(digits / part)
    for part in ("train", "val", "test"):
        pack(plain / part, folder / part, PackOptions(shard_bytes=100_000), 1)
    return folder


def write_config(path: Path, save_path: Path, images: Path, holdout: float | None = None) -> Path:
    run = small_run(save_path, images)
    for stage in PARTS:
        run[stage]["data"]["workers"] = 0
        if stage in ("search", "retrain"):
            run[stage] |= {"batch_size": 20, "checkpoint_steps": 3}
    if holdout is not None:
        run["sample"]["data"]["data_dir"] = run["search"]["data"]["data_dir"]
        for stage in ("search", "sample", "retrain"):
            run[stage]["data"]["holdout"] = holdout
    path.write_text(yaml.safe_dump(run))
    return path


def run_all(config: Path) -> None:
    for program in ("search", "retrain", "inference"):
        run_here(program, config)


def assert_same_search(one: Path, other: Path) -> None:
    for name in ("search/population.jsonl", "search/architectures.yaml"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert_same_weights(one / "search", other / "search")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (sorted((folder / "checkpoint").glob("epoch_*"))[-1] for folder in (one, other))
    assert first.name == second.name
    assert_equal(*(torch.load(path, weights_only=True) for path in (first, second)))


def assert_same_results(one: Path, other: Path) -> None:
    assert_same_search(one, other)
    assert_same_weights(one / "retrain", other / "retrain")
    left, right = (Predictions.read(folder / "retrain" / "predictions.npz") for folder in (one, other))
    assert (left.files, left.classes, left.losses.tolist()) == (right.files, right.classes, right.losses.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("holdout", [None, 0.25])
def test_every_stage_on_packs_ends_as_on_the_folders(packs, tmp_path, holdout):
    plain = write_config(tmp_path / "plain.yaml", tmp_path / "plain", packs / "plain", holdout)
    packed = write_config(tmp_path / "packed.yaml", tmp_path / "packed", packs, holdout)
    run_all(plain)
    run_all(packed)
    assert_same_results(tmp_path / "plain", tmp_path / "packed")


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_on_the_pack_of_its_folder(packs, tmp_path):
    undisturbed = write_config(tmp_path / "undisturbed.yaml", tmp_path / "undisturbed", packs / "plain")
    run_here("search", undisturbed)
    save_path = tmp_path / "run"
    plain = write_config(tmp_path / "plain.yaml", save_path, packs / "plain")
    packed = write_config(tmp_path / "packed.yaml", save_path, packs)
    kill_when((save_path / "search" / "checkpoint" / "recent_ckpt.pth.tar").exists, "search", plain)
    assert "resumes at step" in run_here("search", packed)
    assert_same_search(tmp_path / "undisturbed", save_path)


def test_a_run_does_not_go_on_on_a_pack_of_other_images(packs, tmp_path, capsys):
    config = write_config(tmp_path / "plain.yaml", tmp_path / "run", packs / "plain")
    words = ("sample.flag=false", "search.epochs=1", "search.warmup_epochs=0")
    run_here("search", config, *words)
    with pytest.raises(SystemExit):
        run_here("search", config, *words, f"search.data.data_dir={packs / 'val'}")
    assert "holds other images than when" in capsys.readouterr().err


def test_check_opens_the_images_of_packs_and_names_a_pack_that_is_not_whole(vitas, packs, tmp_path):
    config = write_config(tmp_path / "config.yaml", tmp_path / "run", packs)
    code, out, err = vitas("check", config, "--data", "--processes", 1)
    assert (code, err) == (0, "")
    assert f"{packs / 'test'}: 360 images of 10 classes, 0 bad" in out
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (packs / "test").iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: -8 if path.suffix == ".arrow" else None])
    code, out, _ = vitas("check", config, f"test.data.data_dir={broken}")
    assert code == 2
    assert "test.data.data_dir: " in out
    assert "copy the pack again" in out
