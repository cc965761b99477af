"""Evaluation images, decoded once and kept in memory as uint8."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from vitas.data.bad_images import BadImages
from vitas.data.folders import EvaluationData, listing_digest
from vitas.data.images import Load, channels, decode, folder_listing, normalize, open_image_folder
from vitas.distributed import World, gather
from vitas.report import Report


@dataclass(frozen=True)
class EvaluationSet:
    """Images uint8 [n, 3, H, W] and labels int64 [n]; on the GPU if the images fit in half of its free memory.

    total: images of the whole set, on all ranks; `n` is less if each holds only its share.
    left_out: bad images of the folder, which are not in it.
    names: a digest of the names of the folder's images, to tell whether they are the same; empty if there is no folder.
    files: where each rank holds its share, the paths of its images [n] below the folder; otherwise empty.
    classes: of the folder, by label.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    total: int
    left_out: int = 0
    names: str = ""
    files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @classmethod
    def load(
        cls,
        settings: EvaluationData,
        image_size: int,
        mean: list[float],
        std: list[float],
        world: World,
        everything: bool,
        report: Report | None = None,
    ) -> EvaluationSet:
        """Decode the images that a section means, each rank its share; with `everything`, each rank then has all.

        report: of the stage, which names the bad images (see `BadImages`). Raises `UserError`, on all ranks, when too
            many are bad.
        """
        folder = open_image_folder(settings.data_dir, settings.part, keep=world.is_main)
        samples, names = folder.samples, listing_digest(folder_listing(folder))
        bad = BadImages(settings.data_dir, len(samples), settings.bad_images, report)
        images, labels, paths, own = _decode(samples[world.share(len(samples))], settings, image_size, folder.loader)
        shares = gather((len(images), own), world)
        found = {path: reason for _, refused in shares for path, reason in refused.items()}
        bad.record(found, write=world.is_main)
        counts = [count for count, _ in shares]
        files = tuple(os.path.relpath(path, settings.data_dir) for path in paths)
        if everything and world.size > 1:
            images, labels = (_from_all_ranks(part, counts, world) for part in (images, labels))
            files = ()
        device = world.device
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            images = images.to(device)
        normalisation = channels(mean, device), channels(std, device)
        classes = tuple(folder.classes)
        return cls(images, labels.to(device), *normalisation, sum(counts), len(found), names, files, classes)

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
        return replace(self, images=images, labels=labels, total=len(which), files=())

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float images [b, 3, H, W] and labels [b], in the folder's order, on the device."""
        for start in range(0, len(self.images), batch_size):
            images = self.images[start : start + batch_size].to(self.mean.device, non_blocking=True)
            yield normalize(images, self.mean, self.std), self.labels[start : start + batch_size]


def _decode(
    samples: Sequence[tuple[str, int]], settings: EvaluationData, image_size: int, load: Load
) -> tuple[Tensor, Tensor, list[Path], dict[str, str]]:
    """The good images of files, their labels and paths, and the bad ones, reasons by path."""
    # The most there can be, so that no image is ever held twice.
    images = torch.empty(len(samples), 3, image_size, image_size, dtype=torch.uint8)
    labels = {Path(path): label for path, label in samples}
    good: list[Path] = []
    bad: dict[str, str] = {}
    crop, workers = settings.crop_fraction, settings.workers
    for batch in decode(list(labels), image_size, crop, 64, workers, stage=True, load=load):
        if batch.paths:
            images[len(good) : len(good) + len(batch.paths)] = batch.images
        good += batch.paths
        bad |= {str(path): reason for path, reason in batch.refused.items()}
    return images[: len(good)], torch.tensor([labels[path] for path in good], dtype=torch.int64), good, bad


def _from_all_ranks(own: Tensor, counts: Sequence[int], world: World) -> Tensor:
    """The parts of all ranks, in their order; counts: images of each."""
    whole = torch.empty(sum(counts), *own.shape[1:], dtype=own.dtype)
    for rank, part in enumerate(whole.split(list(counts))):
        if rank == world.rank:
            part.copy_(own)
        if len(part):
            dist.broadcast(part, src=rank)
    return whole
