"""`vitas convert`: a released ViTAS YAML as one of this project."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from vitas import config
from vitas.cli.options import PATH, command
from vitas.errors import UserError
from vitas.plain_data import read_text
from vitas.released import read_configuration


@command("vitas convert their/ViTAS_1.3G_inference.yaml > ours.yaml")
@click.argument("path", type=PATH, metavar="OLD.yaml")
def convert(path: Path) -> None:
    """Print what a released ViTAS YAML means as one of this project, and which of its keys have no effect here."""
    found = read_configuration(read_text(path), str(path))
    if not found.is_released:
        raise UserError(
            f"{path} is no released ViTAS file: it has no model.backbone and no strategy; it can be run as it is"
        )
    # It must not print what would be refused as a run.
    config.load(path)
    print(f"# From {path}, a released ViTAS file. Of its keys, these have no effect here:")
    for line in found.explain_without_effect():
        print(f"#   {line}")
    print(yaml.safe_dump(found.data, sort_keys=False, default_flow_style=None, width=120), end="")
