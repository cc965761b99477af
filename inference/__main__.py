"""python -m inference CONFIG [key=value ...]; also python -m inference export and python -m inference predict."""

from __future__ import annotations

import sys

from inference.commands import export, predict
from vitas.cli import run
from vitas.program import run_stages

EPILOG = """\
A trained network can also be taken elsewhere, and tried on pictures:

  python -m inference export CONFIG --format onnx|safetensors|pt2|hf [--output PATH] [key=value ...]
  python -m inference export CONFIG --released [--output PATH] [key=value ...]
  python -m inference export CONFIG --supernet [--output FOLDER] [key=value ...]
  python -m inference predict CONFIG IMAGE_OR_FOLDER... [--csv FILE] [--top K] [key=value ...]

Each has a --help of its own, and is also a command of `vitas`."""


def run_export(arguments: list[str]) -> None:
    """`python -m inference export`."""
    run(export, "python -m inference export", arguments)


def run_predict(arguments: list[str]) -> None:
    """`python -m inference predict`."""
    run(predict, "python -m inference predict", arguments)


COMMANDS = {"export": run_export, "predict": run_predict}


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]](sys.argv[2:])
    else:
        run_stages("inference", "Measure trained networks on the test images.", EPILOG)
