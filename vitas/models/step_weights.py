"""What passes use of a supernet's weights, as cheaply as a dense network's own.

By autograd alone, each use of a slice gives a gradient of its whole parameter, filled up with zeros, which is then
added to that of other uses; and under autocast each use is cast anew. Of small batches those kernels take longer to
launch than the passes' own. Here a gradient is added where it belongs, at once, and parameters are cast once a step.
Scoring takes the parts of a subnet, and casts them, once for all batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from vitas.architecture import Architecture
from vitas.models.supernet import Part, SuperNet
from vitas.sharing import Side

# What autocast computes in float32.
_NOT_CAST = ("cls_token", "pos_embed", "norm")


class StepWeights:
    """The weights of subnets, for one step after another.

    dtype: of matrix products, where autocast has another than the weights'.
    arrived: is told in a backward pass of the parameters to whose `grad` it has just added, once for each use by `of`.

    Gradients are added to `parameter.grad` beside autograd's own way: hooks of parameters are not called, and
    `torch.autograd.grad` does not see them.
    """

    def __init__(
        self,
        supernet: SuperNet,
        dtype: torch.dtype | None = None,
        arrived: Callable[[Collection[nn.Parameter]], object] = lambda parameters: None,
    ) -> None:
        self._supernet, self._dtype, self._arrived = supernet, dtype, arrived
        self._cast: dict[nn.Parameter, Tensor] = {}
        # What autograd needs to see in order to come to a gradient.
        self._anchor = torch.empty(0, requires_grad=True)

    @torch.no_grad()
    def begin(self, uses: Iterable[tuple[Architecture, Side | None]]) -> None:
        """To call when the weights have changed. uses: what `of` will be asked for."""
        if self._dtype is not None:
            parts = (self._supernet.parts(*use) for use in uses)
            used = dict.fromkeys(part.parameter for of in parts for name, part in of.items() if _is_cast(name))
            cast = [torch.empty_like(parameter, dtype=self._dtype) for parameter in used]
            torch._foreach_copy_(cast, list(used))
            self._cast = dict(zip(used, cast, strict=True))

    def of(self, architecture: Architecture, side: Side | None = None) -> Mapping[str, Tensor]:
        """The weights of a subnet for one pass, as `SuperNet.forward` takes them."""
        weights: dict[str, Tensor] = {}
        for _, named in groupby(self._supernet.parts(architecture, side).items(), lambda item: _layer(item[0])):
            group = dict(named)
            sources = [
                self._cast.get(part.parameter, part.parameter) if _is_cast(name) else part.parameter
                for name, part in group.items()
            ]
            weights |= zip(group, _Used.apply(self._anchor, list(group.values()), sources, self._arrived), strict=True)
        return weights


class _Used(torch.autograd.Function):
    """Parts of parameters, whose gradients are added where the parts lie.

    They are those of a layer: so they are added, and a reduction may begin, when the backward pass has left the layer.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, parts: list[Part], sources: list[Tensor], arrived: Callable[..., object]
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.arrived = parts, arrived
        ctx.set_materialize_grads(False)
        return tuple(part.cut(source.detach()) for part, source in zip(parts, sources, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        new = [part.parameter for part in ctx.parts if part.parameter.grad is None]
        for parameter in new:
            parameter.grad = torch.empty_like(parameter)
        if new:
            torch._foreach_zero_([parameter.grad for parameter in new])
        places, added = [], []
        for part, gradient in zip(ctx.parts, gradients, strict=True):
            if gradient is not None:
                for there, within in part.places:
                    places.append(part.parameter.grad[there])
                    added.append(gradient if len(part.places) == 1 else gradient[within])
        torch._foreach_add_(places, added)
        ctx.arrived([part.parameter for part in ctx.parts])
        return None, None, None, None


@torch.no_grad()
def weights_of(
    supernet: SuperNet, architecture: Architecture, side: Side | None = None, dtype: torch.dtype | None = None
) -> Mapping[str, Tensor]:
    """The weights of a subnet for many passes without gradients, as `SuperNet.forward` takes them.

    dtype: of matrix products, where autocast has another than the weights'.
    """
    parts = supernet.parts(architecture, side)
    return {name: part.weights.to(dtype=dtype if _is_cast(name) else None) for name, part in parts.items()}


@lru_cache
def _layer(name: str) -> str:
    """What a part belongs to: its block, or the ends of the network before or after them."""
    kind, _, rest = name.partition(".")
    if kind == "blocks":
        return rest.partition(".")[0]
    return "last" if kind in ("norm", "head") else "first"


@lru_cache
def _is_cast(name: str) -> bool:
    return not any(kept in name for kept in _NOT_CAST)
