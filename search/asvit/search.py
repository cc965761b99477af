"""The `search` stage with `search.method: asvit`: find a topology without training, then grow it.

Each step of growth takes the candidate with the least sum of ranks by both
scores, until no larger network is in the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from search.asvit.scoring import GenotypeScorer, ntk_images
from search.asvit.topology import ALGORITHMS, best_of_ranks
from vitas.asvit.genotype import Genotype, GenotypeSpace
from vitas.asvit.scores import Scores
from vitas.catalog import Found, as_markdown, write_found
from vitas.config import RunConfig
from vitas.distributed import World, barrier
from vitas.drawing import to_svg
from vitas.errors import UserError
from vitas.report import Report, shown_path


def search(config: RunConfig, world: World) -> None:
    """Find a topology and grow it, and write the network of every step to `save_path/search/architectures.yaml`."""
    settings, folder = config.search, config.folder
    report = Report.for_stage("search", config, world)
    images = ntk_images(config, report)
    if settings.topology is None:
        space = GenotypeSpace()
        report.line(
            f"As-ViT: {settings.algorithm} over {space.size:,} topologies, {settings.steps} steps of "
            f"{settings.repeat} initialisations, {world.size} process(es) on {world.device.type}"
        )
        scorer = GenotypeScorer(config, folder.topologies, images, report, world)
        topology = ALGORITHMS[settings.algorithm](config, space, scorer, report, world)
    else:
        topology = Genotype.parse(settings.topology)
    report.line(f"topology {topology.topology}")
    series = grow(topology, config, GenotypeScorer(config, folder.growth, images, report, world), report)
    if world.is_main:
        found = [
            Found(
                name_of(step),
                genotype,
                {
                    "length_distortion": scores.length_distortion,
                    "ntk_condition": scores.ntk_condition,
                    **_costs(genotype, config),
                },
            )
            for step, (genotype, scores) in enumerate(series)
        ]
        # The first entry is `best` for later stages: here the largest network.
        write_found(folder.architectures, found[::-1])
        report.text("architectures", len(found) - 1, as_markdown(found[::-1]))
        for each in found[::-1]:
            report.picture(f"architectures/{each.name}", len(found) - 1, to_svg(each.architecture))
        last = found[-1]
        report.line(
            f"grew {len(found)} networks, {name_of(0)} to {last.name} ({last.architecture}, "
            f"{last.facts['macs']:,} MACs, {last.facts['parameters']:,} parameters), "
            f"in {shown_path(folder.architectures)}"
        )
    report.finish()
    # The next stage reads the file on every rank.
    barrier(world)


def grow(
    topology: Genotype, config: RunConfig, scorer: GenotypeScorer, report: Report
) -> list[tuple[Genotype, Scores]]:
    """Grow a topology from one block per stage at `growth.hidden_dim`; returns every step's genotype and scores.

    As in the released code, the network is grown and scored at
    `growth.score_width` of its hidden dim, so that all choices of a step are
    different networks. Costs and results are at full width. Growth ends when no
    larger network is in the budget.

    Raises `UserError` if the first network exceeds the budget.
    """
    settings = config.search.growth
    narrow = replace(
        topology,
        stages=tuple(replace(stage, layers=1) for stage in topology.stages),
        hidden_dim=round(settings.hidden_dim * settings.score_width),
    )
    first = _at_full_width(narrow, config)
    if not fits(first, config):
        costs = _costs(first, config)
        raise UserError(
            f"search.growth: {first}, which it starts from, has {costs['macs']:,} MACs and "
            f"{costs['parameters']:,} parameters, more than the budget"
        )
    series = [(first, scorer.score([narrow])[0])]
    while choices := [c for c in larger(narrow, settings.widen) if fits(_at_full_width(c, config), config)]:
        scores = scorer.score(choices)
        best = best_of_ranks(scores)
        narrow = choices[best]
        series.append((_at_full_width(narrow, config), scores[best]))
        _report_step(len(series) - 1, *series[-1], config, report)
    return series


def larger(genotype: Genotype, widen: Sequence[float]) -> list[Genotype]:
    """The choices of a growth step: a block more in any one stage, with the hidden dim raised by any share, at least 1.

    Equal choices are listed once.
    """
    dim = genotype.hidden_dim
    dims = dict.fromkeys(max(round(dim * (1 + share)), dim + 1) for share in widen)
    deeper = [
        tuple(replace(stage, layers=stage.layers + (i == at)) for i, stage in enumerate(genotype.stages))
        for at in range(len(genotype.stages))
    ]
    return [replace(genotype, stages=stages, hidden_dim=dim) for stages in deeper for dim in dims]


def _at_full_width(narrow: Genotype, config: RunConfig) -> Genotype:
    """The network at its full hidden dim, of one scored at `growth.score_width` of it."""
    return replace(narrow, hidden_dim=round(narrow.hidden_dim / config.search.growth.score_width))


def _report_step(step: int, genotype: Genotype, scores: Scores, config: RunConfig, report: Report) -> None:
    costs = _costs(genotype, config)
    report.log_only(f"{name_of(step)}: {genotype}, {costs['macs']:,} MACs, {costs['parameters']:,} parameters")
    report.scalars(
        step,
        {
            "asvit/growth_length_distortion": scores.length_distortion,
            "asvit/growth_ntk_condition": scores.ntk_condition,
            "asvit/growth_macs": costs["macs"],
            "asvit/growth_parameters": costs["parameters"],
        },
    )


def fits(genotype: Genotype, config: RunConfig) -> bool:
    """Whether a network is in the budget of `search.growth`."""
    costs = _costs(genotype, config)
    return all(limit is None or costs[name] <= limit for name, limit in config.search.growth.limits.items())


def name_of(step: int) -> str:
    """The name of a network in architectures.yaml."""
    return f"grown_{step}"


def _costs(genotype: Genotype, config: RunConfig) -> dict:
    return genotype.costs(config.model.image_size, config.model.num_classes)
