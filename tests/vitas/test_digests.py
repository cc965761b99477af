"""Digests: a changed bit is seen, and a damaged checkpoint is passed over."""

import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from vitas import load_weights
from vitas.checkpoint import RECENT, CheckpointFolder, read, safetensors_bytes, write
from vitas.digests import damage
from vitas.errors import UserError


def weights(seed: int = 0) -> dict:
    torch.manual_seed(seed)
    return nn.Linear(40, 30).state_dict()


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.fixture
def ours(tmp_path) -> Path:
    write({"model": weights(), "epoch": 3, "step": 30}, tmp_path / "ours.pth")
    return tmp_path / "ours.pth"


@pytest.fixture
def of_torch(tmp_path) -> Path:
    torch.save({"model": weights(), "epoch": 3}, tmp_path / "torch.pth")
    return tmp_path / "torch.pth"


@pytest.fixture
def safetensors(tmp_path) -> Path:
    (tmp_path / "ours.safetensors").write_bytes(safetensors_bytes(weights(), {"architecture": "p8"}))
    return tmp_path / "ours.safetensors"


def test_a_file_with_a_digest_is_still_torchs(ours) -> None:
    for mmap in (False, True):
        assert same(torch.load(ours, weights_only=True, mmap=mmap)["model"], weights())
    assert zipfile.ZipFile(ours).testzip() is None
    assert damage(ours) is None


@pytest.mark.parametrize("name", ["ours", "of_torch", "safetensors"])
def test_no_flipped_bit_changes_what_is_read(request, name, tmp_path) -> None:
    """Every 97th bit, and all of the first and last bytes: each is refused, or changes nothing."""
    path = request.getfixturevalue(name)
    content, refusals = path.read_bytes(), []
    bits = sorted({*range(0, 8 * len(content), 97), *range(800), *range(8 * len(content) - 1600, 8 * len(content))})
    for bit in bits:
        path.write_bytes(flipped(content, bit))
        try:
            state = read(path)
        except UserError as error:
            refusals.append(str(error))
        else:
            assert same(state["model"], weights())
    assert all(path.name in message and "weights_only" not in message for message in refusals)
    # Of ours, all but those of the words before the digest; of torch's, the data but not the names and padding.
    assert len(refusals) / len(bits) > (0.6 if name == "of_torch" else 0.95)


def test_a_compressed_archive_that_would_fill_the_memory_is_refused_unread(of_torch, tmp_path) -> None:
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(of_torch) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in whole.namelist():
            content = whole.read(entry)
            archive.writestr(entry, bytes(1 << 27) if "/data/0" in entry else content)
    assert bomb.stat().st_size < 1_000_000
    with pytest.raises(UserError, match="compressed"):
        read(bomb)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1).expand(100_000, 100_000), torch.zeros(2, 2).to_sparse()], ids=["stride 0", "sparse"]
)
def test_a_tensor_larger_than_its_file_is_refused(tmp_path, tensor) -> None:
    torch.save({"model": {"weight": tensor}}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match=r"bomb\.pth holds a tensor"):
        load_weights(nn.Linear(2, 2), tmp_path / "bomb.pth")


# The newest whole one


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "checkpoint")
    for epoch in (1, 2, 3):
        folder.save_epoch({"epoch": epoch, "step": 10 * epoch, "model": weights(epoch)})
    folder.save_recent({"epoch": 3, "step": 35, "model": weights(4)})
    return folder


def damage_file(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(flipped(content, 8 * (len(content) // 2)))


@pytest.mark.parametrize(
    ("damaged", "newest"),
    [
        ([], RECENT),
        ([RECENT], "epoch_3_ckpt.pth.tar"),
        (["epoch_3_ckpt.pth.tar"], RECENT),
        ([RECENT, "epoch_3_ckpt.pth.tar"], "epoch_2_ckpt.pth.tar"),
        ([RECENT, "epoch_3_ckpt.pth.tar", "epoch_2_ckpt.pth.tar"], "epoch_1_ckpt.pth.tar"),
    ],
)
def test_the_newest_whole_one_is_taken_and_the_others_are_named(folder, damaged, newest) -> None:
    for name in damaged:
        damage_file(folder.folder / name)
    assert folder.newest() == folder.folder / newest
    lines = folder.passed_over()
    assert len(lines) == len(damaged)
    assert all(any(name in line and f"{newest} is taken" in line for line in lines) for name in damaged)


def test_a_run_does_not_start_anew_over_damaged_files(folder) -> None:
    for path in folder.folder.iterdir():
        damage_file(path)
    with pytest.raises(UserError, match=r"no checkpoint is whole.*move them away"):
        folder.newest()


@pytest.mark.parametrize("content", [b"", b"\0" * 4000, b"PK\x03\x04"], ids=["empty", "zeros", "a head"])
def test_what_a_lost_write_leaves_is_passed_over(folder, content) -> None:
    (folder.folder / RECENT).write_bytes(content)
    assert folder.newest() == folder.epoch_path(3)


def test_what_a_kill_after_an_epochs_file_leaves_undone_is_done_at_the_next_start(folder) -> None:
    write({"epoch": 4, "step": 40}, folder.epoch_path(4))
    folder.tidy()
    assert sorted(path.name for path in folder.folder.iterdir()) == [f"epoch_{n}_ckpt.pth.tar" for n in (2, 3, 4)]


def test_nothing_is_tidied_away_while_the_last_epoch_is_damaged(folder) -> None:
    write({"epoch": 4, "step": 40}, folder.epoch_path(4))
    (folder.folder / RECENT).unlink()
    damage_file(folder.epoch_path(4))
    folder.tidy()
    assert folder.epochs() == [1, 2, 3, 4]


def test_a_random_cut_is_always_seen(folder) -> None:
    rng = random.Random(0)
    content = folder.epoch_path(3).read_bytes()
    for _ in range(50):
        # The last bytes are the digest.
        folder.epoch_path(3).write_bytes(content[: rng.randrange(len(content) - 80)])
        with pytest.raises(UserError, match="epoch_3"):
            read(folder.epoch_path(3))


def test_the_newest_is_read_also_if_it_is_rotated_away_before_that(folder, monkeypatch) -> None:
    """As by a training that goes on, and that has written the next one under the same name by then."""
    recent, tries = folder.folder / RECENT, []
    real = torch.load

    def vanishing(path, *arguments, **options):
        if Path(path) == recent and not options.get("mmap"):
            tries.append(path)
            if len(tries) == 1:
                content = recent.read_bytes()
                recent.unlink()
                try:
                    return real(path, *arguments, **options)
                finally:
                    recent.write_bytes(content)
        return real(path, *arguments, **options)

    monkeypatch.setattr(torch, "load", vanishing)
    path, state = folder.read()
    assert (path, state["step"], len(tries)) == (recent, 35, 2)
    with pytest.raises(UserError, match="no such file"):
        read(folder.folder / "nothing.pth")


def test_the_newest_is_found_also_if_a_file_is_rotated_away_meanwhile(folder, monkeypatch) -> None:
    real = torch.load

    def vanishing(path, *arguments, **options):
        (folder.folder / RECENT).unlink(missing_ok=True)
        return real(path, *arguments, **options)

    monkeypatch.setattr(torch, "load", vanishing)
    assert folder.newest() == folder.epoch_path(3)
    assert folder.passed_over() == []
