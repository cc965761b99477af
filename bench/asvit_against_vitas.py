"""As-ViT's pick beside ViTAS's pick: equal MACs, the same images and recipe, several seeds.

    python bench/asvit_against_vitas.py FOLDER [--macs 2_400_000] [--seeds 3]

As-ViT searches and grows first. ViTAS then searches among architectures with as
many MACs as As-ViT's pick, or up to 3% fewer. Both picks are retrained from
scratch with each seed and measured on the test images. The images are MNIST at
32 x 32 (see `bench/images.py`). The project's own stages do everything, in
FOLDER, so a killed run resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import yaml
from images import write_mnist
from rich.console import Console
from rich.table import Table

from inference.test import test
from retrain.retrain import retrain
from search.sample import sample
from search.search import search
from vitas import config as configuration
from vitas.catalog import read_found
from vitas.config import RunConfig
from vitas.distributed import World

RECIPE = {
    "epochs": 12,
    "batch_size": 32,
    "lr": 1e-3,
    "warmup_epochs": 2,
    "clip_grad": 5.0,
    "checkpoint_epochs": 10,
    "log_steps": 500,
}
AUGMENTATION = {"auto_augment": None, "color_jitter": 0.0, "random_erasing": 0.0, "flip": 0.0, "scale": [0.7, 1.0]}
SPACE = {
    "patch_sizes": [4, 8, 16],
    "embed_dim": 64,
    "depth": 6,
    "heads": [2, 4],
    "qkv_dim": 192,
    "mlp_dim": 128,
    "widths": [0.5, 0.75, 1.0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--macs", type=int, default=2_400_000)
    parser.add_argument("--steps", type=int, default=200, help="topologies that As-ViT scores")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.folder
    write_mnist(folder / "mnist")

    asvit = load(folder, "asvit", {"search": as_vit(folder, arguments)})
    search(asvit, World())
    picks = {"As-ViT": best(asvit)}
    macs = picks["As-ViT"].macs(32, 10)
    vitas = load(folder, "vitas", vitas_stages(folder, macs))
    search(vitas, World())
    sample(vitas, World())
    picks["ViTAS"] = best(vitas)

    table = Table(title=f"{arguments.seeds} seeds, {RECIPE['epochs']} epochs, MNIST 32 x 32")
    for column in ("", "pick", "MACs", "parameters", "top-1", "mean", "deviation"):
        table.add_column(column, overflow="fold")
    for name, pick in picks.items():
        accuracies = [measure(folder, name, str(pick), seed) for seed in range(arguments.seeds)]
        table.add_row(
            name,
            str(pick),
            f"{pick.macs(32, 10):,}",
            f"{pick.parameters(32, 10):,}",
            " ".join(f"{top1:.1f}" for top1 in accuracies),
            f"{mean(accuracies):.2f}",
            f"{stdev(accuracies):.2f}" if len(accuracies) > 1 else "",
        )
    Console(width=160).print(table)


def as_vit(folder: Path, arguments: argparse.Namespace) -> dict:
    return {
        "flag": True,
        "method": "asvit",
        "data": images(folder, "train"),
        "steps": arguments.steps,
        "repeat": 3,
        "growth": {"macs": arguments.macs, "hidden_dim": 8, "score_width": 1.0},
    }


def vitas_stages(folder: Path, macs: int) -> dict:
    training = {"flag": True, "data": images(folder, "train", workers=1) | {"augmentation": AUGMENTATION}}
    return {
        "model": {"image_size": 32, "num_classes": 10, "space": SPACE},
        "search": without(training, "crop_fraction") | RECIPE | {"epochs": 15, "lr": 2e-3},
        "sample": {
            "flag": True,
            "data": images(folder, "val"),
            "budget": {"minimum": round(0.97 * macs), "maximum": macs, "convention": "true"},
            "initial_population": 50,
            "population": 25,
            "generations": 8,
        },
    }


def measure(folder: Path, name: str, architecture: str, seed: int) -> float:
    """Top-1 on the test images after training with a seed."""
    training = {"flag": True, "data": without(images(folder, "train", workers=1), "crop_fraction")}
    training["data"]["augmentation"] = AUGMENTATION
    config = load(
        folder,
        f"{name}_{seed}",
        {
            "seed": seed,
            "retrain": training | RECIPE | {"architecture": architecture, "drop_path_rate": 0.0},
            "test": {"flag": True, "data": images(folder, "test")},
        },
    )
    retrain(config, World())
    test(config, World())
    return json.loads(config.folder.results.read_text())["top1"]


def load(folder: Path, name: str, sections: dict) -> RunConfig:
    path = folder / f"{name}.yaml"
    data = {"save_path": str(folder / name), "model": {"image_size": 32, "num_classes": 10}} | sections
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return configuration.load(path)


def images(folder: Path, part: str, workers: int = 0) -> dict:
    return {"data_dir": str(folder / "mnist" / part), "workers": workers, "crop_fraction": 1.0}


def without(data: dict, key: str) -> dict:
    """A section and its sub-sections, without a key."""
    return {k: without(v, key) if isinstance(v, dict) else v for k, v in data.items() if k != key}


def best(config: RunConfig):
    return next(iter(read_found(config.folder.architectures).values()))


if __name__ == "__main__":
    main()
