"""Measured speed, and a model of it that predicts whole populations as arrays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import nn

from vitas.cost.budget import PopulationCosts
from vitas.space import SearchSpace


@torch.inference_mode()
def images_per_second(network: nn.Module, image_size: int = 224, batch_size: int = 64, seconds: float = 2.0) -> float:
    """How many images a network classifies in a second, on the device that it is on.

    batch_size: images of a forward pass. seconds: of measuring, after half as many of warming up.

    Forward passes only, in evaluation mode, of random images that are already
    on the device; in bfloat16 on a GPU. The median over the passes.
    """
    device = next(network.parameters()).device
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)

    def passes(seconds: float) -> list[float]:
        times: list[float] = []
        while sum(times) < seconds:
            start = time.perf_counter()
            network(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return times

    was_training = network.training
    network.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            passes(seconds / 2)
            return batch_size / median(passes(seconds))
    finally:
        network.train(was_training)


@dataclass(frozen=True)
class SpeedModel(PopulationCosts):
    """Predicts images per second on one device from a few measurements there.

    The seconds of an image are a sum of what the parts of a network do (the
    multiply-adds of each kind, the numbers that norms, softmax and GELU touch,
    the calls), each with a price of its own. It only guides proposals: what
    counts against a budget is measured.

    prices: seconds of each feature, none negative.
    """

    space: SearchSpace
    image_size: int
    prices: tuple[float, ...]
    less_is_dearer = True

    @classmethod
    def fit(
        cls, space: SearchSpace, image_size: int, genomes: np.ndarray, images_per_second: Sequence[float]
    ) -> SpeedModel:
        """The model with the least squared relative error over measured genomes [population, genes]."""
        # Every program would load it, for half a second, and few need it.
        from scipy.optimize import nnls

        features = _features(space, image_size, genomes)
        scale = features.max(axis=0)
        relative = features / np.where(scale > 0, scale, 1) * np.asarray(images_per_second)[:, None]
        prices, _ = nnls(relative, np.ones(len(relative)))
        return cls(space, image_size, tuple(float(p) for p in prices / np.where(scale > 0, scale, 1)))

    def of(self, genomes: np.ndarray) -> np.ndarray:
        """Predicted images per second [population] of genomes [population, genes]."""
        return 1 / (_features(self.space, self.image_size, genomes) @ np.array(self.prices))


def _features(space: SearchSpace, image_size: int, genomes: np.ndarray) -> np.ndarray:
    """What costs time in an image's forward pass [population, 9]."""
    columns = space.columns(genomes)
    patch = np.array(space.patch_sizes)[columns.patch].astype(float)
    embed = np.array(space.embed_dims)[columns.embed].astype(float)

    def total(values: Sequence[int], chosen: np.ndarray) -> np.ndarray:
        return np.where(columns.active, np.array([*values, 0])[chosen], 0).sum(axis=1)

    attention = total(space.attention_dims, columns.qkv)
    mlp = total(space.mlp_dims, columns.mlp)
    heads = total(space.heads, columns.choice)
    depth = columns.active.sum(axis=1)
    tokens = (image_size // patch) ** 2 + 1
    return np.stack(
        [
            np.ones_like(patch),
            3 * patch**2 * embed * (tokens - 1),
            depth,
            depth * tokens * embed,
            4 * embed * tokens * attention,
            2 * tokens**2 * attention,
            tokens**2 * heads,
            2 * embed * tokens * mlp,
            tokens * mlp,
        ],
        axis=1,
    )
