"""Genomes inside a budget: drawing them at random, and bringing others in by the smallest change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vitas.budget import Budget, CostModel
from vitas.errors import UserError
from vitas.space import SearchSpace

# Draws that decide whether anything of a cell is in the budget; the second number is tried if the first finds nothing.
_TRIALS = (256, 8192)


@dataclass(frozen=True)
class _Cells:
    """The (patch size, depth, embedding dim) that are drawn from, as arrays [cells].

    patch, embed: gene values. depth: blocks. fixed: the cost of all but the blocks.
    costs, chances: of each kind of block [cells, kinds]; a kind is (heads, qkv width, MLP width) as one number.
    """

    patch: np.ndarray
    depth: np.ndarray
    embed: np.ndarray
    fixed: np.ndarray
    costs: np.ndarray
    chances: np.ndarray

    def take(self, which: np.ndarray) -> _Cells:
        return _Cells(*(part[which] for part in vars(self).values()))


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

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` canonical genomes [count, genes] in random order; two may be equal."""
        cells = self._cells
        # Evenly spaced points from one random start: no cell comes more than once too often or too seldom.
        of_cell = np.searchsorted(self._ends[:-1], (rng.random() + np.arange(count)) / count, side="right")
        kinds = np.zeros((count, self._space.depth), dtype=np.int64)
        for cell in np.unique(of_cell):
            rows = np.flatnonzero(of_cell == cell)
            kinds[rows, : cells.depth[cell]] = self._draw_inside(cell, len(rows), rng)
        genomes = _genomes(self._space, cells.patch[of_cell], cells.embed[of_cell], cells.depth[of_cell], kinds)
        return rng.permutation(genomes)

    def draw_different(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Up to `count` different canonical genomes [count, genes]; fewer where the budget holds no more."""
        found: dict[bytes, np.ndarray] = {}
        # Where few are left to find, many draws are in vain.
        idle = 0
        while len(found) < count and idle < 20:
            before = len(found)
            for genome in self.draw(rng, count):
                if len(found) < count:
                    found.setdefault(genome.tobytes(), genome)
            idle = idle + 1 if len(found) == before else 0
        return np.array(list(found.values()))

    def _draw_inside(self, cell: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Kinds of block [count, depth] inside the budget. It ends: the trials have found some in every cell."""
        kept = np.empty((0, self._cells.depth[cell]), dtype=np.int64)
        while len(kept) < count:
            blocks, inside = self._draw_blocks(self._cells, cell, max(4 * (count - len(kept)), 32), rng)
            kept = np.concatenate([kept, blocks[inside]])
        return kept[:count]

    def _draw_blocks(
        self, cells: _Cells, cell: int, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kinds of block [count, depth], and which rows are inside the budget [count]."""
        depth = cells.depth[cell]
        points = rng.random((count, 1 if self._space.shared_blocks else depth))
        ends = np.cumsum(cells.chances[cell])
        kinds = np.broadcast_to(np.searchsorted(ends[:-1], points * ends[-1], side="right"), (count, depth))
        cost = cells.fixed[cell] + cells.costs[cell][kinds].sum(axis=1)
        return kinds, (self._low <= cost) & (cost <= self._high)


def _cells(model: CostModel) -> _Cells:
    """All cells of the space; every kind of block has the same chance."""
    space = model.space
    kinds = np.arange(len(space.heads) * len(space.widths) ** 2)
    depths = np.arange(1 if space.identity else space.depth, space.depth + 1)
    rows: list[tuple] = []
    for patch in range(len(space.patch_sizes)):
        for embed in range(len(space.widths)):
            # The cost of d equal blocks is fixed + d * one block: two depths tell the two apart. One depth alone
            # needs no telling apart.
            totals = [
                model.additive(_genomes(space, patch, embed, depth, np.tile(kinds[:, None], space.depth)))
                for depth in depths[:2]
            ]
            costs = totals[1] - totals[0] if len(totals) > 1 else totals[0] / depths[0]
            fixed = totals[0][0] - depths[0] * costs[0]
            rows += [(patch, depth, embed, fixed, costs, np.full(len(kinds), 1 / len(kinds))) for depth in depths]
    return _Cells(*map(np.array, zip(*rows, strict=True)))


def _reachable_cells(model: CostModel, low: float, high: float) -> _Cells:
    """The cells that can cost `low` to `high`, with the chances that give the middle of what they can, on average."""
    cells = _cells(model)
    least, most = cells.costs.min(axis=1), cells.costs.max(axis=1)
    cells = cells.take((cells.fixed + cells.depth * least <= high) & (cells.fixed + cells.depth * most >= low))
    fixed, depth = cells.fixed[:, None], cells.depth[:, None]
    least, most = cells.costs.min(axis=1, keepdims=True), cells.costs.max(axis=1, keepdims=True)
    middle = (np.maximum(low, fixed + depth * least) + np.minimum(high, fixed + depth * most)) / 2
    # From 0 for the cheapest kind of block to 1 for the dearest.
    scale = np.where(most > least, most - least, 1)
    relative = (cells.costs - least) / scale
    wanted = ((middle - fixed) / depth - least) / scale
    below, above = np.full_like(wanted, -100.0), np.full_like(wanted, 100.0)
    for _ in range(40):
        rates = (below + above) / 2
        chances = np.exp(rates * relative - np.max(rates * relative, axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        too_dear = (chances * relative).sum(axis=1, keepdims=True) > wanted
        below, above = np.where(too_dear, below, rates), np.where(too_dear, rates, above)
    return replace(cells, chances=chances)


def _weights(cells: _Cells, favour: np.ndarray) -> np.ndarray:
    """How often each cell is drawn [cells]: equally often by patch size; in it by depth, then by embedding dim, times
    `favour` [cells].
    """
    _, of_patch = np.unique(cells.patch, return_inverse=True)
    _, of_pair = np.unique(np.stack([cells.patch, cells.depth], axis=1), axis=0, return_inverse=True)
    in_pair = np.bincount(of_pair)
    # Of each (patch size, depth), its patch size; of each patch size, its number of depths.
    depths = np.bincount(of_patch, weights=1 / in_pair[of_pair])
    weights = favour / (depths[of_patch] * in_pair[of_pair])
    return weights / np.bincount(of_patch, weights)[of_patch] / len(depths)


def _genomes(space: SearchSpace, patch, embed, depth, kinds: np.ndarray) -> np.ndarray:
    """Canonical genomes [count, genes] from gene values or arrays [count], and kinds of block [count, positions]."""
    count, widths = len(kinds), len(space.widths)
    heads, qkv, mlp = kinds // widths**2, kinds // widths % widths, kinds % widths
    genomes = np.empty((count, space.gene_counts.size), dtype=np.int64)
    genomes[:, 0] = patch
    depth = np.broadcast_to(depth, count)
    if space.shared_blocks:
        genomes[:, 1], genomes[:, 2], genomes[:, 3], genomes[:, 4] = heads[:, 0], embed, qkv[:, 0], mlp[:, 0]
        if space.identity:
            genomes[:, 5] = space.depth - depth
        return genomes
    genomes[:, 1 + space.depth] = embed
    columns = space.columns(genomes)
    active = np.arange(space.depth) < depth[:, None]
    columns.choice[:] = np.where(active, heads, len(space.heads))
    columns.qkv[:] = np.where(active, qkv, 0)
    columns.mlp[:] = np.where(active, mlp, 0)
    return genomes


def move_into_budget(genomes: np.ndarray, model: CostModel, budget: Budget, rng: np.random.Generator) -> np.ndarray:
    """Bring genomes [population, genes] into the budget by the fewest single changes that are found.

    A change (see `single_changes`) that leads inside is taken, a random one of
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
            changes = single_changes(space, genome)
            nearby = _distance(changes, model, budget)
            if not len(changes) or nearby.min() >= distance:
                break
            # Of the nearest, a random one: inside, all are as near.
            distance = nearby.min()
            genome = changes[rng.choice(np.flatnonzero(nearby == distance))]
        if distance <= distances[row]:
            genomes[row] = genome
    return genomes


def _fitting_patch_sizes(model: CostModel, budget: Budget) -> np.ndarray:
    """The values of the patch gene whose networks reach into the budget."""
    low, high = model.additive_range(budget)
    return np.unique(_reachable_cells(model, low, high).patch)


def single_changes(space: SearchSpace, genome: np.ndarray) -> np.ndarray:
    """All canonical genomes [changes, genes] that are one change away from a canonical genome, with its patch size.

    A change is another value of a gene, a block that is left out, or a block
    that is doubled: the copy stands next to it.
    """
    counts = space.gene_counts
    changed = []
    if space.shared_blocks:
        genes = range(1, counts.size)
    else:
        depth = int(space.columns(genome).active.sum())
        # The genes of blocks that are there, and the embedding dim.
        widths = range(2 + space.depth, 2 + space.depth + 2 * depth)
        genes = [*range(1, 1 + depth), 1 + space.depth, *widths]
        if space.identity and depth > 1:
            changed += [space.rearranged(genome, np.delete(np.arange(depth), i)) for i in range(depth)]
        if depth < space.depth:
            changed += [space.rearranged(genome, np.insert(np.arange(depth), i, i)) for i in range(depth)]
    for gene in genes:
        # Leaving a block out is above.
        values = len(space.heads) if 1 <= gene <= space.depth and not space.shared_blocks else counts[gene]
        for value in range(values):
            if value != genome[gene]:
                changed.append(genome.copy())
                changed[-1][gene] = value
    return np.array(changed, dtype=np.int64).reshape(-1, counts.size)


def _distance(genomes: np.ndarray, model: CostModel, budget: Budget) -> np.ndarray:
    """How far genomes are outside the budget [population]; infinitely far without any block."""
    empty = ~model.space.columns(genomes).active.any(axis=1)
    return np.where(empty, np.inf, budget.distance(model.predict(genomes)))
