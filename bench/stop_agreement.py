"""What the agreement of all ranks on stopping costs per step: steps with and without it, in one run.

    python -m torch.distributed.run --standalone --nproc-per-node 2 bench/stop_agreement.py --step-ms 20

A step is a matrix product of about `--step-ms` and, as in training, a reduction
of `--gradient-mb` over the ranks. Blocks with and without the agreement
alternate, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from vitas import distributed
from vitas.distributed import World, barrier, sum_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--gradient-mb", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=50, help="of a block")
    parser.add_argument("--blocks", type=int, default=10, help="of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = distributed.init()
    work = Work(arguments.step_ms, arguments.gradient_mb, world)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for block in range(2 * arguments.blocks + 2):
        agrees = block % 2 == 1
        barrier(world)
        began = time.perf_counter()
        for _ in range(arguments.steps):
            work.step()
            if agrees:
                distributed.stop_requested(world)
        distributed.settle()
        barrier(world)
        if block >= 2:  # The first block of each kind warms up.
            seconds[agrees].append((time.perf_counter() - began) / arguments.steps)
    if world.is_main:
        without, with_it = (1e3 * statistics.median(seconds[agrees]) for agrees in (False, True))
        print(f"{world.size} processes on {world.device.type}, gradients of {arguments.gradient_mb} MB, median step:")
        print(f"  {without:.3f} ms without, {with_it:.3f} ms with the agreement: {with_it - without:+.3f} ms")
    distributed.shutdown()


class Work:
    """A step of a chosen length, and a reduction of a chosen size."""

    def __init__(self, step_ms: float, gradient_mb: float, world: World) -> None:
        self._world = world
        self._matrix = torch.randn(256, 256)
        self._gradients = torch.zeros(int(gradient_mb * 2**18))
        self._repeat = 1
        began = time.perf_counter()
        for _ in range(20):
            self._multiply()
        once = (time.perf_counter() - began) / 20
        # Every rank does equally many products, as the ranks of a supernet train the same subnet.
        self._repeat = distributed.broadcast(max(1, round(step_ms / 1e3 / once)), world)

    def step(self) -> None:
        self._multiply()
        sum_(self._gradients, self._world)

    def _multiply(self) -> None:
        for _ in range(self._repeat):
            torch.mm(self._matrix, self._matrix)


if __name__ == "__main__":
    main()
