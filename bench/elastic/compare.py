"""What is the best network of a budget that one gets from a pretrained one?

    OMP_NUM_THREADS=1 python bench/elastic/compare.py FOLDER [--seeds 0 1 2] [--methods NAME ...] [--processes 2]

For each seed and budget: the recommended search from scratch; one-shot pruning and Torch-Pruning (isomorphic), both
fine-tuned without and with the pretrained network as teacher; the elastic supernet's subnets, with the weights that
they have and fine-tuned. All have the same compute after the pretraining: that of 48 epochs of a network of the budget.
A line a network goes to `results/compare.jsonl`; killed and started again, it goes on. Then prints, for each budget,
the mean test top-1 of each method, and how much more the fine-tuned elastic networks have, with the 95% interval of
the paired difference over the seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
from methods import UNITS
from scipy import stats
from setting import BUDGETS, Setting, argument_parser, results

BEST = "elastic, fine-tuned"
INHERITED = "elastic, inherited"


def run(setting: Setting, unit: str) -> list[dict]:
    """The lines of a unit of `methods.UNITS`."""
    return [{"unit": unit, "seed": setting.seed} | line for line in UNITS[unit](setting)]


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> str:
    """The mean difference of two methods over the seeds that both have, with its 95% interval; by pairs of a seed."""
    pairs = np.array([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])
    if len(pairs) < 2:
        return f"{pairs.mean():+.2f}" if len(pairs) else ""
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs)
    return f"{pairs.mean():+.2f} ± {half:.2f} ({(pairs > 0).sum()} of {len(pairs)})"


def report(lines: Sequence[Mapping]) -> None:
    """Print the table of the lines of a comparison."""
    top1: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        top1[line["method"]][line["budget"]][line["seed"]] = line["test_top1"]
    print("| | " + " | ".join(f"{name} | elastic has more by" for name in BUDGETS) + " |")
    print("|---|" + "--:|--:|" * len(BUDGETS))
    for method in list(top1):
        cells = []
        for budget in BUDGETS:
            values = top1[method][budget]
            spread = f" ± {np.std(list(values.values()), ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(list(values.values())):.2f}{spread}" if values else "")
            cells.append("" if method == BEST else difference(top1[BEST][budget], values))
        print(f"| {method} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(UNITS), choices=UNITS, metavar="NAME")
    arguments = parser.parse_args()
    journal = results("compare")
    known = {(line["unit"], line["seed"]) for line in journal.lines}
    settings = {seed: Setting(arguments.folder, seed) for seed in arguments.seeds}
    for setting in settings.values():
        setting.write_images()
    print(f"starts from {settings[arguments.seeds[0]].pretrained}")
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        # The longest first.
        units = [(seed, unit) for unit in arguments.methods for seed in arguments.seeds if (unit, seed) not in known]
        futures = {pool.submit(run, settings[seed], unit): (seed, unit) for seed, unit in units}
        for future in as_completed(futures):
            journal.append(*future.result())
            print("seed {}: {} is done".format(*futures[future]), flush=True)
    report(journal.lines)


if __name__ == "__main__":
    main()
