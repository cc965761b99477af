"""Process groups from torchrun, Slurm or nothing; collectives; seeded streams.

With one process there is no process group and every collective is free.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor

from vitas.errors import UserError, number_from_environment
from vitas.slurm import queries, signals

# Of one collective: what the slowest rank may take longer than the others.
TIMEOUT = timedelta(minutes=30)
# Of the meeting at the start: loading torch from a busy file system takes minutes.
MEETING_SECONDS = 600


class RendezvousError(RuntimeError):
    """Some ranks did not come; the message names them."""


@dataclass(frozen=True)
class World:
    """This process among the others of its job.

    rank, size: of the whole job. local_rank: on this node. device: where it computes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This rank's contiguous part of `total` items, as even as can be."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)


def init(port: int | None = None) -> World:
    """Join the job that torchrun or Slurm started, or be a world of one.

    CPU tensors travel over gloo and GPU tensors over NCCL. `port` overrides
    the port of the rendezvous under Slurm.

    Raises `RendezvousError` for ranks that do not come within ten minutes (or
    `VITAS_RENDEZVOUS_SECONDS`), and `UserError` for a port that is taken.
    """
    place = _place(port)
    rank, size, local_rank = place
    device = _device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # torchrun has a store of its own, and knows what became of its processes.
        store = None if "TORCHELASTIC_RUN_ID" in os.environ else _meet(rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size, local_rank, device)


def _meet(rank: int, size: int) -> dist.Store:
    """A store at MASTER_ADDR:MASTER_PORT, once every rank has come to it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    seconds = number_from_environment("VITAS_RENDEZVOUS_SECONDS") or MEETING_SECONDS
    end = time.monotonic() + seconds
    try:
        store = _open_store(address, port, size, rank == 0, seconds)
    except dist.DistError as error:
        if rank == 0:
            raise UserError(
                f"port: {port} cannot be opened on {socket.gethostname()} ({_first_line(error)}); choose another"
            ) from None
        raise RendezvousError(
            f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {address}:{port} within {seconds:.0f} s"
        ) from None
    # A process that an earlier start of this job left behind must not count as one of this one.
    start = f"{os.environ.get('SLURM_STEP_ID', '')}.{queries.restarts()}"
    store = dist.PrefixStore(start, store)
    store.set(f"rank {rank}", socket.gethostname())
    if rank:
        try:
            store.wait(["all are here"], timedelta(seconds=seconds))
        except dist.DistError:
            raise RendezvousError(f"rank {rank} on {socket.gethostname()} waited for the others in vain") from None
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
    """The store; its port may still be held by an earlier start of this job that is just being stopped."""
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
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Slurm can show each task its own GPU alone.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _place(port: int | None) -> tuple[int, int, int]:
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= env.keys():
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # SLURM_PROCID is set in a batch script too; only a step started by srun has a numeric SLURM_STEP_ID.
    if env.get("SLURM_STEP_ID", "").isdigit() and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        if "MASTER_ADDR" not in env:
            env["MASTER_ADDR"] = queries.first_node_address(env["SLURM_STEP_NODELIST"])
        # Below the ports that a kernel hands out, so that only another of our jobs could hold it.
        env.setdefault("MASTER_PORT", str(port or 20000 + int(env["SLURM_JOB_ID"]) % 12000))
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def average_(tensors: Sequence[Tensor], world: World) -> None:
    """Average tensors over the ranks, in place and in one collective.

    They may be strided views; they travel as one flat buffer, so what is sent
    is what they hold and nothing around it.
    """
    if world.size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world.size
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])


def sum_(values: Tensor, world: World) -> Tensor:
    """The sum of a small tensor over the ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather(item: object, world: World) -> list:
    """Every rank's item, in the order of the ranks, on every rank."""
    if world.size == 1:
        return [item]
    items: list = [None] * world.size
    dist.all_gather_object(items, item)
    return items


def broadcast(item: object, world: World) -> object:
    """Rank 0's item, on every rank."""
    if world.size == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        dist.all_reduce(torch.zeros(1))


# The reduction of the last `stop_requested`, which is still under way.
_pending: tuple[dist.Work, Tensor] | None = None


def stop_requested(world: World, at_once: bool = False) -> str | None:
    """Why the stage is to stop, or None. Every rank must call it at the same points, and all get one answer.

    The ranks agree by a reduction that runs beside the next step: the answer is
    the one of the call before, so no step waits. With `at_once` it is today's.
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
    """Wait for the last `stop_requested` to be agreed upon, and return what was: before the process group goes."""
    global _pending
    if _pending is None:
        return 0
    work, flag = _pending
    _pending = None
    work.wait()
    return int(flag)


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed of the random stream that `names` name, e.g. `("subnet", step)`.

    Each stream is a function of its names alone: a resumed run needs no
    generator's state, and every rank that asks draws the same.
    """
    digest = blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
