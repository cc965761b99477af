"""The peer: Torch-Pruning (pip install 'vitas[bench]') with isomorphic ranking, as its authors prune timm's ViTs.

Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024. Channels of the
embedding, whole heads and MLP units are ranked by its group Taylor importance,
each kind over all blocks; the ratio is the one that meets the budget.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
import torch_pruning as tp
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from vitas import VisionTransformer
from vitas.config import Model
from vitas.pretrained import Images, from_timm


class PrunableAttention(nn.Module):
    """timm's attention, whose shapes follow its layers: pruning changes these alone."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))


def as_timm(network: VisionTransformer) -> TimmTransformer:
    """The same network as timm has it."""
    architecture = network.architecture
    block = architecture.blocks[0]
    result = TimmTransformer(
        img_size=network.image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.embed_dim,
        depth=architecture.depth,
        num_heads=block.heads,
        mlp_ratio=block.mlp_dim / architecture.embed_dim,
        num_classes=network.num_classes,
    )
    result.load_state_dict(network.state_dict())
    return result.eval()


def prune_isomorphic(network: VisionTransformer, images: Tensor, labels: Tensor, macs: int) -> VisionTransformer:
    """The network pruned to at most so many MACs, by the largest ratio that keeps more of it than any smaller one."""
    size, classes = network.image_size, network.num_classes
    low, high, best = 0.0, 0.95, None
    for _ in range(10):
        ratio = (low + high) / 2
        found = _pruned(network, images, labels, ratio)
        if found.architecture.macs(size, classes) <= macs:
            best, high = found, ratio
        else:
            low = ratio
    if best is None:
        raise ValueError(f"no ratio up to 0.95 leaves {macs:,} MACs")
    return best


def _pruned(network: VisionTransformer, images: Tensor, labels: Tensor, ratio: float) -> VisionTransformer:
    model = as_timm(copy.deepcopy(network))
    for block in model.blocks:
        block.attn = PrunableAttention(block.attn)
    pruner = tp.pruner.BasePruner(
        model,
        images[:2],
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=ratio,
        ignored_layers=[model.head],
        num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        # A block of no heads or units is none.
        max_pruning_ratio=0.9,
    )
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    pruner.step()
    for block in model.blocks:
        # By what is left: where all heads of a block were to go, it counts none and leaves them all.
        block.attn.num_heads = block.attn.qkv.out_features // (3 * block.attn.head_dim)
    return _ours(model, network)


def _ours(model: TimmTransformer, network: VisionTransformer) -> VisionTransformer:
    """What is left, as a network of this project."""
    plain = as_timm(network)
    plain.patch_embed, plain.cls_token, plain.pos_embed = model.patch_embed, model.cls_token, model.pos_embed
    plain.norm, plain.head = model.norm, model.head
    plain.embed_dim = model.norm.normalized_shape[0]
    for ours, theirs in zip(plain.blocks, model.blocks, strict=True):
        ours.norm1, ours.norm2, ours.mlp = theirs.norm1, theirs.norm2, theirs.mlp
        ours.attn.qkv, ours.attn.proj, ours.attn.num_heads = theirs.attn.qkv, theirs.attn.proj, theirs.attn.num_heads
    run = Model()
    found, _ = from_timm(plain, Images(network.image_size, network.num_classes, run.mean, run.std))
    return found.eval()
