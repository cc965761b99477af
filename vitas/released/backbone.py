"""Architectures and search spaces from the backbone rows of a released YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitas.architecture import IDENTITY, MAX_BLOCKS, Architecture, Block, check_block_count
from vitas.errors import UserError, is_integer
from vitas.space import SearchSpace


def read_model(section: Mapping[str, Any], where: str = "model") -> tuple[Architecture, int]:
    """The architecture and class count of a released YAML's `model` section.

    section: its backbone holds the dims of the architecture; or, with `net_id`,
        `channel_percent` and `model_len`, the maxima of its search space.
    where: the section's key, for messages.

    Raises `UserError`, beginning with the key.
    """
    classes = read_classes(section, where)
    if section.get("net_id") is None:
        architecture = _concrete(section, where)
    else:
        ratios = section.get("channel_percent")
        if ratios is None:
            raise UserError(f"{where}.channel_percent: is missing; net_id holds indices into it")
        if not isinstance(ratios, list) or not all(isinstance(ratio, int | float) for ratio in ratios):
            raise UserError(f"{where}.channel_percent: found {ratios!r}; it must be a list of numbers")
        maxima, classes = read_space(section, ratios, where)
        try:
            space = SearchSpace(**maxima)
        except UserError as error:
            raise UserError(f"{where}.backbone: {error}") from None
        model_len = section.get("model_len", space.depth + 3)
        if model_len != space.depth + 3:
            raise UserError(
                f"{where}.model_len: found {model_len!r}; the {space.depth} positions of the row Block "
                f"with patch, norm and classifier make {space.depth + 3}"
            )
        try:
            architecture = space.from_net_id(section["net_id"])
        except UserError as error:
            raise UserError(f"{where}.net_id: {error}") from None
    # Stochastic depth grows over `depth` positions, so identities fill up the missing ones.
    depth = section.get("depth", len(architecture.blocks))
    if not is_integer(depth) or not len(architecture.blocks) <= depth <= MAX_BLOCKS:
        raise UserError(
            f"{where}.depth: found {depth!r}; it must be at least the {len(architecture.blocks)} positions of the row "
            f"Block, and at most {MAX_BLOCKS}"
        )
    padding = (IDENTITY,) * (depth - len(architecture.blocks))
    return (
        Architecture(
            architecture.patch_size, architecture.embed_dim, architecture.blocks + padding, architecture.classifier
        ),
        classes,
    )


def read_space(section: Mapping[str, Any], widths: object, where: str = "model") -> tuple[dict[str, Any], int]:
    """The fields of a `SearchSpace` and the class count, from a section whose backbone holds maxima."""
    patches, dim, block, classifier = _rows(section, where)
    space = {
        "patch_sizes": patches,
        "embed_dim": dim,
        "depth": block[0],
        "heads": block[2],
        "qkv_dim": block[3],
        "mlp_dim": block[5],
        "widths": widths,
        "identity": "id" in block[8],
        "classifier": classifier,
    }
    return space, read_classes(section, where)


def _concrete(section: Mapping[str, Any], where: str) -> Architecture:
    patches, dim, block, classifier = _rows(section, where)
    if len(patches) > 1 or len(block[2]) > 1 or "id" in block[8]:
        raise UserError(f"{where}.net_id: is missing; the rows of {where}.backbone leave a choice")
    try:
        check_block_count(block[0])
        return Architecture(patches[0], dim, (Block(block[2][0], block[3], block[5]),) * block[0], classifier)
    except UserError as error:
        raise UserError(f"{where}.backbone.Block: {error}") from None


_ROW = "[repeat, input dim, heads or patch sizes, qkv rows, attention out, MLP hidden, MLP out, searchable, ops]"
_OPS = {"init_stem": [["Patch_init"]], "Block": [["Block", "id"], ["Block"]], "Norm": [["Norm"]], "FC": [["FC"]]}


def _rows(section: Mapping[str, Any], where: str) -> tuple[list[int], int, list[Any], str]:
    """Patch sizes, embedding dim, the row Block, and what the classifier reads."""
    stem, block, norm = (_row(section, where, name) for name in ("init_stem", "Block", "Norm"))
    backbone = f"{where}.backbone"
    patches = _integers(stem[2], f"{backbone}.init_stem", 2)
    dim = _integer(stem[4], f"{backbone}.init_stem", 4)
    if stem[1] != 3:
        raise UserError(f"{backbone}.init_stem: entry 1 is {stem[1]!r}; images have 3 channels")
    for i in (0, 3, 5):
        _integer(block[i], f"{backbone}.Block", i)
    _integers(block[2], f"{backbone}.Block", 2)
    for name, row, entries in (("Block", block, (1, 4, 6)), ("Norm", norm, (1,))):
        for i in entries:
            if row[i] != dim:
                raise UserError(f"{backbone}.{name}: entry {i} is {row[i]!r}; the embedding dim is {dim} (init_stem)")
    if norm[7] not in ("token", "mean"):
        raise UserError(f"{backbone}.Norm: entry 7 is {norm[7]!r}; it must be 'token' or 'mean'")
    return patches, dim, block, norm[7]


def read_classes(section: object, where: str) -> int:
    """The class count of a section. Raises `UserError`, beginning with the key."""
    return _integer(_row(section, where, "FC")[4], f"{where}.backbone.FC", 4)


def _row(section: object, where: str, name: str) -> list[Any]:
    backbone = section.get("backbone") if isinstance(section, Mapping) else None
    if not isinstance(backbone, Mapping):
        raise UserError(f"{where}.backbone: found {backbone!r}; it must map {', '.join(_OPS)} to rows")
    other = next((stage for stage in backbone if stage not in _OPS), None)
    if other is not None:
        raise UserError(f"{where}.backbone.{other}: unknown stage; the stages are {', '.join(_OPS)}")
    row, key = backbone.get(name), f"{where}.backbone.{name}"
    if not isinstance(row, list) or len(row) != 9:
        raise UserError(f"{key}: found {row!r}; it must be a row {_ROW}")
    if row[8] not in _OPS[name]:
        raise UserError(f"{key}: entry 8 is {row[8]!r}; it must be {' or '.join(map(str, _OPS[name]))}")
    return row


def _integer(value: object, key: str, entry: int) -> int:
    if not is_integer(value) or value < 1:
        raise UserError(f"{key}: entry {entry} is {value!r}; it must be an integer, 1 or more, in {_ROW}")
    return value


def _integers(values: object, key: str, entry: int) -> list[int]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{key}: entry {entry} is {values!r}; it must be a list of integers, in {_ROW}")
    return [_integer(value, key, entry) for value in values]
