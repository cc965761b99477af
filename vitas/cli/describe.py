"""What the command `vitas` shows of architectures and results, as tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vitas.architecture import Architecture
from vitas.asvit.genotype import STEM_STRIDE, Genotype
from vitas.catalog import PUBLISHED_ACCURACY, AnyArchitecture, find_architectures, zoo
from vitas.costs import count_parameters
from vitas.errors import UserError, require_number
from vitas.plain_data import parse_json, read_text
from vitas.run import RunFolder


def describe(name_or_file: str, image_size: int, num_classes: int) -> None:
    """Print an architecture, or each one of a file, block by block with its costs."""
    console = _wide_console(120)
    for name, architecture in find_architectures(name_or_file).items():
        architecture.check_image_size(image_size)
        if isinstance(architecture, Genotype):
            console.print(_stages_table(name, architecture, image_size, num_classes))
        else:
            console.print(_table(name, architecture, image_size, num_classes))
        found = architecture.costs(image_size, num_classes)
        released = found["macs_released"]
        console.print(
            f"{found['macs']:,} MACs, {'' if released is None else f'{released:,} in the released convention, '}"
            f"{found['parameters']:,} parameters\n{architecture}\n",
            highlight=False,
            soft_wrap=True,
        )


def show_zoo(measure: bool, batch_size: int | None) -> None:
    """Print the published architectures with their costs and accuracies, and their speed here if asked for."""
    table = Table(box=box.SIMPLE)
    table.add_column("network", no_wrap=True)
    columns = ["patch", "dim", "depth", "heads", "GMACs", "released", "M params", "top-1", "top-5"]
    for column in [*columns, *(["images/s"] if measure else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    console = _wide_console(110)
    speeds: dict[str, float] = {}
    if measure:
        with console.status("measuring"):
            speeds, where = _speeds(zoo(), batch_size)
    for name, architecture in zoo().items():
        released = architecture.costs()["macs_released"]
        top1, top5 = PUBLISHED_ACCURACY[name]
        table.add_row(
            name,
            *_shape(architecture),
            f"{architecture.macs() / 1e9:.3f}",
            "" if released is None else f"{released / 1e9:.3f}",
            f"{architecture.parameters() / 1e6:.2f}",
            f"{top1:.1f}",
            "" if top5 is None else f"{top5:.1f}",
            *([f"{speeds[name]:,.0f}"] if measure else []),
        )
    console.print(table)
    console.print("224 x 224, 1,000 classes. Multiply-adds of an image, true and in the released convention.")
    console.print("Top-1 and top-5 as published, in percent on ImageNet-1k.")
    if measure:
        console.print(where)


def _shape(architecture: AnyArchitecture) -> tuple[str, str, str, str]:
    """Patch size, dim, depth and heads, as the zoo shows them: all values there are, in order."""
    depth = architecture.depth
    if isinstance(architecture, Genotype):
        patch, dims, heads = STEM_STRIDE, architecture.dims, architecture.stage_heads
    else:
        patch, dims = architecture.patch_size, (architecture.embed_dim,)
        heads = tuple(block.heads for block in architecture.active_blocks)
    dim, head = ("/".join(map(str, sorted(set(values)))) for values in (dims, heads))
    return str(patch), dim, str(depth), head


def _speeds(architectures: dict[str, AnyArchitecture], batch_size: int | None) -> tuple[dict[str, float], str]:
    import torch

    from vitas.evaluate import images_per_second
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


def read_results(path: Path) -> dict[str, Any]:
    """The numbers of a results.json. Raises `UserError` where the stage `test` has not written one."""
    if not path.exists():
        raise UserError(f"{path}: no such file; the stage test writes it")
    results = parse_json(read_text(path), str(path))
    keys = ("top1", "top5", "macs", "macs_released", "parameters", "images_per_second")
    missing = [key for key in keys if not isinstance(results, dict) or key not in results]
    if not isinstance(results, dict) or missing:
        raise UserError(f"{path}: has no {missing[0]}; it must be what the stage test writes")
    # Genotypes have no count in the released convention.
    for key in keys:
        if results[key] is not None or key != "macs_released":
            require_number(results[key], f"{path}: {key}")
    return results


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


def _wide_console(columns: int = 100) -> Console:
    """A console that shows every number whole: so many columns at least, also in a pipe, which has 80 for rich."""
    return Console(width=max(columns, Console().width))
