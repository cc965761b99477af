"""`vitas cluster`: the options of sbatch that configs/cluster.yaml sets."""

from __future__ import annotations

import shlex

from vitas.cli.options import command
from vitas.slurm.cluster import load_cluster, sbatch_options


@command("sbatch $(vitas cluster) script/search_bcnet.sh vitas_1g.yaml")
def cluster() -> None:
    """Print what configs/cluster.yaml sets, as options of sbatch."""
    print(shlex.join(sbatch_options(load_cluster())))
