"""How well does a supernet rank the table of truth? One line a subnet that a supernet has scored.

    OMP_NUM_THREADS=1 python bench/quality/supernets.py FOLDER [--variants NAME ...] [--seeds 0 1 2] [--processes 2]

Trains a supernet for each variant of `VARIANTS` and seed with the `search` stage, and scores the architectures of
`results/table.jsonl` with it on the val images: the loss and top-1 of the mean over the sides, and of the sum of their
logits. Scores go to `results/supernets.jsonl`; killed and started again, it goes on. `ranking.py` reads them.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from setting import run_config, write_images
from table import RESULTS as TABLE

from search.search import build_supernet, search
from vitas import Architecture, checkpoint
from vitas.checkpoint import CheckpointFolder
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.evaluate import evaluate
from vitas.files import Journal

RESULTS = Path(__file__).parent / "results" / "supernets.jsonl"
IN_BUDGET = {"draw": "in_budget"}
LARGEST = {"teacher": "largest", "weight": 1.0}
# Changes of the `search` section; `sharing` is that of the model. A bilateral step has two passes, so other schemes get
# twice the epochs: all variants train as many passes, but where the name says otherwise.
VARIANTS: dict[str, dict] = {
    "bilateral, published": {"sharing": "bilateral", "epochs": 24},
    "bilateral, in budget": {"sharing": "bilateral", "epochs": 24, "subnets": IN_BUDGET},
    "ordinal, published": {"sharing": "ordinal", "epochs": 48},
    "ordinal, in budget": {"sharing": "ordinal", "epochs": 48, "subnets": IN_BUDGET},
    "ordinal, in budget, double": {"sharing": "ordinal", "epochs": 96, "subnets": IN_BUDGET},
    "cyclic, in budget": {"sharing": "cyclic", "epochs": 48, "subnets": IN_BUDGET},
    "ordinal, sandwich": {
        "sharing": "ordinal",
        "epochs": 16,
        "subnets": IN_BUDGET | {"together": "sandwich", "randoms": 1},
        "distillation": LARGEST,
    },
}


def config_of(folder: Path, variant: str, seed: int):
    """The run of a variant: its supernet lies below `folder`."""
    changes = dict(VARIANTS[variant])
    sharing = changes.pop("sharing")
    name = variant.replace(", ", "-").replace(" ", "_")
    config = run_config(folder, folder / "supernets" / f"{name}-seed{seed}", seed, search=changes, sample={})
    return config.model_copy(update={"model": config.model.model_copy(update={"sharing": sharing})})


def train_and_score(folder: Path, variant: str, seed: int, architectures: list[str]) -> list[dict]:
    """A line for each architecture. A training that was interrupted goes on from its checkpoint."""
    config = config_of(folder, variant, seed)
    began = time.monotonic()
    search(config, World())
    seconds = time.monotonic() - began
    supernet = build_supernet(config, World()).eval()
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve()
    checkpoint.load_weights(supernet, path, "ema" if config.search.ema_decay else "model")
    model = config.model
    images = EvaluationSet.load(config.sample.data, model.image_size, model.mean, model.std, World(), everything=True)
    sides = supernet.scheme.scoring_sides
    lines = []
    for text in architectures:
        architecture = Architecture.parse(text)
        of_sides = [evaluate(partial(supernet, architecture=architecture, side=side), images, 500) for side in sides]
        line = {"variant": variant, "seed": seed, "architecture": text, "seconds": round(seconds)}
        for name in ("top1", "loss"):
            line[name] = sum(getattr(score, name) for score in of_sides) / len(sides)
        if len(sides) > 1:
            summed = evaluate(lambda x, a=architecture: sum(supernet(x, a, side) for side in sides), images, 500)
            line |= {"sum_top1": summed.top1, "sum_loss": summed.loss}
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images and trainings go")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    write_images(arguments.folder)
    table = list(dict.fromkeys(line["architecture"] for line in Journal(TABLE).lines))
    journal = Journal(RESULTS)
    known = {(line["variant"], line["seed"], line["architecture"]) for line in journal.lines}
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = {}
        for seed in arguments.seeds:
            for variant in arguments.variants:
                missing = [text for text in table if (variant, seed, text) not in known]
                if missing:
                    futures[pool.submit(train_and_score, arguments.folder, variant, seed, missing)] = (variant, seed)
        for future in as_completed(futures):
            journal.append(*future.result())
            print(*futures[future], "is scored", flush=True)


if __name__ == "__main__":
    main()
