# The scripts that start stages source this file.
#   use_environment                        use .venv, or an active Python that can run the project; else set up .venv
#   search_stages SETTINGS CONFIG [WORDS]  run search and sample with SETTINGS ("KEY=VALUE ..."), on all tasks of the
#                                          current Slurm job or on this machine; refuse a YAML or WORDS that set a KEY
#                                          to another value
#   launch_stage STAGE CONFIG [WORDS]      run a stage with `vitas launch`
# CONFIG is the default where WORDS begin with no file.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

has_environment() {
    if ls "$REPOSITORY"/.venv/.installed-* >/dev/null 2>&1 && [ -x "$REPOSITORY/.venv/bin/python" ]; then
        export PATH="$REPOSITORY/.venv/bin:$PATH"
        return
    fi
    python -c '
from importlib.util import find_spec
names = "torch", "torchvision", "timm", "pymoo", "pydantic", "yaml", "submitit", "rich", "click", "tensorboard"
raise SystemExit(not all(map(find_spec, names)))' 2>/dev/null
}

use_environment() {
    # Paths in a YAML are relative to the user's folder, and the set-up changes the folder.
    local here="$PWD"
    if ! has_environment; then
        # Do not install on compute nodes: they often have no network, and many would install at once.
        [ -z "${SLURM_JOB_ID:-}" ] || fail "no Python environment for this job; run ./script/setup.sh in $REPOSITORY first"
        setup_environment base
        cd "$here" || exit 1
    fi
    export PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
}

search_stages() {
    local settings=() config="$2" module=vitas.slurm.local setting
    for setting in $1; do settings+=(--for "$setting"); done
    shift 2
    case "${1:-}" in
        -h | --help) print_help "$script"; exit ;;
        "" | *=*) ;;
        *) config="$1"; shift ;;
    esac
    use_environment
    if [ -n "${SLURM_JOB_ID:-}" ]; then module=vitas.slurm.supervisor; fi
    exec python -m "$module" "${settings[@]}" search "$config" "$@"
}

launch_stage() {
    local stage="$1" config="$2" where=() argument
    shift 2
    for argument in "$@"; do
        case "$argument" in
            -h | --help)
                print_help "$0"
                # Help must not wait for an installation.
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
