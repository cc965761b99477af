"""Networks: the dense `VisionTransformer` of an architecture, and the `SuperNet` that shares weights between all."""

from vitas.models.supernet import SuperNet
from vitas.models.vision_transformer import VisionTransformer
from vitas.models.zoo import create_model, resolve_architecture, zoo

__all__ = ["SuperNet", "VisionTransformer", "create_model", "resolve_architecture", "zoo"]
