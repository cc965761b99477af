"""Slices of weights: the boxes of a parameter that several subnets use, each place once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

# (start, stop) along each dimension.
Box: TypeAlias = tuple[tuple[int, int], ...]

# A box more is a copy more in each direction of a reduction.
_MOST = 8


class Slice(NamedTuple):
    """A part of a parameter. box: along its first dimensions; all of the others."""

    parameter: nn.Parameter
    box: Box

    def gradient(self) -> Tensor:
        """A view of the parameter's gradient; zeros where it has none yet."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        return self.parameter.grad[tuple(slice(*ends) for ends in self.box)]

    def numel(self) -> int:
        return size(self.box) * self.parameter.shape[len(self.box) :].numel()


def size(box: Box) -> int:
    """The number of places in a box."""
    return prod(stop - start for start, stop in box)


@lru_cache(maxsize=4096)
def disjoint(boxes: frozenset[Box]) -> tuple[Box, ...]:
    """Boxes without overlap that together hold the places of `boxes`; of very many pieces, the one box around them all.

    The same for every process: the order does not depend on that of the set.
    """
    found: list[Box] = []
    for box in sorted(boxes, key=lambda box: (-size(box), box)):
        pieces = [box]
        for other in found:
            pieces = [part for piece in pieces for part in _without(piece, other)]
        found += pieces
        if len(found) > _MOST:
            return (around(boxes),)
    return tuple(found)


def around(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of some boxes."""
    return tuple((min(start for start, _ in ends), max(stop for _, stop in ends)) for ends in zip(*boxes, strict=True))


def _without(box: Box, other: Box) -> list[Box]:
    """The places of a box that are not in another, as boxes."""
    if not all(start < end and begin < stop for (start, stop), (begin, end) in zip(box, other, strict=True)):
        return [box]
    pieces = []
    rest = list(box)
    for dim, (begin, end) in enumerate(other):
        start, stop = rest[dim]
        for piece in ((start, min(stop, begin)), (max(start, end), stop)):
            if piece[0] < piece[1]:
                pieces.append((*rest[:dim], piece, *rest[dim + 1 :]))
        rest[dim] = (max(start, begin), min(stop, end))
    return pieces
