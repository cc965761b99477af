"""Evolution by ask and tell: rank 0 proposes genomes with pymoo, and every rank gets the same ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.problems.static import StaticProblem

from search.operators import DropKnown
from vitas.distributed import World, broadcast
from vitas.seeds import stream_seed


class Evolution:
    """NSGA-II over integer genomes, a function of its seed and of the objectives it is told.

    stream: name of its random stream.
    gene_counts: the number of values of each gene [genes].
    first: () -> the initial genomes [population, genes]; called on rank 0 only.
    objectives, constraints: how many of each `tell` gets per genome.
    oversample: how many times as many children as the population holds are proposed, see `ask`.
    operators: pymoo's crossover, mutation and repair.

    A genome is given out once.
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
        oversample: int = 1,
        **operators: object,
    ) -> None:
        self._world = world
        self._population = population
        self._algorithm = None
        if not world.is_main:
            return
        self._known = DropKnown()
        self._algorithm = NSGA2(
            pop_size=population,
            sampling=first(),
            n_offsprings=oversample * population,
            eliminate_duplicates=self._known,
            **operators,
        )
        problem = Problem(
            n_var=gene_counts.size, n_obj=objectives, n_ieq_constr=constraints, xl=0, xu=gene_counts - 1, vtype=int
        )
        # The caller decides when to stop.
        self._algorithm.setup(problem, termination=("n_gen", 10**9), seed=stream_seed(seed, stream) % 2**32)

    def ask(self, predict: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """The next genomes [children, genes], the same on every rank; none if it finds no new ones.

        predict: genomes -> what they are predicted to be worth, less being better: of `oversample` times as many
            children, those that are predicted to be best are kept. Called on rank 0 only.
        """
        genomes = None
        # Only rank 0 proposes, because sorting may break ties differently on other machines.
        if self._algorithm is not None:
            proposed = self._algorithm.ask()
            # pymoo gives nothing, not none, where it finds nothing new.
            none = Population.new("X", np.empty((0, self._algorithm.problem.n_var)))
            self._proposed = none if proposed is None else proposed
            genomes = self._proposed.get("X").astype(np.int64)
            if predict is not None and len(genomes) > self._population:
                best = np.argsort(predict(genomes), kind="stable")[: self._population]
                self._proposed = self._proposed[best]
                genomes = genomes[best]
            self._known.add(genomes)
        return broadcast(genomes, self._world)

    def tell(self, objectives: np.ndarray, constraints: np.ndarray | None = None) -> None:
        """Give the genomes of the last `ask` their objectives [children, objectives] to minimise.

        constraints: [children, constraints], each met at 0 or below.
        """
        if self._algorithm is None:
            return
        values = {"F": objectives} if constraints is None else {"F": objectives, "G": constraints}
        Evaluator().eval(StaticProblem(self._algorithm.problem, **values), self._proposed)
        self._algorithm.tell(infills=self._proposed)
