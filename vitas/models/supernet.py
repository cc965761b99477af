"""The weight-sharing supernet: one set of weights for every architecture of a space.

A forward pass uses views of the widest weights; it copies only if the sharing
scheme (`vitas.sharing`, which decides the channels of a width) wraps round.
Identities are skipped: all subnets of one depth use the same blocks, the first
ones, or of a pretrained network the most important ones.

Shape suffixes: B images, N tokens, Q queries (the tokens that something is
computed for), D embedding dim in use, H heads, d dims of a head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise, product
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.architecture import Architecture, Block, check_patch_size
from vitas.config import RunConfig
from vitas.elastic_space import AnySpace, ElasticSpace
from vitas.errors import UserError
from vitas.models.recomputation import run
from vitas.models.slices import Box, Slice, disjoint
from vitas.models.vision_transformer import (
    BLOCK_NORM_EPS,
    LAST_NORM_EPS,
    VisionTransformer,
    init_weights,
    read_out,
    tokens_read,
)
from vitas.sharing import SCHEMES, Channels, Side
from vitas.space import SearchSpace

# Whether each head count has its own (q and k, v).
QKV_MODES = {0: (False, False), 1: (False, True), 2: (True, False)}
_SHARED = "shared"
# Indices of a tensor along its first dimensions, and those of the same numbers in another.
Places: TypeAlias = tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]
# (width, maximum) -> the channels that the width uses.
Cut: TypeAlias = Callable[[int, int], Channels]


class Part(NamedTuple):
    """The part of a parameter that a subnet uses: the channels of its first dimensions; None is all channels."""

    parameter: nn.Parameter
    channels: tuple[Channels | None, ...]

    @property
    def weights(self) -> Tensor:
        """The part as one tensor: a view, or a copy if the channels are several ranges."""
        return self.cut(self.parameter)

    def cut(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that is shaped like the parameter."""
        for dim, ranges in enumerate(self.channels):
            if ranges is not None:
                pieces = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
                tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return tensor

    @property
    def boxes(self) -> Iterator[Box]:
        """Where it lies, along the dimensions that are cut."""
        return product(
            *(
                ((0, size),) if ranges is None else ranges
                # Dimensions that are never cut come last, and have no channels.
                for ranges, size in zip(self.channels, self.parameter.shape, strict=False)
            )
        )

    @property
    def places(self) -> Places:
        """Of each box, the indices of its place in the parameter, and in `weights`."""
        return _places(self.channels, self.parameter.shape)


# The same few, in every step.
@lru_cache(maxsize=4096)
def _places(channels: tuple[Channels | None, ...], shape: tuple[int, ...]) -> Places:
    there, within = [], []
    for ranges, size in zip(channels, shape, strict=False):
        ranges = ranges or ((0, size),)
        there.append([slice(*ends) for ends in ranges])
        ends = accumulate(stop - start for start, stop in ranges)
        within.append([slice(*pair) for pair in pairwise((0, *ends))])
    return tuple(zip(product(*there), product(*within), strict=True))


class SuperNet(nn.Module):
    """All architectures of a search space in one set of weights.

    space: a `SearchSpace`, or the `ElasticSpace` of a pretrained network, whose weights `adopt` takes over.
    num_classes, image_size: see `VisionTransformer`.
    sharing: a name in `vitas.sharing.SCHEMES`.
    qkv_mode: which weights each head count has of its own: 2 q and k, 1 v, 0 none. A pretrained network has one head
        count, so with its space this has no effect.

    Each patch size has its own class token, position embedding and patch
    projection. Raises `UserError` for an unknown scheme or mode, and for
    patches that do not tile the image.
    """

    def __init__(
        self,
        space: AnySpace,
        num_classes: int = 1000,
        image_size: int = 224,
        sharing: str = "ordinal",
        qkv_mode: int = 2,
    ) -> None:
        super().__init__()
        if sharing not in SCHEMES:
            raise UserError(f"sharing: found {sharing!r}; it must be {' or '.join(SCHEMES)}")
        if qkv_mode not in QKV_MODES:
            raise UserError(f"qkv_mode: found {qkv_mode!r}; it must be 0, 1 or 2")
        if isinstance(space, ElasticSpace) and not SCHEMES[sharing].keeps_heads:
            raise UserError(f"sharing: found {sharing!r}, which would cut the heads of a pretrained network apart")
        self.space = space
        self.num_classes = num_classes
        self.image_size = image_size
        self.scheme = SCHEMES[sharing]
        self.qkv_mode = qkv_mode
        self.grad_checkpointing = False
        prefix = space.prefix_tokens
        # torch's containers do not say what they hold.
        self.stems: Mapping[str, PatchStem] = nn.ModuleDict(  # type: ignore[assignment]
            {str(p): PatchStem(p, image_size, space.embed_dims[-1], prefix) for p in space.patch_sizes}
        )
        self.blocks: Sequence[SuperBlock] = nn.ModuleList(_blocks(space, qkv_mode))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(space.embed_dims[-1])
        self.head = nn.Linear(space.embed_dims[-1], num_classes)
        init_weights(self)

    @classmethod
    def of(cls, config: RunConfig) -> SuperNet:
        """The supernet of a run. Raises `UserError` where it has no search space."""
        model = config.model
        return cls(config.space, model.num_classes, model.image_size, model.sharing, model.qkv_mode)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, which computes the rest again (timm's convention)."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more dimensions without weight decay (timm's convention)."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    def forward(
        self,
        images: Tensor,
        architecture: Architecture,
        side: Side | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits [B, num_classes] of a subnet for images [B, 3, image_size, image_size].

        side: of the sharing scheme; None is its first scoring side.
        weights: of the subnet, by their names in the dense network; by default they are views of the supernet's.
        """
        if weights is None:
            weights = {name: part.weights for name, part in self.parts(architecture, side).items()}
        dim = architecture.embed_dim

        def layer_norm(x: Tensor, name: str, eps: float) -> Tensor:
            return F.layer_norm(x, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def transform(x_BND: Tensor, name: str, block: Block, queries: int | None) -> Tensor:
            y_BND = layer_norm(x_BND, f"{name}.norm1", BLOCK_NORM_EPS)
            q, k, v = (
                linear(y, f"{name}.attn.{part}").unflatten(-1, (block.heads, -1)).transpose(1, 2)
                for part, y in (("q", y_BND[:, :queries]), ("k", y_BND), ("v", y_BND))
            )
            out_BHQd = F.scaled_dot_product_attention(q, k, v, scale=architecture.attention_scale(block))
            x_BQD = x_BND[:, :queries] + linear(out_BHQd.transpose(1, 2).flatten(2), f"{name}.attn.proj")
            y_BQD = layer_norm(x_BQD, f"{name}.norm2", BLOCK_NORM_EPS)
            return x_BQD + linear(F.gelu(linear(y_BQD, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

        patches = F.conv2d(
            images,
            weights["patch_embed.proj.weight"],
            weights["patch_embed.proj.bias"],
            stride=architecture.patch_size,
        )
        x_BND = patches.flatten(2).transpose(1, 2)
        if architecture.prefix_tokens:
            x_BND = torch.cat([weights["cls_token"].expand(images.shape[0], -1, -1), x_BND], dim=1)
        x_BND = x_BND + weights["pos_embed"]
        read = tokens_read(architecture.classifier)
        for i, block in enumerate(architecture.active_blocks):
            queries = read if i == architecture.depth - 1 else None
            block_i = partial(transform, name=f"blocks.{i}", block=block, queries=queries)
            x_BND = run(block_i, x_BND, self.grad_checkpointing)
        # A network without blocks has all tokens still.
        x_BQD = layer_norm(x_BND[:, :read], "norm", LAST_NORM_EPS[architecture.family])
        return linear(read_out(x_BQD, architecture.classifier, architecture.prefix_tokens), "head")

    def parts(self, architecture: Architecture, side: Side | None = None) -> Mapping[str, Part]:
        """The parts of the weights that a subnet uses, by their names in the dense network.

        q, k and v are three matrices here, and one in the dense network. Raises
        `UserError` for an architecture outside the space, or a side that the
        sharing scheme does not have.
        """
        side = self.scheme.scoring_sides[0] if side is None else side
        known = _PARTS.setdefault(self, {})
        if (architecture, side) not in known:
            self.space.encode(architecture)
            if len(known) == _MOST_PARTS:
                known.clear()
            cut: Cut = lambda width, maximum: self.scheme.channels(width, maximum, side)  # noqa: E731
            known[architecture, side] = dict(self._parts(architecture, cut))
        return known[architecture, side]

    def _parts(self, architecture: Architecture, cut: Cut) -> Iterator[tuple[str, Part]]:
        embed = cut(architecture.embed_dim, self.space.embed_dims[-1])
        stem = self.stems[str(architecture.patch_size)]
        if stem.cls_token is not None:
            yield "cls_token", Part(stem.cls_token, (None, None, embed))
        yield "pos_embed", Part(stem.pos_embed, (None, None, embed))
        yield from _layer_parts("patch_embed.proj", stem.patch_embed, embed)
        positions = self.space.block_positions(architecture.depth)
        for i, (position, block) in enumerate(zip(positions, architecture.active_blocks, strict=True)):
            for name, part in self.blocks[position].parts(block, embed, cut):
                yield f"blocks.{i}.{name}", part
        yield from _layer_parts("norm", self.norm, embed)
        yield from _layer_parts("head", self.head, None, embed)

    def parameters_in_use(self, architecture: Architecture, side: Side | None = None) -> list[nn.Parameter]:
        """The parameters that get gradients from a subnet's pass."""
        return [part.parameter for part in self.parts(architecture, side).values()]

    def slices_in_use(self, architectures: Iterable[Architecture], sides: Iterable[Side]) -> list[Slice]:
        """The slices that get gradients from the passes of subnets with `sides`, each place of a parameter once.

        Those that a backward pass reaches first come first. The same list on all ranks, whatever each of them trains.
        """
        sides = tuple(sides)
        boxes: dict[nn.Parameter, set[Box]] = {}
        for architecture in dict.fromkeys(architectures):
            for side in sides:
                for part in self.parts(architecture, side).values():
                    boxes.setdefault(part.parameter, set()).update(part.boxes)
        return [
            Slice(parameter, box) for parameter, used in reversed(boxes.items()) for box in disjoint(frozenset(used))
        ]

    @torch.no_grad()
    def adopt(self, network: VisionTransformer) -> None:
        """Take over the weights of the network that is the widest member of the space.

        Raises `UserError` for another network.
        """
        architecture = network.architecture
        if not isinstance(self.space, ElasticSpace) or architecture != self.space.network:
            raise UserError(f"{architecture} is not the network that this supernet's space is of")
        state = dict(network.state_dict())
        for i in range(architecture.depth):
            for kind in ("weight", "bias"):
                rows = state.pop(f"blocks.{i}.attn.qkv.{kind}").chunk(3)
                state |= {f"blocks.{i}.attn.{part}.{kind}": row for part, row in zip("qkv", rows, strict=True)}
        for name, part in self.parts(architecture).items():
            part.parameter.copy_(state[name])

    def digest(self) -> str:
        """A text that says which weights these are: scores are kept beside it."""
        found = hashlib.blake2b(digest_size=16)
        for tensor in self.state_dict().values():
            found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    @torch.no_grad()
    def extract(self, architecture: Architecture, side: Side | None = None) -> VisionTransformer:
        """The dense network of an architecture with the supernet's weights: its logits are equal up to rounding."""
        dense = VisionTransformer(architecture, self.num_classes, self.image_size)
        state = {name: part.weights for name, part in self.parts(architecture, side).items()}
        for i in range(architecture.depth):
            for kind in ("weight", "bias"):
                rows = [state.pop(f"blocks.{i}.attn.{part}.{kind}") for part in "qkv"]
                state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(rows)
        dense.load_state_dict(state)
        return dense.to(self.head.weight.device).train(self.training)


class PatchStem(nn.Module):
    """A patch size's own projection, class token and position embedding, at full width."""

    def __init__(self, patch_size: int, image_size: int, embed_dim: int, prefix_tokens: int) -> None:
        super().__init__()
        check_patch_size(patch_size, image_size)
        patches = (image_size // patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if prefix_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + prefix_tokens, embed_dim))


def _blocks(space: AnySpace, qkv_mode: int) -> Iterator[SuperBlock]:
    """The blocks of a supernet, at full width."""
    if isinstance(space, SearchSpace):
        for _ in range(space.depth):
            yield SuperBlock(space.embed_dims[-1], space.attention_dims[-1], space.mlp_dims[-1], space.heads, qkv_mode)
    else:
        for block in space.network.blocks:
            yield SuperBlock(space.embed_dims[-1], block.attention_dim, block.mlp_dim, (), 0)


class SuperBlock(nn.Module):
    """The weights of one block at full width. q, k and v are separate, so that a row means the same at every width.

    heads: the head counts that have weights of their own, as `qkv_mode` says.
    """

    def __init__(self, embed_dim: int, attention_dim: int, mlp_dim: int, heads: tuple[int, ...], qkv_mode: int) -> None:
        super().__init__()
        self.embed_dim, self.attention_dim, self.mlp_dim = embed_dim, attention_dim, mlp_dim

        def projections(private: bool) -> nn.ModuleDict:
            keys = list(map(str, heads)) if private else [_SHARED]
            return nn.ModuleDict({key: nn.Linear(self.embed_dim, self.attention_dim) for key in keys})

        private_qk, private_v = QKV_MODES[qkv_mode]
        self.norm1 = nn.LayerNorm(self.embed_dim)
        self.q = projections(private_qk)
        self.k = projections(private_qk)
        self.v = projections(private_v)
        self.proj = nn.Linear(self.attention_dim, self.embed_dim)
        self.norm2 = nn.LayerNorm(self.embed_dim)
        self.fc1 = nn.Linear(self.embed_dim, self.mlp_dim)
        self.fc2 = nn.Linear(self.mlp_dim, self.embed_dim)

    def parts(self, block: Block, embed: Channels, cut: Cut) -> Iterator[tuple[str, Part]]:
        attention = cut(block.attention_dim, self.attention_dim)
        hidden = cut(block.mlp_dim, self.mlp_dim)
        yield from _layer_parts("norm1", self.norm1, embed)
        for part, layers in (("q", self.q), ("k", self.k), ("v", self.v)):
            layer = layers[_SHARED] if _SHARED in layers else layers[str(block.heads)]
            yield from _layer_parts(f"attn.{part}", layer, attention, embed)
        yield from _layer_parts("attn.proj", self.proj, embed, attention)
        yield from _layer_parts("norm2", self.norm2, embed)
        yield from _layer_parts("mlp.fc1", self.fc1, hidden, embed)
        yield from _layer_parts("mlp.fc2", self.fc2, embed, hidden)


def _layer_parts(name: str, layer: nn.Module, *channels: Channels | None) -> Iterator[tuple[str, Part]]:
    for kind, cut in (("weight", channels), ("bias", channels[:1])):
        yield f"{name}.{kind}", Part(getattr(layer, kind), cut)


# What a subnet uses, found once for the passes of a step, or of a score, and for what follows them. By network, and not
# in it: a copy of a network has weights of its own.
_PARTS: WeakKeyDictionary[SuperNet, dict[tuple[Architecture, Side], Mapping[str, Part]]] = WeakKeyDictionary()
_MOST_PARTS = 64
