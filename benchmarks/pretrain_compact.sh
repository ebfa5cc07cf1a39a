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
  -o compact.safetensors --checkpoint compact.ckpt --overwrite
  --licence "sequences: UniProt (CC BY 4.0) and NCBI; labels: NetSurfP-2 and conservation by way of FLIP (AFL-3), \
EC numbers of UniProt (CC BY 4.0)")

# The first stage is stopped after 25 of its minutes; the second goes on from its checkpoint, at first on one
# core (to minute 50) and then on both, while other work shared the machine.
timeout --signal=INT 26m bioxfer pretrain "${common[@]}" --minutes 90 --threads 1 || true
second=(--learning-rate 1.5e-3 --lam 1.0 --source-share 0.5)
timeout --signal=INT 26m bioxfer pretrain "${common[@]}" "${second[@]}" --minutes 90 --threads 1 || true
bioxfer pretrain "${common[@]}" "${second[@]}" --minutes 86 --threads 2
