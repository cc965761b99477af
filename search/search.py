"""The `search` stage: train the supernet, some of its subnets in each step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import yaml

from search.measured_speed import SpeedMeter
from search.panel import Panel
from search.passes import Passes
from search.predictor import ChoiceLosses
from search.seen import describe_seen, seen_by
from search.subnets import training_plan
from vitas import elastic
from vitas.budget import CostModel
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.files import write_text
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.seeds import stream_seed
from vitas.teacher import load_teacher
from vitas.train import Task, train


def search(config: RunConfig, world: World) -> None:
    """Train the supernet to the last epoch, with checkpoints in `save_path/search/checkpoint/`."""
    settings, model = config.search, config.model
    report = Report.for_stage("search", config, world)
    checkpoints = CheckpointFolder(config.folder.checkpoints("search"), settings.keep)
    if model.from_pretrained is not None:
        elastic.prepare(config, report, world)
    cost_model = budget_model(config, report, world)
    plan, draw = training_plan(config, cost_model)
    supernet = build_supernet(config, world)
    if model.from_pretrained is not None and checkpoints.newest() is None:
        supernet.adopt(elastic.pretrained_network(config))
    teacher = load_teacher(config, "search", world)
    if teacher is not None:
        report.line(f"learns from {settings.distillation.teacher}")
    loader = TrainingLoader.for_stage(settings, config, world, report)
    weights = sum(p.numel() for p in supernet.parameters())
    report.line(
        f"{model.sharing} supernet of {_power(config.space.size)} architectures, {weights:,} weights, "
        f"{world.size} process(es) on {world.device.type}"
    )
    report.line(f"trains {draw}")
    # A quarter of the training: early losses say how fast a choice learns, not how good it becomes.
    memory = max(1, settings.epochs * loader.steps_per_epoch // 4)
    choice_losses = ChoiceLosses(config.space, memory)
    supernet.set_grad_checkpointing(settings.activation_checkpointing)
    passes = Passes(supernet, plan, settings, teacher, choice_losses, world)
    budget = config.budget
    counted = cost_model or config.macs_model

    def scalars(steps: range) -> Mapping[str, float]:
        seen = seen_by(np.concatenate([genomes for step in steps for genomes in plan.genomes(step)]), counted, budget)
        return {f"subnets/{name}": value for name, value in seen.items()}

    panel = Panel(config, cost_model, report, world) if settings.panel else None
    task = Task(
        supernet,
        passes.losses,
        model.num_classes,
        alone=passes.alone,
        after_backward=passes.after_backward,
        about={"model_config": model.model_dump(mode="json"), **draw.facts},
        states={"choice_losses": choice_losses},
        scalars=scalars,
        describe=lambda step: "; ".join(str(subnet) for group in plan.at(step) for subnet in group),
        after_epoch=panel.after_epoch if panel else lambda epoch, network: None,
    )
    steps = train(task, settings, loader, checkpoints, report, world, config.seed)
    if world.is_main:
        seen = describe_seen(plan, supernet.scheme, counted, budget, steps)
        write_text(config.folder.seen, yaml.safe_dump(seen, sort_keys=False, width=120))
        report.line(f"the supernet is in {shown_path(checkpoints.newest())}")
    report.finish()


def budget_model(config: RunConfig, report: Report, world: World) -> CostModel | None:
    """The model of what `sample.budget` limits; None without a section `sample`. For a budget in speed it measures."""
    if config.sample is None:
        return None
    return SpeedMeter(config, report, world).fit_model() if config.sample.budget.is_speed else config.macs_model


def _power(count: int) -> str:
    """A number of architectures, which may be beyond what a float holds."""
    return f"{count:.3g}" if count < 1e300 else f"1e{len(str(count)) - 1}"


def build_supernet(config: RunConfig, world: World) -> SuperNet:
    """The supernet of a configuration; its initial weights depend on the seed and are equal on every rank."""
    torch.manual_seed(stream_seed(config.seed, "supernet weights"))
    return SuperNet.of(config).to(world.device)
