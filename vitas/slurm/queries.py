"""Questions and commands to Slurm about jobs, nodes and partitions.

Uses only `scontrol`, `squeue`, `sinfo` and `scancel`, which every machine with
`sbatch` has; accounting (`sacct`) is optional.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from vitas.errors import UserError, require_one_line

# States of a job that has not ended; a requeued job that waits is PENDING.
LIVE_STATES = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING",
     "RESIZING", "STAGE_OUT", "COMPLETING"}
)  # fmt: skip


class SlurmError(RuntimeError):
    """A command of Slurm failed; the message is what it printed, in one line."""


def installed() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def job_id() -> str | None:
    """The id of the job that this process runs in; None outside Slurm. Raises `UserError` for what is no id."""
    return number_in("SLURM_JOB_ID")


def restarts() -> int:
    """How often the job that this process runs in has been requeued so far. Raises `UserError` for no number."""
    return int(number_in("SLURM_RESTART_COUNT") or 0)


def number_in(variable: str) -> str | None:
    """The whole number that Slurm says in an environment variable, as text; None if unset.

    Raises `UserError` for anything else: these texts become names of files and words of commands.
    """
    text = os.environ.get(variable)
    if text is not None and not re.fullmatch(r"[0-9]+", text):
        raise UserError(f"{variable}: found {text!r} in the environment; it must be a whole number")
    return text


def state(job: str) -> str | None:
    """A job's state, e.g. RUNNING; None if Slurm no longer knows the job. Raises `SlurmError`."""
    fields = show_job(job)
    return fields["JobState"] if fields else None


def show_job(job: str) -> dict[str, str] | None:
    """The fields of `scontrol show job`; None if Slurm no longer knows the job. Raises `SlurmError`."""
    try:
        return _fields(output("scontrol", "show", "job", job))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise


def requeue(job: str) -> None:
    """Requeue a running job, which ends its processes. Raises `SlurmError`."""
    output("scontrol", "requeue", job)


def cancel(job: str) -> None:
    """Cancel a job. Raises `SlurmError`."""
    output("scancel", job)


@dataclass(frozen=True)
class TimeLimit:
    """The time limit of a running job, in seconds. left: from now. whole: from its start."""

    left: float
    whole: float


def time_limit(job: str) -> TimeLimit | None:
    """A job's time limit; None for a job without one. Raises `SlurmError`."""
    left, _, whole = output("squeue", "-h", "-j", job, "-o", "%L|%l").strip().partition("|")
    seconds = [number for text in (left, whole) if (number := _seconds(text)) is not None]
    return TimeLimit(*seconds) if len(seconds) == 2 else None


@dataclass(frozen=True)
class Partition:
    """A partition. nodes: their number. gpus, cpus: the most in one node. time_limit: in Slurm's format."""

    name: str
    is_default: bool
    nodes: int
    gpus: int
    cpus: int
    time_limit: str


def partitions() -> list[Partition]:
    """The partitions of this cluster. Raises `SlurmError`."""
    rows: dict[str, list[list[str]]] = {}
    for line in output("sinfo", "-h", "-o", "%P|%D|%G|%c|%L|%l").splitlines():
        name, *row = line.split("|")
        rows.setdefault(name, []).append(row)
    return [
        Partition(
            name.rstrip("*"),
            name.endswith("*"),
            sum(int(nodes) for nodes, *_ in found),
            max(_gpus(gres) for _, gres, *_ in found),
            max(int(cpus.rstrip("+")) for _, _, cpus, *_ in found),
            found[0][3] if found[0][3] != "n/a" else found[0][4],
        )
        for name, found in rows.items()
    ]


def first_node_address(nodelist: str) -> str:
    """The address that Slurm uses for the first node of a list, as node names need not resolve.

    Raises `UserError` if scontrol does not return it.
    """
    try:
        name = output("scontrol", "show", "hostnames", nodelist).split()[0]
        return _fields(output("scontrol", "show", "node", name)).get("NodeAddr", name)
    except (SlurmError, IndexError) as error:
        raise UserError(
            f"scontrol does not know the first node of {nodelist!r} ({error}); set MASTER_ADDR to its address"
        ) from None


def output(*command: str) -> str:
    """The output of a Slurm command. Raises `SlurmError`, and `UserError` for a word with control characters."""
    for word in command:
        require_one_line(word, command[0])
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except subprocess.CalledProcessError as error:
        text = " ".join((error.stderr or error.stdout).split())
        raise SlurmError(text or f"{command[0]} failed with exit code {error.returncode}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(str(error)) from None


def _fields(text: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in text.split() if "=" in field)


def _gpus(gres: str) -> int:
    """The number of GPUs in a gres text: 6 for `gpu:a100:4(S:0-1),gpu:2`."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def _seconds(text: str) -> float | None:
    """The seconds of Slurm's [days-][[hours:]minutes:]seconds; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
