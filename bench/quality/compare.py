"""Are the networks that the search found better than those one would have picked without it?

    OMP_NUM_THREADS=1 python bench/quality/compare.py FOLDER [--variant TEXT] [--methods NAME ...]

Trains what `searches.py` found, and DeiT-shaped networks at the same budget, alone with three seeds each, by the recipe
of the table; a line a training goes to `results/retrained.jsonl`. Then prints each method beside the baselines: the
mean test top-1 over the supernets' seeds, its 95% interval, and the p value of a one-sided paired t test that it beats
the baseline. Networks are chosen by their val images alone, and compared by the test images.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from ranking import Table
from scipy import stats
from searches import METHODS
from searches import RESULTS as SEARCHES
from setting import BUDGET, SPACE, write_images
from table import RESULTS as TABLE
from table import train_and_measure

from vitas import Architecture, Block
from vitas.files import Journal

RESULTS = Path(__file__).parent / "results" / "retrained.jsonl"
# Others than those of the table, whose networks may be found again.
SEEDS = (10, 11, 12)
DEIT_DEPTHS = (4, 6, 8, 12)


def deit_shaped(patch_size: int, depth: int) -> Architecture:
    """The widest network with DeiT's proportions inside the budget: equal blocks, qkv dim 3 d, MLP dim 4 d, 2 heads."""

    def of_dim(dim: int) -> Architecture:
        return Architecture(patch_size, dim, (Block(2, 3 * dim, 4 * dim),) * depth)

    fitting = [dim for dim in range(4, 200, 4) if of_dim(dim).macs(28, 10) <= BUDGET["maximum"]]
    return of_dim(fitting[-1])


def baselines() -> dict[str, Architecture]:
    """DeiT-shaped networks by name."""
    return {
        f"DeiT-shaped, patch {patch}, {depth} blocks": deit_shaped(patch, depth)
        for patch in SPACE["patch_sizes"]
        for depth in DEIT_DEPTHS
    }


def best_of(count: int, val: np.ndarray, test: np.ndarray) -> float:
    """The expected test top-1 of the best by val images among so many random networks of the table."""
    rng = np.random.default_rng(0)
    drawn = np.array([rng.choice(len(val), count, replace=False) for _ in range(5000)])
    return float(test[drawn[np.arange(len(drawn)), val[drawn].argmax(axis=1)]].mean())


def report(found: dict[str, dict[int, str]], lines: list[dict]) -> None:
    """Print the comparison. found: method -> supernet's seed -> architecture."""
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for part in ("val", "test"):
            measured[line["architecture"]][part].append(line[f"{part}_top1"])

    def mean(architecture: str, part: str = "test") -> float:
        return float(np.mean(measured[architecture][part]))

    deit = {name: str(a) for name, a in baselines().items() if str(a) in measured}
    values: dict[str, float] = {}
    if deit:
        best = max(deit, key=lambda name: mean(deit[name], "val"))
        values[f"{best} (best of {len(deit)})"] = mean(deit[best])
    # One training of each, as somebody would have who tried a few.
    of_table = [line for line in Journal(TABLE).lines if line["seed"] == 0]
    val, test = (np.array([line[f"{part}_top1"] for line in of_table]) for part in ("val", "test"))
    values["median of the table"] = float(np.median(test))
    values |= {f"best of {k} of the table": best_of(k, val, test) for k in (3, 10)}
    truth = np.array(list(Table().truth.values()))
    print("| found by | mean test top-1 | 95% interval | share of the table above | " + " | ".join(values) + " |")
    print("|---|--:|--:|--:|" + "--:|" * len(values))
    print("| | | | | " + " | ".join(f"{value:.2f}" for value in values.values()) + " |")
    for method, by_seed in found.items():
        own = np.array([mean(architecture) for architecture in by_seed.values() if architecture in measured])
        if len(own) < 2:
            continue
        half = stats.t.ppf(0.975, len(own) - 1) * stats.sem(own)
        cells = []
        for value in values.values():
            test_of = stats.ttest_1samp(own, value, alternative="greater")
            cells.append(f"{own.mean() - value:+.2f}, p {test_of.pvalue:.3f}")
        above = f"{(truth > own.mean()).mean():.0%}"
        print(f"| {method} ({len(own)}) | {own.mean():.2f} | ± {half:.2f} | {above} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images and trainings go")
    parser.add_argument("--variant", default="ordinal, in_budget, 12 epochs, bias 1.5", metavar="TEXT")
    parser.add_argument("--methods", nargs="+", default=["evolution", "random"], choices=METHODS, metavar="NAME")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    write_images(arguments.folder)
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for line in Journal(SEARCHES).lines:
        if line["variant"] == arguments.variant and line["method"] in arguments.methods:
            found[line["method"]][line["seed"]] = line["architecture"]
    of_searches = (architecture for by_seed in found.values() for architecture in by_seed.values())
    wanted = dict.fromkeys([*of_searches, *map(str, baselines().values())])
    journal = Journal(RESULTS)
    known = {(line["architecture"], line["seed"]) for line in journal.lines}
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        units = [(text, seed) for seed in SEEDS for text in wanted if (text, seed) not in known]
        futures = [pool.submit(train_and_measure, arguments.folder, Architecture.parse(t), seed) for t, seed in units]
        for future in as_completed(futures):
            journal.append(future.result())
    report(found, journal.lines)


if __name__ == "__main__":
    main()
