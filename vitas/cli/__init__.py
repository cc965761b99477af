"""The command `vitas`: everything that is no stage, as subcommands.

torch is loaded by `zoo --measure`, by `prune`, and by a `launch` whose first stage reads a checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import yaml

from vitas import config
from vitas.cli import launch, prune
from vitas.cli.describe import compare, describe, show_zoo
from vitas.data.example_images import FASHION_FOLDER, write_digits, write_fashion
from vitas.errors import UserError, exit_on_user_error
from vitas.plain_data import read_text
from vitas.program import positive
from vitas.released import read_configuration
from vitas.slurm.cluster import load_cluster, sbatch_options


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
    describe_parser.add_argument("--image-size", type=positive, default=224, metavar="PIXELS")
    describe_parser.add_argument("--num-classes", type=positive, default=1000, metavar="N")
    describe_parser.set_defaults(run=lambda args: describe(args.architecture, args.image_size, args.num_classes))

    zoo_parser = commands.add_parser("zoo", help="show the published architectures side by side")
    zoo_parser.add_argument("--measure", action="store_true", help="their speed on this machine too, some seconds each")
    zoo_parser.add_argument("--batch-size", type=positive, metavar="N", help="of --measure: 256 on a GPU, else 8")
    zoo_parser.set_defaults(run=lambda args: show_zoo(args.measure, args.batch_size))

    convert_parser = commands.add_parser(
        "convert", help="print what a released ViTAS YAML means as one of this project"
    )
    convert_parser.add_argument("path", type=Path, metavar="OLD.yaml")
    convert_parser.set_defaults(run=lambda args: convert(args.path))

    digits_parser = commands.add_parser("digits", help="write scikit-learn's digits as train/val/test image folders")
    digits_parser.add_argument("folder", type=Path)
    digits_parser.set_defaults(run=lambda args: write_digits(args.folder))

    fashion_parser = commands.add_parser("fashion", help="write Fashion-MNIST as train/val/test image folders")
    fashion_parser.add_argument("folder", type=Path)
    fashion_parser.add_argument("--train", type=positive, default=50_000, metavar="N", help="train images (50,000)")
    fashion_parser.add_argument(
        "--val", type=positive, default=10_000, metavar="N", help="val images (10,000), from the official train images"
    )
    fashion_parser.add_argument(
        "--source",
        type=Path,
        metavar="FOLDER",
        help=f"where the four official files are (from Debian's package in {FASHION_FOLDER}; else downloaded)",
    )
    fashion_parser.set_defaults(run=lambda args: write_fashion(args.folder, args.train, args.val, source=args.source))

    compare_parser = commands.add_parser("compare", help="show the results of runs side by side")
    compare_parser.add_argument("save_paths", nargs="+", type=Path, metavar="SAVE_PATH")
    compare_parser.set_defaults(run=lambda args: compare(args.save_paths))

    report_parser = commands.add_parser("report", help="write the page that shows a run, or several side by side")
    report_parser.add_argument("save_paths", nargs="+", type=Path, metavar="SAVE_PATH")
    report_parser.add_argument(
        "--output", type=Path, metavar="FILE.html", help="by default SAVE_PATH/report.html; of several ./report.html"
    )
    report_parser.set_defaults(run=lambda args: report(args.save_paths, args.output))

    prune_parser = commands.add_parser("prune", help="cut a pretrained network to a budget, ready to be fine-tuned")
    prune.add_arguments(prune_parser)
    prune_parser.set_defaults(run=prune.prune)

    launch_parser = commands.add_parser("launch", help="run a stage, or all of them, as Slurm jobs")
    launch.add_arguments(launch_parser)
    launch_parser.set_defaults(run=launch.launch)

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
    print(shlex.join(sbatch_options(load_cluster())))


def report(save_paths: list[Path], output: Path | None) -> None:
    """Write the page of runs, and print where it is."""
    from vitas.report_page.write import write_report

    print(write_report(save_paths, output))


def convert(path: Path) -> None:
    """Print a released YAML in our schema. Raises `UserError` for what is none, or would be refused as a run."""
    found = read_configuration(read_text(path), str(path))
    if not found.is_released:
        raise UserError(
            f"{path} is no released ViTAS file: it has no model.backbone and no strategy; it can be run as it is"
        )
    config.load(path)
    print(f"# From {path}, a released ViTAS file. Of its keys, these have no effect here:")
    for line in found.explain_without_effect():
        print(f"#   {line}")
    print(yaml.safe_dump(found.data, sort_keys=False, default_flow_style=None, width=120), end="")
