#!/usr/bin/env bash
# The long campaign of faults, for an hour or two: kills and power cuts inside every call that changes a file, flipped
# bits, full disks, dead and stopped ranks, bad images, and fuzzed files of every format. See docs/reliability.md.
#
#   ./script/faults.sh FOLDER [SHARE]
#
# FOLDER keeps what was counted (FOLDER/faults.jsonl); started again, it goes on with the rest. SHARE is the part of the
# faults to inject, 1 by default. Full and read-only disks need root, for a small file system to be mounted. With Slurm
# installed, its tests are run too: jobs that are killed, stopped, preempted and requeued.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in "" | -h | --help) print_help "${BASH_SOURCE[0]}"; exit ;; esac
setup_environment test
export OMP_NUM_THREADS=1 PYTHONPATH="$REPOSITORY"
mkdir -p "$1"
folder="$(realpath "$1")" share="${2:-1}"
cd "$REPOSITORY"
failed=0
python -m tests.faults.campaign "$folder" --share "$share" || failed=1
VITAS_FUZZ_EXAMPLES="$(awk -v share="$share" 'BEGIN { print int(100000 * share) }')" \
    python -m pytest tests/faults -n 2 -k "not killed and not dies" || failed=1
python -m pytest tests/cluster tests/vitas/test_watchdog.py || failed=1
exit "$failed"
