#!/usr/bin/env bash
# Measure a trained network: `test` of a YAML.
#
#   ./script/inference.sh [OPTIONS] [NAME.yaml] [key=value ...]
#
# NAME.yaml is a path or a name in configs/inference/; without it, ViTAS_1.3G.yaml.
# Through Slurm where sbatch is there, else on this machine. OPTIONS are those of `vitas launch` (see
# docs/slurm.md); what is not given comes from configs/cluster.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.bash"
launch_stage test ViTAS_1.3G.yaml "$@"
