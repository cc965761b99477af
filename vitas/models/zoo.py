"""From a name to a network."""

from __future__ import annotations

from vitas.models.vision_transformer import VisionTransformer
from vitas.space import Architecture
from vitas.space.published import resolve_architecture, zoo

__all__ = ["create_model", "resolve_architecture", "zoo"]


def create_model(
    name_or_architecture: str | Architecture,
    num_classes: int = 1000,
    image_size: int = 224,
    drop_path_rate: float = 0.0,
) -> VisionTransformer:
    """The dense network, with fresh weights, of a zoo name, a canonical text or an `Architecture`."""
    return VisionTransformer(resolve_architecture(name_or_architecture), num_classes, image_size, drop_path_rate)
