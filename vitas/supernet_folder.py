"""A trained supernet as a folder from which anyone takes a network for their own budget, without training.

    network = vitas.load_supernet("FOLDER").best(macs=600_000_000)

The folder holds the weights (`model.safetensors`), what they are and how images
are made ready for them (`supernet.json`), and beside them the front: subnets
and their accuracy, measured (`front.yaml`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter

from vitas import checkpoint, loading
from vitas.architecture import Architecture
from vitas.elastic_space import AnySpace, ElasticSpace
from vitas.errors import UserError, require_integer, require_number, require_text
from vitas.files import write_folder
from vitas.models import SuperNet, VisionTransformer
from vitas.plain_data import json_bytes, parse_json, read_text, read_yaml
from vitas.space import SearchSpace

ABOUT, FRONT, WEIGHTS = "supernet.json", "front.yaml", "model.safetensors"
COSTS = ("macs", "parameters")


@dataclass(frozen=True)
class Member:
    """A subnet whose accuracy was measured with the supernet's weights.

    top1: in percent, on the val images of the search. macs: multiply-adds an image.
    """

    architecture: Architecture
    top1: float
    macs: int
    parameters: int


@dataclass(frozen=True)
class ReleasedSupernet:
    """A supernet and its front.

    supernet: with its trained weights, in eval mode.
    front: the measured subnets that no other one beats in MACs and accuracy, by MACs.
    mean, std, class_names, crop_fraction: how images are made ready, and what the logits mean.
    """

    supernet: SuperNet
    front: tuple[Member, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    crop_fraction: float

    def member(self, macs: int | None = None, parameters: int | None = None) -> Member:
        """The most accurate measured subnet within the limits. Raises `UserError` where none is."""
        limits = {name: limit for name, limit in (("macs", macs), ("parameters", parameters)) if limit is not None}
        within = [m for m in self.front if all(getattr(m, name) <= limit for name, limit in limits.items())]
        if not within:
            name, limit = next(iter(limits.items()))
            least = min(getattr(member, name) for member in self.front)
            raise UserError(f"{name}: found {limit:,}; the smallest network of this supernet's front has {least:,}")
        return max(within, key=lambda member: (member.top1, -member.macs))

    def best(self, macs: int | None = None, parameters: int | None = None) -> VisionTransformer:
        """The dense network of `member`, in eval mode: images [B, 3, H, W] -> logits [B, classes]."""
        return self.subnet(self.member(macs, parameters).architecture)

    def subnet(self, architecture: Architecture | str) -> VisionTransformer:
        """The dense network of any subnet, measured or not. Raises `UserError` for one outside the space."""
        if isinstance(architecture, str):
            architecture = Architecture.parse(architecture)
        return self.supernet.extract(architecture)


def front_of(members: Iterable[Member]) -> list[Member]:
    """The members that no other one beats in MACs and top-1, by MACs."""
    front: list[Member] = []
    for member in sorted(members, key=lambda m: (m.macs, -m.top1)):
        if not front or member.top1 > front[-1].top1:
            front.append(member)
    return front


def write_supernet_folder(
    folder: Path,
    supernet: SuperNet,
    members: Sequence[Member],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    crop_fraction: float,
    facts: Mapping[str, object],
) -> None:
    """Write a supernet, whole or not at all. facts: what is known of it, plain data for people.

    Raises `UserError` where a subnet is more than one network, and without a measured subnet.
    """
    require_one_network(supernet)
    if not members:
        raise UserError("no subnet was measured with this supernet; run `sample` first")
    about = {
        "format": 1,
        "space": _space_to_dict(supernet.space),
        "sharing": supernet.scheme.name,
        "qkv_mode": supernet.qkv_mode,
        "image_size": supernet.image_size,
        "num_classes": supernet.num_classes,
        "mean": list(mean),
        "std": list(std),
        "class_names": list(class_names),
        "crop_fraction": crop_fraction,
        "facts": dict(facts),
    }
    rows = [
        {"text": str(m.architecture), "top1": m.top1, "macs": m.macs, "parameters": m.parameters}
        for m in front_of(members)
    ]
    files = {
        ABOUT: json_bytes(about),
        FRONT: yaml.safe_dump({"front": rows}, sort_keys=False, width=120).encode(),
        WEIGHTS: checkpoint.safetensors_bytes(
            {name: value.detach().cpu().contiguous() for name, value in supernet.state_dict().items()}, {}
        ),
    }
    write_folder(folder, files)


def require_one_network(supernet: SuperNet) -> None:
    """Raise `UserError` where the logits of a subnet are the sum of several networks'."""
    scheme = supernet.scheme
    if len(scheme.scoring_sides) > 1:
        raise UserError(
            f"with {scheme.name} sharing a subnet is {len(scheme.scoring_sides)} networks whose logits are summed; "
            "retrain it (retrain.from_supernet)"
        )


def load_supernet(folder: str | Path) -> ReleasedSupernet:
    """The supernet of a folder that `python -m inference export --supernet` wrote.

    Only weights and plain data are read. Raises `UserError` for any other folder.
    """
    folder = Path(folder)
    missing = [name for name in (ABOUT, FRONT, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}; it must be a folder that `export --supernet` wrote")
    try:
        # Whatever they hold: all of it is checked where it is used.
        about: Any = parse_json(read_text(folder / ABOUT), str(folder / ABOUT))
        space = _space_from_dict(about["space"])
        sizes = [require_integer(about[name], name) for name in ("num_classes", "image_size")]
        if not all(1 <= size <= 1_000_000 for size in sizes):
            raise UserError(f"num_classes and image_size are {sizes[0]:,} and {sizes[1]:,}")
        given = space, *sizes, about["sharing"], about["qkv_mode"]
        _require_weights(given, folder / WEIGHTS)
        supernet = SuperNet(*given)
        rows: Any = read_yaml(folder / FRONT)
        front = [
            Member(
                Architecture.parse(row["text"]),
                require_number(row["top1"], "top1", 0, 100),
                *(require_integer(row[name], name) for name in COSTS),
            )
            for row in rows["front"]
        ]
        if not front:
            raise UserError("the front is empty")
        mean, std = (tuple(require_number(value, name) for value in about[name]) for name in ("mean", "std"))
        class_names = tuple(require_text(name, "class_names") for name in about["class_names"])
        crop_fraction = require_number(about["crop_fraction"], "crop_fraction", 0, 1)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: {ABOUT} or {FRONT} is not what `export --supernet` writes ({error!r})") from None
    loading.load_weights(supernet, folder / WEIGHTS)
    return ReleasedSupernet(supernet.eval(), tuple(front), mean, std, class_names, crop_fraction)


def _require_weights(given: tuple[Any, ...], path: Path) -> None:
    """Raise `UserError` where the arguments of `SuperNet` describe more weights than a file of them can hold.

    They are a few characters of a file that may be anyone's, and would else take all memory there is.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in SuperNet(*given).parameters())
    # No format has less than a byte a weight.
    if count > path.stat().st_size:
        raise UserError(f"it describes {count:,} weights, more than {path.name} holds")


def _space_to_dict(space: AnySpace) -> dict[str, Any]:
    if isinstance(space, ElasticSpace):
        return space.to_dict()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(space).items()}


def _space_from_dict(data: Mapping[str, Any]) -> AnySpace:
    if "network" in data:
        return ElasticSpace.from_dict(data)
    # As in a run's YAML, so with the same checks of types.
    return TypeAdapter(SearchSpace).validate_python(dict(data))
