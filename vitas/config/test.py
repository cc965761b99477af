"""The section `test`: the measurement of trained networks."""

from __future__ import annotations

from typing import Any, Literal

from vitas.config_section import (
    Positive,
    Section,
)
from vitas.data.folders import EvaluationData


class Test(Section):
    """The measurement of trained networks.

    weights: the trained ones, or their average (`retrain.ema_decay`).
    load_name: one checkpoint, in retrain's checkpoint folder or a path; by
        default, and without a range, the newest. `best_ckpt` is the best by `retrain.val`.
    from_supernet: measure `architecture` (by default the best) with the weights that the supernet has for it.
    start, end, strip: a range of epochs, both ends included, and its stride.
    wait: wait for epochs of the range that `retrain` has not written yet, instead of failing.
    compile: let torch compile the networks.
    architecture: as in `retrain`; needed only if the checkpoint does not hold it.
    """

    flag: bool = False
    data: EvaluationData
    batch_size: Positive = 256
    amp: bool = True
    weights: Literal["model", "ema"] = "model"
    load_name: str | None = None
    from_supernet: bool = False
    start: Positive | None = None
    end: Positive | None = None
    strip: Positive = 1
    wait: bool = False
    compile: bool = False
    architecture: str | dict[str, Any] | None = None
