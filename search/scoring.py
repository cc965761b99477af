"""Scores of candidates: each is measured once, with the work spread over the ranks, and journalled before its use."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from vitas import distributed
from vitas.architecture import Architecture
from vitas.config import RunConfig, Sample
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World, barrier, broadcast, gather
from vitas.errors import UserError
from vitas.evaluate import evaluate
from vitas.files import Journal
from vitas.models import SuperNet
from vitas.report import Report, shown_path
from vitas.slurm.signals import Interrupted

Candidate = TypeVar("Candidate", bound=Hashable)
Value = TypeVar("Value")


class MeasurementJournal(Generic[Candidate, Value]):
    """Measures a value per candidate, and keeps the values in a file from which a restart resumes.

    path: the file. Its first line is `origin`, every other line the record of a candidate.
    origin: plain data that the values depend on.
    read: record -> (candidate, value).
    write: (candidate, value) -> record.
    noun: what to call the values in messages, e.g. "scores".

    known: the values by candidate.

    Raises `UserError` for a file of another origin.
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
    ) -> None:
        self._write, self._noun, self._report, self._world = write, noun, report, world
        self._file = Journal(path) if world.is_main else None
        lines = broadcast(self._file.lines if self._file else None, world)
        if not lines:
            if self._file:
                self._file.append(origin)
        elif lines[0] != origin:
            differing = [name for name in {**origin, **lines[0]} if origin.get(name) != lines[0].get(name)]
            raise UserError(
                f"{path} holds {noun} made with another {' and another '.join(differing)}; "
                "move it away, or choose another save_path"
            )
        self.known: dict[Candidate, Value] = dict(map(read, lines[1:]))
        if self.known:
            report.line(f"resumes from {len(self.known)} {noun} in {shown_path(path)}")

    def measure(
        self, candidates: Sequence[Candidate], measure_one: Callable[[Candidate], Value], ranks: int
    ) -> list[Value]:
        """The values of candidates, in order. New candidates are measured in waves, each on one of `ranks` ranks.

        Raises `Interrupted` between waves; the file then has all values so far.
        """
        new = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self.known]
        for start in range(0, len(new), ranks):
            wave = new[start : start + ranks]
            own = measure_one(wave[self._world.rank]) if self._world.rank < len(wave) else None
            values = gather(own, self._world)[: len(wave)]
            if self._file:
                # Before this process can stop, so that no value is lost or measured twice.
                self._file.append(*(self._write(*pair) for pair in zip(wave, values, strict=True)))
            self.known |= dict(zip(wave, values, strict=True))
            if reason := distributed.stop_requested(self._world, at_once=True):
                self._report.line(f"stops after {len(self.known)} {self._noun}, which are saved ({reason})")
                self._report.close()
                barrier(self._world)
                raise Interrupted(reason)
        return [self.known[candidate] for candidate in candidates]


@dataclass(frozen=True)
class SubnetScore:
    """The score of a subnet. top1: in percent. loss: mean cross-entropy. Both are means over the scheme's sides."""

    top1: float
    loss: float

    @property
    def facts(self) -> dict[str, float]:
        """The score as plain data; without the loss if it is from a journal of an earlier version, which had none."""
        return {name: value for name, value in vars(self).items() if not math.isnan(value)}


def score_subnet(
    supernet: SuperNet, architecture: Architecture, images: EvaluationSet, settings: Sample
) -> SubnetScore:
    """The score of an architecture with the supernet's weights on images."""
    sides = [
        evaluate(
            lambda batch, side=side: supernet(batch, architecture, side), images, settings.batch_size, settings.amp
        )
        for side in supernet.scheme.scoring_sides
    ]
    return SubnetScore(*(sum(getattr(s, name) for s in sides) / len(sides) for name in ("top1", "loss")))


class SupernetScorer:
    """Scores architectures with the supernet's weights on the val images, each once."""

    def __init__(
        self, config: RunConfig, supernet: SuperNet, images: EvaluationSet, report: Report, world: World
    ) -> None:
        self._config, self._supernet, self._images, self._world = config, supernet, images, world
        self._generation = 0
        origin = {
            "supernet": _digest(supernet),
            "images": images.total,
            "data": config.sample.data.model_dump(exclude={"data_dir", "workers"}),
        }
        self._journal = MeasurementJournal(
            config.folder.population, origin, self._read, self._record, "scores", report, world
        )

    @property
    def known(self) -> dict[Architecture, SubnetScore]:
        """All scores, by architecture (identities last: one network is one entry)."""
        return self._journal.known

    def score(self, architectures: list[Architecture], generation: int) -> list[SubnetScore]:
        """The scores of architectures, in order; new ones are journalled with their generation."""
        self._generation = generation
        model = self._config.model
        shifted = [architecture.shifted() for architecture in architectures]
        # A wave takes as long as its slowest subnet, so subnets of similar cost should be in one wave.
        by_cost = sorted(shifted, key=lambda a: a.macs(model.image_size, model.num_classes))
        self._journal.measure(
            by_cost,
            lambda architecture: score_subnet(self._supernet, architecture, self._images, self._config.sample),
            self._world.size,
        )
        return [self.known[architecture] for architecture in shifted]

    def _record(self, architecture: Architecture, score: SubnetScore) -> dict:
        scores = {"top1": score.top1, "loss": score.loss, "generation": self._generation}
        return {"architecture": str(architecture), **scores, **describe_candidate(architecture, self._config)}

    def _read(self, line: dict) -> tuple[Architecture, SubnetScore]:
        # Journals of earlier versions hold no loss.
        if "loss" not in line and "loss" in self._config.sample.objectives:
            raise UserError(f"{self._config.folder.population} holds scores without a loss; move it away")
        return Architecture.parse(line["architecture"]), SubnetScore(line["top1"], line.get("loss", float("nan")))


def describe_candidate(architecture: Architecture, config: RunConfig) -> dict:
    """An architecture's costs, and its `net_id` if the space has them, to write beside its scores."""
    costs = architecture.costs(config.model.image_size, config.model.num_classes)
    return costs if config.space.shared_blocks else costs | {"net_id": config.space.to_net_id(architecture)}


def _digest(supernet: SuperNet) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in supernet.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
