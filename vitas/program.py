"""What the three stage programs share: arguments, configuration, process group, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping

from vitas import config as configuration
from vitas import distributed
from vitas.config import RunConfig
from vitas.distributed import World
from vitas.errors import UserError

Stage = Callable[[RunConfig, World], None]


def run_stages(program: str, description: str, stages: Mapping[str, Stage]) -> None:
    """Run those of `stages` that the configuration on the command line flags, in order.

    A `UserError` ends the program with one message and exit code 2.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("config", help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key of it, as search.epochs=10")
    arguments = parser.parse_args()
    try:
        config = configuration.load(arguments.config, arguments.overrides, tuple(stages))
        flagged = [name for name in stages if (section := getattr(config, name)) and section.flag]
        if not flagged:
            keys = " or ".join(f"{name}.flag" for name in stages)
            raise UserError(f"{arguments.config}: there is nothing to do; set {keys} to true")
        try:
            config.folder.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"save_path: found {config.save_path!r}, which cannot be made: {error.strerror}") from None
        if not os.access(config.folder.root, os.W_OK):
            raise UserError(f"save_path: found {config.save_path!r}, which cannot be written to")
    except UserError as error:
        # Every process finds the same mistakes; one of them tells.
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        world = distributed.init(config.port)
        for name in flagged:
            stages[name](config, world)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        distributed.shutdown()
