"""Where a stage's numbers go: the CSV, loggers and callbacks, and that a run goes on where one of them fails."""

import csv
import errno
import io
import os
import time
from importlib.metadata import EntryPoint
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitas import config as configuration
from vitas.architecture import Architecture
from vitas.distributed import World
from vitas.drawing import to_svg
from vitas.errors import UserError
from vitas.report import Report, callbacks, loggers
from vitas.report.callbacks import Callback
from vitas.report.loggers import LOGGERS
from vitas.report.metrics import Metrics
from vitas.run import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def rows(path: Path) -> list[tuple[int, str, float]]:
    with open(path, newline="") as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


# The CSV


def test_numbers_are_rows_in_tidy_form(folder):
    report = Report("retrain", folder, World())
    report.begin(0, per_epoch=8)
    report.scalars(4, {"train/loss": 2.5, "train/lr": 1e-3})
    lines = folder.metrics("retrain").read_text().splitlines()
    assert lines[0] == "step,epoch,seconds,name,value"
    step, epoch, seconds, name, value = lines[1].split(",")
    assert (step, epoch, name, value) == ("4", "0.5", "train/loss", "2.5")
    assert abs(float(seconds) - os.stat(folder.metrics("retrain")).st_mtime) < 60
    assert folder.metrics("sample") == folder.root / "search" / "metrics" / "sample.csv"


def test_a_stage_without_epochs_has_none(folder):
    Report("sample", folder, World()).scalars(0, {"evolution/scored": 6})
    assert folder.metrics("sample").read_text().splitlines()[1].startswith("0,,")


def test_a_number_is_read_as_it_was(folder):
    values = {"a": 0.1 + 0.2, "b": float("inf"), "c": 1e-300, "d": 3}
    Report("sample", folder, World()).scalars(0, values)
    assert {name: value for _, name, value in rows(folder.metrics("sample"))} == values


@pytest.mark.parametrize("end", [b"", b"30,1.5,17", b"30,1.5,1700000000,train/loss,2.", b'30,"'])
def test_a_resumed_run_removes_what_came_after_and_what_was_half_written(tmp_path, end):
    path = tmp_path / "retrain.csv"
    first = Metrics(path, after=0)
    for step in (10, 20, 25):
        first.add(step, step / 20, {"train/loss": float(step)})
    path.write_bytes(path.read_bytes() + end)
    resumed = Metrics(path, after=20)
    resumed.add(20, 1.0, {"train/loss": 99.0, "val/top1": 50.0})
    resumed.add(30, 1.5, {"train/loss": 30.0})
    assert rows(path) == [(10, "train/loss", 10.0), (20, "train/loss", 20.0), (20, "val/top1", 50.0),
                          (30, "train/loss", 30.0)]  # fmt: skip


def test_a_replay_keeps_the_times_and_another_value_voids_what_follows(tmp_path):
    path = tmp_path / "sample.csv"
    first = Metrics(path)
    for step in range(4):
        first.add(step, None, {"evolution/best_top1": float(step), "evolution/scored": 6.0})
    before = path.read_text()
    again = Metrics(path)
    for step in range(4):
        again.add(step, None, {"evolution/best_top1": float(step), "evolution/scored": 6.0})
    assert path.read_text() == before
    again.add(4, None, {"evolution/best_top1": 4.0})
    assert path.read_text().startswith(before)
    other = Metrics(path)
    other.add(2, None, {"evolution/best_top1": 50.0})
    assert [(step, value) for step, name, value in rows(path) if name.endswith("top1")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 50.0),
    ]


def test_where_there_is_no_room_the_run_goes_on_and_no_line_is_broken(folder, monkeypatch, capsys):
    report = Report("retrain", folder, World())
    report.begin(0, 8)
    report.scalars(1, {"train/loss": 1.0})
    real = Metrics._append

    def full(metrics, lines):
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", lambda *_: _Full(metrics._path))
            real(metrics, lines)

    monkeypatch.setattr(Metrics, "_append", full)
    report.scalars(2, {"train/loss": 2.0})
    monkeypatch.setattr(Metrics, "_append", real)
    report.scalars(3, {"train/loss": 3.0})
    assert "no room for logs" in capsys.readouterr().err
    assert [step for step, _, _ in rows(folder.metrics("retrain"))] == [1, 3]


class _Full(io.FileIO):
    """A file that takes three bytes of what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "ab")

    def write(self, data) -> int:
        super().write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_ranks_write_nothing(folder):
    report = Report("retrain", folder, World(1, 2), ["tensorboard"], ["no such"])
    report.begin(0, 8)
    report.scalars(1, {"train/loss": 1.0})
    report.finish()
    assert not folder.root.exists()


# Loggers


def reported(folder: RunFolder, logger: str, after: int = 0, value: float = 1.5) -> Report:
    report = Report(
        "retrain", folder, World(), [logger], settings={"seed": 0, "retrain.lr": 1e-3, "x": "y", "on": True}
    )
    report.begin(after, 8)
    report.scalars(after + 8, {"train/loss": value, "val/top1": 50.0})
    report.text("architectures", after + 8, "| name |\n| --- |\n| subnet_1 |")
    report.picture("architectures/subnet_1", after + 8, to_svg(Architecture.parse("p16-e64-token-h2q96m128x3")))
    report.finish()
    return report


def test_tensorboard_gets_numbers_text_and_settings_with_results_and_hides_what_a_resumed_run_repeats(folder):
    reported(folder, "tensorboard")
    # Of two files of one second, TensorBoard does not know which is newer.
    time.sleep(1.1)
    reported(folder, "tensorboard", after=4, value=2.5)
    events = EventAccumulator(str(folder.events("retrain")), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert {"train/loss", "val/top1"} <= set(events.Tags()["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(12, 2.5)]
    assert "architectures/text_summary" in events.Tags()["tensors"]
    (drawn,) = {event.encoded_image_string for event in events.Images("architectures/subnet_1")}
    corner, *_ = image = np.asarray(Image.open(BytesIO(drawn))).reshape(-1, 3)
    assert corner.tolist() == [255, 255, 255]
    assert len(np.unique(image, axis=0)) > 3
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_weights_and_biases_writes_a_run_offline_and_goes_on_with_it(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    reported(folder, "wandb")
    identity = (folder.root / "retrain" / "metrics" / "retrain.wandb").read_text().strip()
    reported(folder, "wandb", after=8)
    runs = list((folder.events("retrain") / "wandb").glob("offline-run-*"))
    assert runs
    assert all(run.name.endswith(identity) and list(run.glob("*.wandb")) for run in runs)
    assert not folder.log("retrain", None).exists(), folder.log("retrain", None).read_text()


def test_mlflow_writes_files_and_goes_on_with_its_run(folder, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    reported(folder, "mlflow")
    reported(folder, "mlflow", after=8, value=0.5)
    assert not folder.log("retrain", None).exists(), folder.log("retrain", None).read_text()
    client = MlflowClient((folder.events("retrain") / "mlflow").resolve().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("vitas").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(8, 1.5), (16, 0.5)]
    assert run.data.params["retrain.lr"] == "0.001"
    assert run.data.metrics["final/val/top1"] == 50.0
    assert run.info.status == "FINISHED"
    assert list(folder.events("retrain").rglob("architectures/subnet_1.png"))


class Broken(loggers.Logger):
    module = package = "broken"

    def __init__(self, start) -> None:
        pass

    def scalars(self, step, epoch, values) -> None:
        raise ConnectionError("no network")


def test_a_logger_that_fails_is_named_and_left_out_and_the_others_go_on(folder, monkeypatch):
    monkeypatch.setitem(LOGGERS, "broken", Broken)
    report = Report("retrain", folder, World(), ["broken", "tensorboard"])
    report.begin(0, 8)
    report.scalars(1, {"train/loss": 1.0})
    report.scalars(2, {"train/loss": 2.0})
    report.finish()
    log = folder.log("retrain", None).read_text()
    assert log.count("broken fails and is left out from here on: ConnectionError: no network") == 1
    assert len(rows(folder.metrics("retrain"))) == 2
    assert list(folder.events("retrain").glob("events.*"))


def test_a_logger_that_is_not_installed_is_refused_with_its_package(make_config, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda module: None if module == "mlflow" else object())
    with pytest.raises(
        UserError, match="loggers: found 'mlflow', and it is not installed here: pip install mlflow-skinny"
    ):
        configuration.load(make_config({"loggers": ["tensorboard", "mlflow"]}), (), ("retrain",))
    with pytest.raises(
        UserError, match=r"loggers\.0: found 'tensorbord'; it must be 'tensorboard', 'wandb' or 'mlflow'"
    ):
        configuration.load(make_config({"loggers": ["tensorbord"]}))


# Callbacks


class Follower(Callback):
    told: list = []

    def __getattribute__(self, name: str):
        if name in dir(Callback) and not name.startswith("_"):
            return lambda *given: Follower.told.append((name, *given))
        return super().__getattribute__(name)


class Failing(Callback):
    def scalars(self, step, epoch, values) -> None:
        raise RuntimeError("the phone is off")


@pytest.fixture
def installed(monkeypatch):
    Follower.told = []
    names = {"follower": "Follower", "failing": "Failing", "path": "Path", "gone": "Gone"}
    here = [EntryPoint(name, f"{__name__}:{made}", callbacks.GROUP) for name, made in names.items()]
    monkeypatch.setattr(callbacks, "entry_points", lambda group: here)


def test_a_callback_is_told_of_a_stage_from_its_start_to_its_end(folder, installed):
    report = Report("retrain", folder, World(), callbacks=["follower"], settings={"seed": 0})
    report.begin(0, 8)
    report.scalars(8, {"train/loss": 1.0})
    report.epoch_ended(1)
    report.checkpoint_saved(Path("epoch_1_ckpt.pth.tar"))
    report.finish()
    assert Follower.told == [
        ("stage_started", "retrain", folder.root, {"seed": 0}),
        ("scalars", 8, 1.0, {"train/loss": 1.0}),
        ("epoch_ended", 1, {"train/loss": 1.0}),
        ("checkpoint_saved", Path("epoch_1_ckpt.pth.tar")),
        ("stage_ended", {"train/loss": 1.0}),
    ]


def test_a_callback_that_fails_is_named_and_told_no_more(folder, installed):
    report = Report("retrain", folder, World(), callbacks=["failing", "follower"])
    for step in (1, 2):
        report.scalars(step, {"train/loss": 1.0})
    log = folder.log("retrain", None).read_text()
    assert log.count("callback failing fails and is left out from here on: RuntimeError: the phone is off") == 1
    assert len(Follower.told) == 3


def test_a_callback_that_is_none_is_refused(folder, installed, make_config):
    with pytest.raises(UserError, match=r"found 'os:system', which is no entry point.*there are failing, follower"):
        configuration.load(make_config({"callbacks": ["os:system"]}), (), ("retrain",))
    configuration.load(make_config({"callbacks": ["follower"]}), (), ("search",))
    with pytest.raises(UserError, match=r"'path' .* is a PosixPath; it must be"):
        Report("retrain", folder, World(), callbacks=["path"])
    with pytest.raises(UserError, match=r"'gone' .* cannot be made: AttributeError"):
        Report("retrain", folder, World(), callbacks=["gone"])


# The bar


def test_the_bar_moves_with_every_step_and_says_the_epoch(folder, monkeypatch):
    report = Report("retrain", folder, World())
    report._console = Console(file=io.StringIO(), force_terminal=True, width=120)
    report.begin(8, per_epoch=8)
    with report.progress(24, 8, "steps") as update:
        update(9, "loss 2.000")
        update(18, None)
    shown = Text.from_ansi(report._console.file.getvalue()).plain
    assert "epoch 3/3" in shown
    assert "18/24 steps" in shown
    assert "loss 2.000" in shown
