"""Networks: the dense `VisionTransformer` of an architecture, the `SuperNet` that shares weights between all,
and the `StagedTransformer` of an As-ViT genotype.
"""

from vitas.models.staged_transformer import StagedTransformer
from vitas.models.supernet import SuperNet
from vitas.models.vision_transformer import VisionTransformer
from vitas.models.zoo import create_model, resolve_architecture, zoo

__all__ = ["StagedTransformer", "SuperNet", "VisionTransformer", "create_model", "resolve_architecture", "zoo"]
