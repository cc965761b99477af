"""What a step of the supernet's training costs beside its forward and backward passes.

    OMP_NUM_THREADS=1 python bench/search_overhead.py configs/quickstart.yaml [--batch-size 32] [--steps 300]

The limit is 3% of a step: to draw subnets inside the budget and decode them, to record the losses of choices, and to
sum up what training saw. The optimizer's step is shown beside them. Images are noise of the YAML's size.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from search.passes import Passes
from search.predictor import ChoiceLosses
from search.search import build_supernet
from search.seen import seen_by
from search.subnets import training_plan
from vitas import config as configuration
from vitas.distributed import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    config = configuration.load(arguments.config, [f"search.batch_size={arguments.batch_size}"])
    model, costs = config.model, config.macs_model
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[what] += time.perf_counter() - began

    with timed("draw subnets"):
        plan, _ = training_plan(config, costs)
    print(f"once, to learn what can be drawn: {seconds.pop('draw subnets'):.2f} s")
    supernet = build_supernet(config, World())
    losses = ChoiceLosses(config.space, 1000)
    passes = Passes(supernet, plan, config.search, None, losses, World())
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-4)
    images = torch.randn(arguments.batch_size, 3, model.image_size, model.image_size)
    labels = torch.arange(arguments.batch_size) % model.num_classes

    for step in range(arguments.steps):
        with timed("draw subnets"):
            plan.at(step)
        with timed("forward and backward passes"):
            optimizer.zero_grad()
            for loss in passes.losses(images, labels, step):
                loss.backward()
        with timed("record the losses of choices"):
            passes.after_backward(step)
        with timed("optimizer"):
            optimizer.step()
    with timed("sum up what training saw"):
        for start in range(0, arguments.steps, config.search.log_steps):
            genomes = [
                plan.genomes(step) for step in range(start, min(start + config.search.log_steps, arguments.steps))
            ]
            seen_by(np.concatenate([part for parts in genomes for part in parts]), costs, config.budget)

    whole = sum(seconds.values())
    print(f"| of a step at a batch of {arguments.batch_size} | ms | share |\n|---|--:|--:|")
    for what, spent in seconds.items():
        print(f"| {what} | {1e3 * spent / arguments.steps:.2f} | {spent / whole:.1%} |")


if __name__ == "__main__":
    main()
