"""`vitas search`, `sample`, `retrain` and `test`: one stage each, whatever its flag says.

`python -m search CONFIG` runs the stages of a program that CONFIG flags; both
run the same functions.
"""

from __future__ import annotations

from vitas.cli.options import CONFIG_HELP, Command, command, config_arguments
from vitas.run import STAGES

_EXAMPLES = {
    "search": (
        "vitas search vitas_1g.yaml",
        "vitas search vitas_1g.yaml search.epochs=30 save_path=runs/short",
        "torchrun --nproc-per-node 8 -m vitas search vitas_1g.yaml",
    ),
    "sample": ("vitas sample vitas_1g.yaml", "vitas sample vitas_1g.yaml sample.budget.maximum=60%"),
    "retrain": (
        "vitas retrain vitas_1g.yaml",
        "vitas retrain vitas_1g.yaml retrain.architecture=subnet_2 save_path=runs/second",
    ),
    "test": ("vitas test vitas_1g.yaml", "vitas test vitas_1g.yaml test.load_name=epoch_290_ckpt.pth.tar"),
}
_MEANINGS = {
    "search": "Train the supernet. With search.method: asvit, find a topology without training, and grow it.",
    "sample": "Evolve architectures inside sample.budget, scored with the trained supernet.",
    "retrain": "Train one architecture, by default the best that was found.",
    "test": "Measure trained networks on the test images, and write results.json.",
}


def _stage(name: str) -> Command:
    def run(config: str, overrides: tuple[str, ...]) -> None:
        from vitas.config import find
        from vitas.program import run_stage

        run_stage(name, str(find(config, STAGES[name].program)), overrides)

    run.__doc__ = (
        f"{_MEANINGS[name]}\n\n{CONFIG_HELP} Runs this stage alone, whether CONFIG flags it or not. If it was stopped, "
        "the same command resumes it."
    )
    return command(*_EXAMPLES[name], name=name)(config_arguments(run))


search, sample, retrain, test = map(_stage, STAGES)
__all__ = ["retrain", "sample", "search", "test"]
