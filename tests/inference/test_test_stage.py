"""The stage `test`: which checkpoints it measures, with what numbers, and what it refuses."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from inference.test import test as measure
from retrain.retrain import retrain
from tests.processes import run
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.errors import UserError
from vitas.models import VisionTransformer
from vitas.predictions import WORST, Predictions
from vitas.released import read_model
from vitas.slurm.signals import Interrupted

ARCHITECTURE = "retrain.architecture=p8-e32-token-h2q96m64x2"
TRAINED = [ARCHITECTURE, "retrain.epochs=3", "retrain.warmup_epochs=0", "retrain.keep=0", "retrain.ema_decay=0.9"]


@pytest.fixture
def trained(make_config):
    path = make_config()
    retrain(configuration.load(path, TRAINED), World())
    return path


def results(path, *overrides: str) -> dict:
    config = configuration.load(path, [*TRAINED, *overrides])
    measure(config, World())
    return json.loads(config.folder.results.read_text())


def test_results_are_those_of_the_network_on_the_test_images(trained) -> None:
    found = results(trained)
    config = configuration.load(trained, TRAINED)
    model = config.model
    architecture = config.architecture(config.retrain.architecture)
    size = (model.image_size, model.num_classes)
    assert found["macs"] == architecture.macs(*size)
    assert found["macs_released"] == architecture.macs(*size, "released")
    assert found["parameters"] == architecture.parameters(*size)
    assert found["images_per_second"] > 0
    assert found["checkpoint"].endswith("epoch_3_ckpt.pth.tar")

    network = VisionTransformer(architecture, *reversed(size)).eval()
    network.load_state_dict(torch.load(found["checkpoint"], weights_only=True)["model"])
    images = EvaluationSet.load(config.test.data, model.image_size, model.mean, model.std, World(), True)
    assert found["images"] == len(images.images) == sum(1 for _ in (images.labels))
    with torch.no_grad():
        batches = [(network(batch), labels) for batch, labels in images.batches(100)]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    ranked = logits.argsort(dim=1, descending=True) == labels[:, None]
    assert found["top1"] == pytest.approx(100 * ranked[:, 0].float().mean().item())
    assert found["top5"] == pytest.approx(100 * ranked[:, :5].any(dim=1).float().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_predictions_are_those_of_the_results(trained) -> None:
    found = results(trained)
    config = configuration.load(trained, TRAINED)
    predictions = Predictions.read(config.folder.predictions)
    assert predictions.about["checkpoint"] == found["checkpoint"]
    assert len(predictions.files) == found["images"]
    assert 100 * predictions.right().mean() == pytest.approx(found["top1"])
    assert 100 * (predictions.ranks < 5).mean() == pytest.approx(found["top5"])
    assert predictions.losses.mean() == pytest.approx(found["loss"], rel=1e-5)
    # A file's class is its folder; of the images the worst are kept, the worst first, with what the network saw.
    assert [name.split("/")[0] for name in predictions.files] == [
        predictions.classes[label] for label in predictions.labels
    ]
    assert predictions.losses[predictions.worst].tolist() == sorted(predictions.losses, reverse=True)[:WORST]
    images = EvaluationSet.load(config.test.data, 32, config.model.mean, config.model.std, World(), True)
    seen = images.images[torch.from_numpy(predictions.worst).long()].permute(0, 2, 3, 1).numpy()
    assert (predictions.pixels == seen).all()
    assert predictions.attention.shape == (WORST, 4, 4)
    assert predictions.attention.sum((1, 2)) == pytest.approx(np.ones(WORST), abs=0.01)
    # Written anew, the same bytes.
    before = config.folder.predictions.read_bytes()
    results(trained)
    assert config.folder.predictions.read_bytes() == before


def test_a_range_of_epochs_with_a_stride(trained) -> None:
    found = results(trained, "test.start=1", "test.end=3", "test.strip=2")
    epochs = [row["checkpoint"].rsplit("/", 1)[-1] for row in found["checkpoints"]]
    assert epochs == ["epoch_1_ckpt.pth.tar", "epoch_3_ckpt.pth.tar"]
    assert found["checkpoint"] == found["checkpoints"][-1]["checkpoint"]
    with pytest.raises(UserError, match="no checkpoint of epoch 4"):
        results(trained, "test.start=2", "test.end=4")


def test_each_checkpoint_is_read_once(trained, monkeypatch) -> None:
    read, load = Counter(), torch.load

    def counted(path, **kwargs):
        read[str(path)] += 1
        return load(path, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    found = results(trained, "test.start=1", "test.end=3")
    assert len(found["checkpoints"]) == 3
    assert read == {row["checkpoint"]: 1 for row in found["checkpoints"]}


def test_epochs_that_are_not_written_yet_are_waited_for(make_config, monkeypatch) -> None:
    path = make_config()
    retrain(configuration.load(path, TRAINED), World())
    config = configuration.load(path, [*TRAINED, "test.start=2", "test.end=3", "test.wait=true"])
    folder = CheckpointFolder(config.folder.checkpoints("retrain"))
    kept = folder.epoch_path(3).read_bytes()
    folder.epoch_path(3).unlink()
    waited = []

    def sleep(seconds: float) -> None:
        waited.append([row["checkpoint"] for row in json.loads(config.folder.results.read_text())["checkpoints"]])
        if len(waited) == 2:
            folder.epoch_path(3).write_bytes(kept)

    monkeypatch.setattr("inference.test.time.sleep", sleep)
    measure(config, World())
    assert waited == [[str(folder.epoch_path(2))]] * 2
    found = json.loads(config.folder.results.read_text())
    assert [row["checkpoint"] for row in found["checkpoints"]] == [str(folder.epoch_path(n)) for n in (2, 3)]
    assert config.folder.log("test", None).read_text().count("waits for") == 1
    folder.epoch_path(2).unlink()
    with pytest.raises(UserError, match="no checkpoint of epoch 2"):
        measure(config, World())


def test_waiting_ends_when_the_run_is_asked_to_stop(make_config, monkeypatch) -> None:
    config = configuration.load(make_config(), [*TRAINED, "test.start=2", "test.end=3", "test.wait=true"])
    answers = iter([None, "SIGTERM"])
    monkeypatch.setattr("inference.test.stop_requested", lambda world, at_once: next(answers))
    monkeypatch.setattr("inference.test.time.sleep", lambda seconds: None)
    with pytest.raises(Interrupted, match="SIGTERM"):
        measure(config, World())


def test_one_checkpoint_by_name_and_averaged_weights(trained) -> None:
    named = results(trained, "test.load_name=epoch_2_ckpt.pth.tar")
    assert named["checkpoint"].endswith("epoch_2_ckpt.pth.tar")
    averaged = results(trained, "test.weights=ema")
    assert averaged["loss"] != results(trained)["loss"]
    with pytest.raises(UserError, match=r"epoch_9.*holds epoch_1_ckpt.pth.tar"):
        results(trained, "test.load_name=epoch_9")


def test_a_checkpoint_of_another_architecture_is_refused(trained) -> None:
    with pytest.raises(UserError, match="does not fit this architecture: "):
        results(trained, "test.architecture=p8-e32-token-h2q96m64x3")


def test_nothing_to_test_is_said(make_config) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        results(make_config())


def test_a_weights_only_file_takes_the_architecture_of_the_yaml(trained, tmp_path) -> None:
    config = configuration.load(trained, TRAINED)
    state = torch.load(CheckpointFolder(config.folder.checkpoints("retrain")).resolve(), weights_only=True)
    torch.save(state["model"], tmp_path / "bare.pth")
    assert results(trained, f"test.load_name={tmp_path / 'bare.pth'}")["top1"] == results(trained)["top1"]


def test_a_released_file_that_was_downloaded_is_measured_as_it_is(make_config, reference, tmp_path) -> None:
    path = make_config({"model.image_size": 224, "model.space": None, "search": None, "sample": None, "retrain": None})
    architecture, _ = read_model(json.loads((reference / "vitas_tiny.json").read_text())["model"])
    folder = tmp_path / "run" / "retrain" / "checkpoint"
    folder.mkdir(parents=True)
    shutil.copy(reference / "vitas_tiny.pth", folder / "download.pth")
    shutil.copy(reference / "vitas_tiny.pth", folder / "another.pth")
    config = configuration.load(path, [f"test.architecture={architecture}"])
    measure(config, World())
    found = json.loads(config.folder.results.read_text())
    assert found["checkpoint"] == str(folder / "download.pth")
    assert found["macs_released"] == 70_936_320
    log = config.folder.log("test", None).read_text()
    assert "takes download.pth; there are another.pth too, which test.load_name chooses" in log
    # A released YAML names a range of epochs; with nothing but a downloaded file, that is what it means.
    ranged = [f"test.architecture={architecture}", "test.start=300", "test.end=300", "test.wait=true"]
    measure(configuration.load(path, ranged), World())
    assert json.loads(config.folder.results.read_text())["checkpoint"] == str(folder / "download.pth")


def test_inference_runs_as_a_program(trained) -> None:
    output = run("inference", trained, *TRAINED)
    assert "top-1" in output
    assert "images/s" in output
