"""Running the programs as users do, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# One thread, as torchrun sets it: results of one and of several processes can be compared to the bit.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def command(program: str, config: Path, *overrides: str, processes: int = 1) -> list[str]:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    return [*launcher, program, str(config), *overrides]


def run(program: str, config: Path, *overrides: str, processes: int = 1) -> str:
    """Run a program to its end and return what it printed; a failure shows it all."""
    done = subprocess.run(
        command(program, config, *overrides, processes=processes),
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


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
