"""The networks that benchmarks of single steps measure: subnets of the space of ViTAS-A, B and E near 1G."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vitas import Architecture, SuperNet
from vitas.budget import Budget, MacsModel
from vitas.catalog import SPACE_ABE
from vitas.evaluate import autocast_dtype
from vitas.in_budget import InBudget
from vitas.models.step_weights import StepWeights

from .rounds import DEVICE

IMAGE_SIZE = 224
BUDGET = Budget(900_000_000, 1_000_000_000)
BATCH = 128 if DEVICE.type == "cuda" else 16


def subnets(count: int) -> list[Architecture]:
    """Random architectures of the budget, of the patch sizes that tile the image."""
    space = replace(SPACE_ABE, patch_sizes=(16,))
    genomes = InBudget(MacsModel(space, IMAGE_SIZE, 1000), BUDGET).draw_different(np.random.default_rng(0), count)
    return [space.decode(genome).shifted() for genome in genomes]


def supernet(sharing: str) -> SuperNet:
    torch.manual_seed(0)
    return SuperNet(SPACE_ABE, image_size=IMAGE_SIZE, sharing=sharing).to(DEVICE)


def batch(size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Noise [size, 3, H, W], and labels [size]."""
    torch.manual_seed(1)
    images = torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, device=DEVICE)
    return images, torch.randint(1000, (size,), device=DEVICE)


def shared_logits(
    network: SuperNet,
    architecture: Architecture,
    images: Tensor,
    dtype: torch.dtype | None = autocast_dtype(DEVICE, amp=True),
) -> Callable[[], Tensor]:
    """The logits of a subnet, as training has them: the sum over the sides. dtype: that of autocast."""
    weights, sides = StepWeights(network, dtype), network.scheme.scoring_sides

    def logits() -> Tensor:
        weights.begin((architecture, side) for side in sides)
        return sum(network(images, architecture, side, weights.of(architecture, side)) for side in sides)

    return logits


def dense_logits(network: nn.Module, passes: int, images: Tensor) -> Callable[[], Tensor]:
    """As many passes of a dense network."""
    return lambda: sum(network(images) for _ in range(passes))


def autocast() -> torch.autocast:
    """bfloat16 on a GPU, as the stages have it."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")
