"""The training loop: the published recipe, and exact resume.

The seed of every random draw depends on the step (see
`vitas.distributed.stream_seed`), so a checkpoint needs no generator's state: a
run that was killed at any point and resumed equals an undisturbed one, bit for
bit on CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vitas import watchdog
from vitas.background_save import BackgroundSave
from vitas.checkpoint import CheckpointFolder
from vitas.config import Training
from vitas.data.training import TrainingLoader
from vitas.distributed import World, barrier, stop_requested, sum_
from vitas.errors import UserError
from vitas.memory import measuring_what_fits
from vitas.report import Report, duration, shown_path
from vitas.resume import TrainingState
from vitas.seeds import stream_seed
from vitas.slurm.signals import Interrupted
from vitas.step_watch import Diverged, StepWatch
from vitas.validation import Validation, restore_best


@dataclass(frozen=True)
class Task:
    """What a stage trains, and how.

    model: its weights are trained and saved.
    losses: (images, targets, step) -> the losses of a step, one a backward pass; their gradients add up. Targets are
        labels [b], or probabilities [b, classes] where the recipe mixes images.
    num_classes: of the logits.
    alone: () -> a context within which the passes of this rank need no other rank, to measure what fits in memory.
    after_backward: (step) -> None, called after the backward passes, to average gradients over the ranks; not needed
        with DistributedDataParallel.
    about: plain data to save beside the weights, e.g. the architecture.
    states: what else a checkpoint holds, by name; objects with `state_dict` and `load_state_dict`.
    scalars: (steps) -> further numbers about steps, to report beside their loss.
    describe: (step) -> what it trains, in words, if that differs from step to step.
    after_epoch: (epochs done, network) -> why the training should end there, or None. The network has the averaged
        weights, if there are any. Every rank calls it after every epoch, and again when a run resumes there.
    validation: what measures the network after epochs, and says which one is kept as the best.
    """

    model: nn.Module
    losses: Callable[[Tensor, Tensor, int], Iterable[Tensor]]
    num_classes: int
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    after_backward: Callable[[int], None] = lambda step: None
    about: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, Any] = field(default_factory=dict)
    scalars: Callable[[range], Mapping[str, float]] = lambda steps: {}
    describe: Callable[[int], str] = lambda step: ""
    after_epoch: Callable[[int, nn.Module], str | None] = lambda epoch, network: None
    validation: Validation | None = None


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

    Steps whose gradients are not finite are left out (`vitas.step_watch`).
    Raises `UserError` for a checkpoint of another recipe or architecture, and
    where going back to a checkpoint did not help against such steps. Raises
    `Interrupted`, after a checkpoint of the last step, if the run was asked to
    stop.
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
    watch = StepWatch(optimizer, settings, task.describe, report, world)
    validation = task.validation
    states = {**task.states, "watch": watch, **({"validation": validation} if validation else {})}
    state = TrainingState(
        task.model, ema, optimizer, states, task.about, settings, per_epoch, loader.listing, seed, report
    )
    start = state.resume(checkpoints, world)
    report.begin(start, per_epoch)
    network = ema.module if ema else task.model

    def after_epoch(epoch: int, counts: bool = True) -> str | None:
        """Why the training should end there, or None. counts: whether its network may be the best."""
        reason = task.after_epoch(epoch, network)
        return (validation.after_epoch(epoch, network, task.model, counts) if validation else None) or reason

    at_end_of_epoch = 0 < start < total and start % per_epoch == 0
    enough = after_epoch(start // per_epoch) if at_end_of_epoch else None
    if start and validation and world.is_main:
        restore_best(validation, start, checkpoints, report)
    if start == total:
        report.line(f"all {settings.epochs} epochs are done")
        return total
    if enough:
        report.line(f"{start // per_epoch} of {settings.epochs} epochs are done: {enough}")
        return start
    if start:
        report.line(f"resumes at step {start:,} of {total:,} (epoch {start / per_epoch:.2f})")
    if world.is_main:
        checkpoints.require_space(state.size)
    meter = _Meter(task, settings, per_epoch, report, world)
    background = BackgroundSave(world.device, report)
    too_large = partial(_too_large, settings, report.stage, world)

    def train_from(start: int) -> int:
        """Train to the end; the number of steps. Raises `Diverged`."""
        # After a return, other random draws: the same ones would end in the same way.
        draws = stream_seed(seed, "return", state.returns) if state.returns else seed
        task.model.train()
        watch.begin(start)
        meter.begin(start)
        done = start
        with (
            report.progress(total, start, "steps") as update,
            watchdog.watching(report.stage),
            closing(loader.batches(start, total, draws)) as batches,
        ):
            for step, (images, labels) in enumerate(batches, start):
                torch.manual_seed(stream_seed(draws, "network", step, world.rank))
                if mixup:
                    np.random.seed(stream_seed(draws, "mixup", step) % 2**32)
                    images, labels = mixup(images, labels)
                scheduler.step_update(step)
                optimizer.zero_grad()
                attempt = partial(_attempt, task, optimizer, images, labels, step)
                with measuring_what_fits(len(images), attempt, world.device, too_large):
                    _backward(task, images, labels, step, meter.add)
                    task.after_backward(step)
                    meter.end_step(watch.clip(step))
                    background.before_change()
                    optimizer.step()
                    if ema:
                        ema.update(task.model, step)

                done = step + 1
                watchdog.beat(done)
                background.poll()
                update(done, None)
                if done % settings.log_steps == 0 or done == total:
                    watch.review(done)
                    meter.report(done, optimizer.param_groups[0]["lr"], update)
                epoch, within = divmod(done, per_epoch)
                enough = None
                if within == 0:
                    watch.review(done)
                    enough = after_epoch(epoch, counts=not watch.last_was_bad)
                    report.epoch_ended(epoch)
                reason = stop_requested(world) if done < total and not enough else None
                is_last = bool(done == total or enough)
                is_best = bool(within == 0 and validation and validation.best_epoch == epoch)
                ends_epoch = within == 0 and (epoch % settings.checkpoint_epochs == 0 or is_last)
                is_due = settings.checkpoint_steps and done % settings.checkpoint_steps == 0
                saves = ends_epoch or is_best or reason or is_due
                if saves and _is_sound(state.at(done), done, watch, is_last, report) and world.is_main:
                    background.save(state.at(done), partial(checkpoints.save, ends_epoch=ends_epoch, is_best=is_best))
                if reason:
                    background.wait()
                    saved = "the newest checkpoint is older" if watch.last_was_bad else "which is saved"
                    report.line(f"stops after step {done:,} of {total:,}, {saved} ({reason})")
                    report.close()
                    # Slurm ends all ranks when the first one ends, so none may end before the checkpoint is written.
                    barrier(world)
                    raise Interrupted(reason)
                if enough:
                    report.line(f"ends after epoch {epoch} of {settings.epochs}: {enough}")
                    break
        return done

    with background:
        while True:
            try:
                done = train_from(start)
                break
            except Diverged as error:
                background.wait()
                start = _go_back(state, checkpoints, settings, str(error), report, world)
                report.begin(start, per_epoch)
    # The next stage reads the last checkpoint on every rank, so it must be complete.
    barrier(world)
    return done


def _backward(
    task: Task, images: Tensor, targets: Tensor, step: int, passed: Callable[[Tensor], object] = lambda loss: None
) -> None:
    """The backward passes of a step; `passed` gets the loss of each."""
    for loss in task.losses(images, targets, step):
        loss.backward()
        passed(loss)


def _attempt(
    task: Task, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, step: int, count: int
) -> None:
    """Pass `count` images of a step that did not fit, beside room for what the optimizer does not hold yet."""
    optimizer.zero_grad()
    room = torch.empty(_bytes_to_come(optimizer), dtype=torch.uint8, device=images.device)
    with task.alone():
        _backward(task, images[:count], targets[:count], step)
    del room


def _bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """The memory that an optimizer will need before the end of its first step: AdamW keeps two numbers a weight."""
    new = (p for group in optimizer.param_groups for p in group["params"] if p not in optimizer.state)
    return sum(2 * p.numel() * p.element_size() for p in new)


def _too_large(settings: Training, stage: str, world: World, fit: int, memory: str) -> str:
    """The message for a step that does not fit. fit: how many images of a process do."""
    own = settings.batch_size // world.size
    ways = [f"a smaller {stage}.batch_size, which is another recipe"]
    if not settings.activation_checkpointing:
        ways.insert(0, f"{stage}.activation_checkpointing=true, which takes time and changes nothing")
    if fit:
        parts = settings.accumulate * math.ceil(own / fit)
        ways.insert(0, f"{stage}.accumulate={parts}, which changes the result by rounding alone")
    in_parts = f" in {settings.accumulate} parts" if settings.accumulate > 1 else ""
    return (
        f"{stage}.batch_size: found {settings.batch_size}, of which a process passes {own}{in_parts}; they do not fit "
        f"in {memory}, and as measured now {f'{fit} do' if fit else 'not even one does'}. Set {'; or '.join(ways)}"
    )


def _is_sound(state: Mapping[str, Any], done: int, watch: StepWatch, is_last: bool, report: Report) -> bool:
    """Whether a state is worth keeping. Raises `Diverged` if it is not and has to be."""
    watch.review(done)
    watch.require_finite(state, done)
    if watch.last_was_bad and is_last:
        raise Diverged(f"the gradients of the last step, {done:,}, are not finite")
    if watch.last_was_bad:
        # That step did not change the weights, but perhaps they are why its gradients were not finite.
        report.line(f"does not save step {done:,}, whose gradients are not finite")
    return not watch.last_was_bad


def _go_back(
    state: TrainingState,
    checkpoints: CheckpointFolder,
    settings: Training,
    why: str,
    report: Report,
    world: World,
) -> int:
    """Load the newest checkpoint, to go on from there with other draws. Returns its step.

    Raises `UserError` without one, and after `not_finite.returns` returns.
    """
    stage, returns = report.stage, state.returns + 1
    advice = f"with a smaller {stage}.lr (it is {settings.lr}) or with {stage}.clip_grad"
    # Rank 0 may just have written it.
    barrier(world)
    newest = checkpoints.newest()
    if newest is None:
        raise UserError(f"{why}, and there is no checkpoint to go back to; train {advice}")
    if returns > settings.not_finite.returns:
        raise UserError(
            f"{why}, also after {settings.not_finite.returns} returns to a checkpoint; the steps are in "
            f"{shown_path(report.bad_steps)}. {shown_path(newest)} is whole: go on from it {advice}, and "
            f"{stage}.allow_changes=[lr, clip_grad]"
        )
    start = state.resume(checkpoints, world)
    state.returns = returns
    report.line(f"{why}; goes back to step {start:,} ({newest.name}), and on from there with other draws")
    return start


def _optimizer(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    exempt: set[str] = model.no_weight_decay()  # type: ignore[operator]  # every network here has it
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
            self._of_labels: Callable[[Tensor, Tensor], Tensor] = SoftTargetCrossEntropy()
        elif settings.label_smoothing:
            self._of_labels = LabelSmoothingCrossEntropy(settings.label_smoothing)
        else:
            self._of_labels = nn.CrossEntropyLoss()

    def __call__(self, logits: Tensor, targets: Tensor, taught: Tensor | None = None) -> Tensor:
        """Without distillation, or `taught`, the teacher's logits [b, classes], the loss of the labels alone."""
        logits = logits.float()
        if taught is None or self._distillation is None:
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

    def __init__(self, task: Task, settings: Training, per_epoch: int, report: Report, world: World) -> None:
        self._task, self._settings, self._per_epoch = task, settings, per_epoch
        self._report, self._world = report, world
        self._total = settings.epochs * per_epoch
        # On the device, so that no step waits for its loss: the loss of the step; the sum and count of the steps'.
        self._loss = torch.zeros((), dtype=torch.float64, device=world.device)
        self._losses = torch.zeros(2, dtype=torch.float64, device=world.device)

    def begin(self, start: int) -> None:
        """Start to count at a step."""
        self._start = self._reported = start
        self._began = time.monotonic()
        self._loss.zero_()
        self._losses.zero_()

    def add(self, loss: Tensor) -> None:
        self._loss += loss.detach()

    def end_step(self, bad: Tensor) -> None:
        """bad: 1 if the step is left out, on the device."""
        good = 1 - bad
        self._losses += torch.stack([torch.where(bad > 0, 0.0, self._loss), good])
        self._loss.zero_()

    def report(self, done: int, lr: float, update: Callable[[int, str | None], None]) -> None:
        """Report after `done` steps, to the bar, the log and the events. All ranks must call it."""
        summed, count = sum_(self._losses, self._world).tolist()
        self._losses.zero_()
        loss = summed / count if count else math.nan
        per_step = (time.monotonic() - self._began) / (done - self._start)
        rate = self._settings.batch_size / per_step
        update(done, f"loss {loss:.3f}  {rate:,.0f} images/s")
        self._report.log_only(
            f"epoch {done / self._per_epoch:.2f}/{self._settings.epochs}  step {done}/{self._total}  "
            f"loss {loss:.4f}  lr {lr:.3g}  {rate:,.0f} images/s  left {duration(per_step * (self._total - done))}"
        )
        further = self._task.scalars(range(self._reported, done))
        self._reported = done
        loss_if_any = {} if math.isnan(loss) else {"loss": loss}
        values = {**loss_if_any, "lr": lr, "images_per_second": rate, **further}
        self._report.scalars(done, {f"train/{name}": value for name, value in values.items()})
