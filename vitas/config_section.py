"""The base of every section of the YAML, and readable messages for pydantic's errors.

A section is a `Section`, or a frozen dataclass that is also used on its own
(`vitas.space.SearchSpace`, `vitas.budget.Budget`), with `DATACLASS_SECTION` as
its pydantic configuration and fields of the strict types below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from vitas.errors import require_one_line

# No number of a run is nearly so large, and arrays hold it.
MOST = 10**18
Positive = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Count = Annotated[int, Field(ge=0, le=MOST, strict=True)]
Number = Annotated[float, Field(strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
AboveZero = Annotated[float, Field(gt=0, strict=True)]
Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Line = Annotated[str, AfterValidator(require_one_line)]
# YAML has lists; a frozen dataclass holds tuples.
as_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

DATACLASS_SECTION = ConfigDict(extra="forbid", allow_inf_nan=False)


class Section(BaseModel):
    """A section of the YAML: immutable, no unknown keys, no silent conversion between types."""

    # Built when the first file is checked: all sections at once then, and not each by itself before.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested mappings with their dotted keys; an empty mapping counts as a value."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fields_of(section: type[Any]) -> dict[str, Any]:
    """The keys of a section and their annotations."""
    if is_dataclass(section):
        hints = get_type_hints(section, include_extras=True)
        return {field.name: hints[field.name] for field in fields(section)}
    return {name: field.annotation for name, field in section.model_fields.items()}


def defaults_of(section: type[Any]) -> dict[str, Any]:
    """The optional keys of a section and their defaults."""
    if is_dataclass(section):
        return {field.name: field.default for field in fields(section) if field.default is not MISSING}
    return {
        name: field.default for name, field in section.model_fields.items() if field.default is not PydanticUndefined
    }


def is_section(kind: object) -> bool:
    """Whether something is the class of a section."""
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Section))


def sections_in(annotation: Any) -> list[type]:
    """The sections that an annotation allows."""
    if is_section(annotation):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


# Nobody reads more mistakes at once, and similar keys are looked for at each.
_EXPLAINED = 20


def explain(error: ValidationError, root: type, most: int = _EXPLAINED) -> list[str]:
    """One line per mistake, `most` of them: the key, what it held and what is allowed."""
    faults = error.errors()
    # A value that fits no member of a union has a fault for each member; one line is enough.
    lines = list(dict.fromkeys(_explain_fault(fault, root) for fault in faults[:most]))
    return lines + [f"and {len(faults) - most:,} more"] * (len(faults) > most)


def without_faults(data: Mapping[str, Any], error: ValidationError, root: type) -> dict[str, Any]:
    """Plain data without the keys that are at fault, so that their defaults hold."""
    kept: dict[str, Any] = deepcopy(dict(data))
    for fault in error.errors():
        *parents, last = _locate(root, fault["loc"])[0] or [""]
        section: Any = kept
        for part in parents:
            inside = part in section if isinstance(section, dict) else isinstance(section, list)
            if not inside:
                break
            section = section[part]
        # An item of a list goes with all of it, which begins at the section.
        if isinstance(section, dict):
            section.pop(last, None)
    return kept


def _explain_fault(fault: Mapping[str, Any], root: type) -> str:
    location, parents, own, in_union = _locate(root, fault["loc"])
    key, kind, context = ".".join(map(str, location)), fault["type"], fault.get("ctx", {})
    if in_union:
        return f"{key}: found {fault['input']!r}; it must be a string or a mapping of keys"
    if kind == "union_tag_invalid":
        tags = " or ".join(tag.strip("' ") for tag in context["expected_tags"].split(","))
        return f"{key}.method: found {context['tag']!r}; it must be {tags}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key{_did_you_mean(parents, str(location[-1]))}"
    if kind == "missing":
        return f"{key}: is missing"
    if kind == "value_error":
        # The message of a section's own validator begins with one of its keys.
        return f"{key}{'.' if own else ': '}{context['error']}" if key else str(context["error"])
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        length = context.get("min_length", context.get("max_length"))
        return f"{key}: found {fault['input']!r}; it must hold {bound} {length} values"
    allowed = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}: found {fault['input']!r}; it must be {_with_article(allowed)}"


def _locate(root: type, location: tuple[int | str, ...]) -> tuple[list[int | str], list[type], list[type], bool]:
    """Map pydantic's location of a fault to the YAML's keys; pydantic adds union tags and names of union members.

    Returns the keys and indices, the sections that hold the last key, the
    sections allowed as its value, and whether the fault is in a union's member.
    """
    kept: list[int | str] = []
    parents: list[type] = []
    sections: list[type] = [root]
    for part in location:
        tagged = [section for section in sections if len(sections) > 1 and _tag(section) == part]
        if tagged:
            sections = tagged
        elif isinstance(part, int):
            kept.append(part)
        elif not sections:
            return kept, parents, [], True
        else:
            kept.append(part)
            parents = sections
            known = [fields_of(section)[part] for section in sections if part in fields_of(section)]
            sections = sections_in(known[0]) if known else []
    return kept, parents, sections, False


def _tag(section: type) -> object:
    """The value that selects a section in a union: its `method`, or the `tag` that it has for this."""
    annotation = fields_of(section).get("method")
    return get_args(annotation)[0] if annotation else getattr(section, "tag", None)


def _with_article(allowed: str) -> str:
    nouns = {
        "integer": "an integer",
        "number": "a number",
        "string": "a string",
        "list": "a list",
        "tuple": "a list",
        "boolean": "true or false",
    }
    for noun, phrase in nouns.items():
        if allowed == noun or allowed.startswith(f"{noun},"):
            return phrase
    return "a section of keys" if "dictionary" in allowed else allowed


def _did_you_mean(sections: list[type], key: str) -> str:
    keys = [name for section in sections[:1] for name in fields_of(section)]
    near = get_close_matches(key, keys, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(keys)}"
