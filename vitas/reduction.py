"""Averages gradients over the ranks while the backward passes of a step go on.

Only slices of the weights have gradients in a step of the supernet, other ones in each. So torch's
DistributedDataParallel, which sends whole parameters, is of no use; but its idea is: what is complete leaves in buckets
while the rest is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitas.distributed import World
from vitas.models.slices import Slice

# Of a bucket. Smaller ones leave earlier, and each pays the latency of a collective over all ranks: some 0.1 ms.
BUCKET_BYTES = 4 * 2**20


class Reduction:
    """The average of a step's gradients over all ranks of a world of several.

    bucket_bytes: what is sent at once, at least.

    Every rank must begin with the same slices: buckets leave in the order of these, on all ranks alike.
    """

    def __init__(self, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._world, self._bucket_bytes = world, bucket_bytes
        self._buckets: list[_Bucket] = []
        self._next = 0
        # How often this rank's passes will still add to a parameter's gradient, and where its slices are.
        self._awaited: Counter[nn.Parameter] = Counter()
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}

    def begin(self, slices: Sequence[Slice], uses: Iterable[Collection[nn.Parameter]]) -> None:
        """To call before the first backward pass of a step.

        slices: without overlap, those of a parameter next to each other; the first that are complete come first.
        uses: the parameters that `arrived` will be told of, once for each time.
        """
        self._awaited = Counter(parameter for used in uses for parameter in used)
        self._buckets = list(self._in_buckets(slices))
        self._bucket_of = {each.parameter: bucket for bucket in self._buckets for each in bucket.slices}
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = {each.parameter for each in bucket.slices if self._awaited[each.parameter]}

    def abandon(self) -> None:
        """Send nothing more of a step that does not get to its end."""
        self._buckets, self._bucket_of = [], {}

    def finish(self, others: Sequence[Tensor]) -> None:
        """To call after the last backward pass: the gradients are averages then. others: to be averaged too."""
        # Where this rank had no images, nothing has left yet.
        self._send(all_of_them=True)
        self._bucket_of = {}
        flat = torch.cat([tensor.reshape(-1) for tensor in others]) if others else None
        work = None if flat is None else dist.all_reduce(flat, async_op=True)
        for bucket in self._buckets:
            _receive(bucket.flat, bucket.work, [each.gradient() for each in bucket.slices], self._world)
        _receive(flat, work, others, self._world)
        self._buckets = []

    def _in_buckets(self, slices: Sequence[Slice]) -> Iterator[_Bucket]:
        held: list[Slice] = []
        weight = 0
        for i, each in enumerate(slices):
            held.append(each)
            weight += each.parameter.element_size() * each.numel()
            # A parameter's slices stay together.
            is_whole = i + 1 == len(slices) or slices[i + 1].parameter is not each.parameter
            if is_whole and weight >= self._bucket_bytes:
                yield _Bucket(held)
                held, weight = [], 0
        if held:
            yield _Bucket(held)

    def arrived(self, parameters: Collection[nn.Parameter]) -> None:
        """To call when a backward pass has added to the gradients of parameters; outside of a step it does nothing."""
        for parameter in parameters:
            bucket = self._bucket_of.get(parameter)
            if bucket is None:
                continue
            self._awaited[parameter] -= 1
            if self._awaited[parameter] < 0:
                raise RuntimeError("a gradient came after it was sent: a use that `begin` was not told of")
            if not self._awaited[parameter]:
                bucket.missing.discard(parameter)
        self._send()

    def _send(self, all_of_them: bool = False) -> None:
        """Send the buckets that are complete, as far as all before them have left."""
        while self._next < len(self._buckets) and (all_of_them or not self._buckets[self._next].missing):
            bucket = self._buckets[self._next]
            bucket.flat = torch.cat([each.gradient().reshape(-1) for each in bucket.slices])
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self._next += 1


class _Bucket:
    """Slices that are sent at once. missing: parameters whose gradients are not complete."""

    def __init__(self, slices: list[Slice]) -> None:
        self.slices = slices
        self.missing: set[nn.Parameter] = set()
        self.flat: Tensor | None = None
        self.work: dist.Work | None = None


def _receive(flat: Tensor | None, work: dist.Work | None, tensors: Sequence[Tensor], world: World) -> None:
    """Wait for a sum over the ranks, and copy the averages to where they belong."""
    if flat is None or work is None:
        return
    work.wait()
    flat /= world.size
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])
