"""How well does a supernet rank the table of truth? One line a subnet that a supernet has scored.

    OMP_NUM_THREADS=1 python bench/quality/supernets.py FOLDER [--variants NAME ...] [--seeds 0 1 2] [--processes 2]

Trains a supernet for each variant and seed with the `search` stage, and scores the architectures of the table with it:
loss and top-1 on the val images, of the mean over the sides and of the sum of their logits; the losses of their choices
in training; and, with --adapt, loss and top-1 after brief adaptation. Scores go to `results/SETTING/supernets.jsonl`;
killed and started again, it goes on. `ranking.py` reads them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from setting import Setting, argument_parser

from retrain.retrain import retrain
from search.adaptation import Adaptation
from search.predictor import ChoiceLosses
from search.scoring import score_logits, score_subnet
from search.search import build_supernet, search
from search.subnets import DRAWS
from vitas import Architecture, checkpoint, loading
from vitas.checkpoint import CheckpointFolder
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.distributed import World
from vitas.sharing import SCHEMES

# DeiT-shaped networks of the budgets, trained alone: what one has before any search.
TEACHERS = {"1M": "p7-e32-token-h2q96m128x4", "2.7M": "p7-e32-token-h2q96m128x12"}
# What the other experiments take.
DEFAULT = "ordinal, in_budget, 12 epochs, bias 1.5, complementary"
# What the words of a variant change: keys of the `search` section, of the model, or of the space. A bilateral step has
# two passes, so N epochs of it cost as much as 2 N of another sharing.
WORDS: dict[str, dict] = {
    **{name: {"model.sharing": name} for name in SCHEMES},
    # A bias has a word of its own.
    **{name: {"subnets.draw": name, "subnets.size_bias": 0.0} for name in DRAWS},
    "complementary": {"subnets.together": "complementary"},
    "sandwich": {
        "subnets.together": "sandwich",
        "subnets.randoms": 1,
        "distillation": {"teacher": "largest", "weight": 1.0},
    },
    "EMA": {"ema_decay": 0.999},
    "teacher": {"distillation": {"teacher": "DeiT-shaped", "weight": 0.5}},
}
# Words with a number.
NUMBERS: dict[str, Callable[[str], dict]] = {
    r"(\d+) epochs": lambda n: {"epochs": int(n), "warmup_epochs": min(2, int(n) - 1)},
    r"bias ([\d.]+)": lambda n: {"subnets.size_bias": float(n)},
    r"widen ([\d.]+)": lambda n: {"subnets.widen": float(n)},
    # As many steps, of twice as many images.
    r"(\d+) parts": lambda n: {"subnets.parts": int(n), "batch_size": 64},
    r"batch (\d+)": lambda n: {"batch_size": int(n)},
    r"lr (\S+)": lambda n: {"lr": float(n)},
    # One of several supernets, which `ranking.py` takes as one.
    r"patch (\d+) alone": lambda n: {"space.patch_sizes": (int(n),)},
}
VARIANTS = (
    "bilateral, published, 24 epochs",
    "bilateral, in_budget, 24 epochs",
    "ordinal, published, 48 epochs",
    "ordinal, in_budget, 48 epochs",
    "cyclic, in_budget, 48 epochs",
    "ordinal, in_budget, 48 epochs, complementary",
    "ordinal, in_budget, 16 epochs, sandwich",
    "ordinal, in_budget, 48 epochs, 4 parts",
    "ordinal, in_budget, 48 epochs, teacher",
    "ordinal, in_budget, 48 epochs, EMA",
    *(f"ordinal, in_budget, {n} epochs" for n in (6, 12, 24, 96)),
    *(f"ordinal, in_budget, {n} epochs, bias 1.5" for n in (6, 12, 24, 48)),
    "bilateral, in_budget, 24 epochs, bias 1.5",
)


def changes_of(variant: str) -> dict:
    """What a variant changes, by dotted key. Raises `ValueError` for a word that means nothing."""
    changes: dict = {"subnets.together": "one"}
    for word in variant.split(", "):
        numbers = [make(found[1]) for form, make in NUMBERS.items() if (found := re.fullmatch(form, word))]
        if word not in WORDS and not numbers:
            raise ValueError(f"{variant!r}: {word!r} is not among {', '.join([*WORDS, *NUMBERS])}")
        changes |= WORDS.get(word) or numbers[0]
    return changes


def _below(changes: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in changes.items() if key.startswith(prefix)}


def config_of(setting: Setting, variant: str, seed: int, **sample: object) -> RunConfig:
    """The run of a variant. sample: keys of the `sample` section."""
    changes = changes_of(variant)
    search = {key: value for key, value in changes.items() if "." not in key}
    search["subnets"] = _below(changes, "subnets.")
    if search.get("distillation", {}).get("teacher") == "DeiT-shaped":
        search["distillation"] = search["distillation"] | {"teacher": str(teacher_of(setting))}
    name = variant.replace(", ", "-").replace(" ", "_")
    config = setting.run_config(f"supernets/{name}-seed{seed}", seed, search=search, sample=sample)
    model = _below(changes, "model.") | {"space": replace(config.space, **_below(changes, "space."))}
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def teacher_of(setting: Setting) -> Path:
    """The checkpoint of the teacher, trained by the recipe of the table if it is not there."""
    config = setting.run_config("teacher", 0, retrain={"architecture": TEACHERS[setting.scale_name]})
    retrain(config, World())
    return CheckpointFolder(config.folder.checkpoints("retrain")).resolve()


def train_and_score(setting: Setting, variant: str, seed: int, architectures: list[str], adapt: bool) -> list[dict]:
    """A line for each architecture. A training that was interrupted goes on from its checkpoint."""
    config = config_of(setting, variant, seed, adapt={"steps": 100, "batch_size": 64})
    began = time.monotonic()
    search(config, World())
    seconds = time.monotonic() - began
    supernet = build_supernet(config, World()).eval()
    path = CheckpointFolder(config.folder.checkpoints("search")).resolve()
    state = checkpoint.read(path)
    loading.load_state(supernet, state, path, "ema" if config.search.ema_decay else "model")
    prior = ChoiceLosses.recorded(config.space, state["choice_losses"])
    model, space, settings = config.model, config.space, config.sample
    images = EvaluationSet.load(settings.data, model.image_size, model.mean, model.std, World(), everything=True)
    adaptation = Adaptation(config, supernet, World()) if adapt else None
    lines = []
    for text in architectures:
        architecture = Architecture.parse(text)
        if architecture.patch_size not in space.patch_sizes:
            continue
        line = {"variant": variant, "seed": seed, "architecture": text, "seconds": round(seconds)}
        line |= vars(score_subnet(supernet, architecture, images, settings.model_copy(update={"sides": "mean"})))
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
    parser = argument_parser(__doc__)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="TEXT", help="words, see WORDS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adapt", action="store_true", help="also score after 100 steps of adaptation")
    arguments = parser.parse_args()
    for variant in arguments.variants:
        changes_of(variant)
    setting = Setting.of_arguments(arguments)
    table = list(dict.fromkeys(line["architecture"] for line in setting.journal("table").lines))
    journal = setting.journal("supernets")
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
                    unit = variant, seed, missing, arguments.adapt
                    futures[pool.submit(train_and_score, setting, *unit)] = f"{variant}, seed {seed}"
        for future in as_completed(futures):
            journal.append(*future.result())
            print(f"{futures[future]}: scored", flush=True)


if __name__ == "__main__":
    main()
