"""Multiply-adds of populations as arrays, and whether a budget of them can be met at all.

Those of one architecture are methods of `vitas.space.Architecture`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitas.cost.budget import Budget, PopulationCosts, distance
from vitas.errors import UserError
from vitas.space import SearchSpace, counts


@dataclass(frozen=True)
class SpaceCosts(PopulationCosts):
    """Counts costs of genomes of one space at one image size and class count."""

    space: SearchSpace
    image_size: int
    num_classes: int
    convention: str = "released"

    def macs(self, genomes: np.ndarray) -> np.ndarray:
        """Multiply-adds [population] of genomes [population, genes], as int64."""
        columns = self.space.columns(genomes)
        attention = np.where(columns.active, np.array(self.space.attention_dims)[columns.qkv], 0)
        mlp = np.where(columns.active, np.array(self.space.mlp_dims)[columns.mlp], 0)
        return counts.macs(
            np.array(self.space.patch_sizes)[columns.patch],
            np.array(self.space.embed_dims)[columns.embed],
            attention.sum(axis=1),
            mlp.sum(axis=1),
            self.image_size,
            self.num_classes,
            self.convention,
        )

    of = macs

    def nearest(self, budget: Budget) -> int:
        """The MACs of a member that lie nearest to the budget: inside it exactly if any member's do.

        Exact, without enumerating the space: for one patch size, embedding dim
        and depth the cost is linear in the sums of attention and MLP dims, and
        few different sums exist.
        """
        space = self.space
        depths = range(1, space.depth + 1) if space.identity else range(space.depth, space.depth + 1)
        attention_sums = _sums_by_depth(space.attention_dims, space.depth, space.shared_blocks)
        mlp_sums = _sums_by_depth(space.mlp_dims, space.depth, space.shared_blocks)
        best: int | None = None
        for patch_size in space.patch_sizes:
            tokens = (self.image_size // patch_size) ** 2 + (self.convention == "true")
            for embed_dim in space.embed_dims:
                fixed = counts.macs(patch_size, embed_dim, 0, 0, self.image_size, self.num_classes, self.convention)
                for depth in depths:
                    attention = fixed + counts.attention_per_dim(embed_dim, tokens) * attention_sums[depth]
                    mlp = counts.mlp_per_dim(embed_dim, tokens) * mlp_sums[depth]
                    # For each attention sum, the first total at or above the minimum, and the one below it.
                    at = np.searchsorted(mlp, budget.minimum - attention)
                    for index in (at - 1, at):
                        totals = attention + mlp[np.clip(index, 0, len(mlp) - 1)]
                        total = int(totals[np.argmin(distance(totals, budget))])
                        if best is None or distance(total, budget) < distance(best, budget):
                            best = total
                    if best in budget:
                        return best
        return best

    def require(self, budget: Budget) -> None:
        """Raise `UserError` if no architecture of the space meets the budget."""
        nearest = self.nearest(budget)
        if nearest not in budget:
            raise UserError(f"no architecture of the space has {budget}; the nearest has {nearest:,}")


def _sums_by_depth(dims: tuple[int, ...], depth: int, equal: bool) -> list[np.ndarray]:
    """Entry k: the ascending sums of k widths; of k equal ones where all blocks are one."""
    widths = np.array(dims, dtype=np.int64)
    if equal:
        return [widths * k for k in range(depth + 1)]
    sums = [np.zeros(1, dtype=np.int64)]
    for _ in range(depth):
        sums.append(np.unique(sums[-1][:, None] + widths))
    return sums
