"""An extension of griffe, which reads docstrings for the site: their lists of terms become lists.

Docstrings here name arguments as people write: `height, width: in pixels.` on a line of its own, further lines
indented. Markdown would join such lines into one paragraph.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_NEXT = re.compile(r"(?<=\.) (?=[a-z_]\w*(?:, [a-z_]\w*)*: )")
_TERM = re.compile(r"^(\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}[A-Za-z_]\w*)*): (.*)$")


class TermLists(griffe.Extension):
    """Turns lines `name: text` at the margin of a docstring into a list."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        found = _TERM.match(line)
        # The first line is a sentence, whatever it begins with.
        if found and lines:
            if not in_list and lines[-1]:
                lines.append("")
            # Short ones share a line.
            for term in _NEXT.split(line):
                names, _, meaning = term.partition(": ")
                lines.append(f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {meaning}")
            in_list = True
            continue
        if in_list and line and not line.startswith(" "):
            if lines[-1]:
                lines.append("")
            in_list = False
        elif not line:
            in_list = False
        lines.append(line)
    return "\n".join(lines)
