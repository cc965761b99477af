"""Evaluation images, decoded once and kept in memory as uint8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder

from vitas.data.folders import EvaluationData
from vitas.data.images import channels, evaluation_transform, normalize, open_image_folder
from vitas.distributed import World
from vitas.slurm import signals


@dataclass(frozen=True)
class EvaluationSet:
    """Images uint8 [n, 3, H, W] and labels int64 [n]; on the GPU if the images fit in half of its free memory.

    total: images of the whole set; `n` is less if each rank holds only its share.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    total: int

    @classmethod
    def load(
        cls,
        settings: EvaluationData,
        image_size: int,
        mean: list[float],
        std: list[float],
        world: World,
        everything: bool,
    ) -> EvaluationSet:
        """Decode a folder, each rank its share; with `everything`, each rank then gets the shares of all ranks."""
        folder = open_image_folder(settings.data_dir)
        folder.transform = evaluation_transform(image_size, settings.crop_fraction)
        images, labels = _decode(folder, image_size, world.share(len(folder)), settings.workers)
        if everything and world.size > 1:
            images, labels = (_from_all_ranks(part, len(folder), world) for part in (images, labels))
        device = world.device
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            images = images.to(device)
        return cls(images, labels.to(device), channels(mean, device), channels(std, device), len(folder))

    def split(self, share: float, seed: int) -> tuple[EvaluationSet, EvaluationSet]:
        """A random share of the images, at least one, and the rest. For sets that hold all their images."""
        order = torch.randperm(self.total, generator=torch.Generator().manual_seed(seed))
        count = max(1, round(share * self.total))
        # In the folder's order: what is read together lies together.
        first, second = (part.sort().values for part in (order[:count], order[count:]))
        return self.take(first), self.take(second)

    def take(self, which: Tensor) -> EvaluationSet:
        """The images of some indices [n], of a set that holds all its images."""
        images, labels = self.images[which.to(self.images.device)], self.labels[which.to(self.labels.device)]
        return replace(self, images=images, labels=labels, total=len(which))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float images [b, 3, H, W] and labels [b], in the folder's order, on the device."""
        for start in range(0, len(self.images), batch_size):
            images = self.images[start : start + batch_size].to(self.mean.device, non_blocking=True)
            yield normalize(images, self.mean, self.std), self.labels[start : start + batch_size]


def _decode(folder: ImageFolder, image_size: int, part: slice, workers: int) -> tuple[Tensor, Tensor]:
    count = part.stop - part.start
    images = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    dataset: Dataset = Subset(folder, range(part.start, part.stop))
    at = 0
    for batch, targets in DataLoader(dataset, batch_size=64, num_workers=workers, worker_init_fn=signals.ignore):
        images[at : at + len(batch)] = batch
        labels[at : at + len(batch)] = targets
        at += len(batch)
    return images, labels


def _from_all_ranks(own: Tensor, total: int, world: World) -> Tensor:
    whole = torch.empty(total, *own.shape[1:], dtype=own.dtype)
    whole[world.share(total)] = own
    for rank in range(world.size):
        part = World(rank, world.size).share(total)
        if part.stop > part.start:
            dist.broadcast(whole[part], src=rank)
    return whole
