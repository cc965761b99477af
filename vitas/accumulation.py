"""The parts of a batch that pass one after the other, where all of it does not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vitas.models.stochastic_depth import part_of_batch


class BatchPart(NamedTuple):
    """Some images of a batch and their targets. share: of the batch; a mean loss times it is a part of the batch's."""

    images: Tensor
    targets: Tensor
    share: float
    is_last: bool


def parts_of(images: Tensor, targets: Tensor, count: int) -> Iterator[BatchPart]:
    """A batch in `count` parts, as equal as possible; fewer, if there are fewer images, and none of no images.

    Each part has the random draws that its images have when the batch passes
    whole, from the moment when it is asked for to that when the next is; so
    gradients of the parts add up to those of the batch, to rounding.
    """
    ends = [len(images) * i // count for i in range(count + 1)]
    places = [(first, end) for first, end in pairwise(ends) if first < end]
    if len(places) == 1:
        yield BatchPart(images, targets, 1.0, True)
        return
    # Networks draw on the CPU alone.
    state = torch.get_rng_state()
    for first, end in places:
        torch.set_rng_state(state)
        with part_of_batch(first, end, len(images)):
            share = (end - first) / len(images)
            yield BatchPart(images[first:end], targets[first:end], share, end == len(images))
