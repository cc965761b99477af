"""As-ViT's two scores of the published seed topology at one initialisation, beside the seconds of the released code.

Those are stated, for 224 x 224 on two CPU cores, and were not measured here. So ours are of two threads of the CPU,
also where there is a GPU. The values are compared with a peer's by `asvit_scores.py`, at a smaller size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from vitas.asvit.scores import length_distortion, ntk_condition_number

from .asvit_scores import at_initialisation
from .rounds import in_turn, speed

# Seconds of the released code for one initialisation.
STATED = {"length distortion": 208.0, "NTK condition number": 31.0}
_GOALS = {"length distortion": 40, "NTK condition number": 10}


def measure(rounds: int = 12, image_size: int = 224) -> list[dict[str, Any]]:
    torch.set_num_threads(2)
    network, images, circle = at_initialisation(image_size=image_size)
    took = in_turn(
        {
            "length distortion": partial(length_distortion, network, *circle),
            "NTK condition number": partial(ntk_condition_number, network, images),
        },
        rounds,
    )
    what = f"{image_size} x {image_size}, {len(images)} images, {len(circle[1])} points"
    return [
        {"what": f"{name}, {what}", **speed(seconds, [STATED[name]] * rounds), "goal": _GOALS[name]}
        for name, seconds in took.items()
    ]
