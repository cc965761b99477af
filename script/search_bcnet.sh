#!/usr/bin/env bash
# Train a supernet with BCNet's bilateral sharing, then evolve architectures with it: `search` and `sample` of a YAML.
#
#   sbatch [OPTIONS] script/search_bcnet.sh [CONFIG] [key=value ...]    as a Slurm job
#   bash script/search_bcnet.sh [CONFIG] [key=value ...]                on this machine
#
# CONFIG is a path, or the name of a file in configs/search/. The default is ViTAS_1G_BCNet.yaml.
# The script sets model.sharing=bilateral; it refuses a CONFIG or an override that sets another value.
# It asks for 2 nodes of 8 GPUs and 8 tasks each. OPTIONS change that: sbatch -N 1 --gres=gpu:4 --ntasks-per-node=4 ...
# With the options in configs/cluster.yaml: sbatch $(vitas cluster) script/search_bcnet.sh
# On preemption and before its time limit the job stops and requeues itself, until it is done.
#SBATCH --job-name=search_bcnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

script="${BASH_SOURCE[0]}"
# Slurm runs a copy of this file in another folder; scontrol knows the original.
[ -f "$(dirname "$script")/stages.bash" ] || script="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')"
script="${script%" $*"}"
source "$(dirname "$script")/stages.bash"
search_stages "model.sharing=bilateral search.method=supernet" ViTAS_1G_BCNet.yaml "$@"
