"""How well supernets rank the table of truth, from `results/SETTING/`: Kendall's tau, with floors and ceiling.

    python bench/quality/ranking.py [SETTING] [--places VARIANT]

The truth is an architecture's mean top-1 over its seeds, on the test images; supernets were scored on the val images.
A cell holds the mean tau over the supernets' seeds, their deviation, and the 95% interval of that mean by drawing
architectures with replacement. Beside taus over all architectures and over those of a patch size there is the tau over
the better half of the table, which a search has to tell apart, and what would be picked: the truth of the architecture
that is ranked first, as a mean over the seeds.

The ceiling is between two single trainings; the truth is their mean, so a tau with it may be a little higher.

With --places, it shows instead where a variant's supernets misplace networks: mean places by patch size and embedding
dim, 1 being the best.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau, rankdata
from setting import results

from vitas import Architecture

BOOTSTRAPS = 1000
# With fewer architectures that have both seeds, their tau says nothing.
LEAST_FOR_CEILING = 8
# Of a line of supernets.jsonl: what ranks, and the sign with which more is better.
SCORES = {
    "top1": ("top-1, mean of the sides", 1),
    "loss": ("loss, mean of the sides", -1),
    "sum_loss": ("loss of the summed logits", -1),
    "prior": ("losses of choices in training", -1),
    "adapted_loss": ("loss after adaptation", -1),
}


class Table:
    """The table of truth. truth: mean top-1 over the seeds, by architecture. seeds: top-1 by seed and architecture."""

    def __init__(self, setting: str) -> None:
        lines = results(setting, "table").lines
        self.costs = {line["architecture"]: line for line in lines}
        self.seeds: dict[int, dict[str, float]] = defaultdict(dict)
        for line in lines:
            self.seeds[line["seed"]][line["architecture"]] = line["test_top1"]
        self.truth = {
            text: float(np.mean([top1[text] for top1 in self.seeds.values() if text in top1])) for text in self.costs
        }

    def groups(self) -> dict[str, list[str]]:
        """Architectures by name of the group: all, those of each patch size, and the better half."""
        groups: dict[str, list[str]] = {"all": sorted(self.truth)}
        for text in groups["all"]:
            groups.setdefault(f"patch {Architecture.parse(text).patch_size}", []).append(text)
        best_first = sorted(groups["all"], key=self.truth.__getitem__, reverse=True)
        groups["better half"] = best_first[: len(best_first) // 2]
        return groups

    def floors(self) -> dict[str, dict[str, float]]:
        """What ranks without a supernet: values by name and architecture, more being better."""
        parsed = {text: Architecture.parse(text) for text in self.truth}
        rng = np.random.default_rng(0)
        return {
            "MACs": {text: self.costs[text]["macs"] for text in parsed},
            "parameters": {text: self.costs[text]["parameters"] for text in parsed},
            "depth": {text: a.depth for text, a in parsed.items()},
            "patch size": {text: a.patch_size for text, a in parsed.items()},
            "random": {text: rng.random() for text in parsed},
        }


def tau(first: Mapping[str, float], second: Mapping[str, float], of: Sequence[str]) -> float:
    """Kendall's tau between two rankings of architectures."""
    return float(kendalltau([first[text] for text in of], [second[text] for text in of]).statistic)


def interval(rankings: Sequence[Mapping[str, float]], truth: Mapping[str, float], of: Sequence[str]) -> str:
    """The 95% interval of the mean tau of rankings, by drawing architectures with replacement."""
    rng = np.random.default_rng(0)
    drawn = [[of[i] for i in rng.integers(0, len(of), len(of))] for _ in range(BOOTSTRAPS)]
    means = [np.mean([tau(ranking, truth, some) for ranking in rankings]) for some in drawn]
    low, high = np.nanquantile(means, [0.025, 0.975])
    return f"{low:.2f} to {high:.2f}"


def supernet_scores(setting: str) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """(variant, score) -> seed -> architecture -> value, more being better."""
    scores: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in results(setting, "supernets").lines:
        for name, (_, sign) in SCORES.items():
            if name in line:
                # One supernet for each patch size.
                variant = re.sub(r"patch \d+ alone", "by patch size", line["variant"])
                scores[variant, name][line["seed"]][line["architecture"]] = sign * line[name]
    return scores


def show_places(table: Table, rankings: Sequence[Mapping[str, float]]) -> None:
    """Print mean places by patch size and embedding dim: by the truth, and by the mean of the supernets' scores."""
    texts = sorted(table.truth)
    means = {text: float(np.mean([ranking[text] for ranking in rankings])) for text in texts}
    places = [dict(zip(texts, rankdata([-by[text] for text in texts]), strict=True)) for by in (table.truth, means)]
    members: dict[tuple[int, int], list[str]] = defaultdict(list)
    for text in texts:
        architecture = Architecture.parse(text)
        members[architecture.patch_size, architecture.embed_dim].append(text)
    print("| patch size | embedding dim | networks | top-1 | place by it | place by the supernets |")
    print("|--:|--:|--:|--:|--:|--:|")
    for (patch, dim), of in sorted(members.items()):
        true, scored = (np.mean([by[text] for text in of]) for by in places)
        top1 = np.mean([table.truth[text] for text in of])
        print(f"| {patch} | {dim} | {len(of)} | {top1:.2f} | {true:.0f} | {scored:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", nargs="?", default="fashion_1M", help="images and scale")
    parser.add_argument("--places", metavar="VARIANT", help="of supernets.py, which has scored the whole table")
    arguments = parser.parse_args()
    setting = arguments.setting
    table = Table(setting)
    if arguments.places is not None:
        rankings = supernet_scores(setting).get((arguments.places, "loss"))
        if rankings is None:
            parser.error(f"--places: found {arguments.places!r}, which supernets.py has not scored at {setting}")
        show_places(table, list(rankings.values()))
        return
    groups = table.groups()
    values = np.array(list(table.truth.values()))
    print(
        f"{len(values)} architectures, top-1 {values.min():.2f} to {values.max():.2f}%, deviation {values.std():.2f}\n"
    )
    print("| what ranks | " + " | ".join(f"{name} ({len(of)})" for name, of in groups.items()) + " | picks |")
    print("|---|" + "--:|" * (len(groups) + 1))

    def row(name: str, cells: Sequence[str]) -> None:
        print(f"| {name} | " + " | ".join(cells) + " |")

    first, second = (table.seeds.get(seed, {}) for seed in (0, 1))
    cells = []
    for of in groups.values():
        both = [text for text in of if text in first and text in second]
        cells.append(f"{tau(first, second, both):.2f}" if len(both) >= LEAST_FOR_CEILING else "not trained")
    picked = [table.truth[max(top1, key=top1.get)] for top1 in (first, second) if top1]
    row("the other seed (ceiling)", [*cells, f"{np.mean(picked):.2f}"])
    for name, floor in table.floors().items():
        # The patch size does not tell networks of one patch size apart.
        telling = [of if len({floor[text] for text in of}) > 1 else [] for of in groups.values()]
        shown = [of and f"{tau(floor, table.truth, of):.2f} ({interval([floor], table.truth, of)})" for of in telling]
        # Where many are as good, a random one of them is picked.
        best = [table.truth[text] for text in floor if name == "random" or floor[text] == max(floor.values())]
        row(name, [*(cell or "" for cell in shown), f"{np.mean(best):.2f}"])
    for (variant, score), seeds in sorted(supernet_scores(setting).items()):
        cells, counts = [], []
        for of in groups.values():
            # Those that every seed's supernet has scored.
            scored = [text for text in of if all(text in ranking for ranking in seeds.values())]
            counts.append(len(scored))
            if len(scored) < 2:
                cells.append("")
                continue
            taus = [tau(ranking, table.truth, scored) for ranking in seeds.values()]
            spread = f" ± {np.std(taus):.2f}" if len(taus) > 1 else ""
            cells.append(f"{np.mean(taus):.2f}{spread} ({interval(list(seeds.values()), table.truth, scored)})")
        picked = [table.truth[max(ranking, key=ranking.get)] for ranking in seeds.values()]
        cells.append(f"{np.mean(picked):.2f}")
        row(f"{variant}: {SCORES[score][0]}; {len(seeds)} seed(s), {'/'.join(map(str, counts))} networks", cells)


if __name__ == "__main__":
    main()
