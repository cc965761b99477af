"""The one exception for mistakes that a user can mend.

Every program of the project catches it at the top, prints its message and
exits with code 2 (see `exit_on_user_error`); anything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """What was wrong: the key or file, what it held, and what would be right."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into its message on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def number_from_environment(name: str) -> float | None:
    """A variable's number; None where it is not set. Raises `UserError` for anything but a number of 0 or more."""
    text = os.environ.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UserError(f"{name}: found {text!r} in the environment; it must be a number of 0 or more")
    return number
