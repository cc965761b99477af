"""Training images: augmentation, and a loader that can start at any step.

The order of the images is a function of (seed, epoch), and the augmentation of
an image is a function of (seed, epoch, image). So the batches depend neither
on the numbers of processes and workers, nor on where a run was resumed. Nor do
bad images change that: which image takes the place of one is a function of its
index alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info
from torchvision.datasets import ImageFolder

from vitas.config import RunConfig, Training
from vitas.costs import Array
from vitas.data.bad_images import BadImages
from vitas.data.folders import Augmentation, TrainingData
from vitas.data.images import folder_listing, following, open_image_folder
from vitas.data.packed import PackedFolder
from vitas.data.pictures import BadImage
from vitas.data.workers import batches_of, number_of_workers
from vitas.distributed import World
from vitas.errors import UserError
from vitas.report import Report
from vitas.seeds import stream_seed
from vitas.slurm import signals

# An image as it is on disk -> augmented and normalised [3, image_size, image_size].
Transform: TypeAlias = Callable[[Image.Image], Tensor]


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep `bits` bits of each channel; 0 gives black, as in Pillow before 13, which now refuses 0."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def _fix_posterize() -> None:
    """timm's RandAugment asks for 0 bits at its highest level, which Pillow refuses; this replaces its operations."""
    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        auto_augment.NAME_TO_OP[name] = posterize


def training_transform(augmentation: Augmentation, image_size: int, mean: list[float], std: list[float]) -> Transform:
    """Image -> augmented, normalised image [3, image_size, image_size]. Raises `UserError` for an unknown recipe."""
    _fix_posterize()
    (smallest, largest), (narrowest, widest) = augmentation.scale, augmentation.ratio
    try:
        transform: Transform = create_transform(
            image_size,
            is_training=True,
            auto_augment=augmentation.auto_augment,
            color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]  # timm knows None as well
            re_prob=augmentation.random_erasing,
            re_mode="pixel",
            hflip=augmentation.flip,
            scale=(smallest, largest),
            ratio=(narrowest, widest),
            interpolation=augmentation.interpolation,
            mean=tuple(mean),
            std=tuple(std),
        )
    except (AssertionError, KeyError, ValueError):
        raise UserError(
            f"auto_augment: found {augmentation.auto_augment!r}; it must be a recipe that timm knows"
        ) from None
    return transform


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
        folder = open_image_folder(settings.data_dir, settings.part)
        if len(folder) < batch_size:
            raise UserError(
                f"batch_size: found {batch_size}, more than the {len(folder)} images of {settings.data_dir!r} "
                f"({settings.part})"
            )
        self._folder = folder
        self._transform = training_transform(settings.augmentation, image_size, mean, std)
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

        Yields images [batch_size / world size, 3, H, W] and labels [batch_size / world size].
        One iteration spans epochs, so workers never idle at the end of an epoch. Raises `UserError` when too many
        images are bad.
        """
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
            worker_init_fn=signals.ignore,
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


# An image, its label, and the bad images that stood before it, reasons by path. There is no image after too many.
Item = tuple[Tensor | None, int, dict[str, str]]


def _collate(items: list[Item]) -> tuple[list[Tensor] | None, dict[str, str]]:
    """A batch of images and labels, and the bad images that others stand for; no batch where there were too many."""
    bad = {path: reason for _, _, found in items for path, reason in found.items()}
    if any(image is None for image, _, _ in items):
        return None, bad
    return default_collate([(image, label) for image, label, _ in items]), bad


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
        image, label, bad = self._next_good(index)
        if image is None:
            return None, label, bad
        names = ("augment", epoch, index, repeat) if repeat else ("augment", epoch, index)
        _seed_generators(stream_seed(self._seed, *names))
        return self._transform(image), label, bad

    def _next_good(self, index: int) -> tuple[Image.Image | None, int, dict[str, str]]:
        """The first good image of the folder from an index on, its label, and the bad ones before it."""
        bad: dict[str, str] = {}
        for place in (index, *following(index, len(self._folder))):
            try:
                return *self._folder[place], bad
            except BadImage as error:
                bad[str(error.path)] = error.reason
            if len(bad) > self._most_bad:
                break
        return None, -1, bad


def _generator_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _seed_generators(seed: int) -> None:
    """Seed the three generators that the transforms of timm and torchvision draw from; not the GPU's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
