"""Runs a program on all tasks of a job, and requeues the job until the program is done.

The supervisor runs in the batch step, on the job's first node, without torch.
The ranks stop by themselves on a signal or before the time limit
(`vitas.slurm.signals`), and any of them may die; the supervisor decides whether
to requeue the job then, for sbatch files and submitit alike:

    python -m vitas.slurm.supervisor [--for KEY=VALUE] PROGRAM CONFIG [key=value ...]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vitas.errors import MISTAKE, UserError, exit_on_user_error, require_one_line
from vitas.files import write_text
from vitas.journal import Journal
from vitas.plain_data import read_text
from vitas.released import read_configuration
from vitas.run import RunFolder, environment_for_programs
from vitas.slurm import queries, signals
from vitas.slurm.cluster import load_cluster
from vitas.slurm.local import read_arguments
from vitas.slurm.lock import check_free

# The environment variable that names the file in which a rank says how it ended.
OUTCOME_VARIABLE = "VITAS_OUTCOME"

# How a launcher of processes tells each of them its place.
_OF_LAUNCHER = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"}
)

# Give up after so many deaths without a new checkpoint or score in between.
MOST_DEATHS_IN_PLACE = 3
# Seconds to wait after each question that Slurm does not answer.
SLURM_RETRIES = (1, 5, 15, 30, 60)


Answer = TypeVar("Answer")


def supervise(
    program: str,
    config: str,
    where: str,
    overrides: Sequence[str] = (),
    max_requeues: int | None = None,
    stop_margin: int | None = None,
) -> int:
    """Run `python -m PROGRAM CONFIG ...` on every task of this process's job.

    config: the YAML's text. A job may wait for days, and the file may be edited
        meanwhile; the job keeps the text of its first start.
    where: the path of that file.
    max_requeues, stop_margin: by default those of `configs/cluster.yaml`.

    Returns the job's exit code: 0 if the program is done, 2 for a mistake of
    the user, 75 if it stopped (the job is requeued, or was requeued too often),
    1 if it died.
    """
    cluster = load_cluster()
    job = queries.job_id()
    if job is None:
        raise UserError("no Slurm job here; start this with sbatch, or see `vitas launch --help`")
    save_path = read_configuration(config, where, overrides).data.get("save_path")
    if not isinstance(save_path, str):
        raise UserError(f"{where}: save_path: found {save_path!r}; it must be a string")
    run = RunFolder(Path(require_one_line(save_path, f"{where}: save_path")))
    run.check_writable()
    # The ranks check this too; here it saves starting them.
    check_free(run.lock(program))
    folder = run.start(program, job)
    path = folder / "submitted.yaml"
    if not (queries.restarts() and path.exists()):
        write_text(path, config)
    for left in folder.glob("outcome-*.json"):
        left.unlink(missing_ok=True)
    # Numbered by the start: ranks of an earlier one may linger on a lost node.
    outcome_file = folder / f"outcome-{queries.restarts()}.json"
    sizes_before = {file: file.stat().st_size for file in folder.glob("rank_*.err")}
    start = "the first time" if queries.restarts() == 0 else f"after {queries.restarts()} requeue(s)"
    _print_line(f"job {job} starts `{program}` with {where}, {start}; its folder is {folder}")

    environment = environment_for_programs(_without_launcher(os.environ))
    environment |= {OUTCOME_VARIABLE: str(outcome_file.resolve()), "PYTHONUNBUFFERED": "1"}
    # As torchrun does, so that tasks on one node do not compete for its processors.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if "SLURM_JOB_NODELIST" in os.environ:
        # Asked here once instead of by every rank.
        environment.setdefault("MASTER_ADDR", queries.first_node_address(os.environ["SLURM_JOB_NODELIST"]))
    if stop_margin or cluster.stop_margin:
        environment["VITAS_STOP_MARGIN"] = str(stop_margin or cluster.stop_margin)
    cpus = queries.number_in("SLURM_CPUS_PER_TASK")
    command = [
        "srun",
        "--kill-on-bad-exit=1",
        "--open-mode=append",
        # In its pattern, %% is a per cent sign.
        f"--error={str(folder.resolve()).replace('%', '%%')}/rank_%t.err",
        # Since Slurm 22.05, srun does not inherit it from the job.
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        *(sys.executable, "-m", program, str(path), *overrides),
    ]
    # Slurm signals this process and srun too. srun forwards signals to the ranks, which act on them.
    for number in signals.SIGNALS:
        signal.signal(number, lambda number, frame: None)
    try:
        code = subprocess.run(command, env=environment).returncode
    except OSError as error:
        raise UserError(f"srun cannot be started: {error.strerror}; is this a Slurm job?") from None
    # An outcome that a rank wrote counts more: srun may return the code of another rank, which it ended as a result.
    outcome = _read_outcome(outcome_file)
    if code != 0 and outcome:
        code = outcome["code"]
    _print_rank_errors(folder, sizes_before, outcome)
    if code == 0:
        _print_line(f"job {job}: `{program}` is done")
        return 0
    if code == MISTAKE:
        return MISTAKE
    stopped = code == signals.EXIT_CODE
    return _requeue(job, run, folder, stopped, cluster.max_requeues if max_requeues is None else max_requeues)


def _requeue(job: str, run: RunFolder, folder: Path, stopped: bool, max_requeues: int) -> int:
    """Requeue the job, unless Slurm ended it or another start is pointless. Returns the job's exit code."""
    code = signals.EXIT_CODE if stopped else 1
    what = "stopped" if stopped else "died"
    restarts = queries.restarts()
    try:
        fields = ask_patiently(lambda: queries.show_job(job)) or {"JobState": "unknown"}
    except queries.SlurmError as error:
        _print_line(f"job {job} {what}, and Slurm does not answer ({error}); submit it again to resume")
        return code
    if fields["JobState"] != "RUNNING" or int(fields.get("Restarts", restarts)) != restarts:
        # Preempted, requeued or cancelled from outside.
        _print_line(f"job {job} {what}, ended by Slurm; if it is not requeued, submit it again to resume")
        return code
    history = Journal(folder / "requeues.jsonl")
    progress = run.progress()
    if not stopped:
        deaths = 1
        for line in reversed(history.lines):
            if line["stopped"] or line["progress"] != progress:
                break
            deaths += 1
        if deaths >= MOST_DEATHS_IN_PLACE:
            _print_line(f"job {job} died {deaths} times without progress and gives up; the errors are in {folder}")
            return code
    if restarts >= max_requeues:
        _print_line(
            f"job {job} {what} and has been requeued {restarts} times, the most allowed (max_requeues); "
            "submit it again to resume"
        )
        return code
    history.append(
        {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "restarts": restarts, "stopped": stopped, "progress": progress}
    )
    _print_line(f"job {job} {what}; requeued, {restarts + 1} of at most {max_requeues} times")
    try:
        queries.requeue(job)
    except queries.SlurmError as error:
        _print_line(f"job {job} cannot be requeued ({error}); submit it again to resume")
    return code


def ask_patiently(ask: Callable[[], Answer]) -> Answer:
    """Call `ask`, and again for two minutes while Slurm does not answer. Raises its last `SlurmError`.

    After the loss of a node, Slurm's controller may be busy for a while, or restart.
    """
    for wait in SLURM_RETRIES:
        try:
            return ask()
        except queries.SlurmError:
            time.sleep(wait)
    return ask()


def _without_launcher(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those by which torchrun tells a process its rank.

    sbatch hands on the variables of the shell it was typed in, which may be inside another job; every rank of this one
    would take that rank for its own.
    """
    if "RANK" not in variables:
        return dict(variables)
    return {
        name: value
        for name, value in variables.items()
        if name not in _OF_LAUNCHER and not name.startswith("TORCHELASTIC_")
    }


def _read_outcome(path: Path) -> dict[str, Any] | None:
    try:
        outcome = json.loads(path.read_text())
        # A rank that was ended while it wrote leaves less.
        return outcome if {"code", "message"} <= outcome.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
    finally:
        path.unlink(missing_ok=True)


def _print_rank_errors(folder: Path, sizes_before: dict[Path, int], outcome: dict[str, Any] | None) -> None:
    """Print why ranks ended into the job's log, and remove empty error files."""
    if outcome:
        print(outcome["message"], file=sys.stderr, flush=True)
    for path in sorted(folder.glob("rank_*.err"), key=lambda path: (len(path.name), path.name)):
        text = path.read_bytes()
        if not text:
            path.unlink()
        elif not outcome and len(text) > sizes_before.get(path, 0):
            new_lines = text[sizes_before.get(path, 0) :].decode(errors="replace").strip().splitlines() or [""]
            print(f"{path}: {new_lines[-1]}", file=sys.stderr, flush=True)


def _print_line(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        program, path, overrides = read_arguments("vitas.slurm.supervisor")
        sys.exit(supervise(program, read_text(path), str(path), overrides))
