"""`export`: a trained network in a file for other programs, kept only where it gives the network's own logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from inference.card import measured_of
from inference.network import TrainedNetwork, trained_network
from inference.supernet import name_of_subnet
from vitas import checkpoint, loading, released
from vitas.architecture import Architecture
from vitas.config import RunConfig
from vitas.data.images import channels, normalize, spread_images
from vitas.digests import write_with_digest
from vitas.errors import UserError
from vitas.files import make_folder, write_atomically
from vitas.huggingface import write_huggingface_folder
from vitas.models import create_model
from vitas.report import shown_path

Forward = Callable[[Tensor], Tensor]
METADATA = "metadata.json"
# How many images an export is compared with the network on.
IMAGES = 16
_BATCH = torch.export.Dim("batch")


@dataclass(frozen=True)
class Format:
    """A file format.

    ending: of the default file name.
    write: writes a network to an open file.
    run: makes a written file a function, images [B, 3, H, W] -> logits [B, C].
    tolerance: the most by which logits may differ from the network's, in parts of the largest; 0 is none.
    needs: packages of the extra `export`.
    """

    ending: str
    write: Callable[[TrainedNetwork, IO[bytes]], object]
    run: Callable[[Path, TrainedNetwork], Forward]
    tolerance: float = 0.0
    needs: tuple[str, ...] = ()

    def require(self) -> None:
        """Raises `UserError` if a package that it needs is missing."""
        for package in self.needs:
            try:
                import_module(package)
            except ImportError:
                raise UserError(f"this format needs {package}; pip install 'vitas[export]'") from None


def _write_onnx(trained: TrainedNetwork, file: IO[bytes]) -> None:
    program = torch.onnx.export(
        _trace(trained),
        dynamo=True,
        dynamic_shapes=({0: _BATCH},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props.update(trained.texts)
    file.write(program.model_proto.SerializeToString())


def _run_onnx(path: Path, trained: TrainedNetwork) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(trained: TrainedNetwork, file: IO[bytes]) -> None:
    torch.export.save(_trace(trained), file, extra_files={METADATA: json.dumps(trained.facts)})


def _run_pt2(path: Path, trained: TrainedNetwork) -> Forward:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _trace(trained: TrainedNetwork) -> torch.export.ExportedProgram:
    size = trained.network.image_size
    # The example goes into the file too, so it is no picture. A batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size)
    program = torch.export.export(trained.network, (example,), dynamic_shapes=({0: _BATCH},))
    for node in program.graph.nodes:
        # It would tell the folders of this machine to whoever gets the file.
        node.meta.pop("stack_trace", None)
    return program


def _write_safetensors(trained: TrainedNetwork, file: IO[bytes]) -> None:
    # Readers of Hugging Face ask for the framework under this name.
    file.write(checkpoint.safetensors_bytes(trained.network.state_dict(), trained.texts | {"format": "pt"}))


def _write_released(trained: TrainedNetwork, file: IO[bytes]) -> None:
    state = {
        "epoch": trained.epoch,
        "model": released.released_keys(trained.network.state_dict(), trained.network.architecture),
        "optimizer": {"state": {}, "param_groups": []},
    }
    write_with_digest(file, lambda into: torch.save(state, into))


def _run_weights(path: Path, trained: TrainedNetwork) -> Forward:
    network = create_model(trained.network.architecture, trained.network.num_classes, trained.network.image_size)
    loading.load_weights(network, path)
    return network.eval()


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _run_onnx, 1e-4, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(".pt2", _write_pt2, _run_pt2, 1e-4),
    "safetensors": Format(".safetensors", _write_safetensors, _run_weights),
    "released": Format("_released.pth", _write_released, _run_weights),
}

# The one format that is a folder; timm reads it.
FOLDER = "hf"
# Layouts that only ViTAS's networks have.
VITAS_ONLY = (FOLDER, "released")


def export(config: RunConfig, format_name: str, output: Path | None = None, overwrite: bool = False) -> str:
    """Write the network that the `test` section chooses, and say in one line what was written.

    format_name: one of `FORMATS`, or `FOLDER`.
    output: by default `SAVE_PATH/export/`, named after the checkpoint.
    overwrite: replace what is there.

    Raises `UserError` as `trained_network` does, if the format needs a package
    that is missing, if `output` is there or cannot be written, and if the
    written file's logits are not the network's. Then nothing is written.
    """
    file_format = FORMATS.get(format_name)
    if file_format:
        file_format.require()
    trained = trained_network(config)
    architecture = trained.network.architecture
    if format_name in VITAS_ONLY and not isinstance(architecture, Architecture):
        raise UserError(f"{format_name}: a genotype's network cannot be written so; choose another format")
    if format_name == "released" and architecture.family != "vitas":
        raise UserError(f"released: {architecture} is a plain vision transformer, which that code has not")
    ending = file_format.ending if file_format else f"_{FOLDER}"
    path = output or config.folder.exports / default_name(trained, ending)
    _check_free(path, trained.path, overwrite, is_folder=file_format is None)
    if file_format is None:
        written, compared = _write_folder(trained, path), ""
    else:
        images, source = images_to_compare(trained)
        difference = write_file(trained, file_format, path, images)
        written = path.stat().st_size
        found = f"logits differ by {difference:.1e} of the largest at most" if difference else "the same logits"
        compared = f"; {found}, on {len(images)} {source}"
    unnamed = "" if trained.named else "; class names are not known, so they are numbers"
    return f"{shown_path(trained.path)} -> {shown_path(path)}: {_size(written)}{compared}{unnamed}"


def default_name(trained: TrainedNetwork, ending: str) -> str:
    """The checkpoint's name without what says that it is one: `epoch_300_ckpt.pth.tar` -> `epoch_300.onnx`."""
    if trained.config.test.from_supernet:
        return f"{name_of_subnet(trained.config)}_inherited{ending}"
    stem = trained.path.name
    for suffix in (".tar", ".pth", ".pt", ".safetensors", "_ckpt"):
        stem = stem.removesuffix(suffix)
    return stem + ("_ema" if trained.config.test.weights == "ema" else "") + ending


def images_to_compare(trained: TrainedNetwork) -> tuple[Tensor, str]:
    """Up to 16 test images from end to end of the set, as `test` shows them to the network [n, 3, H, W]; and whose.

    Noise of their mean and deviation, if there are no test images.
    """
    model, data = trained.config.model, trained.config.test.data
    if not Path(data.data_dir).is_dir():
        noise = torch.randn(IMAGES, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
        return noise, f"images of noise ({data.data_dir} is not there)"
    try:
        images = spread_images(
            data.data_dir, IMAGES, model.image_size, data.crop_fraction, data.bad_images, part=data.part
        )
    except UserError as error:
        raise UserError(f"test.data.data_dir: {error}") from None
    return normalize(images, channels(model.mean), channels(model.std)), f"images of {data.data_dir}"


def write_file(trained: TrainedNetwork, file_format: Format, path: Path, images: Tensor) -> float:
    """Write a file, and keep it if its logits are the network's. Returns the `largest_difference` of the two.

    Raises `UserError` if they differ by more than the format allows.
    """
    difference = float("nan")

    def write_and_compare(file: IO[bytes]) -> None:
        nonlocal difference
        file_format.write(trained, file)
        file.flush()
        difference = largest_difference(trained.network, file_format.run(Path(file.name), trained), images)
        # Not `difference > ...`, which a NaN is not.
        if not difference <= file_format.tolerance:
            raise UserError(
                f"{path} is not written: its logits differ from the network's by {difference:.1e} of the largest, "
                f"and may by {file_format.tolerance:.0e}"
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


def _check_free(path: Path, source: Path, overwrite: bool, is_folder: bool) -> None:
    """Raises `UserError` unless a file or folder may be written at `path`; makes the folder that it is in."""
    if path.is_dir() and not is_folder:
        raise UserError(f"--output: found {str(path)!r}, which is a folder; it must be a file")
    if path.exists():
        if path.samefile(source):
            raise UserError(f"--output: found {str(path)!r}, which is the checkpoint itself")
        if not overwrite:
            raise UserError(f"--output: {path} is there already; choose another name, or replace it with --overwrite")
    make_folder(path.parent, "--output")


def _write_folder(trained: TrainedNetwork, path: Path) -> int:
    """Write a Hugging Face folder; returns its size in bytes."""
    model, crop_fraction = trained.config.model, trained.config.test.data.crop_fraction
    write_huggingface_folder(
        path,
        trained.network,
        model.mean,
        model.std,
        trained.class_names,
        trained.facts,
        crop_fraction=crop_fraction,
        measured=measured_of(trained.config, trained.path, trained.network.architecture),
        trained=trained.trained,
    )
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
