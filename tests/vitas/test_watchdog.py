"""A rank that no longer gets on is noticed and named, and its job ends with code 1."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, REPOSITORY, command
from vitas import watchdog
from vitas.files import write_text

GIVEN = ("retrain.architecture=p8-e32-token-h2q96m64", "retrain.epochs=1000", "stall_seconds=4")
# The program `retrain`, one rank of which hangs at its tenth step.
HANGS = """
import os, sys, time
from vitas.program import quick_imports, run_stages
with quick_imports():
    from vitas.slurm import signals
calls = 0


def hang():
    global calls
    calls += 1
    while calls == 10 and os.environ["RANK"] == sys.argv[1]:
        time.sleep(3600)
    return 0


signals.stop_code = hang
run_stages("retrain", "", arguments=sys.argv[2:])
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def ranks(
    folder: Path, arguments: list[object], variables: dict[str, str], before: Callable[[int], list[str]] = lambda _: []
) -> Iterator[list[subprocess.Popen]]:
    """Two processes of a program, without a launcher that would end the one when the other ends."""
    processes = []
    for rank in (0, 1):
        environment = ENVIRONMENT | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), **variables}
        with open(folder / f"output_{rank}", "w") as output:
            words = [*before(rank), sys.executable, *map(str, arguments)]
            processes.append(
                subprocess.Popen(words, env=environment, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
            )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.05)


def is_at_work(save_path: Path) -> bool:
    log = save_path / "retrain" / "log" / "retrain.log"
    return log.exists() and re.search(r"step (1[6-9]|[2-9]\d|\d{3})", log.read_text()) is not None


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_with_its_node_and_its_last_step(make_config, tmp_path, port, stopped):
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ranks(tmp_path, ["-m", "retrain", make_config(), *GIVEN], variables) as processes:
        wait_for(lambda: is_at_work(tmp_path / "run"))
        processes[stopped].send_signal(signal.SIGSTOP)
        # Far from the half hour of a collective.
        assert processes[1 - stopped].wait(60) == 1
        said = (tmp_path / f"output_{1 - stopped}").read_text().splitlines()[-1]
    assert re.fullmatch(
        rf"error: no step of retrain for \d+ s: rank {stopped} on {socket.gethostname()} does not answer, .*; "
        r"its last step is \d+, or the one before or after \(stall_seconds is 4\)",
        said,
    ), said


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_hangs_is_named_with_where_it_hangs(make_config, tmp_path, port, hung):
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    outcome = tmp_path / "outcome.json"
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "VITAS_OUTCOME": str(outcome)}
    with ranks(tmp_path, [script, hung, make_config(), *GIVEN], variables) as processes:
        assert [process.wait(120) for process in processes] == [1, 1]
    said = "".join((tmp_path / f"output_{rank}").read_text() for rank in (0, 1))
    named = rf"rank {hung} on {socket.gethostname()} is after step 10, in hang \(hangs.py:\d+\); the others wait"
    assert re.search(named, said), said
    # Told once, and to the supervisor.
    assert said.count("no step of retrain") == 1
    assert '"code": 1' in outcome.read_text()
    assert re.search(named, outcome.read_text())


def namespaces(names: list[str]) -> bool:
    """Make two network namespaces, joined by a cable; whether that is possible here."""
    if shutil.which("ip") is None:
        return False
    first, second = names
    commands = [
        f"ip netns add {first}",
        f"ip netns add {second}",
        f"ip link add {first} netns {first} type veth peer name {second} netns {second}",
        *(f"ip -n {name} addr add 10.99.7.{i}/24 dev {name}" for i, name in enumerate(names, 1)),
        *(f"ip -n {name} link set {device} up" for name in names for device in (name, "lo")),
    ]
    return all(subprocess.run(each.split(), capture_output=True).returncode == 0 for each in commands)


@pytest.mark.slow
def test_where_the_network_is_cut_every_rank_ends_and_says_so(make_config, tmp_path):
    names = [f"v{os.getpid() % 100000}{end}" for end in "ab"]
    try:
        if not namespaces(names):
            pytest.skip("network namespaces cannot be made here")
        variables = {"MASTER_ADDR": "10.99.7.1", "MASTER_PORT": "29617"}

        def within(rank: int) -> list[str]:
            return ["ip", "netns", "exec", names[rank], "env", f"GLOO_SOCKET_IFNAME={names[rank]}"]

        with ranks(tmp_path, ["-m", "retrain", make_config(), *GIVEN], variables, within) as processes:
            wait_for(lambda: is_at_work(tmp_path / "run"))
            subprocess.run(["ip", "-n", names[0], "link", "set", names[0], "down"], check=True)
            assert [process.wait(60) for process in processes] == [1, 1]
        said = "".join((tmp_path / f"output_{rank}").read_text() for rank in (0, 1))
        assert said.count("no step of retrain") == 1, said
        assert "rank 0 on" in said
        assert "rank 1 on" in said
    finally:
        for name in names:
            with suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_torchrun_ends_a_stopped_rank_too(make_config, tmp_path):
    process = subprocess.Popen(
        command("retrain", make_config(), *GIVEN, processes=2),
        env=ENVIRONMENT, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: is_at_work(tmp_path / "run"))
        (stopped,) = [pid for pid in children(process.pid) if variable(pid, "RANK") == "1"]
        os.kill(stopped, signal.SIGSTOP)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 1
        assert "rank 1 on" in output
        assert not Path(f"/proc/{stopped}").exists()
    finally:
        process.kill()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def variable(pid: int, name: str) -> str | None:
    pairs = (part.partition(b"=") for part in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return next((value.decode() for key, _, value in pairs if key == name.encode()), None)


# One rank alone, with the others' files written by hand


@pytest.fixture
def watched(tmp_path):
    """(limit) -> what the watchdog of rank 0 of two has said; its end does not end this process."""
    said: list[str] = []

    def watch(limit: float | None) -> list[str]:
        def end(message: str, report: bool) -> None:
            said.append(message)
            raise SystemExit  # Of its thread.

        watchdog.start(tmp_path / "stall-0", 0, ["here", "there"], limit, end)
        return said

    yield watch
    watchdog.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_says_nothing_while_steps_come_before_the_first_and_after_the_last(watched, tmp_path):
    said = watched(0.5)
    time.sleep(1)
    with watchdog.watching("retrain"):
        time.sleep(1)  # Before the first step.
        for step in range(6):
            watchdog.beat(step)
            time.sleep(0.2)
    time.sleep(3)
    assert (said, list(tmp_path.iterdir())) == ([], [])
    with watchdog.watching("retrain"):
        watchdog.beat(1)
        wait_for(lambda: bool(said), 30)
    assert said[0].startswith("error: no step of retrain for ")
    assert "rank 1 on there does not answer" in said[0]


def test_it_looks_at_no_file_while_nothing_is_watched(watched, monkeypatch):
    looks: list[None] = []
    watched(0.5)
    monkeypatch.setattr(watchdog._watchdog, "_is_asked", lambda: looks.append(None) or False)
    time.sleep(0.5)
    assert not looks
    with watchdog.watching("retrain"):
        wait_for(lambda: bool(looks), 30)


def test_a_rank_that_writes_a_checkpoint_is_waited_for(watched, tmp_path):
    said = watched(0.5)
    with watchdog.watching("retrain"):
        watchdog.beat(1)
        with watchdog.patient("writes a checkpoint"):
            (tmp_path / "stall-0").mkdir()
            (tmp_path / "stall-0" / "rank_1").write_text("{}")  # It waits.
            answer = tmp_path / "stall-0" / "rank_0.busy"
            wait_for(answer.exists, 30)
            assert '"busy": "writes a checkpoint"' in answer.read_text()
            time.sleep(3)
            (tmp_path / "stall-0" / "rank_1").unlink()
        # The time that it took is not held against the step either.
        wait_for(lambda: watchdog.beat(2) or not (tmp_path / "stall-0").exists(), 30)
    assert said == []


def test_it_waits_for_another_rank_that_is_busy(watched, tmp_path):
    said = watched(0.5)
    with watchdog.watching("retrain"):
        watchdog.beat(1)
        (tmp_path / "stall-0").mkdir()
        end = time.monotonic() + 5
        while time.monotonic() < end:
            about = '{"host": "there", "step": 1, "what": "retrain", "busy": "writes", "waits": false, "at": "x"}'
            write_text(tmp_path / "stall-0" / "rank_1.busy", about)
            time.sleep(0.1)
    assert said == []


@pytest.mark.parametrize(("gaps", "limit"), [([], 1800), ([3], 120), ([3, 50, 2], 500), ([300, 1], 1800)], ids=str)
def test_without_a_limit_it_is_that_of_the_slowest_step_within_bounds(watched, monkeypatch, gaps, limit):
    watched(None)
    now = 1000.0
    with watchdog.watching("retrain"):
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
        watchdog.beat(0)
        for step, gap in enumerate(gaps, 1):
            now += gap
            watchdog.beat(step)
        dog = watchdog._watchdog
        assert dog._limit_of(dog.watch) == limit
        monkeypatch.undo()


def test_it_does_nothing_in_a_program_that_does_not_start_it():
    with watchdog.watching("retrain"), watchdog.patient("writes"):
        watchdog.beat(1)
    watchdog.stop()


def test_a_step_costs_no_more_than_a_look_at_the_clock(watched):
    watched(None)
    with watchdog.watching("retrain"):
        began = time.perf_counter()
        for step in range(100_000):
            watchdog.beat(step)
        # A microsecond or so; steps take milliseconds.
        assert (time.perf_counter() - began) / 100_000 < 100e-6
