#!/usr/bin/env bash
# The whole test suite, after its own set-up. Arguments go to pytest: ./script/test.sh -k space
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup_environment test
ruff check .
ruff format --check --quiet . || { echo "error: run 'ruff format .'" >&2; exit 1; }
exec python -m pytest "$@"
