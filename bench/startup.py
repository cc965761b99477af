"""How long programs take to start, beside importing torch alone.

A stage's program counts from its start to its first line, which needs the configuration, torch, the process group, the
lock, and the first network or images. A configuration with a wrong key counts until it is refused.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import small_run
from tests.processes import ENVIRONMENT, REPOSITORY, command
from vitas.data.example_images import write_digits
from vitas.run import STAGES

from .rounds import in_turn, ratio

NAMES = ("search", "sample", "retrain", "test")
# What loads no torch.
_WITHOUT = 0.5


def measure(rounds: int = 8, stages: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        config = _prepared(Path(temporary), stages)
        sides: dict[str, Callable[[], None]] = {
            "torch": partial(_run, [sys.executable, "-c", "import torch"]),
            "import vitas": partial(_run, [sys.executable, "-c", "import vitas"]),
        }
        for name in stages:
            sides[f"{name}, to its first line"] = partial(_run_to_first_line, _words(name, config))
            wrong = [*_words(name, config), f"{name}.no_such_key=1"]
            sides[f"{name}, with a wrong key"] = partial(_run, wrong, expected=2)
        took = in_turn(sides, rounds)
    of_torch = took.pop("torch")
    return [
        {"what": what, **ratio(each, of_torch), **({} if what.endswith("line") else {"goal": _WITHOUT})}
        for what, each in took.items()
    ]


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
