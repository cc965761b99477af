"""The kernels that a training step of a subnet launches, beside those of the dense network's passes, without optimizer.

A step of few images waits for its launches on a GPU. They are counted here as operations of a step in bfloat16, on any
device, views left out; an operation on a list of slices counts as one for each. `alone` is what it would be if
autograd alone saw to the gradients and autocast to the casts (`vitas/models/step_weights.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .networks import batch, dense_logits, shared_logits, subnets, supernet
from .rounds import DEVICE

# What launches nothing.
FREE = {
    *("alias", "as_strided", "detach", "empty", "empty_like", "expand", "permute", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
}
# What launches two: zeros, and a copy to their midst.
TWICE = {"slice_backward", "select_backward"}
# Tensors that one launch serves, at least, where they are whole and without gaps.
TOGETHER = {"_foreach_zero_": 50, "_foreach_copy_": 50}


class Kernels(TorchDispatchMode):
    """Counts what would be launched within it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in FREE:
            tensors = len(arguments[0]) if name.startswith("_foreach") else 1
            self.count += ceil(tensors / TOGETHER.get(name, 1)) * (2 if name in TWICE else 1)
        return function(*arguments, **(options or {}))


def launched(forward: Callable[[], Tensor], network: nn.Module, labels: Tensor) -> int:
    """By one step."""
    network.zero_grad()
    with Kernels() as kernels:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = forward()
        F.cross_entropy(logits.float(), labels).backward()
    return kernels.count


def measure(count: int = 4) -> list[dict[str, Any]]:
    images, labels = batch(2)
    rows = []
    for sharing in ("ordinal", "bilateral"):
        shared = supernet(sharing).train()
        sides = shared.scheme.scoring_sides
        for architecture in subnets(count):
            dense = shared.extract(architecture)
            ours = launched(shared_logits(shared, architecture, images, torch.bfloat16), shared, labels)
            theirs = launched(dense_logits(dense, len(sides), images), dense, labels)

            def alone(shared: nn.Module = shared, sides: tuple = sides, architecture: Any = architecture) -> Tensor:
                return sum(shared(images, architecture, side) for side in sides)

            rows.append(
                {
                    "what": f"{sharing}, {architecture.depth} blocks",
                    "ratio": round(ours / theirs, 4),
                    "kernels": ours,
                    "peer": theirs,
                    "alone": launched(alone, shared, labels),
                }
            )
    return rows
