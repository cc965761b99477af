"""`vitas report`: the page that shows runs."""

from __future__ import annotations

from pathlib import Path

import click

from vitas.cli.options import PATH, command
from vitas.report_page.write import write_report


@command("vitas report runs/vitas_1g", "vitas report runs/a runs/b --output both.html")
@click.argument("save_paths", nargs=-1, required=True, type=PATH, metavar="SAVE_PATH...")
@click.option(
    "--output", type=PATH, metavar="FILE.html", help="By default SAVE_PATH/report.html; of several ./report.html."
)
def report(save_paths: tuple[Path, ...], output: Path | None) -> None:
    """Write the page that shows a run, or several side by side, and print where it is.

    One file that opens without a network. Beside it, in the folder of its name, are its figures as PNG and SVG.
    """
    print(write_report(save_paths, output))
