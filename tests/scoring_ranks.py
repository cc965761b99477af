"""What ranks see of a queue and of shared images, as JSON lines, for tests/test_scoring_ranks.py.

python -m torch.distributed.run --nproc-per-node=4 --standalone -m tests.scoring_ranks FOLDER_OF_IMAGES OUTPUT
"""

import hashlib
import json
import sys
import time
from pathlib import Path

from search.measurements import InPieces, MeasurementJournal
from vitas import distributed
from vitas.data import evaluation, shared_memory
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.report import Report
from vitas.run import RunFolder
from vitas.slurm import signals
from vitas.slurm.signals import Interrupted


def journal_of(path: Path, world: distributed.World) -> MeasurementJournal:
    report = Report("sample", RunFolder(path.parent / "run"), world)
    return MeasurementJournal(
        path, {}, lambda line: (line["a"], line["b"]), lambda a, b: {"a": a, "b": b}, "scores", report, world
    )


def main(folder: str, output: Path) -> None:
    world = distributed.init()
    done = []

    def piece(candidate: int, index: int) -> float:
        # The first takes longest, so that later ones end before it.
        time.sleep(0.3 if (candidate, index) == (0, 0) else 0.01)
        done.append((candidate, index))
        return (candidate + 1) / (index + 3)

    how = InPieces(3, piece, sum)
    values = journal_of(output / "scores.jsonl", world).measure(range(8), how, world.size)
    first = len(done)
    alone = journal_of(output / "alone.jsonl", world).measure(range(4), lambda c: world.rank, 1)

    stopped = False
    signals.stop_code = lambda: 15 if world.rank == world.size - 1 and len(done) > first + 1 else 0
    try:
        journal_of(output / "stopped.jsonl", world).measure(range(200), how, world.size)
    except Interrupted:
        stopped = True
    signals.stop_code = lambda: 0

    seen = {}
    settings = EvaluationData(data_dir=folder, workers=0, crop_fraction=1.0, bad_images=0.2)
    nodes = {"one": lambda: "a", "two": lambda: "ab"[world.rank % 2]}
    for name, identity in nodes.items():
        evaluation.node_identity = identity
        images = EvaluationSet.load(settings, 32, [0.5] * 3, [0.5] * 3, world, True)
        first_pixel = int(images.pixels[0, 0, 0, 0])
        distributed.barrier(world)
        if world.rank == 0:
            images.pixels[0, 0, 0, 0] = first_pixel ^ 255
        distributed.barrier(world)
        changed = int(images.pixels[0, 0, 0, 0]) != first_pixel
        distributed.barrier(world)
        images.pixels[0, 0, 0, 0] = first_pixel
        distributed.barrier(world)
        seen[name] = {
            "digest": hashlib.sha256(images.images.numpy().tobytes()).hexdigest(),
            "labels": images.labels.tolist(), "total": images.total, "left_out": images.left_out, "changed": changed,
        }  # fmt: skip
    # Neither memory nor a disk to share: each has its own.
    shared_memory._create = lambda kind, size: (None, "")
    images = EvaluationSet.load(settings, 32, [0.5] * 3, [0.5] * 3, world, True)
    seen["private"] = hashlib.sha256(images.images.numpy().tobytes()).hexdigest()
    told = {"values": values, "alone": alone, "pieces": first, "stopped": stopped, "seen": seen}
    (output / f"rank_{world.rank}.json").write_text(json.dumps(told))
    distributed.barrier(world)
    distributed.settle()
    distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
