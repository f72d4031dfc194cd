#!/usr/bin/env bash
# The supervised rows of docs/world.md on the tiny CLIP: CLIP4Cir's two stages and SPN, three seeds.
#
#     make world-supervised         trains into runs/world_supervised; killed, the same command goes on
#
# SPN also stands on LinCIR: on what `make world` left in runs/world, or trained here.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/world_supervised}
cir=${CIR:-.venv/bin/cir}
test -e datasets/world/CIRR/train || "$cir" world build
train() { "$cir" train "experiments/runs/$1_world.yaml" "name=$2" "seed=$seed" --out "$out/$2/seed-$seed" "${@:3}"; }
for seed in ${SEEDS:-0 1 2}; do
  train clip_finetune clip_finetune
  towers=$out/towers/seed-$seed
  test -e "$towers/config.json" || "$cir" export "$out/clip_finetune/seed-$seed" "$towers"
  train combiner combiner
  train combiner combiner_fashioniq train.source=world/fashioniq/train
  train combiner clip_finetune+combiner "backbone.name=$towers"
  train spn clip_finetune+spn "base=$out/clip_finetune/seed-$seed"
  lincir=${LINCIR:-runs/world/lincir}/seed-$seed
  test -e "$lincir/last/config.json" || lincir=$out/lincir/seed-$seed
  "$cir" train experiments/runs/lincir_world.yaml name=lincir "seed=$seed" --out "$lincir"
  train spn_lincir lincir+spn "base=$lincir"
done
