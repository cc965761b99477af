"""Two processes give what one gives, for every stage."""

import json
import shutil

import pytest
import torch

from tests.conftest import largest
from tests.processes import run
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder, load_weights
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.models import SuperNet, VisionTransformer

pytestmark = pytest.mark.slow

# Mixup pairs images within a process's part of a batch, and stochastic depth draws for each process.
SAME = ["search.mixup=0", "search.cutmix=0", "retrain.mixup=0", "retrain.cutmix=0", "retrain.drop_path_rate=0"]


@pytest.fixture
def runs(make_config, tmp_path):
    """The same stages with one process and with two; the second evolves with the first's supernet."""
    path = make_config()
    folders = {1: tmp_path / "one", 2: tmp_path / "two"}
    for processes, folder in folders.items():
        arguments = (path, f"save_path={folder}", *SAME)
        if processes == 1:
            run("search", *arguments)
        else:
            run("search", *arguments, "sample.flag=false", processes=processes)
            shutil.copytree(folder / "search", tmp_path / "trained by two")
            shutil.copytree(folders[1] / "search" / "checkpoint", folder / "search" / "checkpoint", dirs_exist_ok=True)
            run("search", *arguments, "search.flag=false", processes=processes)
        run("retrain", *arguments, processes=processes)
        if processes == 2:
            shutil.copytree(folder / "retrain", tmp_path / "retrained by two")
            shutil.copytree(
                folders[1] / "retrain" / "checkpoint", folder / "retrain" / "checkpoint", dirs_exist_ok=True
            )
        run("inference", *arguments, processes=processes)
    return path, folders, tmp_path


def test_every_stage(runs) -> None:
    path, folders, tmp_path = runs
    populations = {
        count: [json.loads(line) for line in (folder / "search" / "population.jsonl").read_text().splitlines()]
        for count, folder in folders.items()
    }
    assert populations[1] == populations[2]
    texts = {count: (folder / "search" / "architectures.yaml").read_text() for count, folder in folders.items()}
    assert texts[1] == texts[2]

    results = {
        count: json.loads((folder / "retrain" / "results.json").read_text()) for count, folder in folders.items()
    }
    for key in ("top1", "top5", "macs", "macs_released", "parameters", "architecture", "images"):
        assert results[1][key] == results[2][key], key
    assert results[1]["loss"] == pytest.approx(results[2]["loss"], rel=1e-5)

    # Training sums gradients in another order, so networks agree to rounding, which Adam magnifies: compare outputs.
    config = configuration.load(path)
    model = config.model
    data = config.test.data
    images, _ = next(EvaluationSet.load(data, model.image_size, model.mean, model.std, World(), True).batches(64))
    architecture = largest(config.space)
    logits = []
    for folder in (folders[1] / "search", tmp_path / "trained by two"):
        supernet = SuperNet(config.space, model.num_classes, model.image_size, model.sharing, model.qkv_mode).eval()
        load_weights(supernet, CheckpointFolder(folder / "checkpoint").resolve())
        logits.append(supernet(images, architecture))
    assert torch.allclose(*logits, atol=1e-2), (logits[0] - logits[1]).abs().max()
    logits = []
    for folder in (folders[1] / "retrain", tmp_path / "retrained by two"):
        checkpoint = CheckpointFolder(folder / "checkpoint").resolve()
        text = torch.load(checkpoint, weights_only=True)["architecture"]
        network = VisionTransformer(config.architecture(text), model.num_classes, model.image_size).eval()
        load_weights(network, checkpoint)
        logits.append(network(images))
    assert torch.allclose(*logits, atol=1e-2), (logits[0] - logits[1]).abs().max()
