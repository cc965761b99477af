"""Confidence intervals of accuracies, and when two accuracies are too near to be ranked."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Two-sided 95%.
Z = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers among `images`, in percent, with its 95% interval from `low` to `high`."""

    percent: float
    images: int
    low: float
    high: float

    @classmethod
    def of(cls, percent: float, images: int) -> Accuracy:
        """An accuracy in percent on so many images, at least one."""
        return cls(percent, images, *wilson(percent / 100, images))

    def __str__(self) -> str:
        return f"{self.percent:.{self.digits}f} ({self.interval})"

    @property
    def interval(self) -> str:
        return f"{self.low:.{self.digits}f} to {self.high:.{self.digits}f}"

    @property
    def digits(self) -> int:
        """Decimals that mean something beside the interval's width."""
        return 1 if self.high - self.low > 0.4 else 2

    def may_be_ranked(self, other: Accuracy) -> bool:
        """Whether neither accuracy lies in the other's interval: only then is one called better."""
        return not (self.low <= other.percent <= self.high or other.low <= self.percent <= other.high)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of Wilson (1927) of a share of `count` independent trials, in percent."""
    squared = Z * Z / count
    centre = (share + squared / 2) / (1 + squared)
    half = Z / (1 + squared) * math.sqrt(share * (1 - share) / count + squared / count / 4)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
