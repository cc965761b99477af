"""`UserError`, the exception for mistakes that a user can fix, and checks that raise it.

Every program catches it at the top, prints its message and exits with code 2
(see `exit_on_user_error`). Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import io
import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

# The exit code after a `UserError`.
MISTAKE = 2

# Characters of a message's line. Messages quote what was found, which may be all of a file.
_LINE = 2000


class UserError(ValueError):
    """A mistake of the user. The message says which key or file, what it held and what would be right.

    Of a very long line the middle is left out: the beginning says where, and the end what would be right.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_shortened, message.split("\n"))))


def _shortened(line: str) -> str:
    half = _LINE // 2 - 20
    return line if len(line) <= _LINE else f"{line[:half]} [{len(line) - 2 * half:,} more] {line[-half:]}"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into its message on stderr and exit code 2, and a closed pipe (`| head`) into a quiet exit."""
    print_any_name()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except BrokenPipeError:
        # Python flushes stdout again at exit, which would print another traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, what a shell reports for a program that SIGPIPE ended.


def print_any_name() -> None:
    """Have what this process prints show a name that its terminal cannot, in Python's notation, not end it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


# Unicode's categories of control characters, halves of characters (bytes that are no UTF-8), and line breaks.
_NOT_IN_A_LINE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def require_one_line(text: str, key: str | None = None) -> str:
    """Return `text`. Raises `UserError`, beginning with `key` if there is one, if it holds a control character.

    For all that reaches an sbatch file, where a newline ends a comment and begins a command, or a command of Slurm.
    """
    if any(unicodedata.category(character) in _NOT_IN_A_LINE for character in text):
        start = f"{key}: " if key else ""
        raise UserError(f"{start}found {text!r}; it must be one line, without control characters")
    return text


def printable(text: str) -> str:
    """A name on one line, as any terminal and file takes it: what cannot be printed is written as in Python.

    A name of the file system may hold line breaks, and bytes that are no UTF-8, which Python reads as halves of
    characters and refuses to write.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer and not a bool, which Python counts as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_integer(value: object, key: str) -> int:
    """Return `value`. Raises `UserError`, beginning with `key`, unless it is an integer."""
    if not is_integer(value):
        raise UserError(f"{key} is {value!r}; it must be an integer")
    return value


def require_text(value: object, key: str) -> str:
    """Return `value`. Raises `UserError`, beginning with `key`, unless it is a string."""
    if not isinstance(value, str):
        raise UserError(f"{key} is {value!r}; it must be a text")
    return value


def require_number(value: object, key: str, least: float = -math.inf, most: float = math.inf) -> float:
    """Return `value`. Raises `UserError`, beginning with `key`, unless it is a finite number from least to most."""
    # Of integers too: they may be too large to be divided or drawn.
    low, high = max(least, -sys.float_info.max), min(most, sys.float_info.max)
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return value
    ends = [f" {word} {end:g}" for word, end in (("from", least), ("to", most)) if math.isfinite(end)]
    raise UserError(f"{key} is {value!r}; it must be a finite number{''.join(ends)}")


def number_from_environment(name: str) -> float | None:
    """The number in an environment variable, None if unset. Raises `UserError` unless it is a number of 0 or more."""
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
