"""Are the curves flat? Trains some architectures of the table for longer, or at another rate, measured on val images.

    OMP_NUM_THREADS=1 python bench/quality/recipe.py FOLDER [--architectures TEXT ...] [--epochs N ...] [--lr LR ...]

A training that is longer must gain nothing, or the table (`table.py`) ranks how fast networks learn. Prints a line a
training; the test images are not touched.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

from setting import run_config, write_images

from inference.test import test
from retrain.retrain import retrain
from vitas.distributed import World

ARCHITECTURES = ("p7-e64-token-h4q48m192-h4q192m256", "p4-e48-token-h4q192m128")


def val_top1(folder: Path, architecture: str, epochs: int, lr: float, seed: int) -> tuple[float, float]:
    """Top-1 on the val images in percent, and the seconds of the training (0 where it was done before)."""
    run = folder / "recipe" / f"{architecture}-epochs{epochs}-lr{lr}-seed{seed}"
    data = {"data_dir": str(folder / "fashion" / "val"), "workers": 0, "crop_fraction": 1.0}
    config = run_config(
        folder, run, seed, retrain={"architecture": architecture, "epochs": epochs, "lr": lr}, test={"data": data}
    )
    began = time.monotonic()
    retrain(config, World())
    seconds = time.monotonic() - began
    test(config, World())
    return json.loads(config.folder.results.read_text())["top1"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images and trainings go")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="TEXT")
    parser.add_argument("--epochs", type=int, nargs="+", default=[24, 60])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    write_images(arguments.folder)
    units = list(product(arguments.architectures, arguments.epochs, arguments.lr))
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(val_top1, arguments.folder, *unit, arguments.seed) for unit in units]
        for (architecture, epochs, lr), future in zip(units, futures, strict=True):
            top1, seconds = future.result()
            print(f"{architecture}  {epochs} epochs  lr {lr}: val top-1 {top1:.2f}%, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
