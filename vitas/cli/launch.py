"""The command `vitas launch`: its arguments, and what follows from them."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from vitas import config as configuration
from vitas.errors import UserError
from vitas.program import natural, positive
from vitas.run import STAGES
from vitas.slurm import queries
from vitas.slurm.cluster import Cluster, load_cluster
from vitas.slurm.local import run_locally
from vitas.slurm.submission import StageJob, Submitted, follow, sbatch_file, submit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments that `launch` takes."""
    parser.description = (
        "Submit a stage as a Slurm job, which requeues itself until the stage is done. What is not given "
        "here comes from configs/cluster.yaml, and then from what the partition has."
    )
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG [key=value ...]",
        help="a YAML file, or a name in configs/; then what to set in it, as search.epochs=10",
    )
    # For scripts that have a CONFIG of their own.
    parser.add_argument("--default", help=argparse.SUPPRESS)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--chain",
        action="store_true",
        help="this stage and all flagged ones after it, each when the one before is done",
    )
    how.add_argument("--local", action="store_true", help="as processes of this machine, in the foreground")
    how.add_argument("--dry-run", action="store_true", help="print the sbatch file, and submit nothing")
    how.add_argument(
        "--follow", action="store_true", help="print the job's log until it ends (Ctrl-C leaves the job running)"
    )
    asked = parser.add_argument_group("asked of Slurm (names as in sbatch)")
    asked.add_argument("-p", "--partition")
    asked.add_argument("-A", "--account")
    asked.add_argument("-q", "--qos")
    asked.add_argument("-C", "--constraint")
    asked.add_argument("--reservation")
    asked.add_argument("-N", "--nodes", type=positive)
    asked.add_argument("--gpus-per-node", type=natural, metavar="N", help="0 for none")
    asked.add_argument("--gpu-type", metavar="TYPE", help="where the nodes have several")
    asked.add_argument("--gres", metavar="gpu:[TYPE:]N", type=_gres, help="the two above in one")
    asked.add_argument(
        "--tasks-per-node",
        "--ntasks-per-node",
        type=positive,
        metavar="N",
        help="processes; one for each GPU without it",
    )
    asked.add_argument("-c", "--cpus-per-task", type=positive, metavar="N")
    asked.add_argument("--mem", help="of a node, as 64G")
    asked.add_argument("-t", "--time", help="limit; a job that needs longer is requeued")
    asked.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=VALUE", help="any other option of sbatch; repeatable"
    )
    asked.add_argument("--max-requeues", type=natural, metavar="N", help="of one job, before it is left to you")
    asked.add_argument(
        "--stop-margin", type=positive, metavar="SECONDS", help="before the time limit, to stop and requeue in"
    )


def launch(arguments: argparse.Namespace) -> int:
    """Submit, run here or show what the arguments ask for; the exit code. Raises `UserError`."""
    try:
        return _launch(arguments)
    except queries.SlurmError as error:
        raise UserError(f"Slurm does not answer: {error}") from None


def _launch(arguments: argparse.Namespace) -> int:
    if not (arguments.local or arguments.dry_run or queries.installed()):
        raise UserError("no Slurm here (sbatch is not on PATH); add --local to run on this machine")
    jobs = stage_jobs(arguments)
    if arguments.dry_run:
        for job in jobs:
            print(sbatch_file(job))
        return 0
    if arguments.local:
        # configs/cluster.yaml speaks of the cluster's nodes, not of this machine.
        processes = arguments.tasks_per_node or arguments.gpus_per_node or (arguments.gres or (None, None))[1]
        for job in jobs:
            code = run_locally(job.program, job.config, job.arguments, processes)
            if code:
                return code
        return 0
    return _submit(jobs, arguments.follow)


def stage_jobs(arguments: argparse.Namespace) -> list[StageJob]:
    """The stages that the arguments name, in order, each as a job; checked as far as it can be beforehand."""
    given = {name: getattr(arguments, name) for name in Cluster.model_fields if name != "sbatch"}
    if arguments.gres:
        given["gpu_type"], given["gpus_per_node"] = arguments.gres
    cluster = load_cluster(given=given | {"sbatch": dict(map(_option, arguments.sbatch))})

    words = list(arguments.words)
    if not words or ("=" in words[0] and not Path(words[0]).exists()):
        if arguments.default is None:
            raise UserError("CONFIG is missing: a YAML file, or a name in configs/")
        words.insert(0, arguments.default)
    name, *overrides = words
    first = arguments.stage
    path = configuration.find(name, STAGES[first].program)
    later = tuple(STAGES)[list(STAGES).index(first) + 1 :] if arguments.chain else ()
    config = configuration.load(path, (*overrides, f"{first}.flag=true"), (first, *later))
    _require_checkpoint(config, first)
    stages = (first, *config.flagged(later))
    return [StageJob(stage, path, tuple(overrides), config.folder.root, cluster) for stage in stages]


def _require_checkpoint(config: configuration.RunConfig, stage: str) -> None:
    """Raise `UserError` where the checkpoint that a stage reads is not there: its job would fail at once."""
    reads = {"sample": "search", "test": "retrain"}
    test = config.test if stage == "test" else None
    if stage in reads and (test is None or test.start is None):
        # It loads torch.
        from vitas.checkpoint import CheckpointFolder

        inherited = test is not None and test.from_supernet
        read = "search" if inherited else reads[stage]
        CheckpointFolder(config.folder.checkpoints(read)).resolve(getattr(config, stage).load_name)


def _submit(jobs: list[StageJob], follows: bool) -> int:
    """Submit jobs, each to start when the one before is done. If one is refused, none stays in the queue."""
    submitted: list[Submitted] = []
    try:
        for job in jobs:
            submitted.append(submit(job, after=submitted[-1] if submitted else None))
    except UserError:
        for each in submitted:
            queries.cancel(each.id)
        raise
    for i, each in enumerate(submitted):
        after = f", after job {submitted[i - 1].id}" if i else ""
        print(f"{each.job.stage}: submitted job {each.id}{after}; its log will be {each.log}")
    if not follows:
        print(f"follow it: tail -F {shlex.quote(str(submitted[0].log))}")
        print(f"stop it:   scancel {' '.join(each.id for each in submitted)}")
        return 0
    try:
        return 0 if all(follow(each) for each in submitted) else 1
    except KeyboardInterrupt:
        print(f"no longer following; the jobs go on: {' '.join(each.id for each in submitted)}")
        return 0


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.lstrip("-").partition("=")
    return name, value if equals else True


def _gres(text: str) -> tuple[str | None, int]:
    match = re.fullmatch(r"gpu:(?:([^:]+):)?(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"found {text!r}; it must read gpu:N or gpu:TYPE:N (for others, see --sbatch)")
    return match[1], int(match[2])
