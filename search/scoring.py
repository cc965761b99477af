"""Scores of candidates: each is measured once, by whichever ranks are free, and journalled before its use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from search.adaptation import Adaptation
from search.measurements import InPieces, MeasurementJournal
from search.objectives import OBJECTIVES
from vitas.architecture import Architecture
from vitas.config import RunConfig, Sample
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.errors import UserError, require_number, require_text
from vitas.evaluate import autocast_dtype, sums
from vitas.models import SuperNet
from vitas.models.step_weights import weights_of
from vitas.report import Report
from vitas.seeds import stream_seed

# In the origin of scores: a digest of the names of the images that they were made with.
SET_OF_IMAGES = "set of images"
# Of the images, each scored by any rank: so 50 subnets keep 64 ranks busy, and a generation's last unit is short.
PIECES = 16
# What is scored: an architecture, on a rung.
Key = tuple[Architecture, str]


@dataclass(frozen=True)
class SubnetScore:
    """The score of a subnet. top1: in percent. loss: mean cross-entropy; not finite where the weights have diverged."""

    top1: float
    loss: float

    @property
    def facts(self) -> dict[str, float]:
        """The score as plain data; without the loss if it is not known, or not finite, which JSON has no number for."""
        return {name: value for name, value in vars(self).items() if math.isfinite(value)}

    @property
    def record(self) -> dict[str, float | None]:
        """The score as a journal holds it."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @classmethod
    def from_record(cls, record: Mapping) -> SubnetScore:
        """The score in a record of a journal. Raises `UserError` unless it is one: what is infinite would always win.

        Journals of earlier versions hold no loss, or NaN for one that is not finite.
        """
        top1, loss = require_number(record.get("top1"), "top1", 0, 100), record.get("loss")
        is_known = loss is not None and loss == loss
        return cls(top1, require_number(loss, "loss", 0) if is_known else math.nan)


def score_logits(sides: Sequence[Callable[[Tensor], Tensor]], images: EvaluationSet, settings: Sample) -> SubnetScore:
    """The score of a network with several sides (images -> logits each), as `sample.sides` says."""
    how = in_pieces(lambda network: network, images, settings)
    return how.combine([how.measure(sides, piece) for piece in range(how.count)])


def score_subnet(
    supernet: SuperNet, architecture: Architecture, images: EvaluationSet, settings: Sample
) -> SubnetScore:
    """The score of an architecture with the supernet's weights."""
    return score_logits(sides_of(supernet, architecture, settings.amp), images, settings)


def sides_of(supernet: SuperNet, architecture: Architecture, amp: bool) -> list[Callable[[Tensor], Tensor]]:
    """An architecture with the supernet's weights, once a side that is scored: images -> logits."""
    dtype = autocast_dtype(supernet.head.weight.device, amp)
    return [
        partial(supernet, architecture=architecture, side=side, weights=weights_of(supernet, architecture, side, dtype))
        for side in supernet.scheme.scoring_sides
    ]


def in_pieces(
    network: Callable[[Any], Sequence[Callable[[Tensor], Tensor]]], images: EvaluationSet, settings: Sample
) -> InPieces[Any, SubnetScore]:
    """How candidates are scored by parts of the images. network: candidate -> its sides, as `score_logits` has them.

    Parts are of whole batches. They depend on the set and the batch size alone.
    """
    parts = images.parts(settings.batch_size, PIECES)

    def measure(candidate: Any, piece: int) -> list[tuple[float, float]]:
        sides = network(candidate)
        if settings.sides == "sum":
            together = tuple(sides)
            sides = [lambda batch: sum(side(batch) for side in together)]
        totals = sums(sides, parts[piece], settings.batch_size, settings.amp)
        return [(top1, loss) for top1, _, loss in totals.tolist()]

    def combine(pieces: list[list[tuple[float, float]]]) -> SubnetScore:
        # Means of each side, then of the sides.
        totals = [[sum(numbers) for numbers in zip(*side, strict=True)] for side in zip(*pieces, strict=True)]
        top1, loss = (
            sum(scale * (side[i] / images.total) for side in totals) / len(totals) for i, scale in ((0, 100), (1, 1))
        )
        return SubnetScore(top1, loss)

    return InPieces(len(parts), measure, combine)


@dataclass(frozen=True)
class Rung:
    """A way to score, cheaper than the next.

    score: of an architecture and the rung's name, at once or in pieces.
    share: of the best candidates of a generation, which go on to the next.
    """

    name: str
    score: Callable[[Key], SubnetScore] | InPieces[Key, SubnetScore]
    share: float = 1.0


class SupernetScorer:
    """Scores architectures with the supernet's weights on the val images, each once on each rung.

    With `sample.race`, all candidates of a generation are scored on a part of
    the images, and the best of them on all. With `sample.adapt`, the best of
    those are scored again after a brief adaptation. A candidate has the score
    of the last rung that it reached. With `sample.finalists`, a share of the
    images is kept for `score_finalists`.

    objective: the first objective that is a score; by it candidates are ranked.
    best_top1: of the scores on the last rung.
    """

    def __init__(
        self, config: RunConfig, supernet: SuperNet, images: EvaluationSet, report: Report, world: World
    ) -> None:
        settings = config.sample
        self._config, self._world, self._generation = config, world, 0
        self.objective = next(OBJECTIVES[name] for name in settings.objectives if OBJECTIVES[name].is_score)
        origin = {
            "supernet": supernet.digest(),
            "images": images.total,
            SET_OF_IMAGES: images.names,
            # Which part of the images is meant, their names say.
            "data": settings.data.model_dump(exclude={"data_dir", "workers", "bad_images", "holdout"}),
        }
        if settings.finalists:
            self._unseen, images = images.split(settings.finalists.images, stream_seed(config.seed, "finalists"))
            origin["unseen"] = self._unseen.total
        self._images = images
        self._rungs = []
        if settings.race:
            part, _ = images.split(settings.race.images, stream_seed(config.seed, "race"))
            self._rungs.append(Rung("race", self._by_supernet(supernet, part), settings.race.keep))
        share = settings.adapt.keep if settings.adapt else 1.0
        self._rungs.append(Rung("supernet", self._by_supernet(supernet, images), share))
        self._score_last = partial(self._by_supernet, supernet)
        if settings.adapt:
            adaptation = Adaptation(config, supernet, world, report)
            # Whole: every piece would have to adapt anew.
            self._score_last = lambda on: lambda key: score_logits(adaptation.adapt(key[0]), on, settings)
            self._rungs.append(Rung("adapted", self._score_last(images)))
        # Journals of earlier versions say nothing of these, and knew no other way.
        if settings.sides != "mean" and len(supernet.scheme.scoring_sides) > 1:
            origin["sides"] = settings.sides
        for name in ("race", "adapt"):
            if (section := getattr(settings, name)) is not None:
                origin[name] = section.model_dump()
        self._journal = MeasurementJournal(
            config.folder.population,
            origin,
            partial(read_record, objectives=settings.objectives),
            self._record,
            "scores",
            report,
            world,
            unsaid={SET_OF_IMAGES},
        )
        self._known: dict[Architecture, SubnetScore] = {}
        self.best_top1 = 0.0
        last = self._rungs[-1].name
        self._take({architecture: score for (architecture, rung), score in self._journal.known.items() if rung == last})

    def _by_supernet(self, supernet: SuperNet, images: EvaluationSet) -> InPieces[Key, SubnetScore]:
        settings = self._config.sample
        return in_pieces(lambda key: sides_of(supernet, key[0], settings.amp), images, settings)

    @property
    def known(self) -> Mapping[Architecture, SubnetScore]:
        """The scores on the last rung, by architecture (identities last: one network is one entry)."""
        return self._known

    @property
    def count(self) -> int:
        """How many scores there are, on all rungs."""
        return len(self._journal.known)

    def score(self, architectures: list[Architecture], generation: int) -> list[SubnetScore]:
        """The scores of architectures, in order; new ones are journalled with their generation."""
        self._generation = generation
        shifted = [architecture.shifted() for architecture in architectures]
        scores: dict[Architecture, SubnetScore] = {}
        running = list(dict.fromkeys(shifted))
        for rung in self._rungs:
            scores |= self._score_on(rung, running)
            values = [self.objective.minimised(vars(scores[a])) for a in running]
            # A stable sort, so that ties do not depend on the machine.
            best = np.argsort(values, kind="stable")[: math.ceil(rung.share * len(running))]
            running = [running[i] for i in sorted(best)]
        return [scores[architecture] for architecture in shifted]

    def score_finalists(
        self, architectures: list[Architecture]
    ) -> tuple[dict[Architecture, SubnetScore], dict[Architecture, SubnetScore]]:
        """The scores on the images that were kept for this, and those on all images, which rank better."""
        unseen = self._score_on(Rung("unseen", self._score_last(self._unseen)), architectures)
        seen, counts = self.known, (self._images.total, self._unseen.total)

        def pooled(a: Architecture, name: str) -> float:
            return float(np.average([getattr(seen[a], name), getattr(unseen[a], name)], weights=counts))

        return unseen, {a: SubnetScore(pooled(a, "top1"), pooled(a, "loss")) for a in architectures}

    def _score_on(self, rung: Rung, architectures: list[Architecture]) -> dict[Architecture, SubnetScore]:
        model = self._config.model
        # The slowest first, so that the last units are short ones and the ranks end together.
        by_cost = sorted(architectures, key=lambda a: -a.macs(model.image_size, model.num_classes))
        keys = [(architecture, rung.name) for architecture in by_cost]
        values = self._journal.measure(keys, rung.score, self._world.size)
        scores = dict(zip(by_cost, values, strict=True))
        if rung.name == self._rungs[-1].name:
            self._take(scores)
        return scores

    def _take(self, scores: Mapping[Architecture, SubnetScore]) -> None:
        """Add scores on the last rung. There may be very many, so a generation must not go through all of them."""
        self._known |= scores
        self.best_top1 = max([self.best_top1, *(score.top1 for score in scores.values())])

    def _record(self, key: tuple[Architecture, str], score: SubnetScore) -> dict:
        architecture, rung = key
        record = {"architecture": str(architecture), **score.record}
        if len(self._rungs) > 1 or rung == "unseen":
            record["rung"] = rung
        return record | {"generation": self._generation, **describe_candidate(architecture, self._config)}


def read_record(line: Mapping, objectives: Sequence[str]) -> tuple[tuple[Architecture, str], SubnetScore]:
    """The architecture, the rung and the score of a journal's line. Raises `UserError` for any other."""
    # Journals of earlier versions hold no loss.
    if "loss" not in line and "loss" in objectives:
        raise UserError("the score has no loss, which is an objective now")
    score = SubnetScore.from_record(line)
    rung = require_text(line.get("rung", "supernet"), "rung")
    return (Architecture.parse(line.get("architecture")), rung), score


def describe_candidate(architecture: Architecture, config: RunConfig) -> dict:
    """An architecture's costs, and its `net_id` if the space has them, to write beside its scores."""
    costs = architecture.costs(config.model.image_size, config.model.num_classes)
    return costs | {"net_id": config.space.to_net_id(architecture)} if config.space.has_net_ids else costs
