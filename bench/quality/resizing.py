"""Do crops that torch resizes train networks as well as crops that Pillow resizes?

    OMP_NUM_THREADS=1 python bench/quality/resizing.py FOLDER --seeds N ...

The loader resizes in torch, which rounds otherwise (`python -m bench resizing`); images for measuring are resized by
Pillow. A DeiT-shaped network is trained on random crops of Fashion-MNIST, resized to 21 x 21, both ways from the same
seeds: same weights, crops and order. Scores go to `results/SETTING/resizing.jsonl`; at the end the paired difference
is printed.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from scipy import stats
from setting import Setting, argument_parser
from torch import Tensor

from inference.test import test
from retrain.retrain import retrain
from vitas.data.cropping import RandomResizedCrop, Rectangle
from vitas.data.pictures import Picture
from vitas.distributed import World

ARCHITECTURE = "p7-e26-token-h2q78m104x6"
IMAGE_SIZE = 21
CROPS = {"scale": [0.35, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bicubic"}
WAYS = ("torch", "pillow")


def resized_by_pillow(crop: RandomResizedCrop, picture: Picture, rectangle: Rectangle, reduction: int = 1) -> Tensor:
    """As the loader did it, and timm does."""
    assert isinstance(picture, Image.Image)
    assert reduction == 1
    part = picture.crop(rectangle.box)
    resized = part.resize((crop.side, crop.side), Image.Resampling[crop.interpolation.upper()])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def trained(setting: Setting, way: str, seed: int) -> dict:
    """A line of the journal: top-1 in percent and loss on the test images."""
    run = f"resizing/{way}-seed{seed}"
    data = setting.run_config(run, seed, retrain={"architecture": ARCHITECTURE}).retrain.data
    augmentation = data.augmentation.model_dump() | CROPS
    training = {"architecture": ARCHITECTURE, "data": data.model_dump() | {"augmentation": augmentation}}
    config = setting.run_config(run, seed, retrain=training, test={})
    config = config.model_copy(update={"model": config.model.model_copy(update={"image_size": IMAGE_SIZE})})
    resizing = patch.object(RandomResizedCrop, "resized", resized_by_pillow) if way == "pillow" else nullcontext()
    with resizing:
        retrain(config, World())
    test(config, World())
    results = json.loads(config.folder.results.read_text())
    return {"way": way, "seed": seed, "top1": results["top1"], "loss": results["loss"]}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    journal = setting.journal("resizing")
    known = {(line["way"], line["seed"]) for line in journal.lines}
    units = [(way, seed) for seed in arguments.seeds for way in WAYS if (way, seed) not in known]
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for line in pool.map(trained, [setting] * len(units), *zip(*units, strict=True)) if units else ():
            journal.append(line)
            print(line, flush=True)
    top1 = {(line["way"], line["seed"]): line["top1"] for line in journal.lines}
    differences = [top1["torch", seed] - top1["pillow", seed] for way, seed in top1 if way == "torch"]
    spread = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5
    for way in WAYS:
        print(f"{way}: {np.mean([value for key, value in top1.items() if key[0] == way]):.2f}")
    print(f"torch minus pillow, {len(differences)} seeds: {np.mean(differences):+.2f} ± {spread:.2f}")


if __name__ == "__main__":
    main()
