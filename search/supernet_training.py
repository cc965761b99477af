"""The `search` stage: train the supernet, one random subnet a step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from search.speeds import Speeds
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data import TrainingLoader
from vitas.distributed import World, average_, stream_seed
from vitas.engine import Task, train
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.space import Architecture


def search(config: RunConfig, world: World) -> None:
    """Train the supernet to the last epoch; its checkpoints land in `save_path/search/checkpoint/`."""
    settings = config.search
    report = Report("search", config.folder, world)
    checkpoints = CheckpointFolder(config.folder.checkpoints("search"), settings.keep)
    space = config.space
    identity_probability = find_identity_probability(config, report, world)
    supernet = build_supernet(config, world)
    loader = TrainingLoader(
        settings.data,
        config.model.image_size,
        config.model.mean,
        config.model.std,
        settings.batch_size,
        world,
        config.seed,
    )
    weights = sum(p.numel() for p in supernet.parameters())
    report.line(
        f"{config.model.sharing} supernet of {space.size:.3g} architectures, {weights:,} weights, "
        f"{world.size} process(es) on {world.device.type}"
    )
    if identity_probability is not None:
        report.line(f"a position is an identity with probability {identity_probability:.3f}")

    @lru_cache(maxsize=1)
    def subnet(step: int) -> Architecture:
        """The subnet of a step: the same on every rank, without a word between them."""
        rng = np.random.default_rng(stream_seed(config.seed, "subnet", step))
        return space.sample(rng, identity_probability)

    def forward(images: Tensor, step: int) -> Tensor:
        # BCNet: one loss on the sum of both sides' logits.
        return sum(supernet(images, subnet(step), side) for side in supernet.sides)

    def reduce_gradients(step: int) -> None:
        if world.size > 1:
            average_(gradients_in_use(supernet, subnet(step)), world)

    task = Task(
        supernet,
        forward,
        config.model.num_classes,
        reduce_gradients,
        about={"model_config": config.model.model_dump(), "identity_probability": identity_probability},
    )
    train(task, settings, loader, checkpoints, report, world, config.seed)
    if world.is_main:
        report.line(f"the supernet is in {shown_path(checkpoints.newest())}")
    report.close()


def build_supernet(config: RunConfig, world: World) -> SuperNet:
    """The supernet of a configuration with its seeded initial weights, the same on every rank."""
    torch.manual_seed(stream_seed(config.seed, "supernet weights"))
    model = config.model
    return SuperNet(config.space, model.num_classes, model.image_size, model.sharing, model.qkv_mode).to(world.device)


def find_identity_probability(config: RunConfig, report: Report, world: World) -> float | None:
    """What the configuration sets, or the one at which random subnets cost what `sample.budget` asks for."""
    if config.search.identity_probability is not None or config.sample is None:
        return config.search.identity_probability
    budget = config.sample.budget.build()
    costs = Speeds(config, report, world).model() if budget.is_speed else config.costs
    return costs.identity_probability(budget, config.seed)


def gradients_in_use(supernet: SuperNet, architecture: Architecture) -> list[Tensor]:
    """Views of the gradients of the channels that a subnet's passes used, each view once."""
    used = {
        (id(part.parameter), str(part.index)): part.parameter.grad[part.index]
        for side in supernet.sides
        for part in supernet.slices(architecture, side).values()
    }
    return list(used.values())
