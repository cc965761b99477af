"""The dense vision transformer of an `Architecture`, as ViTAS retrains it.

Shape suffixes: B images, N tokens (patches, and the class token if there is
one), Q queries (the tokens that something is computed for), D embedding dim,
H heads, d dims of a head.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp, PatchEmbed, trunc_normal_
from torch import Tensor, nn

from vitas.architecture import Architecture, Block, check_patch_size, check_token_reduction
from vitas.models.recomputation import run
from vitas.models.stochastic_depth import StochasticDepth
from vitas.models.token_reduction import coarser_images, coarser_positions

BLOCK_NORM_EPS = 1e-6
# Of the last norm, by family.
LAST_NORM_EPS = {"vitas": 1e-5, "vit": 1e-6}


class Attention(nn.Module):
    """Multi-head self-attention whose attention dim may differ from the embedding dim; `scale` is of its logits."""

    def __init__(self, embed_dim: int, attention_dim: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.qkv = nn.Linear(embed_dim, 3 * attention_dim)
        self.proj = nn.Linear(attention_dim, embed_dim)

    def forward(self, x_BND: Tensor, queries: int | None = None) -> Tensor:
        # q of all tokens: `qkv` stays one layer, which tools hook or replace, and of a network that takes 0.5% more.
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x_BND).chunk(3, dim=-1))
        out_BHQd = F.scaled_dot_product_attention(q[:, :, :queries], k, v, scale=self.scale)
        return self.proj(out_BHQd.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each on the residual stream with stochastic depth.

    Tokens [B, N, D] -> [B, Q, D], the first `queries` of them; None is all.
    """

    def __init__(self, embed_dim: int, block: Block, scale: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=BLOCK_NORM_EPS)
        self.attn = Attention(embed_dim, block.attention_dim, block.heads, scale)
        self.norm2 = nn.LayerNorm(embed_dim, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(embed_dim, block.mlp_dim)
        self.drop_path = StochasticDepth(drop_path_rate)

    def forward(self, x_BND: Tensor, queries: int | None = None) -> Tensor:
        x_BQD = self.drop_path(x_BND, lambda x: self.attn(self.norm1(x), queries), queries)
        return self.drop_path(x_BQD, lambda x: self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """The dense network of an architecture.

    architecture: its identities are left out, but count as positions for
        stochastic depth.
    num_classes: outputs of the classifier.
    image_size: side of the square input images, a multiple of the patch size.
    drop_path_rate: stochastic depth of the last position; it grows linearly from 0.

    Images [B, 3, image_size, image_size] -> logits [B, num_classes].
    Raises `UserError` if the patches do not tile the image.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        image_size: int = 224,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_patch_size(architecture.patch_size, image_size)
        self.architecture = architecture
        self.num_classes = num_classes
        self.image_size = image_size
        self.token_reduction = 1
        self.grad_checkpointing = False
        dim = architecture.embed_dim
        self.patch_embed = PatchEmbed(image_size, architecture.patch_size, embed_dim=dim)
        # None, as in timm, where there is no class token.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if architecture.prefix_tokens else None
        positions = self.patch_embed.num_patches + architecture.prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        rates = torch.linspace(0, drop_path_rate, max(len(architecture.blocks), 1), device="cpu").tolist()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, block, architecture.attention_scale(block), rate)
            for block, rate in zip(architecture.blocks, rates, strict=False)
            if not block.is_identity
        )
        self.norm: nn.Module = nn.LayerNorm(dim, eps=LAST_NORM_EPS[architecture.family])
        self.head: nn.Module = nn.Linear(dim, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        architecture = self.architecture
        x_BQD = self.forward_features(images, tokens_read(architecture.classifier))
        return self.head(read_out(x_BQD, architecture.classifier, architecture.prefix_tokens))

    def forward_features(self, images: Tensor, queries: int | None = None) -> Tensor:
        """Images [B, 3, image_size, image_size] -> normalised tokens [B, N, D], a class token first.

        queries: only the first so many, [B, Q, D]. Of the last block, the others then take keys and values alone.
        """
        x_BND = self.embed(images)
        for i, block in enumerate(self.blocks, start=1):
            asked = queries if i == len(self.blocks) else None
            x_BND = run(partial(block, queries=asked), x_BND, self.grad_checkpointing)
        # A network without blocks has all tokens still.
        return self.norm(x_BND[:, :queries])

    def embed(self, images: Tensor) -> Tensor:
        """Images -> tokens [B, N, D] with position embeddings, the input of the first block."""
        reduce = self.token_reduction
        if reduce == 1:
            x_BND = self.patch_embed(images)
        else:
            images = coarser_images(images, reduce, self.patch_embed.patch_size[0])
            x_BND = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        prefix = 0
        if self.cls_token is not None:
            x_BND, prefix = torch.cat([self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND], dim=1), 1
        # Computed last, so that gradients are ready in one order at any reduction, as DistributedDataParallel needs.
        return x_BND + (self.pos_embed if reduce == 1 else coarser_positions(self.pos_embed, reduce, prefix))

    def set_token_reduction(self, reduce: int = 1) -> None:
        """Use coarser tokens from now on, with the same weights; 1 is full tokens again.

        The stride of the patch projection is `reduce` times the patch size and
        its dilation `reduce`, so there are ceil(image_size / patch_size / reduce)
        tokens along a side; each has the mean of the position embeddings that it
        covers. This is As-ViT's progressive tokenisation (Chen et al., ICLR 2022).

        Raises `UserError` if the image has too few tokens for the reduction.
        """
        check_token_reduction(self.patch_embed.grid_size[0], reduce)
        self.token_reduction = reduce

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, which computes the rest again (timm's convention)."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more dimensions without weight decay (timm's convention)."""
        return {"cls_token", "pos_embed"}


def tokens_read(classifier: str) -> int | None:
    """How many tokens, from the first one on, the classifier reads: the class token alone, or None, which is all."""
    return 1 if classifier == "token" else None


def read_out(x_BND: Tensor, classifier: str, prefix_tokens: int = 1) -> Tensor:
    """Normalised tokens [B, N, D] -> the input of the classifier [B, D]: the class token, or the mean of the patches.

    prefix_tokens: class tokens before the patches.
    """
    return x_BND[:, 0] if classifier == "token" else x_BND[:, prefix_tokens:].mean(dim=1)


def init_weights(model: nn.Module) -> None:
    """DeiT's initialisation: truncated normal 0.02 for matrices and embeddings, zero biases.

    The patch projection keeps PyTorch's default, as in DeiT.
    """
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "bias" and "patch_embed" not in name:
            nn.init.zeros_(parameter)
        elif parameter.ndim in (2, 3) and leaf in ("weight", "cls_token", "pos_embed"):
            trunc_normal_(parameter, std=0.02)
