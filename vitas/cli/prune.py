"""`vitas prune`: a pretrained network cut to a budget in one shot, ready to be fine-tuned."""

from __future__ import annotations

from pathlib import Path

import click

from vitas.cli.options import PATH, POSITIVE, command, parsed, read_amount
from vitas.config import Model
from vitas.data.folders import class_names
from vitas.elastic_space import SCORES
from vitas.errors import UserError
from vitas.files import make_folder
from vitas.program import quick_imports


def read_macs(text: str) -> int:
    """Parse a number of MACs: 1300000000, 1.3G, 600M."""
    return read_amount(text, "a number of MACs, as 1.3G or 600M")


def read_share(text: str) -> float:
    """Parse a number above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError(f"found {text!r}; it must be a number above 0, at most 1")
    return value


@command(
    "vitas prune vit_small_patch16_224 --macs 1.3G --data imagenet/train",
    "vitas prune runs/x/retrain/checkpoint/epoch_300_ckpt.pth.tar --relative 0.6 --data train --output small.pth",
)
@click.argument("name_or_file")
@click.option("--macs", type=parsed("n", read_macs), metavar="N", help="Multiply-adds of an image, as 1.3G.")
@click.option(
    "--relative",
    type=parsed("share", read_share),
    metavar="SHARE",
    help="In place of --macs: of the network's own multiply-adds, as 0.6; 1 writes it whole.",
)
@click.option(
    "--data",
    required=True,
    metavar="FOLDER",
    help="Train images, one folder a class: they say what is important.",
)
@click.option("--images", type=POSITIVE, default=512, metavar="N", help="How many of them (512).")
@click.option("--score", type=click.Choice(list(SCORES)), default="taylor", help="By what parts are ranked (taylor).")
@click.option("--image-size", type=POSITIVE, metavar="PIXELS", help="By default the network's own.")
@click.option("--seed", type=int, default=0, metavar="N", help="Of the choice of images (0).")
@click.option("--output", type=PATH, metavar="FILE.pth", help="By default NAME_MACS.pth in this folder.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def prune(
    name_or_file: str,
    macs: int | None,
    relative: float | None,
    data: str,
    images: int,
    score: str,
    image_size: int | None,
    seed: int,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Cut a pretrained network to a budget: the most important channels, heads and MLP units stay.

    NAME_OR_FILE is a model of timm, NAME:FILE of its weights, or a checkpoint of `retrain`. Nothing is trained; the
    checkpoint that is written is one that retrain.from_checkpoint fine-tunes.
    """
    # Raises `UserError` for a network that cannot be read or pruned so, before it writes anything.
    if (macs is None) == (relative is None):
        raise click.UsageError("give one of --macs and --relative")
    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"--data: found {data!r}, which is not a folder; it must hold one folder a class")
    if output is not None:
        _check_free(output, overwrite)
    with quick_imports():
        import torch

        from vitas import checkpoint
        from vitas.data.evaluation import EvaluationSet
        from vitas.data.images import channels, draw_images
        from vitas.importance import IMAGES_OF_A_CLASS, fit_classifier, score_parts
        from vitas.pretrained import Images, as_checkpoint, load_pretrained, native_images
        from vitas.pruning import prune as prune_network
    native = native_images(name_or_file)
    classes = len(class_names(data))
    # A run's default normalisation; a checkpoint's YAML says its own.
    of_run = Model() if not Path(name_or_file).is_file() else native
    shown = Images(image_size or native.size, classes, of_run.mean, of_run.std)
    pretrained = load_pretrained(name_or_file, shown)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = pretrained.network.to(device)
    whole = network.architecture.macs(shown.size, classes)
    budget = macs or int((relative or 1) * whole)
    name = Path(name_or_file.partition(":")[0]).name.partition(".")[0]
    output = output or Path(f"{name}_{_short(budget)}.pth")
    _check_free(output, overwrite)
    count = images if pretrained.has_classifier else max(images, IMAGES_OF_A_CLASS * classes)
    pixels, labels = draw_images(data, count, shown.size, 1.0, seed)
    drawn = EvaluationSet(pixels, labels, channels(shown.mean), channels(shown.std), len(pixels))
    if not pretrained.has_classifier:
        top1 = fit_classifier(network, drawn.batches(64))
        print(
            f"the network has no classifier of {classes} classes; one is fitted to {len(pixels)} of the images "
            f"(top-1 {top1:.1f}% on these)"
        )
    inputs, labels = next(drawn.batches(images))
    pruned = network
    if budget < whole or macs:
        pruned = prune_network(network, score_parts(network, inputs, labels, score), budget)
    state = as_checkpoint(pruned, shown) | {"pruned_from": name_or_file}
    checkpoint.write(state, output)
    left = pruned.architecture.macs(shown.size, classes)
    print(
        f"{name_or_file} -> {output}: {left:,} of {whole:,} MACs ({left / whole:.0%}), "
        f"by {score} on {len(inputs)} images\n{pruned.architecture}\n"
        f"fine-tune it: vitas retrain CONFIG retrain.from_checkpoint={output}"
        # A network of other classes teaches nothing.
        + (f" 'retrain.distillation={{teacher: \"{name_or_file}\"}}'" if pretrained.has_classifier else "")
    )


def _short(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _check_free(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise UserError(f"--output: found {str(output)!r}, which is a folder; it must be a file")
    if output.exists() and not overwrite:
        raise UserError(f"--output: {output} is there already; choose another name, or replace it with --overwrite")
    make_folder(output.parent, "--output")
