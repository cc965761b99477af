"""Brief adaptation: a candidate trains for a few steps from the supernet's weights, before it is scored.

A supernet's weights are a compromise between all subnets. A few steps give a
candidate weights of its own; whether that changes the ranking is to be measured
(docs/experiments.md: in the supernets there, 100 steps did not).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitas.architecture import Architecture
from vitas.config import RunConfig
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.evaluate import autocast
from vitas.models import SuperNet
from vitas.report import Report
from vitas.seeds import stream_seed
from vitas.train import Criterion


class Adaptation:
    """Trains copies of subnets for `sample.adapt.steps` steps, on the images of `search` and with its loss.

    All candidates see the same batches in the same order, which are decoded
    once and kept in memory, as bytes; so what differs between them is not luck.
    """

    def __init__(self, config: RunConfig, supernet: SuperNet, world: World, report: Report | None = None) -> None:
        settings, model = config.sample.adapt, config.model
        self._settings, self._recipe, self._supernet, self._world = settings, config.search, supernet, world
        self._loader = TrainingLoader(
            config.search.data,
            model.image_size,
            model.mean,
            model.std,
            settings.batch_size,
            # Every rank adapts candidates of its own, with whole batches.
            World(device=world.device),
            stream_seed(config.seed, "adaptation"),
            report=report,
        )
        self._batches = list(self._loader.bytes(0, settings.steps))
        self._criterion = Criterion(config.search.model_copy(update={"mixup": 0.0, "cutmix": 0.0}))

    def adapt(self, architecture: Architecture) -> list[nn.Module]:
        """The dense networks of a subnet, one a side, after their steps, in eval mode.

        They learn together, from one loss on the sum of their logits, as in the
        supernet's training.
        """
        networks = nn.ModuleList(
            self._supernet.extract(architecture, side) for side in self._supernet.scheme.scoring_sides
        ).train()
        optimizer = torch.optim.AdamW(networks.parameters(), lr=self._settings.lr, weight_decay=0.0, fused=True)
        for step, (images, labels) in enumerate(self._loader.on_device(self._batches)):
            for group in optimizer.param_groups:
                # Down to zero, so that the last steps settle.
                group["lr"] = self._settings.lr * (1 - step / len(self._batches))
            with autocast(self._world.device, self._recipe.amp):
                logits: Tensor = sum(network(images) for network in networks)
            loss = self._criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            if self._recipe.clip_grad:
                nn.utils.clip_grad_norm_(networks.parameters(), self._recipe.clip_grad)
            optimizer.step()
        return list(networks.eval())
