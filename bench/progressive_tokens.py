"""What coarser tokens early in training save, and what accuracy is left, on real images.

    python bench/progressive_tokens.py FOLDER [--seeds 3] [--families vit staged] [--schedules full long one]

The peer is the same training with full tokens: same network, recipe, epochs
and seed. MNIST, 3,000 images to train on and 1,000 to test. Each training goes
through the stages `retrain` and `test`, and keeps its folder: what is there is
not trained again. FOLDER/results.json holds every number.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from images import IMAGE_SIZE, write_mnist
from rich.console import Console
from rich.table import Table

from inference.testing import test
from retrain.tokens import TokenSchedule
from retrain.training import retrain
from vitas.config import RunConfig, load
from vitas.distributed import World

# Architecture, epochs, batch size and learning rate: 64 tokens of 32 x 32 images, and as many epochs as learning needs.
FAMILIES = {
    "vit": ("p4-e32-mean-h2q96m96x2", 30, 25, 3e-3),
    "staged": ("4,1,3,3|2,1,2,1|2,1,2,1|2,1,2,1|8,24", 24, 50, 2e-3),
}
SCHEDULES = {
    "full": [],
    "short": [(0.15, 4), (0.25, 2)],
    "long": [(0.2, 4), (0.45, 2)],
    "one": [(0.45, 2)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=["full", "long", "one"])
    arguments = parser.parse_args()
    write_mnist(arguments.folder / "mnist")
    rows = []
    # Seeds outside: what else the machine does then is spread over all schedules.
    for seed in range(arguments.seeds):
        for family in arguments.families:
            for schedule in arguments.schedules:
                rows.append(train_and_test(arguments.folder, family, schedule, seed))
                (arguments.folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = Table(title=f"MNIST, {torch.get_num_threads()} threads, torch {torch.__version__}")
    columns = ("network", "tokens", "training MACs", "saved", "seconds", "processor s", "top-1", "each seed", "std")
    for column in columns:
        table.add_column(column, justify="right")
    for family in arguments.families:
        for schedule in arguments.schedules:
            table.add_row(*summary([r for r in rows if (r["family"], r["schedule"]) == (family, schedule)]))
    Console(width=160).print(table)


def train_and_test(folder: Path, family: str, schedule: str, seed: int) -> dict:
    """One training's numbers, as plain data."""
    run = folder / f"{family}-{schedule}-{seed}"
    found = run / "measured.json"
    if found.exists():
        return json.loads(found.read_text())
    # Seconds are of a training in one go, so one that was stopped starts anew.
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(folder / "mnist", run, family, schedule, seed)))
    config = load(path, stages=("retrain", "test"))
    wall, processor = time.perf_counter(), time.process_time()
    retrain(config, World())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    test(config, World())
    measured = json.loads(config.folder.results.read_text())
    ours, full = training_macs(config)
    row = {
        "family": family,
        "schedule": schedule,
        "seed": seed,
        "training_macs": ours,
        "saved": 1 - ours / full,
        "seconds": wall,
        "processor_seconds": processor,
        "top1": measured["top1"],
        "loss": measured["loss"],
    }
    found.write_text(json.dumps(row, indent=2) + "\n")
    return row


def configuration(images: Path, run: Path, family: str, schedule: str, seed: int) -> dict:
    """The YAML of one training, as plain data."""
    architecture, epochs, batch_size, lr = FAMILIES[family]
    # Digits as large as the crops of training make them on average.
    evaluation = {"data_dir": str(images / "test"), "workers": 0, "crop_fraction": 0.95}
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
            "architecture": architecture,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "warmup_epochs": 2,
            "clip_grad": 5.0,
            "drop_path_rate": 0.0,
            "log_steps": 240,
            "keep": 1,
            "checkpoint_epochs": 1000,
            "tokens": [{"until": until, "reduce": reduce} for until, reduce in SCHEDULES[schedule]],
        },
        "test": {"flag": True, "data": evaluation},
    }


def training_macs(config: RunConfig) -> tuple[int, int]:
    """MACs of all forward passes of a training, and of the same with full tokens."""
    settings, model = config.retrain, config.model
    images = sum(1 for _ in Path(settings.data.data_dir).rglob("*.png"))
    schedule = TokenSchedule.of(settings.tokens, settings.epochs * (images // settings.batch_size))
    network = config.architecture(settings.architecture)
    macs = {r: network.macs(model.image_size, model.num_classes, reduce=r) for r in schedule.reductions}
    return schedule.training_macs(macs, settings.batch_size), schedule.total * settings.batch_size * macs[1]


def summary(rows: list[dict]) -> list[str]:
    """A line of the table: one schedule's trainings, of all seeds."""
    top1 = [row["top1"] for row in rows]
    return [
        rows[0]["family"],
        ", ".join(f"{reduce} until {until}" for until, reduce in SCHEDULES[rows[0]["schedule"]]) or "full",
        f"{rows[0]['training_macs'] / 1e9:,.0f} G",
        f"{rows[0]['saved']:.1%}",
        f"{np.mean([row['seconds'] for row in rows]):.1f}",
        f"{np.mean([row['processor_seconds'] for row in rows]):.1f}",
        f"{np.mean(top1):.2f}",
        ", ".join(f"{value:.1f}" for value in top1),
        f"{np.std(top1, ddof=1):.2f}" if len(top1) > 1 else "",
    ]


if __name__ == "__main__":
    main()
