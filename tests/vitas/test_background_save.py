"""Checkpoints that are written beside the training: what is in them, when they count, and what becomes of errors."""

from __future__ import annotations

import errno
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.faults.stages import digest_of
from vitas import checkpoint, files
from vitas.background_save import BackgroundSave, HostCopy
from vitas.checkpoint import BEST, CheckpointFolder, read
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report import Report
from vitas.run import RunFolder

CPU = torch.device("cpu")
GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
)


class Told(Report):
    """A report that remembers which checkpoints it was told of, and in which thread."""

    def __init__(self, folder: Path) -> None:
        super().__init__("retrain", RunFolder(folder), World())
        self.saved: list[str] = []
        self.threads: set[int] = set()

    def checkpoint_saved(self, path: Path) -> None:
        self.saved.append(path.name)
        self.threads.add(threading.get_ident())


@pytest.fixture
def report(tmp_path) -> Told:
    return Told(tmp_path)


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoint", keep=2)


@pytest.fixture
def held(monkeypatch) -> threading.Event:
    """While it is clear, no checkpoint gets further than its first byte."""
    goes_on, whole = threading.Event(), checkpoint.write_with_digest

    def waits(file, write) -> None:
        assert goes_on.wait(30)
        whole(file, write)

    monkeypatch.setattr(checkpoint, "write_with_digest", waits)
    return goes_on


def state_of(step: int, device: str = "cpu") -> dict:
    network = torch.nn.Linear(3, 2, device=device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.ones(1, 3, device=device)).sum().backward()
    optimizer.step()
    return {
        "epoch": step,
        "step": step,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "changes": [{"step": step}],
        "nothing": None,
        "sums": torch.arange(3, dtype=torch.float64),
    }


def written(folder: CheckpointFolder, best: bool = False) -> partial:
    return partial(folder.save, ends_epoch=True, is_best=best)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_copy_is_the_state_as_it_was_and_its_room_is_used_again(device) -> None:
    host = HostCopy(torch.device(device))
    places = []
    for step in (1, 2):
        state = state_of(step, device)
        wanted = digest_of(torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, dict(state)))
        copy, copied = host.take(state)
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)
        with torch.no_grad():
            for tensor in (*state["model"].values(), state["sums"]):
                tensor.zero_()
        state["changes"][0]["step"] = 9
        state["optimizer"]["param_groups"][0]["lr"] = 9.0
        if copied is not None:
            copied.synchronize()
        assert digest_of(copy) == wanted
        assert all(tensor.device.type == "cpu" for tensor in checkpoint.tensors_in(copy))
        places.append([tensor.data_ptr() for tensor in checkpoint.tensors_in(copy)])
    assert places[0] == places[1]


def test_the_training_goes_on_while_a_checkpoint_is_written_and_is_told_when_it_is_there(folder, report, held) -> None:
    state = state_of(1)
    wanted = digest_of(state)
    with BackgroundSave(CPU, report) as background:
        background.save(state, written(folder, best=True))
        background.poll()
        state["sums"].zero_()
        assert (report.saved, folder.newest()) == ([], None)
        held.set()
        background.wait()
        assert report.saved == ["epoch_1_ckpt.pth.tar"]
        assert digest_of(read(folder.newest())) == digest_of(read(folder.folder / BEST)) == wanted
    assert report.threads == {threading.get_ident()}


def test_the_next_checkpoint_waits_for_the_last(folder, report, held) -> None:
    with BackgroundSave(CPU, report) as background:
        background.save(state_of(1), written(folder))
        threading.Timer(0.2, held.set).start()
        background.save(state_of(2), written(folder))
        assert report.saved == ["epoch_1_ckpt.pth.tar"]
        background.save(state_of(3), written(folder))
    assert report.saved == [f"epoch_{step}_ckpt.pth.tar" for step in (1, 2, 3)]
    assert folder.epochs() == [2, 3]


def full(*_: object) -> Path:
    raise UserError("the disk is full")


@pytest.mark.parametrize("surfaces", ["poll", "save", "wait", "end"])
def test_an_error_of_the_thread_is_raised_in_the_training(folder, report, surfaces) -> None:
    background = BackgroundSave(CPU, report)

    def train() -> None:
        with background:
            background.save(state_of(1), full)
            if surfaces == "poll":
                while True:
                    background.poll()
                    time.sleep(0.01)
            elif surfaces == "save":
                background.save(state_of(2), written(folder))
            elif surfaces == "wait":
                background.wait()

    with pytest.raises(UserError, match="the disk is full"):
        train()
    assert (report.saved, folder.newest()) == ([], None)


def test_a_full_disk_gives_the_message_that_it_always_gave(folder, report, monkeypatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_room)
    with (
        pytest.raises(UserError, match=r"epoch_1_ckpt.pth.tar cannot be written after .* MB of it"),
        BackgroundSave(CPU, report) as background,
    ):
        background.save(state_of(1), written(folder))
    assert list(folder.folder.iterdir()) == []


def test_a_lock_that_was_lost_ends_the_training(folder, report, monkeypatch) -> None:
    def lost() -> None:
        raise RuntimeError("taken over")

    monkeypatch.setattr(files, "_guard", lost)
    with pytest.raises(RuntimeError, match="taken over"), BackgroundSave(CPU, report) as background:
        background.save(state_of(1), written(folder))
    assert folder.newest() is None


def test_after_another_error_the_last_checkpoint_is_written_and_that_error_stays(folder, report, held) -> None:
    def train(write) -> None:
        with BackgroundSave(CPU, report) as background:
            background.save(state_of(1), write)
            threading.Timer(0.1, held.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(written(folder))
    assert report.saved == ["epoch_1_ckpt.pth.tar"]
    with pytest.raises(ZeroDivisionError):
        train(full)
    log = RunFolder(folder.folder.parent).log("retrain", None).read_text()
    assert "nor could the last checkpoint be written: the disk is full" in log
