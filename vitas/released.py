"""All that is known of the released ViTAS files.

Their YAML as plain data -> ours, and their key names <-> ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vitas.errors import UserError
from vitas.space import Architecture, SearchSpace

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


def read_model(section: Mapping) -> tuple[Architecture, int]:
    """The architecture and class count of a released YAML's `model` section.

    The rows of its backbone read `[repeat, input dim, heads or patch sizes,
    qkv rows, attention out, MLP hidden, MLP out, searchable, ops]`; with a
    `net_id` they are the maxima of a space, without one the concrete dims.
    """
    backbone = section["backbone"]
    stem, block, norm, classes = (backbone[name] for name in ("init_stem", "Block", "Norm", "FC"))
    concrete = "net_id" not in section
    space = SearchSpace(
        patch_sizes=stem[2],
        embed_dim=stem[4],
        depth=block[0],
        heads=block[2],
        qkv_dim=block[3],
        mlp_dim=block[5],
        widths=[1.0] if concrete else section["channel_percent"],
        identity="id" in block[8],
        classifier=norm[7],
    )
    if concrete:
        return space.largest, classes[4]
    return space.from_net_id(section["net_id"]), classes[4]
