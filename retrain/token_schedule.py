"""Which steps of a training see coarser tokens: the first ones; the last ones see full tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vitas.config import TokenPhase


@dataclass(frozen=True)
class TokenSchedule:
    """The token reduction of every step; a function of the step, so the same on all ranks and after a restart.

    phases: (end, reduction) in order, where `end` is the first step after the
        phase; the last phase ends with the training and has full tokens,
        reduction 1.
    """

    phases: tuple[tuple[int, int], ...]

    @classmethod
    def from_phases(cls, phases: Sequence[TokenPhase], total: int) -> TokenSchedule:
        """The schedule of `retrain.tokens` over `total` steps. At least the last step has full tokens."""
        ends = [(min(round(phase.until * total), total - 1), phase.reduce) for phase in phases]
        return cls((*ends, (total, 1)))

    @property
    def total(self) -> int:
        """The steps of the training."""
        return self.phases[-1][0]

    @property
    def reductions(self) -> set[int]:
        return {reduce for _, reduce in self.phases}

    def reduction(self, step: int) -> int:
        """The reduction in a step, counted from 0: the factor by which tokens along a side are fewer."""
        return next(reduce for end, reduce in self.phases if step < end)

    def training_macs(self, macs: Mapping[int, int], batch_size: int) -> int:
        """MACs of all forward passes, if an image takes `macs[reduction]`."""
        ends = [0, *(end for end, _ in self.phases)]
        steps = [end - start for start, end in pairwise(ends)]
        return batch_size * sum(count * macs[r] for count, (_, r) in zip(steps, self.phases, strict=True))

    def __str__(self) -> str:
        coarse = ", ".join(f"reduced by {reduce} to step {end:,}" for end, reduce in self.phases[:-1])
        return f"tokens are {coarse or 'full'} of {self.total:,}"
