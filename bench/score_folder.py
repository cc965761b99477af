"""What reading the val images takes while subnets are scored: decoded once, or for each subnet and side.

The peer decodes the folder anew for each pass, as the released code does, with the same transform. The passes
themselves, which are alike, are left out: a network that says nothing stands for all subnets.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.distributed import World
from vitas.evaluate import sums

from .networks import IMAGE_SIZE
from .photos import write_photos
from .rounds import DEVICE, in_turn, ratio

_SIDES = 2
_CLASSES = 4


def measure(subnets: int = 10, images: int = 200, rounds: int = 3) -> list[dict[str, Any]]:
    """subnets: that are scored on the same images; a search scores thousands."""

    def silent(batch: Tensor) -> Tensor:
        return torch.zeros(len(batch), _CLASSES, device=batch.device)

    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), images, _CLASSES)
        data, world = EvaluationData(data_dir=folder, workers=0), World(device=DEVICE)

        def load() -> EvaluationSet:
            return EvaluationSet.load(data, IMAGE_SIZE, [0.5] * 3, [0.25] * 3, world, True)

        def ours() -> None:
            decoded = load()
            for _ in range(subnets):
                sums([silent] * _SIDES, decoded, 64)

        def peer() -> None:
            for _ in range(subnets * _SIDES):
                sums([silent], load(), 64)

        seconds = in_turn({"ours": ours, "peer": peer}, rounds)
    what = f"{subnets} subnets, {_SIDES} sides, {images} images"
    return [{"what": what, **ratio(seconds["ours"], seconds["peer"])}]
