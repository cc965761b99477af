"""Networks: the dense `VisionTransformer` of an architecture, the weight-sharing `SuperNet` of a search space,
and the `StagedTransformer` of an As-ViT genotype.
"""

from __future__ import annotations

from vitas.asvit.genotype import Genotype
from vitas.catalog import AnyArchitecture, find_architecture
from vitas.models.staged_transformer import StagedTransformer
from vitas.models.supernet import SuperNet
from vitas.models.vision_transformer import VisionTransformer

__all__ = ["StagedTransformer", "SuperNet", "VisionTransformer", "create_model"]


def create_model(
    name_or_architecture: str | AnyArchitecture,
    num_classes: int = 1000,
    image_size: int = 224,
    drop_path_rate: float = 0.0,
) -> VisionTransformer | StagedTransformer:
    """The dense network, with fresh weights, of an architecture, a canonical text or a name in the zoo.

    An `Architecture` gives a `VisionTransformer`, a `Genotype` a `StagedTransformer`.
    """
    architecture = find_architecture(name_or_architecture)
    if isinstance(architecture, Genotype):
        return StagedTransformer(architecture, num_classes, image_size, drop_path_rate)
    return VisionTransformer(architecture, num_classes, image_size, drop_path_rate)
