"""The example of a released checkpoint, with a released YAML: through the script, the module and Python."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
import yaml

from tests.processes import ENVIRONMENT, run
from vitas import VisionTransformer, load_weights
from vitas.released import read_model


@pytest.fixture
def released(tmp_path, reference, digits):
    """A released YAML of the example, its run's folder, and a few test images of each class."""
    model = json.loads((reference / "vitas_tiny.json").read_text())["model"]
    data = yaml.safe_load((reference / "released_search.yaml").read_text())
    data["model"]["backbone"] = model["backbone"]
    for section in ("search", "sample"):
        data[section]["flag"] = False
    data["search"]["strategy"]["save_path"] = str(tmp_path / "run")
    data["retrain"]["model"] = data["test"]["model"] = model
    for digit in range(10):
        for image in sorted((digits / "test" / str(digit)).iterdir())[:3]:
            (tmp_path / "images" / str(digit)).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, tmp_path / "images" / str(digit))
    data["test"] |= {"flag": True}
    data["test"]["data"] |= {"data_dir": str(tmp_path / "images"), "workers": 0}
    path = tmp_path / "ViTAS_tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def results(folder) -> dict:
    return json.loads((folder / "run" / "retrain" / "results.json").read_text())


@pytest.mark.slow
def test_script_and_module_measure_the_downloaded_file(released, reference, repository, tmp_path):
    folder = tmp_path / "run" / "retrain" / "checkpoint"
    folder.mkdir(parents=True)
    shutil.copy(reference / "vitas_tiny.pth", folder / "download.pth")
    # As on a laptop: no sbatch on the path.
    path = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if not os.path.exists(os.path.join(part, "sbatch"))
    )
    script = subprocess.run(
        ["bash", repository / "script" / "inference.sh", released, "--local"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PATH": path if shutil.which("bash", path=path) else os.environ["PATH"]},
        cwd=tmp_path,
    )
    assert script.returncode == 0, script.stderr
    assert "is a released ViTAS file" in script.stderr
    measured = results(tmp_path)
    assert measured["checkpoint"] == str(folder / "download.pth")
    assert (measured["macs_released"], measured["parameters"], measured["images"]) == (70_936_320, 308_986, 30)

    shutil.copy(reference / "vitas_tiny.pth", tmp_path / "any_name.pth")
    run("inference", released, f"test.load_name={tmp_path / 'any_name.pth'}")
    named = results(tmp_path)
    assert named["checkpoint"] == str(tmp_path / "any_name.pth")
    assert {key: named[key] for key in ("top1", "top5", "loss")} == {
        key: measured[key] for key in ("top1", "top5", "loss")
    }


def test_python_gives_the_logits_of_the_released_implementation(reference):
    architecture, num_classes = read_model(json.loads((reference / "vitas_tiny.json").read_text())["model"])
    network = VisionTransformer(architecture, num_classes).eval()
    load_weights(network, reference / "vitas_tiny.pth")
    expected = np.load(reference / "vitas_tiny.npz")
    with torch.no_grad():
        logits = network(torch.from_numpy(expected["image"].astype(np.float32)))
    torch.testing.assert_close(logits, torch.from_numpy(expected["logits"]), rtol=1e-4, atol=1e-4)
