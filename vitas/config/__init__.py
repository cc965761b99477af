"""YAML -> typed, checked configuration.

One file drives the four stages. `load` refuses what cannot work before
anything is built: every message has the key, what it held and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from vitas.config.checks import check, token_mistakes
from vitas.config.sections import (
    AsvitSearch,
    BudgetRange,
    Growth,
    Model,
    Retrain,
    RunConfig,
    Sample,
    Search,
    Space,
    Test,
    TokenPhase,
    Training,
)
from vitas.errors import UserError
from vitas.files import read_text
from vitas.released import Configuration, read_configuration
from vitas.settings import explain

__all__ = [
    "AsvitSearch",
    "BudgetRange",
    "Growth",
    "Model",
    "Retrain",
    "RunConfig",
    "Sample",
    "Search",
    "Space",
    "Test",
    "TokenPhase",
    "Training",
    "load",
    "token_mistakes",
]


def load(path: str | Path, overrides: Sequence[str] = (), stages: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file with `key=value` overrides.

    stages: those that the caller could run; of these, the flagged ones are
        checked against the file system too.

    The file may be a released ViTAS one; `warning` of the result then says what of it has no effect.

    Raises `UserError` with every mistake that it found.
    """
    source = read_configuration(read_text(Path(path)), str(path), overrides)
    try:
        config = RunConfig.model_validate(source.data)
    except ValidationError as error:
        raise _mistakes(path, source, explain(error, RunConfig)) from None
    mistakes = list(check(config, stages))
    if mistakes:
        raise _mistakes(path, source, mistakes)
    if source.is_released:
        config._warning = _released_warning(path, source)
    return config


def _released_warning(path: str | Path, source: Configuration) -> str:
    without_effect = "\n  ".join(source.told_without_effect())
    return (
        f"{path} is a released ViTAS file (`vitas convert {path}` prints what it means here). "
        f"Of its keys, these have no effect:\n  {without_effect}"
    )


def _mistakes(path: str | Path, source: Configuration, lines: list[str]) -> UserError:
    lines = [source.in_its_words(line) for line in lines]
    return UserError(f"{path}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{path}:", *lines]))
