"""Run a program as processes on this machine, in the foreground.

python -m vitas.slurm.local [--for KEY=VALUE] PROGRAM CONFIG [key=value ...]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vitas import config as configuration
from vitas.errors import exit_on_user_error, number_from_environment
from vitas.run import environment_for_programs
from vitas.slurm import signals


def run_locally(program: str, config: Path, overrides: Sequence[str], processes: int | None = None) -> int:
    """Run `python -m PROGRAM CONFIG ...` to its end and return its exit code.

    processes: None is `VITAS_PROCESSES`, or one per GPU of this machine, or one.
    """
    processes = processes or int(number_from_environment("VITAS_PROCESSES") or 0) or count_gpus() or 1
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    process = subprocess.Popen([*launcher, program, str(config), *overrides], env=environment_for_programs(os.environ))
    # The program handles signals; this process forwards them, except Ctrl-C, which the terminal sends to both.
    for number in signals.SIGNALS:
        signal.signal(number, lambda got, frame: None if got == signal.SIGINT else process.send_signal(got))
    return process.wait()


def count_gpus() -> int:
    """The number of GPUs, as torch counts them but without the seconds that importing it takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def read_arguments(module: str) -> tuple[str, Path, tuple[str, ...]]:
    """Read the command line of `module`: the program, the path of the YAML and the overrides.

    `--for KEY=VALUE` sets a key that a script is meant for. Raises `UserError`
    if the YAML or an override hold another value.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--for", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("program")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    path, overrides = configuration.find(given.config, given.program), tuple(given.overrides)
    return given.program, path, configuration.require(path, overrides, given.settings)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(run_locally(*read_arguments("vitas.slurm.local")))
