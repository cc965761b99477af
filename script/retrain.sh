#!/usr/bin/env bash
# Train one architecture: `retrain` of a YAML.
#
#   ./script/retrain.sh [OPTIONS] NAME.yaml [key=value ...]
#
# NAME.yaml is a path or a name in configs/retrain/.
# Through Slurm where sbatch is there, else on this machine. OPTIONS are those of `vitas launch retrain`, listed
# below; what is not given comes from configs/cluster.yaml.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for argument in "$@"; do
    case "$argument" in -h | --help) print_help "${BASH_SOURCE[0]}"; echo ;; esac
done
use_environment
options=("$@")
if command -v sbatch >/dev/null; then
    say "submitting through Slurm"
else
    say "no Slurm here (sbatch is not on PATH): running on this machine"
    options+=(--local)
fi
exec python -m vitas launch retrain "${options[@]}"
