"""The key names of released ViTAS files <-> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vitas.architecture import Architecture
from vitas.errors import UserError

PREFIX = "module.net."

_STEM = "backbone_init_stem_Patch_init_0.0."
_NORM = "backbone_Norm_Norm_0.0."
_HEAD = "backbone_FC_FC_0.0.module.0."
_BLOCK = re.compile(r"backbone_Block_Block_(\d+)\.0\.(.+)$")


def is_released(keys) -> bool:
    """Whether a checkpoint's key names are those of the released files."""
    return any(key.startswith(PREFIX) for key in keys)


def rename_keys(state: Mapping) -> dict:
    """A released state dict under the names of `vitas.VisionTransformer`.

    Released names count positions, identities included; ours count blocks.
    """
    positions = sorted({int(m[1]) for key in state if (m := _BLOCK.match(key.removeprefix(PREFIX)))})
    ours = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if match := _BLOCK.match(name):
            ours[f"blocks.{positions.index(int(match[1]))}.{match[2]}"] = value
        elif name.startswith(_STEM):
            ours[name.removeprefix(_STEM)] = value
        elif name.startswith(_NORM):
            ours[f"norm.{name.removeprefix(_NORM)}"] = value
        elif name.startswith(_HEAD):
            ours[f"head.{name.removeprefix(_HEAD)}"] = value
        else:
            raise UserError(f"key {key!r} has a name that no released ViTAS file has")
    return ours


def released_keys(state: Mapping, architecture: Architecture) -> dict:
    """A state dict of `vitas.VisionTransformer` under the released names, in its order: the inverse of `rename_keys`.

    architecture: the network's, whose identities say at which position each block stands.
    """
    positions = [position for position, block in enumerate(architecture.blocks) if not block.is_identity]
    theirs = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "blocks":
            index, _, rest = rest.partition(".")
            name = f"backbone_Block_Block_{positions[int(index)]}.0.{rest}"
        elif part == "norm":
            name = _NORM + rest
        elif part == "head":
            name = _HEAD + rest
        else:
            name = _STEM + key
        theirs[PREFIX + name] = value
    return theirs
