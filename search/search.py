"""The `search` stage: train the supernet, some of its subnets in each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
import yaml
from torch import Tensor

from search.measured_speed import SpeedMeter
from search.panel import Panel
from search.seen import describe_seen, seen_by
from search.subnets import training_plan
from vitas.budget import CostModel
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.training import TrainingLoader
from vitas.distributed import World, average_
from vitas.evaluate import autocast
from vitas.files import write_text
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.seeds import stream_seed
from vitas.teacher import LARGEST, load_teacher
from vitas.train import Criterion, Task, train


def search(config: RunConfig, world: World) -> None:
    """Train the supernet to the last epoch, with checkpoints in `save_path/search/checkpoint/`."""
    settings, model = config.search, config.model
    report = Report("search", config.folder, world)
    checkpoints = CheckpointFolder(config.folder.checkpoints("search"), settings.keep)
    cost_model = budget_model(config, report, world)
    plan, draw = training_plan(config, cost_model)
    supernet = build_supernet(config, world)
    teacher = load_teacher(config, "search", report, world)
    loader = TrainingLoader.for_stage(settings, config, world)
    weights = sum(p.numel() for p in supernet.parameters())
    report.line(
        f"{model.sharing} supernet of {config.space.size:.3g} architectures, {weights:,} weights, "
        f"{world.size} process(es) on {world.device.type}"
    )
    report.line(f"trains {draw}")
    criterion = Criterion(settings)
    parts = _parts_of_rank(settings.batch_size, settings.subnets.parts, world)
    learns_from_largest = settings.distillation is not None and settings.distillation.teacher == LARGEST

    def losses(images: Tensor, targets: Tensor, step: int) -> Iterator[Tensor]:
        sides = supernet.scheme.training_sides(step)
        for part, subnets in zip(parts, plan.at(step), strict=True):
            own_images, own_targets = images[part], targets[part]
            if not len(own_images):
                continue
            taught = teacher(own_images) if teacher else None
            for i, subnet in enumerate(subnets):
                with autocast(world.device, settings.amp):
                    # One loss on the sum of all sides' logits, as in BCNet.
                    logits = sum(supernet(own_images, subnet, side) for side in sides)
                # The mean over the images and the subnets that they pass.
                share = len(own_images) / len(images) / len(subnets)
                yield share * criterion(logits, own_targets, taught)
                if i == 0 and learns_from_largest:
                    taught = logits.detach()

    def reduce_gradients(step: int) -> None:
        if world.size > 1:
            trained = [subnet for subnets in plan.at(step) for subnet in subnets]
            average_(supernet.gradients_in_use(trained, supernet.scheme.training_sides(step)), world)

    budget = config.sample.budget if config.sample else None
    counted = cost_model or config.macs_model

    def scalars(steps: range) -> Mapping[str, float]:
        seen = seen_by(np.concatenate([plan.genomes(step) for step in steps]), counted, budget)
        return {f"subnets/{name}": value for name, value in seen.items()}

    panel = Panel(config, cost_model, report, world) if settings.panel else None
    task = Task(
        supernet,
        losses,
        model.num_classes,
        reduce_gradients,
        about={"model_config": model.model_dump(mode="json")},
        scalars=scalars,
        after_epoch=panel.after_epoch if panel else lambda epoch, network: None,
    )
    steps = train(task, settings, loader, checkpoints, report, world, config.seed)
    if world.is_main:
        seen = describe_seen(plan, supernet.scheme, counted, budget, steps)
        write_text(config.folder.seen, yaml.safe_dump(seen, sort_keys=False, width=120))
        report.line(f"the supernet is in {shown_path(checkpoints.newest())}")
    report.close()


def budget_model(config: RunConfig, report: Report, world: World) -> CostModel | None:
    """The model of what `sample.budget` limits; None without a section `sample`. For a budget in speed it measures."""
    if config.sample is None:
        return None
    return SpeedMeter(config, report, world).fit_model() if config.sample.budget.is_speed else config.macs_model


def build_supernet(config: RunConfig, world: World) -> SuperNet:
    """The supernet of a configuration; its initial weights depend on the seed and are equal on every rank."""
    torch.manual_seed(stream_seed(config.seed, "supernet weights"))
    model = config.model
    return SuperNet(config.space, model.num_classes, model.image_size, model.sharing, model.qkv_mode).to(world.device)


def _parts_of_rank(batch_size: int, parts: int, world: World) -> list[slice]:
    """For each part of the batch, which of this rank's images are in it."""
    own = world.share(batch_size)
    ends = [batch_size * i // parts - own.start for i in range(parts + 1)]
    clipped = [min(max(end, 0), own.stop - own.start) for end in ends]
    return [slice(start, stop) for start, stop in pairwise(clipped)]
