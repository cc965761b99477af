"""Coarser tokens: what a reduction leaves of the tokens along a side, and which reductions there are.

A reduction r multiplies the stride and the dilation of a network's first
projection by r (As-ViT's progressive tokenisation; Chen et al., ICLR 2022).
"""

from __future__ import annotations

from vitas.errors import UserError


def coarser(tokens: int, reduce: int) -> int:
    """Tokens along a side of what has `tokens` of them, in steps of `reduce`; the last step may reach beyond."""
    return -(-tokens // reduce)


def check_token_reduction(tokens: int, reduce: int) -> None:
    """Raise `UserError` unless `tokens` along a side can be reduced: by 1 (not at all) to `tokens` (one is left)."""
    if type(reduce) is int and (reduce == 1 or 1 <= reduce <= tokens):
        return
    allowed = f"it must be an integer from 2 to {tokens}" if tokens > 1 else "so there is nothing to reduce"
    raise UserError(f"found {reduce!r}; an image gives {tokens} x {tokens} tokens, {allowed}")
