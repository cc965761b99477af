"""Intervals of accuracies."""

import pytest
from scipy.stats import binomtest

from vitas.intervals import Accuracy, wilson


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (351, 360), (5, 10), (8549, 10_000), (50_000, 50_000)])
def test_the_interval_is_wilsons(right, images):
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson(right / images, images) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-6)


def test_97_5_percent_of_360_images_may_be_95_3_or_98_7():
    assert str(Accuracy.of(97.5, 360)) == "97.5 (95.3 to 98.7)"


def test_more_images_show_more_decimals():
    assert str(Accuracy.of(80.123, 10_000)) == "80.1 (79.3 to 80.9)"
    assert Accuracy.of(80.123, 1_000_000).interval == "80.04 to 80.20"


def test_two_within_an_interval_are_not_ranked():
    assert not Accuracy.of(97.5, 360).may_be_ranked(Accuracy.of(96.0, 360))
    assert Accuracy.of(97.5, 360).may_be_ranked(Accuracy.of(90.0, 360))
    # Not even if only one of the intervals is so wide.
    assert not Accuracy.of(97.5, 1_000_000).may_be_ranked(Accuracy.of(97.0, 100))
