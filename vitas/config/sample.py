"""The section `sample`: the evolution of architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from vitas.budget import Budget
from vitas.config_section import (
    AboveZero,
    Count,
    Positive,
    Probability,
    Section,
    Share,
)
from vitas.data.folders import EvaluationData
from vitas.run import offered_by

if TYPE_CHECKING:
    # A type checker does not know what registries hold.
    ObjectiveName: TypeAlias = str
else:
    ObjectiveName = Literal[tuple(offered_by("sample.objectives"))]


class Race(Section):
    """All candidates of a generation are scored on a part of the val images, the best of them on all.

    images: the part, a share. keep: the share of the candidates that goes on.
    """

    images: Share = 0.25
    keep: Share = 0.5


class Adapt(Section):
    """Candidates train for a few steps from the supernet's weights before they are scored (see `search/adaptation.py`).

    steps, batch_size, lr: of that training, on the images of `search`; the rate falls linearly to 0.
    keep: the share of the candidates of a generation that is adapted, the best by their scores without it.
    """

    steps: Positive = 100
    batch_size: Positive = 64
    lr: AboveZero = 1e-3
    keep: Share = 1.0


class Finalists(Section):
    """The best of the search are scored again, on images that it has not seen: the best of many scores is flattered.

    count: how many. images: the share of the val images that the search does not see.
    """

    count: Positive = 20
    images: Annotated[float, Field(gt=0, lt=1)] = 0.2


class Prescreen(Section):
    """A model of the scores chooses which children are scored (see `search/predictor.py`).

    oversample: of so many times as many children, the best by the model.
    scored: as many architectures must have been scored before.
    """

    oversample: Annotated[int, Field(ge=2)] = 4
    scored: Annotated[int, Field(ge=10)] = 50


class Sample(Section):
    """The evolution of architectures, scored by the supernet.

    budget: the range that every architecture's cost must be in, as it was given; `RunConfig.budget` is in numbers.
    initial_population: random architectures inside the budget that it starts from.
    population, generations: survivors, and rounds with as many children.
    objectives: what is minimised (see `search/objectives.py`); with `macs` beside `error`, it keeps the whole
        non-dominated front, from cheap to accurate.
    sample_num: how many of the best are written to architectures.yaml.
    mutation: the probability that a gene of a child is drawn anew.
    batch_size: images per evaluation batch and process.
    sides: how several sides (bilateral sharing) make one score: the score of the sum of their logits, which is what
        training trained; or the mean of their scores, as published.
    race, adapt, finalists, prescreen: null is off.
    prior: of this many random architectures each, the initial population takes the one whose choices had the least
        loss in the supernet's training; 1 takes any.
    load_name: the supernet's checkpoint, by default the newest.
    weights: of the supernet: the trained ones, or their average (`search.ema_decay`).
    """

    flag: bool = False
    data: EvaluationData
    budget: Budget
    initial_population: Positive = 100
    population: Positive = 50
    generations: Count = 40
    objectives: Annotated[list[ObjectiveName], Field(min_length=1)] = ["error"]
    sample_num: Positive = 5
    mutation: Probability = 0.1
    batch_size: Positive = 256
    amp: bool = True
    sides: Literal["mean", "sum"] = "sum"
    race: Race | None = None
    adapt: Adapt | None = None
    finalists: Finalists | None = None
    prescreen: Prescreen | None = None
    prior: Positive = 1
    load_name: str | None = None
    weights: Literal["model", "ema"] = "model"
