"""Files: where a run keeps them, writing none by halves, and reading YAML as data only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import yaml

from vitas.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie: the one place that knows the layout under `save_path`.

    The `sample` stage writes beside `search`, and `test` beside `retrain`.
    """

    root: Path

    def checkpoints(self, stage: str) -> Path:
        return self.root / stage / "checkpoint"

    def events(self, stage: str) -> Path:
        return self.root / stage / "events"

    def logs(self, stage: str) -> Path:
        return self.root / stage / "log"

    @property
    def population(self) -> Path:
        return self.root / "search" / "population.jsonl"

    @property
    def architectures(self) -> Path:
        return self.root / "search" / "architectures.yaml"

    @property
    def results(self) -> Path:
        return self.root / "retrain" / "results.json"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it over `path`.

    A process that dies on any line leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text."""
    write_atomically(path, lambda file: file.write(text.encode()))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _YamlLoader(yaml.SafeLoader):
    """YAML as data only, in which 1e-3 is a number and a key may stand only once."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            # What looks like a date or a number and is none, say 2020-13-45.
            raise yaml.constructor.ConstructorError(
                None, None, f"found {node.value!r}: {error}", node.start_mark
            ) from None

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key is {key!r}; it must be a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # YAML 1.1 wants a point and a signed exponent in a float; people write 1e-3.
    re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> object:
    """YAML as plain data. Raises `UserError`, which names `where`, for what is none."""
    try:
        return yaml.load(text, _YamlLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{where} is no valid YAML: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def read_yaml(path: Path) -> object:
    """A YAML file as plain data. Raises `UserError` for a missing file or what is no YAML."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return parse_yaml(text, str(path))


class Journal:
    """A file of JSON lines that grows by whole lines only.

    `lines` are those that an earlier process wrote; a last one that it left
    half written is cut off. Raises `UserError` where any other line is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict] = []
        if not path.exists():
            return
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                raise UserError(f"{path}: line {number} is no JSON; mend it, or move the file away") from None
        if torn:
            os.truncate(path, path.stat().st_size - len(torn))

    def append(self, *records: dict) -> None:
        """Add records and flush them to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        self.lines += records
