"""Exports give the network's own logits, say what they are, and refuse what cannot be one."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import vitas
from inference.__main__ import run_export
from inference.export import FOLDER, FORMATS, export, images_to_compare
from inference.network import trained_network
from inference.predict import predictions_of
from inference.test import test as measure
from tests.inference.conftest import TEXT
from tests.processes import REPOSITORY, command
from vitas import Architecture, VisionTransformer, load_weights
from vitas import config as configuration
from vitas.checkpoint import CheckpointFolder
from vitas.data.images import find_pictures
from vitas.distributed import World
from vitas.errors import UserError
from vitas.released import rename_keys

NAMES = {
    "onnx": "epoch_6.onnx",
    "pt2": "epoch_6.pt2",
    "safetensors": "epoch_6.safetensors",
    "released": "epoch_6_released.pth",
}


def onnx_forward(path):
    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def weights_forward(path):
    network = VisionTransformer(Architecture.parse(TEXT), 10, 32).eval()
    load_weights(network, path)
    return network


FORWARD = {
    "onnx": onnx_forward,
    "pt2": lambda path: torch.export.load(path).module(),
    "safetensors": weights_forward,
    "released": weights_forward,
}


def onnx_metadata(path):
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def safetensors_metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def pt2_metadata(path):
    files = {"metadata.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["metadata.json"])


def checkpoint_of(path) -> Path:
    return CheckpointFolder(configuration.load(path).folder.checkpoints("retrain")).resolve()


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


@pytest.fixture(scope="module")
def exported(learnt) -> dict[str, tuple[Path, str]]:
    """Every format's file, under its default name, and the line that was told."""
    config = configuration.load(learnt)
    return {name: (config.folder.exports / file, export(config, name)) for name, file in NAMES.items()}


@pytest.fixture
def network(learnt):
    """The trained network itself."""
    network = VisionTransformer(Architecture.parse(TEXT), 10, 32).eval()
    network.load_state_dict(torch.load(checkpoint_of(learnt), weights_only=True)["model"])
    return network


# What is written


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_export_gives_the_networks_logits_at_any_batch_size(exported, network, name):
    forward = FORWARD[name](exported[name][0])
    for batch in (1, 2, 5, 33):
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        expected = network(images)
        assert expected.abs().max() > 0.1
        exact = {} if name in ("onnx", "pt2") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(forward(images), expected, **exact)


@pytest.mark.parametrize("name", NAMES)
def test_one_line_says_file_size_difference_and_images(exported, digits, name):
    path, line = exported[name]
    assert "\n" not in line
    assert f"epoch_6_ckpt.pth.tar -> {path}: {path.stat().st_size / 1e3:.0f} kB; " in line
    assert re.search(r"(differ by \d\.\de-\d\d of the largest at most|the same logits), on 16 images of", line)
    assert line.endswith(str(digits / "test"))


def test_metadata_is_the_same_in_every_format_and_says_how_to_run_the_network(exported):
    architecture = Architecture.parse(TEXT)
    expected = {
        "architecture": TEXT,
        "macs": architecture.macs(32, 10),
        "macs_released": architecture.macs(32, 10, "released"),
        "parameters": architecture.parameters(32, 10),
        "image_size": 32,
        "num_classes": 10,
        "class_names": [str(digit) for digit in range(10)],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_fraction": 1.0,
        "checkpoint": "epoch_6_ckpt.pth.tar",
        "weights": "model",
        "vitas_version": vitas.__version__,
    }
    strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in expected.items()}
    assert pt2_metadata(exported["pt2"][0]) == expected
    assert onnx_metadata(exported["onnx"][0]) == strings
    with_digest = safetensors_metadata(exported["safetensors"][0])
    assert with_digest == strings | {"format": "pt", "sha256": with_digest["sha256"]}


def test_the_onnx_file_is_valid_and_names_what_goes_in_and_out(exported):
    model = onnx.load(exported["onnx"][0])
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 32, 32], "logits": ["batch", 10]}


@pytest.mark.parametrize("name", NAMES)
def test_no_export_tells_the_folders_of_the_machine_that_wrote_it(exported, learnt, name):
    content = exported[name][0].read_bytes()
    for folder in (str(REPOSITORY), str(learnt.parent), sys.prefix):
        assert folder.encode() not in content


def test_the_released_file_has_the_released_layout_and_becomes_ours_again(exported, network):
    state = torch.load(exported["released"][0], weights_only=True)
    assert list(state) == ["epoch", "model", "optimizer"]
    assert state["epoch"] == 6
    assert state["optimizer"] == {"state": {}, "param_groups": []}
    assert all(key.startswith("module.net.") for key in state["model"])
    assert "module.net.backbone_Block_Block_2.0.attn.qkv.weight" in state["model"]
    assert not any("Block_Block_1" in key for key in state["model"])
    ours = rename_keys(state["model"])
    assert list(ours) == list(network.state_dict())
    assert all(torch.equal(ours[key], value) for key, value in network.state_dict().items())


def test_a_released_file_goes_through_ours_and_comes_back_as_it_was(make_config, reference, tmp_path):
    architecture = "p16-e96-token-h3q144m288-id-h12q288m288-h3q144m144"
    path = make_config({"model.image_size": 224, "model.space": None, "search": None, "sample": None, "retrain": None})
    overrides = [f"test.architecture={architecture}", f"test.load_name={reference / 'vitas_tiny.pth'}"]
    export(configuration.load(path, overrides), "safetensors", tmp_path / "ours.safetensors")
    overrides = [f"test.load_name={tmp_path / 'ours.safetensors'}"]
    export(configuration.load(path, overrides), "released", tmp_path / "theirs.pth")
    before, after = (
        torch.load(file, weights_only=True)["model"] for file in (reference / "vitas_tiny.pth", tmp_path / "theirs.pth")
    )
    assert list(before) == list(after)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_safetensors_file_is_tested_as_the_architecture_that_it_says(exported, learnt, tmp_path):
    found = []
    for file in (checkpoint_of(learnt), exported["safetensors"][0]):
        another = "retrain.architecture=p8-e32-token-h2q96m64"
        config = configuration.load(learnt, [f"test.load_name={file}", f"save_path={tmp_path}", another])
        measure(config, World())
        found.append(json.loads(config.folder.results.read_text()))
    assert found[1]["checkpoint"].endswith("epoch_6.safetensors")
    for key in ("architecture", "top1", "top5", "loss"):
        assert found[0][key] == found[1][key]


def test_averaged_weights_go_out_under_a_name_of_their_own(learnt, tmp_path):
    config = configuration.load(learnt, ["test.weights=ema"])
    export(config, "safetensors")
    path = config.folder.exports / "epoch_6_ema.safetensors"
    assert safetensors_metadata(path)["weights"] == "ema"
    averaged = torch.load(checkpoint_of(learnt), weights_only=True)["ema"]
    with safe_open(path, framework="pt") as file:
        assert all(torch.equal(file.get_tensor(name), value) for name, value in averaged.items())


def test_logits_are_compared_on_test_images_of_several_classes(learnt, network):
    config = configuration.load(learnt)
    images, source = images_to_compare(trained_network(config))
    assert images.shape == (16, 3, 32, 32)
    assert source == f"images of {config.test.data.data_dir}"
    paths = sorted(Path(config.test.data.data_dir).glob("*/*.png"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.model.mean, config.model.std))
    for i, path in ((0, paths[0]), (8, paths[len(paths) // 2])):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        torch.testing.assert_close(images[i], (pixels - mean) / std)


def test_without_test_images_noise_is_compared_and_classes_are_numbered(learnt, tmp_path):
    overrides = [f"test.data.data_dir={tmp_path / 'gone'}"]
    line = export(configuration.load(learnt, overrides), "safetensors", tmp_path / "file.safetensors")
    assert f"on 16 images of noise ({tmp_path / 'gone'} is not there); class names are not known" in line
    names = json.loads(safetensors_metadata(tmp_path / "file.safetensors")["class_names"])
    assert names == [str(label) for label in range(10)]


def test_the_pages_example_classifies_as_predict_does(exported, learnt, digits, tmp_path, monkeypatch, capsys):
    """With a picture that has to be resized and cropped."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "docs" / "export.md").read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epoch_300.onnx").write_bytes(exported["onnx"][0].read_bytes())
    picture = next((digits / "test" / "4").glob("*.png"))
    Image.open(picture).resize((75, 51)).save(tmp_path / "picture.jpg")
    exec(compile(code, "docs/export.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (expected,) = predictions_of(
        trained_network(configuration.load(learnt)), find_pictures([tmp_path / "picture.jpg"]), top=5
    )
    assert [name for name, _ in lines] == [str(label) for label in expected.labels]
    assert [float(share) for _, share in lines] == pytest.approx(expected.probabilities, abs=1e-3)


# What is refused


@pytest.mark.parametrize("off", [1e-2, float("nan")])
def test_a_file_whose_logits_are_off_is_not_kept_and_the_one_before_stays(learnt, network, monkeypatch, tmp_path, off):
    form = replace(FORMATS["safetensors"], run=lambda path, trained: lambda images: network(images) + off)
    monkeypatch.setitem(FORMATS, "safetensors", form)
    path = tmp_path / "out" / "file.safetensors"
    path.parent.mkdir()
    path.write_text("before")
    with pytest.raises(UserError, match=r"is not written: its logits differ from the network's by (nan|\d\.\de-\d\d)"):
        export(configuration.load(learnt), "safetensors", path, overwrite=True)
    assert path.read_text() == "before"
    assert files_below(path.parent) == ["file.safetensors"]


def test_a_file_that_is_there_is_replaced_only_when_asked_and_the_checkpoint_never(learnt, tmp_path):
    config, path = configuration.load(learnt), tmp_path / "file.pth"
    path.write_text("before")
    with pytest.raises(UserError, match=r"file\.pth is there already; .*--overwrite"):
        export(config, "released", path)
    assert path.read_text() == "before"
    export(config, "released", path, overwrite=True)
    assert torch.load(path, weights_only=True)["epoch"] == 6
    before = checkpoint_of(learnt).read_bytes()
    with pytest.raises(UserError, match="which is the checkpoint itself"):
        export(config, "released", checkpoint_of(learnt), overwrite=True)
    assert checkpoint_of(learnt).read_bytes() == before


@pytest.mark.parametrize(
    ("output", "message"),
    [("folder", "which is a folder"), ("file/deep/x.safetensors", "cannot be made: Not a directory")],
)
def test_an_output_that_cannot_be_written_is_refused(learnt, tmp_path, output, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--output: found .*{message}"):
        export(configuration.load(learnt), "safetensors", tmp_path / output)
    assert files_below(tmp_path) == ["file", "folder"]


class MakesAFolder:
    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def evil(path: Path, good: Path) -> None:
    torch.save({"model": {}, "architecture": MakesAFolder(path.parent / "made")}, path)


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size * 2 // 3])


def unnamed(path: Path, good: Path) -> None:
    torch.save({"model": torch.load(good, weights_only=True)["model"], "architecture": "a picture"}, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("file.pth", evil, "run code"),
        ("file.pth", truncated, r"file\.pth .*cut short"),
        ("file.safetensors", truncated, r"file\.safetensors .*safetensors file"),
        ("file.pth", unnamed, r"file\.pth: .*'a picture'"),
    ],
)
def test_a_broken_checkpoint_is_refused_and_nothing_written(learnt, exported, tmp_path, name, write, message):
    write(tmp_path / name, exported["safetensors"][0] if name.endswith("safetensors") else checkpoint_of(learnt))
    config = configuration.load(learnt, [f"test.load_name={tmp_path / name}"])
    with pytest.raises(UserError, match=message):
        export(config, "onnx", tmp_path / "out" / "file.onnx")
    assert files_below(tmp_path) == [name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["test.architecture=p8-e32-token-h2q96m64x3"], "does not fit this architecture: "),
        (["test.start=5", "test.end=9"], r"no checkpoint of epoch 7"),
        (["test.start=5", "test.end=6", "test.wait=true", "retrain=null", "save_path=elsewhere"], "is not written yet"),
        (["test=null"], "test: is missing"),
        (["test.load_name=gone.pth"], r"load_name: found 'gone\.pth', .* holds epoch_4_ckpt"),
        (["model.num_classes=7", "model.space=null", "search=null", "sample=null"], "does not fit this architecture"),
    ],
)
def test_what_chooses_no_network_is_refused(learnt, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        export(configuration.load(learnt, overrides), "safetensors", tmp_path / "out" / "x.safetensors")
    assert files_below(tmp_path) == []


def test_test_images_of_other_classes_are_refused(learnt, digits, tmp_path):
    config = configuration.load(learnt, [f"test.data.data_dir={digits}"])
    with pytest.raises(UserError, match=r"test\.data\.data_dir: found .* holds 3 class folders"):
        export(config, "safetensors", tmp_path / "out" / "x.safetensors")


# The command


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_told_in_one_line_with_what_installs_it(learnt, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        run_export([str(learnt), "--format", "onnx"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: this format needs {package}; pip install 'vitas[export]'\n"


def test_the_extra_of_that_line_is_one_and_holds_what_onnx_needs(repository):
    assert 'EXPORT = ["onnx>=' in (repository / "setup.py").read_text()
    assert set(FORMATS["onnx"].needs) == set(
        re.findall(r'"(\w+)>=', re.search(r"^EXPORT = .*$", (repository / "setup.py").read_text(), re.M)[0])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "Invalid value for '--format': 'tflite' is not one of"),
        ([], "found no format; give one of --format --released --supernet"),
        (["--released", "--format", "onnx"], "found onnx and released; give one of --format --released --supernet"),
        (["--released", "--twice"], "--twice"),
    ],
)
def test_arguments_that_say_no_format_are_refused(learnt, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run_export([str(learnt), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_formats_of_the_command_are_those_that_can_be_written(learnt, capsys):
    with pytest.raises(SystemExit):
        run_export([str(learnt), "--format", "tflite"])
    offered = re.search(r"is not one of (.*)\.", capsys.readouterr().err)[1]
    # The released layout has an option of its own.
    assert {*re.findall(r"\w+", offered), "released"} == {*FORMATS, FOLDER}


def test_options_may_stand_anywhere_among_the_overrides(learnt, capsys, tmp_path):
    path = tmp_path / "out" / "x.pth"
    run_export(["--released", str(learnt), "test.weights=ema", "--output", str(path), "test.flag=false"])
    assert f"-> {path}: " in capsys.readouterr().out
    averaged = torch.load(checkpoint_of(learnt), weights_only=True)["ema"]
    assert torch.equal(rename_keys(torch.load(path, weights_only=True)["model"])["pos_embed"], averaged["pos_embed"])


def test_the_program_ends_with_code_2_and_one_line_for_a_mistake(learnt):
    done = subprocess.run(
        command("inference", Path("export"), str(learnt), "--released", "test.load_name=gone.pth"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: load_name: found 'gone.pth'")
    assert done.stderr.count("\n") == 1


def test_help_tells_of_all_three_uses():
    done = subprocess.run([sys.executable, "-m", "inference", "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    for use in ("[-h] config [key=value ...]", "inference export CONFIG --format onnx", "--released", "predict CONFIG"):
        assert use in done.stdout


@pytest.mark.parametrize("name", ["export", "predict"])
def test_help_does_not_wait_for_torch(name):
    code = (
        f"import sys\nfrom inference.__main__ import run_{name} as run\n"
        "try: run(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Usage: python -m inference {name}" in done.stdout
