"""The command `vitas prune`: a pretrained network cut to a budget in one shot, ready to be fine-tuned."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitas.config import Model
from vitas.data.folders import class_names
from vitas.elastic_space import SCORES
from vitas.errors import UserError
from vitas.files import make_folder
from vitas.program import positive, quick_imports

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def macs(text: str) -> int:
    """Parse a number of MACs: 1300000000, 1.3G, 600M."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].lower() in ("k", "m", "g") else (text, "")
    try:
        value = int(float(number) * _UNITS[unit])
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a number of MACs, as 1.3G or 600M")
    return value


def share(text: str) -> float:
    """Parse a number above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a number above 0, at most 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments that `prune` takes."""
    parser.description = (
        "Cut a pretrained network to a budget: the most important channels, heads and MLP units stay, and nothing is "
        "trained. Writes a checkpoint, which retrain.from_checkpoint fine-tunes."
    )
    parser.add_argument(
        "network",
        metavar="NAME_OR_FILE",
        help="a model of timm, NAME:FILE of its weights, or a checkpoint of `retrain`",
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=macs, metavar="N", help="multiply-adds of an image, as 1.3G")
    budget.add_argument(
        "--relative", type=share, metavar="SHARE", help="of the network's own multiply-adds, as 0.6; 1 writes it whole"
    )
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="train images, one folder a class: they say what is important"
    )
    parser.add_argument("--images", type=positive, default=512, metavar="N", help="how many of them (512)")
    parser.add_argument("--score", choices=tuple(SCORES), default="taylor", help="by what parts are ranked (taylor)")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="default: the network's own")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (0)")
    parser.add_argument("--output", type=Path, metavar="FILE.pth", help="default: NAME_MACS.pth in this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")


def prune(arguments: argparse.Namespace) -> None:
    """Prune and write. Raises `UserError` for a network that cannot be read or pruned so, before it writes anything."""
    folder = Path(arguments.data)
    if not folder.is_dir():
        raise UserError(f"--data: found {arguments.data!r}, which is not a folder; it must hold one folder a class")
    output = arguments.output
    if output is not None:
        _check_free(output, arguments.overwrite)
    with quick_imports():
        import torch

        from vitas import checkpoint
        from vitas.data.evaluation import EvaluationSet
        from vitas.data.images import channels, draw_images
        from vitas.importance import IMAGES_OF_A_CLASS, fit_classifier, score_parts
        from vitas.pretrained import Images, as_checkpoint, load_pretrained, native_images
        from vitas.pruning import prune as prune_network
    native = native_images(arguments.network)
    classes = len(class_names(arguments.data))
    # A run's default normalisation; a checkpoint's YAML says its own.
    of_run = Model() if not Path(arguments.network).is_file() else native
    images = Images(arguments.image_size or native.size, classes, of_run.mean, of_run.std)
    pretrained = load_pretrained(arguments.network, images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = pretrained.network.to(device)
    whole = network.architecture.macs(images.size, classes)
    budget = arguments.macs or int(arguments.relative * whole)
    name = Path(arguments.network.partition(":")[0]).name.partition(".")[0]
    output = output or Path(f"{name}_{_short(budget)}.pth")
    _check_free(output, arguments.overwrite)
    count = arguments.images if pretrained.has_classifier else max(arguments.images, IMAGES_OF_A_CLASS * classes)
    pixels, labels = draw_images(arguments.data, count, images.size, 1.0, arguments.seed)
    drawn = EvaluationSet(pixels, labels, channels(images.mean), channels(images.std), len(pixels))
    if not pretrained.has_classifier:
        top1 = fit_classifier(network, drawn.batches(64))
        print(
            f"the network has no classifier of {classes} classes; one is fitted to {len(pixels)} of the images "
            f"(top-1 {top1:.1f}% on these)"
        )
    inputs, labels = next(drawn.batches(arguments.images))
    pruned = network
    if budget < whole or arguments.macs:
        pruned = prune_network(network, score_parts(network, inputs, labels, arguments.score), budget)
    state = as_checkpoint(pruned, images) | {"pruned_from": arguments.network}
    checkpoint.write(state, output)
    left = pruned.architecture.macs(images.size, classes)
    print(
        f"{arguments.network} -> {output}: {left:,} of {whole:,} MACs ({left / whole:.0%}), "
        f"by {arguments.score} on {len(inputs)} images\n{pruned.architecture}\n"
        f"fine-tune it: python -m retrain CONFIG retrain.from_checkpoint={output}"
        # A network of other classes teaches nothing.
        + (f" 'retrain.distillation={{teacher: \"{arguments.network}\"}}'" if pretrained.has_classifier else "")
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
