#!/usr/bin/env bash
# Train one architecture: the stage `retrain` of a YAML.
#
#   ./script/retrain.sh [OPTIONS] NAME.yaml [key=value ...]
#
# NAME.yaml is a path, or the name of a file in configs/retrain/.
# Runs through Slurm if sbatch is installed, else on this machine. OPTIONS are those of `vitas launch` (see
# docs/slurm.md); configs/cluster.yaml gives the rest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.bash"
launch_stage retrain "" "$@"
