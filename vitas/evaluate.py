"""Measuring networks: top-1, top-5 and loss over an evaluation set, and images per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World, sum_
from vitas.errors import UserError
from vitas.memory import measuring_what_fits


@dataclass(frozen=True)
class Score:
    """The result of an evaluation.

    top1, top5: in percent. loss: mean cross-entropy. images_per_second: of all ranks together.
    """

    top1: float
    top5: float
    loss: float
    images_per_second: float


@torch.inference_mode()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    images: EvaluationSet,
    batch_size: int,
    amp: bool = False,
    world: World = World(),
    warm_up: bool = False,
    each: Callable[[Tensor, Tensor], object] | None = None,
) -> Score:
    """Score `forward` (images [b, 3, H, W] -> logits [b, classes]) over an evaluation set.

    With several ranks, `images` is this rank's share and the score is over all
    shares. The rate includes normalisation and the forward passes, not
    decoding; with `warm_up`, a batch runs before it is measured. `each` is
    given the logits [b, classes] and labels [b] of every batch, in order.
    """
    device = images.mean.device
    if warm_up and len(images.labels):
        with _passes([forward], images, batch_size, amp):
            forward(next(images.batches(batch_size))[0])
    _synchronize(device)
    start = time.perf_counter()
    [totals] = sums([forward], images, batch_size, amp, each)
    _synchronize(device)
    seconds = time.perf_counter() - start
    rate = torch.tensor([len(images.labels) / max(seconds, 1e-9)], dtype=torch.float64, device=device)
    top1, top5, loss = (sum_(totals, world) / images.total).tolist()
    return Score(100 * top1, 100 * top5, loss, sum_(rate, world).item())


@torch.inference_mode()
def sums(
    networks: Sequence[Callable[[Tensor], Tensor]],
    images: EvaluationSet,
    batch_size: int,
    amp: bool = False,
    each: Callable[[Tensor, Tensor], object] | None = None,
) -> Tensor:
    """Top-1 hits, top-5 hits and summed cross-entropy over this rank's images: float64 [networks, 3], on the device.

    Arguments are those of `evaluate`. Sums are taken batch by batch, in order; a batch is normalised once for all of
    the networks.
    """
    device = images.mean.device
    # On the device, so that no batch waits for the one before it.
    totals = torch.zeros(len(networks), 3, dtype=torch.float64, device=device)
    with _passes(networks, images, batch_size, amp):
        for batch, labels in images.batches(batch_size):
            for network, total in zip(networks, totals, strict=True):
                logits = network(batch).float()
                if each:
                    each(logits, labels)
                best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                total += torch.stack(
                    [
                        best[:, 0].sum().double(),
                        best.sum().double(),
                        F.cross_entropy(logits, labels, reduction="sum").double(),
                    ]
                )
    return totals


@contextmanager
def _passes(
    networks: Sequence[Callable[[Tensor], Tensor]], images: EvaluationSet, batch_size: int, amp: bool
) -> Iterator[None]:
    """Within it, passes are in the precision of a stage, and a batch that is too large for the memory is said so."""
    device = images.mean.device
    attempt = partial(_pass_one, networks, images)
    with autocast(device, amp), measuring_what_fits(batch_size, attempt, device, partial(_too_large, batch_size)):
        yield


def _pass_one(networks: Sequence[Callable[[Tensor], Tensor]], images: EvaluationSet, count: int) -> None:
    batch, _ = next(images.batches(count))
    for network in networks:
        network(batch)


def _too_large(tried: int, fit: int, memory: str) -> str:
    return (
        f"batch_size: {tried} images at once, to score them, do not fit in {memory}; as measured now, "
        f"{f'{fit} do' if fit else 'not even one does'}. Take a smaller sample.batch_size or test.batch_size, or on "
        "val images of a training retrain.batch_size"
    )


def images_per_second(network: nn.Module, image_size: int = 224, batch_size: int = 64, seconds: float = 2.0) -> float:
    """How many images per second a network classifies, on its device.

    batch_size: images per forward pass. seconds: of measuring, after half as many of warm-up.

    Measures forward passes in evaluation mode on random images that are already
    on the device, in bfloat16 on a GPU, and takes the median over the passes.
    """
    images = torch.randn(batch_size, 3, image_size, image_size, device=next(network.parameters()).device)
    return batch_size / seconds_per_pass(network, images, seconds)


@torch.inference_mode()
def seconds_per_pass(module: nn.Module, inputs: Tensor, seconds: float) -> float:
    """The median time of a forward pass of a batch, measured as `images_per_second` does.

    Raises `UserError` where the device cannot hold it.
    """
    device = inputs.device

    def passes(seconds: float) -> list[float]:
        times: list[float] = []
        while sum(times) < seconds:
            start = time.perf_counter()
            module(inputs)
            _synchronize(device)
            times.append(time.perf_counter() - start)
        return times

    was_training = module.training
    module.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            passes(seconds / 2)
            return median(passes(seconds))
    except torch.OutOfMemoryError:
        raise UserError(
            f"speed cannot be measured here: a batch of {len(inputs)} does not fit in the memory of {device}; "
            "take a smaller batch_size (sample.budget.batch_size in a search)"
        ) from None
    finally:
        module.train(was_training)


def autocast(device: torch.device, amp: bool) -> AbstractContextManager[object]:
    """The context for forward passes: bfloat16 on a GPU with `amp`, otherwise nothing."""
    dtype = autocast_dtype(device, amp)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def autocast_dtype(device: torch.device, amp: bool) -> torch.dtype | None:
    """What `autocast` computes matrix products in; None is the weights' own."""
    return torch.bfloat16 if amp and device.type == "cuda" else None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
