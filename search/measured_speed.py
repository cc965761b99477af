"""Measures images per second of candidates on this device, and fits a model of it to guide proposals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from search.measurements import MeasurementJournal
from vitas.architecture import Architecture
from vitas.budget import SpeedModel
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.errors import require_number
from vitas.evaluate import images_per_second
from vitas.models import VisionTransformer
from vitas.report import Report
from vitas.seeds import stream_seed

# Seconds of measuring one architecture, after half as many of warm-up.
SECONDS = 0.4
# No device is so slow, and what is less cannot be divided by.
LEAST = 1e-9
# The model is fitted to so many random subnets at each of these identity probabilities, from deep to shallow.
FITTED = 16
FITTED_AT = (0.0, 0.25, 0.5, 0.75)


def measuring_ranks(world: World) -> int:
    """How many ranks may measure at once: on a CPU, which they share, only one, as they would disturb each other."""
    return world.size if world.device.type == "cuda" else 1


def where_measured(config: RunConfig, world: World) -> dict[str, object]:
    """What measured times depend on, beside what is measured."""
    return {
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "batch_size": config.sample.budget.batch_size,
        "image_size": config.model.image_size,
        "num_classes": config.model.num_classes,
    }


def read_record(line: Mapping) -> tuple[Architecture, float]:
    """The architecture and the images per second of a journal's line. Raises `UserError` for any other."""
    speed = require_number(line.get("images_per_second"), "images_per_second", LEAST)
    return Architecture.parse(line.get("architecture")), speed


class SpeedMeter:
    """Measures architectures on this run's device, each once, and journals the speeds.

    Speeds are of the dense network, in batches of `sample.budget.batch_size`.
    """

    def __init__(self, config: RunConfig, report: Report, world: World) -> None:
        self._config, self._world = config, world
        self._ranks = measuring_ranks(world)
        self._journal = MeasurementJournal(
            config.folder.speeds,
            where_measured(config, world),
            read_record,
            lambda architecture, speed: {"architecture": str(architecture), "images_per_second": speed},
            "measured speeds",
            report,
            world,
        )
        self._report = report

    @property
    def known(self) -> dict[Architecture, float]:
        """All measured speeds, by architecture (identities last)."""
        return self._journal.known

    def measure(self, architectures: list[Architecture]) -> np.ndarray:
        """Images per second [architectures], in order."""
        shifted = [architecture.shifted() for architecture in architectures]
        return np.array(self._journal.measure(shifted, self._measure_one, self._ranks))

    def fit_model(self) -> SpeedModel:
        """A model that predicts the speed of any genome, fitted to the same random subnets at every call."""
        space = self._config.space
        rng = np.random.default_rng(stream_seed(self._config.seed, "speed model"))
        probabilities = FITTED_AT if space.identity else FITTED_AT[:1] * len(FITTED_AT)
        genomes = np.concatenate([space.sample_genomes(rng, FITTED, probability) for probability in probabilities])
        measured = self.measure([space.decode(genome) for genome in genomes])
        model = SpeedModel.fit(space, self._config.model.image_size, genomes, measured)
        error = np.median(np.abs(model.predict(genomes) / measured - 1))
        self._report.line(
            f"measured {len(genomes)} random subnets: {measured.min():,.0f} to {measured.max():,.0f} images/s; "
            f"the fitted model has a median error of {100 * error:.0f}%"
        )
        return model

    def _measure_one(self, architecture: Architecture) -> float:
        model, batch_size = self._config.model, self._config.sample.budget.batch_size
        with self._world.device:
            network = VisionTransformer(architecture, model.num_classes, model.image_size)
        return images_per_second(network, model.image_size, batch_size, SECONDS)
