"""The `sample` stage: evolve architectures inside a budget, scored with the supernet's weights.

The loop is ask, score, tell. Every score is journalled in `population.jsonl`
before it is used. Evolution is a function of its seed and the scores, so a
restart replays it over the journal and resumes, without scoring anything twice.
"""

from __future__ import annotations

import numpy as np

from search.evolution import Evolution
from search.measured_speed import SpeedMeter
from search.objectives import OBJECTIVES
from search.operators import BlockCrossover, BlockMutation, DropKnown, MoveIntoBudget
from search.scoring import SubnetScore, SupernetScorer, describe_candidate
from search.search import build_supernet
from vitas import checkpoint
from vitas.architecture import Architecture
from vitas.budget import Budget, CostModel
from vitas.catalog import Found, write_found
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.errors import UserError
from vitas.in_budget import InBudget
from vitas.report import Report, shown_path
from vitas.seeds import stream_seed


def sample(config: RunConfig, world: World) -> None:
    """Evolve architectures, and write the best `sample_num` to `save_path/search/architectures.yaml`."""
    settings, space, budget = config.sample, config.space, config.sample.budget
    report = Report("sample", config.folder, world)
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve(settings.load_name)
    supernet = build_supernet(config, world).eval()
    checkpoint.load_weights(supernet, path, settings.weights)
    model = config.model
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, everything=True)
    report.line(f"scores with {shown_path(path)} on {images.total:,} images; budget {budget}")
    scorer = SupernetScorer(config, supernet, images, report, world)
    timed = budget.is_speed or "images_per_second" in settings.objectives
    meter = SpeedMeter(config, report, world) if timed else None
    macs_model = config.macs_model
    evolution = _evolution(config, meter.fit_model() if budget.is_speed else macs_model, world)

    rounds = settings.generations + 1
    with report.progress(rounds, 0, "generations") as update:
        for generation in range(rounds):
            genomes = evolution.ask()
            if not len(genomes):
                report.line(f"generation {generation} finds nothing new: the budget's architectures are exhausted")
                break
            architectures = [space.decode(genome) for genome in genomes]
            quantities = {"macs": macs_model.predict(genomes)}
            if meter:
                quantities["images_per_second"] = meter.measure(architectures)
            cost = quantities["images_per_second" if budget.is_speed else "macs"]
            outside = budget.distance(cost)
            inside = outside == 0
            scores = scorer.score([a for a, fits in zip(architectures, inside, strict=True) if fits], generation)
            if not scorer.known:
                raise UserError(
                    f"sample.budget: none of the {len(cost)} architectures that were proposed has {budget}; "
                    f"the nearest has {budget.nearest(cost):,.0f}; widen it"
                )
            for name in ("top1", "loss"):
                quantities[name] = np.zeros(len(genomes))
                quantities[name][inside] = [getattr(score, name) for score in scores]
            quantities["parameters"] = [a.parameters(model.image_size, model.num_classes) for a in architectures]
            minimised = [OBJECTIVES[name].minimised(quantities) for name in settings.objectives]
            evolution.tell(np.stack(minimised, axis=1), outside[:, None])
            _report_generation(generation, settings.generations, scorer, quantities["top1"][inside], report, update)

    found = _best(config, scorer.known, meter)
    if not found:
        # All scores may be from an earlier search with a budget in another convention.
        raise UserError(f"sample.budget: none of the {len(scorer.known)} architectures that were scored has {budget}")
    if world.is_main:
        write_found(config.folder.architectures, found)
        report.line(
            f"best: {found[0].architecture} with top-1 {found[0].facts['top1']:.2f}%; "
            f"{len(found)} architectures in {shown_path(config.folder.architectures)}"
        )
    report.close()


def _evolution(config: RunConfig, cost_model: CostModel, world: World) -> Evolution:
    settings, budget = config.sample, config.sample.budget
    return Evolution(
        world,
        config.seed,
        "evolution",
        config.space.gene_counts,
        lambda: _first_population(cost_model, budget, settings.initial_population, config.seed),
        settings.population,
        len(settings.objectives),
        constraints=1,
        crossover=BlockCrossover(config.space),
        mutation=BlockMutation(config.space, settings.mutation),
        repair=MoveIntoBudget(cost_model, budget),
        eliminate_duplicates=DropKnown(),
    )


def _first_population(cost_model: CostModel, budget: Budget, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(stream_seed(seed, "initial population"))
    try:
        return InBudget(cost_model, budget).draw_different(rng, count)
    except UserError as error:
        raise UserError(f"sample.budget: {error}") from None


def _report_generation(
    generation: int, last: int, scorer: SupernetScorer, children: np.ndarray, report: Report, update
) -> None:
    best = max(score.top1 for score in scorer.known.values())
    text = f"best top-1 {best:.2f}%  {len(scorer.known)} scored"
    update(generation + 1, text)
    mean = children.mean() if len(children) else float("nan")
    report.log_only(f"generation {generation}/{last}  {text}  mean of children {mean:.2f}%")
    report.scalars(generation, {"best_top1": best, "mean_top1": mean, "scored": len(scorer.known)})


def _best(config: RunConfig, scores: dict[Architecture, SubnetScore], meter: SpeedMeter | None) -> list[Found]:
    """The best architectures inside the budget by the first objective that is a score; ties go to the fewer MACs."""
    budget, size = config.sample.budget, (config.model.image_size, config.model.num_classes)
    objective = next(OBJECTIVES[name] for name in config.sample.objectives if OBJECTIVES[name].is_score)
    convention = "true" if budget.is_speed else budget.convention
    macs = {a: a.macs(*size, convention) for a in scores}
    # Scores from an earlier search with a budget in another convention may have no measured speed.
    speeds = {a: meter.known[a] for a in scores if a in meter.known} if meter else {}
    costs = speeds if budget.is_speed else macs

    def rank(a: Architecture) -> tuple:
        return objective.minimised({objective.quantity: getattr(scores[a], objective.quantity)}), macs[a], str(a)

    ranked = sorted((a for a in costs if costs[a] in budget), key=rank)[: config.sample.sample_num]
    return [
        # Without identities, so that stochastic depth reaches its full rate at the last block.
        Found(
            f"subnet_{i}",
            a.compact(),
            scores[a].facts | ({"images_per_second": speeds[a]} if a in speeds else {}) | describe_candidate(a, config),
        )
        for i, a in enumerate(ranked, start=1)
    ]
