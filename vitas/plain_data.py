"""YAML, JSON and text, read as plain data.

What is read may come from anyone. So everything has a bound here, far above what
is ever written, and whatever exceeds it, or is not what it should be, is a
`UserError` before it takes memory or time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vitas.errors import UserError, require_one_line

# Of a text file.
MAX_BYTES = 4 * 2**20
# Values of a YAML file, with what aliases stand for; 200,000 are a front of 1,700 networks of 12 blocks.
MAX_VALUES = 200_000
# Of a run's YAML, whose keys are compared with all that there are. The longest here has 150.
MAX_CONFIGURATION = 10_000
# Values inside values. Python's own limit is nearer the deeper the caller is.
MAX_DEPTH = 64
# Characters of a number.
MAX_DIGITS = 64


_TAG = "tag:yaml.org,2002:"
_INTEGER, _FLOAT = _NUMBERS = (f"{_TAG}int", f"{_TAG}float")
# What a YAML file may hold; dates are strings.
_PLAIN = tuple(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
# The null character ends a path for the system, and half a surrogate pair cannot be written to any file.
_UNUSABLE = re.compile(r"[\0\ud800-\udfff]")


class _YamlLoader(yaml.SafeLoader):
    """Plain data only, and of bounded size; 1e-3 is a number, 12:00:00 is a string, a repeated key is an error."""

    # YAML 1.1 reads 12:00:00 as a number in base 60; people mean a time limit.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag not in (*_NUMBERS, f"{_TAG}timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag in (*_PLAIN, None)
    }

    def __init__(self, text: str, most: int) -> None:
        super().__init__(text)
        self._most, self._count = most, 0
        # Of the values that are being read, from the outermost inwards: [values in it, values inside each other].
        self._open: list[list[int]] = []
        # The same of those that have been read, by the node's id.
        self._extents: dict[int, list[int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read a value, or what an alias stands for, unless that makes too many or too deep ones."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs have no type for it
        self._open.append([1, 1])
        self._require(event, 1, len(self._open))
        node = super().compose_node(parent, index)
        own = self._open.pop()
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extents:
                self._refuse(event, f"the alias {event.anchor!r} stands for a value that it is in itself")
            own = self._extents[id(node)]
            self._require(event, own[0] - 1, len(self._open) + own[1])
        self._extents[id(node)] = own
        if self._open:
            around = self._open[-1]
            around[0] += own[0]
            around[1] = max(around[1], own[1] + 1)
        return node

    def _require(self, event: yaml.Event, more: int, depth: int) -> None:
        self._count += more
        if self._count > self._most:
            self._refuse(event, f"it holds more than {self._most:,} values, with what its aliases stand for")
        if depth > MAX_DEPTH:
            self._refuse(event, f"it holds more than {MAX_DEPTH} lists and mappings inside each other")

    @staticmethod
    def _refuse(at: yaml.Event | yaml.Node, fault: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, fault, at.start_mark)  # type: ignore[arg-type]  # any mark will do

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        if node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            self._refuse(node, f"found a number of {len(node.value):,} characters; it may have {MAX_DIGITS}")
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError):
            # Text that is not what its form or its tag says, e.g. 0x_ or !!bool maybe.
            kind = node.tag.removeprefix(_TAG)
            self._refuse(node, f"found {node.value!r}, which is no {kind}")
        if isinstance(value, str) and (found := _UNUSABLE.search(value)):
            self._refuse(node, f"found a text with the character U+{ord(found[0]):04X}")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self._refuse(key_node, f"found the key {key!r}; a key must be a word")
            if key in seen:
                self._refuse(key_node, f"the key {key!r} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_YamlLoader.add_implicit_resolver(
    _INTEGER,
    re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_YamlLoader.add_implicit_resolver(
    _FLOAT,
    # YAML 1.1 requires a point and a signed exponent in a float; people write 1e-3.
    re.compile(
        r"[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str, most: int = MAX_VALUES) -> object:
    """YAML as plain data: mappings with strings as keys, lists, strings, numbers, booleans and None.

    most: as many values, with what aliases stand for.

    Raises `UserError`, naming `where`, for invalid YAML and for more.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{where} has {len(text):,} characters; a YAML file may have {MAX_BYTES:,}")
    try:
        return _YamlLoader(text, most).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # The scanner lets some errors of Python through, e.g. for a \U escape beyond Unicode.
        raise UserError(f"{where} is not valid YAML: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def read_yaml(path: Path) -> object:
    """A YAML file as plain data. Raises `UserError` for a missing file, and as `parse_yaml` does."""
    return parse_yaml(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> object:
    """JSON as plain data. Raises `UserError`, naming `where`, for anything else. Numbers may be NaN or infinite."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON") from None


def json_bytes(data: object) -> bytes:
    """Data as JSON in UTF-8, for people too. The bytes of a name that is no UTF-8 become escapes of JSON."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def read_text(path: Path) -> str:
    """A file's text. Raises `UserError` for a missing file, one that is not text, and one of more than 4 MiB."""
    try:
        with open(path, "rb") as file:
            # No more than that, as a device has no end.
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, which no file of this kind has")
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def parse_configuration(text: str, where: str) -> dict[str, Any]:
    """A run's YAML as plain data, unchecked. Raises `UserError`, naming `where`, unless it is a mapping."""
    # YAML anchors make one object of several sections; an override must change only the section it names.
    data = _unshare(parse_yaml(text, where, MAX_CONFIGURATION))
    if not isinstance(data, dict):
        raise UserError(f"{where}: found {type(data).__name__}; it must be a mapping of keys")
    return data


def _unshare(data: object) -> object:
    if isinstance(data, dict):
        return {key: _unshare(value) for key, value in data.items()}
    return [_unshare(value) for value in data] if isinstance(data, list) else data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply one `key=value` override: a dotted key, a YAML value. Raises `UserError` for anything else."""
    require_one_line(override, "key=value")
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"argument {override!r}: it must read key=value, e.g. search.epochs=10")
    value = parse_yaml(text, f"argument {override!r}")
    *sections, last = key.split(".")
    for name in sections:
        if data.get(name) is None:
            data[name] = {}
        data = data[name]
        if not isinstance(data, dict):
            raise UserError(f"argument {override!r}: {name} holds {data!r}, not a section of keys")
    data[last] = value
