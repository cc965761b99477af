"""Process groups from torchrun, Slurm or nothing; collectives; seeded streams.

With one process there is no process group and every collective is free.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor

from vitas.errors import UserError

TIMEOUT = timedelta(minutes=30)


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
    """
    place = _place(port)
    rank, size, local_rank = place
    device = _device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank, size, local_rank, device)


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
            env["MASTER_ADDR"] = _first_node_address(env["SLURM_STEP_NODELIST"])
        env.setdefault("MASTER_PORT", str(port or 20000 + int(env["SLURM_JOB_ID"]) % 20000))
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return 0, 1, 0


def _first_node_address(nodelist: str) -> str:
    """The address by which Slurm itself reaches a list's first node: node names need not resolve."""
    try:
        name = _output("scontrol", "show", "hostnames", nodelist).split()[0]
        fields = dict(
            field.split("=", 1) for field in _output("scontrol", "show", "node", name).split() if "=" in field
        )
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"scontrol does not name the first of the nodes {nodelist!r} ({error}); set MASTER_ADDR to its address"
        ) from None
    return fields.get("NodeAddr", name)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed of the random stream that `names` name, e.g. `("subnet", step)`.

    Each stream is a function of its names alone: a resumed run needs no
    generator's state, and every rank that asks draws the same.
    """
    digest = blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
