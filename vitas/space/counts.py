"""Multiply-adds and parameters, from the sums that decide them.

For a given patch size and embedding dim, the cost of a network is linear in
the sum of its attention dims and the sum of its MLP dims. Every function here
takes those sums as integers or as integer arrays (one entry an architecture),
so one formula serves a single architecture and a whole population.
"""

from __future__ import annotations

import numpy as np

CONVENTIONS = ("true", "released")


def macs(
    patch_size,
    embed_dim,
    attention_total,
    mlp_total,
    image_size: int,
    num_classes: int,
    convention: str = "true",
):
    """Multiply-adds of one forward pass of one image.

    `true` counts what is computed: the class token takes part in every block
    and the classifier runs once. `released` is the count that the ViTAS
    budgets and its published table are in: no class token in the blocks, and
    the classifier once per patch token.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention is {convention!r}; it must be one of {', '.join(CONVENTIONS)}")
    patches = (image_size // patch_size) ** 2
    tokens = patches + 1 if convention == "true" else patches
    classifier_reads = 1 if convention == "true" else patches
    return (
        3 * embed_dim * patch_size**2 * patches
        + attention_per_dim(embed_dim, tokens) * attention_total
        + mlp_per_dim(embed_dim, tokens) * mlp_total
        + embed_dim * num_classes * classifier_reads
    )


def attention_per_dim(embed_dim, tokens):
    """MACs that one dim of attention adds: q, k, v and the projection (4 d T), and both products (2 T^2)."""
    return 4 * embed_dim * tokens + 2 * tokens**2


def mlp_per_dim(embed_dim, tokens):
    """MACs that one hidden dim of an MLP adds."""
    return 2 * embed_dim * tokens


def parameters(
    patch_size,
    embed_dim,
    attention_total,
    mlp_total,
    blocks,
    image_size: int,
    num_classes: int,
):
    """Parameters: projection, class token, positions, `blocks` blocks, last norm and classifier."""
    patches = (image_size // patch_size) ** 2
    stem = 3 * embed_dim * patch_size**2 + embed_dim + embed_dim + (patches + 1) * embed_dim
    # Of a block: two norms (4 d) and the biases of the projection and of fc2 (2 d) do not depend on its widths.
    body = (4 * embed_dim + 3) * attention_total + (2 * embed_dim + 1) * mlp_total + 6 * embed_dim * blocks
    head = 2 * embed_dim + embed_dim * num_classes + num_classes
    return stem + body + head


def as_int(value) -> int:
    """A plain integer from a count of one architecture (JSON and YAML know no numpy)."""
    return int(np.asarray(value).item())
