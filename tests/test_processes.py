"""Two processes give what one gives, for every stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from inference.test import test as measure
from retrain.retrain import retrain
from search.asvit.search import search as search_asvit
from search.sample import sample
from search.search import build_supernet, search
from tests.conftest import largest, small_run
from tests.processes import run_module
from tests.retrain.conftest import write_few_digits
from tests.retrain.test_token_schedule import SMALL, STAGED, TOKENS, VIT
from tests.search.test_asvit_search import small_asvit
from tests.test_resume import assert_equal
from vitas import config as configuration
from vitas import create_model
from vitas.checkpoint import CheckpointFolder, read
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.loading import load_weights
from vitas.plain_data import apply_override
from vitas.predictions import Predictions

pytestmark = pytest.mark.slow

# Mixup pairs images within a process's part of a batch, and stochastic depth draws for each process.
SAME = ["retrain.mixup=0", "retrain.cutmix=0", "retrain.drop_path_rate=0"]


RUNS = (
    "plain", "vit", "again", "staged", "asvit", "cyclic", "sandwich", "parts", "uneven", "damaged", "elastic",
    "accumulated", "program",
)  # fmt: skip


def newest(config: RunConfig, stage: str) -> Path:
    return CheckpointFolder(config.folder.checkpoints(stage)).resolve()


def supernet_logits(config: RunConfig, images: torch.Tensor) -> torch.Tensor:
    supernet = build_supernet(config, World()).eval()
    load_weights(supernet, newest(config, "search"))
    return supernet(images, largest(config.space))


def network_logits(config: RunConfig, images: torch.Tensor) -> torch.Tensor:
    path = newest(config, "retrain")
    network = create_model(read(path)["architecture"], config.model.num_classes, config.model.image_size).eval()
    load_weights(network, path)
    return network(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits) -> Path:
    """The YAMLs of what is run; their runs lie beside them."""
    folder = tmp_path_factory.mktemp("processes")
    few = write_few_digits(digits, folder / "digits")

    def add(name: str, *overrides: str, **sections: object) -> None:
        run = small_run(folder / name, digits)
        for stage in ("search", "retrain"):
            run[stage]["batch_size"] = 20
            run[stage]["data"]["data_dir"] = str(few)
        run |= sections
        for override in (*SAME, *overrides):
            apply_override(run, override)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(run, sort_keys=False))

    add("plain", "retrain.architecture=p8-e32-token-h2q96m64x2")
    add("program")
    for name, architecture in (("vit", VIT), ("again", VIT), ("staged", STAGED)):
        add(name, *SMALL, TOKENS, f"retrain.architecture={architecture}")
    asvit = small_asvit(digits) | {"steps": 3, "growth": {"parameters": 200_000, "hidden_dim": 8, "score_width": 1.0}}
    add("asvit", "model.space=null", search=asvit, sample=None)
    add("cyclic", "model.sharing=cyclic")
    distillation = "search.distillation={teacher: largest, weight: 1.0}"
    add("sandwich", "search.subnets={together: sandwich, randoms: 1, draw: in_budget}", distillation)
    add("parts", "search.subnets={parts: 4, together: complementary}", "search.panel={size: 3, epochs: 1}")
    # On two processes, images 0 to 9 and 10 to 19; on five parts, the third is in both.
    add("uneven", "search.subnets={parts: 5}", "model.sharing=ordinal")
    accumulated = [f"{stage}.accumulate=3" for stage in ("search", "retrain")]
    add(
        "accumulated", "search.subnets={parts: 2}", "retrain.activation_checkpointing=true",
        "retrain.architecture=p8-e32-token-h2q96m64x2", *accumulated,
    )  # fmt: skip
    damaged = {part: write_few_digits(digits, folder / f"damaged_{part}", part) for part in ("train", "val", "test")}
    for images in damaged.values():
        # All in the first rank's share of val and test images, which then has fewer than the second.
        for path in sorted((images / "1").iterdir())[2:5]:
            path.write_bytes(path.read_bytes()[:-60])
    parts = {"search": "train", "sample": "val", "retrain": "train", "test": "test"}
    data = [f"{stage}.data.data_dir={damaged[part]}" for stage, part in parts.items()]
    share = [f"{stage}.data.bad_images=0.02" for stage in parts]
    add("damaged", *data, *share, "retrain.architecture=p8-e32-token-h2q96m64x2")
    add(
        "elastic",
        f"model.from_pretrained={folder / 'plain' / 'retrain' / 'checkpoint' / 'epoch_2_ckpt.pth.tar'}",
        "model.space={embed: [0.5], heads: [0.5], mlp: [0.5], depth: [0.5]}",
        "model.importance.images=32",
        "search.distillation={teacher: pretrained}",
        "sample.budget={minimum: 100_000, maximum: 400_000}",
    )
    return folder


@pytest.fixture(scope="module")
def by_two(folder) -> Callable[[str], RunConfig]:
    """(name) -> a run by two processes, which torchrun has started once for all of them."""
    run_module("tests.two_ranks", *(folder / f"{name}.yaml" for name in RUNS), processes=2)
    return lambda name: configuration.load(folder / f"{name}.yaml")


@pytest.fixture
def by_one(folder) -> Callable[[str], RunConfig]:
    """(name) -> the same run, for this process, in a folder of its own."""
    return lambda name: configuration.load(folder / f"{name}.yaml", [f"save_path={folder / name}_by_one"])


@pytest.fixture(scope="module")
def rescored(folder, by_two) -> RunConfig:
    """`sample` and `test` by one process, with the supernet and the network that two processes trained."""
    config = configuration.load(folder / "program.yaml", [f"save_path={folder / 'rescored'}"])
    for stage, name in (("search", "program"), ("retrain", "plain")):
        shutil.copytree(by_two(name).folder.checkpoints(stage), config.folder.checkpoints(stage))
    sample(config, World())
    measure(config, World())
    return config


@pytest.fixture(scope="module")
def images(by_two) -> torch.Tensor:
    """Some of the test images."""
    config = by_two("plain")
    model = config.model
    everything = EvaluationSet.load(config.test.data, model.image_size, model.mean, model.std, World(), True)
    return next(everything.batches(64))[0]


def test_one_supernet_gives_the_same_scores_and_architectures(rescored, by_two) -> None:
    one, two = rescored.folder, by_two("program").folder
    assert two.population.read_bytes() == one.population.read_bytes()
    assert two.architectures.read_bytes() == one.architectures.read_bytes()


def test_one_network_is_measured_alike(rescored, by_two) -> None:
    results = [json.loads(config.folder.results.read_text()) for config in (rescored, by_two("plain"))]
    for key in ("top1", "top5", "macs", "macs_released", "parameters", "architecture", "images"):
        assert results[0][key] == results[1][key], key
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)


def test_one_network_predicts_alike(rescored, by_two) -> None:
    one, two = (Predictions.read(config.folder.predictions) for config in (rescored, by_two("plain")))
    assert (one.files, one.classes) == (two.files, two.classes)
    for name in ("labels", "top", "ranks", "worst", "pixels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for name in ("probabilities", "losses", "attention"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["program", "cyclic", "sandwich", "parts", "uneven", "elastic"])
def test_a_supernets_training_gives_the_same_network(by_one, by_two, images, name) -> None:
    one = by_one(name)
    search(one, World())
    assert_alike(supernet_logits(one, images), supernet_logits(by_two(name), images))


def test_a_networks_training_gives_the_same_network(by_one, by_two, images) -> None:
    one = by_one("plain")
    retrain(one, World())
    assert_alike(network_logits(one, images), network_logits(by_two("plain"), images))


def test_batches_in_parts_give_the_same_networks(folder, by_one, by_two, images) -> None:
    """Of two processes, whose gradients are reduced in the last part, and of one that passes whole batches."""
    config = configuration.load(
        folder / "accumulated.yaml", [f"save_path={folder / 'whole'}", "search.accumulate=1", "retrain.accumulate=1"]
    )
    search(config, World())
    retrain(config, World())
    two = by_two("accumulated")
    assert_alike(supernet_logits(config, images), supernet_logits(two, images))
    assert_alike(network_logits(config, images), network_logits(two, images))


def test_bad_images_are_replaced_and_left_out_alike(by_one, by_two, images) -> None:
    one, two = by_one("damaged"), by_two("damaged")
    shutil.copytree(two.folder.checkpoints("search"), one.folder.checkpoints("search"))
    sample(one, World())
    retrain(one, World())
    measure(one, World())
    assert two.folder.population.read_bytes() == one.folder.population.read_bytes()
    assert_alike(network_logits(one, images), network_logits(two, images))
    results = [json.loads(config.folder.results.read_text()) for config in (one, two)]
    assert [(found["images"], found["images_left_out"]) for found in results] == [(157, 3)] * 2
    for stage, folders in (("search", 2), ("retrain", 2)):
        # A file that both ranks find in the same moment may stand there twice.
        named = set(two.folder.bad_images(stage).read_text().splitlines())
        assert len(named) == 3 * folders
        if stage == "retrain":
            assert named == set(one.folder.bad_images(stage).read_text().splitlines())


def assert_alike(*logits: torch.Tensor) -> None:
    """To rounding, which Adam magnifies: gradients are summed in another order."""
    assert torch.allclose(*logits, atol=1e-2), (logits[0] - logits[1]).abs().max()


def test_a_run_that_was_stopped_within_a_phase_of_tokens_goes_on_as_undisturbed(by_two) -> None:
    assert_equal(*(read(newest(by_two(name), "retrain")) for name in ("vit", "again")))
    assert "resumes at step 8 of 24" in by_two("again").folder.log("retrain", None).read_text()


@pytest.mark.parametrize("name", ["vit", "staged"])
def test_training_on_coarser_tokens_gives_the_same_network(by_one, by_two, name) -> None:
    one = by_one(name)
    retrain(one, World())
    two = read(newest(by_two(name), "retrain"))["model"]
    for key, weights in read(newest(one, "retrain"))["model"].items():
        torch.testing.assert_close(two[key], weights, rtol=0, atol=1e-3, msg=key)


def test_asvit_finds_the_same(by_one, by_two) -> None:
    one, two = by_one("asvit"), by_two("asvit")
    search_asvit(one, World())
    for name in ("topologies", "growth", "architectures"):
        assert getattr(one.folder, name).read_bytes() == getattr(two.folder, name).read_bytes()
