"""The `sample` stage: evolve architectures inside a budget, scored with the supernet's weights.

pymoo proposes (ask), the ranks score whole subnets (tell). Every score is in
`population.jsonl` before it is used. Evolution is a function of its seed and
the scores, so a restart replays it over the journal and goes on where it was,
without scoring anything twice.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.problems.static import StaticProblem

from search.measurements import Measurements
from search.speeds import Speeds
from search.supernet_training import build_supernet
from vitas import checkpoint
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.cost import Budget, PopulationCosts
from vitas.data import EvaluationSet
from vitas.distributed import World, broadcast, stream_seed
from vitas.engine import evaluate
from vitas.errors import UserError
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.space import Architecture, costs
from vitas.space.found import Found, write_found

# Random genomes that are drawn for each wanted member of the initial population before the rest is moved in.
_DRAWS_PER_MEMBER = 200


def sample(config: RunConfig, world: World) -> None:
    """Evolve; the best `sample_num` architectures land in `save_path/search/architectures.yaml`."""
    settings, space = config.sample, config.space
    counted, budget = config.costs, settings.budget.build()
    report = Report("sample", config.folder, world)
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve(settings.load_name)
    supernet = build_supernet(config, world).eval()
    checkpoint.load_weights(supernet, path)
    model = config.model
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, everything=True)
    report.line(f"scores with {shown_path(path)} on {images.total:,} images; budget {budget}")
    scorer = Scorer(config, supernet, images, report, world)
    speeds = Speeds(config, report, world) if budget.is_speed else None
    costs = speeds.model() if speeds else counted

    algorithm = _algorithm(config, costs, budget) if world.is_main else None
    rounds = settings.generations + 1
    with report.progress(rounds, 0, "generations") as update:
        for generation in range(rounds):
            proposed = algorithm.ask() if world.is_main else None
            # Rank 0 alone proposes: sorting need not break ties alike on every machine.
            genomes = broadcast(proposed.get("X").astype(np.int64) if world.is_main else None, world)
            if not len(genomes):
                report.line(f"generation {generation} finds nothing new: the budget's architectures are exhausted")
                break
            architectures = [space.decode(genome) for genome in genomes]
            cost = speeds.of(architectures) if speeds else counted.of(genomes)
            feasible = (cost >= budget.minimum) & (cost <= budget.maximum)
            top1 = np.zeros(len(genomes))
            top1[feasible] = scorer.score(
                [a for a, fits in zip(architectures, feasible, strict=True) if fits], generation
            )
            if not scorer.scores:
                raise UserError(f"sample.budget: {_nothing_inside(budget, cost)}; widen it")
            if world.is_main:
                objectives = {"error": 100 - top1, "macs": counted.of(genomes).astype(float)}
                values = np.stack([objectives[name] for name in settings.objectives], axis=1)
                static = StaticProblem(
                    algorithm.problem, F=values, G=np.stack([cost - budget.maximum, budget.minimum - cost], axis=1)
                )
                Evaluator().eval(static, proposed)
                algorithm.tell(infills=proposed)
            best = max(scorer.scores.values())
            text = f"best top-1 {best:.2f}%  {len(scorer.scores)} scored"
            update(generation + 1, text)
            mean = top1[feasible].mean() if feasible.any() else float("nan")
            report.log_only(f"generation {generation}/{settings.generations}  {text}  mean of children {mean:.2f}%")
            report.scalars(generation, {"best_top1": best, "mean_top1": mean, "scored": len(scorer.scores)})

    found = _best(config, scorer.scores, speeds)
    if not found:
        # Known scores may all be of an earlier search, with a budget of another kind.
        raise UserError(f"sample.budget: none of the {len(scorer.scores)} architectures that were scored has {budget}")
    if world.is_main:
        write_found(config.folder.architectures, found)
        report.line(
            f"best: {found[0].architecture} with top-1 {found[0].facts['top1']:.2f}%; "
            f"{len(found)} architectures in {shown_path(config.folder.architectures)}"
        )
    report.close()


class Scorer:
    """Scores architectures with the supernet, each once, and journals every score.

    scores: top-1 in percent, the mean over the supernet's sides, by architecture
        (identities last: one network is one entry).
    """

    def __init__(
        self, config: RunConfig, supernet: SuperNet, images: EvaluationSet, report: Report, world: World
    ) -> None:
        self._config, self._supernet, self._images, self._world = config, supernet, images, world
        origin = {
            "supernet": _digest(supernet),
            "images": images.total,
            "data": config.sample.data.model_dump(exclude={"data_dir", "workers"}),
        }
        self._measured = Measurements(
            config.folder.population,
            origin,
            lambda line: (Architecture.parse(line["architecture"]), line["top1"]),
            "scores",
            report,
            world,
        )

    @property
    def scores(self) -> dict[Architecture, float]:
        return self._measured.values

    def score(self, architectures: list[Architecture], generation: int) -> list[float]:
        """The scores of architectures, in order."""
        # Subnets of a wave run side by side, so they should cost the same.
        model = self._config.model
        networks = [architecture.shifted() for architecture in architectures]
        self._measured.of(
            sorted(networks, key=lambda a: a.macs(model.image_size, model.num_classes)),
            self._top1,
            lambda a, top1: {"architecture": str(a), "top1": top1, "generation": generation, **_facts(self._config, a)},
            self._world.size,
        )
        return [self.scores[a] for a in networks]

    def _top1(self, architecture: Architecture) -> float:
        settings = self._config.sample
        sides = [
            evaluate(
                lambda images, side=side: self._supernet(images, architecture, side),
                self._images,
                settings.batch_size,
                settings.amp,
            ).top1
            for side in self._supernet.sides
        ]
        return sum(sides) / len(sides)


def _facts(config: RunConfig, architecture: Architecture) -> dict:
    image, classes = config.model.image_size, config.model.num_classes
    facts = costs(architecture, image, classes)
    return facts if config.space.shared_blocks else facts | {"net_id": config.space.to_net_id(architecture)}


def _best(config: RunConfig, scores: dict[Architecture, float], speeds: Speeds | None) -> list[Found]:
    """The best inside the budget; of equal scores the cheaper first."""
    budget = config.sample.budget.build()
    image, classes = config.model.image_size, config.model.num_classes
    macs = {a: a.macs(image, classes) if speeds else a.macs(image, classes, budget.convention) for a in scores}
    # Scores of an earlier search with a budget of another kind may have no measured speed.
    cost = {a: speeds.values[a] for a in scores if a in speeds.values} if speeds else macs
    inside = [a for a in cost if cost[a] in budget]
    ranked = sorted(inside, key=lambda a: (-scores[a], macs[a], str(a)))[: config.sample.sample_num]
    return [
        Found(
            f"subnet_{i}",
            a,
            {"top1": scores[a]} | ({"images_per_second": cost[a]} if speeds else {}) | _facts(config, a),
        )
        for i, a in enumerate(ranked, start=1)
    ]


def _nothing_inside(budget: Budget, cost: np.ndarray) -> str:
    nearest = cost[np.argmin(np.maximum(budget.minimum - cost, cost - budget.maximum))]
    return f"none of the {len(cost)} architectures that were proposed has {budget}; the nearest has {nearest:,.0f}"


def _digest(supernet: SuperNet) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in supernet.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def initial_population(costs: PopulationCosts, budget: Budget, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` different genomes [count, genes] inside the budget; fewer where there are no more.

    Random ones first, at the identity probability that suits the budget; what
    is missing is moved in from outside. Raises `UserError` if none was found.
    """
    probability = costs.identity_probability(budget)
    genomes = costs.space.sample_genomes(rng, count * _DRAWS_PER_MEMBER, probability)
    found: dict[bytes, np.ndarray] = {}
    for candidates in (genomes, costs.move_into(budget, genomes[: 20 * count], rng)):
        cost = costs.of(candidates)
        for genome in candidates[(cost >= budget.minimum) & (cost <= budget.maximum)]:
            if len(found) == count:
                break
            found.setdefault(genome.tobytes(), genome)
    if not found:
        raise UserError(f"sample.budget: found no architecture with {budget} among {len(genomes):,} tries; widen it")
    return np.array(list(found.values()))


def _algorithm(config: RunConfig, costs: PopulationCosts, budget: Budget) -> NSGA2:
    settings, genes = config.sample, costs.space.gene_counts
    problem = Problem(n_var=genes.size, n_obj=len(settings.objectives), n_ieq_constr=2, xl=0, xu=genes - 1, vtype=int)
    rng = np.random.default_rng(stream_seed(config.seed, "initial population"))
    algorithm = NSGA2(
        pop_size=settings.population,
        sampling=initial_population(costs, budget, settings.initial_population, rng),
        crossover=UniformCrossover(),
        mutation=DrawGenesAnew(genes, settings.mutation),
        repair=IntoBudget(costs, budget),
        eliminate_duplicates=OnlyNew(),
    )
    algorithm.setup(
        problem, termination=("n_gen", settings.generations + 1), seed=stream_seed(config.seed, "evolution") % 2**32
    )
    return algorithm


class DrawGenesAnew(Mutation):
    """Each gene of a child is drawn anew with the same probability."""

    def __init__(self, gene_counts: np.ndarray, probability: float) -> None:
        super().__init__()
        self._gene_counts, self._probability = gene_counts, probability

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        drawn = random_state.integers(0, self._gene_counts, size=X.shape)
        return np.where(random_state.random(X.shape) < self._probability, drawn, X)


class IntoBudget(Repair):
    """Children outside the budget are moved into it, so that no generation is spent on what may not win."""

    def __init__(self, costs: PopulationCosts, budget: Budget) -> None:
        super().__init__()
        self._costs, self._budget = costs, budget

    def _do(self, problem, X, random_state=None, **kwargs):
        return self._costs.move_into(self._budget, X.astype(np.int64), random_state)


class OnlyNew(DuplicateElimination):
    """Drops children that are, or ever were, proposed: a known score teaches nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._proposed: set[bytes] = set()

    def do(self, pop, *args, return_indices=False, to_itself=True):
        new = []
        for i, genome in enumerate(pop.get("X")):
            key = genome.astype(np.int64).tobytes()
            if key not in self._proposed:
                self._proposed.add(key)
                new.append(i)
        return pop[np.array(new, dtype=int)]
