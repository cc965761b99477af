"""`export`: a trained network in a file for other programs, kept only where it gives the network's own logits."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from inference.chosen import Chosen, choose
from inference.formats import FORMATS, Format, Forward
from vitas.config import RunConfig
from vitas.data import channels, normalize, spread_images
from vitas.errors import UserError
from vitas.files import make_folder, write_atomically
from vitas.report import shown_path
from vitas.space import Architecture

IMAGES = 16
# Layouts that only ViTAS's networks have.
VITAS_ONLY = ("hf", "released")


def export(config: RunConfig, format_name: str, output: Path | None = None, overwrite: bool = False) -> str:
    """Write the network that the `test` section chooses, and say in one line what was written.

    format_name: one of `FORMATS`, or `hf`, which is a folder.
    output: by default `SAVE_PATH/export/`, named after the checkpoint.
    overwrite: replace what is there.

    Raises `UserError` as `choose` does; where the format needs a package that
    is missing, where `output` is there or cannot be written, and where the
    written file's logits are not the network's. Then nothing is written.
    """
    form = FORMATS.get(format_name)
    if form:
        form.require()
    chosen = choose(config)
    if format_name in VITAS_ONLY and not isinstance(chosen.network.architecture, Architecture):
        raise UserError(f"{format_name}: a genotype's network cannot be written so; choose another format")
    path = output or config.folder.exports / default_name(chosen, form.ending if form else f"_{format_name}")
    _check_free(path, chosen.path, overwrite, is_folder=form is None)
    if form is None:
        written, compared = _write_folder(chosen, path), ""
    else:
        images, source = images_to_compare(chosen)
        difference = write_file(chosen, form, path, images)
        written = path.stat().st_size
        found = f"logits differ by {difference:.1e} of the largest at most" if difference else "the same logits"
        compared = f"; {found}, on {len(images)} {source}"
    unnamed = "" if chosen.named else "; class names are not known, so they are numbers"
    return f"{shown_path(chosen.path)} -> {shown_path(path)}: {_size(written)}{compared}{unnamed}"


def default_name(chosen: Chosen, ending: str) -> str:
    """The checkpoint's name without what says that it is one: `epoch_300_ckpt.pth.tar` -> `epoch_300.onnx`."""
    stem = chosen.path.name
    for suffix in (".tar", ".pth", ".pt", ".safetensors", "_ckpt"):
        stem = stem.removesuffix(suffix)
    return stem + ("_ema" if chosen.config.test.weights == "ema" else "") + ending


def images_to_compare(chosen: Chosen) -> tuple[Tensor, str]:
    """Up to 16 test images from end to end of the set, as `test` shows them to the network [n, 3, H, W]; and whose.

    Where there are no test images, noise of their mean and deviation.
    """
    model, data = chosen.config.model, chosen.config.test.data
    if not Path(data.data_dir).is_dir():
        noise = torch.randn(IMAGES, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
        return noise, f"images of noise ({data.data_dir} is not there)"
    try:
        images = spread_images(data.data_dir, IMAGES, model.image_size, data.crop_fraction)
    except UserError as error:
        raise UserError(f"test.data.data_dir: {error}") from None
    return normalize(images, channels(model.mean), channels(model.std)), f"images of {data.data_dir}"


def write_file(chosen: Chosen, form: Format, path: Path, images: Tensor) -> float:
    """Write a file, and keep it if its logits are the network's. Returns the `largest_difference` of the two.

    Raises `UserError` where they are off by more than the format allows.
    """
    difference = float("nan")

    def write_and_compare(file: IO[bytes]) -> None:
        nonlocal difference
        form.write(chosen, file)
        file.flush()
        difference = largest_difference(chosen.network, form.run(Path(file.name), chosen), images)
        # Not `difference > ...`, which a NaN is not.
        if not difference <= form.tolerance:
            raise UserError(
                f"{path} is not written: its logits differ from the network's by {difference:.1e} of the largest, "
                f"and may by {form.tolerance:.0e}"
            )

    with torch.no_grad():
        write_atomically(path, write_and_compare)
    return difference


def largest_difference(network: Forward, exported: Forward, images: Tensor) -> float:
    """The largest difference of two networks' logits, in parts of the largest logit.

    They are run on all images in one batch, and on each alone: [n, 3, H, W] -> logits [n, C].
    """
    batches = [torch.cat([images] * 3) if len(images) == 1 else images, *images.split(1)]
    expected = torch.cat([network(batch) for batch in batches])
    found = torch.cat([exported(batch) for batch in batches])
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _check_free(path: Path, checkpoint: Path, overwrite: bool, is_folder: bool) -> None:
    """Raises `UserError` unless a file or folder may be written at `path`; makes the folder that it is in."""
    if path.is_dir() and not is_folder:
        raise UserError(f"--output: found {str(path)!r}, which is a folder; it must be a file")
    if path.exists():
        if path.samefile(checkpoint):
            raise UserError(f"--output: found {str(path)!r}, which is the checkpoint itself")
        if not overwrite:
            raise UserError(f"--output: {path} is there already; choose another name, or replace it with --overwrite")
    make_folder(path.parent, "--output")


def _write_folder(chosen: Chosen, path: Path) -> int:
    """Write a Hugging Face folder; returns its size in bytes."""
    from vitas.models.huggingface import write_huggingface_folder

    model, crop_fraction = chosen.config.model, chosen.config.test.data.crop_fraction
    write_huggingface_folder(
        path, chosen.network, model.mean, model.std, chosen.class_names, chosen.facts, crop_fraction=crop_fraction
    )
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
