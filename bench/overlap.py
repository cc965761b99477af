"""Steps of the supernet's training on several processes: without reduction, with it after the passes, and during them.

Each process has its own images of a step, and all train the same subnet of 1G, with bilateral sharing. Processes share
this machine's cores (and its GPUs, one each): what gloo's threads do is taken from the passes, where a network card
would do it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F

REPOSITORY = Path(__file__).parents[1]
# How many processes; on GPUs as many as there are.
_PROCESSES = (2, 4)


def measure(rounds: int = 8, batch_size: int = 4) -> list[dict[str, Any]]:
    rows = []
    for processes in _PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "seconds.json"
            launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
            words = [sys.executable, *launcher, "-m", "bench.overlap", str(path), str(rounds), str(batch_size)]
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(REPOSITORY)}
            subprocess.run(words, check=True, env=environment)
            rows += json.loads(path.read_text())
    return rows


def measure_rank(path: Path, rounds: int, batch_size: int) -> None:
    """On one rank of several; rank 0 writes the rows."""
    from vitas import distributed
    from vitas.evaluate import autocast_dtype
    from vitas.models.step_weights import StepWeights
    from vitas.reduction import Reduction

    from .networks import autocast, batch, subnets, supernet
    from .rounds import DEVICE, in_turn, ratio

    world = distributed.init()
    images, labels = batch(batch_size)
    # Each way has a network of its own.
    architecture, sides = subnets(1)[0], ("left", "right")

    def way(bucket_bytes: int | None) -> Callable[[], None]:
        network = supernet("bilateral").train()
        reduction = None if bucket_bytes is None else Reduction(world, bucket_bytes)
        weights = StepWeights(network, autocast_dtype(DEVICE, amp=True), reduction.arrived if reduction else len)

        def step() -> None:
            network.zero_grad()
            if reduction:
                slices = network.slices_in_use([architecture], sides)
                reduction.begin(slices, [network.parameters_in_use(architecture, side) for side in sides])
            weights.begin((architecture, side) for side in sides)
            with autocast():
                logits = sum(network(images, architecture, side, weights.of(architecture, side)) for side in sides)
            F.cross_entropy(logits.float(), labels).backward()
            if reduction:
                reduction.finish([])
            # The slowest rank ends a step in any case.
            distributed.barrier(world)

        return step

    seconds = in_turn({"without": way(None), "after": way(2**60), "during": way(4 * 2**20)}, rounds, 2)
    if world.is_main:
        where = f"{world.size} processes, batch {batch_size} each"
        rows = [
            {"what": f"{where}, reduced {how} the passes", **ratio(seconds[how], seconds["without"])}
            for how in ("after", "during")
        ]
        # Where nothing can be hidden, the step with the reduction behind it is the limit.
        rows.append({"what": f"{where}, during over after the passes", **ratio(seconds["during"], seconds["after"])})
        path.write_text(json.dumps(rows))
    distributed.shutdown()


if __name__ == "__main__":
    measure_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
