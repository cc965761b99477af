"""The panel: a fixed set of subnets that is scored while the supernet trains.

Their scores say how far the supernet is, and how much their ranking still
changes says whether more training would change what the search finds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from search.measurements import MeasurementJournal
from search.scoring import SET_OF_IMAGES, SubnetScore, in_pieces, sides_of
from vitas.architecture import Architecture
from vitas.budget import CostModel
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.errors import require_integer
from vitas.in_budget import InBudget
from vitas.report import Report
from vitas.seeds import stream_seed


def read_record(line: Mapping) -> tuple[tuple[int, Architecture], SubnetScore]:
    """The epoch, the subnet and the score of a journal's line. Raises `UserError` for any other."""
    key = require_integer(line.get("epoch"), "epoch"), Architecture.parse(line.get("architecture"))
    return key, SubnetScore.from_record(line)


class Panel:
    """Scores `search.panel.size` subnets of `sample.budget` on the val images, every `search.panel.epochs` epochs.

    Scores are journalled in `panel.jsonl`, so a restart knows them.
    """

    def __init__(self, config: RunConfig, cost_model: CostModel, report: Report, world: World) -> None:
        self._config, self._settings, self._report, self._world = config, config.search.panel, report, world
        rng = np.random.default_rng(stream_seed(config.seed, "panel"))
        genomes = InBudget(cost_model, config.budget).draw_different(rng, self._settings.size)
        self._subnets = [config.space.decode(genome).shifted() for genome in genomes]
        model, data = config.model, config.sample.data
        self._images = EvaluationSet.load(data, model.image_size, model.mean, model.std, world, True, report)
        self._journal: MeasurementJournal[tuple[int, Architecture], SubnetScore] = MeasurementJournal(
            config.folder.panel,
            {
                "seed": config.seed,
                "images": self._images.total,
                SET_OF_IMAGES: self._images.names,
                "subnets": [str(subnet) for subnet in self._subnets],
            },
            read_record,
            lambda key, score: {"epoch": key[0], "architecture": str(key[1]), **score.record},
            "scores of the panel",
            report,
            world,
            unsaid={SET_OF_IMAGES},
        )

    def after_epoch(self, epoch: int, network: nn.Module) -> str | None:
        """Score the panel with the weights after an epoch, if it is due; why the training should end, if it should."""
        if epoch % self._settings.epochs:
            return None
        sample = self._config.sample
        self._journal.measure(
            [(epoch, subnet) for subnet in self._subnets],
            in_pieces(lambda key: sides_of(network, key[1], sample.amp), self._images, sample),
            self._world.size,
        )
        scores = [self._journal.known[epoch, subnet] for subnet in self._subnets]
        values = {"top1": np.mean([s.top1 for s in scores]), "loss": np.mean([s.loss for s in scores])}
        agreement = self._agreement(epoch)
        text = f"epoch {epoch}: the panel's top-1 is {values['top1']:.2f}% on average, its loss {values['loss']:.4f}"
        if agreement is not None:
            values["agreement"] = agreement
            text += f"; tau of its ranking with that {self._settings.epochs} epochs ago {agreement:.2f}"
        self._report.line(text)
        self._report.scalars(
            self._report.step_of(epoch), {f"panel/{name}": float(value) for name, value in values.items()}
        )
        before = self._agreement(epoch - self._settings.epochs)
        limit = self._settings.stop_at
        # Twice in a row: one agreement of a small panel may be luck.
        if limit is not None and agreement is not None and before is not None and min(agreement, before) >= limit:
            return f"the panel's ranking has settled: tau {before:.2f} and {agreement:.2f}, stop_at is {limit}"
        return None

    def _agreement(self, epoch: int) -> float | None:
        """Kendall's tau between the losses after an epoch and those one interval before; None without both."""
        # Here, because few trainings have a panel, and this takes half as long as torch.
        from scipy.stats import kendalltau

        known = self._journal.known
        pair = [[known.get((e, subnet)) for subnet in self._subnets] for e in (epoch - self._settings.epochs, epoch)]
        if None in pair[0] or None in pair[1]:
            return None
        tau = kendalltau(*([score.loss for score in scores] for scores in pair)).statistic
        return None if np.isnan(tau) else float(tau)
