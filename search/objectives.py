"""What a search may minimise: `sample.objectives` of the YAML. A new objective is a new entry here.

An objective is a quantity of a candidate, a score (how good it is thought to
be) or a cost (what it takes), and whether more of it is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Objective:
    """quantity: the name of what is measured or counted of every candidate.

    is_score: whether it says how good a candidate is, and not what it takes.
    more_is_better: then its negative, or its distance to `best`, is minimised.
    meaning: for the documentation.
    """

    quantity: str
    meaning: str
    is_score: bool = False
    more_is_better: bool = False
    best: float = 0.0

    def minimised(self, quantities: Mapping[str, np.ndarray]) -> np.ndarray:
        """What is minimised [candidates], of quantities by name, each [candidates]."""
        values = np.asarray(quantities[self.quantity], dtype=float)
        return self.best - values if self.more_is_better else values


OBJECTIVES = {
    "error": Objective("top1", "100 minus top-1, in percent", is_score=True, more_is_better=True, best=100.0),
    "loss": Objective("loss", "mean cross-entropy, finer than top-1 on few images", is_score=True),
    "macs": Objective("macs", "multiply-adds of an image, in the budget's convention"),
    "parameters": Objective("parameters", "parameters of the dense network"),
    "images_per_second": Objective("images_per_second", "measured speed on the run's device", more_is_better=True),
}
