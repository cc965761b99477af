"""`vitas describe`: an architecture block by block, with its costs, at the images that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from vitas.architecture import Architecture
from vitas.asvit.genotype import Genotype
from vitas.catalog import AnyArchitecture, find_architectures
from vitas.cli.options import POSITIVE, command, json_option, print_json, wide_console
from vitas.costs import count_parameters
from vitas.drawing import to_text
from vitas.errors import UserError
from vitas.plain_data import read_yaml
from vitas.run import RunFolder
from vitas.run_files import IMAGENET, Images, images_of, read_results, run_of


@command(
    "vitas describe vitas_c",
    "vitas describe runs/vitas_1g                              # all that this run found",
    "vitas describe runs/vitas_1g:subnet_1",
    "vitas describe other.yaml:subnet_2 --image-size 32 --num-classes 10",
    "vitas describe p16-e230-token-h3q432m720x12 --json",
)
@click.argument("what", metavar="WHAT")
@click.option("--image-size", type=POSITIVE, metavar="PIXELS", help="By default that of the run, else 224.")
@click.option("--num-classes", type=POSITIVE, metavar="N", help="By default those of the run, else 1,000.")
@json_option
def describe(what: str, image_size: int | None, num_classes: int | None, as_json: bool) -> None:
    """Show an architecture block by block, with its costs, and drawn to scale.

    WHAT is a name such as vitas_c or deit_tiny; a text such as p16-e230-token-h3q432m720x12; the folder of a run, or
    RUN:NAME; or an architectures.yaml, or FILE:NAME. Of a run, image size and classes are the run's.
    """
    found, run, file = _find(what)
    recorded = images_of(run) if run is not None else None
    known = recorded or IMAGENET
    images = Images(image_size or known.size, num_classes or known.classes)
    if file is not None and recorded is None and not (image_size and num_classes):
        _check_said(file, found, images)
    for architecture in found.values():
        architecture.check_image_size(images.size)
    if as_json:
        print_json([_facts(name, architecture, images) for name, architecture in found.items()])
        return
    console = wide_console(120)
    for name, architecture in found.items():
        size = images.size, images.classes
        if isinstance(architecture, Genotype):
            console.print(_stages_table(name, architecture, *size))
        else:
            console.print(_table(name, architecture, *size))
        console.print(to_text(architecture, console.width), highlight=False, markup=False, soft_wrap=True)
        costs = architecture.costs(images.size, images.classes)
        released = costs["macs_released"]
        console.print(
            f"\n{costs['macs']:,} MACs, {'' if released is None else f'{released:,} in the released convention, '}"
            f"{costs['parameters']:,} parameters at {images.size} x {images.size} with {images.classes:,} classes\n"
            f"{architecture}\n",
            highlight=False,
            soft_wrap=True,
        )


def _find(what: str) -> tuple[dict[str, AnyArchitecture], RunFolder | None, Path | None]:
    """The architectures by name, the run that they are of, and the architectures.yaml that they stand in."""
    path, _, name = what.partition(":")
    if Path(path).is_dir():
        run = RunFolder(Path(path))
        if run.architectures.exists():
            return find_architectures(f"{run.architectures}{f':{name}' if name else ''}"), run, run.architectures
        if run.results.exists() and not name:
            text = read_results(run.results).get("architecture")
            return find_architectures(str(text)), run, None
        raise UserError(f"{run.architectures}: no such file; the stage sample writes it")
    if not path.endswith((".yaml", ".yml")):
        return find_architectures(what), None, None
    return find_architectures(what), run_of(Path(path)), Path(path)


def _check_said(file: Path, found: Mapping[str, AnyArchitecture], images: Images) -> None:
    """Raise `UserError` where a file says other costs than the architectures have at these images."""
    data = read_yaml(file)
    rows = data.get("architectures") if isinstance(data, Mapping) else None
    for row in rows or ():
        if str(row["name"]) in found and isinstance(said := row.get("macs"), int):
            architecture = found[str(row["name"])]
            # It may not even fit such images.
            architecture.check_image_size(images.size)
            macs = architecture.macs(images.size, images.classes)
            if macs != said:
                raise UserError(
                    f"{file} says {said:,} MACs for {row['name']}, which has {macs:,} at {images.size} x {images.size} "
                    f"with {images.classes:,} classes; give --image-size and --num-classes, or the file in its run"
                )


def _facts(name: str, architecture: AnyArchitecture, images: Images) -> dict[str, Any]:
    return {
        "name": name,
        "text": str(architecture),
        "image_size": images.size,
        "num_classes": images.classes,
        **architecture.costs(images.size, images.classes),
        "depth": architecture.depth,
        "architecture": architecture.to_dict(),
    }


def _table(name: str, architecture: Architecture, image_size: int, num_classes: int) -> Table:
    total_macs = architecture.macs(image_size, num_classes)
    total_parameters = architecture.parameters(image_size, num_classes)
    table = Table(title=name, title_justify="left", box=box.SIMPLE)
    for column in ("part", "heads", "qkv", "MLP", "MACs", "%", "parameters"):
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)

    def row(part: str, dims: tuple[object, ...], macs: int, parameters: int) -> None:
        table.add_row(part, *map(str, dims), f"{macs:,}", f"{100 * macs / total_macs:.1f}", f"{parameters:,}")

    dim, patch = architecture.embed_dim, architecture.patch_size
    patches = (image_size // patch) ** 2
    nothing = ("", "", "")
    head_macs, head_parameters = dim * num_classes, dim * num_classes + num_classes
    row(
        f"{patches} patches {patch}x{patch}, dim {dim}",
        nothing,
        3 * dim * patch**2 * patches,
        count_parameters(patch, dim, 0, 0, 0, image_size, num_classes, architecture.prefix_tokens)
        - head_parameters
        - 2 * dim,
    )
    for i, block in enumerate(architecture.blocks, start=1):
        if block.is_identity:
            row(f"block {i}: identity", nothing, 0, 0)
            continue
        alone = replace(architecture, blocks=(block,))
        empty = replace(architecture, blocks=())
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
