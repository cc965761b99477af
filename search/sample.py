"""The `sample` stage: evolve architectures inside a budget, scored with the supernet's weights.

The loop is ask, score, tell. Every score is journalled in `population.jsonl`
before it is used. Evolution is a function of its seed and the scores, so a
restart replays it over the journal and resumes, without scoring anything twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from search.evolution import Evolution
from search.latency import LatencyTable
from search.measured_speed import SpeedMeter
from search.objectives import OBJECTIVES
from search.operators import BlockCrossover, BlockMutation, MoveIntoBudget
from search.predictor import ChoiceLosses, Predictor
from search.scoring import SubnetScore, SupernetScorer, describe_candidate
from search.search import build_supernet
from vitas import loading
from vitas.architecture import Architecture
from vitas.budget import Budget, CostModel
from vitas.catalog import Found, as_markdown, write_found
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.drawing import to_svg
from vitas.errors import UserError
from vitas.files import write_text
from vitas.hypervolume import Hypervolume
from vitas.in_budget import InBudget
from vitas.report import Report, shown_path
from vitas.report_page.figure import BLUE, SCHEMA, Spec, quantitative, values
from vitas.seeds import stream_seed


def sample(config: RunConfig, world: World) -> None:
    """Evolve architectures, and write what was found to `save_path/search/architectures.yaml`.

    With one objective these are the best `sample_num`; with several the
    non-dominated front, which is written to `front.yaml` too.
    """
    settings, space, budget = config.sample, config.space, config.budget
    report = Report.for_stage("sample", config, world)
    checkpoints = CheckpointFolder(config.folder.checkpoints("search"))
    path, state = checkpoints.read(settings.load_name)
    if settings.load_name is None:
        report.line(*checkpoints.passed_over())
    supernet = build_supernet(config, world).eval()
    loading.load_state(supernet, state, path, settings.weights)
    model = config.model
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, True, report)
    left_out = f" ({images.left_out:,} bad ones are left out)" if images.left_out else ""
    report.line(f"scores with {shown_path(path)} on {images.total:,} images{left_out}; budget {budget}")
    scorer = SupernetScorer(config, supernet, images, report, world)
    timed = budget.is_speed or "images_per_second" in settings.objectives
    meter = SpeedMeter(config, report, world) if timed else None
    latency = LatencyTable(config, report, world) if "latency" in settings.objectives else None
    macs_model = config.macs_model
    cost_model = meter.fit_model() if budget.is_speed else macs_model
    prior = _prior(config, state, path) if settings.prior > 1 else None
    evolution = _evolution(config, cost_model, prior, world)
    prescreen = _Prescreen(config)
    so_far = _SoFar(settings.objectives)

    rounds = settings.generations + 1
    with report.progress(rounds, 0, "generations") as update:
        for generation in range(rounds):
            genomes = evolution.ask(prescreen.predict if prescreen.is_ready else None)
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
            fitting = [a for a, fits in zip(architectures, inside, strict=True) if fits]
            known_before = len(scorer.known)
            scores = scorer.score(fitting, generation)
            if not scorer.count:
                raise UserError(
                    f"sample.budget: none of the {len(cost)} architectures that were proposed has {budget}; "
                    f"the nearest has {budget.nearest(cost):,.0f}; widen it"
                )
            for name in ("top1", "loss"):
                quantities[name] = np.zeros(len(genomes))
                quantities[name][inside] = [getattr(score, name) for score in scores]
            if latency:
                quantities["latency"] = latency.predict(architectures)
            quantities["parameters"] = [a.parameters(model.image_size, model.num_classes) for a in architectures]
            minimised = np.stack([OBJECTIVES[name].minimised(quantities) for name in settings.objectives], axis=1)
            evolution.tell(minimised, outside[:, None])
            prescreen.learn(genomes[inside], scorer.objective.minimised(quantities)[inside])
            so_far.add(fitting, scorer, minimised[inside])
            _report_generation(generation, settings.generations, so_far, quantities["top1"][inside], report, update)
            # Of a replay of what is known, the last alone: a restart must not wait for pictures.
            is_new = len(scorer.known) > known_before or generation == settings.generations
            if so_far.front is not None and is_new:
                report.figure("evolution/front", generation, _front_figure(so_far.front, settings.objectives))

    found = _found(config, scorer, meter, latency)
    if not found:
        # All scores may be from an earlier search with a budget in another convention.
        raise UserError(f"sample.budget: none of the {len(scorer.known)} architectures that were scored has {budget}")
    if world.is_main:
        write_found(config.folder.architectures, found)
        report.text("architectures", settings.generations, as_markdown(found))
        for each in found:
            report.picture(f"architectures/{each.name}", settings.generations, to_svg(each.architecture))
        if len(settings.objectives) > 1:
            _write_front(config, found)
        report.line(
            f"best: {found[0].architecture} with top-1 {found[0].facts['top1']:.2f}%; "
            f"{len(found)} architectures in {shown_path(config.folder.architectures)}"
        )
    report.finish()


def _write_front(config: RunConfig, found: Sequence[Found]) -> None:
    """Write `front.yaml`: the architectures of the front by name, with the quantities that the objectives are of."""
    # MACs are meant in the budget's convention.
    macs = "macs_released" if _convention(config.sample.budget) == "released" else "macs"
    quantities = [OBJECTIVES[name].quantity for name in config.sample.objectives]
    facts = [macs if quantity == "macs" else quantity for quantity in quantities]
    front = [{"name": e.name, **{fact: e.facts[fact] for fact in facts}, "text": str(e.architecture)} for e in found]
    data = {"objectives": list(config.sample.objectives), "front": front}
    write_text(config.folder.front, yaml.safe_dump(data, sort_keys=False, width=120))


def _prior(config: RunConfig, state: Mapping, path: Path) -> ChoiceLosses:
    """What the supernet's training knows of choices."""
    if "choice_losses" not in state:
        raise UserError(f"sample.prior: {path} does not hold the losses of choices in training; take prior: 1")
    return ChoiceLosses.recorded(config.space, state["choice_losses"])


class _Prescreen:
    """The predictor that chooses children, if the run wants one; it knows what evolution was told."""

    def __init__(self, config: RunConfig) -> None:
        self._settings, self._predictor = config.sample.prescreen, Predictor(config.space)
        self._genomes: list[np.ndarray] = []
        self._values: list[float] = []

    @property
    def is_ready(self) -> bool:
        return self._settings is not None and len(self._values) >= self._settings.scored

    def learn(self, genomes: np.ndarray, values: np.ndarray) -> None:
        if self._settings is not None:
            self._genomes += list(genomes)
            self._values += values.tolist()
            if self.is_ready:
                self._predictor.fit(np.array(self._genomes), np.array(self._values))

    def predict(self, genomes: np.ndarray) -> np.ndarray:
        return self._predictor.predict(genomes)


def _evolution(config: RunConfig, cost_model: CostModel, prior: ChoiceLosses | None, world: World) -> Evolution:
    settings, budget = config.sample, config.budget
    return Evolution(
        world,
        config.seed,
        "evolution",
        config.space.gene_counts,
        lambda: _first_population(config, cost_model, prior),
        settings.population,
        len(settings.objectives),
        constraints=1,
        oversample=settings.prescreen.oversample if settings.prescreen else 1,
        crossover=BlockCrossover(config.space),
        mutation=BlockMutation(config.space, settings.mutation),
        repair=MoveIntoBudget(cost_model, budget),
    )


def _first_population(config: RunConfig, cost_model: CostModel, prior: ChoiceLosses | None) -> np.ndarray:
    settings, count = config.sample, config.sample.initial_population
    rng = np.random.default_rng(stream_seed(config.seed, "initial population"))
    try:
        drawn = InBudget(cost_model, config.budget).draw_different(rng, count * settings.prior)
    except UserError as error:
        raise UserError(f"sample.budget: {error}") from None
    if prior is None:
        return drawn
    # The best of each small group, not the best of all, which would resemble each other.
    worth = prior.predict(drawn)
    groups = np.array_split(np.arange(len(drawn)), min(count, len(drawn)))
    return drawn[[group[np.argmin(worth[group])] for group in groups]]


class _SoFar:
    """What this search has found up to a generation; where a restart replays it, what it had found up to there.

    scored: architectures. best_top1: of these. hypervolume: of their front; None with a single objective.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self._seen: set[Architecture] = set()
        self._hypervolume = Hypervolume() if len(objectives) > 1 else None
        self.best_top1 = 0.0
        self.hypervolume: float | None = None

    @property
    def scored(self) -> int:
        return len(self._seen)

    @property
    def front(self) -> np.ndarray | None:
        """The objectives of the front [points, objectives], which are minimised; None with a single objective."""
        return self._hypervolume.front if self._hypervolume else None

    def add(self, architectures: Iterable[Architecture], scorer: SupernetScorer, objectives: np.ndarray) -> None:
        """The architectures of a generation inside the budget, and their objectives [n, objectives]."""
        # Those that a race left behind have no score that compares with the others.
        known = {a: scorer.known[a].top1 for a in (a.shifted() for a in architectures) if a in scorer.known}
        self._seen |= known.keys()
        self.best_top1 = max([self.best_top1, *known.values()])
        if self._hypervolume:
            self.hypervolume = self._hypervolume.add(objectives)


def _report_generation(
    generation: int, last: int, so_far: _SoFar, children: np.ndarray, report: Report, update
) -> None:
    text = f"best top-1 {so_far.best_top1:.2f}%  {so_far.scored} scored"
    update(generation + 1, text)
    mean = children.mean() if len(children) else float("nan")
    report.log_only(f"generation {generation}/{last}  {text}  mean of children {mean:.2f}%")
    values = {
        "best_top1": so_far.best_top1,
        "mean_top1": mean,
        "scored": so_far.scored,
        "hypervolume": so_far.hypervolume,
    }
    # A generation may have no children in the budget, and one objective no volume.
    known = {name: float(value) for name, value in values.items() if value is not None and not np.isnan(value)}
    report.scalars(generation, {f"evolution/{name}": value for name, value in known.items()})


def _front_figure(front: np.ndarray, objectives: Sequence[str]) -> Spec:
    """The front by its first two objectives, as a Vega-Lite specification."""
    first, second = (OBJECTIVES[name] for name in objectives[:2])
    shown = np.stack([each.quantities(front[:, i]) for i, each in enumerate((first, second))], axis=1)
    rows = [{first.quantity: y, second.quantity: x} for y, x in shown.tolist()]
    return {
        "$schema": SCHEMA,
        "data": values(rows),
        "width": 420,
        "height": 300,
        "mark": {"type": "line", "point": True, "interpolate": "step-after", "color": BLUE},
        "encoding": {
            "x": quantitative(second.quantity, second.quantity),
            "y": quantitative(first.quantity, first.quantity),
        },
    }


def _convention(budget: Budget) -> str:
    """How MACs are counted beside a budget."""
    return "true" if budget.is_speed else budget.convention


def _found(
    config: RunConfig, scorer: SupernetScorer, meter: SpeedMeter | None, latency: LatencyTable | None
) -> list[Found]:
    """What the search found in the budget: by the first score the best, or of several objectives the front.

    Ties go to the fewer MACs.
    """
    settings, budget, size = config.sample, config.budget, (config.model.image_size, config.model.num_classes)
    scores = scorer.known
    macs = {a: a.macs(*size, _convention(budget)) for a in scores}
    # Scores from an earlier search with a budget in another convention may have no measured speed.
    speeds = {a: meter.known[a] for a in scores if a in meter.known} if meter else {}
    latencies = dict(zip(scores, latency.predict(list(scores)).tolist(), strict=True)) if latency else {}
    costs = speeds if budget.is_speed else macs

    def minimised(a: Architecture, scores: Mapping[Architecture, SubnetScore]) -> list[float]:
        quantities = {**vars(scores[a]), "macs": macs[a], "parameters": a.parameters(*size)}
        quantities |= {"images_per_second": speeds.get(a, 0.0), "latency": latencies.get(a, 0.0)}
        return [float(OBJECTIVES[name].minimised(quantities)) for name in settings.objectives]

    def best(architectures: Iterable[Architecture], scores: Mapping[Architecture, SubnetScore]) -> list[Architecture]:
        """Those that are worth keeping, best first."""

        def rank(a: Architecture) -> tuple:
            return float(scorer.objective.minimised(vars(scores[a]))), macs[a], str(a)

        ranked = sorted(architectures, key=rank)
        if len(settings.objectives) == 1 or not ranked:
            return ranked
        points = np.array([minimised(a, scores) for a in ranked])
        return [ranked[i] for i in sorted(NonDominatedSorting().do(points, only_non_dominated_front=True))]

    chosen, reported = best((a for a in costs if costs[a] in budget), scores), scores
    if settings.finalists and chosen:
        # Of a front, all.
        finalists = chosen if len(settings.objectives) > 1 else chosen[: settings.finalists.count]
        # What is reported is what no choice was made by.
        reported, on_all = scorer.score_finalists(finalists)
        chosen = best(finalists, on_all)
    if len(settings.objectives) == 1:
        chosen = chosen[: settings.sample_num]

    def facts(a: Architecture) -> dict:
        measured = {"images_per_second": speeds, "latency": latencies}
        times = {name: values[a] for name, values in measured.items() if a in values}
        return reported[a].facts | times | describe_candidate(a, config)

    # Without identities, so that stochastic depth reaches its full rate at the last block.
    return [Found(f"subnet_{i}", a.compact(), facts(a)) for i, a in enumerate(chosen, start=1)]
