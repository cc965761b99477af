"""What evolution itself costs for each architecture that it proposes, in the space and at the budget of ViTAS-B.

    OMP_NUM_THREADS=1 python bench/evolution_overhead.py

The limit is 2 ms of CPU time: a score takes seconds. Scores are a fixed random function of the genes here, so that the
population converges as in a search.
"""

from __future__ import annotations

import time

import numpy as np

from search.evolution import Evolution
from search.operators import BlockCrossover, BlockMutation, MoveIntoBudget
from vitas.budget import Budget, MacsModel
from vitas.catalog import SPACE_ABE
from vitas.distributed import World
from vitas.in_budget import InBudget


def main() -> None:
    space, budget = SPACE_ABE, Budget(900_000_000, 1_000_000_000)
    model = MacsModel(space, 224, 1000)
    weights = np.random.default_rng(1).normal(size=space.gene_counts.size)
    began = time.process_time()
    evolution = Evolution(
        World(),
        0,
        "evolution",
        space.gene_counts,
        lambda: InBudget(model, budget).draw_different(np.random.default_rng(0), 100),
        population=50,
        objectives=1,
        constraints=1,
        crossover=BlockCrossover(space),
        mutation=BlockMutation(space, 0.1),
        repair=MoveIntoBudget(model, budget),
    )
    proposed = 0
    for _ in range(41):
        genomes = evolution.ask()
        for genome in genomes:
            space.decode(genome)
        proposed += len(genomes)
        evolution.tell((genomes @ weights)[:, None], budget.distance(model.predict(genomes))[:, None])
    milliseconds = 1e3 * (time.process_time() - began) / proposed
    print(f"{proposed} architectures, {milliseconds:.2f} ms each")


if __name__ == "__main__":
    main()
