"""Process groups under torchrun, Slurm or neither; collectives.

With one process there is no process group, and collectives do nothing.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitas.errors import UserError, number_from_environment
from vitas.slurm import queries, signals

# For one collective: how long the ranks may wait for the slowest.
TIMEOUT = timedelta(minutes=30)
# For the rendezvous: importing torch from a busy file system takes minutes.
MEETING_SECONDS = 600

Item = TypeVar("Item")


class RendezvousError(RuntimeError):
    """Some ranks did not come to the rendezvous; the message names them."""


@dataclass(frozen=True)
class World:
    """This process and the size of its job.

    rank, size: rank and world size in the whole job. local_rank: rank on this node. device: where it computes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's contiguous part of `total` items; the parts are as equal as possible."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)


def init(port: int | None = None) -> World:
    """Join the process group of a job started by torchrun or Slurm; otherwise the world is this process.

    CPU tensors use gloo, GPU tensors NCCL. `port` is that of the rendezvous
    under Slurm.

    Raises `RendezvousError` for ranks that do not come within ten minutes (or
    `VITAS_RENDEZVOUS_SECONDS`), and `UserError` for a port that is in use.
    """
    rank, size, local_rank = find_place(port)
    device = _device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        global _store
        # torchrun has its own store and watches its processes.
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        _store = next(dist.rendezvous("env://"))[0] if by_torchrun else _rendezvous(rank, size)
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size, local_rank, device)


# Where the ranks met.
_store: dist.Store | None = None


def connect_to_store() -> dist.Store:
    """A connection of this rank's own to the store at which the ranks met, with keys of its own."""
    if _store is None:
        raise RuntimeError("there is no store: the process group was not made by vitas.distributed.init")
    store = _store.clone()
    store.set_timeout(TIMEOUT)
    return dist.PrefixStore("vitas", store)


def _rendezvous(rank: int, size: int) -> dist.Store:
    """The store at MASTER_ADDR:MASTER_PORT, once every rank has connected to it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    seconds = number_from_environment("VITAS_RENDEZVOUS_SECONDS") or MEETING_SECONDS
    end = time.monotonic() + seconds
    try:
        store: dist.Store = _open_store(address, port, size, rank == 0, seconds)
    except dist.DistError as error:
        if rank == 0:
            raise UserError(
                f"port: {port} cannot be opened on {socket.gethostname()} ({_first_line(error)}); choose another"
            ) from None
        raise RendezvousError(
            f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {address}:{port} within {seconds:.0f} s"
        ) from None
    # Keeps out processes left over from an earlier start of this job.
    start = f"{os.environ.get('SLURM_STEP_ID', '')}.{queries.restarts()}"
    store = dist.PrefixStore(start, store)
    store.set(f"rank {rank}", socket.gethostname())
    if rank:
        try:
            store.wait(["all are here"], timedelta(seconds=seconds))
        except dist.DistError:
            raise RendezvousError(
                f"rank {rank} on {socket.gethostname()} waited {seconds:.0f} s for the other ranks"
            ) from None
        return store
    while missing := [other for other in range(size) if not store.check([f"rank {other}"])]:
        if time.monotonic() > end:
            came = ", ".join(
                f"{other} on {store.get(f'rank {other}').decode()}" for other in range(size) if other not in missing
            )
            raise RendezvousError(
                f"of {size} ranks, {len(missing)} did not come to {address}:{port} within {seconds:.0f} s: "
                f"{', '.join(map(str, missing))} (here are {came}); look at their nodes and at rank_*.err"
            )
        time.sleep(0.05)
    store.set("all are here", "")
    return store


def _open_store(address: str, port: int, size: int, is_master: bool, seconds: float) -> dist.TCPStore:
    """Open the store; retries while an earlier start of this job, which is being stopped, still holds the port."""
    end = time.monotonic() + (min(seconds, 60) if is_master else 0)
    while True:
        try:
            return dist.TCPStore(address, port, size, is_master, timedelta(seconds=seconds), wait_for_workers=False)
        except dist.DistError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def shutdown() -> None:
    """Leave the process group, if there is one."""
    global _store
    _store = None
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Modulo, because Slurm may make only its own GPU visible to each task.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def find_place(port: int | None = None) -> tuple[int, int, int]:
    """Rank, world size and local rank that torchrun or Slurm gave this process; 0, 1, 0 without them.

    Under Slurm it also sets MASTER_ADDR and MASTER_PORT if unset; without `port`, the port depends on the job's id.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= env.keys():
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # SLURM_PROCID is set in a batch script too; only a step started by srun has a numeric SLURM_STEP_ID.
    if env.get("SLURM_STEP_ID", "").isdigit() and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "MASTER_ADDR" not in env:
            env["MASTER_ADDR"] = queries.first_node_address(env["SLURM_STEP_NODELIST"])
        # Below the kernel's ephemeral ports, so that only another job of ours could hold it.
        env.setdefault("MASTER_PORT", str(port or 20000 + int(env["SLURM_JOB_ID"]) % 12000))
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def cores() -> int:
    """The CPU cores for this rank: those that its process may use, shared with the other ranks of its node."""
    usable = len(os.sched_getaffinity(0))
    if os.environ.get("SLURM_STEP_ID", "").isdigit() and "TORCHELASTIC_RUN_ID" not in os.environ:
        # Slurm may bind a task to its own cores, or to none: so not a share of those that it may use.
        return min(usable, int(queries.number_in("SLURM_CPUS_PER_TASK") or 1))
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, usable // int(ranks)) if ranks.isdigit() and int(ranks) else usable


def sum_(values: Tensor, world: World) -> Tensor:
    """The sum of a small tensor over the ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather(item: Item, world: World) -> list[Item]:
    """The items of all ranks, in rank order, on every rank."""
    if world.size == 1:
        return [item]
    items = [item] * world.size
    dist.all_gather_object(items, item)
    return items


def broadcast(item: Item, world: World) -> Item:
    """Rank 0's item, on every rank."""
    if world.size == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def barrier(world: World) -> None:
    """Wait until every rank has called this."""
    if world.size > 1:
        dist.all_reduce(torch.zeros(1))


# The reduction that the last call of `stop_requested` started, and its tensor.
_pending: tuple[dist.Work, Tensor] | None = None


def stop_requested(world: World, at_once: bool = False) -> str | None:
    """Why the stage should stop, or None. Every rank must call it at the same points; all get the same answer.

    The ranks agree by a reduction that runs during the next step, so the answer
    is that of the previous call and no step waits. With `at_once` it waits, and
    the answer is current.
    """
    global _pending
    code = signals.stop_code()
    if world.size > 1:
        agreed = settle()
        flag = torch.tensor(code)
        _pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag)
        code = max(agreed, settle()) if at_once else agreed
    return signals.reason(code)


def settle() -> int:
    """Wait for the reduction of the last `stop_requested` and return its result; to call before `shutdown`."""
    global _pending
    if _pending is None:
        return 0
    work, flag = _pending
    _pending = None
    work.wait()
    return int(flag)
