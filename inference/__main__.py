"""python -m inference CONFIG [key=value ...]; also python -m inference export and python -m inference predict."""

import sys

from inference.commands import COMMANDS
from vitas.program import run_stages

EPILOG = """\
A trained network can also be taken elsewhere, and tried on pictures:

  python -m inference export CONFIG --format onnx|safetensors|pt2|hf [--output PATH] [key=value ...]
  python -m inference export CONFIG --released [--output PATH] [key=value ...]
  python -m inference predict CONFIG IMAGE_OR_FOLDER... [--csv FILE] [--top K] [key=value ...]

Each has a --help of its own."""

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]](sys.argv[2:])
    else:
        run_stages("inference", "Measure trained networks on the test images.", {"test": "inference.testing"}, EPILOG)
