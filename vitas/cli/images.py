"""`vitas digits` and `vitas fashion`: small sets of real images, as image folders."""

from __future__ import annotations

from pathlib import Path

import click

from vitas.cli.options import PATH, POSITIVE, command
from vitas.data.example_images import FASHION_FOLDER, write_digits, write_fashion


@command("vitas digits runs/digits")
@click.argument("folder", type=PATH)
def digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits to FOLDER as train, val and test image folders."""
    write_digits(folder)


@command("vitas fashion runs/fashion --train 10000 --val 10000")
@click.argument("folder", type=PATH)
@click.option("--train", type=POSITIVE, default=50_000, metavar="N", help="Train images (50,000).")
@click.option(
    "--val", type=POSITIVE, default=10_000, metavar="N", help="Val images (10,000), from the official train images."
)
@click.option(
    "--source",
    type=PATH,
    metavar="FOLDER",
    help=f"Where the four official files are (from Debian's package in {FASHION_FOLDER}; else downloaded).",
)
def fashion(folder: Path, train: int, val: int, source: Path | None) -> None:
    """Write Fashion-MNIST to FOLDER as train, val and test image folders."""
    write_fashion(folder, train, val, source=source)
