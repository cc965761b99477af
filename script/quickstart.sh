#!/usr/bin/env bash
# All four stages on scikit-learn's handwritten digits, from configs/quickstart.yaml, on this machine.
# Run again, it goes on where it was. Arguments are overrides: ./script/quickstart.sh save_path=runs/other
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

config=configs/quickstart.yaml
save_path=runs/quickstart
for argument in "$@"; do
    case "$argument" in
        -h | --help) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"; exit ;;
        save_path=*) save_path="${argument#save_path=}" ;;
    esac
done
setup_environment quickstart

# DeiT's shape at the digits' size: uniform blocks of heads 16 wide, MLPs four times the embedding dim.
baseline=p8-e48-token-h3q144m192x5

# Networks this small are fastest on one thread of a CPU; the next core decodes images meanwhile.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

say "1/5 the digits, as image folders in runs/digits"
vitas digits runs/digits
say "2/5 train the supernet on train images, then evolve architectures with it on val images"
python -m search "$config" "$@"
say "3/5 retrain the best architecture on train images"
python -m retrain "$config" "$@"
say "4/5 test it on test images"
python -m inference "$config" "$@"
say "5/5 the same recipe for a DeiT-shaped baseline"
python -m retrain "$config" "$@" save_path="$save_path/baseline" retrain.architecture="$baseline"
python -m inference "$config" "$@" save_path="$save_path/baseline"

say "The architecture that was found:"
vitas describe "$save_path/search/architectures.yaml:subnet_1" --image-size 32 --num-classes 10
say "Beside the baseline, on the test images:"
vitas compare "$save_path" "$save_path/baseline"
cat <<END

Written to $save_path:
  search/checkpoint/         the supernet
  search/population.jsonl    every architecture that was scored
  search/architectures.yaml  the best of them
  retrain/checkpoint/        the retrained network
  retrain/results.json       its test results
  baseline/                  the same for the baseline
  */events/                  training curves: tensorboard --logdir $save_path
END
