"""All that is known of the released ViTAS files.

Their YAML as plain data -> ours, and their key names <-> ours.
"""

from vitas.released.schema import read_model
from vitas.released.weights import is_released, released_keys, rename_keys

__all__ = ["is_released", "read_model", "released_keys", "rename_keys"]
