"""`export` and `predict` as commands: of `vitas`, and of `python -m inference`.

torch, which takes seconds to load, is loaded once the arguments and the configuration are right.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from vitas import config as configuration
from vitas.cli.options import PATH, POSITIVE, command, complete_override, config_arguments
from vitas.program import quick_imports
from vitas.run import STAGES

# The names of the formats of `inference.export`, which loads torch.
FORMATS = ("onnx", "safetensors", "pt2", "hf")
# The exit code of `predict` where it answered some pictures, or tried to, and named others that it could not read.
INCOMPLETE = 1
RELEASED = "released"
SUPERNET = "supernet"
_OVERRIDE = re.compile(r"\w+(\.\w+)*=")


@command(
    "vitas export vitas_1g.yaml --format onnx",
    "vitas export vitas_1g.yaml --format safetensors --output vitas_1g.safetensors test.weights=ema",
    "vitas export vitas_1g.yaml --released                     # the layout of the released ViTAS files",
    "vitas export elastic.yaml --supernet                      # for vitas.load_supernet",
)
@config_arguments
@click.option(
    "--format",
    "name",
    type=click.Choice(FORMATS),
    help="ONNX; safetensors under this project's names; torch.export; a Hugging Face folder for timm.",
)
@click.option("--released", is_flag=True, help="The layout of the released ViTAS files.")
@click.option(
    "--supernet",
    is_flag=True,
    help="A folder with the supernet and its measured front, for vitas.load_supernet.",
)
@click.option("--output", type=PATH, help="By default SAVE_PATH/export/CHECKPOINT.FORMAT.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def export(
    config: str,
    overrides: tuple[str, ...],
    name: str | None,
    released: bool,
    supernet: bool,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Write a trained network for other programs, compared with what it was written from.

    The test section of CONFIG says which network, as for the stage: test.load_name=FILE, test.weights=ema, ...
    """
    given = [choice for choice in (name, RELEASED if released else None, SUPERNET if supernet else None) if choice]
    if len(given) != 1:
        raise click.UsageError(
            f"found {' and '.join(given) or 'no format'}; give one of --format --released --supernet"
        )
    loaded = _load(config, overrides)
    with quick_imports():
        from inference.export import export as write
        from inference.supernet import export_supernet

    if supernet:
        print(export_supernet(loaded, output, overwrite))
    else:
        print(write(loaded, given[0], output, overwrite))


@command(
    "vitas predict vitas_1g.yaml picture.jpg",
    "vitas predict vitas_1g.yaml folder/ --csv predictions.csv --top 3",
    "vitas predict vitas_1g.yaml ./a=b.png test.weights=ema    # a picture whose name has an equals sign",
)
@click.argument("config")
@click.argument(
    "words", nargs=-1, required=True, metavar="IMAGE_OR_FOLDER... [key=value]...", shell_complete=complete_override
)
@click.option("--csv", "csv_file", metavar="FILE.csv", help="Write a CSV file too; - prints it in place of the table.")
@click.option("--top", type=POSITIVE, default=5, metavar="K", help="Classes of a picture (5).")
def predict(config: str, words: tuple[str, ...], csv_file: str | None, top: int) -> int:
    """Show the most probable classes of pictures, and of those in folders with all below, packed or not.

    The test section of CONFIG says which network, as for the stage: test.load_name=FILE, test.weights=ema, ...
    """
    overrides = [word for word in words if _OVERRIDE.match(word)]
    places = [word for word in words if not _OVERRIDE.match(word)]
    if not places:
        raise click.UsageError("IMAGE_OR_FOLDER is missing")
    loaded = _load(config, overrides)
    with quick_imports():
        from inference.predict import predict as show

    whole = show(loaded, places, top, csv_file)
    return 0 if whole else INCOMPLETE


def _load(config: str, overrides: tuple[str, ...] | list[str]) -> configuration.RunConfig:
    return configuration.load(configuration.find(config, STAGES["test"].program), overrides)
