#!/usr/bin/env bash
# The whole test suite, after its own set-up, with a real Slurm on this machine for tests/cluster/, which the tests
# start and take down. Arguments go to pytest: ./script/test.sh -k space
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in -h | --help) print_help "${BASH_SOURCE[0]}"; exit ;; esac
setup_environment test
if ! PATH="$PATH:/usr/sbin" command -v slurmctld >/dev/null || ! PATH="$PATH:/usr/sbin" command -v munged >/dev/null; then
    install_debian_packages slurm-wlm munge || say "Slurm cannot be installed here; tests/cluster/ will be skipped"
fi
ruff check .
ruff format --check --quiet . || { echo "error: run 'ruff format .'" >&2; exit 1; }
exec python -m pytest "$@"
