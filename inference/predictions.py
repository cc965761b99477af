"""Keeps what a network says of each test image while `test` measures it, and the images that it gets most wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitas.data.evaluation import EvaluationSet
from vitas.data.images import normalize
from vitas.distributed import World, gather
from vitas.evaluate import autocast
from vitas.models import StagedTransformer, VisionTransformer
from vitas.models.attention_maps import attention_maps
from vitas.predictions import TOP, WORST, Predictions


class PredictionsRecorder:
    """Give its `add` to `evaluate`; `predictions` then has what was said. One for each evaluation."""

    def __init__(self) -> None:
        # Of each batch; on the device, so that no batch waits for the one before it.
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keep what a batch's logits [b, classes] say, beside its labels [b]."""
        probabilities, top = logits.softmax(dim=1).topk(min(TOP, logits.shape[1]))
        losses = F.cross_entropy(logits, labels, reduction="none")
        ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
        self._parts.append((labels, top, probabilities, losses, ranks))

    def predictions(
        self,
        network: VisionTransformer | StagedTransformer,
        images: EvaluationSet,
        amp: bool,
        about: Mapping[str, Any],
        world: World,
    ) -> Predictions:
        """What the network said of all ranks' images, on every rank. images: this rank's share, which it was given."""
        columns = [torch.cat(part).cpu().numpy() for part in zip(*self._parts, strict=True)]
        if not columns:
            columns = [*np.zeros((1, 0), int), *np.zeros((2, 0, 1)), *np.zeros((2, 0))]
        own = np.argsort(-columns[3], kind="stable")[:WORST]
        pixels = images.images[torch.from_numpy(own).to(images.images.device)].cpu().permute(0, 2, 3, 1).numpy()
        shares = gather((images.files, columns, own, pixels), world)
        # A rank without images has no columns of the right width.
        filled = [share for share in shares if len(share[0])]
        starts = np.cumsum([0] + [len(files) for files, *_ in filled])
        labels, top, probabilities, losses, ranks = (
            np.concatenate(parts) for parts in zip(*(share[1] for share in filled), strict=True)
        )
        candidates = np.concatenate([start + share[2] for start, share in zip(starts, filled, strict=False)])
        chosen = np.argsort(-losses[candidates], kind="stable")[:WORST]
        worst = np.concatenate([share[3] for share in filled])[chosen]
        return Predictions(
            about=about,
            classes=images.classes,
            files=tuple(name for files, *_ in filled for name in files),
            labels=labels,
            top=top,
            probabilities=probabilities,
            losses=losses,
            ranks=ranks,
            worst=candidates[chosen],
            pixels=worst,
            attention=self._attention(network, images, worst, amp),
        )

    @staticmethod
    def _attention(
        network: VisionTransformer | StagedTransformer, images: EvaluationSet, pixels: np.ndarray, amp: bool
    ) -> np.ndarray:
        """The attention maps of pictures [w, H, W, 3]."""
        device = images.mean.device
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        with autocast(device, amp):
            return attention_maps(network, normalize(batch, images.mean, images.std)).cpu().numpy()
