"""Checkpoints: rotation, which one is newest, and reading what others wrote."""

import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tests.conftest import largest
from vitas import Architecture, Block, VisionTransformer, checkpoint, create_model, load_weights
from vitas.checkpoint import RECENT, CheckpointFolder, read
from vitas.errors import UserError
from vitas.loading import start_from
from vitas.released import released_keys, rename_keys

# Files of a run


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.iterdir())


@pytest.mark.parametrize(("keep", "kept"), [(0, range(1, 12)), (1, [11]), (3, [9, 10, 11]), (20, range(1, 12))])
def test_the_last_epochs_stay_by_number(tmp_path, keep, kept):
    folder = CheckpointFolder(tmp_path / "checkpoint", keep)
    for epoch in range(1, 12):
        folder.save_epoch({"epoch": epoch})
    assert folder.epochs() == list(kept)
    assert names(folder) == sorted(f"epoch_{epoch}_ckpt.pth.tar" for epoch in kept)


def test_an_epochs_file_takes_the_place_of_the_recent_one(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save_recent({"step": 5})
    assert names(folder) == [RECENT]
    folder.save_epoch({"epoch": 1, "step": 8})
    assert names(folder) == ["epoch_1_ckpt.pth.tar"]


def test_rotation_leaves_files_that_are_not_its_own(tmp_path):
    (tmp_path / "epoch_best_ckpt.pth.tar").touch()
    folder = CheckpointFolder(tmp_path, keep=1)
    for epoch in (1, 2):
        folder.save_epoch({"epoch": epoch})
    assert names(folder) == ["epoch_2_ckpt.pth.tar", "epoch_best_ckpt.pth.tar"]


@pytest.mark.parametrize(
    ("epoch_steps", "recent_step", "newest"),
    [
        ({}, None, None),
        ({}, 3, RECENT),
        ({9: 90, 10: 100}, None, "epoch_10_ckpt.pth.tar"),
        ({9: 90, 10: 100}, 105, RECENT),
        # Killed between writing an epoch's file and dropping the recent one.
        ({9: 90, 10: 100}, 95, "epoch_10_ckpt.pth.tar"),
    ],
)
def test_the_newest_is_the_file_of_the_most_steps(tmp_path, epoch_steps, recent_step, newest):
    folder = CheckpointFolder(tmp_path)
    for epoch, step in epoch_steps.items():
        folder.save_epoch({"epoch": epoch, "step": step})
    if recent_step is not None:
        folder.save_recent({"step": recent_step})
    assert folder.newest() == (newest and tmp_path / newest)


@pytest.mark.parametrize("where", ["before it is opened", "before it is measured", "before it is read"])
@pytest.mark.parametrize("first", ["recent", "epoch"])
def test_the_newest_that_is_rotated_away_meanwhile_is_not_none(tmp_path, monkeypatch, where, first):
    """A training of few steps an epoch writes the next file, and removes the last, while another program looks."""
    folder, training = CheckpointFolder(tmp_path), CheckpointFolder(tmp_path, keep=1)
    training.save_recent({"step": 1}) if first == "recent" else training.save_epoch({"epoch": 1, "step": 1})
    epochs = iter(range(2, 5))

    def rotating(function):
        def called(*arguments):
            with suppress(StopIteration):
                training.save_epoch({"epoch": (epoch := next(epochs)), "step": epoch})
            return function(*arguments)

        return called

    name = {"before it is opened": "is_archive", "before it is measured": "damage", "before it is read": "read"}[where]
    monkeypatch.setattr(checkpoint, name, rotating(getattr(checkpoint, name)))
    path, state = folder.read()
    assert state == {"epoch": 4, "step": 4}
    assert path.name == "epoch_4_ckpt.pth.tar"


def bytes_read() -> int:
    """What this process has read so far, from files and elsewhere."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
@pytest.mark.parametrize(("recent_step", "newest"), [(105, RECENT), (95, "epoch_10_ckpt.pth.tar")])
def test_two_files_are_read_once_to_find_the_newest(tmp_path, recent_step, newest):
    folder, weights = CheckpointFolder(tmp_path), {"weight": torch.zeros(2_000_000)}
    folder.save_epoch({"epoch": 10, "model": weights, "step": 100})
    folder.save_recent({"model": weights, "step": recent_step})
    before = bytes_read()
    assert folder.newest() == tmp_path / newest
    # Both are compared with their digests.
    assert 16_000_000 < bytes_read() - before < 17_000_000
    before = bytes_read()
    assert folder.newest() == tmp_path / newest
    assert bytes_read() - before < 1_000_000


def test_without_a_name_this_runs_newest_goes_before_a_download_and_that_before_other_files(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        folder.resolve()
    for name in ("zoo.pth", "a.pth", "download.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in folder.candidates()] == ["download.pth", "a.pth", "zoo.pth"]
    folder.save_epoch({"epoch": 1, "step": 8})
    assert [path.name for path in folder.candidates()] == ["epoch_1_ckpt.pth.tar", "download.pth", "a.pth", "zoo.pth"]
    assert folder.resolve().name == "epoch_1_ckpt.pth.tar"
    assert folder.resolve("a.pth").name == "a.pth"


def test_a_name_resolves_in_the_folder_or_as_a_path_and_nothing_to_the_newest(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoint")
    for epoch in (1, 2):
        folder.save_epoch({"epoch": epoch})
    elsewhere = tmp_path / "downloaded.pth"
    torch.save({}, elsewhere)
    assert folder.resolve() == folder.epoch_path(2)
    assert folder.resolve("epoch_1_ckpt.pth.tar") == folder.epoch_path(1)
    assert folder.resolve(str(elsewhere)) == elsewhere


def test_a_name_that_resolves_to_nothing_is_refused_with_what_there_is(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} holds no checkpoint"):
        folder.resolve()
    with pytest.raises(UserError, match=r"load_name: found 'best\.pth'.*holds no checkpoint"):
        folder.resolve("best.pth")
    folder.save_epoch({"epoch": 1})
    with pytest.raises(UserError, match=r"load_name: found 'best.pth'.*holds epoch_1_ckpt\.pth\.tar"):
        folder.resolve("best.pth")


# Reading


class MakesAFolder:
    """A pickle of this makes a folder where it is loaded."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_weapon_of_the_next_test_works(tmp_path):
    pickle.loads(pickle.dumps(MakesAFolder(tmp_path / "made")))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("writer", ["torch", "torch, old format", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, writer):
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    state = {"model": {"weight": torch.zeros(2)}, "epoch": MakesAFolder(made)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match=r"evil\.pth.*run code"):
        read(path)
    assert not made.exists()


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.pth"
    torch.save({"model": nn.Linear(30, 30).state_dict(), "epoch": 3, "ema": None}, path)
    return path


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_path(tmp_path, whole_file, share):
    path = tmp_path / "torn.pth"
    path.write_bytes(whole_file.read_bytes()[: int(share * whole_file.stat().st_size)])
    with pytest.raises(UserError, match=r"torn\.pth is not a complete checkpoint file \(it is cut short"):
        read(path)


@pytest.mark.parametrize("share", [0, 0.003, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_safetensors_file_is_refused_by_path(tmp_path, share):
    path = tmp_path / "torn.safetensors"
    save_file(nn.Linear(30, 30).state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"torn\.safetensors is not a complete (safetensors|checkpoint) file"):
        read(path)


@pytest.mark.parametrize("name", ["file.safetensors", "file.pth", "file"])
def test_a_safetensors_file_is_known_by_what_it_holds(tmp_path, name):
    save_file(filled(1), tmp_path / name, metadata={"architecture": "p8-e32-token", "epoch": "3"})
    state = read(tmp_path / name)
    assert set(state) == {"model", "architecture"}
    assert state["architecture"] == "p8-e32-token"
    layer = nn.Linear(3, 2)
    load_weights(layer, tmp_path / name)
    assert all((p == 1).all() for p in layer.parameters())
    with pytest.raises(UserError, match="no averaged weights"):
        load_weights(layer, tmp_path / name, "ema")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<!DOCTYPE html><html>404</html>", b"\x80", b"PK\x03\x04", b"b", b".", bytes(9)]
)
def test_a_file_of_something_else_is_refused_as_no_checkpoint(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.pth is not a complete checkpoint file"):
        read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_bytes_are_refused_or_read(tmp_path, content):
    path = tmp_path / "bytes.pth"
    path.write_bytes(content)
    with suppress(UserError):
        assert isinstance(read(path), dict)


@pytest.mark.parametrize(("value", "kind"), [([1, 2], "list"), (torch.zeros(2), "Tensor"), (3, "int")])
def test_a_file_that_holds_no_dict_is_refused_by_what_it_holds(tmp_path, value, kind):
    torch.save(value, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"file\.pth holds a {kind}"):
        read(tmp_path / "file.pth")


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_file_that_is_not_there_is_refused_by_path(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path)):
        read(tmp_path / name)


# Weights


def filled(value: float) -> dict:
    return {name: torch.full_like(p, value) for name, p in nn.Linear(3, 2).state_dict().items()}


@pytest.mark.parametrize(
    ("state", "weights", "expected"),
    [
        (filled(1), "model", 1),
        ({"model": filled(1), "epoch": 3, "ema": None}, "model", 1),
        ({"model": filled(1), "ema": filled(2)}, "model", 1),
        ({"model": filled(1), "ema": filled(2)}, "ema", 2),
    ],
)
def test_weights_come_from_a_plain_state_dict_or_the_chosen_part_of_a_checkpoint(tmp_path, state, weights, expected):
    torch.save(state, tmp_path / "file.pth")
    layer = nn.Linear(3, 2)
    load_weights(layer, tmp_path / "file.pth", weights)
    assert all((p == expected).all() for p in layer.parameters())


@pytest.mark.parametrize("state", [filled(1), {"model": filled(1)}, {"model": filled(1), "ema": None}])
def test_averaged_weights_that_a_file_lacks_are_not_replaced_by_others(tmp_path, state):
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match="no averaged weights"):
        load_weights(nn.Linear(3, 2), tmp_path / "file.pth", "ema")


def test_released_names_count_positions_and_ours_count_blocks(reference):
    released = torch.load(reference / "vitas_tiny.pth", weights_only=True)["model"]
    network = create_model("p16-e96-token-h3q144m288-id-h12q288m288-h3q144m144", 10)
    load_weights(network, reference / "vitas_tiny.pth")
    for ours, theirs in ((0, 0), (1, 2), (2, 3)):
        weight = released[f"module.net.backbone_Block_Block_{theirs}.0.mlp.fc1.weight"]
        assert torch.equal(network.blocks[ours].mlp.fc1.weight, weight)


def test_our_names_become_the_released_ones_in_their_order(reference):
    released = torch.load(reference / "vitas_tiny.pth", weights_only=True)["model"]
    network = create_model("p16-e96-token-h3q144m288-id-h12q288m288-h3q144m144", 10)
    load_weights(network, reference / "vitas_tiny.pth")
    back = released_keys(network.state_dict(), network.architecture)
    assert list(back) == list(released)
    assert all(torch.equal(back[key], value) for key, value in released.items())


@pytest.mark.parametrize(
    "text", ["p8-e32-token-idx2-h2q96m64x2-id-h4q48m32-id", "p8-e32-mean-h2q96m64x12", "p8-e32-token-idx3"]
)
def test_released_names_and_back_are_the_same_state(text):
    architecture = Architecture.parse(text)
    state = VisionTransformer(architecture, 10, 32).state_dict()
    released = released_keys(state, architecture)
    assert all(key.startswith("module.net.") for key in released)
    positions = {int(match[1]) for key in released if (match := re.search(r"_Block_Block_(\d+)\.0\.", key))}
    assert positions == {i for i, block in enumerate(architecture.blocks) if not block.is_identity}
    back = rename_keys(released)
    assert list(back) == list(state)
    assert all(back[key] is value for key, value in state.items())


def test_weights_of_another_architecture_are_refused_by_the_first_keys_that_differ(tmp_path, small_space):
    wide = VisionTransformer(largest(small_space), 10, 32)
    torch.save({"model": wide.state_dict() | {"extra": torch.zeros(3)}}, tmp_path / "wide.pth")
    narrow = VisionTransformer(small_space.decode([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]), 10, 32)
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(narrow, tmp_path / "wide.pth")
    path, rows = str(error.value).split(" does not fit this architecture: ")
    *rows, more = rows.split("; ")
    assert path == str(tmp_path / "wide.pth")
    assert rows[0] == "cls_token is (1, 1, 16) in the network and (1, 1, 32) in the file"
    assert [row.split()[0] for row in rows] == list(narrow.state_dict())[:5]
    assert more.startswith("and ")
    assert more.endswith(" more")
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())


@pytest.mark.parametrize(
    ("state", "fragments"),
    [
        ({"weight": torch.zeros(2, 3)}, ["bias is (2,) in the network and nothing in the file"]),
        (filled(1) | {"extra": torch.zeros(3)}, ["extra is nothing in the network and (3,) in the file"]),
        ({"model": 3}, ["'model' is a int"]),
        ({"model": {1: torch.zeros(2)}}, ["1"]),
        ({1: torch.zeros(2)}, ["1"]),
        ({"model": filled(1) | {"weight": "two"}}, ["weight is (2, 3) in the network"]),
        ({"model": {"module.net.surprise": torch.zeros(1)}}, ["module.net.surprise"]),
    ],
)
def test_a_dict_of_other_things_is_refused_by_file_and_key(tmp_path, state, fragments):
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError) as error:
        load_weights(nn.Linear(3, 2), tmp_path / "file.pth")
    assert all(fragment in str(error.value) for fragment in [str(tmp_path / "file.pth"), *fragments]), error.value


def test_position_embeddings_of_another_image_size_are_interpolated_as_timm_does(tmp_path) -> None:
    from timm.layers import resample_abs_pos_embed

    architecture = Architecture(8, 12, (Block(2, 12, 8),))
    small, large = (VisionTransformer(architecture, 3, size) for size in (32, 64))
    torch.save({"model": small.state_dict()}, tmp_path / "small.pth")
    fresh = large.head.weight.clone()
    assert start_from(large, tmp_path / "small.pth") == [
        "position embeddings are interpolated from 4 x 4 to 8 x 8 patches"
    ]
    expected = resample_abs_pos_embed(small.pos_embed, [8, 8], num_prefix_tokens=1)
    assert torch.equal(large.pos_embed, expected)
    assert torch.equal(large.head.weight, small.head.weight)
    assert not torch.equal(large.head.weight, fresh)
    other = VisionTransformer(architecture, 5, 32)
    fresh = other.head.weight.clone()
    assert start_from(other, tmp_path / "small.pth") == ["the classifier starts anew: 5 classes, and the file has 3"]
    assert torch.equal(other.head.weight, fresh)
    assert torch.equal(other.pos_embed, small.pos_embed)
