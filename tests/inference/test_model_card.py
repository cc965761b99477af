"""The model card of an exported network parses as the Hub parses it, and says what is so and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from scipy.stats import binomtest

from inference.export import export
from inference.test import test as measure
from vitas import config as configuration
from vitas.architecture import Architecture
from vitas.data.images import evaluation_transform, normalize
from vitas.distributed import World
from vitas.errors import UserError
from vitas.huggingface import CARD, CONFIG
from vitas.model_card import ImagesRead, Measured, Trained, model_card


@pytest.fixture(scope="module")
def tested(learnt, tmp_path_factory):
    """(overrides, ...) -> the configuration of the run that has learnt, with results of its newest checkpoint."""
    config = configuration.load(learnt)
    measure(config, World())
    return lambda *overrides: configuration.load(learnt, overrides)


def card_of(config, folder: Path) -> str:
    export(config, "hf", folder)
    return (folder / CARD).read_text(encoding="utf-8")


def test_the_head_is_what_the_hub_reads_and_its_numbers_are_those_of_the_test(tested, tmp_path):
    config = tested()
    text = card_of(config, tmp_path / "mine")
    results = json.loads(config.folder.results.read_text())
    data = ModelCard(text).data
    assert data.license == "unknown"
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert {"vitas", "image-classification"} <= set(data.tags)
    assert data.model_name == "mine"
    top1, top5 = data.eval_results
    assert (top1.dataset_name, top1.metric_type, top1.metric_name) == ("digits/test", "accuracy", "top-1")
    for found, name in ((top1, "top1"), (top5, "top5")):
        assert found.metric_value == round(results[name], 2)
        low, high = found.metric_args["interval_95"]
        exact = binomtest(round(results[name] / 100 * 360), 360).proportion_ci(method="wilson")
        assert (low, high) == (round(100 * exact.low, 2), round(100 * exact.high, 2))
        assert found.metric_args["images"] == results["images"] == 360
        assert f"| {results[name]:.2f}% | {low:.2f} to {high:.2f}% |" in text


def test_its_three_lines_load_the_network_and_make_a_picture_ready_as_the_test_does(
    tested, tmp_path, monkeypatch, digits
):
    config = tested()
    text = card_of(config, tmp_path / "mine")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(tmp_path / "mine")
    names: dict = {}
    exec(code, names)
    network = names["network"]
    state = torch.load(config.folder.checkpoints("retrain") / "epoch_6_ckpt.pth.tar", weights_only=True)
    assert all(torch.equal(value, state["model"][name]) for name, value in network.state_dict().items())
    assert network.pretrained_cfg["label_names"] == [str(label) for label in range(10)]
    image = Image.open(min((digits / "test" / "3").glob("*.png"))).convert("RGB")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.model.mean, config.model.std))
    pixels = evaluation_transform(32, config.test.data.crop_fraction)(image).unsqueeze(0)
    torch.testing.assert_close(names["transform"](image).unsqueeze(0), normalize(pixels, mean, std))


def test_it_says_what_the_checkpoint_says_of_architecture_and_training(tested, tmp_path):
    config = tested("test.weights=ema")
    text = card_of(config, tmp_path / "mine")
    architecture = Architecture.parse(re.search(r"\| `text form` \| `(.*)` \|", text)[1])
    assert f"| `multiply-adds of an image` | {architecture.macs(32, 10):,} |" in text
    assert f"| `parameters` | {architecture.parameters(32, 10):,} |" in text
    assert "| `weights` | `ema` |" in text
    assert "Trained on 1,078 images of `digits/train`, for 6 epochs." in text
    # Only the trained weights were measured, not their average.
    assert "No test of exactly these weights is known." in text
    assert "model-index" not in text
    assert str(config.save_path) not in text


def test_results_of_other_weights_are_not_taken_for_those_of_these(tested, tmp_path):
    config = tested()
    checkpoint = config.folder.checkpoints("retrain") / "epoch_6_ckpt.pth.tar"
    assert "No test of exactly" not in card_of(config, tmp_path / "before")
    assert "No test of exactly" in card_of(tested("test.load_name=epoch_5_ckpt.pth.tar"), tmp_path / "earlier")
    checkpoint.touch()
    try:
        assert "No test of exactly" in card_of(config, tmp_path / "after")
    finally:
        measure(config, World())


def test_a_card_that_was_edited_is_not_replaced(tested, tmp_path):
    config, folder = tested(), tmp_path / "mine"
    first = card_of(config, folder)
    export(config, "hf", folder, overwrite=True)
    assert (folder / CARD).read_text() == first
    (folder / CARD).write_text(first + "Mine.\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"README.md was edited, and would be lost"):
        export(config, "hf", folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # A folder of a version that wrote no card is one of ours still.
    (folder / CARD).unlink()
    export(config, "hf", folder, overwrite=True)
    assert (folder / CARD).read_text() == first
    assert json.loads((folder / CONFIG).read_text())["architecture"] == "vitas"


HOSTILE = "<b>`x`</b> | y\n---\n# z \udcff"


def test_names_from_folders_are_data_in_it():
    measured = Measured(HOSTILE, 100, 50.0, 90.0, 1.0, left_out=2)
    trained = Trained(HOSTILE, 10, 3, 5, True, HOSTILE, HOSTILE, True)
    architecture = Architecture.parse("p8-e32-token-h2q96m64")
    names = [HOSTILE, *"bcdefghij"]
    images = ImagesRead(3, 32, 1.0)
    text = model_card(HOSTILE, architecture, images, names, {"note": HOSTILE, "list": [HOSTILE]}, measured, trained)
    text.encode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "unknown"
    assert ModelCard(text).data.eval_results[0].dataset_name.startswith("<b>`x`</b> | y\\n---")
    assert "\n# z" not in body
    # As code in a line or in a block alone, where a reader shows markup as it is.
    without_code = re.sub(r"`[^`\n]*`|^    .*$", "", body, flags=re.MULTILINE)
    assert "<b>" not in without_code
    assert "3 of 5 epochs" in body
    assert "2 that could not be read are left out" in body
    for words in ("those of a supernet", "started from the weights", "learned from a teacher", "changed on the way"):
        assert words in body
