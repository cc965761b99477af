"""`vitas schema`: the JSON Schema of the YAML, for editors."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vitas.cli.options import PATH, command
from vitas.config.schema import json_schema, write_tables
from vitas.files import write_text
from vitas.plain_data import read_text


@command(
    "vitas schema > vitas.schema.json                          # then, at the head of a YAML:",
    "# yaml-language-server: $schema=vitas.schema.json",
    "vitas schema --output configs/schema.json",
    "vitas schema --page docs/configuration.md                 # in this project, where a key was added",
)
@click.option("--output", type=PATH, metavar="FILE", help="Write it there, in place of printing it.")
@click.option("--page", type=PATH, metavar="FILE", help="Write the tables of docs/configuration.md anew.")
def schema(output: Path | None, page: Path | None) -> None:
    """Print the JSON Schema of the YAML, by which editors complete keys, show what they mean and mark mistakes.

    For VS Code with the YAML extension, and whatever else knows yaml-language-server. `vitas check` finds more.
    """
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    if output is not None:
        write_text(output, text)
    if page is not None:
        write_text(page, write_tables(read_text(page)))
    if output is None and page is None:
        print(text, end="")
