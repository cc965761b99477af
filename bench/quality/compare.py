"""Are the networks that the search found better than those one would have picked without it?

    OMP_NUM_THREADS=1 python bench/quality/compare.py FOLDER [--variants TEXT ...] [--methods NAME ...]

Trains what `searches.py` found alone, by the recipe of the table, with three seeds for each seed of a supernet, and
with the same seeds the best DeiT-shaped network at the same budget: of every patch size and four depths, the best by
the val images. A line a training goes to `results/SETTING/retrained.jsonl`. Then prints each method beside every
baseline: the mean difference of test top-1 over the supernets, its 95% interval, the p value of a one-sided paired t
test that it is above 0, and in how many of the trainings what was found is better. Networks are chosen by val images
alone, and compared by test images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context

import numpy as np
from ranking import Table
from scipy import stats
from searches import METHODS
from setting import Scale, Setting, argument_parser
from supernets import DEFAULT
from table import train_and_measure

from vitas import Architecture, Block

# Trainings of an architecture for each supernet; their seeds are others than the table's, whose networks may be found.
TRAININGS = 3
FIRST_SEED = 100
DEIT_DEPTHS = (4, 6, 8, 12)
# What somebody would have who drew so many networks of the budget, trained them all, and took the best.
BEST_OF = (3, 10, 30)

# (architecture, seed) of a training.
Unit = tuple[str, int]


def deit_shaped(patch_size: int, depth: int, scale: Scale) -> Architecture:
    """The widest network with DeiT's proportions inside the budget: equal blocks, qkv dim 3 d, MLP dim 4 d, 2 heads."""

    def of_dim(dim: int) -> Architecture:
        return Architecture(patch_size, dim, (Block(2, 3 * dim, 4 * dim),) * depth)

    fitting = [dim for dim in range(4, 200, 2) if of_dim(dim).macs(28, 10) <= scale.maximum]
    return of_dim(fitting[-1])


def seeds_of(supernet: int) -> list[int]:
    """The seeds of the trainings that belong to a supernet."""
    return [FIRST_SEED + TRAININGS * supernet + i for i in range(TRAININGS)]


class Trainings:
    """Trains architectures alone, side by side; what was trained is not trained again."""

    def __init__(self, setting: Setting, processes: int) -> None:
        self._setting, self._processes, self._journal = setting, processes, setting.journal("retrained")

    @property
    def lines(self) -> dict[Unit, dict]:
        return {(line["architecture"], line["seed"]): line for line in self._journal.lines}

    def train(self, units: Iterable[Unit]) -> None:
        missing = [unit for unit in dict.fromkeys(units) if unit not in self.lines]
        # Spawned: torch's threads do not survive a fork.
        with ProcessPoolExecutor(self._processes, mp_context=get_context("spawn")) as pool:
            futures = [
                pool.submit(train_and_measure, self._setting, Architecture.parse(text), seed) for text, seed in missing
            ]
            for future in as_completed(futures):
                self._journal.append(future.result())


def best_of(count: int, table: list[dict], seed: int = 0) -> float:
    """The expected test top-1 of the best by val images among so many random networks of the table."""
    val, test = (np.array([line[f"{part}_top1"] for line in table]) for part in ("val", "test"))
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(np.arange(len(val)), (2000, 1)), axis=1)[:, :count]
    return float(test[drawn[np.arange(len(drawn)), val[drawn].argmax(axis=1)]].mean())


def median(table: list[dict], seed: int = 0) -> float:
    """The median test top-1 of the table."""
    return float(np.median([line["test_top1"] for line in table]))


def half_interval(statistic: Callable[..., float], table: list[dict]) -> float:
    """Half of the 95% interval of a statistic of the table, by drawing its networks with replacement."""
    rng = np.random.default_rng(0)
    drawn = [statistic([table[i] for i in rng.integers(0, len(table), len(table))], seed=n) for n in range(200)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(high - low) / 2


def report(found: Mapping[str, Mapping[int, str]], deit: str, lines: Mapping[Unit, dict], table: list[dict]) -> None:
    """Print what searches found beside every baseline: mean test top-1, and how much more the searches' networks have.

    found: method -> supernet's seed -> architecture. table: lines of the table of truth, of one seed; may be empty.
    """
    supernets = sorted({seed for by_seed in found.values() for seed in by_seed})
    named = {f"DeiT-shaped ({deit})": dict.fromkeys(supernets, deit), **found}
    # Of each, the trainings that belong to each supernet; a comparison that is not finished has fewer.
    trained: dict[str, dict[int, dict[int, float]]] = {
        name: {
            supernet: {seed: lines[text, seed]["test_top1"] for seed in seeds_of(supernet) if (text, seed) in lines}
            for supernet, text in by_supernet.items()
        }
        for name, by_supernet in named.items()
    }
    print("| | top-1 | " + " | ".join(f"{method} has more by" for method in found) + " |")
    print("|---|--:|" + "--:|" * len(found))
    for name, baseline in trained.items():
        mean = np.mean([top1 for seeds in baseline.values() for top1 in seeds.values()])
        cells = ["" if name == method else difference(trained[method], baseline) for method in found]
        print(f"| {name} | {mean:.2f} | " + " | ".join(cells) + " |")
    if not table:
        return
    statistics: dict[str, Callable[..., float]] = {"median of the table": median}
    statistics |= {f"best of {count} of the table": partial(best_of, count) for count in BEST_OF if count <= len(table)}
    for name, statistic in statistics.items():
        # Taken for a fixed number in the differences; its own interval stands beside it.
        value = statistic(table)
        constant = {supernet: dict.fromkeys(seeds_of(supernet), value) for supernet in supernets}
        cells = [difference(trained[method], constant) for method in found]
        print(f"| {name} | {value:.2f} ± {half_interval(statistic, table):.2f} | " + " | ".join(cells) + " |")


def difference(own: Mapping[int, Mapping[int, float]], other: Mapping[int, Mapping[int, float]]) -> str:
    """Of trainings by supernet and seed: the mean difference over the supernets with its 95% interval, the p value of a
    one-sided paired t test, and in how many pairs of trainings the first is better.
    """
    pairs = {
        supernet: [top1 - other[supernet][seed] for seed, top1 in own[supernet].items() if seed in other[supernet]]
        for supernet in own.keys() & other.keys()
    }
    means = np.array([np.mean(values) for values in pairs.values() if values])
    if len(means) < 2:
        return ""
    half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
    p = stats.ttest_1samp(means, 0, alternative="greater").pvalue
    of_trainings = np.concatenate(list(pairs.values()))
    return f"{means.mean():+.2f} ± {half:.2f}, p {p:.3f}, {(of_trainings > 0).sum()} of {len(of_trainings)}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--variants", nargs="+", default=[DEFAULT], metavar="TEXT", help="of supernets.py")
    parser.add_argument("--methods", nargs="+", default=["evolution", "random"], choices=METHODS, metavar="NAME")
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    trainings = Trainings(setting, arguments.processes)

    scale = setting.scale
    deits = [str(deit_shaped(patch, depth, scale)) for patch in scale.space["patch_sizes"] for depth in DEIT_DEPTHS]
    trainings.train((deit, 0) for deit in deits)
    for deit in deits:
        line = trainings.lines[deit, 0]
        print(f"{deit}: {line['macs']:,} MACs, val {line['val_top1']:.2f}%, test {line['test_top1']:.2f}%")
    deit = max(deits, key=lambda text: trainings.lines[text, 0]["val_top1"])

    found: dict[str, dict[int, str]] = defaultdict(dict)
    for line in setting.journal("searches").lines:
        if line["variant"] in arguments.variants and line["method"] in arguments.methods:
            several = len(arguments.variants) > 1
            name = f"{line['method']} ({line['variant']})" if several else line["method"]
            found[name][line["seed"]] = line["architecture"]
    # The first training of everything, then the second: a part of them is a whole comparison.
    trainings.train(
        (architecture, seeds_of(seed)[i])
        for i in range(TRAININGS)
        for by_seed in found.values()
        for seed, text in by_seed.items()
        for architecture in (text, deit)
    )
    table = [line for line in setting.journal("table").lines if line["seed"] == 0]
    report(found, deit, trainings.lines, table)
    for method, by_seed in found.items():
        mean = np.mean(
            [trainings.lines[text, seed]["test_top1"] for n, text in by_seed.items() for seed in seeds_of(n)]
        )
        if truth := Table(setting.name).truth.values():
            above = sum(top1 > mean for top1 in truth)
            print(f"{method}: {above} of the table's {len(truth)} networks are above its mean")


if __name__ == "__main__":
    main()
