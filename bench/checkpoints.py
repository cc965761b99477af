"""How long a training stands still for a checkpoint that is written beside it, and how much steps slow meanwhile.

The peer of standing still is a checkpoint that the training writes itself; both write the same state, with the same
durability. The limit of both, a copy in memory, is measured too. The peer of a step while the thread writes is a step
while nothing is written; and on a CPU a step while a process writes, which no lock of Python's can hinder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from vitas.background_save import BackgroundSave
from vitas.checkpoint import CheckpointFolder

from .rounds import DEVICE, ratio, synchronize

# Of a step's slowing down, where a core is free.
_SLOWER = 1.15


def measure(
    megabytes: Sequence[int] = (10, 100, 500), rounds: int = 8, step_ms: float = 20.0, folder: Path | None = None
) -> list[dict[str, Any]]:
    """folder: on the file system to measure; by default a temporary one."""
    step, rows = Step(step_ms), []
    for size in megabytes:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            took = _of_size(size, rounds, step, Path(temporary))
        itself, steps = took["written by itself"], took["step"]
        rows += [
            {"what": f"{size} MB: stands still", **ratio(took["written beside"], itself)},
            {"what": f"{size} MB: a copy in memory", **ratio(took["copy"], itself)},
            {"what": f"{size} MB: a step meanwhile", **ratio(took["step meanwhile"], steps), "goal": _SLOWER},
        ]
        if "step beside a process" in took:
            row = ratio(took["step beside a process"], steps)
            rows.append({"what": f"{size} MB: a step while a process writes", **row, "goal": _SLOWER})
    return rows


def _of_size(size: int, rounds: int, step: Step, folder: Path) -> dict[str, list[float]]:
    count = 12 * 12 * 3  # As many tensors as the state of a network of 12 blocks has.
    weights = {f"{i}.weight": torch.randn(size * 250_000 // count, device=DEVICE) for i in range(count)}
    state = {"epoch": 1, "step": 1, "model": weights}
    checkpoints, told = CheckpointFolder(folder), Told()
    write = partial(checkpoints.save, ends_epoch=False, is_best=False)
    took: dict[str, list[float]] = {}
    with BackgroundSave(DEVICE, told) as background:
        # The first round, whose copy has to find its memory, does not count.
        for number in range(rounds + 1):
            of_round = {
                "copy": seconds(lambda: [tensor.clone() for tensor in weights.values()]),
                "written by itself": seconds(lambda: write(_on_host(state))),
                "step": median(step.seconds() for _ in range(20)),
                "written beside": seconds(lambda: background.save(state, write)),
            }
            meanwhile = []
            while told.saved <= number:
                background.before_change()
                meanwhile.append(step.seconds())
                background.poll()
            of_round["step meanwhile"] = mean(meanwhile)
            if DEVICE.type == "cpu":
                of_round["step beside a process"] = mean(_steps_beside_a_process(partial(write, state), step))
            for name, each in of_round.items() if number else ():
                took.setdefault(name, []).append(each)
    return took


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
    """What is told of checkpoints in the place of a report: it counts them."""

    def __init__(self) -> None:
        self.saved = 0

    def checkpoint_saved(self, path: Path) -> None:
        self.saved += 1

    def line(self, *texts: str) -> None:
        print(*texts)


class Step:
    """Matrix products that take about so many milliseconds."""

    def __init__(self, milliseconds: float) -> None:
        self._matrix, self._repeat = torch.randn(512, 512, device=DEVICE), 1
        once = median(self.seconds() for _ in range(20))
        self._repeat = max(1, round(milliseconds / 1e3 / once))

    def seconds(self) -> float:
        return seconds(self._multiply)

    def _multiply(self) -> None:
        for _ in range(self._repeat):
            torch.mm(self._matrix, self._matrix)


def _on_host(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"model": {name: tensor.cpu() for name, tensor in state["model"].items()}}


def seconds(work: Callable[[], object]) -> float:
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began
