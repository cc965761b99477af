"""architectures.yaml: what a search found, best first, for the stages after it; and what a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vitas.errors import UserError
from vitas.files import read_yaml, write_text
from vitas.space.network import Network, network_from_dict
from vitas.space.published import resolve_architecture


@dataclass(frozen=True)
class Found:
    """One entry. facts: plain data about it (score, costs), for people."""

    name: str
    architecture: Network
    facts: Mapping


def write_found(path: Path, entries: Sequence[Found]) -> None:
    """Write entries, best first, in one atomic step."""
    rows = [
        {"name": e.name, **e.facts, "text": str(e.architecture), "architecture": e.architecture.to_dict()}
        for e in entries
    ]
    write_text(path, yaml.safe_dump({"architectures": rows}, sort_keys=False, width=120))


def read_found(path: Path) -> dict[str, Network]:
    """Names and architectures, best first. Raises `UserError` for a file that is not of this form."""
    data = read_yaml(path)
    rows = data.get("architectures") if isinstance(data, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(f"{path}: must hold a list of architectures under the key architectures")
    found = {}
    for i, row in enumerate(rows):
        if "name" not in row or not isinstance(row.get("architecture"), Mapping):
            raise UserError(f"{path}: entry {i} must have a name and an architecture")
        try:
            found[str(row["name"])] = network_from_dict(row["architecture"])
        except UserError as error:
            raise UserError(f"{path}: {row['name']}: {error}") from None
    return found


def architectures_of(name_or_file: str) -> dict[str, Network]:
    """What a NAME_OR_FILE names: a zoo name, a canonical text, FILE.yaml or FILE.yaml:NAME.

    A file is a run's `architectures.yaml`, or the YAML form of one architecture.
    Raises `UserError` for a name, a text, a file or an entry that is none.
    """
    path, _, entry = name_or_file.partition(":")
    if not path.endswith((".yaml", ".yml")):
        return {name_or_file: resolve_architecture(name_or_file)}
    data = read_yaml(Path(path))
    if isinstance(data, dict) and {"blocks", "stages"} & set(data):
        return {path: network_from_dict(data)}
    found = read_found(Path(path))
    if not entry:
        return found
    if entry not in found:
        raise UserError(f"{path} holds no {entry!r}; it holds {', '.join(found)}")
    return {entry: found[entry]}
