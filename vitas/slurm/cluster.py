"""What is asked of Slurm: `configs/cluster.yaml`, once for all scripts, and the command line above it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from vitas.config import CONFIGS
from vitas.errors import UserError
from vitas.files import read_yaml
from vitas.run import STAGES
from vitas.section import Positive, Section, explain
from vitas.slurm import queries

CLUSTER_FILE = CONFIGS / "cluster.yaml"


class Cluster(Section):
    """What a job asks for; null leaves it to Slurm, or to what the partition has.

    partition, account, qos, constraint, reservation: as in sbatch.
    nodes: null is 2 (1 for `test`), or what the partition has if that is less.
    gpus_per_node: null is all of a node's.
    gpu_type: as the cluster names it, where its nodes have several.
    tasks_per_node: processes; null is one for each GPU, or one.
    cpus_per_task: null is 4, or what a node has for each if that is less.
    mem: of a node, as 64G.
    time: limit, as sbatch writes it; null is the partition's own. A job that needs longer goes on after a requeue.
    max_requeues: of one job, before it is left to you.
    stop_margin: seconds before the time limit at which a job stops and requeues itself; null is 120, or a
        fifth of a shorter limit.
    sbatch: any other option of sbatch, {name: value}.
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
        """As sbatch takes them: 4, or a100:4; None for none."""
        if not self.gpus_per_node:
            return None
        return f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else str(self.gpus_per_node)

    @field_validator("time")
    @classmethod
    def _minutes(cls, value: str | int | None) -> str | None:
        if value is None or value in ("infinite", "UNLIMITED"):
            return None if value is None else "0"
        # [days-]hours[:minutes[:seconds]] with days, minutes[:seconds] or hours:minutes:seconds without.
        if not re.fullmatch(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+(:\d+)?)?", str(value)):
            raise ValueError(f"found {value!r}; it must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS")
        return str(value)


def load_cluster(path: Path | None = None, given: Mapping[str, object] | None = None) -> Cluster:
    """The settings of a cluster file (`configs/cluster.yaml`) under those that are `given`. Raises `UserError`."""
    file = path or CLUSTER_FILE
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
        raise UserError("; ".join(f"--{line.replace('_', '-', 1)}" for line in explain(error, Cluster))) from None


def fill_in(cluster: Cluster, stage: str) -> Cluster:
    """The same with every null that the partition answers, checked against what the partition has.

    Raises `UserError` for a partition that does not exist, or for more than it has.
    """
    known = queries.partitions()
    if cluster.partition is None:
        default = [partition for partition in known if partition.is_default]
        if not default:
            raise UserError(f"partition: this cluster has no default; give one of {_names(known)} (-p, or {_where()})")
        chosen = default
    else:
        # Slurm takes several, and uses the one that is free first.
        names = cluster.partition.split(",")
        for name in names:
            if name not in [partition.name for partition in known]:
                near = get_close_matches(name, [partition.name for partition in known], n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"partition: found {name!r}; this cluster has {_names(known)}{hint}")
        chosen = [partition for partition in known if partition.name in names]
    most_nodes, most_gpus, most_cpus = (max(getattr(part, of) for part in chosen) for of in ("nodes", "gpus", "cpus"))
    names = ",".join(partition.name for partition in chosen)
    nodes = cluster.nodes or min(STAGES[stage].nodes, most_nodes)
    gpus = most_gpus if cluster.gpus_per_node is None else cluster.gpus_per_node
    tasks = cluster.tasks_per_node or max(gpus, 1)
    cpus = cluster.cpus_per_task or max(1, min(4, most_cpus // tasks))
    if nodes > most_nodes:
        raise UserError(f"nodes: found {nodes}; partition {names} has {most_nodes} (-N, or {_where()})")
    if gpus > most_gpus:
        raise UserError(
            f"gpus_per_node: found {gpus}; a node of partition {names} has {most_gpus} (--gpus-per-node, or {_where()})"
        )
    if tasks * cpus > most_cpus:
        raise UserError(
            f"cpus_per_task: found {cpus}, for {tasks} processes; a node of partition {names} has {most_cpus} "
            f"processors (-c, or {_where()})"
        )
    return cluster.model_copy(
        update={
            "nodes": nodes,
            "gpus_per_node": gpus,
            "tasks_per_node": tasks,
            "cpus_per_task": cpus,
            "time": cluster.time or ("0" if chosen[0].time_limit == "infinite" else chosen[0].time_limit),
        }
    )


def sbatch_values(cluster: Cluster) -> dict[str, str | int | bool]:
    """What is asked of Slurm, by sbatch's own names for it; what is left to Slurm is not in it."""
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
    """The same as options: `sbatch $(vitas cluster) script/search_bcnet.sh`."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in sbatch_values(cluster).items()]


def _names(partitions: list[queries.Partition]) -> str:
    return ", ".join(partition.name for partition in partitions)


def _where() -> str:
    return f"{CLUSTER_FILE.name} in configs/"
