#!/usr/bin/env bash
# How the shipped backbone was trained: two stages, resumed from one checkpoint. TABLES is the folder that
# prepare_tables.py wrote. This script has not been run as a whole: edition 2 came from the same functions with
# these options on one core, stage one stopped by hand after 45 of its 92 minutes, and the code that cuts long
# proteins and deals shares was mended afterwards. The clock decides how many steps there are, so a new run gives
# other weights; it may as well begin with stage two.
#
#   benchmarks/pretrain_compact.sh TABLES first|second [MINUTES] [THREADS]
set -euo pipefail
tables=$1 stage=$2 minutes=${3:-92} threads=${4:-1}
corpus="${BIOXFER_SHARED:-../shared}/data/corpus"
if [ "$stage" = first ]; then
  lam_proteins=1 ss3=1.3 conservation=0.8 localization=1.4 enzymes=1
else
  lam_proteins=0.2 ss3=2 conservation=0.6 localization=1.6 enzymes=0.4
fi
sources=()
for weighted in secondary_structure3=$ss3 conservation9=$conservation localization10=$localization \
  membrane_binary=0.7 structure_class7=1.5 enzyme_ec=$enzymes signal_peptide=0.4 solubility=0.8 meltome=0.7; do
  sources+=(--source "$tables/${weighted%=*}.source.csv=${weighted#*=}")
done
bioxfer pretrain "$corpus"/train-representatives-{0,1}.txt.xz --valid "$corpus/valid.txt.xz" "${sources[@]}" \
  --lam-proteins "$lam_proteins" --compile --minutes "$minutes" --threads "$threads" \
  -o compact.safetensors --checkpoint compact.ckpt --overwrite \
  --licence "sequences: UniProt (CC BY 4.0) and NCBI; labels: NetSurfP-2 secondary structure, conservation and \
melting temperatures by way of FLIP (AFL-3), EC numbers of UniProt (CC BY 4.0), TAPE, DeepLoc, PEER and SignalP 5 \
tables (MIT)"
