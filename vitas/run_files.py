"""What the files of a run say of it: its configuration, the size of its images, its results. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitas.errors import UserError, is_integer, require_number
from vitas.plain_data import parse_json, read_text, read_yaml
from vitas.run import RunFolder


@dataclass(frozen=True)
class Images:
    """The images that an architecture is for. source: the file that says so, None for a default or what was given."""

    size: int
    classes: int
    source: Path | None = None


# Those of ImageNet, which published networks are for.
IMAGENET = Images(224, 1000)


def recorded_configuration(folder: RunFolder) -> tuple[Path, Mapping[str, Any]] | None:
    """The configuration of a run's last start, as plain data with all defaults, and its file; None before any start.

    Raises `UserError` for a damaged file.
    """
    paths = sorted(folder.starts(), key=lambda path: path.stat().st_mtime)
    if not paths:
        return None
    data = read_yaml(paths[-1])
    if not isinstance(data, Mapping):
        raise UserError(f"{paths[-1]}: must hold the configuration that a program writes when it starts")
    return paths[-1], data


def images_of(folder: RunFolder) -> Images | None:
    """The images of a run, as its last start has recorded them; None before any start."""
    recorded = recorded_configuration(folder)
    if recorded is None:
        return None
    path, data = recorded
    model = data.get("model")
    sizes = [model.get(key) if isinstance(model, Mapping) else None for key in ("image_size", "num_classes")]
    if not (is_integer(sizes[0]) and is_integer(sizes[1])):
        raise UserError(f"{path}: has no model.image_size and model.num_classes; a program writes them when it starts")
    return Images(sizes[0], sizes[1], path)


def run_of(path: Path) -> RunFolder | None:
    """The run that an `architectures.yaml` lies in; None for a file elsewhere."""
    folder = RunFolder(path.absolute().parent.parent)
    return folder if path.absolute() == folder.architectures else None


def read_results(path: Path) -> dict[str, Any]:
    """The numbers of a results.json. Raises `UserError` where the stage `test` has not written one."""
    if not path.exists():
        raise UserError(f"{path}: no such file; the stage test writes it")
    results = parse_json(read_text(path), str(path))
    keys = ("top1", "top5", "macs", "macs_released", "parameters", "images_per_second")
    missing = [key for key in keys if not isinstance(results, dict) or key not in results]
    if not isinstance(results, dict) or missing:
        raise UserError(f"{path}: has no {missing[0]}; it must be what the stage test writes")
    # Genotypes have no count in the released convention.
    for key in keys:
        if results[key] is not None or key != "macs_released":
            require_number(results[key], f"{path}: {key}")
    for key in ("top1", "top5"):
        require_number(results[key], f"{path}: {key}", 0, 100)
    return results
