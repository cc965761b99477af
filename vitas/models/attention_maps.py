"""Where a transformer looks: the attention of its last block, as a map over the patches.

Shape suffixes: B images, W windows, N tokens, H heads, Q queries, d dims of a head, D dims of the residual stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitas.models.staged_transformer import StagedBlock, StagedTransformer, image_of_windows, windows_of_image
from vitas.models.vision_transformer import TransformerBlock, VisionTransformer


@torch.inference_mode()
def attention_maps(network: VisionTransformer | StagedTransformer, images: Tensor) -> Tensor:
    """How the attention of the last block is spread over the patches, [B, rows, columns] with sums of 1.

    Of the class token where the classifier reads it (as Caron et al. show it, ICCV 2021), else of all patches on
    average; the mean of the heads. Where attention is within windows, each window has an equal share of the map.
    images: normalised, [B, 3, H, W]. A network without blocks has even maps.
    """
    maps = _of_stages(network, images) if isinstance(network, StagedTransformer) else _of_vit(network, images)
    return (maps / maps.sum(dim=(1, 2), keepdim=True)).float()


def _of_vit(network: VisionTransformer, images: Tensor) -> Tensor:
    architecture = network.architecture
    x_BND = network.embed(images)
    side, prefix = network.patch_embed.grid_size[0], architecture.prefix_tokens
    if not len(network.blocks):
        return torch.ones((len(images), side, side), device=images.device)
    for block in network.blocks[:-1]:
        x_BND = block(x_BND)
    last: TransformerBlock = network.blocks[-1]  # type: ignore[assignment]  # to torch, a list of any modules
    q_BHNd, k_BHNd, _ = (
        t.unflatten(-1, (last.attn.heads, -1)).transpose(1, 2)
        for t in last.attn.qkv(last.norm1(x_BND)).chunk(3, dim=-1)
    )
    reads = slice(0, 1) if architecture.classifier == "token" else slice(prefix, None)
    map_BN = _weights(q_BHNd[:, :, reads], k_BHNd, last.attn.scale)[:, prefix:]
    return map_BN.unflatten(1, (side, side))


def _of_stages(network: StagedTransformer, images: Tensor) -> Tensor:
    x_BRRD = network.patch_embed(images)
    for stage in network.layers[:-1]:
        x_BRRD = stage(x_BRRD)
    stage = network.layers[-1]
    x_BWND = windows_of_image(x_BRRD, stage.split)
    for block in stage.blocks[:-1]:
        x_BWND = block(x_BWND)
    last: StagedBlock = stage.blocks[-1]  # type: ignore[assignment]  # to torch, a list of any modules
    q_BWHNd, k_BWHNd, _ = (
        t.transpose(2, 3) for t in last.attn.qkv(last.norm1(x_BWND)).unflatten(-1, (3, last.attn.heads, -1)).unbind(3)
    )
    map_BWN = _weights(q_BWHNd, k_BWHNd, last.attn.scale)
    return image_of_windows(map_BWN.unsqueeze(-1), stage.split).squeeze(-1)


def _weights(q_HQd: Tensor, k_HNd: Tensor, scale: float) -> Tensor:
    """What tokens get of the attention of some queries, [..., N], the mean of the heads and the queries."""
    return (q_HQd @ k_HNd.mT * scale).softmax(dim=-1).mean(dim=(-3, -2))
