"""Stages that two processes run in turn, in one start: each loads torch only once.

python -m torch.distributed.run --nproc-per-node=2 --standalone -m tests.two_ranks YAML...
"""

import shutil
import sys
from pathlib import Path

from vitas.program import quick_imports

with quick_imports():
    from inference.test import test
    from retrain.retrain import retrain
    from search.asvit.search import search as search_asvit
    from search.sample import sample
    from search.search import search
    from vitas import config, distributed
    from vitas.config import RunConfig
    from vitas.program import run_stages

# Which stages of a YAML, by its name. Another one is for the program `search`.
STAGES = {
    "undisturbed": (search, sample, retrain, test),
    "given": (retrain,),
    "plain": (retrain, test),
    "vit": (retrain,),
    "again": (retrain,),
    "staged": (retrain,),
    "asvit": (search_asvit,),
    "cyclic": (search,),
    "sandwich": (search,),
    "parts": (search,),
    "uneven": (search,),
    "damaged": (search, sample, retrain, test),
    "accumulated": (search, retrain),
    # From the network of `plain`.
    "elastic": (search,),
}


def main(paths: list[Path]) -> None:
    world = distributed.init()
    configs = {path.stem: config.load(path) for path in paths if path.stem in STAGES}
    for name in configs:
        if name == "again" and world.is_main:
            keep_first_epoch(configs["vit"], configs["again"])
        for stage in STAGES[name]:
            # What rank 0 wrote is read by both.
            distributed.barrier(world)
            stage(configs[name], world)
    distributed.settle()
    for path in paths:
        if path.stem not in STAGES:
            # `search` and `sample`, as a program: it leaves the process group at its end, so it comes last.
            run_stages("search", "", arguments=[str(path)])
    distributed.shutdown()


def keep_first_epoch(run: RunConfig, other: RunConfig) -> None:
    """Make another run one that was stopped after its first epoch."""
    source, target = (each.folder.checkpoints("retrain") for each in (run, other))
    target.mkdir(parents=True)
    shutil.copy(source / "epoch_1_ckpt.pth.tar", target)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
