"""Coarser tokens from the same weights: As-ViT's progressive tokenisation (Chen et al., ICLR 2022, arXiv 2202.11921).

Shape suffixes: B images, N tokens (patches + 1), D embedding dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def coarser_images(images: Tensor, reduce: int, stride: int) -> Tensor:
    """Every `reduce`-th pixel of images [B, C, S, S] along both sides, then zeros up to a multiple of `stride`.

    A convolution of this stride over the result is the one of stride
    `reduce * stride` and dilation `reduce` over the images (and of `reduce`
    times the padding): coarser tokens, each from as many pixels of a wider
    reach. Zeros are the mean colour, and only reach into the last row and
    column of tokens, where `reduce * stride` does not divide S.
    """
    pixels = images[..., ::reduce, ::reduce]
    missing = -pixels.shape[-1] % stride
    return F.pad(pixels, (0, missing, 0, missing)) if missing else pixels


def coarser_positions(pos_embed_1ND: Tensor, reduce: int) -> Tensor:
    """Position embeddings of coarser tokens, [1, n, D]: each the mean of those whose places it takes.

    The first, of the class token, stays. Of a mean, every position gets the
    gradient, and on every device the same one in every run, which backward
    passes of interpolations do not promise on a GPU.
    """
    class_token, patches = pos_embed_1ND[:, :1], pos_embed_1ND[:, 1:]
    side = math.isqrt(patches.shape[1])
    # The last window is cut off at the edge, and the mean is of what is left of it.
    means = F.avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), reduce, ceil_mode=True)
    return torch.cat([class_token, means.flatten(2).transpose(1, 2)], dim=1)
