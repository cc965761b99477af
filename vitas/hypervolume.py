"""How much a growing front of several objectives dominates."""

from __future__ import annotations

import numpy as np
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting


class Hypervolume:
    """How much of the space of several objectives a growing front dominates: it rises, and stops where the search does.

    Measured from the worst to the best of what came first in each objective, so that it is a pure number and its
    reference point is fixed; what is better than all of these adds more than 1.
    """

    def __init__(self) -> None:
        self._best: np.ndarray | None = None
        self._range: np.ndarray | None = None
        self._front: np.ndarray | None = None

    def add(self, objectives: np.ndarray) -> float:
        """The hypervolume with further objectives [points, objectives], which are minimised; 0 before any."""
        if not len(objectives):
            return self._value()
        if self._best is None:
            self._best = objectives.min(axis=0)
            span = objectives.max(axis=0) - self._best
            self._range = np.where(span > 0, span, 1.0)
        points = (objectives - self._best) / self._range
        together = points if self._front is None else np.concatenate([self._front, points])
        self._front = together[NonDominatedSorting().do(together, only_non_dominated_front=True)]
        return self._value()

    @property
    def front(self) -> np.ndarray:
        """The objectives of the front [points, objectives], in their own units."""
        if self._front is None or self._range is None:
            return np.zeros((0, 0))
        found: np.ndarray = self._front * self._range + self._best
        return found

    def _value(self) -> float:
        return 0.0 if self._front is None else float(HV(ref_point=np.ones(self._front.shape[1]))(self._front))
