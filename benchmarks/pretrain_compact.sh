#!/usr/bin/env bash
# Train the embedded backbone as it was shipped: two stages, resumed from one checkpoint.
# The first ran beside a run without sources (see compare_objectives.py), one core each.
set -euo pipefail
data="${BIOXFER_SHARED:-../shared}/data"
corpus=("$data"/corpus/train-representatives-0.txt.xz "$data"/corpus/train-representatives-1.txt.xz)
sources=()
for table in secondary_structure3 conservation9 enzyme_ec; do
  sources+=(--source "$data/$table.csv.xz")
done
tests=()
for table in localization10 structure_class7 membrane_binary secondary_structure3 meltome conservation9; do
  tests+=(--exclude "$data/$table.csv.xz") # their test and validation rows, and everything like those
done
common=("${corpus[@]}" --valid "$data/corpus/valid.txt.xz" "${sources[@]}" "${tests[@]}"
  -o compact.safetensors --checkpoint compact.ckpt --overwrite)

# Stop the first stage after 25 of its minutes (any signal will do), then start the second.
timeout --signal=INT 25m bioxfer pretrain "${common[@]}" --minutes 90 --threads 1 || true
bioxfer pretrain "${common[@]}" --minutes 90 --threads 2 --learning-rate 1.5e-3 --lam 1.0 --source-share 0.5
