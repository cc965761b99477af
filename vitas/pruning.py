"""One-shot pruning: the most important parts of a network that a budget allows, and no training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vitas.architecture import Architecture, Block
from vitas.elastic_space import ElasticSpace
from vitas.errors import UserError
from vitas.importance import Importances, reordered
from vitas.models import SuperNet, VisionTransformer

# Of channels and units: other numbers of them take as long as the next multiple, on GPUs and in vector units.
MULTIPLE = 8
# But a step is at most this part of a dim: of small networks a multiple of 8 would be too coarse.
FINEST = 1 / 32


def pruned_architecture(
    architecture: Architecture, scores: Importances, macs: int, image_size: int, num_classes: int
) -> Architecture:
    """The shape that is left of a network of the family `vit` within `macs` multiply-adds an image.

    The same share is kept of channels, heads and MLP units. Heads are compared
    over all blocks, and so are MLP units (isomorphic groups; Fang et al., ECCV
    2024); each block keeps at least one head and an eighth of its units. What
    whole heads leave of the budget goes to MLP units. Channels and units are
    multiples of 8, or of 4, 2 or 1 where there are fewer than 256.

    Raises `UserError` where less than the budget cannot be left, or is there already.
    """
    size = image_size, num_classes
    whole = architecture.macs(*size)
    if macs >= whole:
        raise UserError(f"the network has {whole:,} MACs; the budget must be less, and is {macs:,}")
    # Of most to least important, over all blocks: which block a head or unit is of.
    orders = [_order_over_blocks(of_blocks) for of_blocks in (scores.heads, scores.mlp)]
    least = [[1] * len(scores.heads), [max(1, len(values) // 8) for values in scores.mlp]]

    def shape(share: float, units: int | None = None) -> Architecture:
        counts = []
        for order, smallest, wanted in zip(orders, least, (None, units), strict=True):
            kept = round(share * len(order)) if wanted is None else wanted
            counts.append(_count(order[:kept], smallest))
        counts[1] = [
            _multiple(units, block.mlp_dim) for units, block in zip(counts[1], architecture.blocks, strict=True)
        ]
        blocks = tuple(
            Block(heads, 3 * heads * (block.attention_dim // block.heads), units)
            for block, heads, units in zip(architecture.blocks, *counts, strict=True)
        )
        return replace(
            architecture, embed_dim=_multiple(share * architecture.embed_dim, architecture.embed_dim), blocks=blocks
        )

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if shape(middle).macs(*size) > macs else (middle, high)
    if shape(low).macs(*size) > macs:
        raise UserError(f"of the network at least {shape(0.0).macs(*size):,} MACs are left; the budget is {macs:,}")
    fewest, most = round(low * len(orders[1])), len(orders[1])
    while fewest < most:
        middle = (fewest + most + 1) // 2
        fewest, most = (fewest, middle - 1) if shape(low, middle).macs(*size) > macs else (middle, most)
    return shape(low, fewest)


def _multiple(count: float, maximum: int) -> int:
    step = MULTIPLE
    while step > max(1, FINEST * maximum):
        step //= 2
    return min(max(1, round(count / step)) * step, maximum)


def _order_over_blocks(of_blocks: list[Tensor]) -> list[int]:
    """The blocks of all parts, the most important part first."""
    scores = torch.cat([values.cpu() for values in of_blocks])
    blocks = torch.cat([torch.full((len(values),), i) for i, values in enumerate(of_blocks)])
    return blocks[torch.argsort(scores, descending=True, stable=True)].tolist()


def _count(kept: list[int], least: list[int]) -> list[int]:
    return [max(smallest, kept.count(block)) for block, smallest in enumerate(least)]


def prune(network: VisionTransformer, scores: Importances, macs: int) -> VisionTransformer:
    """A network of the family `vit` pruned to `macs` (see `pruned_architecture`), with the weights that it keeps."""
    wanted = pruned_architecture(network.architecture, scores, macs, network.image_size, network.num_classes)
    return cut(reordered(network, scores), wanted)


def cut(network: VisionTransformer, architecture: Architecture) -> VisionTransformer:
    """The first channels, heads and units of a network whose parts are in the order of their importance."""
    whole = network.architecture
    if len(architecture.blocks) != len(whole.blocks):
        raise UserError(f"{architecture} has {len(architecture.blocks)} blocks, and {whole} has {len(whole.blocks)}")
    supernet = SuperNet(_Exactly(whole, tuple(range(len(whole.blocks)))), network.num_classes, network.image_size)
    supernet.adopt(network.cpu())
    return supernet.extract(architecture).train(network.training)


class _Exactly(ElasticSpace):
    """Every width of a network, of which the shares of a search are some."""

    @property
    def embed_dims(self) -> tuple[int, ...]:
        return tuple(range(1, self.network.embed_dim + 1))

    @property
    def head_counts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(range(1, block.heads + 1)) for block in self.network.blocks)

    @property
    def mlp_counts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(range(1, block.mlp_dim + 1)) for block in self.network.blocks)
