"""Named architectures, and how a name, text, mapping or file becomes an architecture.

Names are those of the published networks (`zoo`), and those that a search gives
its results in `architectures.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from vitas.architecture import Architecture, Block
from vitas.asvit.genotype import Genotype
from vitas.errors import UserError, require_text
from vitas.files import write_text
from vitas.plain_data import read_yaml
from vitas.space import SearchSpace

# What a run trains. Both have a text and a YAML form, costs, and image sizes that fit.
AnyArchitecture: TypeAlias = Architecture | Genotype

# Refers to the first entry of architectures.yaml.
BEST = "best"

_RATIOS = tuple(i / 10 for i in range(1, 11))
# The spaces in which the published networks were found (arXiv 2106.13700).
SPACE_ABE = SearchSpace((14, 16, 32), 384, 16, (3, 6, 12, 16), 1440, 1440, _RATIOS)
SPACE_F = SearchSpace((14, 16, 32), 768, 13, (3, 6, 12, 16), 2880, 2880, _RATIOS, identity=False)

_NET_IDS = {
    "vitas_a": (
        SPACE_ABE,
        "1 2 4 3 4 4 1 3 4 3 4 4 4 4 3 3 4 0 0 3 1 6 7 9 4 3 6 8 4 9 1 8 6 4 9 2 7 6 8 9 3 0 3 8 7 0 5 7 9 8 4 4",
    ),
    "vitas_b": (
        SPACE_ABE,
        "1 3 4 4 3 4 3 4 4 2 2 4 2 3 4 4 1 0 0 4 1 5 1 6 2 2 2 3 2 9 2 6 3 9 5 7 7 5 6 4 8 1 5 3 2 8 5 9 2 4 5 5",
    ),
    "vitas_e": (
        SPACE_ABE,
        "1 3 4 3 4 3 1 4 0 4 2 1 2 4 2 1 2 0 0 8 4 4 1 7 6 5 3 8 5 6 5 6 3 6 3 4 4 4 8 8 8 7 4 0 4 5 9 5 3 6 7 8",
    ),
    "vitas_f": (
        SPACE_F,
        "1 3 3 3 3 3 3 3 3 3 3 3 3 3 0 0 3 2 5 0 7 5 2 3 6 6 2 4 4 8 7 4 6 7 2 6 1 6 6 4 7 5 7",
    ),
}

# As-ViT's architectures, grown from one topology (arXiv 2202.11921).
_GENOTYPES = {
    "asvit_small": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88",
    "asvit_base": "8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116",
    "asvit_large": "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180",
}

# Top-1 and top-5 on ImageNet-1k in percent, as published (arXiv 2106.13700 and 2202.11921; DeiT: arXiv 2012.12877).
PUBLISHED_ACCURACY: dict[str, tuple[float, float | None]] = {
    "vitas_a": (71.1, 89.8),
    "vitas_b": (72.4, 90.6),
    "vitas_c": (74.7, 92.0),
    "vitas_e": (77.4, 93.8),
    "vitas_f": (80.6, 95.1),
    "asvit_small": (81.2, None),
    "asvit_base": (82.5, None),
    "asvit_large": (83.5, None),
    "deit_tiny": (72.2, None),
    "deit_small": (79.8, None),
}


def _uniform(embed_dim: int, heads: int, qkv_dim: int, mlp_dim: int) -> Architecture:
    return Architecture(16, embed_dim, (Block(heads, qkv_dim, mlp_dim),) * 12)


@cache
def _zoo() -> dict[str, AnyArchitecture]:
    found: dict[str, AnyArchitecture] = {name: space.from_net_id(net_id) for name, (space, net_id) in _NET_IDS.items()}
    found["vitas_c"] = _uniform(230, 3, 432, 720)
    found = dict(sorted(found.items()))
    found |= {name: Genotype.parse(text) for name, text in _GENOTYPES.items()}
    return found | {
        "deit_tiny": _uniform(192, 3, 576, 768),
        "deit_small": _uniform(384, 6, 1152, 1536),
    }


def zoo() -> dict[str, AnyArchitecture]:
    """The published architectures by name: ViTAS A, B, C, E, F; As-ViT Small, Base, Large (genotypes); DeiT Ti, S."""
    return dict(_zoo())


def find_architecture(
    reference: str | Mapping[str, Any] | AnyArchitecture,
    listed: Mapping[str, AnyArchitecture] | None = None,
    space: SearchSpace | None = None,
) -> AnyArchitecture:
    """The architecture that `reference` refers to.

    reference: an architecture; `best` or a name in `listed`; a name in the zoo;
        a canonical text; FILE.yaml:NAME; a mapping, either {net_id: ...} in
        `space` or an architecture's YAML form.
    listed: what a search found, by name, best first.

    Raises `UserError` for an unknown reference, with similar names, and for one
    that refers to several.
    """
    if isinstance(reference, Architecture | Genotype):
        return reference
    if isinstance(reference, Mapping):
        return _from_mapping(reference, space)
    name, listed = reference.strip(), listed or {}
    if name in listed:
        return listed[name]
    if name == BEST and listed:
        return next(iter(listed.values()))
    found = find_architectures(name, also=listed)
    if len(found) != 1:
        raise UserError(f"{name} holds {', '.join(found) or 'nothing'}; name one of them, as FILE:NAME")
    return next(iter(found.values()))


def find_architectures(reference: str, also: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, AnyArchitecture]:
    """The architectures, by name, that a zoo name, a canonical text, FILE.yaml or FILE.yaml:NAME refers to.

    A file is a run's `architectures.yaml`, or the YAML form of one
    architecture. Raises `UserError` for an unknown name, text, file or entry;
    the message suggests names of the zoo and of `also`.
    """
    path, _, entry = reference.partition(":")
    if path.endswith((".yaml", ".yml")):
        return _from_file(path, entry)
    if reference in _zoo():
        return {reference: _zoo()[reference]}
    if "|" in reference or reference.count("-") >= 3:
        return {reference: parse_architecture(reference)}
    names = [*also, *_zoo()]
    near = get_close_matches(reference, names)
    hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(names)}"
    raise UserError(f"no architecture is named {reference!r}; {hint}")


def parse_architecture(text: str) -> AnyArchitecture:
    """The architecture of a canonical text, and of nothing else: what checkpoints and journals hold.

    Raises `UserError`, naming the part that does not parse.
    """
    return Genotype.parse(text) if "|" in require_text(text, "architecture") else Architecture.parse(text)


def _from_mapping(data: Mapping[str, Any], space: SearchSpace | None) -> AnyArchitecture:
    if "net_id" in data:
        if set(data) != {"net_id"}:
            raise UserError(f"found {data!r}; net_id must be the only key, its space is model.space")
        if space is None:
            raise UserError("model.space: is missing; it says what may be searched")
        return space.from_net_id(data["net_id"])
    return Genotype.from_dict(data) if "stages" in data else Architecture.from_dict(data)


def _from_file(path: str, entry: str) -> dict[str, AnyArchitecture]:
    data = read_yaml(Path(path))
    if isinstance(data, Mapping) and {"blocks", "stages"} & set(data):
        return {path: _from_mapping(data, None)}
    found = read_found(Path(path))
    if not entry:
        return found
    if entry not in found:
        raise UserError(f"{path} holds no {entry!r}; it holds {', '.join(found)}")
    return {entry: found[entry]}


@dataclass(frozen=True)
class Found:
    """An entry of architectures.yaml. facts: its score and costs as plain data, for people to read."""

    name: str
    architecture: AnyArchitecture
    facts: Mapping[str, Any]


def write_found(path: Path, entries: Sequence[Found]) -> None:
    """Write architectures.yaml atomically; `entries` are best first."""
    rows = [
        {"name": e.name, **e.facts, "text": str(e.architecture), "architecture": e.architecture.to_dict()}
        for e in entries
    ]
    write_text(path, yaml.safe_dump({"architectures": rows}, sort_keys=False, width=120))


def as_markdown(entries: Sequence[Found]) -> str:
    """A table of entries, for programs that show text."""
    facts = list(dict.fromkeys(key for e in entries for key in e.facts))
    rows = [["name", *facts, "architecture"], ["---"] * (len(facts) + 2)]
    # In the text of a genotype, bars stand between its parts.
    rows += [[e.name, *(_shown(e.facts.get(key)) for key in facts), f"`{e.architecture}`"] for e in entries]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _shown(fact: object) -> str:
    if fact is None:
        return ""
    return f"{fact:,.4g}" if isinstance(fact, float) else f"{fact:,}" if isinstance(fact, int) else str(fact)


def read_found(path: Path) -> dict[str, AnyArchitecture]:
    """The architectures of an architectures.yaml by name, best first. Raises `UserError` for any other file."""
    data = read_yaml(path)
    rows = data.get("architectures") if isinstance(data, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"{path}: must hold a list of architectures under the key architectures")
    found = {}
    for i, row in enumerate(rows):
        if "name" not in row or not isinstance(row.get("architecture"), Mapping):
            raise UserError(f"{path}: entry {i} must have a name and an architecture")
        try:
            found[str(row["name"])] = _from_mapping(row["architecture"], None)
        except UserError as error:
            raise UserError(f"{path}: {row['name']}: {error}") from None
    return found
