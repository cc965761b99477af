"""The training loop: the published recipe, and exact resume.

The seed of every random draw depends on the step (see
`vitas.distributed.stream_seed`), so a checkpoint needs no generator's state: a
run that was killed at any point and resumed equals an undisturbed one, bit for
bit on CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vitas import checkpoint, watchdog
from vitas.checkpoint import CheckpointFolder
from vitas.config import Training
from vitas.config_section import Section, defaults_of, fields_of, leaves, sections_in
from vitas.data.training import TrainingLoader
from vitas.distributed import World, barrier, stop_requested, sum_
from vitas.errors import UserError
from vitas.report import Report, duration
from vitas.seeds import stream_seed
from vitas.slurm.signals import Interrupted

# Keys that do not influence the result; a run may be resumed with other values of them.
_FREE_KEYS = {
    "flag", "keep", "checkpoint_steps", "checkpoint_epochs", "log_steps", "data.data_dir", "data.workers",
    "panel", "panel.size", "panel.epochs", "panel.stop_at",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a stage trains, and how.

    model: its weights are trained and saved.
    losses: (images, targets, step) -> the losses of a step, one a backward pass; their gradients add up. Targets are
        labels [b], or probabilities [b, classes] where the recipe mixes images.
    num_classes: of the logits.
    after_backward: (step) -> None, called after the backward passes, to average gradients over the ranks; not needed
        with DistributedDataParallel.
    about: plain data to save beside the weights, e.g. the architecture.
    states: what else a checkpoint holds, by name; objects with `state_dict` and `load_state_dict`.
    scalars: (steps) -> further numbers about steps, to report beside their loss.
    after_epoch: (epochs done, network) -> why the training should end there, or None. The network has the averaged
        weights, if there are any. Every rank calls it after every epoch, and again when a run resumes there.
    """

    model: nn.Module
    losses: Callable[[Tensor, Tensor, int], Iterable[Tensor]]
    num_classes: int
    after_backward: Callable[[int], None] = lambda step: None
    about: Mapping = field(default_factory=dict)
    states: Mapping = field(default_factory=dict)
    scalars: Callable[[range], Mapping[str, float]] = lambda steps: {}
    after_epoch: Callable[[int, nn.Module], str | None] = lambda epoch, network: None


def train(
    task: Task,
    settings: Training,
    loader: TrainingLoader,
    checkpoints: CheckpointFolder,
    report: Report,
    world: World,
    seed: int,
) -> int:
    """Train to the last epoch, from the newest checkpoint if there is one. Returns the number of steps in all.

    Raises `UserError` for a checkpoint of another recipe or architecture, and
    for a loss that is not finite. Raises `Interrupted`, after a checkpoint of
    the last step, if the run was asked to stop.
    """
    per_epoch = loader.steps_per_epoch
    total = settings.epochs * per_epoch
    optimizer = _optimizer(task.model, settings)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total,
        lr_min=settings.min_lr,
        warmup_t=settings.warmup_epochs * per_epoch,
        warmup_lr_init=0,
        t_in_epochs=False,
    )
    ema = ModelEmaV3(task.model, decay=settings.ema_decay) if settings.ema_decay else None
    mixup = _mixup(settings, task.num_classes)
    if mixup and settings.batch_size // world.size % 2:
        raise UserError(
            f"{report.stage}.batch_size: found {settings.batch_size}, which gives {world.size} processes "
            f"{settings.batch_size // world.size} images each; mixup and cutmix pair images, so that must be even"
        )
    state = _State(task, settings, per_epoch, seed, optimizer, ema)
    start = state.resume(checkpoints, world)
    if start == total:
        report.line(f"all {settings.epochs} epochs are done")
        return total
    network = ema.module if ema else task.model
    if start and start % per_epoch == 0 and (reason := task.after_epoch(start // per_epoch, network)):
        report.line(f"{start // per_epoch} of {settings.epochs} epochs are done: {reason}")
        return start
    if start:
        report.line(f"resumes at step {start:,} of {total:,} (epoch {start / per_epoch:.2f})")
    task.model.train()
    meter = _Meter(task, settings, per_epoch, start, report, world)
    with report.progress(total, start, "steps") as update, watchdog.watching(report.stage):
        for step, (images, labels) in enumerate(loader.batches(start, total), start):
            images = images.to(world.device, non_blocking=True)
            labels = labels.to(world.device, non_blocking=True)
            torch.manual_seed(stream_seed(seed, "network", step, world.rank))
            if mixup:
                np.random.seed(stream_seed(seed, "mixup", step) % 2**32)
                images, labels = mixup(images, labels)
            scheduler.step_update(step)
            optimizer.zero_grad()
            for loss in task.losses(images, labels, step):
                loss.backward()
                meter.add(loss)
            meter.end_step()
            task.after_backward(step)
            if settings.clip_grad:
                nn.utils.clip_grad_norm_(task.model.parameters(), settings.clip_grad)
            optimizer.step()
            if ema:
                ema.update(task.model, step)

            done = step + 1
            watchdog.beat(done)
            if done % settings.log_steps == 0 or done == total:
                meter.report(done, optimizer.param_groups[0]["lr"], update)
            epoch, within = divmod(done, per_epoch)
            enough = task.after_epoch(epoch, network) if within == 0 else None
            reason = stop_requested(world) if done < total and not enough else None
            if world.is_main:
                if within == 0 and (epoch % settings.checkpoint_epochs == 0 or done == total or enough):
                    checkpoints.save_epoch(state.at(done))
                elif reason or (settings.checkpoint_steps and done % settings.checkpoint_steps == 0):
                    checkpoints.save_recent(state.at(done))
            if reason:
                report.line(f"stops after step {done:,} of {total:,}, which is saved ({reason})")
                report.close()
                # Slurm ends all ranks when the first one ends, so none may end before the checkpoint is written.
                barrier(world)
                raise Interrupted(reason)
            if enough:
                report.line(f"ends after epoch {epoch} of {settings.epochs}: {enough}")
                break
    # The next stage reads the last checkpoint on every rank, so it must be complete.
    barrier(world)
    return done


def _optimizer(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    exempt = model.no_weight_decay()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim > 1 and name not in exempt]
    others = [p for name, p in named if p.ndim <= 1 or name in exempt]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def _mixup(settings: Training, num_classes: int) -> Mixup | None:
    if not (settings.mixup or settings.cutmix):
        return None
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=num_classes,
    )


class Criterion:
    """The loss of logits [b, classes] of any type, from targets as `Task.losses` gets them and a teacher's logits."""

    def __init__(self, settings: Training) -> None:
        self._distillation = settings.distillation
        if settings.mixup or settings.cutmix:
            # Mixup smooths the labels itself.
            self._of_labels: nn.Module = SoftTargetCrossEntropy()
        elif settings.label_smoothing:
            self._of_labels = LabelSmoothingCrossEntropy(settings.label_smoothing)
        else:
            self._of_labels = nn.CrossEntropyLoss()

    def __call__(self, logits: Tensor, targets: Tensor, taught: Tensor | None = None) -> Tensor:
        """Without `taught`, the teacher's logits [b, classes], the loss of the labels alone."""
        logits = logits.float()
        if taught is None:
            return self._of_labels(logits, targets)
        weight, temperature = self._distillation.weight, self._distillation.temperature
        if self._distillation.hard:
            of_teacher = F.cross_entropy(logits, taught.argmax(dim=1))
        else:
            # The square keeps the size of the gradients, whatever the temperature (Hinton et al., 2015).
            probabilities = (taught.float() / temperature).softmax(dim=1)
            of_teacher = temperature**2 * F.cross_entropy(logits / temperature, probabilities)
        # A weight of 1 needs no labels, and 0 times an infinite loss is no number.
        return of_teacher if weight == 1 else weight * of_teacher + (1 - weight) * self._of_labels(logits, targets)


class _Meter:
    """Reports the mean loss since the last report, the rate and the time left."""

    def __init__(
        self, task: Task, settings: Training, per_epoch: int, start: int, report: Report, world: World
    ) -> None:
        self._task, self._settings, self._per_epoch = task, settings, per_epoch
        self._start = self._reported = start
        self._report, self._world = report, world
        self._total = settings.epochs * per_epoch
        # Sum and count of the losses, on the device, so that no step waits for its loss.
        self._losses = torch.zeros(2, dtype=torch.float64, device=world.device)
        self._began = time.monotonic()

    def add(self, loss: Tensor) -> None:
        self._losses[0] += loss.detach()

    def end_step(self) -> None:
        self._losses[1] += 1

    def report(self, done: int, lr: float, update: Callable[[int, str], None]) -> None:
        """Report after `done` steps, to the bar, the log and the events. All ranks must call it."""
        summed, count = sum_(self._losses, self._world).tolist()
        self._losses.zero_()
        loss = summed / count
        if not math.isfinite(loss):
            stage = self._report.stage
            raise UserError(
                f"the loss is {loss} at step {done}; train with a smaller {stage}.lr "
                f"(it is {self._settings.lr}) or with {stage}.clip_grad"
            )
        per_step = (time.monotonic() - self._began) / (done - self._start)
        rate = self._settings.batch_size / per_step
        update(done, f"loss {loss:.3f}  {rate:,.0f} images/s")
        self._report.log_only(
            f"epoch {done / self._per_epoch:.2f}/{self._settings.epochs}  step {done}/{self._total}  "
            f"loss {loss:.4f}  lr {lr:.3g}  {rate:,.0f} images/s  left {duration(per_step * (self._total - done))}"
        )
        further = self._task.scalars(range(self._reported, done))
        self._reported = done
        self._report.scalars(done, {"loss": loss, "lr": lr, "images_per_second": rate, **further})


def _default_leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The defaults of a section and of the sections in it, with their dotted keys, as JSON values."""
    defaults = section.model_construct(**defaults_of(section)).model_dump(mode="json", warnings=False)
    yield from leaves(defaults, prefix)
    for key, annotation in fields_of(section).items():
        if key not in defaults:
            for inner in sections_in(annotation):
                yield from _default_leaves(inner, f"{prefix}{key}.")


class _State:
    """The contents of a checkpoint, and the recipe that it may be resumed with."""

    def __init__(
        self,
        task: Task,
        settings: Training,
        per_epoch: int,
        seed: int,
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
    ) -> None:
        self._task, self._optimizer, self._ema = task, optimizer, ema
        self._per_epoch = per_epoch
        # An architecture can be written in several forms; `about` has its canonical text.
        given = settings.model_dump(mode="json", exclude={"architecture"})
        decisive = {key: value for key, value in leaves(given) if key not in _FREE_KEYS}
        self._recipe = {"seed": seed, "steps_per_epoch": per_epoch, **decisive, **dict(leaves(task.about))}
        # A key that an older version did not have counts as its present default.
        self._defaults = dict(_default_leaves(type(settings)))

    def at(self, step: int) -> dict:
        """The state after `step` steps; `epoch` counts whole epochs."""
        return {
            "epoch": step // self._per_epoch,
            "step": step,
            "model": self._task.model.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema else None,
            "optimizer": self._optimizer.state_dict(),
            "recipe": self._recipe,
            **{name: part.state_dict() for name, part in self._task.states.items()},
            **self._task.about,
        }

    def resume(self, checkpoints: CheckpointFolder, world: World) -> int:
        """Load the newest checkpoint, if there is one. Returns the step to start from."""
        path = checkpoints.newest()
        if path is None:
            return 0
        state = checkpoint.read(path, world.device)
        recipe = state.get("recipe")
        if not isinstance(recipe, Mapping):
            raise UserError(f"{path} is not a checkpoint of this program; move it away, or choose another save_path")
        for key in {**self._recipe, **recipe}:
            ours, theirs = (part.get(key, self._defaults.get(key)) for part in (self._recipe, recipe))
            if ours != theirs:
                raise UserError(
                    f"{path} was trained with {key} {theirs!r}, and now it is {ours!r}; "
                    "set it back, or choose another save_path"
                )
        self._task.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema:
            self._ema.module.load_state_dict(state["ema"])
        for name, part in self._task.states.items():
            # An earlier version did not save it; it begins anew.
            if name in state:
                part.load_state_dict(state[name])
        return state["step"]
