"""A run's YAML as plain data, whether it is in our schema or in the released one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitas.errors import UserError
from vitas.plain_data import apply_override, parse_configuration
from vitas.released.schema import convert, is_released_configuration, is_released_key

# Overrides by our keys that must be applied before a released file is converted, as other keys depend on them.
_ALIASES = {"test.load_name": "test.strategy.load_name", "save_path": "search.strategy.save_path"}


@dataclass(frozen=True)
class Configuration:
    """A configuration in our schema, and how it was converted if the file is a released one.

    data: plain data, unchecked.
    origin: for our dotted keys, the released keys that they come from.
    without_effect: released keys without effect here, with the reason ("" if obvious).
    """

    data: dict[str, Any]
    origin: Mapping[str, str] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_released(self) -> bool:
        return bool(self.origin)

    def explain_without_effect(self) -> list[str]:
        """Lines about the keys without effect: one per name and reason, with the sections that have it."""
        sections: dict[tuple[str, str], list[str]] = {}
        for key, why in self.without_effect.items():
            section, _, name = key.rpartition(".")
            sections.setdefault((name, why), []).append(section)
        return [f"{name} in {', '.join(where)}{f': {why}' if why else ''}" for (name, why), where in sections.items()]

    def in_its_words(self, message: str) -> str:
        """A message that begins with one of our keys, with the key that the released file has for it put in front."""
        key = re.split(r"[^\w.]", message, maxsplit=1)[0]
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            origin = self.origin.get(".".join(parts[:end]))
            if origin:
                return message if origin == key else f"{origin} (here {key}){message[len(key) :]}"
        return message


def read_configuration(text: str, where: str, overrides: Sequence[str] = ()) -> Configuration:
    """The configuration in a YAML text, with `key=value` overrides applied.

    For a released file, overrides may use its keys or ours.

    Raises `UserError`, naming `where`, for a text that is not a configuration or cannot be converted.
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
