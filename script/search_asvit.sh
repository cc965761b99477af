#!/usr/bin/env bash
# Find a topology without training and grow it, as As-ViT does: `search` of a YAML with method: asvit.
#
#   sbatch [OPTIONS] script/search_asvit.sh [CONFIG] [key=value ...]    as a Slurm job
#   bash script/search_asvit.sh [CONFIG] [key=value ...]                on this machine
#
# CONFIG is a path, or the name of a file in configs/search/. The default is AsViT.yaml.
# The script sets search.method=asvit; it refuses a CONFIG or an override that sets another value.
# It asks for one GPU. Five GPUs score the five initialisations in parallel: sbatch --gres=gpu:5 --ntasks-per-node=5 ...
# With the options in configs/cluster.yaml: sbatch $(vitas cluster) script/search_asvit.sh
# On preemption and before its time limit the job stops and requeues itself, until it is done.
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
# Slurm runs a copy of this file in another folder; scontrol knows the original.
[ -f "$(dirname "$script")/stages.bash" ] || script="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')"
script="${script%" $*"}"
source "$(dirname "$script")/stages.bash"
search_stages search.method=asvit AsViT.yaml "$@"
