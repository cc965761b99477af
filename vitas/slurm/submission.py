"""Stages as Slurm jobs, through submitit.

A job runs `supervise` once, in the batch step, and that starts the ranks. So
`vitas launch` and the sbatch files in `script/` differ only in who writes the
`#SBATCH` lines.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from vitas.errors import UserError, exit_on_user_error, require_one_line
from vitas.plain_data import read_text
from vitas.run import STAGES, RunFolder, stages_of
from vitas.slurm import queries
from vitas.slurm.cluster import Cluster, fill_in, sbatch_values
from vitas.slurm.supervisor import supervise


@dataclass(frozen=True)
class StageJob:
    """A stage as a job: what it runs, and its resources."""

    stage: str
    config: Path
    overrides: tuple[str, ...]
    save_path: Path
    cluster: Cluster

    @property
    def program(self) -> str:
        return STAGES[self.stage].program

    @property
    def arguments(self) -> tuple[str, ...]:
        """The overrides, with flags so that the program runs only this stage."""
        flags = (f"{stage}.flag={str(stage == self.stage).lower()}" for stage in stages_of(self.program))
        return (*self.overrides, *flags)


@dataclass(frozen=True)
class Submitted:
    """A job in the queue. log: its output; a requeued job appends to it."""

    job: StageJob
    id: str
    log: Path


def submit(job: StageJob, after: Submitted | None = None) -> Submitted:
    """Submit a job, to start once `after` has succeeded.

    Raises `UserError` with Slurm's message, or for a save_path that cannot be
    written to, and then leaves no files behind.
    """
    executor = _executor(job, fill_in(job.cluster, job.stage), after)
    with _no_leftovers(executor.folder.parent):
        RunFolder(job.save_path).check_writable()
        arguments = (read_text(job.config), str(job.config), job.arguments)
        try:
            with redirect_stderr(io.StringIO()):  # The exception has sbatch's message too.
                handle = executor.submit(
                    _run, job.program, *arguments, job.cluster.max_requeues, job.cluster.stop_margin
                )
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise UserError(f"Slurm refuses the job: {_sbatch_message(error)}") from None
    for link in executor.folder.parent.glob(".submission_file_*.sh"):
        link.unlink(missing_ok=True)  # submitit moves the file to the job's folder and leaves a link.
    return Submitted(job, handle.job_id, handle.paths.stdout)


def _run(*arguments: Any) -> None:
    """What submitit calls in the job; the job ends with the program's exit code."""
    with exit_on_user_error():
        code = supervise(*arguments)
    if code:
        sys.exit(code)


def sbatch_file(job: StageJob) -> str:
    """The sbatch file that `submit` would hand to Slurm.

    Where Slurm is not here, or does not answer, it lacks what `submit` takes from the partition, and says so.
    """
    cluster, unknown = job.cluster, "no Slurm here"
    if queries.installed():
        try:
            cluster, unknown = fill_in(job.cluster, job.stage), ""
        except queries.SlurmError as error:
            unknown = f"Slurm does not answer: {' '.join(str(error).split())}"
    executor = _executor(job, cluster)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    if not unknown:
        return text
    first, _, rest = text.partition("\n")
    note = f"# {unknown}; nodes, GPUs, processes and time that were not given come from the partition"
    return f"{first}\n{note}\n{rest}"


class _Executor(submitit.SlurmExecutor):
    """submitit's executor, but able to write an sbatch file on a machine without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _executor(job: StageJob, cluster: Cluster, after: Submitted | None = None) -> submitit.SlurmExecutor:
    """cluster: what is asked for."""
    # Again when it is resolved: the folder that a relative path starts from has a name too.
    save_path = Path(require_one_line(str(job.save_path), "save_path")).resolve()
    root = Path(require_one_line(str(save_path), "save_path"))
    if "%" in str(root):
        raise UserError(f"save_path: found {str(root)!r}; Slurm reads a % in the name of a job's output as a pattern")
    executor = _Executor(RunFolder(root).start(job.program, "%j"), python=shlex.quote(sys.executable))
    # submitit has its own names for some of these, but accepts all under sbatch's names.
    options: dict[str, object] = {"nodes": 1, "ntasks-per-node": 1, "time": "0", "requeue": True}
    if after is not None:
        options |= {"dependency": f"afterok:{after.id}", "kill-on-invalid-dep": "yes"}
    options |= sbatch_values(cluster)
    executor.update_parameters(
        job_name=f"vitas-{job.stage}",
        # The ranks watch the time limit themselves (`vitas.slurm.signals`): Slurm's signal comes up to a minute early.
        signal_delay_s=0,
        wckey=None,  # Clusters that check such keys would refuse submitit's own.
        stderr_to_stdout=True,
        # Slurm starts one process, the supervisor, which starts the ranks.
        use_srun=False,
        additional_parameters={name.replace("-", "_"): value for name, value in options.items()},
    )
    return executor


@contextmanager
def _no_leftovers(folder: Path) -> Iterator[None]:
    """Remove what a refused submission wrote into a folder, and the folders that it made for that."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    before = set() if made else set(folder.iterdir())
    try:
        yield
    except UserError:
        for path in set(folder.iterdir()) - before if folder.exists() else ():
            path.unlink()
        for each in made:
            if each.exists():
                each.rmdir()
        raise


def _sbatch_message(error: Exception) -> str:
    lines = re.findall(r"sbatch: error: (.*)", str(error))
    text = lines[-1] if lines else str(error).strip().splitlines()[-1]
    return text.removeprefix("Batch job submission failed: ")


def follow(submitted: Submitted) -> bool:
    """Print a job's log as it grows, across requeues, until the job ends. Returns whether it succeeded."""
    position = 0
    last_state = "PENDING"
    state: str | None = last_state
    while True:
        # Slurm's controller may be busy or restarting.
        with suppress(queries.SlurmError):
            state = queries.state(submitted.id)
        if submitted.log.exists():
            with open(submitted.log, "rb") as file:
                file.seek(position)
                new = file.read()
            position += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()
        if state not in queries.LIVE_STATES:
            print(f"job {submitted.id} ended: {state or 'Slurm no longer knows it'}")
            return state == "COMPLETED"
        if state != last_state and state in ("PENDING", "RUNNING"):
            print(f"job {submitted.id} is {state}")
            last_state = state
        time.sleep(2)
