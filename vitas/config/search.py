"""The section `search`: the supernet's training, or As-ViT's search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from vitas.config.training import Training
from vitas.config_section import (
    AboveZero,
    Fraction,
    NonNegative,
    Positive,
    Section,
    Share,
)
from vitas.data.folders import EvaluationData, TrainingData, WeakAugmentation
from vitas.run import offered_by

if TYPE_CHECKING:
    # A type checker does not know what registries hold.
    DrawName: TypeAlias = str
    TogetherName: TypeAlias = str
else:
    DrawName = Literal[tuple(offered_by("search.subnets.draw"))]
    TogetherName = Literal[tuple(offered_by("search.subnets.together"))]


class SearchData(TrainingData):
    """Training images of the supernet, by default weakly augmented."""

    augmentation: WeakAugmentation = WeakAugmentation()


class Subnets(Section):
    """Which subnets each step of the supernet's training trains (see `search/subnets.py`).

    draw: the rule by which random ones are drawn.
    widen: for in_budget, the share by which both ends of `sample.budget` are moved outwards.
    size_bias: for in_budget, how much large depths and embedding dims are favoured: by (depth x dim) ** size_bias.
    together: what a step trains: `one` random subnet; with `complementary` every second step the complementary widths
        of the step before it; with `sandwich` the largest, `randoms` random ones and the smallest.
    parts: parts of a batch, each with subnets of its own; on several processes each trains those of its images.
    """

    draw: DrawName = "in_budget"
    widen: Fraction = 0.25
    size_bias: NonNegative = 1.5
    together: TogetherName = "complementary"
    randoms: Positive = 2
    parts: Positive = 1


class Panel(Section):
    """A fixed set of subnets of the budget that is scored while the supernet trains (see `search/panel.py`).

    size: subnets. epochs: between scores.
    stop_at: end the training when the ranking agrees with the one before, by Kendall's tau, so well twice in a row;
        null never does.
    """

    size: Annotated[int, Field(ge=2)] = 16
    epochs: Positive = 10
    stop_at: Annotated[float, Field(gt=0, le=1)] | None = None


class Search(Training):
    """The supernet's training.

    method: what the stage does; with `asvit` the keys are those of `AsvitSearch`.
    subnets: which subnets a step trains.
    panel: subnets that are scored on the val images on the way; null is none.
    identity_probability: of each position, where `subnets.draw` is `published`; null searches the one at which random
        subnets cost the middle of `sample.budget` on average.
    """

    method: Literal["supernet"] = "supernet"
    data: SearchData
    subnets: Subnets = Subnets()
    panel: Panel | None = None
    identity_probability: Fraction | None = None

    def tied_to_epochs(self, steps: int, per_epoch: int) -> str | None:
        tied = super().tied_to_epochs(steps, per_epoch)
        return tied or ("its record of the choices' losses fades over a quarter of all epochs" if steps else None)


class Growth(Section):
    """Growth of a topology into larger and larger networks.

    parameters, macs: the budget of the largest network, at full width; at least one of them.
    hidden_dim: of the first network, which has one block in each stage.
    widen: shares by which a step may raise the hidden dim.
    score_width: the share of the hidden dim at which networks are scored.
    """

    parameters: Positive | None = None
    macs: Positive | None = None
    hidden_dim: Positive = 32
    widen: Annotated[list[Share], Field(min_length=1)] = [0.05, 0.1, 0.15, 0.2]
    score_width: Share = 0.25

    @property
    def limits(self) -> dict[str, int | None]:
        """The budget, by the name of the cost."""
        return {"parameters": self.parameters, "macs": self.macs}


class AsvitSearch(Section):
    """As-ViT's search without training (arXiv 2202.11921); the defaults are the published settings.

    data: images for the NTK, the same `batch_size` images for every network; null is noise.
    algorithm: of the topology search.
    steps: topologies to score.
    repeat: initialisations that a score is the mean over.
    batch_size: images for the NTK. points: on the circle of images for the length distortion.
    lr: of the policy's Adam. baseline_decay: of the running mean reward, the baseline.
    population: of nsga2.
    topology: grow this topology instead of searching one.
    growth: how the topology grows, and up to which cost.
    """

    method: Literal["asvit"]
    flag: bool = False
    data: EvaluationData | None = None
    algorithm: Literal["reinforce", "nsga2"] = "reinforce"
    steps: Positive = 500
    repeat: Positive = 5
    batch_size: Annotated[int, Field(ge=2)] = 16
    points: Positive = 10
    lr: AboveZero = 0.08
    baseline_decay: Fraction = 0.9
    population: Positive = 25
    topology: str | None = None
    growth: Growth


def _method(section: object) -> object:
    return section.get("method", "supernet") if isinstance(section, Mapping) else getattr(section, "method", "supernet")


# The section `search`, by its method.
AnySearch = Annotated[Annotated[Search, Tag("supernet")] | Annotated[AsvitSearch, Tag("asvit")], Discriminator(_method)]
