#!/usr/bin/env bash
# The plan of the shipped backbone's training: two stages, resumed from one checkpoint. This script has not
# been run as a whole. Edition 1 was trained by the same functions with these options, in three sittings that
# were stopped by hand, on source tables filtered beforehand; relatives of localization10's val_LA rows were
# still among them, which --exclude now removes. The clock decides how many steps a stage has, so a new run
# gives other weights.
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

# Stage one: stop it by hand when its log says 25 minutes (reading and filtering come before and do not count).
# Its schedule is that of 90 minutes, one core. Then run this script again with "second".
if [ "${1:-first}" = first ]; then
  bioxfer pretrain "${common[@]}" --minutes 90 --threads 1
else # edition 1: one core to minute 50, then two
  bioxfer pretrain "${common[@]}" --learning-rate 1.5e-3 --lam 1.0 --source-share 0.5 --minutes 86 --threads 2
fi
