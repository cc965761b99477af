"""`vitas zoo`: the published architectures side by side."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.table import Table

from vitas.asvit.genotype import STEM_STRIDE, Genotype
from vitas.catalog import PUBLISHED_ACCURACY, AnyArchitecture
from vitas.catalog import zoo as published
from vitas.cli.options import POSITIVE, command, json_option, print_json, wide_console


@command("vitas zoo", "vitas zoo --measure --batch-size 64", "vitas zoo --json")
@click.option("--measure", is_flag=True, help="Their speed on this machine too, some seconds each.")
@click.option("--batch-size", type=POSITIVE, metavar="N", help="Of --measure: 256 on a GPU, else 8.")
@json_option
def zoo(measure: bool, batch_size: int | None, as_json: bool) -> None:
    """Show the published architectures side by side: their costs, their accuracies as published."""
    table = Table(box=box.SIMPLE)
    table.add_column("network", no_wrap=True)
    columns = ["patch", "dim", "depth", "heads", "GMACs", "released", "M params", "top-1", "top-5"]
    for column in [*columns, *(["images/s"] if measure else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    console = wide_console(110)
    speeds: dict[str, float] = {}
    where = ""
    if measure and as_json:
        speeds, where = _speeds(published(), batch_size)
    elif measure:
        with console.status("measuring"):
            speeds, where = _speeds(published(), batch_size)
    if as_json:
        networks = [_facts(name, network, speeds.get(name)) for name, network in published().items()]
        print_json({"image_size": 224, "num_classes": 1000, "measured_on": where or None, "networks": networks})
        return
    for name, architecture in published().items():
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


def _facts(name: str, architecture: AnyArchitecture, speed: float | None) -> dict[str, Any]:
    top1, top5 = PUBLISHED_ACCURACY[name]
    facts = {"name": name, "text": str(architecture), **architecture.costs(), "top1": top1, "top5": top5}
    return facts if speed is None else facts | {"images_per_second": speed}


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
