"""python -m inference CONFIG [key=value ...]; also python -m inference export and python -m inference predict.

torch, which takes seconds to load, is loaded once the arguments and the configuration are right.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from vitas import config as configuration
from vitas.errors import exit_on_user_error
from vitas.program import positive, quick_imports, run_stages

EPILOG = """\
A trained network can also be taken elsewhere, and tried on pictures:

  python -m inference export CONFIG --format onnx|safetensors|pt2|hf [--output PATH] [key=value ...]
  python -m inference export CONFIG --released [--output PATH] [key=value ...]
  python -m inference export CONFIG --supernet [--output FOLDER] [key=value ...]
  python -m inference predict CONFIG IMAGE_OR_FOLDER... [--csv FILE] [--top K] [key=value ...]

Each has a --help of its own."""

# The names of the formats of `inference.export`, which loads torch.
FORMATS = ("onnx", "safetensors", "pt2", "hf")
# The exit code of `predict` where it answered some pictures, or tried to, and named others that it could not read.
INCOMPLETE = 1
RELEASED = "released"
SUPERNET = "supernet"
_OVERRIDE = re.compile(r"\w+(\.\w+)*=")
_CHOICE = "The test section of CONFIG says which network, as for the stage: test.load_name=FILE, test.weights=ema, ..."


def run_export(arguments: list[str]) -> None:
    """`python -m inference export`."""
    parser = argparse.ArgumentParser(
        prog="python -m inference export",
        description=f"Write a trained network for other programs, compared with what it was written from. {_CHOICE}",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key of it")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--format",
        choices=FORMATS,
        help="ONNX; safetensors under this project's names; torch.export; a Hugging Face folder for timm",
    )
    kind.add_argument(
        "--released", dest="format", action="store_const", const=RELEASED, help="the layout of the released ViTAS files"
    )
    kind.add_argument(
        "--supernet",
        dest="format",
        action="store_const",
        const=SUPERNET,
        help="a folder with the supernet and its measured front, for vitas.load_supernet",
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help="default: SAVE_PATH/export/CHECKPOINT.FORMAT")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    parsed = parser.parse_intermixed_args(arguments)
    with exit_on_user_error():
        config = configuration.load(parsed.config, parsed.overrides)
        with quick_imports():
            from inference.export import export
            from inference.supernet import export_supernet

        if parsed.format == SUPERNET:
            print(export_supernet(config, parsed.output, parsed.overwrite))
            return
        print(export(config, parsed.format, parsed.output, parsed.overwrite))


def run_predict(arguments: list[str]) -> None:
    """`python -m inference predict`."""
    parser = argparse.ArgumentParser(
        prog="python -m inference predict",
        description=f"Show the most probable classes of pictures. {_CHOICE}",
    )
    parser.add_argument("config", metavar="CONFIG", help="a YAML file (see configs/)")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="IMAGE_OR_FOLDER, key=value",
        help="pictures, folders of them (with all below), and keys of CONFIG to set; ./a=b.png is a picture",
    )
    parser.add_argument("--csv", metavar="FILE.csv", help="write a CSV file too; - prints it in place of the table")
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes of a picture (default: 5)")
    parsed = parser.parse_intermixed_args(arguments)
    overrides = [word for word in parsed.words if _OVERRIDE.match(word)]
    places = [word for word in parsed.words if not _OVERRIDE.match(word)]
    if not places:
        parser.error("the following arguments are required: IMAGE_OR_FOLDER")
    with exit_on_user_error():
        config = configuration.load(parsed.config, overrides)
        with quick_imports():
            from inference.predict import predict

        whole = predict(config, places, parsed.top, parsed.csv)
    if not whole:
        sys.exit(INCOMPLETE)


COMMANDS = {"export": run_export, "predict": run_predict}


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]](sys.argv[2:])
    else:
        run_stages("inference", "Measure trained networks on the test images.", EPILOG)
