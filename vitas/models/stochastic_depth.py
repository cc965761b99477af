"""Stochastic depth whose draws are the same, whether a batch passes whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Where the images that pass are in their batch, int64 [B], and how many the batch has; None is all of it.
# Of the process, and not of the thread: the backward pass may compute a block again in a thread of autograd's.
# A tensor, as torch compiles a network anew for every number that it meets, and so for every part.
_places: tuple[Tensor, int] | None = None


@contextmanager
def part_of_batch(first: int, end: int, total: int, device: torch.device) -> Iterator[None]:
    """Within it, the images that pass are those from `first` to `end` - 1 of a batch of `total`."""
    global _places
    outer, _places = _places, (torch.arange(first, end, device=device), total)
    try:
        yield
    finally:
        _places = outer


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
        keep_prob = 1 - self.drop_prob
        # Drawn for all of the batch, so that an image has the same draw in any part.
        total = len(x) if _places is None else _places[1]
        kept = torch.empty((total,) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep_prob)
        if _places is not None:
            kept = kept.index_select(0, _places[0])
        return x * kept.div_(keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3g}"
