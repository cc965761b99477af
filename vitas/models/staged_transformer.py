"""The staged transformer of a `Genotype`, as As-ViT finds and grows it (Chen et al., ICLR 2022, arXiv 2202.11921).

It has four stages, each at half the resolution of the one before. Attention is
within windows. Windows do not shift, and the other layers of a block treat each
token alone, so a stage groups its tokens by window once, for all its blocks.

The names of the parameters are those of the released implementation.

Shape suffixes: B images, W windows, N tokens of a window, H heads, d dims of a
head, D dims of a stage, R tokens along a side of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from vitas.asvit.genotype import STAGE_STRIDE, STEM_STRIDE, Genotype
from vitas.models.recomputation import run
from vitas.models.stochastic_depth import StochasticDepth
from vitas.models.token_reduction import coarser_images


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows; the dims of a head are rounded down."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        head_dim = dim // heads
        self.heads = heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * head_dim * heads)
        self.proj = nn.Linear(head_dim * heads, dim)

    def forward(self, x_BWND: Tensor) -> Tensor:
        qkv = self.qkv(x_BWND).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        out_HNd = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out_HNd.transpose(1, 2).flatten(2).unflatten(0, x_BWND.shape[:2]))


class StagedBlock(nn.Module):
    """Pre-norm window attention and MLP, each on the residual stream with stochastic depth."""

    def __init__(self, dim: int, heads: int, expansion: int, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads)
        # A list of one, for the parameter names of the released implementation, which allows several MLPs.
        self.mlps = nn.ModuleList([nn.Sequential(nn.LayerNorm(dim), Mlp(dim, expansion * dim))])
        self.drop_path = StochasticDepth(drop_path_rate)

    def forward(self, x_BWND: Tensor) -> Tensor:
        x_BWND = self.drop_path(x_BWND, lambda x: self.attn(self.norm1(x)))
        return self.drop_path(x_BWND, self.mlps[0])


class Stem(nn.Module):
    """Images [B, 3, height, width] -> normalised tokens [B, R, R, D], by a convolution of stride 4."""

    def __init__(self, kernel: int, dim: int) -> None:
        super().__init__()
        self.padding = _padding(kernel, STEM_STRIDE)
        self.proj = nn.Conv2d(3, dim, kernel, STEM_STRIDE)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(F.pad(images, 2 * self.padding)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Tokens [B, R, R, D] of a stage -> [B, R/2, R/2, D'] of the next, from overlapping patches of tokens.

    R can be odd after a token reduction; then another row and column of zeros makes it even.
    """

    def __init__(self, kernel: int, dim: int, next_dim: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.padding = _padding(kernel, STAGE_STRIDE)
        self.norm = nn.LayerNorm(kernel**2 * dim)
        self.reduction = nn.Linear(kernel**2 * dim, next_dim, bias=False)

    def forward(self, x_BRRD: Tensor) -> Tensor:
        before, after = self.padding
        x_BRRD = F.pad(x_BRRD, (0, 0) + 2 * (before, after + x_BRRD.shape[1] % STAGE_STRIDE))
        patches = x_BRRD.unfold(1, self.kernel, STAGE_STRIDE).unfold(2, self.kernel, STAGE_STRIDE)
        return self.reduction(self.norm(patches.flatten(3)))


class TransformerStage(nn.Module):
    """The blocks of one resolution, and the projection to the next."""

    def __init__(
        self,
        dim: int,
        heads: int,
        split: int,
        expansion: int,
        drop_path_rates: list[float],
        downsample: Downsample | None,
    ) -> None:
        super().__init__()
        self.split = split
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(StagedBlock(dim, heads, expansion, rate) for rate in drop_path_rates)
        self.downsample = downsample

    def forward(self, x_BRRD: Tensor) -> Tensor:
        x_BWND = windows_of_image(x_BRRD, self.split)
        for block in self.blocks:
            x_BWND = run(block, x_BWND, self.grad_checkpointing)
        x_BRRD = image_of_windows(x_BWND, self.split)
        return x_BRRD if self.downsample is None else self.downsample(x_BRRD)


class StagedTransformer(nn.Module):
    """The network of a genotype.

    num_classes: outputs of the classifier.
    image_size: side of the square input images; the windows must tile every stage.
    drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Images [B, 3, image_size, image_size] -> logits [B, num_classes].
    Raises `UserError` if the image size does not fit.
    """

    def __init__(
        self, genotype: Genotype, num_classes: int = 1000, image_size: int = 224, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        genotype.check_image_size(image_size)
        self.architecture = genotype
        self.num_classes = num_classes
        self.image_size = image_size
        self.token_reduction = 1
        dims, kernels = genotype.dims, [stage.kernel for stage in genotype.stages]
        self.patch_embed = Stem(kernels[0], dims[0])
        downsamples = [Downsample(*sizes) for sizes in zip(kernels[1:], dims[:-1], dims[1:], strict=True)] + [None]
        rates = torch.linspace(0, drop_path_rate, genotype.depth, device="cpu")
        # torch's containers do not say what they hold.
        self.layers: Sequence[TransformerStage] = nn.ModuleList(  # type: ignore[assignment]
            TransformerStage(dim, heads, stage.split, stage.expansion, part.tolist(), downsample)
            for dim, heads, stage, part, downsample in zip(
                dims,
                genotype.stage_heads,
                genotype.stages,
                rates.split([stage.layers for stage in genotype.stages]),
                downsamples,
                strict=True,
            )
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Sequential(nn.Linear(dims[-1], dims[-1]), nn.Tanh(), nn.Linear(dims[-1], num_classes))
        self.apply(_init_weights)

    def set_token_reduction(self, reduce: int = 1) -> None:
        """Use coarser tokens from now on, with the same weights; 1 is full tokens again.

        Stride, dilation and padding of the stem are `reduce` times larger, so
        the first stage has ceil(image_size / 4 / reduce) tokens along a side,
        and each further stage half as many, rounded up. A stage keeps its split,
        or takes the next smaller one that divides its tokens (`Genotype.splits`).
        This is As-ViT's progressive tokenisation (Chen et al., ICLR 2022).

        Raises `UserError` if the image has too few tokens for the reduction.
        """
        splits = self.architecture.splits(self.image_size, reduce)
        self.token_reduction = reduce
        for stage, split in zip(self.layers, splits, strict=True):
            stage.split = split

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, which computes the rest again (timm's convention)."""
        for stage in self.layers:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more dimensions without weight decay (timm's convention): none."""
        return set()

    def forward_features(self, images: Tensor) -> Tensor:
        """The mean over the last stage's tokens before the last norm [B, D], which As-ViT's scores are computed on."""
        return self._tokens(images).mean(dim=(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self._tokens(images)).mean(dim=(1, 2)))

    def _tokens(self, images: Tensor) -> Tensor:
        if self.token_reduction > 1:
            images = coarser_images(images, self.token_reduction, STEM_STRIDE)
        x_BRRD = self.patch_embed(images)
        for stage in self.layers:
            x_BRRD = stage(x_BRRD)
        return x_BRRD


def _padding(kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, so that a kernel of any size gives resolution / stride tokens; the odd one goes after."""
    return (kernel - stride) // 2, (kernel - stride + 1) // 2


def windows_of_image(x_BRRD: Tensor, split: int) -> Tensor:
    """[B, R, R, D] -> [B, split^2, (R / split)^2, D]"""
    parts = x_BRRD.unflatten(2, (split, -1)).unflatten(1, (split, -1))
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def image_of_windows(x_BWND: Tensor, split: int) -> Tensor:
    """[B, split^2, N, D] -> [B, R, R, D], the inverse of `windows_of_image`."""
    side = round(x_BWND.shape[2] ** 0.5)
    parts = x_BWND.unflatten(2, (side, side)).unflatten(1, (split, split))
    return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _init_weights(module: nn.Module) -> None:
    """Truncated normal 0.02 for matrices, zero biases; the stem's convolution keeps PyTorch's default, as released."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
