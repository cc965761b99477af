"""`vitas compare`: runs side by side, with the intervals of their accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from vitas.catalog import read_found
from vitas.cli.options import PATH, command, json_option, print_json, wide_console
from vitas.errors import UserError, is_integer
from vitas.intervals import wilson
from vitas.run import RunFolder
from vitas.run_files import images_of, read_results
from vitas.status import read_status


@command("vitas compare runs/vitas_1g runs/other", "vitas compare runs/* --json")
@click.argument("save_paths", nargs=-1, required=True, type=PATH, metavar="SAVE_PATH...")
@json_option
def compare(save_paths: tuple[Path, ...], as_json: bool) -> None:
    """Show what `test` measured in each run, and how far the runs are that have no results yet.

    Beside top-1 stands its interval: where the true top-1 lies with 95%, by the number of test images (Wilson). Two
    networks inside each other's interval are not ranked by these images.
    """
    rows = [_facts(path) for path in save_paths]
    if as_json:
        print_json(rows)
        return
    table = Table(box=box.SIMPLE)
    table.add_column("run", overflow="fold")
    for column in ("top-1", "95%", "top-5", "MACs", "released", "parameters", "images/s", "images", "pixels"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        interval = row["top1_interval"]
        speed = row["images_per_second"]
        table.add_row(
            row["run"],
            "" if row["top1"] is None else f"{row['top1']:.2f}",
            "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
            "" if row["top5"] is None else f"{row['top5']:.2f}",
            *("" if row[key] is None else f"{row[key]:,}" for key in ("macs", "macs_released", "parameters")),
            "" if speed is None else f"{speed:,.0f}",
            "" if row["images"] is None else f"{row['images']:,}",
            "" if row["image_size"] is None else str(row["image_size"]),
        )
    console = wide_console(120)
    console.print(table)
    for row in rows:
        if row["top1"] is None:
            architecture = f"; the costs are those of {row['name']}" if row["name"] else ""
            console.print(
                f"{row['run']} has no results yet: {row['state']}{architecture}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _facts(save_path: Path) -> dict[str, Any]:
    """What is known of a run, as plain data. Raises `UserError` for a folder that is not there."""
    if not save_path.is_dir():
        raise UserError(f"{save_path}: no such folder; it must be the save_path of a run")
    folder = RunFolder(save_path)
    images = images_of(folder)
    facts: dict[str, Any] = {"run": str(save_path), "state": "tested", "name": None}
    facts |= dict.fromkeys(_NUMBERS)
    facts |= {"image_size": images and images.size, "num_classes": images and images.classes}
    if folder.results.exists():
        results = read_results(folder.results)
        facts |= {key: results[key] for key in _NUMBERS if key in results}
        count = results.get("images")
        if is_integer(count) and count > 0:
            facts["top1_interval"] = [100 * end for end in wilson(results["top1"] / 100 * count, count)]
        return facts
    facts["state"] = read_status(folder).summary
    if images is not None and folder.architectures.exists():
        name, best = next(iter(read_found(folder.architectures).items()), (None, None))
        if best is not None:
            facts |= {"name": name, **best.costs(images.size, images.classes)}
    return facts


_NUMBERS = ("top1", "top1_interval", "top5", "macs", "macs_released", "parameters", "images_per_second", "images")
