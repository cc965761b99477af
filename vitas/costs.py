"""What an architecture costs: MACs and parameters, from the sums that decide them.

For a given patch size and embedding dim, both are linear in the sum of the
attention dims and the sum of the MLP dims. The functions take those sums as
integers or as integer arrays (one entry an architecture), so one formula serves
a single architecture and a population.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

# Of numbers, truth values or texts; where one is named, it says of which, and its shape.
Array: TypeAlias = NDArray[Any]
# Of one architecture, or of several [population].
Amount = TypeVar("Amount", int, NDArray[np.int64])

# How MACs are counted: of all tokens, or as in ViTAS's budgets and tables.
CONVENTIONS = ("true", "released")


def count_macs(
    patch_size: Amount,
    embed_dim: Amount,
    attention_total: Amount,
    mlp_total: Amount,
    image_size: int,
    num_classes: int,
    convention: str = "true",
    prefix_tokens: int = 1,
) -> Amount:
    """MACs (multiply-adds) of the forward pass of one image.

    `true` counts all tokens in all blocks, the class token too, and the
    classifier once. `released` is the count of ViTAS's budgets and published
    table: no class token in the blocks, and the classifier once per patch
    token. prefix_tokens: 1 with a class token, 0 without.

    As in published counts, the last block counts as the others do. Where the
    class token alone is read, a network computes less of that block
    (`VisionTransformer.forward_features`), so a profiler shows less.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; it must be one of {', '.join(CONVENTIONS)}")
    patches = (image_size // patch_size) ** 2
    tokens = patches + prefix_tokens if convention == "true" else patches
    classifier_reads = 1 if convention == "true" else patches
    macs: Amount = (
        3 * embed_dim * patch_size**2 * patches
        + attention_macs_per_dim(embed_dim, tokens) * attention_total
        + mlp_macs_per_dim(embed_dim, tokens) * mlp_total
        + embed_dim * num_classes * classifier_reads
    )
    return macs


def attention_macs_per_dim(embed_dim: Amount, tokens: Amount) -> Amount:
    """MACs per attention dim (T tokens): q, k, v and the projection take 4 d T, both products take 2 T^2."""
    return 4 * embed_dim * tokens + 2 * tokens**2


def mlp_macs_per_dim(embed_dim: Amount, tokens: Amount) -> Amount:
    """MACs per hidden dim of an MLP."""
    return 2 * embed_dim * tokens


def count_parameters(
    patch_size: Amount,
    embed_dim: Amount,
    attention_total: Amount,
    mlp_total: Amount,
    blocks: Amount,
    image_size: int,
    num_classes: int,
    prefix_tokens: int = 1,
) -> Amount:
    """Parameters: patch projection, class token, position embedding, `blocks` blocks, last norm and classifier."""
    patches = (image_size // patch_size) ** 2
    stem = 3 * embed_dim * patch_size**2 + embed_dim + (patches + 2 * prefix_tokens) * embed_dim
    # 6 d per block, whatever its widths: two norms (4 d), the biases of the projection and of fc2 (2 d).
    body = (4 * embed_dim + 3) * attention_total + (2 * embed_dim + 1) * mlp_total + 6 * embed_dim * blocks
    head = 2 * embed_dim + embed_dim * num_classes + num_classes
    parameters: Amount = stem + body + head
    return parameters
