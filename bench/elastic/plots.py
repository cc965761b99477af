"""The figure of docs/experiments.md: test top-1 over multiply-adds, of each way from a pretrained network.

python bench/elastic/plots.py
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from setting import BUDGETS, MACS, results

DOCS = Path(__file__).parents[2] / "docs"
# The network itself, on the test images.
WHOLE = 89.49
STYLES = {
    "elastic, fine-tuned": ("C0", "-", "o"),
    "elastic, inherited": ("C0", ":", "o"),
    "pruned, teacher": ("C1", "-", "s"),
    "Torch-Pruning, teacher": ("C2", "-", "^"),
    "pruned": ("C1", ":", "s"),
    "Torch-Pruning": ("C2", ":", "^"),
    "scratch": ("C7", "-", "x"),
}


def main() -> None:
    found: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in results("compare").lines:
        found[line["method"]][line["budget"]].append((line["macs"], line["test_top1"]))
    figure, axes = plt.subplots(figsize=(8.5, 4.5))
    for method, (colour, line, marker) in STYLES.items():
        if method not in found:
            continue
        by_budget = [found[method][budget] for budget in BUDGETS if budget in found[method]]
        points = [np.mean(pairs, axis=0) for pairs in by_budget]
        spread = [np.std([top1 for _, top1 in pairs], ddof=1) for pairs in by_budget if len(pairs) > 1]
        x, y = zip(*((macs / 1e6, top1) for macs, top1 in points), strict=True)
        bars = spread if len(spread) == len(points) else None
        axes.errorbar(x, y, bars, color=colour, linestyle=line, marker=marker, capsize=3, label=method)
    axes.axhline(WHOLE, color="black", linewidth=0.8)
    axes.text(1.42, WHOLE - 0.25, f"the network itself, {MACS / 1e6:.1f}M", fontsize=8)
    axes.set_xlabel("multiply-adds of an image, millions")
    axes.set_ylabel("test top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(DOCS / "elastic_found.png", dpi=130)


if __name__ == "__main__":
    main()
