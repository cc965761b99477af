"""The bytes of gradients that a step of the supernet's training sends to other ranks, beside those of all its weights.

Of the recommended search at 1G: subnets are drawn in its budget, each place of a weight is sent once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from search.search import build_supernet
from search.subnets import training_plan
from vitas import config as configuration
from vitas.distributed import World


def measure(steps: int = 200) -> list[dict[str, Any]]:
    rows = []
    for name in ("ViTAS_1G", "ViTAS_1G_BCNet", "ViTAS_1G_AutoSlim"):
        config = configuration.load(configuration.find(name, "search"))
        supernet = build_supernet(config, World())
        whole = sum(parameter.numel() for parameter in supernet.parameters())
        plan, _ = training_plan(config, config.macs_model)
        sent = []
        for step in range(steps):
            used = [subnet for group in plan.at(step) for subnet in group]
            slices = supernet.slices_in_use(used, supernet.scheme.training_sides(step))
            sent.append(sum(each.numel() for each in slices))
        low, high = np.percentile(sent, [10, 90])
        rows.append(
            {
                "what": name,
                "ratio": round(float(np.mean(sent)) / whole, 4),
                "low": round(low / whole, 4),
                "high": round(high / whole, 4),
                "mb": round(4e-6 * float(np.mean(sent)), 1),
                "peer_mb": round(4e-6 * whole, 1),
                "steps": steps,
            }
        )
    return rows
