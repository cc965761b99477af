"""The growth: from the topology to a series of larger and larger networks, each step the best of a few by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from search.asvit.scoring import GenotypeScorer
from search.asvit.topology import best_of_ranks
from vitas.config import RunConfig
from vitas.errors import UserError
from vitas.report import Report
from vitas.scores import Scores
from vitas.space import Genotype, costs


def grow(
    topology: Genotype, config: RunConfig, scorer: GenotypeScorer, report: Report
) -> list[tuple[Genotype, Scores]]:
    """A topology with a block in each stage at `growth.hidden_dim`, and step by step what became of it.

    Costs are counted at full width and scores are taken at `growth.score_width`
    of it, as published. It ends where no larger network is in the budget.

    Raises `UserError` where the first one already is not.
    """
    settings = config.search.growth
    stages = tuple(replace(stage, layers=1) for stage in topology.stages)
    first = replace(topology, stages=stages, hidden_dim=settings.hidden_dim)
    if not fits(first, config):
        found = _costs(first, config)
        raise UserError(
            f"search.growth: {first}, which it starts from, has {found['macs']:,} MACs and "
            f"{found['parameters']:,} parameters, more than the budget"
        )
    series = [(first, scorer.of([first.scaled(settings.score_width)])[0])]
    while choices := [choice for choice in larger(series[-1][0], settings.widen) if fits(choice, config)]:
        scores = scorer.of([choice.scaled(settings.score_width) for choice in choices])
        best = best_of_ranks(scores)
        series.append((choices[best], scores[best]))
        step, found = len(series) - 1, _costs(choices[best], config)
        report.log_only(f"{name_of(step)}: {choices[best]}, {found['macs']:,} MACs, {found['parameters']:,} parameters")
        report.scalars(
            step,
            {
                "growth_length_distortion": scores[best].length_distortion,
                "growth_ntk_condition": scores[best].ntk_condition,
                "growth_macs": found["macs"],
                "growth_parameters": found["parameters"],
            },
        )
    return series


def larger(genotype: Genotype, widen: Sequence[float]) -> list[Genotype]:
    """One more block in each stage, crossed with the hidden dim raised by each share (by 1 at least)."""
    dim = genotype.hidden_dim
    dims = dict.fromkeys(max(round(dim * (1 + share)), dim + 1) for share in widen)
    deeper = [
        tuple(replace(stage, layers=stage.layers + (i == at)) for i, stage in enumerate(genotype.stages))
        for at in range(len(genotype.stages))
    ]
    return [replace(genotype, stages=stages, hidden_dim=dim) for stages in deeper for dim in dims]


def fits(genotype: Genotype, config: RunConfig) -> bool:
    """Whether a network is in the budget of `search.growth`."""
    budget, found = config.search.growth, _costs(genotype, config)
    return all(limit is None or found[name] <= limit for name, limit in budget.limits.items())


def name_of(step: int) -> str:
    """The name of a network in architectures.yaml."""
    return f"grown_{step}"


def _costs(genotype: Genotype, config: RunConfig) -> dict:
    return costs(genotype, config.model.image_size, config.model.num_classes)
