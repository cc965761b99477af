"""`vitas status`: how far runs are, and what stopped them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click
from rich import box
from rich.table import Table

from vitas.cli.options import PATH, command, json_option, print_json, wide_console
from vitas.run import RunFolder
from vitas.status import DONE, NOT_STARTED, StageStatus, Status, read_status


@command("vitas status runs/vitas_1g", "vitas status runs/* --json", "watch -n 60 vitas status runs/vitas_1g")
@click.argument("save_paths", nargs=-1, required=True, type=PATH, metavar="SAVE_PATH...")
@json_option
def status(save_paths: tuple[Path, ...], as_json: bool) -> None:
    """Show how far runs are: stages, progress, time left, best score, Slurm job, last error.

    Reads the run's files alone, and asks Slurm for its job where there is one. The best score of `sample` is on val
    images, with the supernet's weights; that of `test` is the result.
    """
    found = [read_status(RunFolder(path)) for path in save_paths]
    if as_json:
        print_json([each.to_dict() for each in found])
        return
    console = wide_console(100)
    for each in found:
        console.print(_head(each), highlight=False, markup=False, soft_wrap=True)
        table = Table(box=box.SIMPLE, show_header=bool(each.stages))
        for column in ("stage", "state", "progress", "left", "best top-1"):
            table.add_column(column, justify="left" if column in ("stage", "state") else "right", no_wrap=True)
        for stage in each.stages:
            table.add_row(stage.name, stage.state, *_progress(stage))
        console.print(table)
        if each.error:
            console.print(f"last error: {each.error}", highlight=False, markup=False, soft_wrap=True)


def _head(each: Status) -> str:
    job = f"Slurm job {each.job}" + (f" ({each.job_state})" if each.job_state else "") if each.job else None
    writer = f"written by {each.writer}" if each.writer else "nothing runs"
    return "; ".join(part for part in (each.save_path, job, writer) if part)


def _progress(stage: StageStatus) -> tuple[str, str, str]:
    if stage.state == NOT_STARTED:
        return "", "", ""
    left = "" if stage.seconds_left is None else str(timedelta(seconds=round(stage.seconds_left)))
    progress = f"{stage.done:g} / {stage.total:g} {stage.unit}" if stage.total and stage.state != DONE else ""
    return progress, left, "" if stage.best is None else f"{stage.best:.2f}"
