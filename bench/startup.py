"""How long programs take to start, beside importing torch alone.

    python bench/startup.py [--rounds 5] [--stages search sample retrain test]

A stage's program counts from its start to its first line, which needs the
configuration, torch, the process group, the lock, and the first network or
images. A configuration with a wrong key counts until it is refused. All of a
round run in turn, each in a process of its own; a first round, which fills the
cache of files, does not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from tests.conftest import small_run
from tests.processes import ENVIRONMENT, REPOSITORY, command
from vitas.data.example_images import write_digits
from vitas.run import STAGES

NAMES = ("search", "sample", "retrain", "test")
TORCH = "import torch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES)
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


def measure(rounds: int = 5, stages: Sequence[str] = NAMES) -> dict[str, Any]:
    """By what is started: seconds, as [least, median, most] over the rounds, and as a share of importing torch."""
    with tempfile.TemporaryDirectory() as temporary:
        config = _prepared(Path(temporary), stages)
        starts: dict[str, Callable[[], None]] = {TORCH: partial(_run, [sys.executable, "-c", "import torch"])}
        starts["import vitas"] = partial(_run, [sys.executable, "-c", "import vitas"])
        for name in stages:
            starts[f"{name}, to its first line"] = partial(_run_to_first_line, _words(name, config))
            # Rejected before anything is read but the YAML.
            wrong = [*_words(name, config), f"{name}.no_such_key=1"]
            starts[f"{name}, with a wrong key"] = partial(_run, wrong, expected=2)
        seconds: dict[str, list[float]] = {name: [] for name in starts}
        for number in range(rounds + 1):
            for name, start in starts.items():
                began = time.perf_counter()
                start()
                if number:
                    seconds[name].append(time.perf_counter() - began)
    of_torch = median(seconds[TORCH])
    return {
        name: {"seconds": [min(took), median(took), max(took)], "of_torch": median(took) / of_torch}
        for name, took in seconds.items()
    }


def _prepared(folder: Path, stages: Sequence[str]) -> Path:
    """A run of small stages, with what the stages that are started read from those before them."""
    write_digits(folder / "digits")
    config = folder / "config.yaml"
    given = small_run(folder / "run", folder / "digits")
    for name in ("search", "retrain"):
        given[name] |= {"epochs": 1, "warmup_epochs": 0}
    given["retrain"]["architecture"] = "p8-e32-token-h2q96m64x2"
    config.write_text(yaml.safe_dump(given))
    for stage, reader in (("search", "sample"), ("retrain", "test")):
        if reader in stages:
            _run(_words(stage, config))
    # Those two are started anew.
    given["save_path"] = str(folder / "started")
    for name in ("search", "retrain"):
        if (folder / "run" / name).exists():
            given["sample" if name == "search" else "test"]["load_name"] = str(
                next((folder / "run" / name / "checkpoint").glob("epoch_1_*"))
            )
    config.write_text(yaml.safe_dump(given))
    return config


def _words(stage: str, config: Path) -> list[str]:
    flags = [f"{name}.flag={str(name == stage).lower()}" for name in NAMES]
    return command(STAGES[stage].program, config, *flags)


def _run(words: list[str], expected: int = 0) -> None:
    done = subprocess.run(words, env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != expected:
        raise RuntimeError(f"{words}: {done.stdout}{done.stderr}")


def _run_to_first_line(words: list[str]) -> None:
    process = subprocess.Popen(
        words, env=ENVIRONMENT, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    line = process.stdout.readline()
    process.kill()
    process.wait()
    if not line or line.startswith("error"):
        raise RuntimeError(f"{words}: {line}")


if __name__ == "__main__":
    main()
