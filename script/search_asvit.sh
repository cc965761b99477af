#!/usr/bin/env bash
# Find a topology without training and grow it, as As-ViT does: `search` of a YAML with search.method: asvit.
#
#   sbatch [OPTIONS] script/search_asvit.sh [CONFIG] [key=value ...]    as a Slurm job
#   bash script/search_asvit.sh [CONFIG] [key=value ...]                on this machine
#
# CONFIG is a path or a name in configs/search/; without it, AsViT.yaml.
# It asks for one GPU; five score the five initialisations at once: sbatch --gres=gpu:5 --ntasks-per-node=5 ...
# What configs/cluster.yaml sets: sbatch $(vitas cluster) script/search_asvit.sh
# The job stops before its time limit, or when it is preempted, and requeues itself until it is done.
#SBATCH --job-name=search_asvit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

script="${BASH_SOURCE[0]}"
# Slurm runs a copy of this file, and knows where it came from.
[ -f "$(dirname "$script")/stages.bash" ] || script="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')"
script="${script%" $*"}"
source "$(dirname "$script")/stages.bash"
search_stages search.method=asvit AsViT.yaml "$@"
