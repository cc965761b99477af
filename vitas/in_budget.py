"""Genomes inside a budget: drawing them at random, and bringing others in by the smallest change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vitas.budget import Budget, CostModel
from vitas.costs import Array
from vitas.errors import UserError

# Draws that decide whether anything of a cell is in the budget; the second number is tried if the first finds nothing.
_TRIALS = (256, 8192)


@dataclass(frozen=True)
class _Cells:
    """The (patch size, depth, embedding dim) that are drawn from, as arrays [cells].

    patch, embed: gene values. depth: blocks. fixed: the cost with blocks of the first kind alone.
    blocks: how many blocks each row of `SearchSpace.block_kinds` stands for [cells, rows].
    costs: what each kind costs more than the first [cells, rows, kinds]; chances: of each kind, 0 where there is none.
    """

    patch: Array
    depth: Array
    embed: Array
    fixed: Array
    blocks: Array
    costs: Array
    chances: Array

    def take(self, which: Array) -> _Cells:
        return _Cells(*(part[which] for part in vars(self).values()))

    @property
    def _exists(self) -> Array:
        return self.chances > 0

    def least(self) -> Array:
        """What the cheapest kind of each row costs [cells, rows]."""
        least: Array = np.where(self._exists, self.costs, np.inf).min(axis=2)
        return least

    def most(self) -> Array:
        """What the dearest kind of each row costs [cells, rows]."""
        most: Array = np.where(self._exists, self.costs, -np.inf).max(axis=2)
        return most

    def total(self, of_rows: Array) -> Array:
        """The cost of each cell [cells] where a block of each row costs so much [cells, rows]."""
        total: Array = self.fixed + (self.blocks * of_rows).sum(axis=1)
        return total


class InBudget:
    """Draws genomes inside a budget.

    Patch sizes are equally likely, then the depths that a patch size can have
    in the budget, then the embedding dims that the two can have. With
    `size_bias`, depth and embedding dim are then favoured in proportion to
    (depth x embedding dim) ** size_bias. Given these,
    genomes of equal cost are equally likely: blocks are drawn independently,
    the chance of a kind of block changes exponentially with its cost, at the
    rate that makes the mean cost the middle of the budget, and what is outside
    is drawn again.

    Works for costs that are sums over the blocks, given patch size and
    embedding dim: MACs, and the seconds of `SpeedModel`.

    Raises `UserError` if it finds nothing inside, with what the space reaches.
    """

    def __init__(self, model: CostModel, budget: Budget, size_bias: float = 0.0) -> None:
        self._space = model.space
        self._low, self._high = model.additive_range(budget)
        cells = _reachable_cells(model, self._low, self._high)
        for trials in _TRIALS:
            rng = np.random.default_rng(0)
            found = [self._draw_blocks(cells, cell, trials, rng)[1].any() for cell in range(len(cells.patch))]
            if any(found):
                break
        else:
            low, high = model.reach()
            raise UserError(
                f"found no architecture with {budget}; "
                f"the architectures of the space reach from {low:,.0f} to {high:,.0f}"
            )
        self._cells = cells.take(np.array(found))
        embed_dims = np.array(self._space.embed_dims)[self._cells.embed]
        self._ends = np.cumsum(_weights(self._cells, (self._cells.depth * embed_dims) ** size_bias))

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """`count` canonical genomes [count, genes] in random order; two may be equal."""
        cells = self._cells
        # Evenly spaced points from one random start: no cell comes more than once too often or too seldom.
        of_cell = np.searchsorted(self._ends[:-1], (rng.random() + np.arange(count)) / count, side="right")
        kinds = np.zeros((count, self._space.depth), dtype=np.int64)
        for cell in np.unique(of_cell):
            rows = np.flatnonzero(of_cell == cell)
            kinds[rows, : cells.depth[cell]] = self._draw_inside(cell, len(rows), rng)
        genomes = self._space.with_blocks(cells.patch[of_cell], cells.embed[of_cell], cells.depth[of_cell], kinds)
        return rng.permutation(genomes)

    def draw_different(self, rng: np.random.Generator, count: int) -> Array:
        """Up to `count` different canonical genomes [count, genes]; fewer where the budget holds no more."""
        found: dict[bytes, Array] = {}
        # Where few are left to find, many draws are in vain.
        idle = 0
        while len(found) < count and idle < 20:
            before = len(found)
            for genome in self.draw(rng, count):
                if len(found) < count:
                    found.setdefault(genome.tobytes(), genome)
            idle = idle + 1 if len(found) == before else 0
        return np.array(list(found.values()))

    def _draw_inside(self, cell: int, count: int, rng: np.random.Generator) -> Array:
        """Kinds of block [count, depth] inside the budget. It ends: the trials have found some in every cell."""
        kept = np.empty((0, self._cells.depth[cell]), dtype=np.int64)
        while len(kept) < count:
            blocks, inside = self._draw_blocks(self._cells, cell, max(4 * (count - len(kept)), 32), rng)
            kept = np.concatenate([kept, blocks[inside]])
        return kept[:count]

    def _draw_blocks(self, cells: _Cells, cell: int, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Kinds of block [count, depth], and which rows are inside the budget [count]."""
        depth = cells.depth[cell]
        points = rng.random((count, 1 if self._space.shared_blocks else depth))
        ends = np.cumsum(cells.chances[cell], axis=1)
        if len(ends) == 1:
            rows = np.zeros(depth, dtype=int)
            kinds = np.broadcast_to(np.searchsorted(ends[0, :-1], points * ends[0, -1], side="right"), (count, depth))
        else:
            rows = np.array(self._space.block_positions(depth), dtype=int)
            kinds = np.stack(
                [np.searchsorted(ends[r, :-1], points[:, i] * ends[r, -1], side="right") for i, r in enumerate(rows)],
                axis=1,
            )
        cost = cells.fixed[cell] + cells.costs[cell][rows, kinds].sum(axis=1)
        return kinds, (self._low <= cost) & (cost <= self._high)


def _cells(model: CostModel) -> _Cells:
    """All cells of the space; every kind of block has the same chance."""
    space = model.space
    exists = space.block_kinds
    chances = exists / exists.sum(axis=1, keepdims=True)
    depths = np.array(space.depths)
    positions = [np.array(space.block_positions(depth)) for depth in depths]
    blocks = np.array(
        [
            [np.isin(row, used).sum() if len(exists) > 1 else len(used) for row in range(len(exists))]
            for used in positions
        ]
    )
    rows: list[tuple[object, ...]] = []
    for patch in range(len(space.patch_sizes)):
        for embed in range(len(space.embed_dims)):
            first = np.zeros((len(depths), space.depth), dtype=np.int64)
            fixed = model.additive(space.with_blocks(patch, embed, depths, first))
            rows += [
                (patch, depth, embed, fixed[i], blocks[i], _costs_of_kinds(model, patch, embed, depth), chances)
                for i, depth in enumerate(depths)
            ]
    return _Cells(*map(np.array, zip(*rows, strict=True)))


def _costs_of_kinds(model: CostModel, patch: int, embed: int, depth: int) -> Array:
    """What a block of each kind costs more than one of the first kind [rows, kinds], in a network of `depth` blocks.

    It is 0 for kinds that there are not.
    """
    space, exists = model.space, model.space.block_kinds
    if len(exists) == 1:
        # All blocks of one network have the kind, so that this holds where blocks are equal too.
        kinds: Array = np.arange(exists.shape[1])
        totals = model.additive(space.with_blocks(patch, embed, depth, np.tile(kinds[:, None], space.depth)))
        return np.atleast_2d((totals - totals[0]) / depth)
    costs = np.zeros(exists.shape)
    positions = space.block_positions(depth)
    for place, row in enumerate(positions):
        kinds = np.flatnonzero(exists[row])
        genomes = np.zeros((len(kinds), space.depth), dtype=np.int64)
        genomes[:, place] = kinds
        totals = model.additive(space.with_blocks(patch, embed, depth, genomes))
        costs[row, kinds] = totals - totals[0]
    return costs


def _reachable_cells(model: CostModel, low: float, high: float) -> _Cells:
    """The cells that can cost `low` to `high`, with the chances that give the middle of what they can, on average."""
    cells = _cells(model)
    cells = cells.take((cells.total(cells.least()) <= high) & (cells.total(cells.most()) >= low))
    least, most = cells.least(), cells.most()
    middle = (np.maximum(low, cells.total(least)) + np.minimum(high, cells.total(most))) / 2
    # From 0 for the cheapest kind of a row; one unit costs the same in all rows of a cell.
    range_of_rows = (most - least).max(axis=1, initial=0)
    scale = np.where(range_of_rows > 0, range_of_rows, 1)
    relative = (cells.costs - least[:, :, None]) / scale[:, None, None]
    wanted = (middle - cells.total(least)) / scale
    exists = cells.chances > 0
    below, above = np.full_like(wanted, -100.0), np.full_like(wanted, 100.0)
    for _ in range(40):
        rates = (below + above) / 2
        exponents = np.where(exists, rates[:, None, None] * relative, -np.inf)
        chances = np.exp(exponents - exponents.max(axis=2, keepdims=True))
        chances /= chances.sum(axis=2, keepdims=True)
        means = (chances * relative).sum(axis=2)
        too_dear = (cells.blocks * means).sum(axis=1) > wanted
        below, above = np.where(too_dear, below, rates), np.where(too_dear, rates, above)
    return replace(cells, chances=chances)


def _weights(cells: _Cells, favour: Array) -> Array:
    """How often each cell is drawn [cells]: equally often by patch size; in it by depth, then by embedding dim, times
    `favour` [cells].
    """
    _, of_patch = np.unique(cells.patch, return_inverse=True)
    _, of_pair = np.unique(np.stack([cells.patch, cells.depth], axis=1), axis=0, return_inverse=True)
    in_pair = np.bincount(of_pair)
    # Of each (patch size, depth), its patch size; of each patch size, its number of depths.
    depths = np.bincount(of_patch, weights=1 / in_pair[of_pair])
    weights = favour / (depths[of_patch] * in_pair[of_pair])
    shares: Array = weights / np.bincount(of_patch, weights)[of_patch]
    return shares / len(depths)


def move_into_budget(genomes: Array, model: CostModel, budget: Budget, rng: np.random.Generator) -> Array:
    """Bring genomes [population, genes] into the budget by the fewest single changes that are found.

    A change (see `SearchSpace.single_changes`) that leads inside is taken, a random one of
    those that do; while there is none, the change that comes nearest. The patch
    size changes only where no network of that patch size is inside. Rows inside
    stay as they are, and so do those that would come no nearer; the caller must
    drop or penalise rows that are still outside.
    """
    space = model.space
    genomes = space.canonical(genomes)
    distances = _distance(genomes, model, budget)
    fitting = _fitting_patch_sizes(model, budget)
    for row in np.flatnonzero(distances > 0):
        genome = genomes[row]
        if len(fitting) and genome[0] not in fitting:
            genome = np.concatenate([[rng.choice(fitting)], genome[1:]])
        distance = _distance(genome[None], model, budget)[0]
        while distance > 0:
            changes = space.single_changes(genome)
            nearby = _distance(changes, model, budget)
            if not len(changes) or nearby.min() >= distance:
                break
            # Of the nearest, a random one: inside, all are as near.
            distance = nearby.min()
            genome = changes[rng.choice(np.flatnonzero(nearby == distance))]
        if distance <= distances[row]:
            genomes[row] = genome
    return genomes


def _fitting_patch_sizes(model: CostModel, budget: Budget) -> Array:
    """The values of the patch gene whose networks reach into the budget."""
    low, high = model.additive_range(budget)
    return np.unique(_reachable_cells(model, low, high).patch)


def _distance(genomes: Array, model: CostModel, budget: Budget) -> Array:
    """How far genomes are outside the budget [population]; infinitely far without any block."""
    empty = ~model.space.columns(genomes).active.any(axis=1)
    return np.where(empty, np.inf, budget.distance(model.predict(genomes)))
