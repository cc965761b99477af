"""The `retrain` stage: train one architecture with the DeiT recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retrain.token_schedule import TokenSchedule
from vitas import checkpoint, loading
from vitas.accumulation import parts_of
from vitas.catalog import AnyArchitecture
from vitas.checkpoint import BEST, CheckpointFolder
from vitas.compiled import compiled
from vitas.config import RunConfig, check_token_phases
from vitas.data.evaluation import EvaluationSet
from vitas.data.training import TrainingLoader
from vitas.distributed import World
from vitas.errors import UserError
from vitas.evaluate import autocast, evaluate
from vitas.models import SuperNet, VisionTransformer, create_model
from vitas.report import Report, shown_path
from vitas.seeds import stream_seed
from vitas.teacher import load_teacher
from vitas.train import Criterion, Task, train
from vitas.validation import Validation


def retrain(config: RunConfig, world: World) -> None:
    """Train to the last epoch, with checkpoints in `save_path/retrain/checkpoint/`."""
    settings, model = config.retrain, config.model
    report = Report.for_stage("retrain", config, world)
    checkpoints = CheckpointFolder(config.folder.checkpoints("retrain"), settings.keep)
    architecture = architecture_of(config, checkpoints)
    for mistake in check_token_phases(settings.tokens, architecture, model.image_size):
        raise UserError(mistake)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    network = create_model(architecture, model.num_classes, model.image_size, settings.drop_path_rate)
    # A resumed run loads its own checkpoint instead.
    if settings.from_supernet and checkpoints.newest() is None:
        inherit(network, config, report)
    if settings.from_checkpoint is not None and checkpoints.newest() is None:
        changes = loading.start_from(network, settings.from_checkpoint)
        report.line("; ".join([f"starts from the weights of {settings.from_checkpoint}", *changes]))
    network.to(world.device)
    loader = TrainingLoader.for_stage(settings, config, world, report)
    report.line(
        f"{architecture}: {architecture.macs(model.image_size, model.num_classes):,} MACs, "
        f"{architecture.parameters(model.image_size, model.num_classes):,} parameters, "
        f"{world.size} process(es) on {world.device.type}"
    )
    network.set_grad_checkpointing(settings.activation_checkpointing)
    trained: nn.Module = network
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    if world.size > 1:
        trained = DistributedDataParallel(network, [world.device] if world.device.type == "cuda" else None)
        settle_buckets(trained, model.image_size, world.device)
        alone = trained.no_sync
    forward_of = compiled(trained, "retrain.compile") if settings.compile else trained
    schedule = TokenSchedule.from_phases(settings.tokens, settings.epochs * loader.steps_per_epoch)
    macs = {r: architecture.macs(model.image_size, model.num_classes, reduce=r) for r in schedule.reductions}
    if settings.tokens:
        ours, full = schedule.training_macs(macs, settings.batch_size), schedule.total * settings.batch_size * macs[1]
        report.line(
            f"{schedule}; forward passes take {ours:,} MACs over the training, "
            f"{1 - ours / full:.1%} less than the {full:,} of full tokens"
        )

    def forward(images: Tensor, step: int) -> Tensor:
        reduce = schedule.reduction(step)
        if reduce != network.token_reduction:
            # DistributedDataParallel need not know: every parameter still has a gradient in every step.
            network.set_token_reduction(reduce)
            side = architecture.tokens_per_side(model.image_size, reduce)
            report.line(
                f"from step {step:,} on {side} x {side} tokens: "
                f"{macs[reduce]:,} MACs an image, {macs[reduce] * settings.batch_size:,} a step (forward)"
            )
        return forward_of(images)

    criterion = Criterion(settings)
    teacher = load_teacher(config, "retrain", world)
    if teacher is not None:
        report.line(f"learns from {settings.distillation.teacher}")

    def losses(images: Tensor, targets: Tensor, step: int) -> Iterator[Tensor]:
        for part in parts_of(images, targets, settings.accumulate):
            # The backward pass of the last part reduces what has added up.
            with nullcontext() if part.is_last else alone():
                with autocast(world.device, settings.amp):
                    taught = teacher(part.images) if teacher else None
                    logits = forward(part.images, step)
                yield part.share * criterion(logits, part.targets, taught)

    validation = None
    if settings.val is not None:
        images = EvaluationSet.load(settings.val, model.image_size, model.mean, model.std, world, False, report)
        report.line(f"is measured on {images.total:,} val images on the way")
        validation = Validation(images, settings, report, world)
    task = Task(
        network,
        losses,
        model.num_classes,
        alone=alone,
        about={
            "architecture": str(architecture),
            "num_classes": model.num_classes,
            "image_size": model.image_size,
            "mean": model.mean,
            "std": model.std,
        },
        validation=validation,
    )
    train(task, settings, loader, checkpoints, report, world, config.seed)
    if settings.from_supernet:
        report_gain(network, config, report, world)
    if world.is_main:
        report.line(f"the network is in {shown_path(checkpoints.newest())}")
        if validation and validation.best_epoch:
            report.line(f"by val images: {validation}, in {BEST}; test.load_name=best_ckpt chooses it")
    report.finish()


def settle_buckets(trained: DistributedDataParallel, image_size: int, device: torch.device) -> None:
    """Have gradients reduced in the same buckets in every step, so that a resumed run equals an undisturbed one.

    After its first backward pass, DistributedDataParallel puts gradients into buckets anew, in the order in which they
    came. With more than two ranks, sums of another bucket are rounded otherwise; so that pass must not be a step's.
    """
    trained.train()
    trained(torch.zeros(2, 3, image_size, image_size, device=device)).sum().backward()
    # The new buckets are made at the start of the next forward pass.
    trained.zero_grad()


def architecture_of(config: RunConfig, checkpoints: CheckpointFolder) -> AnyArchitecture:
    """The architecture of `retrain.architecture`, else that stored in `from_checkpoint`, else the best one found."""
    settings = config.retrain
    if settings.architecture is not None or settings.from_checkpoint is None:
        return config.architecture(settings.architecture)
    path = checkpoints.newest() or settings.from_checkpoint
    text = checkpoint.read(path).get("architecture")
    if not isinstance(text, str):
        raise UserError(f"{path} does not say its architecture; set retrain.architecture")
    return config.architecture(text)


def inherit(network: VisionTransformer, config: RunConfig, report: Report) -> None:
    """Load the weights that the run's trained supernet has for a network."""
    inherited, path = _inherited(network, config)
    network.load_state_dict(inherited.state_dict())
    report.line(*CheckpointFolder(config.folder.checkpoints("search")).passed_over())
    report.line(f"starts from the weights of {shown_path(path)}")


def _inherited(network: VisionTransformer, config: RunConfig) -> tuple[VisionTransformer, Path]:
    """The network with the supernet's weights, and the checkpoint that they are from."""
    path, state = CheckpointFolder(config.folder.checkpoints("search")).read()
    supernet = SuperNet.of(config)
    loading.load_state(supernet, state, path)
    return supernet.extract(network.architecture), path


def report_gain(network: VisionTransformer, config: RunConfig, report: Report, world: World) -> None:
    """Say what training gained over the supernet's weights, by the val images of `sample`, if the run has them."""
    settings, model = config.sample, config.model
    if settings is None or not Path(settings.data.data_dir).is_dir():
        return
    before = _inherited(network, config)[0].to(world.device).eval()
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, world, False, report)
    was, now = (evaluate(each, images, settings.batch_size, settings.amp, world) for each in (before, network.eval()))
    report.line(
        f"on {images.total:,} val images top-1 is {now.top1:.2f}%, and {was.top1:.2f}% with the supernet's weights: "
        f"this training gained {now.top1 - was.top1:+.2f}"
    )
