"""The ways from a pretrained network to one of a budget, each as a function that gives lines of results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from setting import BUDGETS, EPOCHS, TEACHER, WORLD, Setting, stopwatch

from inference.supernet import inherited_network
from retrain.retrain import retrain
from search.sample import sample
from search.search import search
from vitas import VisionTransformer
from vitas.config import Model
from vitas.data.images import channels, draw_images, normalize
from vitas.files import write_atomically
from vitas.importance import score_parts
from vitas.pretrained import Images, as_checkpoint, load_pretrained
from vitas.pruning import prune

# As many multiply-adds as 48 epochs of each of the three networks, 4.6e12 (a step takes three times a forward pass): 90
# epochs of subnets that cost 2.57M on average (search/seen.yaml), 3.5e12; scores of about 220 subnets on 1,000 images
# and of the best 60 on 3,000, 1.0e12; and 2 epochs of each of the three networks that are found.
SUPERNET_EPOCHS, TUNE_EPOCHS = 90, 2
SCORED_BY = 3_000
# Weights that are trained already want a smaller rate than pruned ones.
TUNE_LR = 3e-4
# The search from scratch: a space around the budgets, the default search, and the share of its training.
SCRATCH_SPACE = {
    "patch_sizes": [4, 7],
    "embed_dim": 96,
    "depth": 8,
    "heads": [2, 4],
    "qkv_dim": 288,
    "mlp_dim": 384,
    "widths": [0.25, 0.5, 0.75, 1.0],
}
SCRATCH_SHARE = 1 / 3
EVOLUTION = {
    "objectives": ["loss"],
    "initial_population": 40,
    "population": 20,
    "generations": 4,
    "race": {"images": 0.2, "keep": 0.25},
}


def images_of(setting: Setting, count: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised train images [n, 3, 28, 28] and labels [n], by which parts are ranked."""
    pixels, labels = draw_images(setting.train_data["data_dir"], count, 28, 1.0, setting.seed)
    model = Model()
    return normalize(pixels, channels(model.mean), channels(model.std)), labels


def network_of(setting: Setting) -> VisionTransformer:
    model = Model()
    return load_pretrained(str(setting.pretrained), Images(28, 10, model.mean, model.std)).network


def write_network(network: VisionTransformer, path: Path) -> None:
    model = Model()
    state = as_checkpoint(network, Images(28, 10, model.mean, model.std))
    write_atomically(path, lambda file: torch.save(state, file))


def fine_tune(setting: Setting, run: str, start: Path, teacher: bool, epochs: int = EPOCHS, **keys: object) -> dict:
    """Train the network of a file, and measure it."""
    taught = {"distillation": TEACHER | {"teacher": str(setting.pretrained)}, "label_smoothing": 0.0}
    config = setting.run_config(
        run,
        retrain={"from_checkpoint": str(start), "epochs": epochs} | (taught if teacher else {}) | keys,
        test={},
    )
    with stopwatch() as watch:
        retrain(config, WORLD)
    return setting.measure(config) | watch


def scratch(setting: Setting, budget: str) -> list[dict]:
    """The recommended search and retraining, from nothing."""
    searched = round(SCRATCH_SHARE * EPOCHS)
    config = setting.run_config(
        f"scratch-{budget}-seed{setting.seed}",
        {"space": SCRATCH_SPACE},
        search={"epochs": searched, "lr": 3e-3, "batch_size": 32},
        sample={"budget": setting.budget(budget)} | EVOLUTION,
        retrain={"epochs": EPOCHS - searched, "architecture": "best", "lr": 3e-3, "batch_size": 32},
        test={},
    )
    with stopwatch() as watch:
        search(config, WORLD)
        sample(config, WORLD)
        retrain(config, WORLD)
    return [{"method": "scratch", "budget": budget} | setting.measure(config) | watch]


def pruned(setting: Setting, budget: str, teacher: bool) -> list[dict]:
    """`vitas prune`, and fine-tuning."""
    run = f"pruned-{budget}-seed{setting.seed}"
    start = setting.folder / f"{run}.pth"
    with stopwatch() as watch:
        network = network_of(setting)
        write_network(prune(network, score_parts(network, *images_of(setting)), BUDGETS[budget]), start)
    method = "pruned, teacher" if teacher else "pruned"
    found = fine_tune(setting, f"{run}{'-teacher' if teacher else ''}", start, teacher)
    return [{"method": method, "budget": budget} | found | {"seconds": found["seconds"] + watch["seconds"]}]


def peer(setting: Setting, budget: str, teacher: bool) -> list[dict]:
    """Torch-Pruning with isomorphic ranking, and the same fine-tuning."""
    from peer import prune_isomorphic

    run = f"torch-pruning-{budget}-seed{setting.seed}"
    start = setting.folder / f"{run}.pth"
    with stopwatch() as watch:
        write_network(prune_isomorphic(network_of(setting), *images_of(setting), BUDGETS[budget]), start)
    method = "Torch-Pruning, teacher" if teacher else "Torch-Pruning"
    found = fine_tune(setting, f"{run}{'-teacher' if teacher else ''}", start, teacher)
    return [{"method": method, "budget": budget} | found | {"seconds": found["seconds"] + watch["seconds"]}]


def elastic(setting: Setting) -> list[dict]:
    """One supernet for all budgets; the best subnet of each, with the weights that it has, and fine-tuned."""
    run = f"elastic-seed{setting.seed}"
    model = {"from_pretrained": str(setting.pretrained)}
    whole = {"minimum": int(0.9 * min(BUDGETS.values())), "maximum": max(BUDGETS.values()), "convention": "true"}
    searching = {
        "epochs": SUPERNET_EPOCHS,
        "distillation": TEACHER,
        "label_smoothing": 0.0,
        # Complementary widths, the default elsewhere, cost more than twice as much here (docs/experiments.md).
        "subnets": {"widen": 0.0, "together": "one"},
    }
    config = setting.run_config(run, model, search=searching, sample={"budget": whole}, test={})
    with stopwatch() as training:
        search(config, WORLD)
    lines = []
    for budget in BUDGETS:
        data = {"data": setting.few("val", SCORED_BY)}
        race = {"race": {"images": 1 / 3, "keep": 0.25}}
        sampling = {"budget": setting.budget(budget)} | EVOLUTION | race | data
        own = setting.run_config(run, model, search=searching, sample=sampling, test={"from_supernet": True})
        with stopwatch() as sampled:
            sample(own, WORLD)
        # A third of the supernet is each budget's.
        seconds = training["seconds"] / len(BUDGETS) + sampled["seconds"]
        inherited = setting.measure(own) | {"seconds": round(seconds, 1)}
        start = setting.folder / f"{run}-{budget}.pth"
        write_network(inherited_network(own)[0], start)
        tuned = fine_tune(setting, f"{run}-{budget}-tuned", start, True, TUNE_EPOCHS, lr=TUNE_LR, warmup_epochs=0)
        tuned["seconds"] = round(tuned["seconds"] + seconds, 1)
        lines += [
            {"method": "elastic, inherited", "budget": budget} | inherited,
            {"method": "elastic, fine-tuned", "budget": budget} | tuned,
        ]
    return lines


UNITS: dict[str, Callable[[Setting], list[dict]]] = {
    "elastic": elastic,
    **{
        f"{name} {budget}": (lambda setting, m=method, b=budget, k=keys: m(setting, b, **k))
        for budget in BUDGETS
        for name, method, keys in (
            ("scratch", scratch, {}),
            ("pruned", pruned, {"teacher": False}),
            ("pruned, teacher", pruned, {"teacher": True}),
            ("Torch-Pruning", peer, {"teacher": False}),
            ("Torch-Pruning, teacher", peer, {"teacher": True}),
        )
    },
}
