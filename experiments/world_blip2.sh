#!/usr/bin/env bash
# Every row of docs/world.md's table on the tiny BLIP-2: baselines, textual inversion, the supervised line, and second
# looks by the matching head and by SPRC's re-ranker; three seeds of what is trained.
#
#     make world-blip2              trains into runs/world_blip2; killed, the same command goes on
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/world_blip2}
cir=${CIR:-.venv/bin/cir}
all="world/fashioniq/val world/cirr/val world/circo/val"
test -e datasets/world/CIRR/train || "$cir" world build

train() { "$cir" train "experiments/runs/$1_world.yaml" "name=$2" "seed=$seed" --out "$out/$2/seed-$seed" "${@:3}"; }

# What is evaluated only: nothing to do where the last record lies already.
evaluate() {
  local folder=$out/$1/seed-$2
  compgen -G "$folder/records/world-circo-val-*.json" > /dev/null && return
  # shellcheck disable=SC2086
  "$cir" evaluate "${@:3}" $all "name=$1" "seed=$2" --out "$folder/records"
}

# A few texts are longer than the 32 positions.
base=(--backbone checkpoints/tiny-blip2 --data datasets/world prompt.overflow=cut)
for method in ${BASELINES:-image_only text_only sum product slerp}; do
  evaluate "$method" 0 --method "$method" "${base[@]}"
done
evaluate text_only+itm 0 --method text_only "${base[@]}" rerank.top=50

for seed in ${SEEDS:-0 1 2}; do
  train pic2word_blip2 pic2word
  train lincir_blip2 lincir
  train rtd_blip2 lincir+rtd "base=$out/lincir/seed-$seed"
  evaluate lincir+itm "$seed" "$out/lincir/seed-$seed" rerank.top=50
  train combiner_blip2 combiner
  train sprc sprc
  train spn_sprc sprc+spn "base=$out/sprc/seed-$seed"
  train sprc_rerank sprc_rerank
  evaluate sprc+rerank "$seed" "$out/sprc/seed-$seed" rerank.top=50 "rerank.method=$out/sprc_rerank/seed-$seed"
done
