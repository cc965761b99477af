"""Budgets, and how populations are moved into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitas.space import SearchSpace

IMAGES_PER_SECOND = "images_per_second"


@dataclass(frozen=True)
class Budget:
    """A range of what an architecture may cost, both ends included.

    minimum, maximum: MACs of one image, or images per second.
    convention: `true` or `released` for MACs (see `vitas.space.counts.macs`); or `images_per_second`.
    """

    minimum: int
    maximum: int
    convention: str = "released"

    @property
    def is_speed(self) -> bool:
        return self.convention == IMAGES_PER_SECOND

    def __contains__(self, cost: float) -> bool:
        return self.minimum <= cost <= self.maximum

    def __str__(self) -> str:
        if self.is_speed:
            return f"{self.minimum:,} to {self.maximum:,} images/s"
        return f"{self.minimum:,} to {self.maximum:,} MACs ({self.convention} convention)"


class PopulationCosts:
    """Costs of genomes of one space as arrays, and what can be done with those.

    less_is_dearer: whether a network that computes more has the smaller number, images per second.
        Then a mean is the harmonic one: the speed at which they run one after another.
    """

    space: SearchSpace
    less_is_dearer = False

    def of(self, genomes: np.ndarray) -> np.ndarray:
        """The costs [population] of genomes [population, genes], in the terms of a `Budget`."""
        raise NotImplementedError

    def move_into(self, budget: Budget, genomes: np.ndarray, rng: np.random.Generator, steps: int = 400) -> np.ndarray:
        """Genomes [population, genes] moved towards the budget by random single-gene changes.

        Each row outside the budget takes random changes that bring it no
        farther away, until it is inside or `steps` are used up; rows inside
        stay as they are. Rows still outside must be dropped or penalised.
        """
        genomes = self.space.canonical(genomes)
        limits = self.space.gene_counts
        way = self._way_into(budget, genomes)
        for _ in range(steps):
            outside = np.flatnonzero(way > 0)
            if not outside.size:
                break
            genes = rng.integers(0, limits.size, size=outside.size)
            trial = genomes[outside]
            trial[np.arange(outside.size), genes] = rng.integers(0, limits[genes])
            trial = self.space.canonical(trial)
            trial_way = self._way_into(budget, trial)
            better = trial_way <= way[outside]
            genomes[outside[better]] = trial[better]
            way[outside[better]] = trial_way[better]
        return genomes

    def _way_into(self, budget: Budget, genomes: np.ndarray) -> np.ndarray:
        """What [population] separates genomes from the budget; a network without blocks is nowhere near."""
        empty = ~self.space.columns(genomes).active.any(axis=1)
        return np.where(empty, np.inf, distance(self.of(genomes), budget))

    def identity_probability(self, budget: Budget, seed: int = 0, samples: int = 4096) -> float | None:
        """The probability of an identity at which random subnets cost the middle of the budget on average.

        ViTAS trains its supernet at this probability, so that training sees
        the networks that the search will ask for. None where the space has no
        identities; 0 where even full depth is cheaper than the middle.
        """
        if not self.space.identity:
            return None
        target = (budget.minimum + budget.maximum) / 2

        def too_expensive(probability: float) -> bool:
            # The same draws at every probability make the mean fall (or rise) with it, so bisection is sound.
            rng = np.random.default_rng(seed)
            costs = self.of(self.space.sample_genomes(rng, samples, probability))
            return 1 / (1 / costs).mean() < target if self.less_is_dearer else costs.mean() > target

        low, high = 0.0, 1.0
        if not too_expensive(low):
            return low
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if too_expensive(middle) else (low, middle)
        return (low + high) / 2


def distance(cost, budget: Budget):
    """How far costs (a number or an array) lie outside a budget; 0 inside."""
    return np.maximum(np.maximum(budget.minimum - cost, cost - budget.maximum), 0)
