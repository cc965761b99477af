#!/usr/bin/env bash
# Measure a trained network: the stage `test` of a YAML.
#
#   ./script/inference.sh [OPTIONS] [NAME.yaml] [key=value ...]
#
# NAME.yaml is a path, or the name of a file in configs/inference/. The default is ViTAS_1.3G.yaml.
# Runs through Slurm if sbatch is installed, else on this machine. OPTIONS are those of `vitas launch` (see
# docs/slurm.md); configs/cluster.yaml gives the rest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.bash"
launch_stage test ViTAS_1.3G.yaml "$@"
