"""Evolution's operators for pymoo: crossover, mutation, repair and elimination of duplicates."""

from __future__ import annotations

import numpy as np
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.repair import Repair
from pymoo.operators.crossover.ux import UniformCrossover

from vitas.budget import Budget, CostModel, move_into_budget

__all__ = ["DrawGenesAnew", "DropKnown", "MoveIntoBudget", "UniformCrossover"]


class DrawGenesAnew(Mutation):
    """Mutation: each gene of a child is drawn anew with the same probability."""

    def __init__(self, gene_counts: np.ndarray, probability: float) -> None:
        super().__init__()
        self._gene_counts, self._probability = gene_counts, probability

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        drawn = random_state.integers(0, self._gene_counts, size=X.shape)
        return np.where(random_state.random(X.shape) < self._probability, drawn, X)


class MoveIntoBudget(Repair):
    """Repair: children outside the budget are moved into it, so that no scores are wasted on them."""

    def __init__(self, model: CostModel, budget: Budget) -> None:
        super().__init__()
        self._model, self._budget = model, budget

    def _do(self, problem, X, random_state=None, **kwargs):
        return move_into_budget(X.astype(np.int64), self._model, self._budget, random_state)


class DropKnown(DuplicateElimination):
    """Elimination of duplicates: drops children that were proposed before, whose score is already known."""

    def __init__(self) -> None:
        super().__init__()
        self._proposed: set[bytes] = set()

    def do(self, pop, *args, return_indices=False, to_itself=True):
        new = []
        for i, genome in enumerate(pop.get("X")):
            key = genome.astype(np.int64).tobytes()
            if key not in self._proposed:
                self._proposed.add(key)
                new.append(i)
        return pop[np.array(new, dtype=int)]
