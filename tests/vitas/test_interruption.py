"""Stopping in good order: what is remembered of signals and time limits, and what a program then does."""

import os
import signal
import subprocess
import time

import pytest
import torch

from tests.processes import ENVIRONMENT, REPOSITORY, command, run
from vitas.distributed import World
from vitas.slurm import queries, signals
from vitas.slurm.queries import SlurmError, TimeLimit


@pytest.fixture
def listening(monkeypatch):
    """This process listens, and forgets it all afterwards."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for name, value in (("_received", 0), ("_deadline", None), ("_pending", None), ("_guard", None)):
        monkeypatch.setattr(signals, name, value)
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_is_remembered_instead_of_died_of(listening, name):
    assert signals.requested(World()) is None
    os.kill(os.getpid(), getattr(signal, name))
    assert signals.requested(World()) == name
    assert signals.requested(World()) == name


def test_the_second_ctrl_c_stops_at_once(listening):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("limit", "margin", "stops"),
    [
        (TimeLimit(119, 86400), None, True),
        (TimeLimit(125, 86400), None, False),
        (TimeLimit(11, 60), None, True),
        (TimeLimit(13, 60), None, False),
        (TimeLimit(299, 86400), "300", True),
        (TimeLimit(305, 86400), "300", False),
        (None, None, False),
        (SlurmError("no controller"), None, False),
    ],
)
def test_a_run_stops_a_margin_before_its_time_limit(listening, monkeypatch, limit, margin, stops):
    def time_limit(job: str) -> TimeLimit | None:
        assert job == "7"
        if isinstance(limit, SlurmError):
            raise limit
        return limit

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(queries, "time_limit", time_limit)
    monkeypatch.delenv("VITAS_STOP_MARGIN", raising=False)
    if margin:
        monkeypatch.setenv("VITAS_STOP_MARGIN", margin)
    signals.watch_time_limit()
    assert signals.requested(World()) == ("the time limit" if stops else None)


@pytest.mark.slow
def test_a_signal_to_a_program_and_its_workers_loses_no_step(make_config, tmp_path):
    """Slurm signals every process of a job, the loader's workers too."""
    config = make_config({"search.epochs": 3, "search.log_steps": 4, "search.data.workers": 2})
    stopped = tmp_path / "stopped"
    only = ("sample.flag=false",)
    process = subprocess.Popen(
        command("search", config, f"save_path={stopped}", *only),
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    log = stopped / "search" / "log" / "search.log"
    while not (log.exists() and "step 8/" in log.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == signals.EXIT_CODE, output
    assert output.splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
    (said,) = [line for line in output.splitlines() if "stops after step" in line]
    step = int(said.split("stops after step ")[1].split()[0])
    recent = stopped / "search" / "checkpoint" / "recent_ckpt.pth.tar"
    assert torch.load(recent, weights_only=True)["step"] == step
    assert not list(stopped.rglob("*.lock"))

    assert f"resumes at step {step} of" in run("search", config, f"save_path={stopped}", *only)
    assert (stopped / "search" / "checkpoint" / "epoch_3_ckpt.pth.tar").exists()
