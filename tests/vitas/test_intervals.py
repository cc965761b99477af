"""Intervals of accuracies."""

from math import comb

import pytest

from vitas.intervals import Accuracy, wilson


def test_the_interval_of_an_accuracy_on_few_images_is_wide():
    low, high = wilson(0.975 * 360, 360)
    assert (round(100 * low, 1), round(100 * high, 1)) == (95.3, 98.7)


def test_published_intervals_are_met():
    """Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3."""
    for correct, total, expected in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))):
        assert wilson(correct, total) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("total", [1, 7, 100])
def test_it_holds_the_share_stays_within_0_and_1_and_mirrors(total):
    for correct in range(total + 1):
        low, high = wilson(correct, total)
        assert 0 <= low <= correct / total <= high <= 1
        assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low))


def test_it_holds_the_truth_about_as_often_as_it_says():
    total, share = 200, 0.93
    held = sum(
        comb(total, k) * share**k * (1 - share) ** (total - k)
        for k in range(total + 1)
        if wilson(k, total)[0] <= share <= wilson(k, total)[1]
    )
    assert held == pytest.approx(0.95, abs=0.02)


def test_more_confidence_is_a_wider_interval():
    assert wilson(90, 100, 0.99)[0] < wilson(90, 100)[0] < wilson(90, 100, 0.5)[0]


@pytest.mark.parametrize("arguments", [(1, 0), (2, 1), (-1, 3), (1, 2.5), (1, 2, 1.0)])
def test_what_is_no_count_is_refused(arguments):
    with pytest.raises(ValueError, match="it must be"):
        wilson(*arguments)


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
