"""The pictures of docs/reading-a-run.md, from the numbers of a run:

python -m bench.reading_a_run SAVE_PATH docs/images
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitas.run import RunFolder

# (title, what is along the bottom, names) of each panel, by picture and stage.
PICTURES: dict[str, tuple[str, list[tuple[str, str, list[str]]]]] = {
    "reading_search": (
        "search",
        [
            ("loss", "epoch", ["train/loss", "panel/loss"]),
            ("learning rate", "epoch", ["train/lr"]),
            ("the panel's mean top-1 (%)", "epoch", ["panel/top1"]),
        ],
    ),
    "reading_sample": (
        "sample",
        [
            ("top-1 (%)", "generation", ["evolution/best_top1", "evolution/mean_top1"]),
            ("hypervolume", "generation", ["evolution/hypervolume"]),
        ],
    ),
    "reading_retrain": (
        "retrain",
        [
            ("loss", "epoch", ["train/loss", "val/loss"]),
            ("val top-1 (%)", "epoch", ["val/top1", "val/raw_top1"]),
        ],
    ),
}
# Of Okabe and Ito, which colour-blind readers tell apart.
COLOURS = ["#0072B2", "#D55E00"]


def series(path: Path, name: str) -> tuple[list[float], list[float]]:
    """A number of a stage over its epochs; of a stage without, over its steps."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == name]
    return [float(row["epoch"] or row["step"]) for row in rows], [float(row["value"]) for row in rows]


def draw(axes: Axes, path: Path, title: str, below: str, names: list[str]) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        axes.plot(*series(path, name), color=colour, label=name, marker="." if "train" not in name else None)
    axes.set(title=title, xlabel=below)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("save_path", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    for picture, (stage, panels) in PICTURES.items():
        figure = Figure(figsize=(3.6 * len(panels), 2.8), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            draw(axes, RunFolder(arguments.save_path).metrics(stage), *panel)
        figure.savefig(arguments.output / f"{picture}.png", dpi=90)


if __name__ == "__main__":
    main()
