"""The base of every section of the configuration, and the words for what is wrong in one."""

from __future__ import annotations

from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """A section: immutable, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def explain(error: ValidationError, root: type[Settings]) -> list[str]:
    """One line a mistake: the key, what it held, and what is allowed."""
    lines = []
    told = set()
    for fault in error.errors():
        _, around = _walk(root, fault["loc"][:-1])
        fault["loc"], _ = _walk(root, fault["loc"])
        location = _without_union_members(root, fault["loc"])
        if fault["type"] == "union_tag_invalid":
            key = ".".join([*map(str, fault["loc"]), "method"])
            tags = " or ".join(tag.strip("' ") for tag in fault["ctx"]["expected_tags"].split(","))
            lines.append(f"{key}: found {fault['ctx']['tag']!r}; it must be {tags}")
            continue
        if location != fault["loc"]:
            # A value that fits no member of a union has a fault for each of them; one line tells.
            key = ".".join(map(str, location))
            if key not in told:
                lines.append(f"{key}: found {fault['input']!r}; it must be a string or a mapping of keys")
            told.add(key)
            continue
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_did_you_mean(around, str(fault['loc'][-1]))}")
        elif fault["type"] == "missing":
            lines.append(f"{key}: is missing")
        elif fault["type"] == "value_error":
            lines.append(f"{key}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"]))
        elif fault["type"] in ("too_short", "too_long"):
            bound = "at least" if fault["type"] == "too_short" else "at most"
            length = fault["ctx"].get("min_length", fault["ctx"].get("max_length"))
            lines.append(f"{key}: found {fault['input']!r}; it must hold {bound} {length} values")
        else:
            allowed = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            lines.append(f"{key}: found {fault['input']!r}; it must be {_with_article(allowed)}")
    return lines


def _walk(root: type[Settings], location: tuple) -> tuple[tuple, list[type[Settings]]]:
    """A fault's location without the tags that pydantic adds where a section is one of several.

    Also the sections that may stand at its end: one, of several the tagged one.
    """
    kept: list = []
    sections: list[type[Settings]] = [root]
    for part in location:
        tagged = [section for section in sections if len(sections) > 1 and _tag(section) == part]
        if tagged:
            sections = tagged
            continue
        kept.append(part)
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = _sections_of(fields[0].annotation) if fields else []
    return tuple(kept), sections


def _tag(section: type[Settings]) -> object:
    """What a section's `method` must hold."""
    field = section.model_fields.get("method")
    return get_args(field.annotation)[0] if field else None


def _sections_of(annotation: object) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_of(part)]


def _without_union_members(root: type[Settings], location: tuple) -> tuple:
    """A fault's location, cut after the last part that is a field or an index: pydantic adds a union member's name."""
    section: type[Settings] | None = root
    for i, part in enumerate(location):
        if section is None:
            return location if isinstance(part, int) else location[:i]
        field = section.model_fields.get(part)
        if field is None:
            return location
        section = _section_of(field.annotation)
    return location


def _with_article(allowed: str) -> str:
    nouns = {
        "integer": "an integer",
        "number": "a number",
        "string": "a string",
        "list": "a list",
        "boolean": "true or false",
    }
    for noun, phrase in nouns.items():
        if allowed == noun or allowed.startswith(f"{noun},"):
            return phrase
    return "a section of keys" if "dictionary" in allowed else allowed


def _did_you_mean(sections: list[type[Settings]], key: str) -> str:
    if not sections:
        return ""
    keys = list(sections[0].model_fields)
    near = get_close_matches(key, keys, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(keys)}"


def _section_of(annotation: object) -> type[Settings] | None:
    """The section that an annotation allows, of several the first."""
    return next(iter(_sections_of(annotation)), None)
