"""Reading the released ViTAS files: their YAML into ours, and their parameter names into ours and back."""

from vitas.released.backbone import read_model
from vitas.released.configuration import Configuration, read_configuration
from vitas.released.weights import is_released, released_keys, rename_keys

__all__ = ["Configuration", "is_released", "read_configuration", "read_model", "released_keys", "rename_keys"]
