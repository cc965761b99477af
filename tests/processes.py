"""Running the programs as users do: as processes of their own, or in this one where that is all the same."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from vitas.program import run_stages
from vitas.slurm.signals import SIGNALS

REPOSITORY = Path(__file__).parent.parent
# One thread, as torchrun sets it: results of one and of several processes can be compared to the bit.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def command(module: str, *arguments: object, processes: int = 1) -> list[str]:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    return [*launcher, module, *map(str, arguments)]


def run(program: str, config: Path, *overrides: str, processes: int = 1) -> str:
    """Run a program to its end and return what it printed; a failure shows it all."""
    return run_module(program, config, *overrides, processes=processes)


def run_module(module: str, *arguments: object, processes: int = 1, folder: Path = REPOSITORY) -> str:
    """The same for any module, in a folder."""
    done = subprocess.run(
        command(module, *arguments, processes=processes),
        env=ENVIRONMENT,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def close_early(module: str, *arguments: object, lines: int) -> tuple[str, str]:
    """Run a module and close its output after so many lines, as `| head` does: those lines, and its errors.

    Only where more is printed than a pipe holds (64 KiB) is the program sure to be still writing after a line.
    """
    process = subprocess.Popen(
        command(module, *arguments),
        # Unbuffered, Python does not notice that only a part of a text was written.
        env={name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    printed = "".join(process.stdout.readline() for _ in range(lines))
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(timeout=60)
    return printed, errors


def run_here(program: str, config: Path, *overrides: str) -> str:
    """The same without the seconds of a new process: what a program does to its end, and what it printed."""
    output, handlers = io.StringIO(), {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with redirect_stdout(output):
            run_stages(program, "", arguments=[str(config), *overrides])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return output.getvalue()


def kill_when(condition: Callable[[], bool], program: str, config: Path, *overrides: str) -> None:
    """Start a program and kill -9 it as soon as `condition` holds, which must be before it ends."""
    process = subprocess.Popen(
        command(program, config, *overrides),
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not condition():
        assert process.poll() is None, f"it ended before it could be killed:\n{process.communicate()[0]}"
        time.sleep(0.002)
    process.kill()
    process.communicate()
