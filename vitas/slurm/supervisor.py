"""Inside a job: run a program on all of its tasks, and requeue the job until the program is done.

It runs in the batch step, on the job's first node, and loads no torch. The
program's ranks stop by themselves on a signal or before the time limit
(`vitas.slurm.signals`), and any of them may die; what becomes of the job then is
decided here, in one place, for sbatch files and submitit alike:

    python -m vitas.slurm.supervisor [--for KEY=VALUE] PROGRAM CONFIG [key=value ...]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vitas.errors import MISTAKE, UserError, exit_on_user_error
from vitas.files import Journal, read_text, write_text
from vitas.released import read_configuration
from vitas.run import RunFolder
from vitas.slurm import queries, signals
from vitas.slurm.cluster import load_cluster
from vitas.slurm.local import read_arguments
from vitas.slurm.lock import check_free

# Where the supervisor wants to be told how its ranks ended.
OUTCOME_VARIABLE = "VITAS_OUTCOME"

# Ranks that die this often without a checkpoint or a score in between will die again.
MOST_DEATHS_IN_PLACE = 3
# Seconds to wait after each question that Slurm does not answer.
SLURM_RETRIES = (1, 5, 15, 30, 60)


def supervise(
    program: str,
    config: str,
    where: str,
    overrides: Sequence[str] = (),
    max_requeues: int | None = None,
    stop_margin: int | None = None,
) -> int:
    """Run `python -m PROGRAM CONFIG ...` on every task of the job that this process is in.

    config: the YAML's text. A job may wait for days, and a file be edited
        meanwhile; the job keeps to what it was first started with.
    where: the file that it came from.
    max_requeues, stop_margin: of `configs/cluster.yaml`, unless they are given.

    Returns the exit code for the job: 0 when the program is done, 2 for a
    mistake of the user's, 75 when it is to go on (the job is in the queue
    again, or has been requeued too often), 1 when it died and is given up.
    """
    cluster = load_cluster()
    job = queries.job_id()
    if job is None:
        raise UserError("no Slurm job here; start this with sbatch, or see `vitas launch --help`")
    save_path = read_configuration(config, where, overrides).data.get("save_path")
    if not isinstance(save_path, str):
        raise UserError(f"{where}: save_path: found {save_path!r}; it must be a string")
    run = RunFolder(Path(save_path))
    run.check_writable()
    # The ranks see to it; this spares them the start.
    check_free(run.lock(program))
    folder = run.start(program, job)
    path = folder / "submitted.yaml"
    if not (queries.restarts() and path.exists()):
        write_text(path, config)
    # Of this start: ranks of an earlier one may linger on a node that was lost.
    outcome = folder / f"outcome-{queries.restarts()}.json"
    outcome.unlink(missing_ok=True)
    told = {file: file.stat().st_size for file in folder.glob("rank_*.err")}
    _say(f"job {job} starts `{program}` with {where}, {_count(queries.restarts())}; its folder is {folder}")

    environment = os.environ | {OUTCOME_VARIABLE: str(outcome.resolve()), "PYTHONUNBUFFERED": "1"}
    # As torchrun has it: tasks that share a node do not fight for its processors.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if "SLURM_JOB_NODELIST" in os.environ:
        # Asked once here, and not by every rank.
        environment.setdefault("MASTER_ADDR", queries.first_node_address(os.environ["SLURM_JOB_NODELIST"]))
    if stop_margin or cluster.stop_margin:
        environment["VITAS_STOP_MARGIN"] = str(stop_margin or cluster.stop_margin)
    command = [
        "srun",
        "--kill-on-bad-exit=1",
        "--open-mode=append",
        f"--error={folder.resolve()}/rank_%t.err",
        # Since Slurm 22.05, srun does not take it from the job.
        *(f"--cpus-per-task={cpus}" for cpus in [os.environ.get("SLURM_CPUS_PER_TASK")] if cpus),
        *(sys.executable, "-m", program, str(path), *overrides),
    ]
    # Slurm's signals reach this process and srun too; srun hands them on to the tasks, which decide.
    for number in signals.SIGNALS:
        signal.signal(number, lambda number, frame: None)
    try:
        code = subprocess.run(command, env=environment).returncode
    except OSError as error:
        raise UserError(f"srun cannot be started: {error.strerror}; is this a Slurm job?") from None
    # Ranks that said why come first: what srun returns may be that of a rank it ended because of them.
    said = _read_outcome(outcome)
    if code != 0 and said:
        code = said["code"]
    _tell_errors(folder, told, said)
    if code == 0:
        _say(f"job {job}: `{program}` is done")
        return 0
    if code == MISTAKE:
        return MISTAKE
    stopped = code == signals.EXIT_CODE
    return _again(job, run, folder, stopped, cluster.max_requeues if max_requeues is None else max_requeues)


def _again(job: str, run: RunFolder, folder: Path, stopped: bool, max_requeues: int) -> int:
    """Requeue the job, unless Slurm ends it anyway or it makes no sense; the job's exit code."""
    code = signals.EXIT_CODE if stopped else 1
    what = "stopped" if stopped else "died"
    restarts = queries.restarts()
    try:
        fields = _patiently(lambda: queries.show_job(job)) or {"JobState": "unknown"}
    except queries.SlurmError as error:
        _say(f"job {job} {what}, and Slurm does not answer ({error}); submit it again to go on")
        return code
    if fields["JobState"] != "RUNNING" or int(fields.get("Restarts", restarts)) != restarts:
        # Preempted, requeued or cancelled from outside. What Slurm decided stands.
        _say(f"job {job} {what}, ended by Slurm; if it is not requeued, submit it again to go on")
        return code
    history = Journal(folder / "requeues.jsonl")
    progress = _progress(run)
    if not stopped:
        in_place = 1
        for line in reversed(history.lines):
            if line["stopped"] or line["progress"] != progress:
                break
            in_place += 1
        if in_place >= MOST_DEATHS_IN_PLACE:
            _say(f"job {job} died {in_place} times at the same place and is given up; mend what {folder} tells")
            return code
    if restarts >= max_requeues:
        _say(
            f"job {job} {what} and has been requeued {restarts} times, the most allowed (max_requeues); "
            "submit it again to go on"
        )
        return code
    history.append(
        {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "restarts": restarts, "stopped": stopped, "progress": progress}
    )
    _say(f"job {job} {what}; requeued, {restarts + 1} of at most {max_requeues} times")
    try:
        queries.requeue(job)
    except queries.SlurmError as error:
        _say(f"job {job} cannot be requeued ({error}); submit it again to go on")
    return code


def _patiently(ask: Callable[[], object]) -> object:
    """Slurm's answer. Where a node was lost the controller may be busy, or being restarted, for a while."""
    for wait in SLURM_RETRIES:
        try:
            return ask()
        except queries.SlurmError:
            time.sleep(wait)
    return ask()


def _progress(run: RunFolder) -> int:
    """Changes with every checkpoint, score and result: the time of the newest of their files, in nanoseconds."""
    files = [*run.root.glob("*/checkpoint/*.pth.tar"), *run.journals, run.architectures, run.results]
    return max((path.stat().st_mtime_ns for path in files if path.exists()), default=0)


def _read_outcome(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    finally:
        path.unlink(missing_ok=True)


def _tell_errors(folder: Path, told: dict[Path, int], said: dict | None) -> None:
    """Show in the job's log why ranks ended, and drop the error files that stayed empty."""
    if said:
        print(said["message"], file=sys.stderr, flush=True)
    for path in sorted(folder.glob("rank_*.err"), key=lambda path: (len(path.name), path.name)):
        text = path.read_bytes()
        if not text:
            path.unlink()
        elif not said and len(text) > told.get(path, 0):
            last = text[told.get(path, 0) :].decode(errors="replace").strip().splitlines() or [""]
            print(f"{path}: {last[-1]}", file=sys.stderr, flush=True)


def _count(restarts: int) -> str:
    return "the first time" if restarts == 0 else f"after {restarts} requeue(s)"


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        program, path, overrides = read_arguments("vitas.slurm.supervisor")
        sys.exit(supervise(program, read_text(path), str(path), overrides))
