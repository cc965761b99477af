"""A first YAML for the images in a folder: a size, a space, a budget and a recipe that fit, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitas.budget import Budget, MacsModel
from vitas.data.survey import Survey
from vitas.errors import UserError
from vitas.space import SearchSpace

# Sizes in pixels, and the patch sizes that suit them; the largest network sees a few hundred patches.
_SIZES = {
    28: (4, 7),
    32: (4, 8),
    48: (6, 8),
    64: (8, 16),
    96: (8, 12, 16),
    128: (8, 16),
    160: (10, 16, 20),
    224: (14, 16, 32),
}
# Without a GPU, larger images take days.
_MOST_ON_CPU = 64
_QUARTERS = (0.25, 0.5, 0.75, 1.0)
# The share of train images that is held out where there are no val images.
HOLDOUT = 0.1


@dataclass(frozen=True)
class Scale:
    """Dims of the widest network, and the recipe that networks of that size are trained by.

    most: train images up to which it is taken. seen: images that the supernet's training sees, all epochs together.
    """

    name: str
    most: float
    dims: Mapping[str, Any]
    lr: float
    seen: float
    epochs: tuple[int, int]
    batch: int
    is_gentle: bool


_TINY = Scale(
    "tiny",
    5_000,
    {"embed_dim": 64, "depth": 8, "heads": (2, 4), "qkv_dim": 96, "mlp_dim": 192, "widths": _QUARTERS},
    3e-3, 120_000, (8, 100), 64, True,
)  # fmt: skip
_SCALES = (
    _TINY,
    Scale(
        "small",
        50_000,
        {"embed_dim": 128, "depth": 10, "heads": (2, 4), "qkv_dim": 288, "mlp_dim": 384, "widths": _QUARTERS},
        2e-3, 5e6, (60, 300), 256, True,
    ),
    Scale(
        "medium",
        300_000,
        {"embed_dim": 192, "depth": 12, "heads": (3, 6), "qkv_dim": 576, "mlp_dim": 768, "widths": _QUARTERS},
        1e-3, 20e6, (60, 300), 512, False,
    ),
    Scale(
        "that of ViTAS",
        float("inf"),
        {
            "embed_dim": 384, "depth": 16, "heads": (3, 6, 12, 16), "qkv_dim": 1440, "mlp_dim": 1440,
            "widths": tuple(i / 10 for i in range(1, 11)),
        },
        1e-3, 190e6, (100, 300), 1024, False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Suggestion:
    """What was chosen, and the YAML with the reasons."""

    image_size: int
    classes: int
    scale: str
    budget: Budget
    epochs: tuple[int, int]
    batch_size: int
    yaml: str


def suggest(found: Survey, save_path: str, file: str, gpus: int) -> Suggestion:
    """A YAML for images.

    file: what it will be named, for its comments. gpus: of the machine that it is for. Raises `UserError` for too few
    images.
    """
    train = found.images["train"]
    held_out = "val" not in found.parts
    # Of each class.
    trained = round(train * (1 - HOLDOUT)) if held_out else train
    if trained < 4:
        raise UserError(f"found {train} train images in {str(found.parts['train'])!r}, too few to train a network")
    size = _image_size(found.side, gpus)
    scale = next(each for each in _SCALES if trained <= each.most) if gpus else _TINY
    space = SearchSpace(patch_sizes=_SIZES[size], **scale.dims)
    model = MacsModel(space, size, len(found.classes), "true")
    # What is left of the widest network when it is half as deep and half as wide, about.
    relative = Budget("10%", "12%", "true")
    budget = model.resolve(relative)
    model.require(budget)
    batch = _batch_size(trained, scale.batch)
    search_epochs = round(min(max(scale.seen / trained, scale.epochs[0]), scale.epochs[1]))
    epochs = (search_epochs, min(2 * search_epochs, 300))
    text = _Writer(found, save_path, file, size, scale, space, relative, budget, batch, epochs, gpus).text()
    return Suggestion(size, len(found.classes), scale.name, budget, epochs, batch, text)


def _image_size(side: int, gpus: int) -> int:
    """The size nearest to that of the images: enlarging them adds nothing, and costs."""
    sizes = [size for size in _SIZES if gpus or size <= _MOST_ON_CPU]
    # 15% larger is as good as that size; smaller loses detail.
    return max([size for size in sizes if size <= 1.15 * side] or sizes[:1])


def _batch_size(images: int, most: int) -> int:
    """A power of two, of which an epoch has some dozens where the images suffice."""
    batch = 2
    while batch * 2 <= min(most, max(images // 16, 2)):
        batch *= 2
    return batch


@dataclass(frozen=True)
class _Writer:
    found: Survey
    save_path: str
    file: str
    size: int
    scale: Scale
    space: SearchSpace
    relative: Budget
    budget: Budget
    batch: int
    epochs: tuple[int, int]
    gpus: int

    def text(self) -> str:
        return "\n".join([*self._head(), *self._model(), *self._stages(), ""])

    def _head(self) -> list[str]:
        found = self.found
        counted = ", ".join(f"{count:,} {part}" for part, count in found.images.items())
        lines = [
            f"# Written by `vitas init` for the images in {_quoted(str(_common(found)))}:",
            f"# {counted} images of {len(found.classes):,} classes, {found.side} pixels along the shorter side.",
        ]
        if found.fewest[0] == 0:
            lines.append(f"# The class {_quoted(found.fewest[1])} has no images: give it some, or remove its folder.")
        elif found.most[0] >= 5 * found.fewest[0]:
            lines.append(
                f"# The classes are uneven, from {found.fewest[0]:,} ({_quoted(found.fewest[1])}) to "
                f"{found.most[0]:,} images ({_quoted(found.most[1])}): top-1 speaks of the large ones."
            )
        return [
            *lines,
            "#",
            f"#   vitas check {self.file}             everything that a stage would refuse; --data opens every image",
            f"#   vitas space {self.file} --measure   what space and budget hold, and how long the search takes here",
            f"#   vitas search {self.file}            then sample, retrain, test",
            "#",
            "# What is not written has its default: docs/configuration.md lists every key.",
            f"save_path: {_quoted(self.save_path)}   # everything is written there",
            "",
        ]

    def _model(self) -> list[str]:
        space, side = self.space, self.found.side
        if self.size < side / 1.5 and not self.gpus:
            why = f"the images have {side}; without a GPU more would take days"
        elif self.size > side:
            why = f"the images have {side}, and patches must divide the size"
        else:
            why = f"the images have {side}"
        tokens = ", ".join(f"{(self.size // patch) ** 2}" for patch in space.patch_sizes)
        widths = ", ".join(f"{ratio:g}" for ratio in space.widths)
        return [
            "model:",
            f"  image_size: {self.size}   # {why}",
            f"  num_classes: {len(self.found.classes)}",
            f"  # What may be searched; the scale is {self.scale.name}, for {self.found.images['train']:,} train images"
            + ("" if self.gpus else " and no GPU") + ".",
            f"  # {_amount(space.size)} different networks.",
            "  space:",
            f"    patch_sizes: {list(space.patch_sizes)}   # {tokens} patches an image: small ones see more, and cost",
            f"    embed_dim: {space.embed_dim}   # of the widest network, and so the next three",
            f"    depth: {space.depth}   # blocks at most; fewer are searched too",
            f"    heads: {list(space.heads)}   # of a block's attention",
            f"    qkv_dim: {space.qkv_dim}   # rows of q, k and v together",
            f"    mlp_dim: {space.mlp_dim}",
            f"    widths: [{widths}]   # shares of these dims that a network may have, block by block",
            "",
        ]  # fmt: skip

    def _stages(self) -> list[str]:
        found, budget = self.found, self.budget
        train = str(found.parts["train"])
        held_out = "val" not in found.parts
        holdout = f", holdout: {HOLDOUT}" if held_out else ""
        few = f"crop_fraction: {1.0 if self.size <= 64 else 0.875}"
        search_data, retrain_data = self._training_data(train, held_out)
        val = str(found.parts.get("val", train))
        recipe = [
            f"  batch_size: {self.batch}   # of all processes together",
            f"  lr: {self.scale.lr}",
            "  warmup_epochs: {warmup}",
            "  clip_grad: 5.0",
            "  checkpoint_epochs: {checkpoints}",
        ]

        def recipe_of(epochs: int) -> list[str]:
            numbers = {"warmup": min(5, epochs // 4), "checkpoints": max(1, epochs // 20)}
            return [line.format(**numbers) if "{" in line else line for line in recipe]

        lines = [
            "search:   # train the supernet, whose weights all networks of the space share",
            "  flag: true",
            *search_data,
            f"  epochs: {self.epochs[0]}",
            *recipe_of(self.epochs[0]),
            "",
            "sample:   # evolve architectures with its scores",
            "  flag: true",
        ]
        if held_out:
            lines.append(f"  # There is no val folder: the same {HOLDOUT:.0%} of each class is held out of training.")
        val_data = f"{{data_dir: {_quoted(val)}, {few}{holdout}}}"
        lines += [
            f"  data: {val_data}",
            f"  # Multiply-adds of an image: shares of the widest network's. Here {budget.low:,} to {budget.high:,}.",
            "  # A narrow range, so that no network wins by being larger. vitas space shows what others hold.",
            f"  budget: {{minimum: {self.relative.minimum}, maximum: {self.relative.maximum}, convention: true}}",
            "  objectives: [loss]   # finer than the error of few images",
        ]
        if self.scale is _TINY:
            lines += ["  initial_population: 30", "  population: 10", "  generations: 27", "  sample_num: 3"]
        lines += [
            "",
            "retrain:   # train the best of them from scratch",
            "  flag: true",
            *retrain_data,
            f"  val: {val_data}   # measured on after each epoch; best_ckpt is the best epoch",
            "  architecture: best   # or subnet_2, vitas_b, a text: vitas describe SAVE_PATH shows what was found",
            f"  epochs: {self.epochs[1]}",
            *recipe_of(self.epochs[1]),
        ]
        if not self.scale.is_gentle:
            lines += ["  mixup: 0.8", "  cutmix: 1.0"]
        test = found.parts.get("test")
        lines += ["", "test:   # measure it"]
        if test is None:
            lines.append(
                "  # There is no test folder: these images chose the architecture, so top-1 is flattered by them."
            )
        where = str(test or val)
        same = holdout if test is None else ""
        lines += ["  flag: true", f"  data: {{data_dir: {_quoted(where)}, {few}{same}}}"]
        return lines

    def _training_data(self, train: str, held_out: bool) -> tuple[list[str], list[str]]:
        """The data sections of search and retrain."""
        start = ["  data:", f"    data_dir: {_quoted(train)}"]
        if held_out:
            start.append(f"    holdout: {HOLDOUT}   # of each class; sample reads these")
        if not self.scale.is_gentle:
            return start, start
        mild = [
            "    # Mild: networks this small do not need more. flip: 0.0 if left and right differ, as in text.",
            "    augmentation:",
            "      {auto_augment: null, color_jitter: 0.0, random_erasing: 0.0, flip: 0.5, scale: [0.6, 1.0]}",
        ]
        return [*start, *mild], [*start, *mild]


def _common(found: Survey) -> Path:
    train = found.parts["train"]
    return train if len(found.parts) == 1 else train.parent


def _quoted(text: str) -> str:
    """A text as YAML has it in double quotes, on one line."""
    return json.dumps(text)


def _amount(count: int) -> str:
    return f"{count:,}" if count < 10**6 else f"{count:.2g}"
