"""What the commands share: how a command is declared, arguments that several take, and answers as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from rich.console import Console

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose --help ends with examples, as they are typed."""

    examples: tuple[str, ...] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in self.examples))


def command(*examples: str, name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command. examples: for its --help; they begin with `vitas`, or are a comment."""

    def declare(function: Callable[..., Any]) -> Command:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        made = click.command(name, cls=Command, context_settings=settings)(function)
        made.examples = examples
        return made

    return declare


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 alone
    """A value that a function makes of a text; its `ValueError` says what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parsed(name: str, parse: Callable[[str], Any]) -> _Parsed:
    """The type of an option. parse: raises `ValueError`, whose message says what was found and what would be right."""
    return _Parsed(name, parse)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"found {text!r}; it must be a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"found {text!r}; it must be a whole number above 0")
    return int(text)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def read_amount(text: str, what: str) -> int:
    """Parse a number that may have a unit: 1300000000, 1.3G, 600M. what: it is, for the `ValueError`."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].lower() in ("k", "m", "g") else (text, "")
    try:
        value = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise ValueError(f"found {text!r}; it must be {what}")
    return value


NATURAL = parsed("n", _natural)
POSITIVE = parsed("n", _positive)
PATH = click.Path(path_type=Path)


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The dotted keys of the YAML that begin so; and files."""
    from vitas.config import RunConfig
    from vitas.config_section import fields_of, sections_in

    def keys(section: type, prefix: str = "") -> list[str]:
        found = []
        for key, annotation in fields_of(section).items():
            inner = sections_in(annotation)
            found += [f"{prefix}{key}="] if not inner else []
            for each in inner:
                found += keys(each, f"{prefix}{key}.")
        return list(dict.fromkeys(found))

    if "=" in incomplete:
        return []
    return [CompletionItem(key) for key in keys(RunConfig) if key.startswith(incomplete)]


def _complete_config(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


CONFIG_HELP = "CONFIG is a YAML file, or a name in configs/; key=value sets a key of it, as search.epochs=10."


def config_arguments(function: Decorated) -> Decorated:
    """The arguments `config` and `overrides`."""
    function = click.argument("overrides", nargs=-1, metavar="[key=value]...", shell_complete=complete_override)(
        function
    )
    return click.argument("config", metavar="CONFIG", shell_complete=_complete_config)(function)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


def print_json(answer: object) -> None:
    """Print an answer, of plain data, for other programs."""
    print(json.dumps(answer, indent=2, allow_nan=False))


def wide_console(columns: int = 100) -> Console:
    """A console that shows every number whole: so many columns at least, also in a pipe, which has 80 for rich."""
    from rich.console import Console

    return Console(width=max(columns, Console().width))


def cores_here() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with Progress(console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
