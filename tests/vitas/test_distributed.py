"""Places of processes, shares of work, seeded streams, and agreeing to stop."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import ENVIRONMENT, REPOSITORY
from vitas import distributed
from vitas.distributed import World, find_place, stop_requested
from vitas.errors import UserError
from vitas.seeds import stream_seed
from vitas.slurm import signals

# Shares


@given(total=st.integers(0, 10_000), size=st.integers(1, 64))
def test_the_shares_cover_everything_once_in_order_and_evenly(total, size):
    shares = [range(total)[World(rank, size).share(total)] for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(total))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_rank_0_alone_is_main():
    assert [World(rank, 3).is_main for rank in range(3)] == [True, False, False]


# Seeds


def test_a_streams_seed_is_the_same_on_every_machine_and_in_every_version():
    assert stream_seed(0, "order", 0) == 2_094_333_682_667_709_378


@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40))
def test_a_streams_seed_fits_a_generator(seed, step):
    value = stream_seed(seed, "subnet", step)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)


def test_streams_of_other_seeds_names_and_steps_differ():
    seeds = [stream_seed(s, name, *rest) for s in (0, 1) for name in ("a", "b") for rest in ((), (0,), (1,), (0, 1))]
    # Joined names are other names.
    seeds += [stream_seed(0, "ab"), stream_seed(0, "a", "1"), stream_seed(0, "a", 0, 11), stream_seed(0, "a", 1, 1)]
    assert len(set(seeds)) == len(seeds)


# A world of one


def test_the_collectives_of_a_world_of_one_change_nothing():
    world, values, item = World(), torch.arange(3.0), {"a": 1}
    assert distributed.sum_(values, world) is values
    assert values.tolist() == [0, 1, 2]
    assert distributed.gather(item, world) == [item]
    assert distributed.broadcast(item, world) is item
    distributed.barrier(world)
    distributed.shutdown()


def test_without_a_launcher_there_is_one_process_and_no_group(bare_environment):
    world = distributed.init()
    assert (world.rank, world.size, world.local_rank) == (0, 1, 0)
    assert not torch.distributed.is_initialized()


# Places

SLURM_STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def bare_environment(monkeypatch):
    """No launcher's variables; what the code sets is taken back."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def scontrol(bare_environment, tmp_path):
    """(text of `show node`) -> puts a `scontrol` on the PATH that knows the nodes gpu07 and gpu08."""

    def install(node_text: str) -> None:
        script = tmp_path / "bin" / "scontrol"
        script.parent.mkdir()
        script.write_text(
            "#!/bin/sh\n"
            '[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08\\n" && exit 0\n'
            f'[ "$*" = "show node gpu07" ] && printf "{node_text}" && exit 0\n'
            "exit 1\n"
        )
        script.chmod(0o755)
        bare_environment.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")

    return install


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_slurm_step_gives_rank_size_and_the_first_nodes_own_address(bare_environment, scontrol):
    scontrol("NodeName=gpu07 Arch=x86_64\\n   NodeAddr=10.0.0.7 NodeHostName=gpu07 Version=23.11\\n")
    set_all(bare_environment, SLURM_STEP)
    assert find_place() == (3, 4, 1)
    assert os.environ["MASTER_ADDR"] == "10.0.0.7"
    port = int(os.environ["MASTER_PORT"])
    assert 1024 <= port <= 65535


def test_jobs_beside_each_other_meet_at_different_ports(bare_environment, scontrol):
    scontrol("NodeName=gpu07\\n")
    ports = set()
    for job in ("123456", "123457"):
        set_all(bare_environment, SLURM_STEP | {"SLURM_JOB_ID": job})
        bare_environment.delenv("MASTER_PORT", raising=False)
        find_place()
        ports.add(os.environ["MASTER_PORT"])
    assert len(ports) == 2
    # Slurm does not always tell the address; the name is what is left.
    assert os.environ["MASTER_ADDR"] == "gpu07"


def test_a_given_port_and_what_is_set_already_hold(bare_environment):
    set_all(bare_environment, SLURM_STEP | {"MASTER_ADDR": "10.1.1.1"})
    find_place(29_500)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.1.1.1", "29500")


@pytest.mark.parametrize("broken", ["absent", "failing", "silent"])
def test_a_slurm_that_does_not_name_the_first_node_is_told_with_what_to_set(bare_environment, tmp_path, broken):
    if broken != "absent":
        script = tmp_path / "scontrol"
        script.write_text(f"#!/bin/sh\nexit {int(broken == 'failing')}\n")
        script.chmod(0o755)
    bare_environment.setenv("PATH", f"{tmp_path}:/bin" if broken != "absent" else str(tmp_path))
    set_all(bare_environment, SLURM_STEP)
    with pytest.raises(UserError, match=r"'gpu\[07-08\]'.*set MASTER_ADDR"):
        find_place()


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},
        # Inside a batch script there is no step of srun's.
        {"SLURM_STEP_ID": "batch"},
        {"SLURM_STEP_ID": ""},
    ],
)
def test_a_batch_script_and_a_step_of_one_task_are_worlds_of_one(bare_environment, changes):
    set_all(bare_environment, SLURM_STEP | changes)
    assert find_place() == (0, 1, 0)
    assert "MASTER_ADDR" not in os.environ


def test_torchrun_wins_over_slurm(bare_environment):
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    set_all(bare_environment, SLURM_STEP | torchrun)
    assert find_place() == (5, 8, 1)
    assert os.environ["MASTER_PORT"] == "1"


def run_ranks(code: str, ranks: tuple[int, ...], size: int, **variables: str) -> tuple[str, dict[int, str]]:
    """Run code as some ranks of a job of `size`; their port, and what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = {
        rank: subprocess.Popen(
            [sys.executable, "-c", code],
            env=ENVIRONMENT | variables | {"RANK": str(rank)},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    }
    return port, {rank: process.communicate(timeout=120)[0] for rank, process in processes.items()}


@pytest.mark.slow
def test_ranks_that_do_not_come_are_named():
    """Ranks 0 and 2 of four come."""
    code = "from vitas import distributed\ntry: distributed.init()\nexcept distributed.RendezvousError as e: print(e)"
    port, said = run_ranks(code, (0, 2), size=4, VITAS_RENDEZVOUS_SECONDS="8")
    assert f"of 4 ranks, 2 did not come to 127.0.0.1:{port} within 8 s: 1, 3 (here are 0 on " in said[0]
    assert ", 2 on " in said[0]
    assert "rank 2 on " in said[2]


def test_a_port_that_is_taken_is_a_mistake_that_can_be_mended(bare_environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        set_all(bare_environment, variables | {"VITAS_RENDEZVOUS_SECONDS": "1"})
        with pytest.raises(UserError, match=rf"^port: {port} cannot be opened on .*; choose another$"):
            distributed.init()


# Agreeing to stop


def test_one_process_stops_when_it_is_asked_to(monkeypatch):
    codes = iter([0, signal.SIGTERM, signal.SIGTERM])
    monkeypatch.setattr(signals, "stop_code", lambda: next(codes))
    assert stop_requested(World()) is None
    assert stop_requested(World()) == "SIGTERM"
    assert stop_requested(World(), at_once=True) == "SIGTERM"


# What each rank is asked, call by call, and what all of them answer: the largest, one call later or at once.
CALLS = [
    # (code of rank 0, code of rank 1, at_once, answer)
    (0, 0, False, None),
    (0, signal.SIGUSR1, False, None),
    (0, signal.SIGUSR1, False, "SIGUSR1"),
    (0, 0, False, "SIGUSR1"),
    (0, 0, False, None),
    (signal.SIGTERM, signal.SIGUSR1, True, "SIGTERM"),
    (0, 0, True, None),
]


def test_all_ranks_get_one_answer():
    calls = [(int(first), int(second), at_once) for first, second, at_once, _ in CALLS]
    code = (
        "import os\n"
        "from vitas import distributed\n"
        "from vitas.slurm import signals\n"
        "world = distributed.init()\n"
        f"for *codes, at_once in {calls!r}:\n"
        "    signals.stop_code = lambda: codes[world.rank]\n"
        "    print(distributed.stop_requested(world, at_once))\n"
        "distributed.settle()\n"
        "distributed.shutdown()\n"
    )
    _, said = run_ranks(code, (0, 1), size=2)
    for rank in (0, 1):
        assert said[rank].split() == [str(answer) for *_, answer in CALLS]
