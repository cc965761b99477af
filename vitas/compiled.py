"""Networks compiled by torch, for the one shape that a stage gives them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitas.errors import UserError


def compiled(network: nn.Module, key: str) -> Callable[[Tensor], Tensor]:
    """`network`, compiled at its first call (images [b, 3, H, W] -> logits), for images of that shape.

    Others, such as the last batch of an evaluation, pass uncompiled: compiling takes longer than they do. Random draws
    are those of the network uncompiled, so that its loss is the same to rounding. The network itself, its weights and
    their names stay as they are. key: of the YAML, for the `UserError` that is raised where torch cannot compile here.
    """
    fast = torch.compile(network, dynamic=False, options={"fallback_random": True})
    shape: torch.Size | None = None

    def forward(images: Tensor) -> Tensor:
        nonlocal shape
        shape = shape or images.shape
        if images.shape != shape:
            logits: Tensor = network(images)
            return logits
        try:
            logits = fast(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{key}: torch cannot compile the network here ({reason}); it needs a C++ compiler for CPUs, and "
                f"Triton for GPUs. Without them, set {key} to false"
            ) from error
        return logits

    return forward
