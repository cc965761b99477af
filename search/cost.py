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

from search.adaptation import Adaptation
from search.asvit.scoring import ntk_images
from search.measured_speed import SECONDS
from search.passes import Passes
from search.predictor import ChoiceLosses
from search.search import build_supernet
from search.subnets import training_plan
from vitas.architecture import Architecture
from vitas.asvit.genotype import GenotypeSpace
from vitas.asvit.scores import score_once
from vitas.budget import CostModel, SpeedModel
from vitas.config import AsvitSearch, RunConfig, Sample
from vitas.data.folders import count_images
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.evaluate import images_per_second
from vitas.in_budget import InBudget
from vitas.models import create_model
from vitas.space_costs import draw
from vitas.teacher import load_teacher

# Random architectures whose speed is measured; the speeds of others follow from these.
_MEASURED = 16
# The first steps are slower: memory is allocated, workers start.
_WARM_UP, _STEPS = 2, 6
# So many networks of the budget are measured, whose mean stands for all that are scored.
_SCORED = 4
# Steps of a candidate's adaptation that are measured, of which there may be hundreds.
_ADAPTED = 8


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
    settings = config.sample
    has_val_images = settings is not None and Path(settings.data.data_dir).is_dir()
    per_pass = 0.0
    if has_val_images:
        say("scores")
        per_pass = found["seconds_per_pass"] = _pass(config, cost_model, world)
    if config.search is not None and Path(config.search.data.data_dir).is_dir():
        say(f"{_WARM_UP + _STEPS} steps of the supernet's training")
        seconds, per_epoch = _step(config, cost_model, world)
        found["seconds_per_step"] = seconds
        found["seconds_of_search"] = seconds * per_epoch * config.search.epochs
        if panel := config.search.panel:
            found["seconds_of_search"] += per_pass * panel.size * (config.search.epochs // panel.epochs)
    if has_val_images:
        adaptation = 0.0
        if settings.adapt:
            say("adaptation")
            adaptation = found["seconds_per_adaptation"] = _adaptation(config, cost_model, world)
        per_score = _score(settings, per_pass, adaptation)
        scores = settings.initial_population + settings.generations * settings.population
        found["seconds_per_score"] = per_score
        found["seconds_of_sample"] = per_score * scores
        if settings.finalists:
            # Of a front, all are finalists; how many is not known before.
            per_finalist = adaptation + per_pass * settings.finalists.images
            found["seconds_of_sample"] += per_finalist * settings.finalists.count
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
    """The seconds of a step of the supernet's training, with its images and its teacher, and the steps of an epoch."""
    settings, model = config.search, config.model
    plan, _ = training_plan(config, cost_model if config.sample is not None else None)
    supernet = build_supernet(config, world).train()
    passes = Passes(
        supernet, plan, settings, load_teacher(config, "search", world), ChoiceLosses(config.space, 1), world
    )
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=0.0, fused=True)
    loader = TrainingLoader(
        settings.data, model.image_size, model.mean, model.std, settings.batch_size, world, config.seed,
        settings.repeats,
    )  # fmt: skip
    steps = _WARM_UP + _STEPS
    ends = []
    for step, (images, labels) in enumerate(loader.batches(0, steps)):
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


def _of_budget(config: RunConfig, cost_model: CostModel, count: int) -> list[Architecture]:
    """Architectures such as `sample` scores."""
    genomes = InBudget(cost_model, config.budget).draw(np.random.default_rng(0), count)
    return [config.space.decode(genome) for genome in genomes]


def _pass(config: RunConfig, cost_model: CostModel, world: World) -> float:
    """The seconds in which a network of the budget goes over all val images, once for each side."""
    data = config.sample.data
    images = count_images(data.data_dir, data.part)
    per_image = np.mean([1 / _speed(each, config, world) for each in _of_budget(config, cost_model, _SCORED)])
    return float(per_image * images * len(build_supernet(config, World()).scheme.scoring_sides))


def _score(settings: Sample, per_pass: float, adaptation: float) -> float:
    """The seconds of a score: of its rungs, each of which the best of the one before reach."""
    if settings.finalists:
        per_pass *= 1 - settings.finalists.images
    seconds, share = 0.0, 1.0
    if settings.race:
        seconds += per_pass * settings.race.images
        share = settings.race.keep
    seconds += per_pass * share
    if settings.adapt:
        seconds += (adaptation + per_pass) * share * settings.adapt.keep
    return seconds


def _adaptation(config: RunConfig, cost_model: CostModel, world: World) -> float:
    """The seconds that a candidate trains before it is scored."""
    steps = config.sample.adapt.steps
    few = config.sample.adapt.model_copy(update={"steps": min(_ADAPTED, steps)})
    shorter = config.model_copy(update={"sample": config.sample.model_copy(update={"adapt": few})})
    adaptation = Adaptation(shorter, build_supernet(config, world), world)
    # The first is a warm-up.
    for architecture in _of_budget(config, cost_model, 2):
        began = time.perf_counter()
        adaptation.adapt(architecture)
        if world.device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - began) * steps / few.steps


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
