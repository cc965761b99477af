"""What the searches of `compare.py` cost, in parts of the compute that every way has.

    python bench/elastic/compute.py FOLDER [--seeds 0 1 2]

Multiply-adds of what is trained, as `search/seen.yaml` has them, and of the scores, as `search/population.jsonl` has
them; a training step counts as three forward passes. The part of each search that is not listed is the training of what
was found.
"""

from __future__ import annotations

from pathlib import Path

from methods import SCORED_BY, SUPERNET_EPOCHS
from setting import BUDGETS, EPOCHS, TRAIN_IMAGES, argument_parser

from vitas.journal import Journal
from vitas.plain_data import read_yaml

# Val images that a network is scored on, by the rung of the race.
IMAGES_OF_SCRATCH = {"race": 2_000, "supernet": 10_000}
IMAGES_OF_ELASTIC = {"race": SCORED_BY // 3, "supernet": SCORED_BY}
# A step's backward pass costs twice its forward pass.
STEP = 3
SCRATCH_EPOCHS = 16


def parts(run: Path, epochs: int, images: dict[str, int], whole: float) -> tuple[float, float]:
    """The supernet's training and the scores of a run, as parts of `whole`, multiply-adds."""
    seen = read_yaml(run / "search" / "seen.yaml")
    trained = STEP * epochs * TRAIN_IMAGES * seen["mean_cost"]
    lines = Journal(run / "search" / "population.jsonl").lines[1:]
    return trained / whole, sum(line["macs"] * images[line["rung"]] for line in lines) / whole


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    of_budget = {name: STEP * EPOCHS * TRAIN_IMAGES * macs for name, macs in BUDGETS.items()}
    runs = {"elastic": (SUPERNET_EPOCHS, IMAGES_OF_ELASTIC, sum(of_budget.values()))}
    runs |= {f"scratch-{name}": (SCRATCH_EPOCHS, IMAGES_OF_SCRATCH, whole) for name, whole in of_budget.items()}
    for name, given in runs.items():
        found = [arguments.folder / f"{name}-seed{seed}" for seed in arguments.seeds]
        for run in (run for run in found if (run / "search" / "seen.yaml").exists()):
            trained, scored = parts(run, *given)
            print(f"{run.name}: the supernet {trained:.2f}, scores {scored:.2f}")


if __name__ == "__main__":
    main()
