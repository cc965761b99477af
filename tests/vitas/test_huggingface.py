"""The folder for Hugging Face: what is written is what timm reads, whole or not at all."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from tests.vitas.conftest import random_images, randomise
from vitas import Architecture, VisionTransformer
from vitas.errors import UserError
from vitas.huggingface import write_huggingface_folder
from vitas.timm import TimmVisionTransformer

# timm has no name for it; its identities count for stochastic depth.
TEXT = "p8-e20-mean-id-h2q18m30-id-h3q36m10"
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
NAMES = ["tench", "große Eule", "goldfish"]
FACTS = {"macs": 10**12 + 1, "top1": 74.7, "data": "ImageNet", "hours": None, "budget": [1, 2]}


def random_network(num_classes: int = 3, **kwargs) -> TimmVisionTransformer:
    return randomise(TimmVisionTransformer(Architecture.parse(TEXT), num_classes, 32, **kwargs))


def write(folder, network=None, **changes) -> None:
    arguments = {"mean": MEAN, "std": STD, "class_names": NAMES, "facts": FACTS} | changes
    write_huggingface_folder(folder, network or random_network(), **arguments)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "network")
    return tmp_path / "network"


@torch.inference_mode()
def test_timm_reads_the_same_network_to_the_bit(tmp_path):
    ours, folder = randomise(VisionTransformer(Architecture.parse(TEXT), 3, 32)), tmp_path / "network"
    write(folder, ours)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(network(random_images(4, 32)), ours(random_images(4, 32)))
    assert network.architecture == Architecture.parse(TEXT)
    assert (network.num_classes, network.image_size) == (3, 32)
    cfg = network.pretrained_cfg
    assert (cfg["num_classes"], tuple(cfg["input_size"])) == (3, (3, 32, 32))
    assert (list(cfg["mean"]), list(cfg["std"]), list(cfg["label_names"])) == (MEAN, STD, NAMES)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@torch.inference_mode()
def test_one_or_four_channels_and_either_precision_come_back(tmp_path):
    for channels, dtype in ((1, torch.float32), (4, torch.float64)):
        network = random_network(in_chans=channels).to(dtype)
        where = tmp_path / str(channels)
        write(where, network, mean=[0.5] * channels, std=[0.25] * channels)
        again = timm.create_model(f"local-dir:{where}", pretrained=True, dtype=dtype).eval()
        images = random_images(4, 32, channels).to(dtype)
        assert torch.equal(again(images), network(images))


def test_a_network_that_was_changed_since_is_written_as_it_is(tmp_path):
    network = random_network()
    network.reset_classifier(5, "token")
    network.prune_intermediate_layers([0], prune_head=False)
    write(tmp_path / "network", network, class_names=list("abcde"))
    again = timm.create_model(f"local-dir:{tmp_path / 'network'}", pretrained=True).eval()
    assert torch.equal(again(random_images(4, 32)), network(random_images(4, 32)))


def test_another_size_and_other_classes_can_be_asked_for(folder):
    network = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=64, num_classes=7)
    ours = random_network()
    assert (network.image_size, network.num_classes) == (64, 7)
    assert torch.equal(network.blocks[1].mlp.fc1.weight, ours.blocks[1].mlp.fc1.weight)
    assert torch.equal(network.pos_embed[:, 0], ours.pos_embed[:, 0])
    assert network.pos_embed.shape == (1, 65, 20)


def test_the_transform_is_the_one_of_the_test(tmp_path):
    write(tmp_path / "network", crop_fraction=0.5)
    config = resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'network'}"))
    assert (config["crop_pct"], config["interpolation"], config["input_size"]) == (0.5, "bicubic", (3, 32, 32))
    transform = create_transform(**config)
    resize = transform.transforms[0]
    assert resize.size in (64, (64, 64))


def test_facts_are_data_in_the_config_and_strings_beside_the_weights(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["facts"] == FACTS
    assert config["model_args"]["architecture"] == TEXT
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(random_network().state_dict())
    strings = {"macs": "1000000000001", "top1": "74.7", "data": "ImageNet", "hours": "null", "budget": "[1, 2]"}
    assert metadata == {"format": "pt", "architecture": TEXT, **strings, "sha256": metadata["sha256"]}


def test_an_earlier_folder_is_replaced_and_an_empty_one_filled(folder, tmp_path):
    write(folder, facts={"top1": 1.5})
    assert json.loads((folder / "config.json").read_text())["facts"] == {"top1": 1.5}
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "network"]


def headless() -> TimmVisionTransformer:
    network = random_network()
    network.reset_classifier(3, "")
    return network


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"class_names": NAMES[:2]}, "class_names: found 2; the network has 3 classes"),
        ({"mean": [0.5]}, "mean: found 1 numbers; the images have 3 channels"),
        ({"std": [0.5]}, "std: found 1 numbers"),
        ({"facts": {"top1": float("nan")}}, "facts: top1 is nan; it must be plain data"),
        ({"facts": {"net": nn.Identity()}}, r"facts: net is Identity\(\); it must be plain data"),
        ({"facts": {1: 2}}, "facts: found 1 as a name"),
        ({"network": headless()}, "the network's classifier or last norm was taken away"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, changes, fragment):
    with pytest.raises(UserError, match=fragment):
        write(tmp_path / "network", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "held",
    [
        {"notes.txt": "mine"},
        {"config.json": "{}", "model.safetensors": ""},
        {"config.json": '{"architecture": "resnet50"}', "model.safetensors": ""},
        {"config.json": "no JSON", "model.safetensors": ""},
        {"config.json": '{"architecture": "vitas"}', "model.safetensors": "", "notes.txt": "mine"},
        None,
    ],
)
def test_what_is_no_such_folder_is_never_overwritten(tmp_path, held):
    path = tmp_path / "network"
    if held is None:
        path.write_text("a file")
    else:
        path.mkdir()
        for name, text in held.items():
            (path / name).write_text(text)
    with pytest.raises(UserError, match="is no folder" if held is None else "was not written by this project"):
        write(path)
    if held is None:
        assert path.read_text() == "a file"
    else:
        assert {p.name: p.read_text() for p in path.iterdir()} == held
