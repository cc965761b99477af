"""The command `vitas`: everything that is no stage, as subcommands.

What takes seconds to import (torch, timm) is imported by the commands that need it.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from vitas.errors import UserError, exit_on_user_error
from vitas.files import RunFolder, read_yaml
from vitas.space import Architecture, check_patch_size, counts
from vitas.space.found import read_found


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
    describe_parser.add_argument("--image-size", type=_positive, default=224, metavar="PIXELS")
    describe_parser.add_argument("--num-classes", type=_positive, default=1000, metavar="N")
    describe_parser.set_defaults(run=lambda args: describe(args.architecture, args.image_size, args.num_classes))

    digits_parser = commands.add_parser("digits", help="write scikit-learn's digits as train/val/test image folders")
    digits_parser.add_argument("folder", type=Path)
    digits_parser.set_defaults(run=lambda args: digits(args.folder))

    compare_parser = commands.add_parser("compare", help="show the results of runs side by side")
    compare_parser.add_argument("save_paths", nargs="+", type=Path, metavar="SAVE_PATH")
    compare_parser.set_defaults(run=lambda args: compare(args.save_paths))

    _add_launch(commands)

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


def _add_launch(commands) -> None:
    parser = commands.add_parser(
        "launch",
        help="run a stage, or all of them, as Slurm jobs",
        description="Submit a stage as a Slurm job, which requeues itself until the stage is done. What is not given "
        "here comes from configs/cluster.yaml, and then from what the partition has.",
    )
    parser.add_argument("stage", choices=("search", "sample", "retrain", "test"))
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG [key=value ...]",
        help="a YAML file, or a name in configs/; then what to set in it, as search.epochs=10",
    )
    # For scripts that have a CONFIG of their own.
    parser.add_argument("--default", help=argparse.SUPPRESS)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--chain",
        action="store_true",
        help="this stage and all flagged ones after it, each when the one before is done",
    )
    how.add_argument("--local", action="store_true", help="as processes of this machine, in the foreground")
    how.add_argument("--dry-run", action="store_true", help="print the sbatch file, and submit nothing")
    how.add_argument(
        "--follow", action="store_true", help="print the job's log until it ends (Ctrl-C leaves the job running)"
    )
    asked = parser.add_argument_group("asked of Slurm (names as in sbatch)")
    asked.add_argument("-p", "--partition")
    asked.add_argument("-A", "--account")
    asked.add_argument("-q", "--qos")
    asked.add_argument("-C", "--constraint")
    asked.add_argument("--reservation")
    asked.add_argument("-N", "--nodes", type=_positive)
    asked.add_argument("--gpus-per-node", type=_natural, metavar="N", help="0 for none")
    asked.add_argument("--gpu-type", metavar="TYPE", help="where the nodes have several")
    asked.add_argument("--gres", metavar="gpu:[TYPE:]N", type=_gres, help="the two above in one")
    asked.add_argument(
        "--tasks-per-node",
        "--ntasks-per-node",
        type=_positive,
        metavar="N",
        help="processes; one for each GPU without it",
    )
    asked.add_argument("-c", "--cpus-per-task", type=_positive, metavar="N")
    asked.add_argument("--mem", help="of a node, as 64G")
    asked.add_argument("-t", "--time", help="limit; a job that needs longer is requeued")
    asked.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=VALUE", help="any other option of sbatch; repeatable"
    )
    asked.add_argument("--max-requeues", type=_natural, metavar="N", help="of one job, before it is left to you")
    asked.add_argument(
        "--stop-margin", type=_positive, metavar="SECONDS", help="before the time limit, to stop and requeue in"
    )
    parser.set_defaults(run=launch)


def launch(arguments: argparse.Namespace) -> int:
    """Submit, run here or show what the arguments of `vitas launch` ask for; the exit code."""
    from vitas import config as configuration
    from vitas import slurm
    from vitas.checkpoint import CheckpointFolder
    from vitas.launch.cluster import Cluster, load_cluster
    from vitas.launch.configs import find_config
    from vitas.launch.local import run_locally
    from vitas.launch.submission import PROGRAM_OF, StageJob, follow, sbatch_file, submit

    given = {name: getattr(arguments, name) for name in Cluster.model_fields if name != "sbatch"}
    if arguments.gres:
        given["gpu_type"], given["gpus_per_node"] = arguments.gres
    cluster = load_cluster(given=given | {"sbatch": dict(map(_option, arguments.sbatch))})
    words = list(arguments.words)
    if not words or ("=" in words[0] and not Path(words[0]).exists()):
        if arguments.default is None:
            raise UserError("CONFIG is missing: a YAML file, or a name in configs/")
        words.insert(0, arguments.default)
    name, *given_keys = words
    path = find_config(name, PROGRAM_OF[arguments.stage])
    if not (arguments.local or arguments.dry_run or slurm.installed()):
        raise UserError("no Slurm here (sbatch is not on PATH); add --local to run on this machine")
    stages = tuple(PROGRAM_OF)
    later = stages[stages.index(arguments.stage) + 1 :] if arguments.chain else ()
    overrides = (*given_keys, f"{arguments.stage}.flag=true")
    config = configuration.load(path, overrides, (arguments.stage, *later))
    # The first stage's job would fail at once without the checkpoint that it reads.
    if arguments.stage == "sample":
        CheckpointFolder(config.folder.checkpoints("search")).resolve(config.sample.load_name)
    elif arguments.stage == "test" and config.test.start is None:
        CheckpointFolder(config.folder.checkpoints("retrain")).resolve(config.test.load_name)
    stages = (arguments.stage, *(name for name in later if (section := getattr(config, name)) and section.flag))
    jobs = [StageJob((stage,), path, tuple(given_keys), config.folder.root, cluster) for stage in stages]
    if arguments.dry_run:
        for job in jobs:
            print(sbatch_file(job))
        return 0
    if arguments.local:
        for job in jobs:
            # configs/cluster.yaml speaks of the cluster's nodes, not of this machine.
            processes = arguments.tasks_per_node or given["gpus_per_node"]
            code = run_locally(job.program, path, job.arguments, processes)
            if code:
                return code
        return 0
    submitted = []
    for job in jobs:
        submitted.append(submit(job, after=submitted[-1] if submitted else None))
        after = f", after job {submitted[-2].id}" if len(submitted) > 1 else ""
        print(f"{job.stages[0]}: submitted job {submitted[-1].id}{after}; its log will be {submitted[-1].log}")
    if not arguments.follow:
        print(f"follow it: tail -F {submitted[0].log}")
        print(f"stop it:   scancel {' '.join(each.id for each in submitted)}")
        return 0
    try:
        return 0 if all(follow(each) for each in submitted) else 1
    except KeyboardInterrupt:
        print(f"no longer following; the jobs go on: {' '.join(each.id for each in submitted)}")
        return 0


def cluster_options() -> None:
    """Print the options of sbatch that configs/cluster.yaml sets."""
    from vitas.launch.cluster import load_cluster, sbatch_options

    print(shlex.join(sbatch_options(load_cluster())))


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.lstrip("-").partition("=")
    return name, value if equals else True


def _gres(text: str) -> tuple[str | None, int]:
    match = re.fullmatch(r"gpu:(?:([^:]+):)?(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must read gpu:N or gpu:TYPE:N (for others, see --sbatch)")
    return match[1], int(match[2])


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number")
    return int(text)


def digits(folder: Path) -> None:
    """Write scikit-learn's digits to image folders."""
    from vitas.data.digits import write_digits

    write_digits(folder)


def describe(name_or_file: str, image_size: int, num_classes: int) -> None:
    """Print an architecture, or each one of a file, block by block with its costs."""
    console = _wide_console()
    for name, architecture in architectures_of(name_or_file).items():
        check_patch_size(architecture.patch_size, image_size)
        console.print(_table(name, architecture, image_size, num_classes))
        size = (image_size, num_classes)
        console.print(
            f"{architecture.macs(*size):,} MACs, {architecture.macs(*size, 'released'):,} in the released convention, "
            f"{architecture.parameters(*size):,} parameters\n{architecture}\n",
            highlight=False,
            soft_wrap=True,
        )


def architectures_of(name_or_file: str) -> dict[str, Architecture]:
    """What a NAME_OR_FILE names: a zoo name, a canonical text, FILE.yaml or FILE.yaml:NAME."""
    path, _, entry = name_or_file.partition(":")
    if not path.endswith((".yaml", ".yml")):
        from vitas.models.zoo import resolve_architecture

        return {name_or_file: resolve_architecture(name_or_file)}
    data = read_yaml(Path(path))
    if isinstance(data, dict) and "blocks" in data:
        return {path: Architecture.from_dict(data)}
    found = read_found(Path(path))
    if not entry:
        return found
    if entry not in found:
        raise UserError(f"{path} holds no {entry!r}; it holds {', '.join(found)}")
    return {entry: found[entry]}


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
            *(f"{results[key]:,}" for key in ("macs", "macs_released", "parameters")),
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


def _wide_console() -> Console:
    """A console that shows every number whole: 100 columns at least, also in a pipe, which has 80 for rich."""
    return Console(width=max(100, Console().width))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must be a whole number above 0")
    return int(text)
