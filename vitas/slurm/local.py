"""A program as processes of this machine, in the foreground.

python -m vitas.slurm.local PROGRAM CONFIG [key=value ...]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vitas import config as configuration
from vitas.errors import exit_on_user_error, number_from_environment
from vitas.slurm import signals


def run_locally(program: str, config: Path, overrides: Sequence[str], processes: int | None = None) -> int:
    """Run `python -m PROGRAM CONFIG ...` to its end; its exit code.

    processes: null is `VITAS_PROCESSES`, or one for each GPU of this machine, or one.
    """
    processes = processes or int(number_from_environment("VITAS_PROCESSES") or 0) or _gpus() or 1
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    process = subprocess.Popen([*launcher, program, str(config), *overrides])
    # The program decides what a signal means; this process hands it on. Ctrl-C the terminal sends to both.
    for number in signals.SIGNALS:
        signal.signal(number, lambda got, frame: None if got == signal.SIGINT else process.send_signal(got))
    return process.wait()


def _gpus() -> int:
    """Counted as torch would, without the seconds that loading it takes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("usage: python -m vitas.slurm.local PROGRAM CONFIG [key=value ...]", file=sys.stderr)
        sys.exit(2)
    with exit_on_user_error():
        sys.exit(run_locally(sys.argv[1], configuration.find(sys.argv[2], sys.argv[1]), sys.argv[3:]))
