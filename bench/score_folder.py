"""The seconds to score subnets on a folder of images: decoded once, or for each subnet and side.

The peer decodes the folder anew for each pass of a subnet, as the released code does, with the same transform. Both
sides run the same passes, of subnets near 1G with bilateral sharing, on as many photos as `write_photos` makes.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from search.scoring import score_logits, score_subnet
from vitas.config import Sample
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.distributed import World

from .networks import IMAGE_SIZE, subnets, supernet
from .photos import write_photos
from .rounds import DEVICE, in_turn, ratio


def measure(count: int = 4, images: int = 64) -> list[dict[str, Any]]:
    """count: subnets that are scored on the same images; a search scores thousands."""
    shared = supernet("bilateral").eval()
    architectures = subnets(count)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), images, 4)
        data = EvaluationData(data_dir=folder, workers=0)
        settings = Sample(data=data, budget={"minimum": 1, "maximum": 2})
        world = World(device=DEVICE)

        def load() -> EvaluationSet:
            return EvaluationSet.load(data, IMAGE_SIZE, [0.5] * 3, [0.25] * 3, world, True)

        def ours() -> None:
            decoded = load()
            for architecture in architectures:
                score_subnet(shared, architecture, decoded, settings)

        def peer() -> None:
            for architecture in architectures:
                for side in shared.scheme.scoring_sides:
                    score_logits([partial(shared, architecture=architecture, side=side)], load(), settings)

        seconds = in_turn({"ours": ours, "peer": peer}, rounds=3, warm_up=0)
        # What the passes take on both sides.
        decoded = load()
        passes = in_turn(
            {"passes": lambda: [score_subnet(shared, each, decoded, settings) for each in architectures]}, rounds=3
        )["passes"]
    decoding = {name: [whole - part for whole, part in zip(seconds[name], passes, strict=True)] for name in seconds}
    return [
        {"what": f"decoding, {count} subnets, {images} images", **ratio(decoding["ours"], decoding["peer"])},
        {"what": "decoding and passes", **ratio(seconds["ours"], seconds["peer"]), "goal": 1.0},
    ]
