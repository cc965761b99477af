"""The figures of docs/experiments.md, from `results/`.

    python bench/quality/plots.py

Rewrites `docs/search_ranking_SCALE.png` (what supernets say of the table's networks against what they reach alone),
`docs/search_evaluations.png` (the best score over the evaluations) and `docs/search_found.png` (what was found, beside
its baselines).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from compare import seeds_of
from matplotlib.figure import Figure
from ranking import Table, supernet_scores, tau
from setting import results
from supernets import DEFAULT

from vitas import Architecture

# Of which settings a figure is.
RANKED, SEARCHED = ("fashion_2.7M", "fashion_1M"), "fashion_1M"
DOCS = Path(__file__).resolve().parents[2] / "docs"
# Told apart by colour-blind readers too (Okabe and Ito), and by their markers.
PATCHES = {4: ("#0072B2", "o"), 7: ("#D55E00", "^")}
METHODS = {
    "evolution": "#D55E00",
    "evolution, population 20": "#E69F00",
    "evolution, race": "#56B4E9",
    "evolution, prior": "#009E73",
    "evolution, prescreen": "#CC79A7",
    "regularised": "#0072B2",
    "random": "#555555",
}


def plot_ranking(setting: str, path: Path) -> None:
    """Top-1 of every network of the table over its parameters, and over its mean score by supernets of two variants."""
    table, scores = Table(setting), supernet_scores(setting)
    published, default = "ordinal, published, 12 epochs", DEFAULT
    if not scores.get((default, "loss")):
        # Not every setting has the last one.
        default = default.removesuffix(", complementary")
    panels = {"parameters, thousands": {text: 1e-3 * n for text, n in table.floors()["parameters"].items()}}
    for label, variant in (("published draw", published), ("drawn in the budget", default)):
        if seeds := scores.get((variant, "loss")):
            of = [text for text in table.truth if all(text in ranking for ranking in seeds.values())]
            panels[f"loss by a supernet, {label}"] = {
                text: float(np.mean([-ranking[text] for ranking in seeds.values()])) for text in of
            }
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for panel, (label, values) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for patch, (color, marker) in PATCHES.items():
            of = [text for text in values if Architecture.parse(text).patch_size == patch]
            x, y = [values[text] for text in of], [table.truth[text] for text in of]
            panel.scatter(x, y, s=22, color=color, marker=marker, label=f"patch {patch}")
        # More parameters, but less loss, should be better.
        sign = -1 if "loss" in label else 1
        better = {text: sign * value for text, value in values.items()}
        taus = [f"{name} {tau(better, table.truth, of):.2f}" for name, of in table.groups().items()]
        panel.set_title(f"Kendall's tau: {', '.join(taus[:2])},\n{', '.join(taus[2:])}", fontsize=9)
        panel.set_xlabel(label)
        if "loss" in label:
            # The better, the further right.
            panel.invert_xaxis()
    figure.axes[0].set_ylabel("top-1 trained alone, %")
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


def plot_evaluations(path: Path) -> None:
    """How far the best score is from the best that any method found with the same supernet, over the evaluations."""
    lines = [line for line in results(SEARCHED, "searches").lines if line["variant"] == DEFAULT]
    best_of_all: dict[int, float] = defaultdict(lambda: np.inf)
    for line in lines:
        best_of_all[line["seed"]] = min(best_of_all[line["seed"]], line["best"][-1])
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    panel = figure.subplots()
    for method, color in METHODS.items():
        curves = [np.array(line["best"]) - best_of_all[line["seed"]] for line in lines if line["method"] == method]
        if not curves:
            continue
        # Of a race only some are scored in full.
        length = min(map(len, curves))
        curve = np.array([one[:length] for one in curves])
        mean, error = curve.mean(axis=0), curve.std(axis=0) / np.sqrt(len(curve))
        x = np.arange(1, length + 1)
        panel.plot(x, mean, color=color, label=f"{method} ({len(curve)})")
        panel.fill_between(x, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
    panel.set(xlabel="architectures scored", ylabel="loss above the best", xlim=(20, None), ylim=(0, 0.04))
    panel.legend()
    figure.savefig(path, dpi=110)


def plot_found(path: Path) -> None:
    """Test top-1 of the table's networks, of DeiT-shaped ones, and of what searches found, each a mean of trainings."""
    trained: dict[str, dict[int, float]] = defaultdict(dict)
    for line in results(SEARCHED, "retrained").lines:
        trained[line["architecture"]][line["seed"]] = line["test_top1"]
    found = [line for line in results(SEARCHED, "searches").lines if line["variant"] == DEFAULT]
    searched = {line["architecture"] for line in found}
    supernets = {line["seed"] for line in found}
    groups: dict[str, list[float]] = {"the table": list(Table(SEARCHED).truth.values())}
    # A scale's first budget was another, and what was found in it is none of these.
    parsed = {text: Architecture.parse(text) for text in sorted(trained.keys() - searched)}
    for patch in PATCHES:
        deits = [text for text, a in parsed.items() if a.patch_size == patch and len(set(a.blocks)) == 1]
        groups[f"DeiT-shaped, patch {patch}"] = [float(np.mean(list(trained[text].values()))) for text in deits]
    for method in METHODS:
        means = []
        for line in found:
            own = trained[line["architecture"]]
            if line["method"] == method and (top1s := [own[seed] for seed in seeds_of(line["seed"]) if seed in own]):
                means.append(float(np.mean(top1s)))
        # Methods that were compared find some networks that others find too.
        if len(means) == len(supernets):
            groups[f"found by {method}"] = means
    groups = {name: values for name, values in groups.items() if values}
    figure = Figure(figsize=(7, 0.6 + 0.5 * len(groups)), layout="constrained")
    panel = figure.subplots()
    for row, values in enumerate(groups.values()):
        jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        panel.scatter(values, row + jitter, s=20, color="#0072B2", alpha=0.7)
        panel.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color="#D55E00", linewidth=2)
    panel.set_yticks(range(len(groups)), groups)
    panel.invert_yaxis()
    panel.set_xlabel("test top-1, % (line: mean)")
    figure.savefig(path, dpi=110)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for setting in RANKED:
        plot_ranking(setting, DOCS / f"search_ranking_{setting.removeprefix('fashion_')}.png")
    plot_evaluations(DOCS / "search_evaluations.png")
    plot_found(DOCS / "search_found.png")


if __name__ == "__main__":
    main()
