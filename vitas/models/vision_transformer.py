"""The dense vision transformer of an `Architecture`, as ViTAS retrains it.

Shape suffixes: B images, N tokens (patches + 1), D embedding dim, A attention
dim, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitas.errors import UserError
from vitas.models.tokens import coarser_images, coarser_positions
from vitas.space import Architecture, Block, check_patch_size
from vitas.space.tokens import check_token_reduction, coarser

BLOCK_NORM_EPS = 1e-6
LAST_NORM_EPS = 1e-5
# timm's words for what the classifier reads, and ours; "" is timm's for all tokens, which no Architecture says.
CLASSIFIER_OF_POOL = {"token": "token", "avg": "mean"}
POOL_OF_CLASSIFIER = {classifier: pool for pool, classifier in CLASSIFIER_OF_POOL.items()}


def attention_scale(embed_dim: int, heads: int) -> float:
    """The released networks scale by the embedding dim's share of a head, not by the head's own dim."""
    return (embed_dim // heads) ** -0.5


class Attention(nn.Module):
    """Multi-head self-attention whose attention dim is free of the embedding dim."""

    def __init__(self, embed_dim: int, attention_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = attention_scale(embed_dim, heads)
        self.qkv = nn.Linear(embed_dim, 3 * attention_dim)
        self.proj = nn.Linear(attention_dim, embed_dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x_BND).chunk(3, dim=-1))
        out_BHNd = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out_BHNd.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each on the residual stream with stochastic depth."""

    def __init__(self, embed_dim: int, block: Block, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=BLOCK_NORM_EPS)
        self.attn = Attention(embed_dim, block.attention_dim, block.heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(embed_dim, block.mlp_dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.drop_path(self.attn(self.norm1(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm2(x_BND)))


class VisionTransformer(nn.Module):
    """The dense network of an architecture, with the attributes and methods of timm's vision transformers.

    architecture: what to build; its identities cost nothing but still count
        as positions along which stochastic depth grows.
    num_classes: outputs of the classifier; 0 leaves it out.
    image_size: side of the square input images, a multiple of the patch size.
    drop_path_rate: stochastic depth of the last position; it grows linearly from 0.
    in_chans: channels of the images.
    global_pool: what the classifier reads, in timm's words: `token`, `avg`, or
        "" (every token by itself); None is as the architecture says.
    drop_rate: dropout before the classifier.

    Images [B, in_chans, image_size, image_size] -> logits [B, num_classes].
    Raises `UserError` where the patches do not tile the image, or for another pooling.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        image_size: int = 224,
        drop_path_rate: float = 0.0,
        *,
        in_chans: int = 3,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_patch_size(architecture.patch_size, image_size)
        self._architecture = architecture
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self.global_pool = POOL_OF_CLASSIFIER[architecture.classifier] if global_pool is None else _pool(global_pool)
        self.grad_checkpointing = False
        self.token_reduction = 1
        dim = architecture.embed_dim
        self.num_features = self.head_hidden_size = self.embed_dim = dim
        self.patch_embed = PatchEmbed(image_size, architecture.patch_size, in_chans, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, dim))
        rates = torch.linspace(0, drop_path_rate, max(len(architecture.blocks), 1), device="cpu").tolist()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, block, rate)
            for block, rate in zip(architecture.blocks, rates, strict=False)
            if not block.is_identity
        )
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": dim, "reduction": architecture.patch_size}
            for i in range(len(self.blocks))
        ]
        self.norm = nn.LayerNorm(dim, eps=LAST_NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        init_weights(self)

    @property
    def architecture(self) -> Architecture | None:
        """What this network is an instance of; None where no `Architecture` says it.

        That is so while nothing is pooled (`global_pool` is "") or the last
        norm is pruned away. Pooling and blocks changed later are in it.
        """
        if not self.global_pool or isinstance(self.norm, nn.Identity):
            return None
        return replace(self._architecture, classifier=CLASSIFIER_OF_POOL[self.global_pool])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, image_size, image_size] -> normalised tokens [B, N, D], the class token first."""
        x_BND = self._embed(images)
        for block in self.blocks:
            x_BND = self._run(block, x_BND)
        return self.norm(x_BND)

    def forward_head(self, x_BND: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalised tokens [B, N, D] -> logits [B, C], or with `pre_logits` what the classifier reads [B, D].

        Where nothing is pooled, both are of every token: [B, N, C] and [B, N, D].
        """
        x = self.head_drop(read_out(x_BND, CLASSIFIER_OF_POOL[self.global_pool]) if self.global_pool else x_BND)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list | tuple[Tensor, list]:
        """What blocks put out, as timm's networks give it: (normalised tokens of the last block, outputs).

        indices: the last so many blocks (int), these (negative ones from the end), or all.
        return_prefix_tokens: each output is a pair, with the class token [B, 1, D].
        norm: the last norm is applied to outputs too.
        stop_early: blocks after the last one asked for are not run.
        output_fmt: patch tokens as `NCHW` [B, D, rows, columns], or `NLC` [B, N - 1, D].
        intermediates_only: the list of outputs alone.

        Outputs are in the order of the blocks. Raises `UserError` for a block or format that there is not.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt: found {output_fmt!r}; it must be NCHW or NLC")
        taken = self._block_indices(indices)
        x_BND = self._embed(images)
        outputs = []
        for i, block in enumerate(self.blocks[: max(taken) + 1] if stop_early else self.blocks):
            x_BND = self._run(block, x_BND)
            if i in taken:
                tokens = self.norm(x_BND) if norm else x_BND
                class_token, patches = tokens[:, :1], tokens[:, 1:]
                if output_fmt == "NCHW":
                    side = coarser(self.patch_embed.grid_size[0], self.token_reduction)
                    patches = patches.transpose(1, 2).unflatten(-1, (side, side)).contiguous()
                outputs.append((patches, class_token) if return_prefix_tokens else patches)
        return outputs if intermediates_only else (self.norm(x_BND), outputs)

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list:
        """`forward_intermediates` under DINO's name: the outputs of the last `n` blocks, or of these."""
        output_fmt = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(
            images, n, return_prefix_tokens, norm, output_fmt=output_fmt, intermediates_only=True
        )

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one of `indices`, and the last norm and the classifier if asked to.

        Returns the indices, none negative. Raises `UserError` for a block that there is not.
        """
        taken = self._block_indices(indices)
        kept = max(taken) + 1
        self.blocks = self.blocks[:kept]
        positions = [i for i, block in enumerate(self._architecture.blocks) if not block.is_identity]
        self._architecture = replace(self._architecture, blocks=self._architecture.blocks[: positions[kept - 1] + 1])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer: `nn.Linear`, or `nn.Identity` where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in the place of the old one, or none for 0 classes.

        global_pool: `token`, `avg` or "" (see the class); None leaves it as it is.
        """
        if global_pool is not None:
            self.global_pool = _pool(global_pool)
        self.num_classes = num_classes
        if num_classes:
            like = self.cls_token
            self.head = nn.Linear(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            init_weights(self.head)
        else:
            self.head = nn.Identity()
        self.head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, which computes the rest again."""
        self.grad_checkpointing = enable

    def set_token_reduction(self, reduce: int = 1) -> None:
        """Make coarser tokens of the images from now on, with the same weights; 1 is full tokens again.

        The stride of the patch projection is `reduce` times the patch size and
        its dilation `reduce`, so there are ceil(image_size / patch_size / reduce)
        tokens along a side; each has the mean of the position embeddings whose
        places it takes. As-ViT's progressive tokenisation (Chen et al., ICLR 2022).

        Raises `UserError` for a reduction that there are too few tokens for.
        """
        check_token_reduction(self.patch_embed.grid_size[0], reduce)
        self.token_reduction = reduce

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters of more than one dimension that are no matrices (timm's convention)."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter names as patterns, by depth: timm's layer-wise learning rate decay goes by it."""
        # 99999 is timm's mark for "as the group before": the last norm goes with the last block.
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _embed(self, images: Tensor) -> Tensor:
        reduce = self.token_reduction
        if reduce == 1:
            x_BND = self.patch_embed(images)
        else:
            images = coarser_images(images, reduce, self._architecture.patch_size)
            x_BND = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x_BND = torch.cat([self.cls_token.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        # Last, as of full tokens: gradients are then ready in the same order, in which several processes reduce them.
        return x_BND + (self.pos_embed if reduce == 1 else coarser_positions(self.pos_embed, reduce))

    def _run(self, block: nn.Module, x_BND: Tensor) -> Tensor:
        return checkpoint(block, x_BND, use_reentrant=False) if self.grad_checkpointing else block(x_BND)

    def _block_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.blocks)
        if indices is None or isinstance(indices, int):
            last = count if indices is None else indices
            wanted = range(count - last, count) if last > 0 else ()
        else:
            wanted = [count + i if i < 0 else i for i in indices]
        if not wanted or not all(0 <= i < count for i in wanted):
            raise UserError(f"indices: found {indices!r}; this network has {count} blocks")
        return list(wanted)


def _pool(name: str) -> str:
    if name and name not in CLASSIFIER_OF_POOL:
        raise UserError(f"global_pool: found {name!r}; it must be token, avg or '' (nothing is pooled)")
    return name


def read_out(x_BND: Tensor, classifier: str) -> Tensor:
    """What the classifier reads of the normalised tokens [B, N, D] -> [B, D]."""
    return x_BND[:, 0] if classifier == "token" else x_BND[:, 1:].mean(dim=1)


def init_weights(model: nn.Module) -> None:
    """DeiT's initialisation: truncated normal 0.02 for matrices and embeddings, zero biases.

    The patch projection keeps the convolution's own default, as in DeiT.
    """
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "bias" and "patch_embed" not in name:
            nn.init.zeros_(parameter)
        elif parameter.ndim in (2, 3) and leaf in ("weight", "cls_token", "pos_embed"):
            trunc_normal_(parameter, std=0.02)
