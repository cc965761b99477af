"""The table of truth: architectures inside one narrow budget, each trained alone, with two seeds.

    OMP_NUM_THREADS=1 python bench/quality/table.py FOLDER [--seeds 0 1] [--processes 2]

Draws `ARCHITECTURES` members of the space (`setting.py`) as the search draws its first ones, spread over patch sizes,
depths and embedding dims, trains each with the `retrain` stage, and measures it on the val and the test images. One
line a training goes to `results/SETTING/table.jsonl`. Killed and started again, it goes on; trainings run side by side,
in processes of one thread.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
from setting import Scale, Setting, argument_parser

from inference.test import test
from retrain.retrain import retrain
from vitas import Architecture, SearchSpace
from vitas.budget import Budget, MacsModel
from vitas.distributed import World
from vitas.in_budget import InBudget

ARCHITECTURES = 60


def draw_architectures(scale: Scale, count: int = ARCHITECTURES, seed: int = 0) -> list[Architecture]:
    """So many members of the space inside the budget, drawn as the search draws its first ones.

    Of those that differ in their numbers of heads alone, the first: where a
    depth leaves room for one choice of widths only, they would be most of it.
    """
    space, budget = SearchSpace(**scale.space), Budget(**scale.budget)
    genomes = InBudget(MacsModel(space, 28, 10, budget.convention), budget)
    drawn: dict[tuple, Architecture] = {}
    for genome in genomes.draw_different(np.random.default_rng(seed), 4 * count):
        architecture = space.decode(genome).compact()
        widths = tuple((block.qkv_dim, block.mlp_dim) for block in architecture.blocks)
        drawn.setdefault((architecture.patch_size, architecture.embed_dim, widths), architecture)
    return list(drawn.values())[:count]


def train_and_measure(setting: Setting, architecture: Architecture, seed: int) -> dict:
    """One line of the table. A training that was interrupted goes on from its checkpoint."""
    run = f"table/{architecture}-seed{seed}"
    config = setting.run_config(run, seed, retrain={"architecture": str(architecture)}, test={})
    retrain(config, World())
    line = {"architecture": str(architecture), "seed": seed, **architecture.costs(28, 10)}
    for part in ("val", "test"):
        test(setting.run_config(run, seed, test={"data": setting.data(part)}), World())
        results = json.loads(config.folder.results.read_text())
        line |= {f"{part}_top1": results["top1"], f"{part}_loss": results["loss"]}
    shutil.rmtree(config.folder.root)
    return line


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    journal = setting.journal("table")
    known = {(line["architecture"], line["seed"]) for line in journal.lines}
    wanted = [
        (a, seed) for a in draw_architectures(setting.scale) for seed in arguments.seeds if (str(a), seed) not in known
    ]
    print(f"{len(known)} trainings are known, {len(wanted)} are left", flush=True)
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train_and_measure, setting, *unit) for unit in wanted]
        for future in as_completed(futures):
            line = future.result()
            journal.append(line)
            print(f"{line['architecture']} seed {line['seed']}: test {line['test_top1']:.2f}%", flush=True)


if __name__ == "__main__":
    main()
