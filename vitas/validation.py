"""Val images while a network trains: its accuracy after epochs, which epoch is best, and when to end.

A measurement is a function of the weights and the images. It draws nothing, so
a training is the same with it and without it; and what it found so far is part
of a checkpoint, so a resumed run has the same best epoch and the same end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vitas import watchdog
from vitas.checkpoint import BEST, CheckpointFolder
from vitas.config import Retrain
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.evaluate import Score, evaluate
from vitas.report import Report

# Images of a forward pass, of each rank, where a training step has no fewer.
BATCH = 256


class Validation:
    """Measures a network on val images after every `retrain.val_epochs` epochs, and after the last.

    images: this rank's share.
    settings: how often, and the patience.

    best_epoch: the epoch with the best top-1, the first of equally good ones; 0 before any.
    """

    def __init__(self, images: EvaluationSet, settings: Retrain, report: Report, world: World) -> None:
        self._images, self._settings, self._report, self._world = images, settings, report, world
        self._batch_size = min(BATCH, settings.batch_size // world.size)
        # The last epoch that was measured.
        self._epoch = 0
        self.best_epoch, self._best_top1 = 0, 0.0

    def after_epoch(self, epoch: int, network: nn.Module, raw: nn.Module, counts: bool = True) -> str | None:
        """Measure after an epoch, if it is due and not done; why the training should end there, or None.

        network: what `test` would test, with the averaged weights if there are any. raw: with those in training.
        counts: whether the epoch may be the best; what is not saved cannot be kept.
        """
        due = epoch % self._settings.val_epochs == 0 or epoch == self._settings.epochs
        if due and epoch > self._epoch:
            self._epoch = epoch
            score = self._measure(network)
            if counts and (score.top1 > self._best_top1 or not self.best_epoch):
                self.best_epoch, self._best_top1 = epoch, score.top1
            values = {"val/top1": score.top1, "val/top5": score.top5, "val/loss": score.loss}
            text = f"epoch {epoch}: val top-1 {score.top1:.2f}%  top-5 {score.top5:.2f}%  loss {score.loss:.4f}"
            if raw is not network:
                values["val/raw_top1"] = self._measure(raw).top1
                text += f"  (top-1 of the weights that are averaged {values['val/raw_top1']:.2f}%)"
            self._report.line(f"{text}  {self}")
            self._report.scalars(self._report.step_of(epoch), values)
        patience = self._settings.patience
        if patience is not None and self.best_epoch and self._epoch - self.best_epoch >= patience:
            return f"{self}, and not better in {self._epoch - self.best_epoch} epochs (retrain.patience {patience})"
        return None

    def _measure(self, network: nn.Module) -> Score:
        with watchdog.patient("measures on val images"), _as_tested(network):
            return evaluate(network, self._images, self._batch_size, self._settings.amp, self._world)

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self._images.names,
            "epoch": self._epoch,
            "best_epoch": self.best_epoch,
            "best_top1": self._best_top1,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["images"] != self._images.names:
            self._report.line("the val images are others than those of the checkpoint: which epoch is best begins anew")
            return
        self._epoch, self.best_epoch, self._best_top1 = state["epoch"], state["best_epoch"], state["best_top1"]

    def __str__(self) -> str:
        return f"best {self._best_top1:.2f}% after epoch {self.best_epoch}" if self.best_epoch else "best unknown"


@contextmanager
def _as_tested(network: nn.Module) -> Iterator[None]:
    """Within it, a network is as `test` has it: in eval mode, on full tokens."""
    was_training, reduced = network.training, getattr(network, "token_reduction", 1)
    network.eval()
    if reduced != 1:
        network.set_token_reduction(1)  # type: ignore[operator]  # what has the one has the other
    try:
        yield
    finally:
        network.train(was_training)
        if reduced != 1:
            network.set_token_reduction(reduced)  # type: ignore[operator]


def restore_best(validation: Validation, step: int, checkpoints: CheckpointFolder, report: Report) -> None:
    """After a resume at the end of `step`, have the best network's file be of the best epoch; for rank 0.

    A process may have died after it wrote a checkpoint, and before this was kept as the best one.
    """
    best = validation.best_epoch
    if not best or checkpoints.epoch_in(BEST) == best:
        return
    newest = checkpoints.newest()
    path = checkpoints.epoch_path(best)
    if checkpoints.epoch_in(path.name) == best:
        checkpoints.keep_best(path)
    elif newest is not None and step == report.step_of(best):
        checkpoints.keep_best(newest)
    else:
        report.line(f"{BEST} of epoch {best}, the best one so far, is not there; a better one will be kept")
