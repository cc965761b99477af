"""The passes of a step of the supernet's training: which images a subnet gets, what it learns from, the reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from search.predictor import ChoiceLosses
from search.subnets import TrainingPlan
from vitas.accumulation import parts_of
from vitas.architecture import Architecture
from vitas.config import Search
from vitas.distributed import World
from vitas.evaluate import autocast, autocast_dtype
from vitas.models import SuperNet
from vitas.models.step_weights import StepWeights
from vitas.reduction import Reduction
from vitas.sharing import Side
from vitas.teacher import LARGEST
from vitas.train import Criterion


class Passes:
    """The losses of the subnets of a step, and what follows their backward passes.

    teacher: images -> logits, or None; see `vitas.teacher`.
    choice_losses: what records the losses of random subnets.
    """

    def __init__(
        self,
        supernet: SuperNet,
        plan: TrainingPlan,
        settings: Search,
        teacher: Callable[[Tensor], Tensor] | None,
        choice_losses: ChoiceLosses,
        world: World,
    ) -> None:
        self._supernet, self._plan, self._amp, self._world = supernet, plan, settings.amp, world
        self._teacher, self._criterion = teacher, Criterion(settings)
        self._from_largest = settings.distillation is not None and settings.distillation.teacher == LARGEST
        self._parts = _parts_of_rank(settings.batch_size, settings.subnets.parts, world)
        self._choice_losses, self._accumulate = choice_losses, settings.accumulate
        self._reduction = Reduction(world) if world.size > 1 else None
        arrived = self._reduction.arrived if self._reduction else lambda parameters: None
        self._weights = StepWeights(supernet, autocast_dtype(world.device, settings.amp), arrived)
        # Of the last step: this rank's share of each subnet's mean loss [parts][subnets].
        self._losses: list[Tensor] = []

    def losses(self, images: Tensor, targets: Tensor, step: int) -> Iterator[Tensor]:
        """The losses of a step, one a subnet and part of this rank's images; their sum over ranks is the mean loss."""
        sides = self._supernet.scheme.training_sides(step)
        groups = self._plan.at(step)
        self._losses = [torch.zeros(len(subnets), device=images.device) for subnets in groups]
        uses = [
            (subnet, side)
            for part, subnets in zip(self._parts, groups, strict=True)
            for _ in range(min(self._accumulate, part.stop - part.start))
            for subnet in subnets
            for side in sides
        ]
        self._weights.begin(dict.fromkeys(uses))
        if self._reduction:
            self._reduction.begin(
                self._supernet.slices_in_use([subnet for subnets in groups for subnet in subnets], sides),
                (self._supernet.parameters_in_use(*use) for use in uses),
            )
        for kept, part, subnets in zip(self._losses, self._parts, groups, strict=True):
            for own_images, own_targets, *_ in parts_of(images[part], targets[part], self._accumulate):
                share = len(own_images) / len(images)
                with autocast(self._world.device, self._amp):
                    taught = self._teacher(own_images) if self._teacher else None
                for i, subnet in enumerate(subnets):
                    with autocast(self._world.device, self._amp):
                        # One loss on the sum of all sides' logits, as in BCNet.
                        logits = sum(self._logits(own_images, subnet, side) for side in sides)
                    loss = self._criterion(logits, own_targets, taught)
                    kept[i] += share * loss.detach()
                    yield share / len(subnets) * loss
                    if i == 0 and self._from_largest:
                        taught = logits.detach()

    def _logits(self, images: Tensor, subnet: Architecture, side: Side) -> Tensor:
        return self._supernet(images, subnet, side, self._weights.of(subnet, side))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, the passes of this rank reduce nothing over the others."""
        reduction, self._reduction = self._reduction, None
        if reduction:
            reduction.abandon()
        try:
            yield
        finally:
            self._reduction = reduction

    def after_backward(self, step: int) -> None:
        """Wait until gradients and losses are averaged over the ranks, and record the losses."""
        groups = self._plan.at(step)
        if self._reduction:
            self._reduction.finish(self._losses)
        for genomes, losses in zip(self._plan.genomes(step), self._losses, strict=True):
            for i in self._plan.random_ones(len(genomes)):
                # Each part is that share of the batch.
                self._choice_losses.add(genomes[i], losses[i] * len(groups))


def _parts_of_rank(batch_size: int, parts: int, world: World) -> list[slice]:
    """For each part of the batch, which of this rank's images are in it."""
    own = world.share(batch_size)
    ends = [batch_size * i // parts - own.start for i in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(min(max(end, 0), own.stop - own.start) for end in ends)]
