"""Scores of genotypes: every initialisation is scored once, by one of the ranks, and journalled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from search.measurements import MeasurementJournal
from vitas.asvit.genotype import Genotype
from vitas.asvit.scores import Scores, mean_scores, score_once
from vitas.config import RunConfig
from vitas.data.folders import Part
from vitas.data.images import channels, normalize, spread_images
from vitas.distributed import World
from vitas.errors import UserError, require_integer, require_number
from vitas.report import Report


class GenotypeScorer:
    """Scores genotypes with the settings of the section `search`, each initialisation once.

    path: the journal, one line per initialisation.
    images: for the NTK, as `ntk_images` returns them.
    """

    def __init__(self, config: RunConfig, path: Path, images: Tensor | None, report: Report, world: World) -> None:
        self._config, self._images, self._world = config, images, world
        settings = config.search
        origin = {
            "seed": config.seed,
            "image_size": config.model.image_size,
            "points": settings.points,
            "batch_size": settings.batch_size,
            "images": "noise" if images is None else hashlib.blake2b(images.numpy(), digest_size=16).hexdigest(),
        }
        self._journal = MeasurementJournal(path, origin, read_record, _record, "scored initialisations", report, world)

    def score(self, genotypes: Sequence[Genotype]) -> list[Scores]:
        """The mean scores of genotypes over `search.repeat` initialisations, in order."""
        repeat = self._config.search.repeat
        units = [(genotype, index) for genotype in genotypes for index in range(repeat)]
        scores = self._journal.measure(units, self._score_one, self._world.size)
        return [mean_scores(scores[i : i + repeat]) for i in range(0, len(scores), repeat)]

    def _score_one(self, unit: tuple[Genotype, int]) -> Scores:
        config, settings = self._config, self._config.search
        genotype, index = unit
        return score_once(
            genotype,
            config.model.image_size,
            config.seed,
            index,
            settings.batch_size,
            settings.points,
            self._images,
            self._world.device,
        )


def _record(unit: tuple[Genotype, int], scores: Scores) -> dict:
    genotype, index = unit
    # JSON has no infinity.
    finite = {name: value if math.isfinite(value) else None for name, value in vars(scores).items()}
    return {"architecture": str(genotype), "initialisation": index, **finite}


def read_record(line: Mapping) -> tuple[tuple[Genotype, int], Scores]:
    """The genotype, the initialisation and the scores of a journal's line. Raises `UserError` for any other."""
    unit = Genotype.parse(line.get("architecture")), require_integer(line.get("initialisation"), "initialisation")
    # What is not finite ranks last by either score.
    worst, found = Scores(math.nan, math.inf), {}
    for name, last in vars(worst).items():
        if name not in line:
            raise UserError(f"{name} is missing")
        found[name] = last if line[name] is None else require_number(line[name], name)
    return unit, Scores(**found)


def ntk_images(config: RunConfig, report: Report | None = None) -> Tensor | None:
    """The normalised images [batch_size, 3, H, W] for the NTK, on the CPU; None is noise.

    They are evenly spread over `search.data`, and the same for every genotype, as published.
    """
    settings, model = config.search, config.model
    if settings.data is None:
        return None
    data, folder = settings.data, settings.data.data_dir
    try:
        images = spread_images(
            folder,
            settings.batch_size,
            model.image_size,
            data.crop_fraction,
            data.bad_images,
            report,
            # A search is training: what is held out is for others to measure on.
            Part(data.holdout),
        )
    except UserError as error:
        raise UserError(f"search.data.data_dir: {error}") from None
    if len(images) < settings.batch_size:
        raise UserError(
            f"search.batch_size: found {settings.batch_size}, more than the {len(images)} images of {folder!r}"
        )
    return normalize(images, channels(model.mean), channels(model.std))
