"""Folders of runs as stages leave them, written by hand in no time, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from vitas.architecture import Architecture
from vitas.asvit.genotype import Genotype
from vitas.catalog import Found, write_found
from vitas.predictions import Predictions
from vitas.run import RunFolder
from vitas.space import SearchSpace

SPACE = SearchSpace((4, 8), 32, 3, (2, 4), 96, 64, (0.5, 1.0))
SIZE = (32, 10)
# Class and file names as an attacker would choose them.
MARKUP = '<img src=x onerror="alert(1)">'
END = "</script><script>document.title='broken'</script><!--"


def log(folder: RunFolder, stage: str, *lines: str) -> None:
    path = folder.log(stage, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = [f"2026-01-02 03:{minute:02}:00 {stage}: {line}" for minute, line in enumerate(lines)]
    path.write_text("".join(line + "\n" for line in told))


def start(folder: RunFolder, program: str, **settings: object) -> None:
    place = folder.start(program, None)
    place.mkdir(parents=True, exist_ok=True)
    config = {"model": {"image_size": SIZE[0], "num_classes": SIZE[1]}, **settings}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "started": "2026-01-02 03:00:00+0000",
        "command": ["python", "-m", program, "config.yaml"],
        "git": {"commit": "0123456789abcdef0123", "changed": True},
        "device": "a GPU",
        "processes": 8,
        "host": "somewhere",
        "packages": {"torch": "2.11"},
    }
    (place / "environment.json").write_text(json.dumps(environment))


def metrics(folder: RunFolder, stage: str, curves: Mapping[str, list[float]]) -> None:
    path = folder.metrics(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{10 * i},{i / 2},1767322800.5,{name},{v}" for name, curve in curves.items() for i, v in enumerate(curve)]
    path.write_text("step,epoch,seconds,name,value\n" + "".join(row + "\n" for row in rows))


def journal(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def searched(root: Path, count: int = 60, seed: int = 0) -> RunFolder:
    """A run after `search` and `sample`."""
    folder, rng = RunFolder(root), np.random.default_rng(seed)
    budget = {"minimum": 400_000, "maximum": 1_200_000, "convention": "true"}
    start(
        folder,
        "search",
        search={"flag": True, "method": "supernet"},
        sample={"flag": True, "budget": budget, "population": 8},
        retrain={"flag": True},
        test={"flag": True},
    )
    log(folder, "search", "begins", "epoch 1.00/2", "resumes at step 8 of 16", "the supernet is in checkpoint/x")
    log(folder, "sample", "scores", "best: p4 with top-1 70.00%")
    metrics(folder, "search", {"train/loss": [2.0, 1.5, 1.2], "train/lr": [1e-3, 5e-4, 0.0]})
    rows: list[dict] = [{"images": 500}]
    networks = [SPACE.sample(rng).shifted() for _ in range(count)]
    for i, network in enumerate(networks):
        top1 = round(float(np.clip(40 + 20 * i / count + 8 * rng.standard_normal(), 0, 100)), 2)
        scores = {"top1": top1, "loss": 3 - top1 / 50, "generation": 5 * i // count}
        rows.append({"architecture": str(network), **scores, **network.costs(*SIZE)})
    journal(folder.population, rows)
    best = sorted(rows[1:], key=lambda row: -row["top1"])[:3]
    found = [
        Found(f"subnet_{i}", Architecture.parse(row["architecture"]).compact(), {}) for i, row in enumerate(best, 1)
    ]
    write_found(folder.architectures, found)
    panel = [
        {"epoch": epoch, "architecture": str(network), "top1": 40.0 + epoch + i, "loss": 1.0}
        for epoch in (1, 2, 3)
        for i, network in enumerate(networks[:4])
    ]
    journal(folder.panel, [{"subnets": []}, *panel])
    seen = {
        "in_budget": 0.5,
        "patch_size_4": 0.5,
        "costs": {"edges": [1e5, 5e5, 1e6], "share": [0.25, 0.75]},
        "depths": {"1": 0.4, "2": 0.6},
    }
    folder.seen.write_text(yaml.safe_dump(seen))
    return folder


def finished(
    root: Path, seed: int = 0, classes: tuple[str, ...] = tuple("abcdefghij"), right: float = 0.8
) -> RunFolder:
    """A run after all four stages."""
    folder, rng = searched(root, seed=seed), np.random.default_rng(seed)
    for program in ("retrain", "inference"):
        start(folder, program, retrain={"flag": True, "lr": seed}, test={"flag": True})
    log(folder, "retrain", "begins", "the network is in checkpoint/x")
    log(folder, "test", "measures", "results are in results.json")
    curves = {
        "train/loss": [2.0, 1.5],
        "train/lr": [1e-3, 0.0],
        "val/top1": [50.0, 60.0 + seed],
        "val/raw_top1": [49.0, 58.0],
    }
    metrics(folder, "retrain", curves)
    count = 200
    labels = rng.integers(0, len(classes), count)
    said = np.where(rng.random(count) < right, labels, rng.integers(0, len(classes), count))
    top = np.stack([said, (said + 1) % len(classes), (said + 2) % len(classes)], 1)
    losses = rng.random(count) + 3 * (said != labels)
    about = {"checkpoint": "epoch_2_ckpt.pth.tar", "weights": "model", "architecture": "p8-e32-token-h2q96m64x2"}
    worst = np.argsort(-losses, kind="stable")[:4]
    predictions = Predictions(
        about=about,
        classes=classes,
        files=tuple(f"{classes[label]}/{i}{MARKUP}.png" for i, label in enumerate(labels)),
        labels=labels,
        top=top,
        probabilities=np.tile([0.7, 0.2, 0.1], (count, 1)),
        losses=losses,
        ranks=(said != labels).astype(int),
        worst=worst,
        pixels=rng.integers(0, 255, (4, 32, 32, 3)),
        attention=rng.random((4, 4, 4)),
    )
    predictions.write(folder.predictions)
    row = {
        **about,
        "top1": 100 * float(predictions.right().mean()),
        "top5": 99.0,
        "loss": 0.5,
        "macs": 1_000_000,
        "macs_released": 1_000_000,
        "parameters": 20_000,
        "images_per_second": 1000.0,
        "images": count,
    }
    folder.results.write_text(json.dumps(row | {"checkpoints": [row]}))
    return folder


def without_training(root: Path) -> RunFolder:
    """A run of As-ViT's search."""
    folder = RunFolder(root)
    start(folder, "search", search={"flag": True, "method": "asvit"})
    log(folder, "search", "As-ViT", "grew 2 networks, grown_0 to grown_1")
    topology = "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,"
    scores = [
        {
            "architecture": f"{topology}{32 + i}",
            "initialisation": n,
            "length_distortion": 1.0 + i,
            "ntk_condition": 90.0 - i,
        }
        for i in range(30)
        for n in range(2)
    ]
    scores[4] |= {"length_distortion": None, "ntk_condition": None}
    journal(folder.topologies, [{"seed": 0}, *scores])
    grown = [Found(f"grown_{i}", Genotype.parse(f"{topology}{8 + 8 * i}"), {}) for i in (1, 0)]
    write_found(folder.architectures, grown)
    metrics(folder, "search", {"asvit/entropy": [15.0, 14.0, 12.0]})
    return folder
