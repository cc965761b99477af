"""The file formats of an export: how each is written, and how its users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

import safetensors.torch
import torch
from torch import Tensor

from inference.chosen import Chosen
from vitas import checkpoint, released
from vitas.errors import UserError
from vitas.models import create_model

Forward = Callable[[Tensor], Tensor]
METADATA = "metadata.json"
_BATCH = torch.export.Dim("batch")


@dataclass(frozen=True)
class Format:
    """A file format.

    ending: of the default file name.
    write: writes a network to an open file.
    run: a written file as images [B, 3, H, W] -> logits [B, C]; `Chosen` says which shapes to expect.
    tolerance: how far logits may be off, in parts of the largest; 0 is not at all.
    needs: packages of the extra `export`.
    """

    ending: str
    write: Callable[[Chosen, IO[bytes]], object]
    run: Callable[[Path, Chosen], Forward]
    tolerance: float = 0.0
    needs: tuple[str, ...] = ()

    def require(self) -> None:
        """Raises `UserError` where a package that it needs is missing."""
        for package in self.needs:
            try:
                import_module(package)
            except ImportError:
                raise UserError(f"this format needs {package}; pip install 'vitas[export]'") from None


def _write_onnx(chosen: Chosen, file: IO[bytes]) -> None:
    program = torch.onnx.export(
        _trace(chosen),
        dynamo=True,
        dynamic_shapes=({0: _BATCH},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    program.model.metadata_props.update(chosen.texts)
    file.write(program.model_proto.SerializeToString())


def _run_onnx(path: Path, chosen: Chosen) -> Forward:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(chosen: Chosen, file: IO[bytes]) -> None:
    torch.export.save(_trace(chosen), file, extra_files={METADATA: json.dumps(chosen.facts)})


def _run_pt2(path: Path, chosen: Chosen) -> Forward:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _trace(chosen: Chosen) -> torch.export.ExportedProgram:
    size = chosen.network.image_size
    # The example goes into the file too, so it is no picture. A batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size)
    program = torch.export.export(chosen.network, (example,), dynamic_shapes=({0: _BATCH},))
    for node in program.graph.nodes:
        # It would tell the folders of this machine to whoever gets the file.
        node.meta.pop("stack_trace", None)
    return program


def _write_safetensors(chosen: Chosen, file: IO[bytes]) -> None:
    # Readers of Hugging Face ask for the framework under this name.
    file.write(safetensors.torch.save(chosen.network.state_dict(), chosen.texts | {"format": "pt"}))


def _write_released(chosen: Chosen, file: IO[bytes]) -> None:
    state = {
        "epoch": checkpoint.read(chosen.path).get("epoch", 0),
        "model": released.released_keys(chosen.network.state_dict(), chosen.network.architecture),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(state, file)


def _run_weights(path: Path, chosen: Chosen) -> Forward:
    network = create_model(chosen.network.architecture, chosen.network.num_classes, chosen.network.image_size)
    checkpoint.load_weights(network, path)
    return network.eval()


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _run_onnx, 1e-4, ("onnx", "onnxscript", "onnxruntime")),
    "pt2": Format(".pt2", _write_pt2, _run_pt2, 1e-4),
    "safetensors": Format(".safetensors", _write_safetensors, _run_weights),
    "released": Format("_released.pth", _write_released, _run_weights),
}
