"""Evaluation images, decoded once and kept in memory as uint8: a share on each rank, or all of them once a node."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from vitas.data.bad_images import BadImages
from vitas.data.folders import EvaluationData, listing_digest
from vitas.data.image_list import ImageFolder
from vitas.data.images import Load, channels, decode, folder_listing, normalize, open_image_folder
from vitas.data.packed import PackedFolder
from vitas.data.shared_memory import node_identity, ranks_of_node, shared_bytes
from vitas.distributed import World, barrier, gather
from vitas.report import Report

# Of a GPU's free memory, for the images.
SHARE_OF_GPU = 0.5
# Images of a batch that is decoded, or moved.
_BATCH = 64

Samples = Sequence[tuple[str, int]]
Folder = ImageFolder | PackedFolder


@dataclass(frozen=True)
class EvaluationSet:
    """Images uint8 [n, 3, H, W] and labels int64 [n]; on the GPU if the images fit in half of its free memory.

    pixels: what holds the images, [m, 3, H, W]; shared by the ranks of a node that all have all images.
    total: images of the whole set, on all ranks; `n` is less if each holds only its share.
    left_out: bad images of the folder, which are not in it.
    names: a digest of the names of the folder's images, to tell whether they are the same; empty if there is no folder.
    files: where each rank holds its share, the paths of its images [n] below the folder; otherwise empty.
    classes: of the folder, by label.
    chosen: which of `pixels` the images are, int64 [n], on their device; None if all. So a part takes no memory.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    total: int
    left_out: int = 0
    names: str = ""
    files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    chosen: Tensor | None = None

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

        The ranks of a node then have one copy in common, of which they decode a part each, and each node decodes its
        own: that reads the files once a node, as an epoch of training does many times over, and needs no network.

        report: of the stage, which names the bad images (see `BadImages`). Raises `UserError`, on all ranks, when too
            many are bad.
        """
        folder = open_image_folder(settings.data_dir, settings.part, keep=world.is_main)
        samples, names = folder.samples, listing_digest(folder_listing(folder))
        bad = BadImages(settings.data_dir, len(samples), settings.bad_images, report)
        together = everything and world.size > 1
        decoded = _of_node if together else _of_rank
        pixels, kept, found = decoded(folder, settings, image_size, world, bad, report)
        labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
        files = () if together else tuple(os.path.relpath(path, settings.data_dir) for path, _ in kept)
        device = world.device
        if device.type == "cuda" and pixels.nbytes < SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]:
            pixels = pixels.to(device)
        normalisation = channels(mean, device), channels(std, device)
        total, classes = len(samples) - len(found), tuple(folder.classes)
        return cls(pixels, labels.to(device), *normalisation, total, len(found), names, files, classes)

    @property
    def images(self) -> Tensor:
        """Images uint8 [n, 3, H, W]; of a part of a set, a copy of all its images."""
        return self.pixels if self.chosen is None else self.pixels[self.chosen]

    def split(self, share: float, seed: int) -> tuple[EvaluationSet, EvaluationSet]:
        """A random share of the images, at least one, and the rest. For sets that hold all their images."""
        order = torch.randperm(self.total, generator=torch.Generator().manual_seed(seed))
        count = max(1, round(share * self.total))
        # In the folder's order: what is read together lies together.
        first, second = (part.sort().values for part in (order[:count], order[count:]))
        return self.take(first), self.take(second)

    def take(self, which: Tensor) -> EvaluationSet:
        """The images of some indices [n], of a set that holds all its images."""
        chosen = which.to(self.pixels.device)
        if self.chosen is not None:
            chosen = self.chosen[chosen]
        labels = self.labels[which.to(self.labels.device)]
        return replace(self, labels=labels, total=len(which), files=(), chosen=chosen)

    def parts(self, batch_size: int, most: int) -> list[EvaluationSet]:
        """Up to `most` parts of whole batches, as equal as possible, that are the set in its order; at least one."""
        batches = -(-len(self.labels) // batch_size)
        count = max(1, min(most, batches))
        ends = [batches * part // count * batch_size for part in range(count + 1)]
        return [self._between(start, stop) for start, stop in pairwise(ends)]

    def _between(self, start: int, stop: int) -> EvaluationSet:
        labels = self.labels[start:stop]
        if self.chosen is None:
            return replace(self, pixels=self.pixels[start:stop], labels=labels, total=len(labels), files=())
        return replace(self, chosen=self.chosen[start:stop], labels=labels, total=len(labels), files=())

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float images [b, 3, H, W] and labels [b], in the folder's order, on the device."""
        device = self.mean.device
        bounds = [(start, start + batch_size) for start in range(0, len(self.labels), batch_size)]
        raw: Iterator[Tensor] = (self._raw(*each) for each in bounds)
        if device.type == "cuda" and not self.pixels.is_cuda:
            raw = _copied_ahead(raw, device)
        for (start, stop), images in zip(bounds, raw, strict=True):
            yield normalize(images.to(device), self.mean, self.std), self.labels[start:stop]

    def _raw(self, start: int, stop: int) -> Tensor:
        return self.pixels[start:stop] if self.chosen is None else self.pixels[self.chosen[start:stop]]


def _copied_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches on the GPU, each copied from pinned memory on a stream of its own while the one before is computed on."""
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    # Two in turn: one is copied from while the other is filled.
    pinned: list[Tensor] = []
    copied = [torch.cuda.Event(), torch.cuda.Event()]
    ahead: tuple[Tensor, torch.cuda.Event] | None = None
    for number, batch in enumerate(batches):
        if len(pinned) < 2:
            # The first batches are the largest.
            pinned.append(torch.empty(batch.shape, dtype=batch.dtype, pin_memory=True))
        turn = number % 2
        # Until the last copy from it is through.
        copied[turn].synchronize()
        pinned[turn][: len(batch)].copy_(batch)
        with torch.cuda.stream(stream):
            images = pinned[turn][: len(batch)].to(device, non_blocking=True)
            copied[turn].record(stream)
        if ahead is not None:
            yield _arrived(*ahead, current)
        ahead = images, copied[turn]
    if ahead is not None:
        yield _arrived(*ahead, current)


def _arrived(images: Tensor, copied: torch.cuda.Event, stream: torch.cuda.Stream) -> Tensor:
    stream.wait_event(copied)
    # Its memory belongs to the copying stream, which must not reuse it before the pass is through.
    images.record_stream(stream)
    return images


def _of_rank(
    folder: Folder, settings: EvaluationData, image_size: int, world: World, bad: BadImages, report: Report | None
) -> tuple[Tensor, Samples, dict[str, str]]:
    """The good images of this rank's share and what they are; and all bad ones, reasons by path."""
    own = folder.samples[world.share(len(folder))]
    pixels = torch.empty(len(own), 3, image_size, image_size, dtype=torch.uint8)
    found = _agreed(_decode(own, pixels, settings, image_size, folder.loader), world, bad)
    return (*_without(found, own, pixels), found)


def _of_node(
    folder: Folder, settings: EvaluationData, image_size: int, world: World, bad: BadImages, report: Report | None
) -> tuple[Tensor, Samples, dict[str, str]]:
    """The same for all images, which the ranks of a node decode into memory that they share."""
    samples = folder.samples
    mates = ranks_of_node(world, node_identity())
    shape = (len(samples), 3, image_size, image_size)
    shared = shared_bytes(3 * image_size**2 * len(samples), mates, world, report) if len(samples) else None
    pixels = torch.empty(shape, dtype=torch.uint8) if shared is None else shared.view(shape)
    share = slice(None) if shared is None else World(mates.index(world.rank), len(mates)).share(len(samples))
    found = _agreed(_decode(samples[share], pixels[share], settings, image_size, folder.loader), world, bad)
    # All have decoded, by the agreement; one moves what they share, and the others wait.
    whole, kept = _without(found, samples, pixels, moves=shared is None or world.rank == mates[0])
    barrier(world)
    return whole, kept, found


def _decode(samples: Samples, pixels: Tensor, settings: EvaluationData, image_size: int, load: Load) -> dict[str, str]:
    """Decode each good image to its place in `pixels`; the bad ones, reasons by path."""
    places = {Path(path): place for place, (path, _) in enumerate(samples)}
    bad: dict[str, str] = {}
    crop, workers = settings.crop_fraction, settings.workers
    for batch in decode(list(places), image_size, crop, _BATCH, workers, stage=True, load=load):
        if batch.paths:
            pixels[[places[path] for path in batch.paths]] = batch.images
        bad |= {str(path): reason for path, reason in batch.refused.items()}
    return bad


def _agreed(own: dict[str, str], world: World, bad: BadImages) -> dict[str, str]:
    """The bad images that any rank found, reasons by path. Raises `UserError`, on all ranks, if they are too many."""
    found = {path: reason for refused in gather(own, world) for path, reason in refused.items()}
    bad.record(found, write=world.is_main)
    return found


def _without(
    found: dict[str, str], samples: Samples, pixels: Tensor, moves: bool = True
) -> tuple[Tensor, list[tuple[str, int]]]:
    """The images of good samples, which move up to the places of bad ones; and these samples.

    moves: False where another rank moves them, in memory that is shared.
    """
    good = [place for place, (path, _) in enumerate(samples) if str(Path(path)) not in found]
    if moves:
        for start in range(0, len(good), _BATCH):
            places = good[start : start + _BATCH]
            if places[-1] != start + len(places) - 1:
                # Taken out first, because the two may overlap.
                pixels[start : start + len(places)] = pixels[places]
    return pixels[: len(good)], [samples[place] for place in good]
