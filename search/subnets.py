"""Which subnet each step of the supernet's training trains. A new rule is a new class with the method `at`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.measured_speed import SpeedMeter
from vitas.architecture import Architecture
from vitas.budget import identity_probability
from vitas.config import RunConfig
from vitas.distributed import World, stream_seed
from vitas.report import Report
from vitas.space import SearchSpace


@dataclass(frozen=True)
class RandomSubnets:
    """One random subnet per step, the same on every rank without communication.

    identity_probability: of each position; None makes an identity as likely as any head count.
    """

    space: SearchSpace
    identity_probability: float | None
    seed: int

    def at(self, step: int) -> Architecture:
        """The subnet of a step, a function of the seed and the step."""
        rng = np.random.default_rng(stream_seed(self.seed, "subnet", step))
        return self.space.sample(rng, self.identity_probability)


def subnets_to_train(config: RunConfig, report: Report, world: World) -> RandomSubnets:
    """The rule of a configuration.

    By default, the identity probability is the one at which random subnets cost
    the middle of `sample.budget` on average, as in ViTAS.
    """
    probability = config.search.identity_probability
    if probability is None and config.sample is not None:
        budget = config.sample.budget
        model = SpeedMeter(config, report, world).fit_model() if budget.is_speed else config.macs_model
        probability = identity_probability(model, budget, config.seed)
    return RandomSubnets(config.space, probability, config.seed)
