"""The ends of a budget: numbers, or shares of what the widest network of a space costs, as 60%."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from vitas.config_section import MOST
from vitas.errors import is_integer

_PERCENTAGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?) ?%")


def share_of(bound: int | str) -> float | None:
    """The share that a percentage says, None for a number. Raises `ValueError` above 100%, and for another text."""
    if not isinstance(bound, str):
        return None
    match = _PERCENTAGE.fullmatch(bound)
    if match is None or float(match[1]) > 100:
        raise ValueError
    return float(match[1]) / 100


def _end(least: int) -> Callable[[object], int | str]:
    """The check of an end of a budget: an integer from `least` on, or a text such as 60%."""

    def check(value: object) -> int | str:
        try:
            if isinstance(value, str) and share_of(value) is not None:
                return value
        except ValueError:
            pass
        if is_integer(value) and least <= value <= MOST:
            return value
        raise ValueError(
            f"found {value!r}; it must be an integer, {least} or more, or a share of the widest network, as 60%"
        )

    return check


def _schema(least: int) -> WithJsonSchema:
    number = {"type": "integer", "minimum": least, "maximum": MOST}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": rf"^{_PERCENTAGE.pattern}$"}]})


Minimum = Annotated[int | str, PlainValidator(_end(0)), _schema(0)]
Maximum = Annotated[int | str, PlainValidator(_end(1)), _schema(1)]


def number_of(bound: int | str) -> int:
    """An end that is a number. Raises `ValueError` for a share."""
    if isinstance(bound, str):
        raise ValueError(f"{bound} of the widest network is no number before a space is known (Budget.of)")
    return bound
