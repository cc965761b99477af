"""REINFORCE beside NSGA-II and random search: the topologies that they pick at equal evaluations.

    python bench/asvit_searches.py FOLDER [--steps 100] [--seeds 3]

The picks, and random topologies, are scored again at initialisations that no
search has seen. A pick's percentile by a score is the share of the random
topologies that it beats; by both scores, the share whose sum of ranks is larger.
Random search picks the least sum of ranks among as many topologies. The images
are MNIST at 32 x 32 (see `bench/images.py`). The searches are the project's own,
with journals in FOLDER, so a killed run resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import numpy as np
import yaml
from images import write_mnist
from rich.console import Console
from rich.table import Table

from search.asvit.scoring import GenotypeScorer, ntk_images
from search.asvit.topology import ALGORITHMS, best_of_ranks
from vitas import config as configuration
from vitas.asvit.genotype import Genotype, GenotypeSpace
from vitas.asvit.scores import Scores
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.report import Report

# The seed of the initialisations that picks are judged at; no search uses it.
JUDGE = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=100, help="random topologies that picks are compared with")
    arguments = parser.parse_args()
    write_mnist(arguments.folder / "mnist")
    space = GenotypeSpace()

    picks = {
        name: [pick(name, seed, space, arguments) for seed in range(arguments.seeds)]
        for name in (*ALGORITHMS, "random")
    }
    config = load(arguments.folder, "judge", JUDGE, 3, arguments.steps)
    scorer, _ = scorer_of(config)
    drawn = space.sample_genomes(np.random.default_rng(JUDGE), arguments.pool)
    pool = scorer.score([space.decode(genome) for genome in drawn])
    table = Table(title=f"{arguments.seeds} seeds, {arguments.steps} topologies of {arguments.repeat} initialisations")
    for column in ("", "pick", "length distortion", "NTK condition", "both", "mean"):
        table.add_column(column, justify="right", overflow="fold")
    for name, topologies in picks.items():
        rows = [percentiles(scores, pool) for scores in scorer.score(topologies)]
        for topology, row in zip(topologies, rows, strict=True):
            table.add_row(name, topology.topology, *(f"{100 * share:.0f}%" for share in row), "")
        table.add_row(name, "", "", "", "", f"{100 * mean(row[2] for row in rows):.0f}%")
    Console(width=140).print(table)


def pick(name: str, seed: int, space: GenotypeSpace, arguments: argparse.Namespace) -> Genotype:
    config = load(arguments.folder, f"{name}_{seed}", seed, arguments.repeat, arguments.steps)
    scorer, report = scorer_of(config)
    if name in ALGORITHMS:
        return ALGORITHMS[name](config, space, scorer, report, World())
    drawn = [space.decode(g) for g in space.sample_genomes(np.random.default_rng(seed), arguments.steps)]
    return drawn[best_of_ranks(scorer.score(drawn))]


def percentiles(scores: Scores, pool: list[Scores]) -> tuple[float, float, float]:
    """Shares of the pool that are worse: by length distortion, by the NTK condition number, by both."""
    everyone = [*pool, scores]
    columns = [[-s.length_distortion for s in everyone], [s.ntk_condition for s in everyone]]
    ranks = [np.searchsorted(np.sort(column), column) for column in columns]
    shares = [float(np.mean(part[:-1] > part[-1])) for part in (*ranks, ranks[0] + ranks[1])]
    return shares[0], shares[1], shares[2]


def load(folder: Path, name: str, seed: int, repeat: int, steps: int) -> RunConfig:
    path = folder / f"{name}.yaml"
    section = {
        "method": "asvit",
        "data": {"data_dir": str(folder / "mnist" / "train"), "workers": 0, "crop_fraction": 1.0},
        "steps": steps,
        "repeat": repeat,
        "growth": {"macs": 10**9},
    }
    model = {"image_size": 32, "num_classes": 10}
    path.write_text(yaml.safe_dump({"save_path": str(folder / name), "seed": seed, "model": model, "search": section}))
    return configuration.load(path)


def scorer_of(config: RunConfig) -> tuple[GenotypeScorer, Report]:
    report = Report("search", config.folder, World())
    return GenotypeScorer(config, config.folder.topologies, ntk_images(config), report, World()), report


if __name__ == "__main__":
    main()
