# Sourced by the scripts that start stages.
#   use_environment                  .venv, or else the active Python if it can run the project, or else set .venv up
#   search_stages KEY=VALUE CONFIG [WORDS] search and sample, on all tasks of the job that this is, or on this machine;
#                                          a YAML or WORDS that say another value of the key are refused
#   launch_stage STAGE CONFIG [WORDS]      a stage as `vitas launch` does it; CONFIG is for WORDS that name none
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

has_environment() {
    if ls "$REPOSITORY"/.venv/.installed-* >/dev/null 2>&1 && [ -x "$REPOSITORY/.venv/bin/python" ]; then
        export PATH="$REPOSITORY/.venv/bin:$PATH"
        return
    fi
    python -c '
from importlib.util import find_spec
names = "torch", "torchvision", "timm", "pymoo", "pydantic", "yaml", "submitit", "rich", "tensorboard"
raise SystemExit(not all(map(find_spec, names)))' 2>/dev/null
}

use_environment() {
    # Where the user is: paths in a YAML are relative to that.
    local here="$PWD"
    if ! has_environment; then
        # A compute node is no place to install from: often without a network, and many at once.
        [ -z "${SLURM_JOB_ID:-}" ] || fail "no Python environment for this job; run ./script/setup.sh in $REPOSITORY first"
        setup_environment base
        cd "$here" || exit 1
    fi
    export PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
}

search_stages() {
    local setting="$1" config="$2" module=vitas.slurm.local
    shift 2
    case "${1:-}" in
        -h | --help) print_help "$script"; exit ;;
        "" | *=*) ;;
        *) config="$1"; shift ;;
    esac
    use_environment
    if [ -n "${SLURM_JOB_ID:-}" ]; then module=vitas.slurm.supervisor; fi
    exec python -m "$module" --for "$setting" search "$config" "$@"
}

launch_stage() {
    local stage="$1" config="$2" where=() argument
    shift 2
    for argument in "$@"; do
        case "$argument" in
            -h | --help)
                print_help "$0"
                # Help comes at once: it installs nothing.
                if has_environment; then echo; PYTHONPATH="$REPOSITORY" exec python -m vitas launch --help; fi
                exit
                ;;
        esac
    done
    use_environment
    if command -v sbatch >/dev/null; then
        say "submitting through Slurm"
    else
        say "no Slurm here (sbatch is not on PATH): running on this machine"
        where=(--local)
    fi
    exec python -m vitas launch "$stage" ${config:+--default "$config"} "$@" "${where[@]}"
}
