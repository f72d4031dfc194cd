#!/usr/bin/env bash
# Every row of docs/world.md's table that `make demo` does not make: all methods, and RTD on three of them, three seeds.
#
#     make world              trains into runs/world; killed, the same command goes on
#
# `cir table experiments/results/world/* --cost` prints the table from the committed records.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/world}
cir=${CIR:-.venv/bin/cir}
test -e datasets/world/world.json || "$cir" world build
for seed in ${SEEDS:-0 1 2}; do
  for method in ${METHODS:-pic2word searle lincir context_i2w}; do
    "$cir" train "experiments/runs/${method}_world.yaml" "name=$method" "seed=$seed" --out "$out/$method/seed-$seed"
  done
  for base in ${BASES:-pic2word searle lincir}; do
    "$cir" train experiments/runs/rtd_world.yaml "name=$base+rtd" "seed=$seed" "base=$out/$base/seed-$seed" \
      --out "$out/$base+rtd/seed-$seed"
  done
  if [ "${OTI:-yes}" = yes ]; then
    "$cir" evaluate experiments/runs/oti_world.yaml name=oti "seed=$seed" "method.seed=$seed" --out "$out/oti/seed-$seed/records"
  fi
done
