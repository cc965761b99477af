"""Which subnets each step of the supernet's training trains.

A rule of `DRAWS` draws genomes at random, and one of `TOGETHER` makes of them
what a step trains. To add a rule, add it there; `TrainingPlan` refers to none
by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from vitas.architecture import Architecture
from vitas.budget import Budget, CostModel, identity_probability
from vitas.elastic_space import AnySpace
from vitas.errors import UserError
from vitas.in_budget import InBudget
from vitas.seeds import stream_seed

if TYPE_CHECKING:
    # The configuration asks this module for the names of the rules.
    from vitas.config import RunConfig

# Genomes that are drawn at once: drawing one by one would cost as much as a small network's step.
_CHUNK = 256

# What a step trains: for each part of the batch, the subnets in the order of their passes.
Step: TypeAlias = tuple[tuple[Architecture, ...], ...]


class Draw(ABC):
    """A rule that draws genomes."""

    # Whether it reads `sample.budget`, which must then be there, and `search.identity_probability`.
    needs_budget: ClassVar[bool] = False
    reads_identity_probability: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def of(cls, config: RunConfig, cost_model: CostModel | None) -> Draw:
        """The rule of a configuration. cost_model: of `sample.budget`, None where the run has no such section.

        Raises `UserError` for a budget that it cannot draw in.
        """

    @property
    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What it draws by, as plain data: a training may not go on with other values."""

    @abstractmethod
    def genomes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` canonical genomes [count, genes]."""


@dataclass(frozen=True)
class Published(Draw):
    """ViTAS: every choice is equally likely, but for identities: with them the mean cost is the middle of the budget.

    identity_probability: of each position; None makes an identity as likely as any head count.
    """

    reads_identity_probability = True

    space: AnySpace
    identity_probability: float | None

    @classmethod
    def of(cls, config: RunConfig, cost_model: CostModel | None) -> Published:
        probability = config.search.identity_probability
        if probability is None and cost_model is not None:
            probability = identity_probability(cost_model, config.budget, config.seed)
        return cls(config.space, probability)

    @property
    def facts(self) -> dict[str, object]:
        return {"identity_probability": self.identity_probability}

    def genomes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.space.sample_genomes(rng, count, self.identity_probability)

    def __str__(self) -> str:
        if self.identity_probability is None:
            return "subnets of any cost"
        return f"subnets of any cost, where a position is an identity with probability {self.identity_probability:.3f}"


class Uniform(Published):
    """Every choice equally likely, identities too."""

    reads_identity_probability = False

    @classmethod
    def of(cls, config: RunConfig, cost_model: CostModel | None) -> Uniform:
        return cls(config.space, None)


@dataclass(frozen=True)
class NearBudget(Draw):
    """Subnets whose cost is in a budget, as `vitas.in_budget.InBudget` draws them."""

    needs_budget = True

    budget: Budget
    drawn: InBudget

    @classmethod
    def of(cls, config: RunConfig, cost_model: CostModel | None) -> NearBudget:
        budget = config.budget.widened(config.search.subnets.widen)
        try:
            return cls(budget, InBudget(cost_model, budget, config.search.subnets.size_bias))
        except UserError as error:
            raise UserError(f"sample.budget: {error}") from None

    @property
    def facts(self) -> dict[str, object]:
        return {"budget_of_training": str(self.budget)}

    def genomes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.drawn.draw(rng, count)

    def __str__(self) -> str:
        return f"subnets of {self.budget}"


DRAWS: dict[str, type[Draw]] = {"published": Published, "uniform": Uniform, "in_budget": NearBudget}


@dataclass(frozen=True)
class Together:
    """How a part of a batch gets the subnets that it trains one after another.

    make: (space, drawn genomes [draws, genes], turn) -> canonical genomes [subnets, genes].
    draws: (`search.subnets.randoms`) -> how many random genomes it takes.
    turns: as many steps in a row are made of the same genomes; the turn counts them.
    ends: subnets that are not random, before and after those that are; the first of all is the largest.
    """

    make: Callable[[AnySpace, np.ndarray, int], np.ndarray]
    draws: Callable[[int], int] = lambda randoms: 1
    turns: int = 1
    ends: int = 0


def _sandwich(space: AnySpace, drawn: np.ndarray, turn: int) -> np.ndarray:
    # Of the first random one's patch size, so that every stem meets the largest and the smallest.
    largest, smallest = (space.extreme(drawn[0], widest) for widest in (True, False))
    return np.concatenate([largest[None], drawn, smallest[None]])


TOGETHER: dict[str, Together] = {
    # A random subnet.
    "one": Together(lambda space, drawn, turn: drawn),
    # BCNet: of two steps, the second trains the complementary widths of the first one's subnet. So, over both, every
    # channel is used about equally often.
    "complementary": Together(
        lambda space, drawn, turn: space.complementary(drawn[0])[None] if turn else drawn, turns=2
    ),
    # BigNAS: the largest, random ones, and the smallest.
    "sandwich": Together(_sandwich, draws=lambda randoms: randoms, ends=1),
}


class TrainingPlan:
    """What every step trains: a function of the seed and the step, so the same on every rank and after a restart.

    together, randoms: how the subnets of a part of the batch are made.
    parts: of the batch, each with subnets of its own.
    """

    def __init__(self, space: AnySpace, draw: Draw, seed: int, together: Together, randoms: int, parts: int) -> None:
        self._space, self._draw, self._seed = space, draw, seed
        self._together, self._draws, self._parts = together, together.draws(randoms), parts
        # A resumed run starts anywhere, and parts of a step may lie in two chunks.
        self._chunk = lru_cache(maxsize=2)(self._draw_chunk)
        # A step asks more than once.
        self._groups = lru_cache(maxsize=1)(self._make_groups)
        self._decoded = lru_cache(maxsize=1)(self._decode)

    def at(self, step: int) -> Step:
        """The subnets of a step."""
        return self._decoded(step)

    def genomes(self, step: int) -> list[np.ndarray]:
        """The canonical genomes of the subnets of a step: [subnets, genes] for each part, in the order of `at`."""
        return self._groups(step)

    def random_ones(self, subnets: int) -> range:
        """Which of the subnets of a part are random ones."""
        return range(self._together.ends, subnets - self._together.ends)

    def _make_groups(self, step: int) -> list[np.ndarray]:
        return [self._group(step, part) for part in range(self._parts)]

    def _decode(self, step: int) -> Step:
        return tuple(tuple(map(self._space.decode, genomes)) for genomes in self.genomes(step))

    def _group(self, step: int, part: int) -> np.ndarray:
        pair, turn = divmod(step, self._together.turns)
        start = (pair * self._parts + part) * self._draws
        drawn = np.array([self._drawn(start + i) for i in range(self._draws)])
        return self._together.make(self._space, drawn, turn)

    def _drawn(self, index: int) -> np.ndarray:
        return self._chunk(index // _CHUNK)[index % _CHUNK]

    def _draw_chunk(self, chunk: int) -> np.ndarray:
        return self._draw.genomes(np.random.default_rng(stream_seed(self._seed, "subnets", chunk)), _CHUNK)


def training_plan(config: RunConfig, cost_model: CostModel | None) -> tuple[TrainingPlan, Draw]:
    """The plan of a configuration, and the rule that it draws with. Raises `UserError` as the rule does."""
    settings = config.search.subnets
    draw = DRAWS[settings.draw].of(config, cost_model)
    plan = TrainingPlan(config.space, draw, config.seed, TOGETHER[settings.together], settings.randoms, settings.parts)
    return plan, draw
