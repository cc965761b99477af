"""The JSON Schema of the YAML, for editors, and the tables of docs/configuration.md; both from the sections' classes.

What keys mean stands in `meanings.yaml`; all else is the classes'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vitas.budget import Budget
from vitas.config.model import Importance, Model
from vitas.config.retrain import Retrain, TokenPhase
from vitas.config.run_config import RunConfig
from vitas.config.sample import Adapt, Finalists, Prescreen, Race, Sample
from vitas.config.search import AsvitSearch, Growth, Panel, Search, Subnets
from vitas.config.test import Test
from vitas.config.training import Distillation, NotFinite, Training
from vitas.config_section import defaults_of, fields_of, is_section, sections_in
from vitas.data.folders import Augmentation, EvaluationData, TrainingData, WeakAugmentation
from vitas.elastic_space import Shares
from vitas.plain_data import read_yaml
from vitas.space import SearchSpace

MEANINGS = Path(__file__).with_name("meanings.yaml")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# So large that it is no bound that anybody need know of.
_NO_BOUND = 10**6


@dataclass(frozen=True)
class Table:
    """A table of docs/configuration.md: the section whose keys it lists, without those of `beside`.

    variants: further classes of the section with other defaults, by what uses them; the first is the section's own.
    """

    section: type
    beside: type | None = None
    variants: Mapping[str, type] | None = None


# By their headings.
TABLES = {
    "Top level": Table(RunConfig),
    "`model`": Table(Model),
    "`model.space`": Table(SearchSpace),
    "`model.space` of a pretrained network": Table(Shares),
    "`model.importance`": Table(Importance),
    "`search` and `retrain`: the recipe": Table(Training),
    "`not_finite`": Table(NotFinite),
    "`distillation`": Table(Distillation),
    "`search` only": Table(Search, Training),
    "`search.subnets`": Table(Subnets),
    "`search.panel`": Table(Panel),
    "`search` with `method: asvit`": Table(AsvitSearch),
    "`search.growth`": Table(Growth),
    "`retrain` only": Table(Retrain, Training),
    "`retrain.tokens`": Table(TokenPhase),
    "Data of `search` and `retrain`": Table(TrainingData),
    "`augmentation`": Table(Augmentation, None, {"retrain": Augmentation, "search": WeakAugmentation}),
    "`sample`": Table(Sample),
    "`sample.race`": Table(Race),
    "`sample.adapt`": Table(Adapt),
    "`sample.finalists`": Table(Finalists),
    "`sample.prescreen`": Table(Prescreen),
    "`sample.budget`": Table(Budget),
    "Data of `sample` and `test`": Table(EvaluationData),
    "`test`": Table(Test),
}


@cache
def _meanings() -> dict[str, dict[str, str]]:
    found = read_yaml(MEANINGS)
    if not isinstance(found, dict):
        raise ValueError(f"{MEANINGS} must hold sections of keys")
    return found


def meaning(section: type, key: str) -> str:
    """What a key of a section means, in Markdown; of its own class, or of the one that it has the key from."""
    for each in section.__mro__:
        if key in _meanings().get(each.__name__, {}):
            return str(_meanings()[each.__name__][key])
    raise KeyError(f"{MEANINGS.name} does not say what {section.__name__}.{key} means")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a run's YAML, with what every key means."""
    schema = RunConfig.model_json_schema()
    classes = {"RunConfig": RunConfig} | {each.__name__: each for each in _sections_within(RunConfig)}
    for name, part in {"RunConfig": schema, **schema["$defs"]}.items():
        part["description"] = part.get("description", "").partition("\n")[0]
        for key, value in part["properties"].items():
            # pydantic makes a title of the key, which says nothing more.
            value.pop("title", None)
            # Editors show this beside the key, where links lead nowhere.
            value["description"] = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", meaning(classes[name], key))
    return {"$schema": _DIALECT, **schema, "title": "A run of vitas"}


def _sections_within(section: type) -> set[type]:
    inner = (part for annotation in fields_of(section).values() for part in sections_in(annotation))
    return {section}.union(*map(_sections_within, inner))


def write_tables(page: str) -> str:
    """docs/configuration.md with the tables of its sections' keys made anew; all other text stays."""
    schema = json_schema()
    for heading, table in TABLES.items():
        pattern = rf"^## {re.escape(heading)}\n(?:(?!^## ).*\n)*?((?:^\| key \|.*\n)(?:^\|.*\n)+)"
        found = re.search(pattern, page, re.MULTILINE)
        if found is None:
            raise ValueError(f"the page has no table of keys under {heading!r}")
        page = page[: found.start(1)] + _markdown(table, schema) + page[found.end(1) :]
    return page


def _markdown(table: Table, schema: Mapping[str, Any]) -> str:
    section = table.section
    inherited = fields_of(table.beside) if table.beside else {}
    variants = table.variants or {"": section}
    heads = [f"default (`{name}`)" if name else "default" for name in variants]
    lines = ["| key | type | " + " | ".join(heads) + " | meaning |", "|---" * (3 + len(heads)) + "|"]
    for key in fields_of(section):
        if key in inherited:
            continue
        cells = [
            f"`{key}`",
            _words(_part(section, schema)["properties"][key], key, schema),
            *(_default(each, key) for each in variants.values()),
            meaning(section, key),
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def _part(section: type, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a section, or of one that has all its keys."""
    if section is RunConfig:
        return schema
    alike = sorted(each.__name__ for each in _sections_within(RunConfig) if issubclass(each, section))
    name = section.__name__ if section.__name__ in schema["$defs"] else alike[0]
    found: Mapping[str, Any] = schema["$defs"][name]
    return found


def _default(section: type, key: str) -> str:
    defaults = defaults_of(section)
    if key not in defaults:
        return "*required*"
    return "see below" if is_section(type(defaults[key])) else f"`{_value(defaults[key])}`"


def _value(value: object) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.5g}" if value != int(value) else f"{value:.1f}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def _words(part: Mapping[str, Any], key: str, schema: Mapping[str, Any]) -> str:
    """What a key may hold, in words, from its schema."""
    options = [option for option in part.get("anyOf", part.get("oneOf", [part])) if option.get("type") != "null"]
    if len(options) > 1:
        words = [_words(option, key, schema) for option in options]
        return (", or " if any("," in word for word in words) else " or ").join(dict.fromkeys(words))
    (option,) = options
    if len(part.get("anyOf", ())) > 1 and part.get("default") is not None:
        return f"{_words(option, key, schema)} or null"
    if "oneOf" in option:
        return _words(option, key, schema)
    if "$ref" in option:
        return "section"
    if "const" in option:
        # It chooses between sections, which have a value each; the others are of those where it is required.
        others = {other["properties"][key]["const"] for other in _with_tag(key, schema)} if "default" in part else set()
        return _listed([option["const"], *sorted(others - {option["const"]})])
    if "enum" in option:
        return _listed([value for value in option["enum"] if not isinstance(value, bool)])
    kind = option.get("type")
    if kind == "array":
        items = option.get("items", {})
        if "enum" in items:
            return f"list of {_listed(items['enum'], 'and')}"
        inner = _words(items, key, schema)
        few = {2: "two ", 3: "three "}.get(option.get("minItems", 0) if "maxItems" in option else 0, "list of ")
        return few + re.sub(r"^(section|integer|number|string)", r"\1s", inner)
    if kind in ("integer", "number"):
        return f"{kind}{_range(option)}"
    names = {"boolean": "true or false", "object": "mapping"}
    if "pattern" in option:
        return "a share such as `60%`"
    return names.get(str(kind), str(kind))


def _with_tag(key: str, schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for part in schema["$defs"].values() if "const" in part["properties"].get(key, {})]


def _listed(values: Sequence[object], last: str = "or") -> str:
    words = [str(value) if isinstance(value, int) else f"`{value}`" for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _range(option: Mapping[str, Any]) -> str:
    low, above = option.get("minimum"), option.get("exclusiveMinimum")
    high, below = option.get("maximum"), option.get("exclusiveMaximum")
    if high is not None and high > _NO_BOUND:
        high = None
    if low is not None and high is not None:
        return f", {_value(low)} to {_value(high)}"
    start = f" above {above}" if above is not None else f" from {low}" if low is not None and below is not None else ""
    if start:
        end = f", at most {high}" if high is not None else f", below {below}" if below is not None else ""
        return start + end
    return f", {low} or more" if low is not None else ""
