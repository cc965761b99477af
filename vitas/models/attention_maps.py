"""Where a vision transformer looks: the attention of its last block, as a map over the patches."""

from __future__ import annotations

import torch
from torch import Tensor

from vitas.models.vision_transformer import TransformerBlock, VisionTransformer


@torch.inference_mode()
def attention_maps(network: VisionTransformer, images: Tensor) -> Tensor:
    """How the attention of the last block is spread over the patches, [B, rows, columns] with sums of 1.

    Of the class token where the classifier reads it (as Caron et al. show it, ICCV 2021), else of all patches on
    average; the mean of the heads. images: normalised, [B, 3, H, W]. A network without blocks has even maps.
    """
    architecture = network.architecture
    x_BND = network.embed(images)
    side, prefix = network.patch_embed.grid_size[0], architecture.prefix_tokens
    if not len(network.blocks):
        return torch.full((len(images), side, side), 1 / side**2, device=images.device)
    for block in network.blocks[:-1]:
        x_BND = block(x_BND)
    last: TransformerBlock = network.blocks[-1]  # type: ignore[assignment]  # to torch, a list of any modules
    q_BHNd, k_BHNd, _ = (
        t.unflatten(-1, (last.attn.heads, -1)).transpose(1, 2)
        for t in last.attn.qkv(last.norm1(x_BND)).chunk(3, dim=-1)
    )
    reads = slice(0, 1) if architecture.classifier == "token" else slice(prefix, None)
    weights_BHQN = (q_BHNd[:, :, reads] @ k_BHNd.mT * last.attn.scale).softmax(dim=-1)
    map_BN = weights_BHQN.mean(dim=(1, 2))[:, prefix:]
    return (map_BN / map_BN.sum(dim=1, keepdim=True)).unflatten(1, (side, side)).float()
