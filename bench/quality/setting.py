"""The setting that the experiments of this folder share: images, space, budget and recipe.

Fashion-MNIST at 28 x 28: 10,000 train and 10,000 val images cut from the official
train set, and the official 10,000 test images. The space has 9.1e12 members;
the budget is narrow, so that counting multiply-adds ranks nothing.
"""

from __future__ import annotations

from pathlib import Path

from vitas.config import RunConfig
from vitas.data.example_images import write_fashion

TRAIN_IMAGES, VAL_IMAGES = 10_000, 10_000
SPACE = {
    "patch_sizes": [4, 7],
    "embed_dim": 64,
    "depth": 8,
    "heads": [2, 4],
    "qkv_dim": 192,
    "mlp_dim": 384,
    "widths": [0.25, 0.5, 0.75, 1.0],
}
# 2.7M multiply-adds, 11% to either side.
BUDGET = {"minimum": 2_400_000, "maximum": 3_000_000, "convention": "true"}
# Clothes look alike mirrored. The images are aligned: with crops, networks this small are far from trained after 80
# epochs; without, after 20 they gain nothing more (docs/experiments.md).
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


def write_images(folder: Path) -> None:
    """Write the images to `folder/fashion`, once."""
    write_fashion(folder / "fashion", TRAIN_IMAGES, VAL_IMAGES)


def run_config(folder: Path, save_path: Path, seed: int, **sections: dict) -> RunConfig:
    """A run on the images of `folder`: `sections` (retrain, test, search ...) over the common settings."""
    images = folder / "fashion"
    evaluation = {"workers": 0, "crop_fraction": 1.0}
    data: dict = {
        "retrain": {"data": {"data_dir": str(images / "train"), "workers": 0, "augmentation": AUGMENTATION}} | RECIPE,
        "search": {"data": {"data_dir": str(images / "train"), "workers": 0, "augmentation": AUGMENTATION}} | RECIPE,
        "sample": {
            "flag": True,
            "batch_size": 500,
            "data": {"data_dir": str(images / "val")} | evaluation,
            "budget": BUDGET,
        },
        "test": {"flag": True, "data": {"data_dir": str(images / "test")} | evaluation},
    }
    own = {name: data[name] | given for name, given in sections.items()}
    model = {"image_size": 28, "num_classes": 10, "space": SPACE}
    return RunConfig.model_validate({"save_path": str(save_path), "seed": seed, "model": model, **own})
