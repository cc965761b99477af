"""What a run trains: an `Architecture` (ViTAS) or a `Genotype` (As-ViT), told apart by their forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from vitas.space.architecture import Architecture
from vitas.space.genotype import Genotype

Network: TypeAlias = Architecture | Genotype


def parse_network(text: str) -> Network:
    """The network of a canonical text. Raises `UserError` for the part that does not parse."""
    return Genotype.parse(text) if is_genotype(text) else Architecture.parse(text)


def costs(network: Network, image_size: int, num_classes: int) -> dict[str, int | None]:
    """What an image costs, as plain data; `macs_released` is None for a genotype: that convention is ViTAS's."""
    size = (image_size, num_classes)
    return {
        "macs": network.macs(*size),
        "macs_released": network.macs(*size, "released") if isinstance(network, Architecture) else None,
        "parameters": network.parameters(*size),
    }


def is_genotype(text: str) -> bool:
    """Whether a text is meant as a genotype: `8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180`."""
    return "|" in text


def network_from_dict(data: Mapping) -> Network:
    """The network of a YAML form. Raises `UserError` for a key or number that is wrong."""
    return Genotype.from_dict(data) if "stages" in data else Architecture.from_dict(data)
