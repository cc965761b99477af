"""Renames the parameters of released ViTAS files to ours, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from vitas.architecture import Architecture
from vitas.errors import UserError

# A tensor; nothing here computes with one.
Weight = TypeVar("Weight")

PREFIX = "module.net."

_STEM = "backbone_init_stem_Patch_init_0.0."
_NORM = "backbone_Norm_Norm_0.0."
_HEAD = "backbone_FC_FC_0.0.module.0."
_BLOCK = re.compile(r"backbone_Block_Block_(\d+)\.0\.(.+)$")


def is_released(keys: Iterable[str]) -> bool:
    """Whether the keys of a checkpoint are those of the released files."""
    return any(key.startswith(PREFIX) for key in keys)


def rename_keys(state: Mapping[str, Weight]) -> dict[str, Weight]:
    """Rename a released state dict to the names of `vitas.VisionTransformer`.

    Released names count positions, identities included; ours count blocks.
    Raises `UserError` for an unknown name.
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
            raise UserError(f"found the weight {key!r}, which no released ViTAS file has")
    return ours


def released_keys(state: Mapping[str, Weight], architecture: Architecture) -> dict[str, Weight]:
    """Rename a state dict of `vitas.VisionTransformer` to the released names, in its order: inverts `rename_keys`.

    architecture: the network's; its identities determine the position of each block.
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
