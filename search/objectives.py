"""The objectives that a search can minimise, `sample.objectives` of the YAML. To add one, add it to `OBJECTIVES`.

An objective is a quantity of a candidate, either a score (how good it is
thought to be) or a cost (what it takes), and whether more of it is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Counts for what is not finite; above all losses and latencies, and below what an optimiser could not scale.
WORST = 1e15


@dataclass(frozen=True)
class Objective:
    """An objective of the search.

    quantity: the name of the quantity that is measured or counted for every candidate.
    meaning: the objective in words.
    is_score: whether it is a score, not a cost.
    more_is_better: whether `best` minus the quantity is minimised, instead of the quantity.
    """

    quantity: str
    meaning: str
    is_score: bool = False
    more_is_better: bool = False
    best: float = 0.0

    def minimised(self, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
        """The values to minimise [candidates], from the quantities [candidates] by name, all finite."""
        values = np.asarray(quantities[self.quantity], dtype=float)
        # The loss of weights that have diverged is NaN, which no ranking puts last by itself.
        values = np.where(np.isfinite(values), values, -WORST if self.more_is_better else WORST)
        return self.best - values if self.more_is_better else values

    def quantities(self, minimised: np.ndarray) -> np.ndarray:
        """The quantities [candidates] of values that were minimised."""
        return self.best - minimised if self.more_is_better else minimised


OBJECTIVES = {
    "error": Objective("top1", "100 minus top-1, in percent", is_score=True, more_is_better=True, best=100.0),
    "loss": Objective("loss", "mean cross-entropy, finer than top-1 on few images", is_score=True),
    "macs": Objective("macs", "MACs per image, in the budget's convention"),
    "parameters": Objective("parameters", "parameters of the dense network"),
    "latency": Objective("latency", "milliseconds of a forward pass of an image, from a table of measured layers"),
    "images_per_second": Objective("images_per_second", "measured speed on the run's device", more_is_better=True),
}
