#!/usr/bin/env bash
# Set up .venv, lint, check types, and run the whole test suite. For tests/cluster/ the tests start a real Slurm on this
# machine, and stop it again. Arguments go to pytest: ./script/test.sh -k space
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in -h | --help) print_help "${BASH_SOURCE[0]}"; exit ;; esac
setup_environment test
if ! PATH="$PATH:/usr/sbin" command -v slurmctld >/dev/null || ! PATH="$PATH:/usr/sbin" command -v munged >/dev/null; then
    install_debian_packages slurm-wlm munge || say "Slurm cannot be installed here; tests/cluster/ will be skipped"
fi
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    install_debian_packages chromium chromium-driver || say "Chromium cannot be installed here; tests of pages in a browser will be skipped"
fi
ruff check .
ruff format --check --quiet . || { echo "error: run 'ruff format .'" >&2; exit 1; }
mypy --no-error-summary || { echo "error: the types above are wrong; 'mypy' checks them again" >&2; exit 1; }
# Two at a time: while tests/cluster/ waits for Slurm, the other tests run. A file's tests share what they set up.
export OMP_NUM_THREADS=1
exec python -m pytest -n 2 --dist loadfile "$@"
