"""Search for a topology: REINFORCE over independent choices, as published, or NSGA-II on the two scores.

Both are functions of the seed and the scores, which are journalled before they
are used, so a restart replays the search over the journal and resumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.distributions import Categorical

from search.asvit.scoring import GenotypeScorer
from search.evolution import Evolution
from search.operators import DrawGenesAnew, UniformCrossover
from vitas.asvit.genotype import Genotype, GenotypeSpace
from vitas.asvit.scores import Scores
from vitas.config import RunConfig
from vitas.distributed import World, broadcast
from vitas.report import Report
from vitas.seeds import stream_seed

# A reward is a change of scores relative to their range over so many steps.
WINDOW = 20


class Policy:
    """Independent categorical distributions of the genes, uniform at first, trained by REINFORCE with Adam."""

    def __init__(self, gene_counts: Sequence[int], lr: float) -> None:
        self._logits = [torch.zeros(int(count), requires_grad=True) for count in gene_counts]
        self._optimizer = torch.optim.Adam(self._logits, lr=lr)

    def _choices(self) -> list[Categorical]:
        return [Categorical(logits=logits) for logits in self._logits]

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """A random genome [genes]."""
        with torch.no_grad():
            probabilities = [choice.probs.double().numpy() for choice in self._choices()]
        return np.array([rng.choice(len(p), p=p / p.sum()) for p in probabilities])

    def update(self, genome: np.ndarray, advantage: float) -> None:
        """Make a genome more likely if its advantage is positive, and less likely if it is negative."""
        genes = torch.from_numpy(np.asarray(genome))
        log_probability = sum(choice.log_prob(gene) for choice, gene in zip(self._choices(), genes, strict=True))
        self._optimizer.zero_grad()
        (-log_probability * advantage).backward()
        self._optimizer.step()

    @property
    def entropy(self) -> float:
        """The entropy of all genes together, in nats."""
        with torch.no_grad():
            return sum(choice.entropy().item() for choice in self._choices())

    @property
    def likeliest(self) -> np.ndarray:
        """The most likely value of each gene [genes]; the first of equally likely ones."""
        return np.array([logits.argmax().item() for logits in self._logits])


def reward(history: Sequence[Scores]) -> float:
    """How much better the last scores are than those before, relative to each score's range in the last `WINDOW` steps.

    Length distortion should rise, and the NTK condition number fall. A change to
    or from an infinite condition number counts as the whole range. The reward of
    the first step is 0.
    """
    if len(history) < 2:
        return 0.0
    window = history[-WINDOW:]
    rise = _change([scores.length_distortion for scores in window])
    return rise - _change([scores.ntk_condition for scores in window])


def _change(values: Sequence[float]) -> float:
    before, now = values[-2:]
    if math.isinf(before) or math.isinf(now):
        return float(now > before) - float(now < before)
    finite = [value for value in values if math.isfinite(value)]
    spread = max(finite) - min(finite)
    return (now - before) / spread if spread > 0 else 0.0


def reinforce(
    config: RunConfig, space: GenotypeSpace, scorer: GenotypeScorer, report: Report, world: World
) -> Genotype:
    """The most likely topology of a policy trained on `search.steps` of its own topologies."""
    settings = config.search
    policy = Policy(space.gene_counts, settings.lr)
    history: list[Scores] = []
    average = 0.0
    with report.progress(settings.steps, 0, "steps") as update:
        for step in range(settings.steps):
            rng = np.random.default_rng(stream_seed(config.seed, "topology", step))
            # Only rank 0 draws, because probabilities may differ in the last bit between machines.
            genome = broadcast(policy.sample(rng) if world.is_main else None, world)
            (scores,) = scorer.score([space.decode(genome)])
            history.append(scores)
            gained = reward(history)
            average = settings.baseline_decay * average + (1 - settings.baseline_decay) * gained
            # Corrects the bias of an average that starts at 0, as Adam does.
            baseline = average / (1 - settings.baseline_decay ** (step + 1))
            policy.update(genome, gained - baseline)
            text = f"entropy {policy.entropy:.2f}"
            update(step + 1, text)
            if (step + 1) % WINDOW == 0 or step + 1 == settings.steps:
                _report_window(step + 1, settings.steps, history, text, report)
            learnt = {"asvit/reward": gained, "asvit/baseline": baseline, "asvit/entropy": policy.entropy}
            report.scalars(step, _scalars(scores) | learnt)
    return space.decode(broadcast(policy.likeliest if world.is_main else None, world))


def nsga2(config: RunConfig, space: GenotypeSpace, scorer: GenotypeScorer, report: Report, world: World) -> Genotype:
    """Evolve `search.steps` different topologies on both scores; returns the one with the least sum of ranks."""
    steps, counts = config.search.steps, space.gene_counts
    size = min(config.search.population, steps)
    evolution = Evolution(
        world,
        config.seed,
        "evolution of topologies",
        counts,
        lambda: space.sample_genomes(np.random.default_rng(stream_seed(config.seed, "first topologies")), size),
        size,
        objectives=2,
        crossover=UniformCrossover(),
        mutation=DrawGenesAnew(counts, 1 / np.count_nonzero(counts > 1)),
    )
    known: dict[Genotype, Scores] = {}
    with report.progress(steps, 0, "topologies") as update:
        while len(known) < steps:
            genomes = evolution.ask()
            genotypes = [space.decode(genome) for genome in genomes][: steps - len(known)]
            if not genotypes:
                report.line("no new topology is left to propose")
                break
            for genotype, scores in zip(genotypes, scorer.score(genotypes), strict=True):
                report.scalars(len(known), _scalars(scores))
                known[genotype] = scores
            update(len(known), "")
            _report_window(len(known), steps, list(known.values()), "", report)
            if len(genotypes) == len(genomes):
                found = [known[genotype] for genotype in genotypes]
                evolution.tell(np.array([[-s.length_distortion, min(s.ntk_condition, 1e30)] for s in found]))
    return list(known)[best_of_ranks(list(known.values()))]


def best_of_ranks(scores: Sequence[Scores]) -> int:
    """The index with the least sum of ranks by both scores; ties go to the better by one of the scores.

    That score is the one with the larger range relative to its mean, as published for the growth.
    """
    columns = [np.array([-s.length_distortion for s in scores]), np.array([s.ntk_condition for s in scores])]
    ranks = [np.searchsorted(np.sort(column), column) for column in columns]
    deciding = max(range(2), key=lambda i: _relative_range(columns[i]))
    return min(range(len(scores)), key=lambda i: (ranks[0][i] + ranks[1][i], ranks[deciding][i]))


def _relative_range(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.ptp(finite) / abs(finite.mean())) if finite.size and finite.mean() else 0.0


def _scalars(scores: Scores) -> dict[str, float]:
    return {"asvit/length_distortion": scores.length_distortion, "asvit/ntk_condition": scores.ntk_condition}


def _report_window(done: int, total: int, history: Sequence[Scores], text: str, report: Report) -> None:
    window = history[-WINDOW:]
    distortion = sum(scores.length_distortion for scores in window) / len(window)
    condition = sum(scores.ntk_condition for scores in window) / len(window)
    report.log_only(
        f"{done}/{total} topologies  of the last {len(window)}: length distortion {distortion:.3f}  "
        f"NTK condition {condition:.1f}  {text}".rstrip()
    )


ALGORITHMS = {"reinforce": reinforce, "nsga2": nsga2}
