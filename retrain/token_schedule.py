"""Which steps of a training see which tokens: coarser ones first, full ones in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vitas.config import TokenPhase


@dataclass(frozen=True)
class TokenSchedule:
    """The reduction of every step, a function of the step alone: so it is the same on all ranks and after a restart.

    phases: (the step before which a phase ends, its reduction) in order; the
        last one ends with the training and has full tokens, reduction 1.
    """

    phases: tuple[tuple[int, int], ...]

    @classmethod
    def from_phases(cls, phases: Sequence[TokenPhase], total: int) -> TokenSchedule:
        """The schedule of `retrain.tokens` over `total` steps. At least the last step has full tokens."""
        ends = [(min(round(phase.until * total), total - 1), phase.reduce) for phase in phases]
        return cls((*ends, (total, 1)))

    @property
    def total(self) -> int:
        """Steps of the training."""
        return self.phases[-1][0]

    @property
    def reductions(self) -> set[int]:
        return {reduce for _, reduce in self.phases}

    def reduction(self, step: int) -> int:
        """By how much the tokens along a side are fewer in this step, counted from 0."""
        return next(reduce for end, reduce in self.phases if step < end)

    def training_macs(self, macs: Mapping[int, int], batch_size: int) -> int:
        """Multiply-adds of all forward passes, where one image takes `macs[reduction]`."""
        ends = [0, *(end for end, _ in self.phases)]
        steps = [end - start for start, end in pairwise(ends)]
        return batch_size * sum(count * macs[r] for count, (_, r) in zip(steps, self.phases, strict=True))

    def __str__(self) -> str:
        coarse = ", ".join(f"reduced by {reduce} to step {end:,}" for end, reduce in self.phases[:-1])
        return f"tokens are {coarse or 'full'} of {self.total:,}"
