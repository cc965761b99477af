"""The setting that the experiments of this folder share: a network that is good already, and little data to adapt it.

Fashion-MNIST at 28 x 28. The network is trained on 50,000 images; what is made
of it sees 5,000 of these, which is what makes its training worth something.
Choices are made by 10,000 val images, and compared by the official 10,000 test
images. Three budgets: a quarter, a sixth and an eighth of the network's MACs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from inference.test import test
from retrain.retrain import retrain
from vitas import Architecture
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.example_images import write_fashion
from vitas.distributed import World
from vitas.journal import Journal

NETWORK = Architecture.parse("vit7-e96-token-h6q288m384x6")
MACS = NETWORK.macs(28, 10)
BUDGETS = {"quarter": MACS // 4, "sixth": MACS // 6, "eighth": MACS // 8}
# What is found is at most this much below its budget, so that all spend about the same.
SLACK = 0.03
TRAIN_IMAGES = 5_000
# Training of one network for one budget, in epochs; what every method may spend on each of the three budgets.
EPOCHS = 48
MODEL = {"image_size": 28, "num_classes": 10}
# The images are aligned and small: flips alone, as in bench/quality.
AUGMENTATION = {
    "auto_augment": None,
    "color_jitter": 0.0,
    "random_erasing": 0.0,
    "flip": 0.5,
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
}
RECIPE = {
    "flag": True,
    "epochs": EPOCHS,
    "batch_size": 50,
    "lr": 1e-3,
    "warmup_epochs": 2,
    "label_smoothing": 0.1,
    "clip_grad": 5.0,
    # The same arithmetic on a CPU and on a GPU.
    "amp": False,
    "keep": 1,
    "checkpoint_epochs": 8,
    "log_steps": 500,
}
WORLD = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
# The teacher's probabilities alone, no labels (docs/experiments.md).
TEACHER = {"teacher": "pretrained", "weight": 1.0}


@dataclass(frozen=True)
class Setting:
    """folder: where images and trainings go. seed: of the trainings, and of the choice of the train images."""

    folder: Path
    seed: int

    def data(self, part: str) -> dict:
        """The `data` section of a part of the images, to measure on."""
        return {"data_dir": str(self.folder / "all" / part), "workers": 0, "crop_fraction": 1.0}

    @property
    def train_data(self) -> dict:
        return {"data_dir": str(self.folder / f"train-{self.seed}"), "workers": 0, "augmentation": AUGMENTATION}

    def write_images(self) -> None:
        """Write all images, and the links to those that this seed's trainings see, once."""
        write_fashion(self.folder / "all", train=50_000, val=10_000)
        self._link("train", TRAIN_IMAGES, Path(self.train_data["data_dir"]))

    def few(self, part: str, count: int) -> dict:
        """The `data` section of so many images of a part, as many of each class, to measure on."""
        folder = self.folder / f"{part}-{count}-{self.seed}"
        self._link(part, count, folder)
        return self.data(part) | {"data_dir": str(folder)}

    def _link(self, part: str, count: int, few: Path) -> None:
        """Make a folder of links to random images of a part, as many of each class."""
        if few.exists():
            return
        unfinished = few.with_name(f".{few.name}.{os.getpid()}")
        rng = np.random.default_rng(self.seed)
        classes = sorted((self.folder / "all" / part).iterdir())
        for folder in classes:
            (unfinished / folder.name).mkdir(parents=True)
            names = sorted(path.name for path in folder.iterdir())
            for name in rng.choice(names, count // len(classes), replace=False):
                (unfinished / folder.name / name).symlink_to(folder.resolve() / name)
        # Another process may have been first.
        with suppress(OSError):
            unfinished.rename(few)

    def run_config(self, run: str, model: dict | None = None, **sections: dict) -> RunConfig:
        """The configuration of a run at `folder/run`: `sections` over the common ones."""
        common: dict = {
            "search": {"data": self.train_data} | RECIPE,
            "sample": {"flag": True, "batch_size": 500, "data": self.data("val")},
            "retrain": {"data": self.train_data} | RECIPE,
            "test": {"flag": True, "data": self.data("test")},
        }
        own = {name: common[name] | given for name, given in sections.items()}
        path = str(self.folder / run)
        return RunConfig.model_validate({"save_path": path, "seed": self.seed, "model": MODEL | (model or {}), **own})

    @property
    def pretrained(self) -> Path:
        """The checkpoint of the network, trained on all 50,000 images if it is not there."""
        config = Setting(self.folder, 0).run_config(
            "pretrained",
            retrain={
                "data": self.train_data | {"data_dir": str(self.folder / "all" / "train")},
                "architecture": str(NETWORK),
                "epochs": 20,
                "batch_size": 100,
                "lr": 2e-3,
                "warmup_epochs": 1,
                "checkpoint_epochs": 1,
            },
            test={},
        )
        checkpoints = CheckpointFolder(config.folder.checkpoints("retrain"))
        if not config.folder.results.exists():
            retrain(config, WORLD)
            test(config, WORLD)
        return checkpoints.resolve()

    def budget(self, name: str) -> dict:
        """The section `sample.budget` of a budget."""
        return {"minimum": int(BUDGETS[name] * (1 - SLACK)), "maximum": BUDGETS[name], "convention": "true"}

    def measure(self, config: RunConfig) -> dict[str, float]:
        """Top-1 on the test and on the val images, in percent, of what `config.test` chooses, and its MACs."""
        found = {}
        for part in ("test", "val"):
            own = config.model_copy(
                update={"test": config.test.model_validate(config.test.model_dump() | {"data": self.data(part)})}
            )
            test(own, WORLD)
            results = json.loads(config.folder.results.read_text())
            found[f"{part}_top1"] = results["top1"]
        return found | {"architecture": results["architecture"], "macs": results["macs"]}


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Within it, the time that passes goes to `seconds`."""
    began, found = time.monotonic(), {"seconds": 0.0}
    yield found
    found["seconds"] = round(time.monotonic() - began, 1)


def results(name: str) -> Journal:
    """`results/NAME.jsonl`, which is committed."""
    return Journal(Path(__file__).parent / "results" / f"{name}.jsonl")


def argument_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all experiments have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images and trainings go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side, of one thread each")
    return parser
