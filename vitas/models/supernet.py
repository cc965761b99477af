"""The weight-sharing supernet: one set of weights, every architecture of a space.

A forward pass uses views of the widest weights, never copies. Which channels a
width c of C uses is decided by the sharing scheme and the side:

    ordinal    (AutoSlim, AutoFormer)  left: the first c
    bilateral  (BCNet)                 left: the first c; right: the last c

so that over all widths, both sides together use every channel equally often.
The i-th block of an architecture that computes something is the i-th block
here: one depth is one set of blocks, wherever the identities stood.

Shape suffixes: B images, N tokens (patches + 1), D embedding dim in use,
A attention dim in use, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.errors import UserError
from vitas.models.vision_transformer import (
    BLOCK_NORM_EPS,
    LAST_NORM_EPS,
    VisionTransformer,
    attention_scale,
    init_weights,
    read_out,
)
from vitas.space import Architecture, Block, SearchSpace, check_patch_size

SIDES = {"ordinal": ("left",), "bilateral": ("left", "right")}
# Which of q and k, and of v, are private to each head count.
QKV_MODES = {0: (False, False), 1: (False, True), 2: (True, False)}
_SHARED = "shared"


class Slice(NamedTuple):
    """A part of a parameter that a subnet uses."""

    parameter: nn.Parameter
    index: tuple[slice, ...]

    @property
    def view(self) -> Tensor:
        return self.parameter[self.index]


class SuperNet(nn.Module):
    """All architectures of a space in one set of weights.

    space: what may be searched.
    num_classes, image_size: as of the dense networks.
    sharing: `bilateral` (BCNet) or `ordinal` (AutoSlim).
    qkv_mode: what each head count has of its own: 2 q and k, 1 v, 0 nothing.

    Class token, position embedding and patch projection are private to each
    patch size. Raises `UserError` for an unknown scheme or mode, and for
    patches that do not tile the image.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int = 1000,
        image_size: int = 224,
        sharing: str = "bilateral",
        qkv_mode: int = 2,
    ) -> None:
        super().__init__()
        if sharing not in SIDES:
            raise UserError(f"sharing: found {sharing!r}; it must be {' or '.join(SIDES)}")
        if qkv_mode not in QKV_MODES:
            raise UserError(f"qkv_mode: found {qkv_mode!r}; it must be 0, 1 or 2")
        self.space = space
        self.num_classes = num_classes
        self.image_size = image_size
        self.sharing = sharing
        self.qkv_mode = qkv_mode
        self.stems = nn.ModuleDict({str(p): PatchStem(p, image_size, space.embed_dims[-1]) for p in space.patch_sizes})
        self.blocks = nn.ModuleList(SuperBlock(space, qkv_mode) for _ in range(space.depth))
        self.norm = nn.LayerNorm(space.embed_dims[-1])
        self.head = nn.Linear(space.embed_dims[-1], num_classes)
        init_weights(self)

    @property
    def sides(self) -> tuple[str, ...]:
        """The passes of a training step, and the parts of a score."""
        return SIDES[self.sharing]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters of more than one dimension that are no matrices (timm's convention)."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    def forward(self, images: Tensor, architecture: Architecture, side: str = "left") -> Tensor:
        """Logits [B, num_classes] of a subnet for images [B, 3, image_size, image_size]."""
        weights = {name: part.view for name, part in self.slices(architecture, side).items()}
        dim = architecture.embed_dim

        def layer_norm(x: Tensor, name: str, eps: float) -> Tensor:
            return F.layer_norm(x, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        patches = F.conv2d(
            images,
            weights["patch_embed.proj.weight"],
            weights["patch_embed.proj.bias"],
            stride=architecture.patch_size,
        )
        class_token = weights["cls_token"].expand(images.shape[0], -1, -1)
        x_BND = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1) + weights["pos_embed"]
        for i, block in enumerate(architecture.active_blocks):
            name = f"blocks.{i}"
            y_BND = layer_norm(x_BND, f"{name}.norm1", BLOCK_NORM_EPS)
            q, k, v = (
                linear(y_BND, f"{name}.attn.{part}").unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in "qkv"
            )
            out_BHNd = F.scaled_dot_product_attention(q, k, v, scale=attention_scale(dim, block.heads))
            x_BND = x_BND + linear(out_BHNd.transpose(1, 2).flatten(2), f"{name}.attn.proj")
            y_BND = layer_norm(x_BND, f"{name}.norm2", BLOCK_NORM_EPS)
            x_BND = x_BND + linear(F.gelu(linear(y_BND, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        x_BND = layer_norm(x_BND, "norm", LAST_NORM_EPS)
        return linear(read_out(x_BND, architecture.classifier), "head")

    def slices(self, architecture: Architecture, side: str = "left") -> dict[str, Slice]:
        """The parts of the weights that a subnet uses, under the dense network's names.

        q, k and v, one matrix in the dense network, are three here. Raises
        `UserError` for an architecture outside the space or a side that the
        sharing scheme does not have.
        """
        if side not in self.sides:
            raise UserError(f"side {side!r}: {self.sharing} sharing has {' and '.join(self.sides)}")
        self.space.encode(architecture)
        return dict(self._slices(architecture, side))

    def _slices(self, architecture: Architecture, side: str) -> Iterator[tuple[str, Slice]]:
        every = slice(None)
        embed = _channels(architecture.embed_dim, self.space.embed_dims[-1], side)
        stem = self.stems[str(architecture.patch_size)]
        yield "cls_token", Slice(stem.cls_token, (every, every, embed))
        yield "pos_embed", Slice(stem.pos_embed, (every, every, embed))
        yield from _layer_slices("patch_embed.proj", stem.patch_embed, embed)
        for i, block in enumerate(architecture.active_blocks):
            for name, part in self.blocks[i].slices(block, embed, side):
                yield f"blocks.{i}.{name}", part
        yield from _layer_slices("norm", self.norm, embed)
        yield from _layer_slices("head", self.head, every, embed)

    @torch.no_grad()
    def extract(self, architecture: Architecture, side: str = "left") -> VisionTransformer:
        """The dense network of an architecture with its inherited weights: the same logits, to rounding."""
        dense = VisionTransformer(architecture, self.num_classes, self.image_size)
        state = {name: part.view for name, part in self.slices(architecture, side).items()}
        for i in range(architecture.depth):
            for kind in ("weight", "bias"):
                rows = [state.pop(f"blocks.{i}.attn.{part}.{kind}") for part in "qkv"]
                state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(rows)
        dense.load_state_dict(state)
        return dense.to(self.head.weight.device).train(self.training)


class PatchStem(nn.Module):
    """What is private to a patch size: projection, class token and position embedding, at full width."""

    def __init__(self, patch_size: int, image_size: int, embed_dim: int) -> None:
        super().__init__()
        check_patch_size(patch_size, image_size)
        patches = (image_size // patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, embed_dim))


class SuperBlock(nn.Module):
    """The weights of one block at full width. q, k and v are cut separately: a row means the same at every width."""

    def __init__(self, space: SearchSpace, qkv_mode: int) -> None:
        super().__init__()
        self.embed_dim, self.attention_dim, self.mlp_dim = (
            space.embed_dims[-1],
            space.attention_dims[-1],
            space.mlp_dims[-1],
        )

        def projections(private: bool) -> nn.ModuleDict:
            keys = [str(heads) for heads in space.heads] if private else [_SHARED]
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

    def slices(self, block: Block, embed: slice, side: str) -> Iterator[tuple[str, Slice]]:
        attention = _channels(block.attention_dim, self.attention_dim, side)
        hidden = _channels(block.mlp_dim, self.mlp_dim, side)
        yield from _layer_slices("norm1", self.norm1, embed)
        for part, layers in (("q", self.q), ("k", self.k), ("v", self.v)):
            layer = layers[_SHARED] if _SHARED in layers else layers[str(block.heads)]
            yield from _layer_slices(f"attn.{part}", layer, attention, embed)
        yield from _layer_slices("attn.proj", self.proj, embed, attention)
        yield from _layer_slices("norm2", self.norm2, embed)
        yield from _layer_slices("mlp.fc1", self.fc1, hidden, embed)
        yield from _layer_slices("mlp.fc2", self.fc2, embed, hidden)


def _channels(width: int, maximum: int, side: str) -> slice:
    return slice(0, width) if side == "left" else slice(maximum - width, maximum)


def _layer_slices(name: str, layer: nn.Module, *index: slice) -> Iterator[tuple[str, Slice]]:
    yield f"{name}.weight", Slice(layer.weight, index)
    yield f"{name}.bias", Slice(layer.bias, index[:1])
