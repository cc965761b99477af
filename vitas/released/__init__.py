"""All that is known of the released ViTAS files.

Their YAML as plain data -> ours, and their key names <-> ours.
"""

from vitas.released.backbone import read_model
from vitas.released.configuration import Configuration, read_configuration
from vitas.released.weights import is_released, released_keys, rename_keys

__all__ = ["Configuration", "is_released", "read_configuration", "read_model", "released_keys", "rename_keys"]
