"""What the sections of both training stages share: the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from vitas.config_section import (
    AboveZero,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Section,
    Share,
)
from vitas.data.folders import TrainingData

# Keys of a recipe that a training may be resumed with other values of; `data` is the images.
ALLOWED_CHANGES = (
    "lr", "min_lr", "weight_decay", "warmup_epochs", "clip_grad", "label_smoothing", "mixup", "cutmix", "data",
)  # fmt: skip

if TYPE_CHECKING:
    # A type checker does not know what registries hold.
    AllowedChange: TypeAlias = str
else:
    AllowedChange = Literal[tuple(ALLOWED_CHANGES)]


class Distillation(Section):
    """Learning from a teacher's logits beside the labels.

    teacher: a checkpoint of `retrain`, or the name of one of timm's models; `pretrained` is that of
        `model.from_pretrained`. In `search` also `largest`: where a step trains several subnets, the others learn from
        the first, which learns from the labels alone.
    weight: of the teacher's targets; the labels have the rest.
    temperature: of the softmax of both logits.
    hard: the teacher's top-1 class instead of its probabilities, as in DeiT.
    """

    teacher: str
    weight: Share = 0.5
    temperature: AboveZero = 1.0
    hard: bool = False


class NotFinite(Section):
    """What happens to steps whose gradients are not finite, which are left out (see `vitas/step_watch.py`).

    in_a_row: after so many, the training goes back to its newest checkpoint.
    returns: how often it may go back before it gives up.
    """

    in_a_row: Positive = 10
    returns: Count = 3


class Training(Section):
    """The recipe of a training stage; the defaults are those of the published results.

    batch_size: of all processes together.
    lr: the peak, 1e-3 at a batch of 1024; it is not scaled with the batch.
    weight_decay: on matrices only.
    warmup_epochs: linear warm-up from zero; then cosine down to min_lr, per step.
    repeats: how often an image comes in an epoch, each time augmented anew (repeated augmentation); an epoch keeps
        its number of steps.
    mixup, cutmix: their alphas; 0 is off. With both, each batch takes one of them.
    clip_grad: the largest gradient norm; 0 is off.
    ema_decay: of the average of the weights; 0 is off.
    distillation: null is off.
    amp: bfloat16 on a GPU.
    accumulate: parts of a step's images that pass one after the other.
    activation_checkpointing: keep only the inputs of blocks for the backward pass, which computes the rest again.
    not_finite: what happens when gradients are not finite.
    allow_changes: keys of the recipe, or `data`, that may differ from those of the checkpoint that is resumed.
    keep: how many epoch checkpoints to keep; 0 keeps all.
    checkpoint_steps: steps between checkpoints within an epoch; 0 is only after epochs.
    checkpoint_epochs: epochs between checkpoints; the last epoch has one too.
    log_steps: steps between log lines.
    """

    flag: bool = False
    data: TrainingData
    epochs: Positive = 300
    batch_size: Positive = 1024
    lr: AboveZero = 1e-3
    min_lr: NonNegative = 0.0
    weight_decay: NonNegative = 0.05
    warmup_epochs: Count = 5
    label_smoothing: Fraction = 0.1
    repeats: Positive = 1
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    clip_grad: NonNegative = 0.0
    ema_decay: Fraction = 0.0
    distillation: Distillation | None = None
    amp: bool = True
    accumulate: Positive = 1
    activation_checkpointing: bool = False
    not_finite: NotFinite = NotFinite()
    allow_changes: list[AllowedChange] = []
    keep: Count = 3
    checkpoint_steps: Count = 0
    checkpoint_epochs: Positive = 1
    log_steps: Positive = 50

    def tied_to_epochs(self, steps: int, per_epoch: int) -> str | None:
        """Why the first `steps` steps, `per_epoch` an epoch, would be others with other `epochs`; None if they would
        not: in the warm-up, and with a rate that is constant after it."""
        if self.lr != self.min_lr and steps > self.warmup_epochs * per_epoch:
            return "its learning rate falls over all epochs"
        return None
