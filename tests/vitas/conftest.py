"""What the tests of the networks share: weights that all matter, and images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitas import Genotype, StagedTransformer

# The network of the reference file, of the released As-ViT.
REFERENCE = "4,2,2,1|2,1,2,2|3,1,3,1|2,1,2,1|16,16"
# Odd kernels with their uneven paddings, dims that the heads do not divide, windows of several tokens at 32 x 32.
UNEVEN = Genotype.parse("7,2,2,1|3,2,2,2|4,1,3,1|3,1,2,1|16,9")


def random_images(count: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that all matter, for evaluation: no zero biases, no norms of one."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.fixture(scope="session")
def asvit_arrays(reference) -> dict[str, np.ndarray]:
    """Weights, images, outputs and scores of the released As-ViT."""
    with np.load(reference / "asvit_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def released_asvit(asvit_arrays) -> StagedTransformer:
    """The network of the reference file, with its weights under their released names."""
    network = StagedTransformer(Genotype.parse(REFERENCE), 10, 64).eval()
    names = [name for name in asvit_arrays if name.startswith("weight/")]
    network.load_state_dict({name.removeprefix("weight/"): torch.from_numpy(asvit_arrays[name]) for name in names})
    return network


@pytest.fixture(scope="session")
def asvit_images(asvit_arrays) -> Tensor:
    return torch.from_numpy(asvit_arrays["image"]).float()


@pytest.fixture
def uneven() -> StagedTransformer:
    return randomise(StagedTransformer(UNEVEN, 5, 32))
