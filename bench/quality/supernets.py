"""How well does a supernet rank the table of truth? One line a subnet that a supernet has scored.

    OMP_NUM_THREADS=1 python bench/quality/supernets.py FOLDER [--variants NAME ...] [--seeds 0 1 2] [--processes 2]

Trains a supernet for each variant of `VARIANTS` and seed with the `search` stage, and scores the architectures of
`results/table.jsonl` with it on the val images: loss and top-1, of the mean over the sides and of the sum of their
logits; the losses of their choices in training; and, with --adapt, loss and top-1 after brief adaptation. Scores go to
`results/supernets.jsonl`; killed and started again, it goes on. `ranking.py` reads them.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from setting import run_config, write_images
from table import RESULTS as TABLE

from retrain.retrain import retrain
from search.adaptation import Adaptation
from search.predictor import ChoiceLosses
from search.scoring import score_logits, score_subnet
from search.search import build_supernet, search
from vitas import Architecture, checkpoint
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.files import Journal

RESULTS = Path(__file__).parent / "results" / "supernets.jsonl"
IN_BUDGET = {"draw": "in_budget"}
ORDINAL = {"model.sharing": "ordinal", "epochs": 48, "subnets": IN_BUDGET}
LARGEST = {"teacher": "largest", "weight": 1.0}
# A DeiT for the size of the images and the budget, trained alone: what one has before any search.
TEACHER = "p7-e32-token-h2q96m128x12"
# Changes of the `search` section, and of the model. A bilateral step has two passes, so other schemes get twice the
# epochs: all variants pass as many images through subnets, but where the name says otherwise.
VARIANTS: dict[str, dict] = {
    "bilateral, published": {"model.sharing": "bilateral", "epochs": 24},
    "bilateral, in budget": {"model.sharing": "bilateral", "epochs": 24, "subnets": IN_BUDGET},
    "ordinal, published": ORDINAL | {"subnets": {}},
    "ordinal, in budget": ORDINAL,
    "ordinal, in budget, half": ORDINAL | {"epochs": 24},
    "ordinal, in budget, double": ORDINAL | {"epochs": 96},
    "ordinal, in budget, spread": ORDINAL | {"model.block_sharing": "spread"},
    "ordinal, in budget, private norms": ORDINAL | {"model.private_norms": True},
    "ordinal, in budget, 4 parts": ORDINAL | {"subnets": IN_BUDGET | {"parts": 4}, "batch_size": 64},
    "ordinal, in budget, 1e-3": ORDINAL | {"lr": 1e-3},
    "ordinal, in budget, EMA": ORDINAL | {"ema_decay": 0.999},
    "ordinal, in budget, exactly": ORDINAL | {"subnets": IN_BUDGET | {"widen": 0.0}},
    # Two supernets of half the training each; `ranking.py` takes them as one.
    "ordinal, in budget, patch 4 alone": ORDINAL | {"epochs": 24, "space.patch_sizes": (4,)},
    "ordinal, in budget, patch 7 alone": ORDINAL | {"epochs": 24, "space.patch_sizes": (7,)},
    "ordinal, complementary": ORDINAL | {"subnets": IN_BUDGET | {"together": "complementary"}},
    "ordinal, in budget, teacher": ORDINAL | {"distillation": {"teacher": TEACHER, "weight": 0.5}},
    "ordinal, in budget, teacher alone": ORDINAL | {"distillation": {"teacher": TEACHER, "weight": 1.0}},
    "cyclic, in budget": ORDINAL | {"model.sharing": "cyclic"},
    "ordinal, sandwich": ORDINAL
    | {"epochs": 16, "subnets": IN_BUDGET | {"together": "sandwich", "randoms": 1}, "distillation": LARGEST},
}


def config_of(folder: Path, variant: str, seed: int, **sample: object) -> RunConfig:
    """The run of a variant; its supernet lies below `folder`. sample: keys of the `sample` section."""
    changes = VARIANTS[variant]
    search = {key: value for key, value in changes.items() if "." not in key}
    if search.get("distillation", {}).get("teacher") == TEACHER:
        search["distillation"] = search["distillation"] | {"teacher": str(teacher_of(folder))}
    name = variant.replace(", ", "-").replace(" ", "_")
    config = run_config(folder, folder / "supernets" / f"{name}-seed{seed}", seed, search=search, sample=sample)
    model = {key.removeprefix("model."): value for key, value in changes.items() if key.startswith("model.")}
    space = {key.removeprefix("space."): value for key, value in changes.items() if key.startswith("space.")}
    model["space"] = replace(config.space, **space)
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def teacher_of(folder: Path) -> Path:
    """The checkpoint of the teacher, trained by the recipe of the table if it is not there."""
    config = run_config(folder, folder / "teacher", 0, retrain={"architecture": TEACHER})
    retrain(config, World())
    return CheckpointFolder(config.folder.checkpoints("retrain")).resolve()


def train_and_score(folder: Path, variant: str, seed: int, architectures: list[str], adapt: bool) -> list[dict]:
    """A line for each architecture. A training that was interrupted goes on from its checkpoint."""
    config = config_of(folder, variant, seed, adapt={"steps": 100, "batch_size": 64})
    began = time.monotonic()
    search(config, World())
    seconds = time.monotonic() - began
    supernet = build_supernet(config, World()).eval()
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve()
    state = checkpoint.read(path)
    checkpoint.load_state(supernet, state, path, "ema" if config.search.ema_decay else "model")
    prior = ChoiceLosses(config.space, 1, torch.device("cpu"))
    prior.load_state_dict(state["choice_losses"])
    model, space, settings = config.model, config.space, config.sample
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, World(), everything=True)
    adaptation = Adaptation(config, supernet, World()) if adapt else None
    lines = []
    for text in architectures:
        architecture = Architecture.parse(text)
        if architecture.patch_size not in space.patch_sizes:
            continue
        line = {"variant": variant, "seed": seed, "architecture": text, "seconds": round(seconds)}
        line |= vars(score_subnet(supernet, architecture, images, settings))
        if len(supernet.scheme.scoring_sides) > 1:
            summed = score_subnet(supernet, architecture, images, settings.model_copy(update={"sides": "sum"}))
            line |= {"sum_top1": summed.top1, "sum_loss": summed.loss}
        line["prior"] = float(prior.predict(space.encode(architecture)[None])[0])
        if adaptation:
            adapted = score_logits(adaptation.adapt(architecture), images, settings)
            line |= {"adapted_top1": adapted.top1, "adapted_loss": adapted.loss}
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images and trainings go")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adapt", action="store_true", help="also score after 100 steps of adaptation")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    write_images(arguments.folder)
    table = list(dict.fromkeys(line["architecture"] for line in Journal(TABLE).lines))
    journal = Journal(RESULTS)
    # With --adapt, what was scored without adaptation is scored again; the last line counts.
    known = {
        (line["variant"], line["seed"], line["architecture"])
        for line in journal.lines
        if "adapted_loss" in line or not arguments.adapt
    }
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = {}
        for seed in arguments.seeds:
            for variant in arguments.variants:
                missing = [text for text in table if (variant, seed, text) not in known]
                if missing:
                    futures[pool.submit(train_and_score, arguments.folder, variant, seed, missing, arguments.adapt)] = (
                        variant,
                        seed,
                    )
        for future in as_completed(futures):
            journal.append(*future.result())
            print(*futures[future], "is scored", flush=True)


if __name__ == "__main__":
    main()
