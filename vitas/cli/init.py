"""`vitas init`: a commented YAML for the images in a folder, or a copy of one that comes with this project."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from vitas import packaged
from vitas.cli.options import PATH, command
from vitas.data.survey import survey
from vitas.errors import UserError
from vitas.files import make_folder, write_text
from vitas.plain_data import read_text
from vitas.slurm.local import count_gpus
from vitas.suggestion import suggest


@command(
    "vitas init flowers/                                       # flowers/train, flowers/val, flowers/test, or classes",
    "vitas init flowers/ --output flowers.yaml --save-path runs/flowers",
    "vitas init flowers/ --gpus 8                              # for another machine than this one",
    "vitas init --list                                         # the YAMLs that come with vitas",
    "vitas init --from search/ViTAS_1G --output vitas_1g.yaml",
)
@click.argument("folder", type=PATH, default=".", metavar="[FOLDER]")
@click.option("--output", type=PATH, metavar="FILE", help="By default vitas.yaml in this folder; with --from its name.")
@click.option("--save-path", metavar="FOLDER", help="Where the run writes to; by default runs/NAME.")
@click.option("--gpus", type=click.IntRange(0), metavar="N", help="Of the machine it is for; by default this one's.")
@click.option("--list", "lists", is_flag=True, help="List the YAMLs that come with vitas.")
@click.option("--from", "name", metavar="NAME", help="Copy one of those, with its comments.")
@click.option("--overwrite", is_flag=True, help="Replace what is there already.")
def init(
    folder: Path,
    output: Path | None,
    save_path: str | None,
    gpus: int | None,
    lists: bool,
    name: str | None,
    overwrite: bool,
) -> None:
    """Write a commented YAML for the images in FOLDER, this one by default.

    FOLDER holds train, val and test, each with one folder of images per class; or train alone, or the classes of train
    images themselves. Image size, search space, budget, epochs and batch size follow from the images, their number,
    their classes and the machine; the comments say how.
    """
    if lists:
        print("\n".join(packaged.names()))
        return
    if name is not None:
        source = packaged.find(name)
        output = output or Path(source.name)
        _write(output, read_text(source), overwrite)
        print(f"{output}: a copy of {name}\nnext: vitas check {shlex.quote(str(output))}")
        return
    output = output or Path("vitas.yaml")
    _check_free(output, overwrite)
    found = survey(folder)
    here = count_gpus() if gpus is None else gpus
    named = folder.resolve().name or "run"
    chosen = suggest(found, save_path or f"runs/{named}", shlex.quote(str(output)), here)
    _write(output, chosen.yaml, overwrite)
    counted = ", ".join(f"{count:,} {part}" for part, count in found.images.items())
    print(
        f"{output}: {counted} images of {chosen.classes:,} classes, at {chosen.image_size} px; "
        f"{chosen.budget}; {chosen.epochs[0]} and {chosen.epochs[1]} epochs in batches of {chosen.batch_size}\n"
        f"next: vitas check {shlex.quote(str(output))}"
    )


def _check_free(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise UserError(f"--output: found {str(output)!r}, which is a folder; it must be a file")
    if output.exists() and not overwrite:
        raise UserError(f"--output: {output} is there already; choose another name, or replace it with --overwrite")


def _write(output: Path, text: str, overwrite: bool) -> None:
    _check_free(output, overwrite)
    make_folder(output.parent, "--output")
    write_text(output, text)
