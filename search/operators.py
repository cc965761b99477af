"""Evolution's operators for pymoo: crossover, mutation, repair and elimination of duplicates.

Those named after blocks and budgets serve the genomes of `vitas.space`, and
give canonical ones; the others serve any genome of integers.
"""

from __future__ import annotations

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.repair import Repair
from pymoo.operators.crossover.ux import UniformCrossover

from vitas.budget import Budget, CostModel
from vitas.elastic_space import AnySpace
from vitas.in_budget import move_into_budget

__all__ = ["BlockCrossover", "BlockMutation", "DrawGenesAnew", "DropKnown", "MoveIntoBudget", "UniformCrossover"]


class BlockCrossover(Crossover):
    """Crossover: a child has patch size, embedding dim and depth of one parent, and each block whole from either.

    The three together decide what blocks can cost, so a child is near the
    budget of its parents. The i-th block comes from a parent that has an i-th
    block, because it uses the supernet's i-th block. The two children
    complement each other. Where all blocks are equal, genes are exchanged one
    by one.
    """

    def __init__(self, space: AnySpace) -> None:
        super().__init__(n_parents=2, n_offsprings=2)
        self._space = space

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        space, (first, second) = self._space, X.astype(np.int64)
        if space.shared_blocks:
            swap = random_state.random(first.shape) < 0.5
            return np.stack([np.where(swap, second, first), np.where(swap, first, second)])
        swap = random_state.random((len(first), space.depth)) < 0.5
        return np.stack([self._child(first, second, swap), self._child(second, first, swap)])

    def _child(self, ours: np.ndarray, theirs: np.ndarray, swap: np.ndarray) -> np.ndarray:
        """Children [matings, genes] with the shape of `ours`, and blocks of `theirs` where `swap` [matings, depth]."""
        child = ours.copy()
        a, b, c = (self._space.columns(genomes) for genomes in (ours, theirs, child))
        for name in ("choice", "qkv", "mlp"):
            getattr(c, name)[:] = np.where(swap & a.active & b.active, getattr(b, name), getattr(a, name))
        return child


class BlockMutation(Mutation):
    """Mutation: genes in use are drawn anew, and blocks left out or doubled.

    probability: of each gene to be drawn anew. Each block is left out, and each
        is doubled, with `probability` / (head counts + 1): as often as a gene
        that is drawn anew becomes an identity. Of a pretrained network the depth is drawn anew instead.
    """

    def __init__(self, space: AnySpace, probability: float) -> None:
        super().__init__()
        self._space, self._probability = space, probability

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        space, probability = self._space, self._probability
        if not space.blocks_move:
            return self._with_blocks_in_place(X.astype(np.int64), random_state)
        limits = space.gene_counts.copy()
        if not space.shared_blocks:
            limits[1 : 1 + space.depth] = len(space.heads)
        genomes = X.astype(np.int64)
        drawn = random_state.integers(0, limits, size=genomes.shape)
        anew = random_state.random(genomes.shape) < probability
        if space.shared_blocks:
            return np.where(anew, drawn, genomes)
        # Identities stay: how many blocks there are changes below.
        anew[:, 1 : 1 + space.depth] &= space.columns(genomes).active
        genomes = space.canonical(np.where(anew, drawn, genomes))
        if not space.identity:
            return genomes
        rate = probability / (len(space.heads) + 1)
        for row, genome in enumerate(genomes):
            depth = int(space.columns(genome).active.sum())
            copies = 1 - (random_state.random(depth) < rate) + (random_state.random(depth) < rate)
            blocks = np.repeat(np.arange(depth), copies)[: space.depth]
            if len(blocks):
                genomes[row] = space.rearranged(genome, blocks)
        return genomes

    def _with_blocks_in_place(self, genomes: np.ndarray, random_state) -> np.ndarray:
        """Where a block has its position, and the depth says which there are; one that comes back is drawn anew."""
        drawn = random_state.integers(0, self._space.gene_counts, size=genomes.shape)
        anew = random_state.random(genomes.shape) < self._probability
        return self._space.canonical(np.where(anew, drawn, self._space.filled(genomes, drawn)))


class DrawGenesAnew(Mutation):
    """Mutation: each gene of a child is drawn anew with the same probability."""

    def __init__(self, gene_counts: np.ndarray, probability: float) -> None:
        super().__init__()
        self._gene_counts, self._probability = gene_counts, probability

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        drawn = random_state.integers(0, self._gene_counts, size=X.shape)
        return np.where(random_state.random(X.shape) < self._probability, drawn, X)


class MoveIntoBudget(Repair):
    """Repair: children outside the budget are moved into it by the smallest change, so that all are worth scoring."""

    def __init__(self, model: CostModel, budget: Budget) -> None:
        super().__init__()
        self._model, self._budget = model, budget

    def _do(self, problem, X, random_state=None, **kwargs):
        return move_into_budget(X.astype(np.int64), self._model, self._budget, random_state)


class DropKnown(DuplicateElimination):
    """Elimination of duplicates: drops children that are alike, and those that were given out before."""

    def __init__(self) -> None:
        super().__init__()
        self._known: set[bytes] = set()

    def add(self, genomes: np.ndarray) -> None:
        """Genomes [children, genes] that are given out."""
        self._known |= set(self._keys(genomes))

    def do(self, pop, *args, return_indices=False, to_itself=True):
        # pymoo gives the children that it has already beside the population.
        seen = {key for other in args if len(other) for key in self._keys(other.get("X"))}
        new = []
        for i, key in enumerate(self._keys(pop.get("X"))):
            if key not in seen and key not in self._known:
                seen.add(key)
                new.append(i)
        return pop[np.array(new, dtype=int)]

    @staticmethod
    def _keys(genomes: np.ndarray) -> list[bytes]:
        # Small: there is one for every architecture that was ever given out.
        return [genome.tobytes() for genome in genomes.astype(np.int32)]
