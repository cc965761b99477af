"""`vitas launch`: stages as Slurm jobs, or as processes of this machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vitas import config as configuration
from vitas.cli.options import NATURAL, POSITIVE, command, complete_override, parsed
from vitas.errors import UserError
from vitas.run import STAGES
from vitas.slurm import queries
from vitas.slurm.cluster import Cluster, load_cluster
from vitas.slurm.local import run_locally
from vitas.slurm.submission import StageJob, Submitted, follow, sbatch_file, submit


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.lstrip("-").partition("=")
    return name, value if equals else True


def _gres(text: str) -> tuple[str | None, int]:
    match = re.fullmatch(r"gpu:(?:([^:]+):)?(\d+)", text)
    if not match:
        raise ValueError(f"found {text!r}; it must read gpu:N or gpu:TYPE:N (for others, see --sbatch)")
    return match[1], int(match[2])


@command(
    "vitas launch search vitas_1g.yaml --chain --follow        # all flagged stages, each when the one before is done",
    "vitas launch retrain vitas_1g.yaml -p gpu -N 2 --gpus-per-node 8 retrain.epochs=100",
    "vitas launch test vitas_1g.yaml --dry-run                 # show the sbatch file",
    "vitas launch search vitas_1g.yaml --local                 # on this machine",
)
@click.argument("stage", type=click.Choice(list(STAGES)))
@click.argument("words", nargs=-1, metavar="CONFIG [key=value]...", shell_complete=complete_override)
# For scripts that have a CONFIG of their own.
@click.option("--default", hidden=True)
@click.option(
    "--chain", is_flag=True, help="This stage and all flagged ones after it, each when the one before is done."
)
@click.option("--local", is_flag=True, help="As processes of this machine, in the foreground.")
@click.option("--dry-run", is_flag=True, help="Print the sbatch file, and submit nothing.")
@click.option("--follow", is_flag=True, help="Print the job's log until it ends (Ctrl-C leaves the job running).")
@click.option("-p", "--partition", help="As in sbatch, and so for all that follow.")
@click.option("-A", "--account")
@click.option("-q", "--qos")
@click.option("-C", "--constraint")
@click.option("--reservation")
@click.option("-N", "--nodes", type=POSITIVE, metavar="N")
@click.option("--gpus-per-node", type=NATURAL, metavar="N", help="0 for none.")
@click.option("--gpu-type", metavar="TYPE", help="Where the nodes have several.")
@click.option("--gres", metavar="gpu:[TYPE:]N", type=parsed("gres", _gres), help="The two above in one.")
@click.option(
    "--tasks-per-node",
    "--ntasks-per-node",
    "tasks_per_node",
    type=POSITIVE,
    metavar="N",
    help="Processes; one for each GPU without it.",
)
@click.option("-c", "--cpus-per-task", type=POSITIVE, metavar="N")
@click.option("--mem", help="Of a node, as 64G.")
@click.option("-t", "--time", help="Limit; a job that needs longer is requeued.")
@click.option("--sbatch", multiple=True, metavar="OPTION=VALUE", help="Any other option of sbatch; repeatable.")
@click.option("--max-requeues", type=NATURAL, metavar="N", help="Of one job, before it is left to you.")
@click.option("--stop-margin", type=POSITIVE, metavar="SECONDS", help="Before the time limit, to stop and requeue in.")
def launch(
    stage: str,
    words: tuple[str, ...],
    default: str | None,
    chain: bool,
    local: bool,
    dry_run: bool,
    follow: bool,
    **asked: Any,
) -> int:
    """Submit a stage as a Slurm job, which requeues itself until the stage is done.

    CONFIG is a YAML file, or a name in configs/; key=value sets a key of it, as search.epochs=10. What is asked of
    Slurm and not given here comes from configs/cluster.yaml, and then from what the partition has.
    """
    try:
        if not (local or dry_run or queries.installed()):
            raise UserError("no Slurm here (sbatch is not on PATH); add --local to run on this machine")
        jobs = stage_jobs(stage, list(words), default, chain, asked)
        if dry_run:
            for job in jobs:
                print(sbatch_file(job))
            return 0
        if local:
            # configs/cluster.yaml speaks of the cluster's nodes, not of this machine.
            processes = asked["tasks_per_node"] or asked["gpus_per_node"] or (asked["gres"] or (None, None))[1]
            codes = (run_locally(job.program, job.config, job.arguments, processes) for job in jobs)
            return next((code for code in codes if code), 0)
        return _submit(jobs, follow)
    except queries.SlurmError as error:
        raise UserError(f"Slurm does not answer: {error}") from None


def stage_jobs(
    first: str, words: list[str], default: str | None, chain: bool, asked: Mapping[str, Any]
) -> list[StageJob]:
    """The stages that the words name, in order, each as a job; checked as far as it can be beforehand.

    words: the YAML and overrides. default: the YAML where they hold none. asked: the options that go to Slurm.
    """
    given = {name: asked[name] for name in Cluster.model_fields if name != "sbatch"}
    if asked["gres"]:
        given["gpu_type"], given["gpus_per_node"] = asked["gres"]
    cluster = load_cluster(given=given | {"sbatch": dict(map(_option, asked["sbatch"]))})

    if not words or ("=" in words[0] and not Path(words[0]).exists()):
        if default is None:
            raise UserError("CONFIG is missing: a YAML file, or a name in configs/")
        words = [default, *words]
    name, *overrides = words
    path = configuration.find(name, STAGES[first].program)
    later = tuple(STAGES)[list(STAGES).index(first) + 1 :] if chain else ()
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
