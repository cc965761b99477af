"""The base of every section of the configuration, and the words for what is wrong in one."""

from __future__ import annotations

from difflib import get_close_matches

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """A section: immutable, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def explain(error: ValidationError, root: type[Settings]) -> list[str]:
    """One line a mistake: the key, what it held, and what is allowed."""
    lines = []
    told = set()
    for fault in error.errors():
        location = _without_union_members(root, fault["loc"])
        if location != fault["loc"]:
            # A value that fits no member of a union has a fault for each of them; one line tells.
            key = ".".join(map(str, location))
            if key not in told:
                lines.append(f"{key}: found {fault['input']!r}; it must be a string or a mapping of keys")
            told.add(key)
            continue
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_did_you_mean(root, fault['loc'])}")
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


def _did_you_mean(root: type[Settings], location: tuple) -> str:
    section: type[Settings] | None = root
    for part in location[:-1]:
        field = section.model_fields.get(part) if section else None
        section = _section_of(field.annotation) if field else None
    if section is None:
        return ""
    keys = list(section.model_fields)
    near = get_close_matches(str(location[-1]), keys, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(keys)}"


def _section_of(annotation: object) -> type[Settings] | None:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Settings):
            return candidate
    return None
