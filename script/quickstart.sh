#!/usr/bin/env bash
# From images to a tested network, beside a DeiT-shaped baseline, on this machine, in minutes:
#   ./script/quickstart.sh          ViTAS on Fashion-MNIST: all four stages, from configs/quickstart.yaml
#   ./script/quickstart.sh asvit    As-ViT on scikit-learn's digits: search without training, retrain, test, from
#                                   configs/quickstart_asvit.yaml
# If it was stopped, run it again to resume. Arguments are overrides: ./script/quickstart.sh seed=1 save_path=runs/other
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

name=quickstart
if [ "${1:-}" = asvit ]; then
    name=quickstart_asvit
    shift
fi
config="configs/$name.yaml"
save_path="runs/$name"
for argument in "$@"; do
    case "$argument" in
        -h | --help) print_help "${BASH_SOURCE[0]}"; exit ;;
        save_path=*) save_path="${argument#save_path=}" ;;
    esac
done
setup_environment quickstart

# Networks this small are fastest on one CPU thread; another core decodes images meanwhile.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# The baselines have DeiT's proportions: equal blocks, an MLP dim of four times the embedding dim.
if [ "$name" = quickstart ]; then
    # Of the DeiT-shaped networks in the budget of the search the one that is best on val images.
    baseline=p7-e26-token-h2q78m104x6 found=subnet_1
    say "1/4 Fashion-MNIST, as image folders in runs/fashion"
    vitas fashion runs/fashion --train 10000 --val 10000
    searching="train the supernet on train images, then evolve architectures with it on val images"
    written="  search/checkpoint/         the supernet
  search/population.jsonl    every architecture that was scored"
else
    baseline=p8-e48-token-h3q144m192x5 found=""
    say "1/4 the digits, as image folders in runs/digits"
    vitas digits runs/digits
    searching="score topologies at initialisation, then grow the best"
    written="  search/topologies.jsonl    every topology that was scored
  search/growth.jsonl        every network that growth chose among"
fi

# The baseline needs nothing of the search, so it trains beside it. Stopping this script stops it too.
output="$(mktemp)"
python -m retrain "$config" "$@" save_path="$save_path/baseline" retrain.architecture="$baseline" >"$output" 2>&1 &
training=$!
trap 'kill "$training" 2>/dev/null || true; rm -f "$output"' EXIT

say "2/4 $searching; beside it, train the baseline"
python -m search "$config" "$@"
say "3/4 retrain the best architecture on train images, by the recipe of the baseline"
python -m retrain "$config" "$@"
wait "$training" || { cat "$output" >&2; fail "the training of the baseline stopped; run this again to resume"; }
say "4/4 test both on test images"
python -m inference "$config" "$@"
python -m inference "$config" "$@" save_path="$save_path/baseline"

# As-ViT's best network is the last one that it grew; architectures.yaml lists it first.
[ -n "$found" ] || found="$(sed -n 's/^- name: //p' "$save_path/search/architectures.yaml" | head -1)"
say "The architecture that was found:"
vitas describe "$save_path:$found"
say "Beside the baseline, on the test images:"
vitas compare "$save_path" "$save_path/baseline"
vitas report "$save_path" "$save_path/baseline" --output "$save_path/beside_baseline.html" >/dev/null
cat <<END

Written to $save_path:
$written
  search/architectures.yaml  what was found
  retrain/checkpoint/        the retrained network
  retrain/results.json       its test results
  report.html                all of it as a page, to be opened in a browser
  beside_baseline.html       the same beside the baseline
  baseline/                  the same for the baseline
  */events/                  training curves: tensorboard --logdir $save_path
END
