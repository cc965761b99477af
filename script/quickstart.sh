#!/usr/bin/env bash
# From images to a tested network on scikit-learn's handwritten digits, on this machine, in minutes:
#   ./script/quickstart.sh          ViTAS: all four stages, from configs/quickstart.yaml
#   ./script/quickstart.sh asvit    As-ViT: search without training, retrain, test, from configs/quickstart_asvit.yaml
# If it was stopped, run it again to resume. Arguments are overrides: ./script/quickstart.sh save_path=runs/other
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

name=quickstart found=subnet_1
if [ "${1:-}" = asvit ]; then
    name=quickstart_asvit found=""
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

# A DeiT for the size of the digits: equal blocks, heads of 16 dims, an MLP dim of four times the embedding dim.
baseline=p8-e48-token-h3q144m192x5

# Networks this small are fastest on one CPU thread; another core decodes images meanwhile.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

say "1/5 the digits, as image folders in runs/digits"
vitas digits runs/digits
if [ "$name" = quickstart ]; then
    say "2/5 train the supernet on train images, then evolve architectures with it on val images"
else
    say "2/5 score topologies at initialisation, then grow the best"
fi
python -m search "$config" "$@"
say "3/5 retrain the best architecture on train images"
python -m retrain "$config" "$@"
say "4/5 test it on test images"
python -m inference "$config" "$@"
say "5/5 the same recipe for a DeiT-shaped baseline"
python -m retrain "$config" "$@" save_path="$save_path/baseline" retrain.architecture="$baseline"
python -m inference "$config" "$@" save_path="$save_path/baseline"

# As-ViT's best network is the last one that it grew; architectures.yaml lists it first.
[ -n "$found" ] || found="$(sed -n 's/^- name: //p' "$save_path/search/architectures.yaml" | head -1)"
say "The architecture that was found:"
vitas describe "$save_path/search/architectures.yaml:$found" --image-size 32 --num-classes 10
say "Beside the baseline, on the test images:"
vitas compare "$save_path" "$save_path/baseline"
if [ "$name" = quickstart ]; then
    written="  search/checkpoint/         the supernet
  search/population.jsonl    every architecture that was scored"
else
    written="  search/topologies.jsonl    every topology that was scored
  search/growth.jsonl        every network that growth chose among"
fi
cat <<END

Written to $save_path:
$written
  search/architectures.yaml  what was found
  retrain/checkpoint/        the retrained network
  retrain/results.json       its test results
  baseline/                  the same for the baseline
  */events/                  training curves: tensorboard --logdir $save_path
END
