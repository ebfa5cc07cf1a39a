#!/usr/bin/env bash
# How the shipped backbone is trained. TABLES is the folder that prepare_tables.py wrote. Edition 2 was trained by
# the same functions with these options on one core, while other work kept the second busy. The clock decides
# how many steps there are, so a new run gives other weights.
#
#   benchmarks/pretrain_compact.sh TABLES MINUTES THREADS
set -euo pipefail
tables=$1 minutes=${2:-92} threads=${3:-1}
corpus="${BIOXFER_SHARED:-../shared}/data/corpus"
sources=()
for weighted in secondary_structure3=1.3 conservation9=0.8 localization10=1.4 membrane_binary=0.7 \
  structure_class7=1.5 enzyme_ec=1 signal_peptide=0.4 solubility=0.8 meltome=0.7; do
  sources+=(--source "$tables/${weighted%=*}.source.csv=${weighted#*=}")
done
bioxfer pretrain "$corpus"/train-representatives-{0,1}.txt.xz --valid "$corpus/valid.txt.xz" "${sources[@]}" \
  -o compact.safetensors --checkpoint compact.ckpt --overwrite --compile --minutes "$minutes" --threads "$threads" \
  --licence "sequences: UniProt (CC BY 4.0) and NCBI; labels: NetSurfP-2 secondary structure, conservation and \
melting temperatures by way of FLIP (AFL-3), EC numbers of UniProt (CC BY 4.0), TAPE, DeepLoc, PEER and SignalP 5 \
tables (MIT)"
