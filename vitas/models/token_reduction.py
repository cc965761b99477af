"""Coarser tokens from the same weights: As-ViT's progressive tokenisation (Chen et al., ICLR 2022, arXiv 2202.11921).

Shape suffixes: B images, N tokens, D embedding dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def coarser_images(images: Tensor, reduce: int, stride: int) -> Tensor:
    """Every `reduce`-th pixel of images [B, C, S, S] along both sides, padded with zeros to a multiple of `stride`.

    A convolution with this stride over the result equals one over the images
    with `reduce` times the stride, dilation and padding: it gives coarser
    tokens, each from as many pixels, spread over a wider area. Zeros are the
    mean colour; they are seen only by the last row and column of tokens, if
    `reduce * stride` does not divide S.
    """
    pixels = images[..., ::reduce, ::reduce]
    missing = -pixels.shape[-1] % stride
    return F.pad(pixels, (0, missing, 0, missing)) if missing else pixels


def coarser_positions(pos_embed_1ND: Tensor, reduce: int, prefix_tokens: int = 1) -> Tensor:
    """Position embeddings [1, n, D] of coarser tokens: each is the mean over the positions that it covers.

    The first `prefix_tokens`, the class token's, stay. A mean gives every position a gradient,
    and its backward pass is deterministic, which that of an interpolation need
    not be on a GPU.
    """
    prefix, patches = pos_embed_1ND[:, :prefix_tokens], pos_embed_1ND[:, prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    # With ceil_mode, a window at the edge is the mean over its part inside.
    means = F.avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), reduce, ceil_mode=True)
    return torch.cat([prefix, means.flatten(2).transpose(1, 2)], dim=1)
