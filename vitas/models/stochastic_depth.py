"""Stochastic depth that computes what it keeps, with the same draws whether a batch passes whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Where the images that pass are in their batch, int64 [B] on the CPU, and how many the batch has; None is all of it.
# Of the process, and not of the thread: the backward pass may compute a block again in a thread of autograd's.
# A tensor, as torch compiles a network anew for every number that it meets, and so for every part.
_places: tuple[Tensor, int] | None = None

# Numbers of a residual stream: 16 images of 224 x 224 in patches of 16 have more with any embedding dim above 83.
_FEW = 2**18


@contextmanager
def part_of_batch(first: int, end: int, total: int) -> Iterator[None]:
    """Within it, the images that pass are those from `first` to `end` - 1 of a batch of `total`."""
    global _places
    outer, _places = _places, (torch.arange(first, end), total)
    try:
        yield
    finally:
        _places = outer


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for a random part of the images, and scales it up for the others.

    drop_prob: of an image.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor], rows: int | None = None) -> Tensor:
        """x [B, R, ...] -> x + branch(x), of the first `rows` of R, which is all that `branch` then gives; None is all.

        Images that are left out are not computed, unless that would take longer: `branch` has those that are kept, and
        no two images may meet in it.
        """
        residual = x[:, :rows]
        if not self.training or self.drop_prob == 0:
            return residual + branch(x)
        keep_prob = 1 - self.drop_prob
        kept = self._draw(len(x), keep_prob)
        # A compiled graph has one number of images, and of few numbers taking some out costs more than all of them.
        if torch.compiler.is_compiling() or x.numel() < _FEW:
            out = branch(x)
            return residual + out * kept.to(out).view(-1, *[1] * (x.ndim - 1)).div_(keep_prob)
        if bool(kept.all()):
            return torch.add(residual, branch(x), alpha=1 / keep_prob)
        places = kept.nonzero().squeeze(1).to(x.device, non_blocking=True)
        out = branch(x.index_select(0, places))
        return residual.index_add(0, places, out.to(residual.dtype), alpha=1 / keep_prob)

    def _draw(self, images: int, keep_prob: float) -> Tensor:
        """Which images are kept, bool [B]. On the CPU: no GPU is waited for, and all devices have the same draws."""
        # Drawn for all of the batch, so that an image has the same draw in any part.
        total = images if _places is None else _places[1]
        kept = torch.empty(total, device="cpu").bernoulli_(keep_prob) != 0
        return kept if _places is None else kept.index_select(0, _places[0])

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3g}"
