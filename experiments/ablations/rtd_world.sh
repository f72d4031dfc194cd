#!/usr/bin/env bash
# Every ablation of RTD on the world, three seeds each, and the page docs/ablations/rtd_world.md.
#
#     make ablations              trains into runs/ablations; killed, the same command goes on
#     JOBS=2 make ablations       two runs at a time
#     make ablations ONLY="tau batch"
#
# What has its records, committed or under runs/, is not trained again. One file that fails does not keep the others.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${CIR_PYTHON:-.venv/bin/python}
cir="$python -m cir"
all="components triplets triplet_count noise noise_scale tau batch trainable base"
test -e datasets/world/world.json || $cir world build
$python experiments/ablations/triplets.py
failed=""
for name in ${ONLY:-$all}; do
  $cir ablate "experiments/ablations/rtd_${name}_world.yaml" --jobs "${JOBS:-1}" > /dev/null || {
    code=$?
    test $code -ne 130 || exit 130
    failed="$failed $name"
  }
done
$python experiments/ablations/page.py docs/ablations/rtd_world.md
test -z "$failed" || { echo "not finished:$failed; the same command goes on" >&2; exit 1; }
