"""Stochastic depth whose draws are the same, whether a batch passes whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Where the images that pass are in their batch: the first of them, and how many the batch has; None is all of it.
# Of the process, and not of the thread: the backward pass may compute a block again in a thread of autograd's.
_place: tuple[int, int] | None = None


@contextmanager
def part_of_batch(first: int, total: int) -> Iterator[None]:
    """Within it, the images that pass are those from `first` on of a batch of `total`."""
    global _place
    outer, _place = _place, (first, total)
    try:
        yield
    finally:
        _place = outer


class StochasticDepth(nn.Module):
    """Drops a residual branch, tokens [B, ...], for a random part of the images; the others are scaled up for it.

    drop_prob: of an image.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        first, total = _place or (0, len(x))
        keep_prob = 1 - self.drop_prob
        # Drawn for all of the batch, so that an image has the same draw in any part.
        kept = torch.empty((total,) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep_prob)
        return x * kept[first : first + len(x)].div_(keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3g}"
