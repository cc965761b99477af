"""Stopping in good order: what is remembered of signals and time limits, and what a program then does."""

import os
import signal
import subprocess
import time

import pytest
import torch

from tests.processes import ENVIRONMENT, REPOSITORY, command, run
from vitas.slurm import queries, signals
from vitas.slurm.queries import SlurmError, TimeLimit


@pytest.fixture
def listening(monkeypatch):
    """This process listens, and forgets it all afterwards.

    Nothing public forgets: a program that was asked to stop stops.
    """
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for name, value in (("_received", 0), ("_deadline", None), ("_guard", None)):
        monkeypatch.setattr(signals, name, value)
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop_reason() -> str | None:
    return signals.reason(signals.stop_code())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_is_remembered_instead_of_died_of(listening, name):
    assert stop_reason() is None
    os.kill(os.getpid(), getattr(signal, name))
    assert stop_reason() == name
    assert stop_reason() == name


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
    assert stop_reason() == ("the time limit" if stops else None)


def test_a_guard_is_asked_now_and_then_and_what_it_raises_ends_the_run(listening, monkeypatch):
    now, asked = [100.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])

    def check() -> None:
        asked.append(now[0])
        if now[0] > 111:
            raise RuntimeError("taken over")

    signals.guard(check)
    for seconds in (101.0, 106.0, 107.0):
        now[0] = seconds
        assert stop_reason() is None
    assert asked == [106.0]
    now[0] = 112.0
    with pytest.raises(RuntimeError, match="taken over"):
        stop_reason()


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
    assert output.splitlines()[-1].startswith("stopped by SIGTERM; ")
    (said,) = [line for line in output.splitlines() if "stops after step" in line]
    step = int(said.split("stops after step ")[1].split()[0])
    recent = stopped / "search" / "checkpoint" / "recent_ckpt.pth.tar"
    assert torch.load(recent, weights_only=True)["step"] == step
    assert not list(stopped.rglob("*.lock"))

    assert f"resumes at step {step} of" in run("search", config, f"save_path={stopped}", *only)
    assert (stopped / "search" / "checkpoint" / "epoch_3_ckpt.pth.tar").exists()
