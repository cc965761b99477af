"""AdamW of the slices alone that a supernet's step used, beside torch's fused step over whole weights, which it takes.

The rows say which share of the numbers the slices are. What it does to a supernet, `quality/used_slices.py` asks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.adamw import adamw

from vitas import Architecture, SuperNet

from .networks import subnets, supernet
from .rounds import in_turn, ratio
from .supernet_step import optimizer_of

SIDES = ("left", "right")


def measure(count: int = 4, rounds: int = 9) -> list[dict[str, Any]]:
    network = supernet("bilateral")
    whole = optimizer_of(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # It makes the moments.
    whole.step()
    rows = []
    for architecture in subnets(count):
        slices = network.slices_in_use([architecture], SIDES)
        used = {each.parameter for each in slices}
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter in used else None
        seconds = in_turn(
            {"slices": lambda each=architecture: step_of_slices(network, each, whole), "whole": whole.step}, rounds
        )
        share = sum(each.numel() for each in slices) / sum(parameter.numel() for parameter in used)
        what = f"{len(slices)} slices, {share:.0%} of the weights"
        rows.append({"what": what, **ratio(seconds["slices"], seconds["whole"]), "goal": None})
    return rows


@torch.no_grad()
def step_of_slices(network: SuperNet, architecture: Architecture, optimizer: torch.optim.AdamW) -> None:
    slices = network.slices_in_use([architecture], SIDES)
    places = [(each.parameter, tuple(slice(*ends) for ends in each.box)) for each in slices]
    states = [optimizer.state[parameter] for parameter, _ in places]
    moments = [
        [state[name][box] for state, (_, box) in zip(states, places, strict=True)] for name in ("exp_avg", "exp_avg_sq")
    ]
    adamw(
        [parameter[box] for parameter, box in places],
        [each.gradient() for each in slices],
        *moments,
        [],
        [state["step"] for state in states],
        foreach=False,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=0.0,
        weight_decay=0.05,
        eps=1e-8,
        maximize=False,
    )
