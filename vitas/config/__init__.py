"""From YAML to a typed, checked configuration.

One file drives the four stages. `load` finds mistakes before anything is
built; every message says the key, what it held and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from vitas.config.audit import audit, missing_checkpoint
from vitas.config.checks import check, check_token_phases, doubts
from vitas.config.model import Importance, Model
from vitas.config.retrain import Retrain, TokenPhase
from vitas.config.run_config import RunConfig
from vitas.config.sample import Adapt, Finalists, Prescreen, Race, Sample
from vitas.config.search import AsvitSearch, Growth, Panel, Search, Subnets
from vitas.config.test import Test
from vitas.config.training import ALLOWED_CHANGES, Distillation, NotFinite, Training
from vitas.config_section import explain, without_faults
from vitas.errors import UserError, require_one_line
from vitas.packaged import CLUSTER
from vitas.packaged import FOLDER as CONFIGS
from vitas.plain_data import read_text
from vitas.released import Configuration, read_configuration
from vitas.run import STAGES

__all__ = [
    "ALLOWED_CHANGES",
    "Adapt",
    "AsvitSearch",
    "Distillation",
    "Finalists",
    "Findings",
    "Growth",
    "Importance",
    "Model",
    "NotFinite",
    "Panel",
    "Prescreen",
    "Race",
    "Retrain",
    "RunConfig",
    "Sample",
    "Search",
    "Subnets",
    "Test",
    "TokenPhase",
    "Training",
    "check_token_phases",
    "find",
    "find_mistakes",
    "load",
    "require",
]


def load(path: str | Path, overrides: Sequence[str] = (), stages: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file with `key=value` overrides.

    stages: those that the caller can run; the flagged ones among them are
        checked against the file system too.

    The result's `warning` says what may be a mistake; of a released ViTAS
    file, also the keys without effect. Raises `UserError` with all mistakes found.
    """
    source = read_configuration(read_text(Path(path)), str(path), overrides)
    try:
        config = RunConfig.model_validate(source.data)
    except ValidationError as error:
        raise _mistakes(path, source, explain(error, RunConfig)) from None
    try:
        mistakes = list(check(config, stages))
        found = [] if mistakes else list(doubts(config, stages))
    except OSError as error:
        # Of a folder that is named in it, e.g. one that may not be read.
        raise _mistakes(path, source, [f"{error.filename}: {error.strerror}"]) from None
    if mistakes:
        raise _mistakes(path, source, mistakes)
    warnings = [_released_warning(path, source)] if source.is_released else []
    warnings += found
    config._warning = "\nwarning: ".join(warnings) or None
    return config


@dataclass(frozen=True)
class Findings:
    """What is wrong with a YAML, and what may be. stages: those that were looked at. config: None where none is whole.

    The file's own mistakes come first, then those between keys, then those of the file system.
    """

    stages: tuple[str, ...]
    mistakes: list[str]
    warnings: list[str]
    config: RunConfig | None


def find_mistakes(path: str | Path, overrides: Sequence[str] = ()) -> Findings:
    """Everything that a flagged stage would refuse; where none is flagged, that any stage would that has a section.

    Beside mistakes of type, the rest is looked at as if their keys were left out. Raises `UserError` for a file that
    is no YAML at all.
    """
    text = read_text(Path(path))
    source = read_configuration(text, str(path), overrides)
    sections = [name for name in STAGES if isinstance(source.data.get(name), dict)]
    flagged = [name for name in sections if source.data[name].get("flag") is True]
    if not flagged:
        source = read_configuration(text, str(path), (*overrides, *(f"{name}.flag=true" for name in sections)))
    stages = tuple(flagged or sections)
    mistakes: list[str] = []
    data = source.data
    config = None
    # What is left may be at fault in another way: a section without a key that it needs.
    while config is None:
        try:
            config = RunConfig.model_validate(data)
        except ValidationError as error:
            mistakes += [line for line in explain(error, RunConfig, _EVERY) if line not in mistakes]
            left = without_faults(data, error, RunConfig)
            if left == data:
                # A key is missing that nothing can stand for.
                break
            data = left
    warnings: list[str] = [_released_warning(path, source)] if source.is_released else []
    if config is not None:
        try:
            mistakes += check(config, tuple(STAGES))
            for name in stages:
                mistakes += (*audit(config, name), *missing_checkpoint(config, name))
            warnings += doubts(config, tuple(STAGES))
        except OSError as error:
            # Of a folder that is named in it, e.g. one that may not be read.
            mistakes.append(f"{error.filename}: {error.strerror}")
    # A folder that two sections name is at fault once.
    lines = list(dict.fromkeys(map(source.in_its_words, mistakes)))
    return Findings(stages, lines, warnings, config)


# Mistakes of type that `find_mistakes` lists.
_EVERY = 1000


def _released_warning(path: str | Path, source: Configuration) -> str:
    without_effect = "\n  ".join(source.explain_without_effect())
    return (
        f"{path} is a released ViTAS file (`vitas convert {path}` prints what it means here). "
        f"Of its keys, these have no effect:\n  {without_effect}"
    )


def _mistakes(path: str | Path, source: Configuration, lines: list[str]) -> UserError:
    lines = [source.in_its_words(line) for line in lines]
    return UserError(f"{path}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{path}:", *lines]))


def require(path: Path, overrides: Sequence[str], settings: Sequence[str]) -> tuple[str, ...]:
    """The overrides with `settings` (key=value) added, for a script that is meant for these values of its keys.

    A section that the file does not have stays away. Raises `UserError` if the
    file or the overrides hold another value.
    """
    source = read_configuration(read_text(path), str(path), overrides)
    added = []
    for setting in settings:
        key, _, value = setting.partition("=")
        *parents, last = key.split(".")
        section: object = source.data
        for part in parents:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        found = section.get(last)
        if found not in (None, value):
            line = f"{key}: found {found!r}; this script is for {value!r}. Leave {key} out, or run the script for it"
            raise _mistakes(path, source, [line])
        added.append(setting)
    return (*overrides, *added)


def find(name: str, program: str) -> Path:
    """The path `name`, or `configs/PROGRAM/name`, or `configs/name`; `.yaml` may be left out.

    Raises `UserError`, with similar names, if there is no such file.
    """
    require_one_line(name, "CONFIG")
    for folder in (Path(), CONFIGS / program, CONFIGS):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return path
    known = {path.name: path for folder in (CONFIGS, CONFIGS / program) for path in sorted(folder.glob("*.yaml"))}
    known.pop(CLUSTER, None)
    # ViTAS_1.3 and vitas_1.3g.yaml should both suggest ViTAS_1.3G.yaml.
    by_lower = {known_name.lower().removesuffix(".yaml"): known_name for known_name in known}
    wanted = Path(name).name.lower().removesuffix(".yaml")
    near = [by_lower[match] for match in get_close_matches(wanted, by_lower, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
    raise UserError(f"{name}: no such file, here or in configs/{program}/; {hint}")
