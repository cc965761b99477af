"""Batches on their way to the device: they cross as bytes, and become the input of networks there.

Bytes are a quarter of floats. On a GPU the next batch is copied and normalised on a stream of its own while the network
computes with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitas.costs import Array
from vitas.data.erasing import Erased, erase
from vitas.data.images import channels, normalize

# Bytes of images that a worker sends through its pipe; more go through shared memory.
_SMALL = 2**20


@dataclass(frozen=True)
class ByteBatch:
    """A batch as it is decoded. images: uint8 [b, 3, H, W]. labels: int64 [b]. erased: rectangles, by image."""

    images: Tensor
    labels: Tensor
    erased: list[tuple[int, Erased]]

    def pin_memory(self) -> ByteBatch:
        """The batch in memory that the GPU copies from by itself; `DataLoader` asks for it."""
        return ByteBatch(self.images.pin_memory(), self.labels.pin_memory(), self.erased)

    def __reduce__(self) -> tuple[Callable[..., ByteBatch], tuple[Any, ...]]:
        """How it crosses from a worker: shared memory takes a file and a connection for each tensor, on both sides."""
        images = self.images.numpy() if self.images.nbytes <= _SMALL else self.images
        return _received, (images, self.labels.numpy(), self.erased)


def _received(images: Tensor | Array, labels: Array, erased: list[tuple[int, Erased]]) -> ByteBatch:
    images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    return ByteBatch(images, torch.from_numpy(labels), erased)


class ToDevice:
    """Makes batches the input of networks, on a device. mean, std: of the three channels."""

    def __init__(self, device: torch.device, mean: list[float], std: list[float]) -> None:
        self._device = device
        self._mean, self._std = channels(mean, device), channels(std, device)

    def __call__(self, batches: Iterable[ByteBatch]) -> Generator[tuple[Tensor, Tensor]]:
        """Normalised, erased float images [b, 3, H, W] and labels [b], on the device, in order."""
        if self._device.type == "cuda":
            yield from self._ahead(batches)
        else:
            for batch in batches:
                yield self._ready(batch)

    def _ready(self, batch: ByteBatch) -> tuple[Tensor, Tensor]:
        images = normalize(batch.images.to(self._device, non_blocking=True), self._mean, self._std)
        erase(images, batch.erased)
        return images, batch.labels.to(self._device, non_blocking=True)

    def _ahead(self, batches: Iterable[ByteBatch]) -> Generator[tuple[Tensor, Tensor]]:
        """As `_ready` makes them, each begun before the one before it is given out."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
        # Mean and std were made on this stream.
        aside.wait_stream(torch.cuda.current_stream(self._device))
        waiting: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
        for batch in batches:
            with torch.cuda.stream(aside):
                images, labels = self._ready(batch)
                done = aside.record_event()
            if waiting is not None:
                yield self._handed_over(*waiting)
            waiting = images, labels, done
        if waiting is not None:
            yield self._handed_over(*waiting)

    def _handed_over(self, images: Tensor, labels: Tensor, done: torch.cuda.Event) -> tuple[Tensor, Tensor]:
        """A batch for the stream that computes, which waits for it; the CPU does not."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(done)
        for tensor in (images, labels):
            # Else its memory, freed here, could be given to the next batch before the step has read it.
            tensor.record_stream(computing)
        return images, labels
