"""From a name to a network."""

from __future__ import annotations

from vitas.models.staged_transformer import StagedTransformer
from vitas.models.vision_transformer import VisionTransformer
from vitas.space import Genotype, Network
from vitas.space.published import resolve_architecture, zoo

__all__ = ["create_model", "resolve_architecture", "zoo"]


def create_model(
    name_or_architecture: str | Network,
    num_classes: int = 1000,
    image_size: int = 224,
    drop_path_rate: float = 0.0,
) -> VisionTransformer | StagedTransformer:
    """The dense network, with fresh weights, of what `name_or_architecture` names.

    An `Architecture` gives a `VisionTransformer`, a `Genotype` a
    `StagedTransformer`; so do their canonical texts and their names in the zoo.
    """
    architecture = resolve_architecture(name_or_architecture)
    kind = StagedTransformer if isinstance(architecture, Genotype) else VisionTransformer
    return kind(architecture, num_classes, image_size, drop_path_rate)
