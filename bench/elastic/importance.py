"""By what should the parts of a network be ranked?

    OMP_NUM_THREADS=1 python bench/elastic/importance.py FOLDER [--seeds 0 1 2] [--epochs 0 8] [--budgets ...]

Prunes the network of `setting.py` to each budget by each score of `vitas.elastic_space.SCORES`, and by chance, and
measures what is left at once and after some epochs of fine-tuning with the teacher. A line a network goes to
`results/importance.jsonl`.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import torch
from methods import fine_tune, images_of, network_of, write_network
from setting import BUDGETS, Setting, argument_parser, results

from vitas.elastic_space import SCORES
from vitas.importance import Importances, score_parts
from vitas.pruning import prune

CHANCE = "chance"


def prune_and_measure(setting: Setting, score: str, budget: str, epochs: int) -> dict:
    """A line: the network pruned to a budget by a score, after so many epochs."""
    network = network_of(setting)
    scores = score_parts(network, *images_of(setting), "taylor" if score == CHANCE else score)
    if score == CHANCE:
        generator = torch.Generator().manual_seed(setting.seed)
        parts = [scores.embed], scores.heads, scores.mlp
        drawn = [[torch.rand(len(part), generator=generator) for part in kind] for kind in parts]
        scores = Importances(drawn[0][0], drawn[1], drawn[2])
    run = f"importance/{score}-{budget}-seed{setting.seed}"
    start = setting.folder / f"{run}.pth"
    write_network(prune(network, scores, BUDGETS[budget]), start)
    line = {"score": score, "budget": budget, "epochs": epochs, "seed": setting.seed}
    if epochs:
        return line | fine_tune(setting, f"{run}-epochs{epochs}", start, True, epochs)
    config = setting.run_config(run, test={"load_name": str(start)})
    return line | setting.measure(config)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=BUDGETS)
    arguments = parser.parse_args()
    journal = results("importance")
    keys = ("score", "budget", "epochs", "seed")
    known = {tuple(line[key] for key in keys) for line in journal.lines}
    settings = {seed: Setting(arguments.folder, seed) for seed in arguments.seeds}
    for setting in settings.values():
        setting.write_images()
    print(f"starts from {settings[arguments.seeds[0]].pretrained}")
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        units = [
            (score, budget, epochs, seed)
            for seed in arguments.seeds
            for score in (*SCORES, CHANCE)
            for budget in arguments.budgets
            for epochs in arguments.epochs
        ]
        futures = [pool.submit(prune_and_measure, settings[u[3]], *u[:3]) for u in units if u not in known]
        for future in as_completed(futures):
            journal.append(future.result())
    print("| score | epochs | " + " | ".join(BUDGETS) + " |")
    print("|---|--:|" + "--:|" * len(BUDGETS))
    for score in (*SCORES, CHANCE):
        for epochs in arguments.epochs:
            cells = []
            for budget in BUDGETS:
                found = [
                    line["test_top1"]
                    for line in journal.lines
                    if (line["score"], line["budget"], line["epochs"]) == (score, budget, epochs)
                ]
                spread = f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
                cells.append(f"{np.mean(found):.2f}{spread}" if found else "")
            print(f"| {score} | {epochs} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
