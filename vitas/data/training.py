"""Training images: a loader that can start at any step.

The order of the images is a function of (seed, epoch), and the augmentation of
an image is a function of (seed, epoch, image). So the batches depend neither
on the numbers of processes and workers, nor on where a run was resumed. Nor do
bad images change that: which image takes the place of one is a function of its
index alone.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from vitas.config import RunConfig, Training
from vitas.costs import Array
from vitas.data.augmentation import Transform, training_transform
from vitas.data.bad_images import BadImages
from vitas.data.erasing import Erased
from vitas.data.folders import TrainingData
from vitas.data.image_list import ImageFolder
from vitas.data.images import folder_listing, open_image_folder, places_from
from vitas.data.on_device import ByteBatch, ToDevice
from vitas.data.packed import PackedFolder
from vitas.data.pictures import BadImage
from vitas.data.workers import batches_of, number_of_workers, start_in_stage
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report import Report
from vitas.seeds import stream_seed


class TrainingLoader:
    """Batches of augmented images, from any step to the last.

    settings: the image folder and the augmentation.
    image_size, mean, std: of the images it returns.
    batch_size: of all ranks together; the last, smaller batch of an epoch is left out.
    world, seed: select this rank's part of every batch, and the random streams.
    repeats: repeated augmentation (Hoffer et al., CVPR 2020): an image comes this many times in a row, each time
        augmented anew. An epoch keeps its number of steps, and so sees this many times fewer images.
    report: of the stage, which names the bad images (see `BadImages`).
    """

    def __init__(
        self,
        settings: TrainingData,
        image_size: int,
        mean: list[float],
        std: list[float],
        batch_size: int,
        world: World,
        seed: int,
        repeats: int = 1,
        report: Report | None = None,
    ) -> None:
        if batch_size % world.size:
            raise UserError(f"batch_size: found {batch_size}; it must be a multiple of the {world.size} processes")
        folder = open_image_folder(settings.data_dir, settings.part, keep=world.is_main)
        if len(folder) < batch_size:
            raise UserError(
                f"batch_size: found {batch_size}, more than the {len(folder)} images of {settings.data_dir!r} "
                f"({settings.part})"
            )
        self._folder = folder
        self._transform = training_transform(settings.augmentation, image_size, mean)
        self._to_device = ToDevice(world.device, mean, std)
        self._bad = BadImages(settings.data_dir, len(folder), settings.bad_images, report)
        self._batch_size = batch_size
        self._world = world
        self._seed = seed
        self._repeats = repeats
        self._workers = settings.workers
        self.steps_per_epoch = len(folder) // batch_size
        self.listing = folder_listing(folder)

    @classmethod
    def for_stage(cls, settings: Training, config: RunConfig, world: World, report: Report) -> TrainingLoader:
        """The loader of a training stage, whose section is `settings`. Raises `UserError` as the class does."""
        model = config.model
        return cls(
            settings.data,
            model.image_size,
            model.mean,
            model.std,
            settings.batch_size,
            world,
            config.seed,
            settings.repeats,
            report,
        )

    def batches(self, start: int, end: int, seed: int | None = None) -> Generator[tuple[Tensor, Tensor]]:
        """This rank's part of the batches of steps `start` to `end` - 1, counted from the start of the run.

        seed: of the random streams, instead of the loader's own.

        Yields normalised images [batch_size / world size, 3, H, W] and labels [batch_size / world size], on the device
        of the world. One iteration spans epochs, so workers never idle at the end of an epoch. Raises `UserError` when
        too many images are bad.
        """
        with closing(self.bytes(start, end, seed)) as batches:
            yield from self.on_device(batches)

    def on_device(self, batches: Iterable[ByteBatch]) -> Generator[tuple[Tensor, Tensor]]:
        """What `batches` yields, of batches that were kept as bytes."""
        return self._to_device(batches)

    def bytes(self, start: int, end: int, seed: int | None = None) -> Generator[ByteBatch]:
        """The batches of `batches` as they are decoded, in memory of the CPU."""
        if start >= end:
            return
        seed = self._seed if seed is None else seed
        images = (end - start) * self._batch_size // self._world.size
        loader = DataLoader(
            AugmentedImages(self._folder, self._transform, seed, self._bad.allowed),
            batch_sampler=self._items(start, end, seed),
            num_workers=number_of_workers(self._workers, images, computes=True),
            collate_fn=_collate,
            pin_memory=self._world.device.type == "cuda",
            # It seeds the workers, which ignore the seed. Without it, DataLoader would draw from the global generator.
            generator=torch.Generator(),
            worker_init_fn=start_in_stage,
        )
        for batch, bad in batches_of(loader):
            self._bad.record(bad)
            yield batch

    def _items(self, start: int, end: int, seed: int) -> Iterator[list[tuple[int, int, int]]]:
        """For each step, this rank's items: epoch, index of the image, index of the repeat."""
        part = self._world.share(self._batch_size)
        order: Array | None = None
        for step in range(start, end):
            epoch, position = divmod(step, self.steps_per_epoch)
            if order is None or position == 0:
                rng = np.random.default_rng(stream_seed(seed, "order", epoch))
                order = rng.permutation(len(self._folder))
            places = range(position * self._batch_size, (position + 1) * self._batch_size)[part]
            yield [(epoch, int(order[place // self._repeats]), place % self._repeats) for place in places]


@dataclass(frozen=True)
class Item:
    """An image uint8 [3, H, W] and what to erase of it, its label, and the bad images before it, reasons by path.

    After too many of those there is no image.
    """

    image: Tensor | None
    erased: Erased | None
    label: int
    bad: dict[str, str]


def _collate(items: list[Item]) -> tuple[ByteBatch | None, dict[str, str]]:
    """A batch, and the bad images that others stand for; no batch where there were too many."""
    bad = {path: reason for item in items for path, reason in item.bad.items()}
    images = [item.image for item in items if item.image is not None]
    if len(images) < len(items):
        return None, bad
    labels = torch.tensor([item.label for item in items])
    erased = [(index, item.erased) for index, item in enumerate(items) if item.erased]
    return ByteBatch(default_collate(images), labels, erased), bad


class AugmentedImages(Dataset[Item]):
    """Augmented images by (epoch, index, repeat), which with the seed decide every random draw.

    most_bad: how many bad images in a row are passed over for the next good one of the folder, which then is
        augmented as the bad one would have been, under its own label.
    """

    def __init__(self, folder: ImageFolder | PackedFolder, transform: Transform, seed: int, most_bad: int = 0) -> None:
        self._folder, self._transform, self._seed, self._most_bad = folder, transform, seed, most_bad

    def __len__(self) -> int:
        return len(self._folder)

    def __getitems__(self, items: list[tuple[int, int, int]]) -> list[Item]:
        """The images of a batch. One call, because keeping the generators' states costs as much as a small image."""
        # A worker's generators serve nothing else; the main process's states must be restored.
        before = None if get_worker_info() else _generator_states()
        batch = [self._augmented(*item) for item in items]
        if before:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
        return batch

    def _augmented(self, epoch: int, index: int, repeat: int) -> Item:
        names = ("augment", epoch, index, repeat) if repeat else ("augment", epoch, index)
        seed = stream_seed(self._seed, *names)
        bad: dict[str, str] = {}
        for place in places_from(index, len(self._folder)):
            try:
                image, erased = self._transform(partial(self._folder.read, place), seed)
                return Item(image, erased, self._folder.label(place), bad)
            except BadImage as error:
                bad[str(error.path)] = error.reason
            if len(bad) > self._most_bad:
                break
        return Item(None, None, -1, bad)


def _generator_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()
