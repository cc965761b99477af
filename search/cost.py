"""What a search takes on this machine, measured: real steps of the supernet's training, and passes of subnets.

`vitas space --measure` asks for it. Nothing is written to the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.asvit.scoring import ntk_images
from search.measured_speed import SECONDS
from search.passes import Passes
from search.predictor import ChoiceLosses
from search.search import build_supernet
from search.subnets import training_plan
from vitas.asvit.genotype import GenotypeSpace
from vitas.asvit.scores import score_once
from vitas.budget import CostModel, SpeedModel
from vitas.config import AsvitSearch, RunConfig
from vitas.data.folders import count_images
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.evaluate import images_per_second
from vitas.in_budget import InBudget
from vitas.models import create_model
from vitas.space_costs import draw

# Random architectures whose speed is measured; the speeds of others follow from these.
_MEASURED = 16
# The first steps are slower: memory is allocated, workers start.
_WARM_UP, _STEPS = 2, 6
# A scored network comes with others of its wave; this many are measured.
_SCORED = 4


def measure(config: RunConfig, draws: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What the search takes on this machine, on one process, as plain data; speeds [draws] under `speeds`.

    say: is told what is being measured. Seconds are None for what the configuration does not hold, or whose images are
    not there.
    """
    on_gpu = torch.cuda.is_available()
    world = World(device=torch.device("cuda" if on_gpu else "cpu"))
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    if isinstance(config.search, AsvitSearch):
        return {"measured_on": where, **_of_topologies(config, config.search, world, say)}
    found: dict[str, Any] = {"measured_on": where}
    say(f"the speed of {_MEASURED} architectures")
    speeds = _speed_model(config, draws, world)
    found["speeds"] = speeds.predict(draw(config, draws))
    # As the search has it: what it measures guides it where the budget is a speed.
    cost_model = speeds if config.sample is not None and config.sample.budget.is_speed else config.macs_model
    found["batch_size"] = _batch_size(config, world)
    if config.search is not None and Path(config.search.data.data_dir).is_dir():
        say(f"{_WARM_UP + _STEPS} steps of the supernet's training")
        seconds, per_epoch = _step(config, cost_model, world)
        found["seconds_per_step"] = seconds
        found["seconds_of_search"] = seconds * per_epoch * config.search.epochs
    if config.sample is not None and Path(config.sample.data.data_dir).is_dir():
        say("scores")
        found["seconds_per_score"] = _score(config, cost_model, world)
        scores = config.sample.initial_population + config.sample.generations * config.sample.population
        found["seconds_of_sample"] = found["seconds_per_score"] * scores
    return found


def _batch_size(config: RunConfig, world: World) -> int:
    if config.sample is not None and config.sample.budget.is_speed:
        return config.sample.budget.batch_size
    return 256 if world.device.type == "cuda" else 8


def _speed(architecture: Any, config: RunConfig, world: World) -> float:
    network = create_model(architecture, config.model.num_classes, config.model.image_size).to(world.device)
    return images_per_second(network, config.model.image_size, _batch_size(config, world), SECONDS)


def _speed_model(config: RunConfig, draws: int, world: World) -> SpeedModel:
    """A model of images per second, fitted to some of `draws` random architectures."""
    space = config.space
    genomes = draw(config, draws)
    # From the cheapest to the dearest, so that the model need not guess beyond what was measured.
    by_cost = np.argsort(config.macs_model.predict(genomes))
    chosen = genomes[by_cost[np.linspace(0, len(by_cost) - 1, _MEASURED).round().astype(int)]]
    measured = [_speed(space.decode(genome), config, world) for genome in chosen]
    return SpeedModel.fit(space, config.model.image_size, chosen, measured)


def _step(config: RunConfig, cost_model: CostModel, world: World) -> tuple[float, int]:
    """The seconds of a step of the supernet's training, with its images but no teacher, and the steps of an epoch."""
    settings, model = config.search, config.model
    plan, _ = training_plan(config, cost_model if config.sample is not None else None)
    supernet = build_supernet(config, world).train()
    passes = Passes(supernet, plan, settings, None, ChoiceLosses(config.space, 1), world)
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=0.0, fused=True)
    loader = TrainingLoader(
        settings.data, model.image_size, model.mean, model.std, settings.batch_size, world, config.seed,
        settings.repeats,
    )  # fmt: skip
    steps = _WARM_UP + _STEPS
    ends = []
    for step, (images, labels) in enumerate(loader.batches(0, steps)):
        images, labels = images.to(world.device), labels.to(world.device)
        targets = labels
        if settings.mixup or settings.cutmix:
            # What mixing takes is small; its targets are probabilities.
            targets = torch.nn.functional.one_hot(labels, model.num_classes).float()
        optimizer.zero_grad()
        for loss in passes.losses(images, targets, step):
            loss.backward()
        optimizer.step()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[_WARM_UP - 1]) / _STEPS, loader.steps_per_epoch


def _score(config: RunConfig, cost_model: CostModel, world: World) -> float:
    """The seconds of a score: passes of a network of the budget over the val images."""
    settings = config.sample
    genomes = InBudget(cost_model, config.budget).draw(np.random.default_rng(0), _SCORED)
    images = count_images(settings.data.data_dir, settings.data.part)
    if settings.race is not None:
        images *= settings.race.images + settings.race.keep
    per_image = np.mean([1 / _speed(config.space.decode(genome), config, world) for genome in genomes])
    # One network after another goes over all images, once for each side.
    return float(per_image * images * len(build_supernet(config, World()).scheme.scoring_sides))


def _of_topologies(config: RunConfig, search: AsvitSearch, world: World, say: Callable[[str], None]) -> dict[str, Any]:
    say("scores of topologies")
    space, rng = GenotypeSpace(), np.random.default_rng(0)
    has_images = search.data is not None and Path(search.data.data_dir).is_dir()
    images = ntk_images(config) if has_images else None
    ends = [time.perf_counter()]
    for index in range(_SCORED + 1):
        genotype = space.sample(rng)
        size = config.model.image_size
        score_once(genotype, size, config.seed, index, search.batch_size, search.points, images, world.device)
        ends.append(time.perf_counter())
    seconds = (ends[-1] - ends[1]) / _SCORED
    topologies = search.steps * search.repeat if search.topology is None else 0
    # Growth depends on its budget; it scores fewer networks.
    return {"seconds_per_score": seconds, "seconds_of_search": seconds * topologies}
