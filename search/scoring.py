"""Scores of candidates: each is measured once, with the work spread over the ranks, and journalled before its use."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from search.adaptation import Adaptation
from search.objectives import OBJECTIVES
from vitas import distributed, watchdog
from vitas.architecture import Architecture
from vitas.config import RunConfig, Sample
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World, barrier, broadcast, gather
from vitas.errors import UserError, require_number, require_text
from vitas.evaluate import evaluate
from vitas.journal import Journal, read_records
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.seeds import stream_seed
from vitas.slurm.signals import Interrupted

# In the origin of scores: a digest of the names of the images that they were made with.
SET_OF_IMAGES = "set of images"
Candidate = TypeVar("Candidate", bound=Hashable)
Value = TypeVar("Value")


class MeasurementJournal(Generic[Candidate, Value]):
    """Measures a value per candidate, and keeps the values in a file from which a restart resumes.

    path: the file. Its first line is `origin`, every other line the record of a candidate.
    origin: plain data that the values depend on.
    read: record -> (candidate, value). Raises `UserError` for a record that `write` does not write.
    write: (candidate, value) -> record.
    noun: what to call the values in messages, e.g. "scores".
    unsaid: names in `origin` that files of earlier versions do not have.

    known: the values by candidate.

    Raises `UserError` for a file of another origin, and with the line for a record that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        origin: dict,
        read: Callable[[dict], tuple[Candidate, Value]],
        write: Callable[[Candidate, Value], dict],
        noun: str,
        report: Report,
        world: World,
        unsaid: Collection[str] = (),
    ) -> None:
        self._write, self._noun, self._report, self._world = write, noun, report, world
        self._file = Journal(path) if world.is_main else None
        lines = broadcast(self._file.lines if self._file else None, world)
        if not lines:
            if self._file:
                self._file.append(origin)
        else:
            origin = {name: value for name, value in origin.items() if name not in unsaid or name in lines[0]}
        if lines and lines[0] != origin:
            differing = [name for name in {**origin, **lines[0]} if origin.get(name) != lines[0].get(name)]
            raise UserError(
                f"{path} holds {noun} made with another {' and another '.join(differing)}; "
                "move it away, or choose another save_path"
            )
        self.known: dict[Candidate, Value] = dict(read_records(path, lines[1:], read, first=2))
        self._forget_lines()
        if self.known:
            report.line(f"resumes from {len(self.known)} {noun} in {shown_path(path)}")

    def _forget_lines(self) -> None:
        # `known` has what they say, in a fraction of the memory.
        if self._file:
            self._file.lines.clear()

    def measure(
        self, candidates: Sequence[Candidate], measure_one: Callable[[Candidate], Value], ranks: int
    ) -> list[Value]:
        """The values of candidates, in order. New candidates are measured in waves, each on one of `ranks` ranks.

        Raises `Interrupted` between waves; the file then has all values so far.
        """
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self.known]
        with watchdog.watching(self._noun):
            for start in range(0, len(new), ranks):
                wave = new[start : start + ranks]
                own = measure_one(wave[self._world.rank]) if self._world.rank < len(wave) else None
                values = gather(own, self._world)[: len(wave)]
                if self._file:
                    # Before this process can stop, so that no value is lost or measured twice.
                    self._file.append(*(self._write(*pair) for pair in zip(wave, values, strict=True)))
                self._forget_lines()
                self.known |= dict(zip(wave, values, strict=True))
                watchdog.beat(len(self.known))
                if reason := distributed.stop_requested(self._world, at_once=True):
                    self._report.line(f"stops after {len(self.known)} {self._noun}, which are saved ({reason})")
                    self._report.close()
                    barrier(self._world)
                    raise Interrupted(reason)
        return [self.known[candidate] for candidate in candidates]


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
    if settings.sides == "sum":
        together = tuple(sides)
        sides = [lambda batch: sum(side(batch) for side in together)]
    scores = [evaluate(side, images, settings.batch_size, settings.amp) for side in sides]
    return SubnetScore(*(sum(getattr(score, name) for score in scores) / len(scores) for name in ("top1", "loss")))


def score_subnet(
    supernet: SuperNet, architecture: Architecture, images: EvaluationSet, settings: Sample
) -> SubnetScore:
    """The score of an architecture with the supernet's weights."""
    sides = [partial(supernet, architecture=architecture, side=side) for side in supernet.scheme.scoring_sides]
    return score_logits(sides, images, settings)


@dataclass(frozen=True)
class Rung:
    """A way to score, cheaper than the next. share: of the best candidates of a generation, which go on to the next."""

    name: str
    score: Callable[[Architecture], SubnetScore]
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
            self._rungs.append(Rung("race", lambda a: score_subnet(supernet, a, part, settings), settings.race.keep))
        share = settings.adapt.keep if settings.adapt else 1.0
        self._rungs.append(Rung("supernet", lambda a: score_subnet(supernet, a, images, settings), share))
        self._score_last = lambda a, on: score_subnet(supernet, a, on, settings)
        if settings.adapt:
            adaptation = Adaptation(config, supernet, world, report)
            self._score_last = lambda a, on: score_logits(adaptation.adapt(a), on, settings)
            self._rungs.append(Rung("adapted", lambda a: self._score_last(a, images)))
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
        unseen = self._score_on(Rung("unseen", lambda a: self._score_last(a, self._unseen)), architectures)
        seen, counts = self.known, (self._images.total, self._unseen.total)

        def pooled(a: Architecture, name: str) -> float:
            return float(np.average([getattr(seen[a], name), getattr(unseen[a], name)], weights=counts))

        return unseen, {a: SubnetScore(pooled(a, "top1"), pooled(a, "loss")) for a in architectures}

    def _score_on(self, rung: Rung, architectures: list[Architecture]) -> dict[Architecture, SubnetScore]:
        model = self._config.model
        # A wave takes as long as its slowest subnet, so subnets of similar cost should be in one wave.
        by_cost = sorted(architectures, key=lambda a: a.macs(model.image_size, model.num_classes))
        keys = [(architecture, rung.name) for architecture in by_cost]
        values = self._journal.measure(keys, lambda key: rung.score(key[0]), self._world.size)
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
