"""A training step of a found network beside one of timm's network of about the same MACs: ViTAS-C and DeiT-Ti.

Forward, backward and the fused optimizer, for each multiply-add, with the recipe's stochastic depth. The peer is timm's
as it is, uncompiled; ours is measured uncompiled and compiled (`retrain.compile`). A row for itself is what stochastic
depth saves that does not compute what it leaves out.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import timm
from torch import Tensor

from vitas import create_model
from vitas.compiled import compiled
from vitas.models import stochastic_depth

from .networks import BATCH, IMAGE_SIZE, batch
from .rounds import DEVICE, in_turn, ratio
from .supernet_step import optimizer_of, step

# The default of `retrain.drop_path_rate`, as DeiT has it.
DROP_PATH_RATE = 0.1


def measure(rounds: int = 6) -> list[dict[str, Any]]:
    images, labels = batch()
    peer = timm.create_model("deit_tiny_patch16_224", drop_path_rate=DROP_PATH_RATE).to(DEVICE).train()
    ours = create_model("vitas_c", 1000, IMAGE_SIZE, DROP_PATH_RATE).to(DEVICE).train()
    fast = compiled(ours, "retrain.compile")

    def computing_all() -> Tensor:
        with patch.object(stochastic_depth, "_FEW", images.numel() * ours.architecture.embed_dim):
            logits: Tensor = ours(images)
            return logits

    seconds = in_turn(
        {
            "eager": step(lambda: ours(images), labels, optimizer_of(ours)),
            "all": step(computing_all, labels, optimizer_of(ours)),
            "compiled": step(lambda: fast(images), labels, optimizer_of(ours)),
            "peer": step(lambda: peer(images), labels, optimizer_of(peer)),
        },
        rounds,
        warm_up=2,
    )
    macs = ours.architecture.macs(IMAGE_SIZE, 1000) / create_model("deit_tiny").architecture.macs(IMAGE_SIZE, 1000)
    rows = []
    for how in ("eager", "compiled"):
        found = ratio([each / macs for each in seconds[how]], seconds["peer"])
        goal = 0.75 if how == "compiled" and DEVICE.type == "cuda" else 0.85
        rows.append({"what": f"ViTAS-C {how} over DeiT-Ti, batch {BATCH}", **found, "goal": goal})
    what = f"stochastic depth that leaves out what it drops, over one that computes it, batch {BATCH}"
    return [*rows, {"what": what, **ratio(seconds["eager"], seconds["all"]), "goal": None}]
