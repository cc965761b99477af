"""Measures the sides of a benchmark in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """The seconds of each side in each round, after `warm_up` rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + rounds):
        # Who comes first has the caches of the one before.
        for name in sides if turn % 2 else reversed(sides):
            synchronize()
            began = time.perf_counter()
            sides[name]()
            synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Our seconds over theirs, of the same rounds: the median, and where the middle 80% of the rounds lie."""
    each = np.array(ours) / np.array(theirs)
    low, middle, high = np.percentile(each, [10, 50, 90])
    return {
        "ratio": round(float(middle), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "ms": round(1e3 * float(np.median(ours)), 3),
        "peer_ms": round(1e3 * float(np.median(theirs)), 3),
        "rounds": len(each),
    }


def speed(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """As `ratio`, of our speed over theirs: above 1 we are the faster."""
    found = ratio(theirs, ours)
    return found | {"ms": found["peer_ms"], "peer_ms": found["ms"]}
