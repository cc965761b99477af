"""What large numbers cost: many evaluations, many files, many checkpoints.

    OMP_NUM_THREADS=1 python -m bench.load FOLDER [--generations 5000] [--children 100]

The limits: `sample` with a scorer that returns at once takes less than 2 ms of CPU time for an evaluation, and its
memory does not grow with their number but for what it has to know of each; a folder of 100,000 files in 1,000 classes
opens in less than 10 s the second time; 1,000 checkpoints are listed, and the newest is found, in less than a second.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch

from search import sample as stage
from search import scoring
from search.measurements import InPieces
from search.scoring import SubnetScore
from vitas.checkpoint import CheckpointFolder, write
from vitas.config import RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import check_image_folder, listing
from vitas.data.images import channels, open_image_folder
from vitas.distributed import World


def evaluations(folder: Path, generations: int, children: int) -> None:
    """Run the stage `sample` whole, but for the supernet's passes."""
    data = {"data_dir": "unused"}
    config = RunConfig.model_validate(
        {
            "save_path": str(folder / "sample"),
            "model": {
                "image_size": 224,
                "num_classes": 10,
                "space": {
                    "patch_sizes": [16, 32], "embed_dim": 64, "depth": 16, "heads": [2, 4], "qkv_dim": 192,
                    "mlp_dim": 128, "widths": [0.25, 0.5, 0.75, 1.0],
                },
            },
            "search": {"data": data},
            "sample": {
                "flag": True, "data": data, "budget": {"minimum": 40_000_000, "maximum": 60_000_000},
                "population": children, "generations": generations, "initial_population": children,
            },
        }
    )  # fmt: skip
    supernet = stage.build_supernet(config, World())
    write(
        {"model": supernet.state_dict(), "step": 1}, CheckpointFolder(config.folder.checkpoints("search")).epoch_path(1)
    )
    images = EvaluationSet(
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), channels([0.0] * 3),
        channels([1.0] * 3), 1,
    )  # fmt: skip
    calls = 0

    def score(candidate: object, piece: int) -> SubnetScore:
        nonlocal calls
        calls += 1
        if calls in (1, 1000) or calls % 10_000 == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            milliseconds = 1e3 * (time.process_time() - began) / calls
            print(f"  {calls:,} evaluations: {milliseconds:.2f} ms each, {peak:,.0f} MB", file=sys.stderr)
        value = hash(candidate) % 10_007 / 10_007
        return SubnetScore(100 * value, 1 - value)

    scoring.in_pieces = lambda network, images, settings: InPieces(1, score, lambda found: found[0])
    stage.EvaluationSet.load = classmethod(lambda *_, **__: images)
    began = time.process_time()
    # Its log is long.
    with redirect_stdout(io.StringIO()):
        stage.sample(config, World())
    print(f"{calls:,} evaluations: {1e3 * (time.process_time() - began) / calls:.2f} ms of CPU time each")


def files(folder: Path, classes: int = 1000, images: int = 100) -> None:
    """Open a folder of many small files."""
    root = folder / "images"
    for number in range(classes):
        (root / f"class{number:04}").mkdir(parents=True, exist_ok=True)
        for index in range(images):
            (root / f"class{number:04}" / f"{index}.jpg").touch()
    for turn in ("first", "second"):
        began = time.perf_counter()
        check_image_folder(str(root), classes)
        opened = open_image_folder(str(root))
        listing(opened.classes, opened.samples)
        print(
            f"{classes * images:,} files in {classes:,} classes, the {turn} time: {time.perf_counter() - began:.2f} s"
        )


def checkpoints(folder: Path, count: int = 1000) -> None:
    """List many checkpoints, and find the newest."""
    held = CheckpointFolder(folder / "checkpoint", keep=0)
    weights = torch.zeros(100_000)
    for epoch in range(count):
        if not held.epoch_path(epoch).exists():
            write({"epoch": epoch, "step": epoch, "model": {"weight": weights}}, held.epoch_path(epoch))
    began = time.perf_counter()
    assert len(held.epochs()) == count
    assert held.newest() == held.epoch_path(count - 1)
    print(f"{count:,} checkpoints: {time.perf_counter() - began:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generations", type=int, default=5000)
    parser.add_argument("--children", type=int, default=100)
    arguments = parser.parse_args()
    checkpoints(arguments.folder)
    files(arguments.folder)
    evaluations(arguments.folder, arguments.generations, arguments.children)


if __name__ == "__main__":
    main()
