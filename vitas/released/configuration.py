"""A run's YAML as plain data, whichever of the two schemas it is written in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vitas.errors import UserError
from vitas.files import apply_override, parse_configuration
from vitas.released.schema import convert, is_released_configuration, is_released_key

# Overrides in our words that decide how the rest of a released file is read.
_ALIASES = {"test.load_name": "test.strategy.load_name", "save_path": "search.strategy.save_path"}


@dataclass(frozen=True)
class Configuration:
    """A configuration in our schema, and what is to be said of a released one that it comes from.

    data: plain data, nothing in it checked.
    origin: the released keys that our dotted keys come from.
    without_effect: released keys that mean nothing here, with the reason ("" where it is plain).
    """

    data: dict
    origin: Mapping[str, str] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_released(self) -> bool:
        return bool(self.origin)

    def explain_without_effect(self) -> list[str]:
        """Lines about the keys that mean nothing here: one for all keys of a name, with where they stand."""
        sections: dict[tuple[str, str], list[str]] = {}
        for key, why in self.without_effect.items():
            section, _, name = key.rpartition(".")
            sections.setdefault((name, why), []).append(section)
        return [f"{name} in {', '.join(where)}{f': {why}' if why else ''}" for (name, why), where in sections.items()]

    def in_its_words(self, message: str) -> str:
        """A message that begins with one of our keys, with the released key that the file has for it."""
        key = re.match(r"[\w.]*", message)[0]
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            origin = self.origin.get(".".join(parts[:end]))
            if origin:
                return message if origin == key else f"{origin} (here {key}){message[len(key) :]}"
        return message


def read_configuration(text: str, where: str, overrides: Sequence[str] = ()) -> Configuration:
    """The configuration of a YAML's text with `key=value` overrides applied.

    Overrides of a released file may name its own keys or ours.

    Raises `UserError`, which names `where`, for what is no configuration or cannot be carried over.
    """
    data = parse_configuration(text, where)
    if not is_released_configuration(data):
        for override in overrides:
            apply_override(data, override)
        return Configuration(data)
    ours = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if is_released_key(_ALIASES.get(key, key)):
            apply_override(data, f"{_ALIASES.get(key, key)}{equals}{value}")
        else:
            ours.append(override)
    try:
        converted = convert(data)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for override in ours:
        apply_override(converted.config, override)
    return Configuration(converted.config, converted.origin, converted.without_effect)
