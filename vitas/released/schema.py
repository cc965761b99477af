"""The YAML of the released ViTAS files as plain data -> ours."""

from __future__ import annotations

from collections.abc import Mapping

from vitas.space import Architecture, SearchSpace


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
