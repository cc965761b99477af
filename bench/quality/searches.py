"""What is found with a supernet, by evolution, random search and regularised evolution, at equal evaluations.

    OMP_NUM_THREADS=1 python bench/quality/searches.py FOLDER [--variant NAME] [--seeds 0 1 2 3 4] [--methods NAME ...]

For each supernet of a variant (`supernets.py` trains it if need be) and each method of `METHODS`, a line goes to
`results/SETTING/searches.jsonl`: the architecture that was found, the best score after each evaluation, and the
hypervolume of loss and multiply-adds. Then prints for each method, over the supernets, the best loss, after how many
scores it has the loss that random search ends with, and the hypervolume. `compare.py` retrains what was found and sets
it beside the baselines.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
from pymoo.indicators.hv import HV
from setting import Scale, Setting, argument_parser
from supernets import DEFAULT, config_of

from search.operators import BlockMutation
from search.sample import sample
from search.scoring import SupernetScorer
from search.search import build_supernet, search
from vitas import loading
from vitas.catalog import read_found
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.in_budget import InBudget, move_into_budget
from vitas.report import Report

EVALUATIONS = 300
# A quarter of the val images serves for the search; of its best 20, the best on all of them is what was found.
FINALISTS = {"count": 20, "images": 0.75}
EVOLUTION = {
    "objectives": ["loss"],
    "initial_population": 30,
    "population": 10,
    "generations": 27,
    "sample_num": 1,
    "finalists": FINALISTS,
}


def scorer_of(config: RunConfig) -> SupernetScorer:
    """The scorer of the `sample` stage, with the supernet that `sample.load_name` chooses."""
    supernet = build_supernet(config, World()).eval()
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve(config.sample.load_name)
    loading.load_weights(supernet, path, config.sample.weights)
    model = config.model
    images = EvaluationSet.load(config.sample.data, model.image_size, model.mean, model.std, World(), everything=True)
    return SupernetScorer(config, supernet, images, Report("sample", config.folder, World()), World())


def random_search(config: RunConfig, score: Callable[[np.ndarray], float], rng: np.random.Generator) -> None:
    """Score as many different members of the budget."""
    drawn = InBudget(config.macs_model, config.budget).draw_different(rng, EVALUATIONS)
    for genome in drawn:
        score(genome)


def regularised_evolution(config: RunConfig, score: Callable[[np.ndarray], float], rng: np.random.Generator) -> None:
    """Aging evolution (Real et al., 2019): the best of 10 random ones of the newest 50 has a child."""
    model, budget = config.macs_model, config.budget
    population = [(genome, score(genome)) for genome in InBudget(model, budget).draw_different(rng, 50)]
    mutation = BlockMutation(config.space, config.sample.mutation)
    known = {genome.tobytes() for genome, _ in population}
    while len(known) < EVALUATIONS:
        parent, _ = min((population[i] for i in rng.integers(0, 50, 10)), key=lambda one: one[1])
        (child,) = move_into_budget(mutation._do(None, parent[None], random_state=rng), model, budget, rng)
        if child.tobytes() not in known:
            known.add(child.tobytes())
            population = [*population[1:], (child, score(child))]


# Keys of the `sample` section over EVOLUTION, or another way to search.
METHODS: dict[str, dict | Callable[[RunConfig, Callable[[np.ndarray], float], np.random.Generator], None]] = {
    "evolution": {},
    "evolution, front": {"objectives": ["loss", "macs"]},
    "evolution, population 20": {"initial_population": 60, "population": 20, "generations": 12},
    "evolution, prescreen": {"prescreen": {"scored": 60}},
    "evolution, prior": {"prior": 5},
    "evolution, race": {"race": {}},
    "random": random_search,
    "regularised": regularised_evolution,
}


def hypervolumes(points: np.ndarray, scale: Scale) -> dict[int, float]:
    """Of points (loss, MACs) [n, 2], after every 50 of them: the share that they dominate of a loss of 0.6 to 1.2 and
    the budget.
    """
    low, high = np.array([0.6, scale.minimum]), np.array([1.2, scale.maximum])
    volume = HV(ref_point=np.ones(2))
    return {n: round(float(volume(((points - low) / (high - low))[:n])), 5) for n in range(50, len(points) + 1, 50)}


def find(setting: Setting, variant: str, seed: int, method: str) -> dict:
    """One line. What was scored before is not scored again."""
    trained = config_of(setting, variant, seed)
    search(trained, World())
    path = CheckpointFolder(trained.folder.checkpoints("search")).resolve()
    settings = METHODS[method]
    own = EVOLUTION | (settings if isinstance(settings, dict) else {})
    weights = "ema" if trained.search.ema_decay else "model"
    config = config_of(setting, variant, seed, **own, load_name=str(path.resolve()), weights=weights)
    name = method.replace(", ", "-")
    config = config.model_copy(update={"save_path": str(trained.folder.root / name)})
    if isinstance(settings, dict):
        sample(config, World())
        found = str(next(iter(read_found(config.folder.architectures).values())))
    else:
        scorer, order = scorer_of(config), []

        def score(genome: np.ndarray) -> float:
            architecture = config.space.decode(genome)
            order.append(architecture)
            return scorer.score([architecture], len(order))[0].loss

        settings(config, score, np.random.default_rng(seed))
        ranked = sorted(scorer.known, key=lambda a: scorer.known[a].loss)
        _, on_all = scorer.score_finalists(ranked[: FINALISTS["count"]])
        found = str(min(on_all, key=lambda a: on_all[a].loss).compact())
    records = [json.loads(line) for line in config.folder.population.read_text().splitlines()[1:]]
    # On all images of the search; in the order of scoring.
    scored = [record for record in records if record.get("rung", "supernet") == "supernet"]
    best = np.minimum.accumulate([record["loss"] for record in scored])
    line = {"variant": variant, "seed": seed, "method": method, "architecture": found, "scores": len(records)}
    volumes = hypervolumes(np.array([(record["loss"], record["macs"]) for record in scored]), setting.scale)
    return line | {"best": [round(float(value), 5) for value in best], "hypervolume": volumes}


def find_with_each(setting: Setting, variant: str, seed: int, methods: list[str]) -> list[dict]:
    return [find(setting, variant, seed, method) for method in methods]


def report(lines: list[dict]) -> None:
    """Print a row for each method, from the lines of one variant."""
    of_method: dict[str, dict[int, dict]] = defaultdict(dict)
    for line in lines:
        of_method[line["method"]][line["seed"]] = line
    goals = {seed: line["best"][-1] for seed, line in of_method["random"].items()}
    print("| | best loss | scores to the loss that random search ends with, of | hypervolume |")
    print("|---|--:|---|--:|")
    for method, by_seed in sorted(of_method.items()):
        needed = []
        for seed, line in sorted(by_seed.items()):
            if seed in goals:
                reached = [count for count, loss in enumerate(line["best"], start=1) if loss <= goals[seed]]
                needed.append(str(reached[0]) if reached else "never")
        # Scores on all images of the search; a race has some on a part of them before.
        length = max(len(line["best"]) for line in by_seed.values())
        volumes = [list(line["hypervolume"].values())[-1] for line in by_seed.values()]
        best = np.mean([line["best"][-1] for line in by_seed.values()])
        cells = f"{best:.4f} | {', '.join(needed)}, of {length} | {np.mean(volumes):.3f} ± {np.std(volumes):.3f}"
        print(f"| {method} | {cells} |")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--variant", default=DEFAULT, metavar="TEXT", help="of supernets.py")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    setting = Setting.of_arguments(arguments)
    journal = setting.journal("searches")
    known = {(line["variant"], line["seed"], line["method"]) for line in journal.lines}
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = []
        for seed in arguments.seeds:
            # One after another: they have a supernet in common, which the first trains.
            methods = [name for name in arguments.methods if (arguments.variant, seed, name) not in known]
            futures.append(pool.submit(find_with_each, setting, arguments.variant, seed, methods))
        for future in as_completed(futures):
            for line in future.result():
                journal.append(line)
                print(f"{line['method']}, seed {line['seed']}: {line['architecture']}, {line['best'][-1]}", flush=True)
    report([line for line in journal.lines if line["variant"] == arguments.variant])


if __name__ == "__main__":
    main()
