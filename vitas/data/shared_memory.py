"""Memory that the ranks of a node have in common, of which nothing is left when they end, however that is.

It is a file that has no name: of the kernel's own (`memfd_create`), which no mount of /dev/shm limits, or in the folder
for temporary files where the memory is too small, whose pages the kernel may then write out to the disk.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from vitas.distributed import World, gather
from vitas.report import Report

# Of the memory that is free, for a file in memory.
SHARE_OF_MEMORY = 0.8


def node_identity() -> str:
    """What is equal for two processes that can see each other's files under /proc, and for no others.

    Two containers on one machine count as two nodes.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return " ".join((boot, os.readlink("/proc/self/ns/pid"), os.readlink("/proc/self/ns/mnt")))
    return socket.gethostname()


def ranks_of_node(world: World, identity: str) -> list[int]:
    """The ranks of this rank's node, in order; identity: of its node, as `node_identity` returns it."""
    of_all = gather(identity, world)
    return [rank for rank, other in enumerate(of_all) if other == identity]


def shared_bytes(size: int, mates: list[int], world: World, report: Report | None = None) -> Tensor | None:
    """Zeroed memory uint8 [size] that the ranks `mates` of a node share; None, on all of them, if there is no way.

    Every rank of the job must call it, with its own node's `mates`.
    """
    shared: Tensor | None = None
    for kind in ("memory", "disk"):
        # Nodes that have theirs wait for the others.
        descriptor, place = _create(kind, size) if shared is None and world.rank == mates[0] else (None, "")
        places = gather(place, world)
        try:
            mapped = _mapped(places[mates[0]], size) if shared is None and places[mates[0]] else None
            opened = gather(mapped is not None, world)
        finally:
            if descriptor is not None:
                if kind == "disk":
                    os.unlink(place)
                os.close(descriptor)
        if mapped is not None and all(opened[rank] for rank in mates):
            shared = mapped
            if kind == "disk" and report and world.rank == mates[0]:
                report.line_of_any_rank(
                    f"the val images take {size / 1e9:.1f} GB, more than memory can hold on {socket.gethostname()}: "
                    f"they lie in a file without a name in {tempfile.gettempdir()}"
                )
        if all(gather(shared is not None, world)):
            break
    if shared is None and report and world.rank == mates[0]:
        report.line_of_any_rank(f"the ranks on {socket.gethostname()} cannot share memory: each holds all val images")
    return shared


def _create(kind: str, size: int) -> tuple[int | None, str]:
    """A file of `size` zeros, and where the node's other ranks find it; none if it cannot be made."""
    descriptor, place = None, ""
    with suppress(OSError, AttributeError):
        if kind == "memory":
            if size > SHARE_OF_MEMORY * _free_memory():
                return None, ""
            descriptor = os.memfd_create("val images")
            os.truncate(descriptor, size)
            return descriptor, f"/proc/{os.getpid()}/fd/{descriptor}"
        descriptor, place = tempfile.mkstemp(prefix="vitas-val-images-")
        # A write beyond what the disk has would end the process.
        os.posix_fallocate(descriptor, 0, size)
        return descriptor, place
    if descriptor is not None:
        os.close(descriptor)
        if place:
            os.unlink(place)
    return None, ""


def _mapped(place: str, size: int) -> Tensor | None:
    try:
        descriptor = os.open(place, os.O_RDWR)
    except OSError:
        return None
    try:
        # A leftover of another process with this number would be of another size.
        if os.fstat(descriptor).st_size != size:
            return None
        return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _free_memory() -> float:
    """Bytes that this node, or the control group of the job, has left."""
    free = float("inf")
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    # Version 2 of control groups; every group above this one limits it too.
    with suppress(OSError, StopIteration):
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        below = next(line[4:] for line in groups if line.startswith("0::/"))
        folder = Path("/sys/fs/cgroup") / below
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                # What is only cached makes room.
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
                free = min(free, int((group / "memory.max").read_text()) - used)
    return free
