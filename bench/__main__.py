"""Runs benchmarks by name: each against a peer or a limit, both sides in one run.

    OMP_NUM_THREADS=1 python -m bench NAME ...          # writes bench/results/NAME-DEVICE.json
    python -m bench --list

The goals are those of docs/performance.md. Run them on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_HOLDS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Benchmark:
    """A module of bench/ with a function `measure() -> rows`, each a dict of plain data with a `ratio`.

    against: the other side. sign, goal: what the ratio should be; on a GPU `on_gpu`, where that differs.
    """

    against: str
    sign: str
    goal: float
    on_gpu: float | None = None

    def goal_on(self, device: str) -> float:
        return self.on_gpu if self.on_gpu is not None and device == "cuda" else self.goal

    def is_met(self, row: dict[str, Any], device: str) -> bool | None:
        """Whether a row meets its own goal, or that of all rows; None where it says that it has none."""
        goal = row.get("goal", self.goal_on(device))
        return None if goal is None else bool(_HOLDS[self.sign](row["ratio"], goal))


BENCHMARKS = {
    "supernet_step": Benchmark("passes of the dense network of the same shape", "<=", 1.05, 1.10),
    "supernet_memory": Benchmark("what the dense network's passes keep for the backward pass", "<=", 1.15),
    "kernels": Benchmark("passes of the dense network, in bfloat16", "<=", 1.5),
    "score": Benchmark("images per second of the dense network", ">=", 0.95),
    "score_folder": Benchmark("decoding the folder for each subnet and side", "<=", 0.15),
    "retrain_step": Benchmark("timm's network of about the same MACs, per MAC", "<=", 0.85),
    "loader": Benchmark("images per second of timm's loader, the same files and recipe", ">=", 2.0),
    "loader_packed": Benchmark("images per second of timm's loader on the files", ">=", 4.0),
    "loader_parts": Benchmark("what it is without ours", "<=", 1.0),
    "resizing": Benchmark("Pillow", "<=", 1.0),
    "optimizer": Benchmark("the fused step over whole weights", "<=", 1.0),
    "gradient_bytes": Benchmark("the gradients of the whole supernet", "<=", 0.30),
    "overlap": Benchmark("the step without reduction", "<=", 1.05),
    "scaling": Benchmark("ranks that are never idle", ">=", 0.90),
    "startup": Benchmark("importing torch alone", "<=", 2.0),
    "asvit": Benchmark("the seconds that are stated for the released As-ViT, speed", ">=", 10),
    "checkpoints": Benchmark("a checkpoint that the training writes itself", "<=", 0.25),
}  # fmt: skip


def device_name() -> str:
    """The device as part of a file's name."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.machine()}-{torch.get_num_threads()}-threads"
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")


def run(name: str) -> bool:
    """Run a benchmark, print its table and write its file. Returns whether all its goals are met."""
    import torch

    benchmark = BENCHMARKS[name]
    rows = import_module(f"bench.{name}").measure()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    record = {
        "name": name,
        "against": benchmark.against,
        "goal": f"{benchmark.sign} {benchmark.goal_on(device)}",
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{record['device']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    table = Table(title=f"{name} against {benchmark.against}, {record['goal']} ({record['device']})")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in [*columns, "met"]:
        table.add_column(column, justify="left" if column == "what" else "right")
    met = [benchmark.is_met(row, device) for row in rows]
    for row, holds in zip(rows, met, strict=True):
        table.add_row(*(str(row.get(column, "")) for column in columns), {None: "", True: "yes", False: "no"}[holds])
    Console().print(table, f"in {path}")
    return False not in met


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*BENCHMARKS, []], help=", ".join(BENCHMARKS))
    parser.add_argument("--list", action="store_true", help="what there is")
    arguments = parser.parse_args()
    if arguments.list or not arguments.names:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:16} {benchmark.sign} {benchmark.goal:<5} against {benchmark.against}")
        return
    # All of them, also after one that misses its goal.
    met = [run(name) for name in arguments.names]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
