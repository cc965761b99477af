"""What a search space holds: how many architectures, what they cost, and how many of them are in the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitas.asvit.genotype import GenotypeSpace
from vitas.budget import Budget, MacsModel
from vitas.config import AsvitSearch, RunConfig
from vitas.costs import Array, count_parameters
from vitas.errors import UserError
from vitas.intervals import wilson
from vitas.seeds import stream_seed

# Bars of a histogram.
BINS = 16


@dataclass(frozen=True)
class Histogram:
    """How a quantity of random architectures is spread.

    low, high: the least and the largest that a member of the space has, where that is known; else that were drawn.
    edges: of the bars, ascending, one more than `counts`. counts: architectures in each.
    budget: the range that is asked for, None where none is. inside: the share of the architectures in it, and its 95%
        interval (Wilson).
    """

    name: str
    low: float
    high: float
    edges: list[float]
    counts: list[int]
    budget: tuple[float, float] | None = None
    inside: tuple[float, float, float] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        values: Array,
        reach: tuple[float, float] | None = None,
        budget: Budget | None = None,
    ) -> Histogram:
        """The histogram of the values [architectures]. reach: the least and the largest in the space."""
        low, high = reach or (float(values.min()), float(values.max()))
        counts, edges = np.histogram(values, BINS, (low, high if high > low else low + 1))
        inside = None
        if budget is not None:
            hits = int((budget.distance(values) == 0).sum())
            inside = (hits / len(values), *wilson(hits, len(values)))
        ends = None if budget is None else (budget.low, budget.high)
        return cls(name, float(low), float(high), edges.tolist(), counts.tolist(), ends, inside)


@dataclass(frozen=True)
class SpaceCosts:
    """What a space holds. size: its different architectures. drawn: how many random ones the histograms are of.

    budget: in words, None without one. shares: its ends as shares of the widest network's MACs, None for speeds.
    plan: what the search does, by name: epochs, steps of an epoch, scores.
    """

    size: int
    drawn: int
    image_size: int
    num_classes: int
    histograms: list[Histogram]
    budget: str | None
    shares: tuple[float, float] | None
    plan: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def costs_of_space(config: RunConfig, draws: int, train_images: int | None = None) -> SpaceCosts:
    """What the space of a configuration holds, by `draws` random architectures, every choice equally likely.

    train_images: of `search`, None where they are not there. Raises `UserError` as `RunConfig.space` does.
    """
    if isinstance(config.search, AsvitSearch):
        return _of_topologies(config, config.search, draws)
    if config.model.from_pretrained is not None and not config.folder.pretrained.exists():
        raise UserError(
            f"model.from_pretrained: what may be taken from {config.model.from_pretrained} is known when `search` has "
            f"read it, and has written {config.folder.pretrained}"
        )
    budget, model = config.budget, config.macs_model
    genomes = draw(config, draws)
    reach = model.reach()
    macs = Histogram.of(
        "MACs" if model.convention == "true" else "MACs (released convention)",
        model.predict(genomes),
        (float(reach[0]), float(reach[1])),
        budget if budget is not None and not budget.is_speed else None,
    )
    shares = None
    if budget is not None and not budget.is_speed:
        shares = (budget.low / float(reach[1]), budget.high / float(reach[1]))
    return SpaceCosts(
        config.space.size,
        draws,
        config.model.image_size,
        config.model.num_classes,
        [macs, Histogram.of("parameters", parameters_of(model, genomes))],
        None if budget is None else str(budget),
        shares,
        _plan(config, train_images),
    )


def draw(config: RunConfig, count: int) -> Array:
    """Random genomes [count, genes] of a configuration's space, the same in every call."""
    return config.space.sample_genomes(np.random.default_rng(stream_seed(config.seed, "space")), count)


def parameters_of(model: MacsModel, genomes: Array) -> Array:
    """The parameters [population] of genomes [population, genes]."""
    space = model.space
    columns = space.columns(genomes)
    dims = space.dims(columns)
    return count_parameters(
        np.array(space.patch_sizes)[columns.patch],
        np.array(space.embed_dims)[columns.embed],
        dims.attention.sum(axis=1),
        dims.mlp.sum(axis=1),
        columns.active.sum(axis=1),
        model.image_size,
        model.num_classes,
        space.prefix_tokens,
    )


def _plan(config: RunConfig, train_images: int | None) -> dict[str, int]:
    plan: dict[str, int] = {}
    search, sample = config.search, config.sample
    if search is not None and not isinstance(search, AsvitSearch):
        plan["epochs"] = search.epochs
        if train_images is not None:
            plan["steps"] = search.epochs * (train_images // search.batch_size)
    if sample is not None:
        plan["scores"] = sample.initial_population + sample.generations * sample.population
    return plan


def _of_topologies(config: RunConfig, search: AsvitSearch, draws: int) -> SpaceCosts:
    """As-ViT's topologies, each with one block a stage: what growth starts from."""
    space = GenotypeSpace()
    rng = np.random.default_rng(stream_seed(config.seed, "space"))
    size = config.model.image_size, config.model.num_classes
    rows: list[Sequence[int | None]] = []
    for genome in space.sample_genomes(rng, min(draws, 2000)):
        costs = space.decode(genome).costs(*size)
        rows.append((costs["macs"], costs["parameters"]))
    macs, parameters = np.array(rows, dtype=np.int64).T
    limits = [f"{limit:,} {name}" for name, limit in search.growth.limits.items() if limit is not None]
    return SpaceCosts(
        space.size,
        len(rows),
        *size,
        [Histogram.of("MACs of topologies", macs), Histogram.of("parameters of topologies", parameters)],
        f"grows up to {' and '.join(limits)}" if limits else None,
        None,
        {"initialisations": search.steps * search.repeat} if search.topology is None else {},
    )
