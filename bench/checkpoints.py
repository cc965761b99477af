"""How long a training stands still for a checkpoint that is written by it, or beside it; how much steps slow meanwhile.

    python bench/checkpoints.py [--megabytes 10 100 500] [--rounds 5] [--step-ms 20] [--folder FOLDER]

Both ways write the same state, with the same durability, in turn. The limit is
a copy of the state in memory, which is measured too. A step is a number of
matrix products on the device that the training would have. On a CPU the peer of
the thread is a process that writes the same, to which no lock of Python's is in
the way.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vitas.background_save import BackgroundSave
from vitas.checkpoint import CheckpointFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, help="on the file system to measure; by default a temporary one")
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


def measure(
    megabytes: Sequence[int] = (10, 100, 500), rounds: int = 5, step_ms: float = 20.0, folder: Path | None = None
) -> dict[str, Any]:
    """Of each size of a state: seconds, as [least, median, most] over the rounds, and how much longer steps take.

    The first copy, which has to find its memory, is not among the rounds.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = Step(step_ms, device)
    found: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "sizes": []}
    for size in megabytes:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            found["sizes"].append({"megabytes": size, **_of_size(size, rounds, step, Path(temporary), device)})
    return found


def _of_size(size: int, rounds: int, step: Step, folder: Path, device: torch.device) -> dict[str, Any]:
    state = {"epoch": 1, "step": 1, "model": _weights(size, device)}
    checkpoints, told = CheckpointFolder(folder), Told()
    write = partial(checkpoints.save, ends_epoch=False, is_best=False)
    seconds: dict[str, list[float]] = {}
    with BackgroundSave(device, told) as background:  # type: ignore[arg-type]  # it asks no more of a report
        for number in range(rounds + 1):
            took = {"copy in memory": _seconds(lambda: {name: t.clone() for name, t in state["model"].items()}, device)}
            took["stands still, written by itself"] = _seconds(lambda: write(_on_host(state)), device)
            alone = [step.seconds() for _ in range(20)]
            began = time.perf_counter()
            took["stands still, written beside"] = _seconds(lambda: background.save(state, write), device)
            beside = []
            while told.saved <= number:
                background.before_change()
                beside.append(step.seconds())
                background.poll()
            took["until it is durable, written beside"] = time.perf_counter() - began
            if device.type == "cpu":
                peer = _steps_beside_a_process(partial(write, state), step)
                took["step meanwhile, written by a process"] = sum(peer) / len(peer)
            took["step"] = median(alone)
            took["step meanwhile"] = sum(beside) / len(beside)
            took["longest step meanwhile"] = max(beside)
            for name, each in took.items() if number else ():
                seconds.setdefault(name, []).append(each)
    slower = median(seconds["step meanwhile"]) / median(seconds["step"])
    return {"slower": slower, "seconds": {name: [min(s), median(s), max(s)] for name, s in seconds.items()}}


def _steps_beside_a_process(write: Callable[[], object], step: Step) -> list[float]:
    """The seconds of steps while a process, which is forked, writes."""
    pid = os.fork()
    if not pid:
        write()
        os._exit(0)
    steps = [step.seconds()]
    while not os.waitpid(pid, os.WNOHANG)[0]:
        steps.append(step.seconds())
    return steps


class Told:
    """A report that counts the checkpoints that it was told of."""

    def __init__(self) -> None:
        self.saved = 0

    def checkpoint_saved(self, path: Path) -> None:
        self.saved += 1

    def line(self, *texts: str) -> None:
        print(*texts)


class Step:
    """Matrix products that take about so many milliseconds."""

    def __init__(self, milliseconds: float, device: torch.device) -> None:
        self._matrix, self._repeat = torch.randn(512, 512, device=device), 1
        once = median(self.seconds() for _ in range(20))
        self._repeat = max(1, round(milliseconds / 1e3 / once))

    def seconds(self) -> float:
        return _seconds(self._multiply, self._matrix.device)

    def _multiply(self) -> None:
        for _ in range(self._repeat):
            torch.mm(self._matrix, self._matrix)


def _weights(size: int, device: torch.device) -> dict[str, Tensor]:
    """As many bytes as a state of a network of 12 blocks, in as many tensors."""
    count = 12 * 12 * 3
    return {f"blocks.{i}.weight": torch.randn(size * 250_000 // count, device=device) for i in range(count)}


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"model": {name: tensor.cpu() for name, tensor in state["model"].items()}}


def _seconds(work: Any, device: torch.device) -> float:
    _synchronize(device)
    began = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
