"""The resources that a job asks Slurm for: `configs/cluster.yaml`, overridden by the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from vitas.config_section import Positive, Section, explain
from vitas.errors import UserError, require_one_line
from vitas.packaged import CLUSTER
from vitas.packaged import FOLDER as CONFIGS
from vitas.plain_data import read_yaml
from vitas.run import STAGES
from vitas.slurm import queries

CLUSTER_FILE = CONFIGS / CLUSTER


class Cluster(Section):
    """The resources of a job; null leaves one to Slurm or to the partition.

    partition, account, qos, constraint, reservation: as in sbatch.
    nodes: null is 2 (1 for `test`), or the partition's number if that is less.
    gpus_per_node: null is all GPUs of a node.
    gpu_type: the cluster's name for it, needed if its nodes have several types.
    tasks_per_node: processes; null is one per GPU, or one without GPUs.
    cpus_per_task: null is 4, or an equal share of a node's processors if that is less.
    mem: memory per node, e.g. 64G.
    time: limit, in sbatch's format; null is the partition's limit. A job that needs longer is requeued and resumes.
    max_requeues: how often a job requeues itself before it gives up.
    stop_margin: seconds before the time limit at which a job stops and requeues itself; null is 120, or a
        fifth of a limit shorter than 10 minutes.
    sbatch: any other options of sbatch, {name: value}.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodes: Positive | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    gpu_type: str | None = None
    tasks_per_node: Positive | None = None
    cpus_per_task: Positive | None = None
    mem: str | None = None
    time: str | int | None = None
    max_requeues: Annotated[int, Field(ge=0)] = 100
    stop_margin: Positive | None = None
    sbatch: dict[str, str | int | bool] = {}

    @property
    def gpus(self) -> str | None:
        """The GPUs per node in sbatch's format, e.g. 4 or a100:4; None for none."""
        if not self.gpus_per_node:
            return None
        return f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else str(self.gpus_per_node)

    @field_validator("*")
    @classmethod
    def _one_line(cls, value: object) -> object:
        # All of it ends up in an sbatch file, where a newline would begin a command.
        return require_one_line(value) if isinstance(value, str) else value

    @field_validator("sbatch")
    @classmethod
    def _options(cls, options: dict[str, object]) -> dict[str, object]:
        for name, value in options.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*", name):
                raise ValueError(f"found the option {name!r}; it must be a name as sbatch has them, e.g. mail-type")
            if isinstance(value, str):
                require_one_line(value, name)
        return options

    @field_validator("time")
    @classmethod
    def _minutes(cls, value: str | int | None) -> str | None:
        if value is None or value in ("infinite", "UNLIMITED"):
            return None if value is None else "0"
        # minutes[:seconds], hours:minutes:seconds or days-hours[:minutes[:seconds]].
        if not re.fullmatch(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+(:\d+)?)?", str(value)):
            raise ValueError(f"found {value!r}; it must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS")
        return str(value)


def load_cluster(path: Path | None = None, given: Mapping[str, Any] | None = None) -> Cluster:
    """The settings of a cluster file, overridden by `given`. Raises `UserError`.

    path: by default `cluster.yaml` of the working folder, or else of `configs/`: nobody edits what a wheel installed.
    """
    own = Path(CLUSTER)
    file = path or (own if own.is_file() else CLUSTER_FILE)
    data = read_yaml(file) if path or file.exists() else None
    if not isinstance(data or {}, dict):
        raise UserError(f"{file}: found {type(data).__name__}; it must be a mapping of keys")
    given = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        from_file = Cluster.model_validate(data or {})
    except ValidationError as error:
        raise UserError("\n  ".join([f"{file}:", *explain(error, Cluster)])) from None
    options = from_file.sbatch | given.pop("sbatch", {})
    try:
        return Cluster.model_validate(from_file.model_dump() | given | {"sbatch": options})
    except ValidationError as error:
        lines = (line.partition(":") for line in explain(error, Cluster))
        raise UserError("; ".join(f"--{key.replace('_', '-')}:{text}" for key, _, text in lines)) from None


def fill_in(cluster: Cluster, stage: str) -> Cluster:
    """Replace nulls by the partition's values, and check the rest against them.

    Raises `UserError` for an unknown partition, or for more than it has.
    """
    known = queries.partitions()
    if cluster.partition is None:
        default = [partition for partition in known if partition.is_default]
        if not default:
            raise UserError(f"partition: this cluster has no default; give one of {_names(known)} (-p, or {_where()})")
        partitions = default
    else:
        # Slurm accepts several partitions, and uses the one that is free first.
        names = cluster.partition.split(",")
        for name in names:
            if name not in [partition.name for partition in known]:
                near = get_close_matches(name, [partition.name for partition in known], n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"partition: found {name!r}; this cluster has {_names(known)}{hint}")
        partitions = [partition for partition in known if partition.name in names]
    most_nodes = max(partition.nodes for partition in partitions)
    most_gpus = max(partition.gpus for partition in partitions)
    most_cpus = max(partition.cpus for partition in partitions)
    asked = ",".join(partition.name for partition in partitions)
    nodes = cluster.nodes or min(STAGES[stage].nodes, most_nodes)
    gpus = most_gpus if cluster.gpus_per_node is None else cluster.gpus_per_node
    tasks = cluster.tasks_per_node or max(gpus, 1)
    cpus = cluster.cpus_per_task or max(1, min(4, most_cpus // tasks))
    if nodes > most_nodes:
        raise UserError(f"nodes: found {nodes}; partition {asked} has {most_nodes} (-N, or {_where()})")
    if gpus > most_gpus:
        raise UserError(
            f"gpus_per_node: found {gpus}; a node of partition {asked} has {most_gpus} (--gpus-per-node, or {_where()})"
        )
    if tasks * cpus > most_cpus:
        raise UserError(
            f"cpus_per_task: found {cpus}, for {tasks} processes; a node of partition {asked} has {most_cpus} "
            f"processors (-c, or {_where()})"
        )
    return cluster.model_copy(
        update={
            "nodes": nodes,
            "gpus_per_node": gpus,
            "tasks_per_node": tasks,
            "cpus_per_task": cpus,
            "time": cluster.time or ("0" if partitions[0].time_limit == "infinite" else partitions[0].time_limit),
        }
    )


def sbatch_values(cluster: Cluster) -> dict[str, str | int | bool]:
    """The resources as {sbatch's name: value}, without those left to Slurm."""
    values = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "nodes": cluster.nodes,
        "gres": f"gpu:{cluster.gpus}" if cluster.gpus_per_node else None,
        "ntasks-per-node": cluster.tasks_per_node or cluster.gpus_per_node,
        "cpus-per-task": cluster.cpus_per_task,
        "mem": cluster.mem,
        "time": cluster.time,
        **cluster.sbatch,
    }
    return {name: value for name, value in values.items() if value is not None and value is not False}


def sbatch_options(cluster: Cluster) -> list[str]:
    """The resources as command-line options: `sbatch $(vitas cluster) script/search_bcnet.sh`.

    Raises `UserError` for a value with a space: the shell would make several words of it.
    """
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in sbatch_values(cluster).items()]
    for option in options:
        if option.split() != [option]:
            raise UserError(f"found {option!r}; a shell splits it at its spaces, so use `vitas launch` for it")
    return options


def _names(partitions: list[queries.Partition]) -> str:
    return ", ".join(partition.name for partition in partitions)


def _where() -> str:
    return f"{CLUSTER_FILE.name} in configs/"
