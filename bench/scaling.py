"""How well ranks are filled: scoring, measured here and simulated for 1 to 1,024 GPUs, and training, simulated.

Efficiency is the sum of the single times of all subnets over (ranks x wall time). The goal is 0.90 at 64 ranks. With
whole subnets 50 children cannot exceed 50/64 = 0.78 there, however they are handed out; with pieces of the images the
bound is the last piece, and what each piece costs beside its forward passes.

Measured: children sleep for their time, so that ranks do not share the cores of a small machine; what is measured is
the queue. Memory is the proportional set size (PSS) of each rank, with a copy on each (before) and one a node (now).
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from search.measurements import InPieces, MeasurementJournal
from search.scoring import PIECES
from vitas import distributed
from vitas.data.shared_memory import node_identity, ranks_of_node, shared_bytes
from vitas.distributed import World, barrier, gather
from vitas.report import Report
from vitas.run import RunFolder

REPOSITORY = Path(__file__).parents[1]

# Assumptions of the simulation.
SUBNETS = 50  # of a generation
GENERATIONS = 20
IMAGES = 50_000
GPU_IMAGES_PER_SECOND = 8_000  # of the mean subnet, forward passes alone
SPREAD = 0.35  # standard deviation of the logarithm of a subnet's cost
STORE_SECONDS = 2e-4  # a round trip to rank 0's store
STORE_TRIPS = 3  # a piece: its ticket, its number, its result
SERVER_SECONDS = 2e-5  # the store's own time for a request; it serves one at a time
PIECE_SECONDS = 5e-4  # the GPU waits for the host at the end of a piece
GATHER_SECONDS = 1e-3  # a collective over two ranks, and as much for each doubling of them
DECODE_SECONDS = 6e-3  # an image, on one core
CORES = 12  # of a GPU
GPUS = 8  # of a node
# Of training the supernet of 1G with bilateral sharing.
TRAIN_IMAGES_PER_SECOND = 4_000  # a GPU, both sides, forward and backward
LAUNCH_SECONDS = 2_100 * 6e-6  # of 16 blocks and two sides: `kernels`, each of 6 microseconds
GRADIENT_BYTES = 33.9e6  # a step sends so many: `gradient_bytes`, ViTAS_1G_BCNet
BYTES_PER_SECOND = 20e9  # of the slowest link of a ring, a network card for each GPU
HOP_SECONDS = 1e-5  # of a collective, for each doubling of the ranks
BUCKETS = 8
BACKWARD = 2 / 3  # of a step, in which all buckets but the last leave unseen
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SLEEP = 0.2  # seconds of the mean child where it is measured
IMAGE_SIZE = 64  # of the images whose memory is measured


def costs(count: int, seed: int = 0) -> np.ndarray:
    """Relative times of subnets, of mean 1, the slowest first."""
    drawn = np.random.default_rng(seed).lognormal(0, SPREAD, count)
    return np.sort(drawn / drawn.mean())[::-1]


def simulate(subnets: int = SUBNETS, images: int = IMAGES) -> list[dict]:
    """Efficiency of scoring alone, and seconds of a whole search with its decoding, by the number of GPUs."""
    rows = []
    of_generations = [costs(subnets, seed) * images / GPU_IMAGES_PER_SECOND for seed in range(GENERATIONS)]
    single = sum(seconds.sum() for seconds in of_generations)
    for ranks in SIZES:
        gathering = GATHER_SECONDS * np.log2(max(ranks, 2)) * (ranks > 1)
        waves = sum(_waves(seconds[::-1], ranks, gathering) for seconds in of_generations)
        whole = sum(_queue(seconds, ranks, gathering, 1) for seconds in of_generations)
        queue = sum(_queue(seconds, ranks, gathering, PIECES) for seconds in of_generations)
        row = {"gpus": ranks}
        row |= {
            name: float(single / (ranks * wall))
            for name, wall in (("waves", waves), ("whole", whole), ("queue", queue))
        }
        row["decode_seconds"] = images * DECODE_SECONDS / (CORES * min(ranks, GPUS))
        row["search_seconds"] = float(queue) + row["decode_seconds"]
        row["bottleneck"] = _bottleneck(of_generations[0], ranks)
        rows.append(row)
    return rows


def simulate_training(of_rank: int | None, batch: int = 1024) -> list[dict]:
    """Efficiency of training by the number of GPUs: with so many images on each, or a batch shared by all."""
    rows = []
    for ranks in SIZES:
        images = of_rank or batch / ranks
        # Shorter passes than their launches wait for these.
        passes = max(images / TRAIN_IMAGES_PER_SECOND, LAUNCH_SECONDS)
        bucket = 2 * (ranks - 1) / ranks * GRADIENT_BYTES / BUCKETS / BYTES_PER_SECOND + HOP_SECONDS * np.log2(ranks)
        reduction = BUCKETS * bucket if ranks > 1 else 0.0
        # What does not fit beside the backward pass, and at least the last bucket.
        seen = max(reduction - BACKWARD * passes, bucket) if ranks > 1 else 0.0
        ideal = images / TRAIN_IMAGES_PER_SECOND
        launches, waits = passes - ideal, seen
        bounds = {"kernel launches": launches, "the reduction": waits}
        row = {"gpus": ranks, "ratio": round(float(ideal / (passes + seen)), 3)}
        rows.append(
            row | {"bottleneck": max(bounds, key=bounds.__getitem__) if max(bounds.values()) > 0 else "nothing"}
        )
    return rows


def _waves(seconds: np.ndarray, ranks: int, gathering: float) -> float:
    return sum(seconds[start : start + ranks].max() + gathering for start in range(0, len(seconds), ranks))


def _queue(seconds: np.ndarray, ranks: int, gathering: float, pieces: int) -> float:
    # When each rank is free; the store is another server, which all ask.
    free = [0.0] * ranks
    store = 0.0
    for unit in np.repeat(seconds / pieces, pieces):
        asked = heapq.heappop(free)
        store = max(store, asked) + STORE_TRIPS * SERVER_SECONDS
        heapq.heappush(free, store + STORE_TRIPS * STORE_SECONDS + PIECE_SECONDS + unit)
    return max(free) + gathering


def _bottleneck(seconds: np.ndarray, ranks: int) -> str:
    """What bounds the queue at so many ranks."""
    per_rank = len(seconds) * PIECES / ranks
    if per_rank < 1:
        return f"only {len(seconds) * PIECES} pieces"
    piece = seconds.mean() / PIECES
    if (ranks * STORE_TRIPS * SERVER_SECONDS) > piece:
        return "the store"
    idle = 0.5 / per_rank
    overhead = (STORE_TRIPS * STORE_SECONDS + PIECE_SECONDS) / piece
    return "ranks that wait for the last pieces" if idle > overhead else "the overhead of a piece"


def measure(
    processes: tuple[int, ...] = (1, 2, 4), children: int = SUBNETS, images: int = 10_000
) -> list[dict[str, Any]]:
    """Efficiencies, measured and simulated. images: of IMAGE_SIZE, whose memory is measured."""
    rows = []
    for count in processes:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "measured.json")
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            words = ["-m", "bench.scaling", str(output), str(children), str(images)]
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(REPOSITORY)}
            subprocess.run([*launcher, *words], check=True, env=environment)
            found = json.loads(output.read_text())
        rows.append({"what": f"scoring, {count} processes here", **_row(found)})
    for row in simulate():
        # The goal is meant up to 64.
        beyond = {"goal": None} if row["gpus"] > 64 else {}
        rows.append({"what": f"scoring, {row['gpus']} GPUs, simulated", **_row(row), **beyond})
    for how, of_rank in (("64 images a GPU", 64), ("1,024 images in all", None)):
        for row in simulate_training(of_rank):
            gpus = row.pop("gpus")
            beyond = {"goal": None} if gpus > 64 else {}
            rows.append({"what": f"training, {how}, {gpus} GPUs, simulated", **row, **beyond})
    return rows


def _row(found: dict[str, Any]) -> dict[str, Any]:
    efficiencies = {"ratio": "queue", "waves": "waves", "whole subnets": "whole"}
    others = ("megabytes_of_copies", "megabytes_shared", "decode_seconds", "bottleneck")
    return {name: round(found[key], 3) for name, key in efficiencies.items()} | {
        name: value if isinstance(value, str) else round(value) for name, value in found.items() if name in others
    }


def _child(output: Path, children: int, images: int) -> None:
    torch.set_num_threads(1)
    world = distributed.init()
    seconds = costs(children) * SLEEP
    walls = {"waves": _time_waves(seconds[::-1], world)}
    for name, pieces in (("whole", 1), ("queue", PIECES)):
        walls[name] = _time_queue(seconds, pieces, output.with_name(f"{name}.jsonl"), world)
    memory = _memory(images, world)
    if world.is_main:
        efficiency = {name: float(seconds.sum() / (world.size * wall)) for name, wall in walls.items()}
        output.write_text(json.dumps({"processes": world.size, **efficiency, **memory}))
    barrier(world)
    distributed.settle()
    distributed.shutdown()


def _time_waves(seconds: np.ndarray, world: World) -> float:
    """The wall time of waves: of each, a rank scores one subnet, and all wait for the slowest."""
    barrier(world)
    began = time.perf_counter()
    for start in range(0, len(seconds), world.size):
        wave = seconds[start : start + world.size]
        if world.rank < len(wave):
            time.sleep(wave[world.rank])
        gather(world.rank, world)
    return time.perf_counter() - began


def _time_queue(seconds: np.ndarray, pieces: int, path: Path, world: World) -> float:
    report = Report("sample", RunFolder(path.parent), world)
    journal: MeasurementJournal[int, int] = MeasurementJournal(
        path, {}, lambda line: (line["a"], line["b"]), lambda a, b: {"a": a, "b": b}, "scores", report, world
    )
    how = InPieces(pieces, lambda child, _: time.sleep(seconds[child] / pieces) or 0, sum)
    barrier(world)
    began = time.perf_counter()
    journal.measure(range(len(seconds)), how, world.size)
    return time.perf_counter() - began


def _memory(images: int, world: World) -> dict:
    """Mean megabytes (PSS) that images add to each rank: with a copy on each, and with one a node."""
    size = 3 * IMAGE_SIZE**2 * images
    empty = _pss()
    own = torch.ones(size, dtype=torch.uint8)
    before = gather(_pss() - empty, world)
    del own
    barrier(world)
    mates = ranks_of_node(world, node_identity())
    empty = _pss()
    shared = shared_bytes(size, mates, world)
    assert shared is not None
    shared[World(mates.index(world.rank), len(mates)).share(size)] = 1
    barrier(world)
    # Every rank scores on all images.
    assert int(shared.sum(dtype=torch.int64)) == size
    after = gather(_pss() - empty, world)
    barrier(world)
    return {"megabytes_of_copies": mean(before), "megabytes_shared": mean(after)}


def _pss() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
