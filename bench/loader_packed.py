"""Training images from a pack, beside timm's loader on the files, on one core; and how long either takes to open.

The recipe is DeiT's. The files are in the page cache: what is compared is reading, decoding and augmenting, and no
disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset

from vitas.data.images import folder_listing, open_image_folder
from vitas.data.packing import PackOptions, pack

from .loader import BATCH, RECIPES, steps_of_ours, steps_of_timm
from .photos import write_photos
from .rounds import in_turn, speed

_OPENED = 20


def measure(images: int = 300, rounds: int = 5) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files, as_is, smaller, raw = (Path(folder, name) for name in ("files", "pack", "pack256", "raw256"))
        write_photos(files, images)
        pack(files, as_is, PackOptions(), 1)
        pack(files, smaller, PackOptions(size=256), 1)
        pack(files, raw, PackOptions(size=256, uncompressed=True), 1)
        places = {"pack": as_is, "pack of --size 256": smaller, "pack of --size 256 --uncompressed": raw}
        steps, rows = images // BATCH, []
        for recipe_name, recipe in RECIPES.items():
            sides = {name: steps_of_ours(str(place), recipe, steps) for name, place in places.items()}
            seconds = in_turn({**sides, "timm": steps_of_timm(str(files), recipe, steps)}, rounds)
            rows += [
                {"what": f"{name}, {recipe_name}, {images} photos", **speed(seconds[name], seconds["timm"])}
                for name in places
            ]
        opening = {"pack": _opening(as_is), "timm": lambda: [ImageDataset(str(files)) for _ in range(_OPENED)]}
        seconds = in_turn(opening, rounds)
        rows.append({"what": f"to open it, {_OPENED} times", **speed(seconds["pack"], seconds["timm"])})
    return rows


def _opening(place: Path) -> Callable[[], object]:
    return lambda: [folder_listing(open_image_folder(str(place))) for _ in range(_OPENED)]
