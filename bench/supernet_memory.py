"""What a subnet's passes keep for the backward pass, beside those of the dense network of the same shape.

On a GPU it is the peak of a step beside what is there before it: weights, and from the second step on the optimizer's
moments. On a CPU it is the bytes of all tensors that autograd holds at the end of the forward passes, but for weights,
each storage once. Gradients are not in the count on a CPU; on a GPU they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import autocast, batch, dense_logits, shared_logits, subnets, supernet
from .rounds import DEVICE


def measure(count: int = 4) -> list[dict[str, Any]]:
    images, labels = batch(4 if DEVICE.type == "cpu" else 128)
    rows = []
    for sharing in ("ordinal", "bilateral"):
        shared = supernet(sharing).train()
        passes = len(shared.scheme.scoring_sides)
        for architecture in subnets(count):
            dense = shared.extract(architecture)
            ours = kept(shared_logits(shared, architecture, images), shared, labels)
            theirs = kept(dense_logits(dense, passes, images), dense, labels)
            rows.append(
                {
                    "what": f"{sharing}, {architecture.macs() / 1e9:.2f}G, {architecture.depth} blocks",
                    "ratio": round(ours / theirs, 4),
                    "mb": round(ours / 1e6, 1),
                    "peer_mb": round(theirs / 1e6, 1),
                }
            )
    return rows


def kept(forward: Callable[[], Tensor], network: nn.Module, labels: Tensor) -> int:
    """Bytes."""
    if DEVICE.type == "cuda":
        network.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with autocast():
            logits = forward()
        F.cross_entropy(logits.float(), labels).backward()
        return torch.cuda.max_memory_allocated() - before
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = F.cross_entropy(forward(), labels)
    # The storages are held until here, so none has another's address.
    del loss
    return sum(found.values())
