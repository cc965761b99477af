"""ViTAS: find vision transformers under a compute budget, and train them."""

from vitas.checkpoint import load_weights
from vitas.models import SuperNet, VisionTransformer, create_model, zoo
from vitas.space import Architecture, Block, SearchSpace

__version__ = "0.1.0"
__all__ = [
    "Architecture",
    "Block",
    "SearchSpace",
    "SuperNet",
    "VisionTransformer",
    "create_model",
    "load_weights",
    "zoo",
]
