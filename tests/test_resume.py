"""A stage killed with kill -9 and started again ends with the result of an undisturbed run, bit by bit."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import small_run
from tests.processes import kill_when, run_here
from tests.retrain.conftest import write_few_digits

pytestmark = pytest.mark.slow

# More steps than the smallest configuration has, so that there is a middle to be killed in.
LONG = [
    "search.epochs=4", "search.warmup_epochs=1", "search.mixup=0.8", "search.cutmix=1.0", "search.checkpoint_steps=5",
    "retrain.epochs=4", "retrain.warmup_epochs=1", "retrain.drop_path_rate=0.2", "retrain.ema_decay=0.9",
    "retrain.checkpoint_steps=5", "sample.generations=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory, digits) -> Path:
    path = tmp_path_factory.mktemp("resume") / "config.yaml"
    run = small_run(path.parent / "run", digits)
    for stage in ("search", "retrain"):
        run[stage]["batch_size"] = 20
        run[stage]["data"]["data_dir"] = str(write_few_digits(digits, path.parent / stage))
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture(scope="module")
def undisturbed(config) -> Path:
    folder = config.parent / "undisturbed"
    run_here("search", config, f"save_path={folder}", *LONG)
    run_here("retrain", config, f"save_path={folder}", *LONG)
    return folder


def test_each_stage_survives_kill(config, undisturbed, tmp_path) -> None:
    killed = tmp_path / "killed"
    arguments = (config, f"save_path={killed}", *LONG)
    checkpoints = {stage: killed / stage / "checkpoint" for stage in ("search", "retrain")}

    kill_when(lambda: (checkpoints["search"] / "recent_ckpt.pth.tar").exists(), "search", *arguments)
    assert not (checkpoints["search"] / "epoch_4_ckpt.pth.tar").exists()
    # The second process trains to the end of `search` and is killed in the middle of `sample`.
    population = killed / "search" / "population.jsonl"
    kill_when(lambda: population.exists() and len(population.read_bytes().splitlines()) > 8, "search", *arguments)
    assert not (killed / "search" / "architectures.yaml").exists()
    scored_before = [
        json.loads(line) for line in population.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
    ]
    output = run_here("search", *arguments)
    assert f"resumes from {len(scored_before) - 1} scores" in output

    kill_when(lambda: (checkpoints["retrain"] / "recent_ckpt.pth.tar").exists(), "retrain", *arguments)
    assert "resumes at step" in run_here("retrain", *arguments)

    for stage in ("search", "retrain"):
        name = f"{stage}/checkpoint/epoch_4_ckpt.pth.tar"
        assert_equal(*(torch.load(folder / name, weights_only=True) for folder in (undisturbed, killed)))
    for name in ("search/population.jsonl", "search/architectures.yaml"):
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes()


def test_a_finished_stage_does_nothing_when_started_again(config, undisturbed) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.pth.tar")}
    population = (undisturbed / "search" / "population.jsonl").read_bytes()
    output = run_here("search", config, f"save_path={undisturbed}", *LONG)
    assert "all 4 epochs" in output
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.pth.tar")}
    assert population == (undisturbed / "search" / "population.jsonl").read_bytes()


def assert_equal(left: object, right: object, where: str = "checkpoint") -> None:
    """Equal to the bit, all the way down."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}.{i}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where
