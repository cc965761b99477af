"""The hypervolume of a growing front."""

import numpy as np
import pytest

from vitas.hypervolume import Hypervolume


def test_the_hypervolume_is_measured_from_the_worst_to_the_best_of_what_came_first() -> None:
    volume = Hypervolume()
    assert volume.add(np.empty((0, 2))) == 0
    assert volume.add(np.array([[10.0, 300.0], [20.0, 100.0]])) == 0
    # In the middle of both: a quarter; beyond the best in one objective: more.
    assert volume.add(np.array([[15.0, 200.0]])) == pytest.approx(0.25)
    assert volume.add(np.array([[5.0, 200.0]])) == pytest.approx(0.75)
    assert volume.add(np.array([[30.0, 400.0]])) == pytest.approx(0.75)
