"""Images per second of a subnet's scoring pass beside those of the dense network: the supernet's views cost nothing."""

from __future__ import annotations

from typing import Any

import torch

from vitas.evaluate import autocast_dtype
from vitas.models.step_weights import weights_of

from .networks import BATCH, autocast, batch, subnets, supernet
from .rounds import DEVICE, in_turn, speed


def measure(count: int = 2, rounds: int = 5) -> list[dict[str, Any]]:
    images, _ = batch()
    dtype = autocast_dtype(DEVICE, amp=True)
    rows = []
    for sharing in ("ordinal", "bilateral"):
        shared = supernet(sharing).eval()
        sides = shared.scheme.scoring_sides
        ours, theirs = [], []
        for architecture in subnets(count):
            dense = [shared.extract(architecture, side) for side in sides]

            @torch.inference_mode()
            def of_supernet(shared=shared, sides=sides, architecture=architecture) -> None:
                with autocast():
                    for side in sides:
                        shared(images, architecture, side, weights_of(shared, architecture, side, dtype))

            @torch.inference_mode()
            def of_dense(dense=dense) -> None:
                with autocast():
                    for network in dense:
                        network(images)

            seconds = in_turn({"ours": of_supernet, "theirs": of_dense}, rounds)
            ours += seconds["ours"]
            theirs += seconds["theirs"]
        rows.append({"what": f"{sharing}, batch {BATCH}", **speed(ours, theirs)})
    return rows
