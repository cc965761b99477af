"""The command `vitas`: everything that is no stage, as subcommands.

What takes seconds to import (torch, timm) is imported by the commands that need it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from vitas.errors import UserError, exit_on_user_error
from vitas.files import RunFolder, read_text
from vitas.launch import command as launch_command
from vitas.space import Architecture, Genotype, Network, costs, counts
from vitas.space.found import architectures_of
from vitas.space.genotype import STEM_STRIDE


def main() -> None:
    parser = argparse.ArgumentParser(prog="vitas", description="Everything that is no stage.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    describe_parser = commands.add_parser("describe", help="show an architecture block by block, with its costs")
    describe_parser.add_argument(
        "architecture",
        metavar="NAME_OR_FILE",
        help="a name such as vitas_c or deit_tiny, a text such as p16-e230-token-h3q432m720x12, "
        "or an architectures.yaml (all of it, or FILE:NAME)",
    )
    describe_parser.add_argument("--image-size", type=launch_command.positive, default=224, metavar="PIXELS")
    describe_parser.add_argument("--num-classes", type=launch_command.positive, default=1000, metavar="N")
    describe_parser.set_defaults(run=lambda args: describe(args.architecture, args.image_size, args.num_classes))

    zoo_parser = commands.add_parser("zoo", help="show the published architectures side by side")
    zoo_parser.add_argument("--measure", action="store_true", help="their speed on this machine too, some seconds each")
    zoo_parser.add_argument(
        "--batch-size", type=launch_command.positive, metavar="N", help="of --measure: 256 on a GPU, else 8"
    )
    zoo_parser.set_defaults(run=lambda args: show_zoo(args.measure, args.batch_size))

    convert_parser = commands.add_parser(
        "convert", help="print what a released ViTAS YAML means as one of this project"
    )
    convert_parser.add_argument("path", type=Path, metavar="OLD.yaml")
    convert_parser.set_defaults(run=lambda args: convert(args.path))

    digits_parser = commands.add_parser("digits", help="write scikit-learn's digits as train/val/test image folders")
    digits_parser.add_argument("folder", type=Path)
    digits_parser.set_defaults(run=lambda args: digits(args.folder))

    compare_parser = commands.add_parser("compare", help="show the results of runs side by side")
    compare_parser.add_argument("save_paths", nargs="+", type=Path, metavar="SAVE_PATH")
    compare_parser.set_defaults(run=lambda args: compare(args.save_paths))

    launch_parser = commands.add_parser("launch", help="run a stage, or all of them, as Slurm jobs")
    launch_command.add_arguments(launch_parser)
    launch_parser.set_defaults(run=launch_command.launch)

    cluster_parser = commands.add_parser(
        "cluster", help="print what configs/cluster.yaml sets as options: sbatch $(vitas cluster) script/..."
    )
    cluster_parser.set_defaults(run=lambda args: cluster_options())

    # argparse gives up looking for CONFIG and key=value once it has met an option.
    arguments, rest = parser.parse_known_args()
    if rest and (not hasattr(arguments, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.words += rest
    with exit_on_user_error():
        code = arguments.run(arguments)
    if code:
        sys.exit(code)


def cluster_options() -> None:
    """Print the options of sbatch that configs/cluster.yaml sets."""
    from vitas.launch.cluster import load_cluster, sbatch_options

    print(shlex.join(sbatch_options(load_cluster())))


def digits(folder: Path) -> None:
    """Write scikit-learn's digits to image folders."""
    from vitas.data.digits import write_digits

    write_digits(folder)


def convert(path: Path) -> None:
    """Print a released YAML in our schema. Raises `UserError` for what is none, or would be refused as a run."""
    import yaml

    from vitas.released import read_configuration

    found = read_configuration(read_text(path), str(path))
    if not found.is_released:
        raise UserError(
            f"{path} is no released ViTAS file: it has no model.backbone and no strategy; it can be run as it is"
        )
    from vitas import config

    config.load(path)
    print(f"# From {path}, a released ViTAS file. Of its keys, these have no effect here:")
    for line in found.told_without_effect():
        print(f"#   {line}")
    print(yaml.safe_dump(found.data, sort_keys=False, default_flow_style=None, width=120), end="")


def describe(name_or_file: str, image_size: int, num_classes: int) -> None:
    """Print an architecture, or each one of a file, block by block with its costs."""
    console = _wide_console(120)
    for name, architecture in architectures_of(name_or_file).items():
        architecture.check_image_size(image_size)
        table = _stages_table if isinstance(architecture, Genotype) else _table
        console.print(table(name, architecture, image_size, num_classes))
        found = costs(architecture, image_size, num_classes)
        released = found["macs_released"]
        console.print(
            f"{found['macs']:,} MACs, {'' if released is None else f'{released:,} in the released convention, '}"
            f"{found['parameters']:,} parameters\n{architecture}\n",
            highlight=False,
            soft_wrap=True,
        )


def show_zoo(measure: bool, batch_size: int | None) -> None:
    """Print the published architectures with their costs and accuracies, and their speed here if asked for."""
    from vitas.space.published import PUBLISHED_ACCURACY, zoo

    table = Table(box=box.SIMPLE)
    table.add_column("network", no_wrap=True)
    columns = ["patch", "dim", "depth", "heads", "GMACs", "released", "M params", "top-1", "top-5"]
    for column in [*columns, *(["images/s"] if measure else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    console = _wide_console(110)
    speeds = {}
    if measure:
        with console.status("measuring"):
            speeds, where = _speeds(zoo(), batch_size)
    for name, architecture in zoo().items():
        found = costs(architecture, 224, 1000)
        released = found["macs_released"]
        top1, top5 = PUBLISHED_ACCURACY[name]
        table.add_row(
            name,
            *_shape(architecture),
            f"{found['macs'] / 1e9:.3f}",
            "" if released is None else f"{released / 1e9:.3f}",
            f"{found['parameters'] / 1e6:.2f}",
            f"{top1:.1f}",
            "" if top5 is None else f"{top5:.1f}",
            *([f"{speeds[name]:,.0f}"] if measure else []),
        )
    console.print(table)
    console.print("224 x 224, 1,000 classes. Multiply-adds of an image, true and in the released convention.")
    console.print("Top-1 and top-5 as published, in percent on ImageNet-1k.")
    if measure:
        console.print(where)


def _shape(network: Network) -> tuple[str, str, str, str]:
    """Patch size, dim, depth and heads, as the zoo shows them: all values there are, in order."""
    if isinstance(network, Genotype):
        patch, dims, depth, heads = STEM_STRIDE, network.dims, network.depth, network.stage_heads
    else:
        blocks = network.active_blocks
        patch, dims, depth, heads = network.patch_size, [network.embed_dim], len(blocks), [b.heads for b in blocks]
    dim, head = ("/".join(map(str, sorted(set(values)))) for values in (dims, heads))
    return str(patch), dim, str(depth), head


def _speeds(architectures: dict[str, Network], batch_size: int | None) -> tuple[dict[str, float], str]:
    import torch

    from vitas.cost import images_per_second
    from vitas.models import create_model

    on_gpu = torch.cuda.is_available()
    batch_size = batch_size or (256 if on_gpu else 8)
    device = torch.device("cuda" if on_gpu else "cpu")
    speeds = {
        name: images_per_second(create_model(architecture).to(device), batch_size=batch_size)
        for name, architecture in architectures.items()
    }
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    return speeds, f"Images per second: measured on {name}, batches of {batch_size}, forward passes only."


def compare(save_paths: list[Path]) -> None:
    """Print what `test` measured in each run, one row a run."""
    table = Table(box=box.SIMPLE)
    table.add_column("run", overflow="fold")
    for column in ("top-1", "top-5", "MACs", "released", "parameters", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for save_path in save_paths:
        results = read_results(RunFolder(save_path).results)
        table.add_row(
            str(save_path),
            f"{results['top1']:.2f}",
            f"{results['top5']:.2f}",
            *("" if results[key] is None else f"{results[key]:,}" for key in ("macs", "macs_released", "parameters")),
            f"{results['images_per_second']:,.0f}",
        )
    _wide_console().print(table)


def read_results(path: Path) -> dict:
    """The numbers of a results.json. Raises `UserError` where the stage `test` has not written one."""
    try:
        results = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: no such file; the stage test writes it") from None
    except ValueError:
        raise UserError(f"{path} is no JSON") from None
    keys = ("top1", "top5", "macs", "macs_released", "parameters", "images_per_second")
    missing = [key for key in keys if not isinstance(results, dict) or key not in results]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; it must be what the stage test writes")
    return results


def _table(name: str, architecture: Architecture, image_size: int, num_classes: int) -> Table:
    total_macs = architecture.macs(image_size, num_classes)
    total_parameters = architecture.parameters(image_size, num_classes)
    table = Table(title=name, title_justify="left", box=box.SIMPLE)
    for column in ("part", "heads", "qkv", "MLP", "MACs", "%", "parameters"):
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)

    def row(part: str, dims: tuple, macs: int, parameters: int) -> None:
        table.add_row(part, *map(str, dims), f"{macs:,}", f"{100 * macs / total_macs:.1f}", f"{parameters:,}")

    dim, patch = architecture.embed_dim, architecture.patch_size
    patches = (image_size // patch) ** 2
    nothing = ("", "", "")
    head_macs, head_parameters = dim * num_classes, dim * num_classes + num_classes
    row(
        f"{patches} patches {patch}x{patch}, dim {dim}",
        nothing,
        3 * dim * patch**2 * patches,
        counts.parameters(patch, dim, 0, 0, 0, image_size, num_classes) - head_parameters - 2 * dim,
    )
    for i, block in enumerate(architecture.blocks, start=1):
        if block.is_identity:
            row(f"block {i}: identity", nothing, 0, 0)
            continue
        alone = Architecture(patch, dim, (block,))
        empty = Architecture(patch, dim, ())
        row(
            f"block {i}",
            (block.heads, block.qkv_dim, block.mlp_dim),
            alone.macs(image_size, num_classes) - empty.macs(image_size, num_classes),
            alone.parameters(image_size, num_classes) - empty.parameters(image_size, num_classes),
        )
    row("norm", nothing, 0, 2 * dim)
    row(f"classifier ({architecture.classifier})", nothing, head_macs, head_parameters)
    table.add_section()
    row("total", nothing, total_macs, total_parameters)
    return table


def _stages_table(name: str, genotype: Genotype, image_size: int, num_classes: int) -> Table:
    table = Table(title=name, title_justify="left", box=box.SIMPLE)
    for column in ("stage", "tokens", "dim", "kernel", "window", "heads", "MLP", "blocks", "MACs", "%", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    total = genotype.macs(image_size, num_classes)
    rows = genotype.stage_costs(image_size)
    for i, (stage, side) in enumerate(zip(genotype.stages, genotype.resolutions(image_size), strict=True)):
        window = side // stage.split
        macs, parameters = rows[i]
        table.add_row(
            *map(str, (i + 1, f"{side}x{side}", genotype.dims[i], stage.kernel, f"{window}x{window}")),
            *map(str, (genotype.stage_heads[i], stage.expansion * genotype.dims[i], stage.layers)),
            f"{macs:,}",
            f"{100 * macs / total:.1f}",
            f"{parameters:,}",
        )
    macs = total - sum(macs for macs, _ in rows)
    parameters = genotype.parameters(image_size, num_classes) - sum(parameters for _, parameters in rows)
    table.add_row("head", *[""] * 7, f"{macs:,}", f"{100 * macs / total:.1f}", f"{parameters:,}")
    return table


def _wide_console(columns: int = 100) -> Console:
    """A console that shows every number whole: so many columns at least, also in a pipe, which has 80 for rich."""
    return Console(width=max(columns, Console().width))
