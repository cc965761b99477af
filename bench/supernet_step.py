"""A training step of a subnet beside one of the dense network of the same shape: forward, backward, optimizer.

The limit is 1: views of the supernet's weights should cost what the network's own weights do. A bilateral step has two
passes, and is compared with two dense ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import BATCH, autocast, batch, dense_logits, shared_logits, subnets, supernet
from .rounds import in_turn, ratio


def measure(count: int = 2, rounds: int = 5) -> list[dict[str, Any]]:
    """A row for each sharing scheme: all rounds of `count` subnets."""
    images, labels = batch()
    rows = []
    for sharing in ("ordinal", "bilateral"):
        shared = supernet(sharing).train()
        ours, theirs = [], []
        optimizer = optimizer_of(shared)
        for architecture in subnets(count):
            dense = shared.extract(architecture)
            passes = len(shared.scheme.scoring_sides)
            seconds = in_turn(
                {
                    "ours": step(shared_logits(shared, architecture, images), labels, optimizer),
                    "theirs": step(dense_logits(dense, passes, images), labels, optimizer_of(dense)),
                },
                rounds,
            )
            ours += seconds["ours"]
            theirs += seconds["theirs"]
        rows.append({"what": f"{sharing}, batch {BATCH}", **ratio(ours, theirs)})
    return rows


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    # Nothing is learnt: each round has the same weights.
    return torch.optim.AdamW(network.parameters(), lr=0.0, fused=True)


def step(forward: Callable[[], Tensor], labels: Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A whole step of training."""

    def run() -> None:
        optimizer.zero_grad()
        with autocast():
            logits = forward()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return run
