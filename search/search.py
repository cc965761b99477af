"""The `search` stage: train the supernet, one subnet per step."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from search.subnets import subnets_to_train
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.training import TrainingLoader
from vitas.distributed import World, average_, stream_seed
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.train import Task, train


def search(config: RunConfig, world: World) -> None:
    """Train the supernet to the last epoch, with checkpoints in `save_path/search/checkpoint/`."""
    settings, model = config.search, config.model
    report = Report("search", config.folder, world)
    checkpoints = CheckpointFolder(config.folder.checkpoints("search"), settings.keep)
    subnets = subnets_to_train(config, report, world)
    supernet = build_supernet(config, world)
    loader = TrainingLoader.for_stage(settings, config, world)
    weights = sum(p.numel() for p in supernet.parameters())
    report.line(
        f"{model.sharing} supernet of {config.space.size:.3g} architectures, {weights:,} weights, "
        f"{world.size} process(es) on {world.device.type}"
    )
    if subnets.identity_probability is not None:
        report.line(f"a position is an identity with probability {subnets.identity_probability:.3f}")
    subnet = lru_cache(maxsize=1)(subnets.at)

    def forward(images: Tensor, step: int) -> Tensor:
        # One loss on the sum of all sides' logits, as in BCNet.
        return sum(supernet(images, subnet(step), side) for side in supernet.scheme.training_sides(step))

    def reduce_gradients(step: int) -> None:
        if world.size > 1:
            average_(supernet.gradients_in_use(subnet(step), supernet.scheme.training_sides(step)), world)

    about = {
        "model_config": model.model_dump(mode="json"),
        "identity_probability": subnets.identity_probability,
    }
    task = Task(supernet, forward, model.num_classes, reduce_gradients, about=about)
    train(task, settings, loader, checkpoints, report, world, config.seed)
    if world.is_main:
        report.line(f"the supernet is in {shown_path(checkpoints.newest())}")
    report.close()


def build_supernet(config: RunConfig, world: World) -> SuperNet:
    """The supernet of a configuration; its initial weights depend on the seed and are equal on every rank."""
    torch.manual_seed(stream_seed(config.seed, "supernet weights"))
    model = config.model
    return SuperNet(config.space, model.num_classes, model.image_size, model.sharing, model.qkv_mode).to(world.device)
