"""Costs of populations as arrays, the budgets they must meet, and measured speed.

Counted costs of one architecture are methods of `vitas.space.Architecture`;
here are whole populations at once, whether a budget can be met at all, how to
move a population into it, and how likely an identity must be for random
subnets to lie in it on average.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import nn

from vitas.errors import UserError
from vitas.space import SearchSpace, counts


@dataclass(frozen=True)
class Budget:
    """A range of multiply-adds, both ends included.

    minimum, maximum: MACs of one image.
    convention: `true` or `released` (see `vitas.space.counts.macs`).
    """

    minimum: int
    maximum: int
    convention: str = "released"

    def __contains__(self, macs: int) -> bool:
        return self.minimum <= macs <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum:,} to {self.maximum:,} MACs ({self.convention} convention)"


@dataclass(frozen=True)
class SpaceCosts:
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
                        total = int(totals[np.argmin(_distance(totals, budget))])
                        if best is None or _distance(total, budget) < _distance(best, budget):
                            best = total
                    if best in budget:
                        return best
        return best

    def require(self, budget: Budget) -> None:
        """Raise `UserError` if no architecture of the space meets the budget."""
        nearest = self.nearest(budget)
        if nearest not in budget:
            raise UserError(f"no architecture of the space has {budget}; the nearest has {nearest:,}")

    def move_into(self, budget: Budget, genomes: np.ndarray, rng: np.random.Generator, steps: int = 400) -> np.ndarray:
        """Genomes [population, genes] moved towards the budget by random single-gene changes.

        Each row outside the budget takes random changes that bring it no
        farther away, until it is inside or `steps` are used up; rows inside
        stay as they are. Rows still outside must be dropped or penalised.
        """
        genomes = self.space.canonical(genomes)
        limits = self.space.gene_counts
        distance = self._way_into(budget, genomes)
        for _ in range(steps):
            outside = np.flatnonzero(distance > 0)
            if not outside.size:
                break
            genes = rng.integers(0, limits.size, size=outside.size)
            trial = genomes[outside]
            trial[np.arange(outside.size), genes] = rng.integers(0, limits[genes])
            trial = self.space.canonical(trial)
            trial_distance = self._way_into(budget, trial)
            better = trial_distance <= distance[outside]
            genomes[outside[better]] = trial[better]
            distance[outside[better]] = trial_distance[better]
        return genomes

    def _way_into(self, budget: Budget, genomes: np.ndarray) -> np.ndarray:
        """MACs [population] that separate genomes from the budget; a network without blocks is nowhere near."""
        empty = ~self.space.columns(genomes).active.any(axis=1)
        return np.where(empty, np.iinfo(np.int64).max, _distance(self.macs(genomes), budget))

    def identity_probability(self, budget: Budget, seed: int = 0, samples: int = 4096) -> float | None:
        """The probability of an identity at which random subnets cost the middle of the budget on average.

        ViTAS trains its supernet at this probability, so that training sees
        the networks that the search will ask for. None where the space has no
        identities; 0 where even full depth is below the middle.
        """
        if not self.space.identity:
            return None
        target = (budget.minimum + budget.maximum) / 2

        def mean_macs(probability: float) -> float:
            # The same draws at every probability make the mean fall with it, so bisection is sound.
            rng = np.random.default_rng(seed)
            return float(self.macs(self.space.sample_genomes(rng, samples, probability)).mean())

        low, high = 0.0, 1.0
        if mean_macs(low) <= target:
            return low
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_macs(middle) > target else (low, middle)
        return (low + high) / 2


def _distance(macs, budget: Budget):
    return np.maximum(np.maximum(budget.minimum - macs, macs - budget.maximum), 0)


def _sums_by_depth(dims: tuple[int, ...], depth: int, equal: bool) -> list[np.ndarray]:
    """Entry k: the ascending sums of k widths; of k equal ones where all blocks are one."""
    widths = np.array(dims, dtype=np.int64)
    if equal:
        return [widths * k for k in range(depth + 1)]
    sums = [np.zeros(1, dtype=np.int64)]
    for _ in range(depth):
        sums.append(np.unique(sums[-1][:, None] + widths))
    return sums


@torch.inference_mode()
def images_per_second(network: nn.Module, image_size: int = 224, batch_size: int = 64, seconds: float = 2.0) -> float:
    """How many images a network classifies in a second, on the device that it is on.

    batch_size: images of a forward pass. seconds: of measuring, after one of warming up.

    Forward passes only, in evaluation mode, of random images that are already
    on the device; in bfloat16 on a GPU. The median over the passes.
    """
    device = next(network.parameters()).device
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)

    def passes(seconds: float) -> list[float]:
        times: list[float] = []
        while sum(times) < seconds:
            start = time.perf_counter()
            network(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return times

    was_training = network.training
    network.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            passes(1.0)
            return batch_size / median(passes(seconds))
    finally:
        network.train(was_training)
