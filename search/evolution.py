"""Evolution by ask and tell, on all ranks: rank 0 proposes with pymoo, every rank gets the same genomes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.problems.static import StaticProblem

from vitas.distributed import World, broadcast, stream_seed


class Evolution:
    """NSGA-II over genomes of integers; a function of its seed and of what it is told.

    gene_counts: how many values each gene takes [genes].
    first: () -> the genomes [population, genes] that it starts from; asked of rank 0 alone.
    objectives, constraints: how many numbers `tell` gets of each genome.
    evaluations: how many genomes are scored in all; None is no limit.
    operators: crossover, mutation, repair and eliminate_duplicates, as pymoo takes them.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        stream: str,
        gene_counts: np.ndarray,
        first: Callable[[], np.ndarray],
        population: int,
        objectives: int,
        constraints: int = 0,
        **operators: object,
    ) -> None:
        self._world = world
        self._algorithm = None
        if not world.is_main:
            return
        self._algorithm = NSGA2(pop_size=population, sampling=first(), **operators)
        problem = Problem(
            n_var=gene_counts.size, n_obj=objectives, n_ieq_constr=constraints, xl=0, xu=gene_counts - 1, vtype=int
        )
        # The caller ends it.
        self._algorithm.setup(problem, termination=("n_gen", 10**9), seed=stream_seed(seed, stream) % 2**32)

    def ask(self) -> np.ndarray:
        """The next genomes [children, genes], the same on every rank; none where nothing new is found."""
        if self._algorithm is not None:
            self._proposed = self._algorithm.ask()
        # Rank 0 alone proposes: sorting need not break ties alike on every machine.
        return broadcast(self._proposed.get("X").astype(np.int64) if self._algorithm is not None else None, self._world)

    def tell(self, objectives: np.ndarray, constraints: np.ndarray | None = None) -> None:
        """What the genomes of the last `ask` came to: [children, objectives], and [children, constraints], met at 0."""
        if self._algorithm is None:
            return
        known = {"F": objectives} if constraints is None else {"F": objectives, "G": constraints}
        Evaluator().eval(StaticProblem(self._algorithm.problem, **known), self._proposed)
        self._algorithm.tell(infills=self._proposed)
