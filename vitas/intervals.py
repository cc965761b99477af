"""How sure an accuracy is: intervals of shares that were counted, and when two are too near to be ranked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from vitas.errors import is_integer


def wilson(correct: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the share of which `correct` of `total` independent trials are a sample, as shares from 0 to 1.

    correct: how many of the trials; from an accuracy in percent, it need not be a whole number.
    confidence: how often such intervals hold the true share.

    It stays within 0 and 1, and is right also for few trials and for shares near the ends, where the usual
    plus or minus is not (E. B. Wilson, Probable inference, JASA 22, 1927). Raises `ValueError` for what is no count.
    """
    if not is_integer(total) or total < 1:
        raise ValueError(f"total is {total!r}; it must be a whole number above 0")
    if not 0 <= correct <= total:
        raise ValueError(f"correct is {correct!r}; it must be from 0 to {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; it must be between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # Rounding must not lead out of what can be.
    return max(0.0, middle - reach), min(1.0, middle + reach)


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
        low, high = wilson(percent / 100 * images, images)
        return cls(percent, images, 100 * low, 100 * high)

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
