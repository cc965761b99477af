"""Are the curves flat? Trains some architectures of the table for longer, or at another rate, measured on val images.

    OMP_NUM_THREADS=1 python bench/quality/recipe.py FOLDER [--architectures TEXT ...] [--epochs N ...] [--lr LR ...]
        [--batch-size N ...] [--least-crop AREA ...]

A training that is longer must gain nothing, or the table (`table.py`) ranks how fast networks learn. Prints a line a
training; the test images are not touched.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

from setting import Setting, argument_parser

from inference.test import test
from retrain.retrain import retrain
from vitas.distributed import World

ARCHITECTURES = (
    "p7-e48-token-h4q192m384-h4q96m384-h4q96m96-h4q96m288",
    "p4-e32-token-h4q96m96-h2q48m96-h4q48m96-h2q192m96",
)


def val_top1(
    setting: Setting, architecture: str, epochs: int, lr: float, batch_size: int, least_crop: float, seed: int
) -> tuple[float, float]:
    """Top-1 on the val images in percent, and the seconds of the training (0 where it was done before)."""
    run = f"recipe/{architecture}-epochs{epochs}-lr{lr}-batch{batch_size}-crop{least_crop}-seed{seed}"
    training = setting.run_config(run, seed, retrain={"architecture": architecture}).retrain.data
    # An area of 1 keeps the whole image; below it, the published range of aspect ratios.
    crop = {"scale": [least_crop, 1.0]} | ({} if least_crop == 1 else {"ratio": [3 / 4, 4 / 3]})
    retraining = {
        "architecture": architecture,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "data": training.model_dump() | {"augmentation": training.augmentation.model_dump() | crop},
    }
    config = setting.run_config(run, seed, retrain=retraining, test={"data": setting.data("val")})
    began = time.monotonic()
    retrain(config, World())
    seconds = time.monotonic() - began
    test(config, World())
    return json.loads(config.folder.results.read_text())["top1"], seconds


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="TEXT")
    parser.add_argument("--epochs", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-3])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32])
    parser.add_argument("--least-crop", type=float, nargs="+", default=[1.0], help="least area of a random crop")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    units = list(
        product(arguments.architectures, arguments.epochs, arguments.lr, arguments.batch_size, arguments.least_crop)
    )
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(val_top1, setting, *unit, arguments.seed) for unit in units]
        for (architecture, epochs, lr, batch_size, least_crop), future in zip(units, futures, strict=True):
            top1, seconds = future.result()
            recipe = f"{epochs} epochs, lr {lr}, batch {batch_size}, crops of at least {least_crop}"
            print(f"{architecture}  {recipe}: val top-1 {top1:.2f}%, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
