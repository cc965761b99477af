#!/usr/bin/env bash
# Set up .venv with this project and its dependencies: ./script/setup.sh
# The other scripts source this file for
#   setup_environment EXTRA   set up .venv with an extra of setup.py (base: no extra)
# PYTHON=/path/to/python3 chooses the interpreter. VITAS_TORCH_INDEX=URL names the package index for torch
# and torchvision (PyTorch publishes one with builds for machines without a GPU).

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

install_debian_packages() {
    command -v apt-get >/dev/null || return 1
    say "installing $* with apt-get"
    as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

find_python() {
    local python="${PYTHON:-python3}"
    if ! command -v "$python" >/dev/null; then
        [ -z "${PYTHON:-}" ] || fail "PYTHON is $PYTHON, which is no program; set it to a Python 3.10 or newer"
        install_debian_packages python3 python3-venv || fail "no python3 here; install Python 3.10 or newer"
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || fail "$("$python" --version) is too old; set PYTHON to a Python 3.10 or newer"
    echo "$python"
}

create_venv() {
    local python
    python="$(find_python)" || exit 1
    # On Debian, part of venv is in a separate package.
    "$python" -c 'import ensurepip' 2>/dev/null || install_debian_packages python3-venv \
        || fail "$python cannot make virtual environments; install the package python3-venv"
    "$python" -m venv --clear "$REPOSITORY/.venv"
}

setup_environment() {
    local extra="$1" stamp wanted
    cd "$REPOSITORY" || exit 1
    stamp="$REPOSITORY/.venv/.installed-$extra"
    wanted="$(cat setup.py pyproject.toml | sha256sum)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        # A virtual environment that was moved or is incomplete does not start; create it again.
        .venv/bin/python -m pip --version >/dev/null 2>&1 || create_venv
        if [ -n "${VITAS_TORCH_INDEX:-}" ]; then
            say "installing torch from VITAS_TORCH_INDEX"
            .venv/bin/python -m pip install -q torch torchvision --index-url "$VITAS_TORCH_INDEX" || fail "pip failed"
        fi
        say "installing the project and its dependencies into .venv (some minutes, the first time)"
        if [ "$extra" = base ]; then extra=""; fi
        .venv/bin/python -m pip install -q -e ".${extra:+[$extra]}" || fail "pip failed"
        echo "$wanted" > "$stamp"
    fi
    export PATH="$REPOSITORY/.venv/bin:$PATH"
}

# The comment at the top of a script, without the #SBATCH lines.
print_help() { sed -n '2,/^[^#]/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$1"; }

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case "${1:-}" in
        -h | --help) print_help "$0"; exit ;;
        ?*) fail "setup.sh takes no arguments" ;;
    esac
    setup_environment base
    say "done; source .venv/bin/activate"
fi
