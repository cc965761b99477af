"""Pieces of HTML. Text becomes markup here alone, escaped: names of classes, files and runs may hold anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from vitas.report_page.figure import Figure, shown


def text(value: object) -> str:
    """A value as text of a page. What is no character (bytes of a file's name) shows as one that stands for it."""
    return escape(shown(str(value)), quote=True)


def paragraph(value: object, kind: str = "") -> str:
    return f"<p{_class(kind)}>{text(value)}</p>"


def quiet(told: str) -> str:
    """A line that says what is not here, and why."""
    return paragraph(told, "note")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()) -> str:
    """A table that scrolls by itself on a narrow screen. numbers: columns that are set flush right."""

    def cells(row: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{_class('n' if i in numbers else '')}>{cell.html if isinstance(cell, Raw) else text(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


class Raw:
    """Markup that is already safe."""

    def __init__(self, html: str) -> None:
        self.html = html


def details(summary: str, body: str, kind: str = "", is_open: bool = False) -> str:
    return f"<details{_class(kind)}{' open' if is_open else ''}><summary>{text(summary)}</summary>{body}</details>"


def figure(found: Figure, key: str) -> str:
    """The place of a figure, which page.js draws when it comes into view. key: its name among the page's data."""
    height = found.spec.get("height", 200)
    told = f"{found.text} {found.hint}".strip()
    caption = f"<figcaption>{text(told)}</figcaption>" if told else ""
    pins = '<div class="pins" aria-live="polite"></div>' if found.pins else ""
    return (
        f'<figure data-figure="{text(key)}"{_class("half" if found.half else "")}><h3>{text(found.title)}</h3>'
        f"{caption}"
        f'<div class="chart" role="img" aria-label="{text(found.title)}" style="min-height:{height + 50}px"></div>'
        f"{pins}</figure>"
    )


def embedded_json(data: Any, identity: str) -> str:
    """Data for a page's script: no string in it can end the element, or begin a comment."""
    told = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        told = told.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{identity}">{told}</script>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
