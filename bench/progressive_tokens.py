"""What coarser tokens early in training save, and what they cost in accuracy, on real images.

    python bench/progressive_tokens.py FOLDER [--families vit staged] [--schedules full one ...] [--seeds 3] [--on val]

The peer is the same training with full tokens: same network, recipe, epochs
and seed. The images are MNIST: 3,000 for training, 1,000 for testing, and 1,000
others for choosing recipes and schedules (`--on val`). Each training runs the
stages `retrain` and `test` in a folder of its own, and is not repeated if the
folder holds its result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from images import write_mnist
from rich.console import Console
from rich.table import Table

from inference.test import test
from retrain.retrain import retrain
from retrain.token_schedule import TokenSchedule
from vitas.config import RunConfig, load
from vitas.distributed import World

# The 32 x 32 digits are enlarged: the ViT has 8 x 8 tokens, the stages have 16, 8, 4 and 2 tokens along a side.
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Recipe:
    architecture: str
    epochs: int
    batch_size: int
    lr: float


RECIPES = {
    "vit": Recipe("p8-e48-mean-h3q144m144x3", 60, 50, 2e-3),
    "staged": Recipe("4,2,3,1|2,1,3,1|2,1,3,2|2,1,3,1|16,16", 30, 50, 2e-3),
}
SCHEDULES = {
    "full": [],
    "one": [(0.4, 2)],
    "two": [(0.2, 4), (0.36, 2)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--families", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=["full", "one"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--on", choices=("val", "test"), default="test", help="images that accuracy is measured on")
    arguments = parser.parse_args()
    write_mnist(arguments.folder / "mnist")
    # Seeds are the outer loop, so that other load on the machine spreads over all schedules.
    rows = [
        train_and_test(arguments.folder, family, schedule, seed, arguments.on)
        for seed in range(arguments.seeds)
        for family in arguments.families
        for schedule in arguments.schedules
    ]
    table = Table(title=f"MNIST, {arguments.on} images, {torch.get_num_threads()} threads, torch {torch.__version__}")
    columns = ("network", "tokens", "MACs", "saved", "seconds", "processor s", "top-1", "each seed", "to full", "+-")
    for column in columns:
        table.add_column(column, justify="right")
    for family in arguments.families:
        peer = [row for row in rows if (row["family"], row["schedule"]) == (family, "full")]
        for schedule in arguments.schedules:
            ours = [row for row in rows if (row["family"], row["schedule"]) == (family, schedule)]
            table.add_row(*summary(ours, peer))
    Console(width=180).print(table)


def train_and_test(folder: Path, family: str, schedule: str, seed: int, on: str) -> dict:
    """The results of one training, as plain data."""
    run = folder / f"{family}-{schedule}-{seed}-{on}"
    found = run / "measured.json"
    if found.exists():
        return json.loads(found.read_text())
    # Seconds are those of an uninterrupted training, so a stopped one starts again.
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(folder / "mnist", run, family, schedule, seed, on)))
    config = load(path, stages=("retrain", "test"))
    wall, processor = time.perf_counter(), time.process_time()
    retrain(config, World())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    test(config, World())
    measured = json.loads(config.folder.results.read_text())
    macs, full = training_macs(config)
    row = {
        "family": family,
        "schedule": schedule,
        "seed": seed,
        "training_macs": macs,
        "saved": 1 - macs / full,
        "seconds": wall,
        "processor_seconds": processor,
        "top1": measured["top1"],
        "loss": measured["loss"],
    }
    found.write_text(json.dumps(row, indent=2) + "\n")
    return row


def configuration(images: Path, run: Path, family: str, schedule: str, seed: int, on: str) -> dict:
    """The YAML of one training, as plain data."""
    recipe = RECIPES[family]
    augmentation = {
        "auto_augment": None, "color_jitter": 0.0, "random_erasing": 0.0, "flip": 0.0, "scale": [0.8, 1.0],
    }  # fmt: skip
    return {
        "save_path": str(run),
        "seed": seed,
        "model": {"image_size": IMAGE_SIZE, "num_classes": 10, "mean": [0.13] * 3, "std": [0.31] * 3},
        "retrain": {
            "flag": True,
            "data": {"data_dir": str(images / "train"), "workers": 0, "augmentation": augmentation},
            "architecture": recipe.architecture,
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "lr": recipe.lr,
            "warmup_epochs": 2,
            "clip_grad": 5.0,
            "drop_path_rate": 0.0,
            "log_steps": 240,
            "keep": 1,
            "checkpoint_epochs": 1000,
            "tokens": [{"until": until, "reduce": reduce} for until, reduce in SCHEDULES[schedule]],
        },
        # The digits have the size that they have on average in the crops of training.
        "test": {"flag": True, "data": {"data_dir": str(images / on), "workers": 0, "crop_fraction": 0.95}},
    }


def training_macs(config: RunConfig) -> tuple[int, int]:
    """MACs of all forward passes of a training, and of the same with full tokens."""
    settings, model = config.retrain, config.model
    images = sum(1 for _ in Path(settings.data.data_dir).rglob("*.png"))
    schedule = TokenSchedule.from_phases(settings.tokens, settings.epochs * (images // settings.batch_size))
    network = config.architecture(settings.architecture)
    macs = {r: network.macs(model.image_size, model.num_classes, reduce=r) for r in schedule.reductions}
    return schedule.training_macs(macs, settings.batch_size), schedule.total * settings.batch_size * macs[1]


def summary(rows: list[dict], peer: list[dict]) -> list[str]:
    """A row of the table: the trainings of one schedule, compared with full tokens at the same seeds."""
    top1 = np.array([row["top1"] for row in rows])
    differences = top1 - [row["top1"] for row in peer] if peer else np.array([])
    return [
        rows[0]["family"],
        ", ".join(f"{reduce} until {until}" for until, reduce in SCHEDULES[rows[0]["schedule"]]) or "full",
        f"{rows[0]['training_macs'] / 1e9:,.0f} G",
        f"{rows[0]['saved']:.1%}",
        f"{np.mean([row['seconds'] for row in rows]):.1f}",
        f"{np.mean([row['processor_seconds'] for row in rows]):.1f}",
        f"{top1.mean():.2f}",
        ", ".join(f"{value:.1f}" for value in top1),
        f"{differences.mean():+.2f}" if peer else "",
        # The standard error of the mean of the paired differences.
        f"{differences.std(ddof=1) / len(differences) ** 0.5:.2f}" if len(differences) > 1 else "",
    ]


if __name__ == "__main__":
    main()
