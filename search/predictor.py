"""What choices are worth: features of genomes, and a linear model of their scores.

A score is taken as a sum over a network's choices: patch size, depth, embedding
dim, and in each position the head count and both widths. Such a model is fitted
to the scores that a search has (`Predictor`), or read off the losses that the
supernet had with each choice in training (`ChoiceLosses`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitas.elastic_space import AnySpace


class Choices:
    """The choices of a space, numbered. Every network makes 3 + 3 * depth of them, the last of them 0 for no block."""

    def __init__(self, space: AnySpace) -> None:
        self._space = space
        limits = space.gene_limits
        # For each position, and in it for each kind of choice, a block of numbers that begins here.
        of_blocks = np.stack([limits.choice[0], limits.qkv[0], limits.mlp[0]], axis=1).ravel()
        counts = [int(limits.patch[0]), space.depth, int(limits.embed[0]), *of_blocks.tolist()]
        self._starts = np.concatenate([[1], 1 + np.cumsum(counts)])
        self.count = int(self._starts[-1])

    def of(self, genomes: np.ndarray) -> np.ndarray:
        """The choices [population, 3 + 3 * depth] that canonical genomes [population, genes] make; 0 is none."""
        columns = self._space.columns(genomes)
        active = columns.active
        first = [columns.patch, active.sum(1) - 1, columns.embed]
        rest = np.stack([columns.choice, columns.qkv, columns.mlp], axis=2)
        choices = np.concatenate([np.stack(first, axis=1), rest.reshape(len(rest), -1)], axis=1) + self._starts[:-1]
        used = np.concatenate([np.ones((len(active), 3), dtype=bool), np.repeat(active, 3, axis=1)], axis=1)
        return np.where(used, choices, 0)

    def features(self, genomes: np.ndarray) -> np.ndarray:
        """Which choices genomes make, as 0 and 1 [population, choices]."""
        features = np.zeros((len(genomes), self.count))
        np.put_along_axis(features, self.of(genomes), 1, axis=1)
        features[:, 0] = 0
        return features


class Predictor:
    """A ridge regression of scores on choices, whose strength is that with the least leave-one-out error."""

    STRENGTHS = np.logspace(-2, 4, 13)

    def __init__(self, space: AnySpace) -> None:
        self._choices = Choices(space)
        self._weights: np.ndarray | None = None

    def fit(self, genomes: np.ndarray, scores: np.ndarray) -> None:
        """Fit to genomes [n, genes] and scores [n]."""
        features = self._choices.features(genomes)
        self._mean, self._features_mean = scores.mean(), features.mean(axis=0)
        centred, residual = features - self._features_mean, scores - self._mean
        u, s, vt = np.linalg.svd(centred, full_matrices=False)
        best = np.inf
        for strength in self.STRENGTHS:
            shrink = s**2 / (s**2 + strength)
            # The mean was fitted too, hence 1 / n.
            leverage = (u**2 * shrink).sum(axis=1) + 1 / len(scores)
            errors = (residual - u @ (shrink * (u.T @ residual))) / np.maximum(1 - leverage, 1e-9)
            error = float((errors**2).mean())
            if error < best:
                best, self._weights = error, vt.T @ (s / (s**2 + strength) * (u.T @ residual))

    def predict(self, genomes: np.ndarray) -> np.ndarray:
        """The predicted scores [n] of genomes [n, genes]."""
        return self._mean + (self._choices.features(genomes) - self._features_mean) @ self._weights


# So many losses are taken from the device at once.
_PENDING = 256


class ChoiceLosses:
    """How much more or less than the mean of its time the loss was with each choice, over the supernet's training.

    Old steps count less and less: after a number of steps `memory`, 1 / e.
    Losses stay on the device until there are many, so that no step waits for
    its loss.
    """

    def __init__(self, space: AnySpace, memory: int) -> None:
        self._choices, self._decay = Choices(space), 1 - 1 / memory
        # Sums of relative losses and of weights for each choice; and the running mean loss, with its weight.
        self._sums = np.zeros((2, self._choices.count))
        self._mean = np.zeros(2)
        self._pending: list[tuple[np.ndarray, Tensor]] = []

    @classmethod
    def recorded(cls, space: AnySpace, state: dict[str, Tensor]) -> ChoiceLosses:
        """What a training has recorded, to predict with: the state of its checkpoint."""
        losses = cls(space, memory=1)
        losses.load_state_dict(state)
        return losses

    def add(self, genome: np.ndarray, loss: Tensor) -> None:
        """Record the loss of a pass of a canonical genome [genes]."""
        self._pending.append((genome, loss.detach()))
        if len(self._pending) == _PENDING:
            self._take_pending()

    def _take_pending(self) -> None:
        if not self._pending:
            return
        genomes, losses = zip(*self._pending, strict=True)
        self._pending = []
        values = torch.stack(losses).double().cpu().numpy()
        for loss, chosen in zip(values, self._choices.of(np.array(genomes)), strict=True):
            if not np.isfinite(loss):
                # Its step was left out.
                continue
            # Of about the last hundred passes: training itself lowers the loss.
            self._mean = 0.99 * self._mean + (loss, 1)
            self._sums *= self._decay
            self._sums[:, chosen] += [[loss - self._mean[0] / self._mean[1]], [1]]

    def predict(self, genomes: np.ndarray) -> np.ndarray:
        """The sum of the mean relative losses of the choices of genomes [n, genes]; less is better."""
        self._take_pending()
        sums, weights = self._sums
        of_choice = np.where(weights > 0, sums / np.maximum(weights, 1e-12), 0)
        of_choice[0] = 0
        return of_choice[self._choices.of(genomes)].sum(axis=1)

    def state_dict(self) -> dict[str, Tensor]:
        self._take_pending()
        return {"sums": torch.tensor(self._sums), "mean": torch.tensor(self._mean)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._pending = []
        self._sums, self._mean = (state[name].double().cpu().numpy().copy() for name in ("sums", "mean"))
