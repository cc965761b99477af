"""Blocks whose activations are not kept for the backward pass, which computes them again: less memory, more time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run(block: Callable[[Tensor], Tensor], x: Tensor, recompute: bool) -> Tensor:
    """`block(x)`; with `recompute`, only x is kept of it. The second time has the random draws of the first."""
    if not (recompute and torch.is_grad_enabled()):
        return block(x)
    recomputed: Tensor = checkpoint(block, x, use_reentrant=False)
    return recomputed
