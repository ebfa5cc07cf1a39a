"""Residues a second of the embedded backbone, beside fair-esm's own loop on the 8M shape of ESM-2.

Weights are random for fair-esm (speed does not depend on them). The proteins have random residues and
lengths drawn like Swiss-Prot's: log-normal, median 290, from 40 to 2,000 (UniProt release statistics).

    python benchmarks/bench_embed.py --threads 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from results import write_result

from bioxfer.backbones import load_backbone, resolve_precision
from bioxfer.embedding import embed_records
from bioxfer.sequences import SequenceRecord
from bioxfer.vectors import write_vectors


def draw_proteins(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(290), 0.75, size=count)), 40, 2000).astype(int)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=n)) for n in lengths]


def time_bioxfer(proteins: list[str], precision: str) -> float:
    """Seconds from records to a published NPZ with one vector per protein, no cache."""
    backbone = load_backbone("compact", precision=precision)
    records = [SequenceRecord(f"p{i}", sequence) for i, sequence in enumerate(proteins)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_vectors(
            Path(folder, "v.npz"),
            embed_records(records, backbone),
            pool="mean",
            width=backbone.dim,
            facts={},
        )
        return time.perf_counter() - start


def time_fairesm(proteins: list[str], batch_tokens: int = 4096) -> float:
    """Seconds of fair-esm's extract loop: sorted by length, padded, one mean vector per protein, no disk."""
    import esm

    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    model = esm.model.esm2.ESM2(num_layers=6, embed_dim=320, attention_heads=20, alphabet=alphabet).eval()
    data = esm.data.FastaBatchedDataset([f"p{i}" for i in range(len(proteins))], [p[:1022] for p in proteins])
    batches = data.get_batch_indices(batch_tokens, extra_toks_per_seq=1)
    convert = alphabet.get_batch_converter(1022)
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            _, sequences, tokens = convert([data[i] for i in batch])
            hidden = model(tokens, repr_layers=[6])["representations"][6]
            for row, sequence in enumerate(sequences):
                hidden[row, 1 : len(sequence) + 1].mean(0).clone()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    proteins = draw_proteins(options.count)
    residues = sum(map(len, proteins))
    ways = {"compact fp32": lambda: time_bioxfer(proteins, "fp32")}
    if resolve_precision("auto") == "bf16":
        ways["compact bf16"] = lambda: time_bioxfer(proteins, "bf16")
    ways["fair-esm, ESM-2 8M shape, fp32"] = lambda: time_fairesm(proteins)
    # Rounds, not runs in a row: a machine that slows down slows all of them.
    seconds = {way: min(times) for way, times in _rounds(ways, options.repeats).items()}
    slowest = seconds["fair-esm, ESM-2 8M shape, fp32"]
    write_result(
        "embed",
        {
            "proteins": options.count,
            "residues": residues,
            "threads": options.threads,
            "best_of": options.repeats,
            "residues_per_second": {way: round(residues / s) for way, s in seconds.items()},
            "ratio_to_fairesm_8M": {way: round(slowest / s, 2) for way, s in seconds.items()},
        },
    )


def _rounds(ways, repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, measure in ways.items():
            times[way].append(measure())
    return times


if __name__ == "__main__":
    main()
