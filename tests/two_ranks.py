"""Stages that two processes run in turn, in one start: each loads torch only once. Those whose YAMLs lie in FOLDER:

python -m torch.distributed.run --nproc-per-node=2 --standalone -m tests.two_ranks FOLDER
"""

import shutil
import sys
from pathlib import Path

from inference.test import test
from retrain.retrain import retrain
from search.asvit.search import search as search_asvit
from search.sample import sample
from search.search import search
from vitas import config, distributed
from vitas.config import RunConfig
from vitas.program import run_stages

# The name of a run's YAML, and the stages of it.
STAGES = {
    "undisturbed": (search, sample, retrain, test),
    "plain": (retrain, test),
    "vit": (retrain,),
    "again": (retrain,),
    "staged": (retrain,),
    "asvit": (search_asvit,),
    "cyclic": (search,),
}


def main(folder: Path) -> None:
    world = distributed.init()
    configs = {name: config.load(path) for name in STAGES if (path := folder / f"{name}.yaml").exists()}
    for name in configs:
        if name == "again" and world.is_main:
            keep_first_epoch(configs["vit"], configs["again"])
        for stage in STAGES[name]:
            # What rank 0 wrote is read by both.
            distributed.barrier(world)
            stage(configs[name], world)
    distributed.settle()
    if "plain" in configs:
        # `search` and `sample` as a program, which leaves the process group at its end.
        run_stages("search", "", arguments=[str(folder / "plain.yaml")])
    else:
        distributed.shutdown()


def keep_first_epoch(run: RunConfig, other: RunConfig) -> None:
    """Make another run one that was stopped after its first epoch."""
    source, target = (each.folder.checkpoints("retrain") for each in (run, other))
    target.mkdir(parents=True)
    shutil.copy(source / "epoch_1_ckpt.pth.tar", target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
