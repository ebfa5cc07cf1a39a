"""Residues a second of ESM-2's shapes beside fair-esm, transformers, onnxruntime and OpenVINO.

Every tool gets the same random weights (speed does not depend on them) and the same proteins; all
ways run in rounds, so that a machine that slows down slows all of them. Peers that pad run at the
way of batching that was fastest in a trial. What is not installed is left out, and the result says so.

    python benchmarks/bench_engine.py --shape 8M            one model on three sets, and cold starts
    python benchmarks/bench_engine.py --shape 8M --lengths  residues a second against length
    python benchmarks/bench_engine.py --growth              cost of the embedded backbone by records
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_embed import draw_proteins
from engine_ways import (
    PEERS,
    RESIDUES,
    SHAPES,
    TRUNCATION,
    Way,
    compare,
    make_fairesm,
    make_ways,
    plan_name,
    save_transformers,
)
from results import write_result
from torch import nn

from bioxfer.backbones import resolve_precision

LENGTHS = (50, 100, 200, 400, 700, 1000)
RECORDS = (1_000, 10_000, 100_000)


def matrix_rate(width: int, precision: str) -> float:
    """Best FLOP/s of a linear layer as wide as the feed-forward part, with torch's threads."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    out = torch.empty(2048, 4 * width, dtype=dtype)
    best, end = math.inf, time.perf_counter() + 0.5
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048 * width * 4 * width / best


def bounds(shape: str, proteins: list[str], rates: dict[str, float]) -> dict[str, dict[str, int]]:
    """Residues a second if nothing but the products took time, without and with attention's."""
    layers, width, _ = SHAPES[shape]
    tokens = np.array([len(p) + 2 for p in proteins], dtype=float)
    linear = 24 * layers * width**2 * tokens.sum()
    attention = 4 * layers * width * (tokens**2).sum()
    residues = sum(map(len, proteins))
    return {
        precision: {
            "gflop_per_second": round(rate / 1e9),
            "linear": round(residues * rate / linear),
            "with_attention": round(residues * rate / (linear + attention)),
        }
        for precision, rate in rates.items()
    }


def measure(ways: list[Way], proteins: list[str], options: Namespace, *, whole: bool) -> dict:
    """Time all ways on one set."""
    precisions = dict.fromkeys(way.precision for way in ways)
    rates = dict.fromkeys(precisions, 0.0)
    seconds: dict[str, dict[str, float]] = {"forward": {}, "end_to_end": {}}
    vectors = {}

    def note(kind: str, way: Way, start: float) -> None:
        taken = time.perf_counter() - start
        seconds[kind][way.name] = min(taken, seconds[kind].get(way.name, math.inf))

    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "proteins.fasta")
        fasta.write_text("".join(f">p{i}\n{p}\n" for i, p in enumerate(proteins)))
        for _ in range(options.repeats):
            for precision in precisions:
                rate = matrix_rate(SHAPES[options.shape][1], precision)
                rates[precision] = max(rates[precision], rate)
            for way in ways:
                start = time.perf_counter()
                vectors[way.name] = way.forward(proteins)
                note("forward", way, start)
                if whole:
                    with tempfile.TemporaryDirectory(dir=folder) as out:
                        start = time.perf_counter()
                        way.whole(fasta, Path(out))
                        note("end_to_end", way, start)
                print(f"{way.name}: {seconds['forward'][way.name]:.2f} s", file=sys.stderr)
    residues = sum(map(len, proteins))
    table = {}
    for way in ways:
        row = {}
        for kind, times in seconds.items():
            if way.name not in times:
                continue
            row[kind] = {
                "seconds": round(times[way.name], 3),
                "residues_per_second": round(residues / times[way.name]),
                "ratio_to_fairesm": round(times["fair-esm fp32"] / times[way.name], 2),
            }
            peer = times.get(f"transformers {way.precision}")
            if peer is not None:
                row[kind]["ratio_to_transformers"] = round(peer / times[way.name], 2)
        cosine, error = compare(vectors[way.name], vectors["fair-esm fp32"])
        row |= {"min_cosine": round(cosine, 8), "max_relative_error": float(f"{error:.2e}")}
        table[way.name] = row
    return {
        "proteins": len(proteins),
        "residues": residues,
        "median_length": float(np.median([len(p) for p in proteins])),
        "bounds": bounds(options.shape, proteins, rates),
        "ways": table,
    }


def random_proteins(lengths: np.ndarray, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=n)) for n in lengths]


def antibodies(count: int, seed: int = 2) -> list[str]:
    lengths = np.random.default_rng(seed).normal(120, 5, size=count).round().astype(int)
    return random_proteins(lengths, seed)


def choose_plans(ways: list[Way], proteins: list[str]) -> dict[str, dict]:
    chosen = {}
    for way in ways:
        if way.padded is not None:
            trial = way.padded.choose(proteins)
            chosen[way.name] = {"batches": plan_name(way.padded.plan), "trial_residues_per_second": trial}
    return chosen


def bench_sets(ways: list[Way], options: Namespace) -> dict:
    swissprot = [p[:TRUNCATION] for p in draw_proteins(options.count)]
    np.random.default_rng(0).shuffle(swissprot)
    quarter = sum(map(len, swissprot)) // 4
    sets = {
        "swissprot": swissprot,
        "equal": random_proteins(np.full(max(quarter // 300, 2), 300), 1),
        "antibodies": antibodies(max(quarter // 120, 2)),
    }
    plans = choose_plans(ways, swissprot)
    whole = not options.forward_only
    return {
        "settings": plans,
        "sets": {name: measure(ways, proteins, options, whole=whole) for name, proteins in sets.items()},
    }


def bench_lengths(ways: list[Way], options: Namespace) -> dict:
    found = {}
    for length in LENGTHS:
        proteins = random_proteins(np.full(max(options.residues // length, 2), length), length)
        plans = choose_plans(ways, proteins)
        found[str(length)] = {"settings": plans} | measure(ways, proteins, options, whole=False)
    return {"lengths": found}


COLD_START = """
import sys, torch
source, fasta, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
"""
COLD = {
    "fair-esm fp32": """
import argparse, esm
torch.serialization.add_safe_globals([argparse.Namespace])
model, alphabet = esm.pretrained.load_model_and_alphabet_local(source)
data = esm.FastaBatchedDataset.from_file(fasta)
labels, sequences, tokens = alphabet.get_batch_converter(1022)([data[0]])
with torch.no_grad():
    last = model.eval().num_layers
    hidden = model(tokens, repr_layers=[last])["representations"][last]
torch.save({labels[0]: hidden[0, 1:-1].mean(0).clone()}, out + ".pt")
""",
    "transformers fp32": f"""
import numpy as np
from Bio import SeqIO
from transformers import EsmModel
record = next(SeqIO.parse(fasta, "fasta"))
tokens = torch.tensor([[0, *(4 + "{RESIDUES}".index(r) for r in record.seq), 2]])
model = EsmModel.from_pretrained(source, attn_implementation="sdpa", add_pooling_layer=False).eval()
with torch.inference_mode():
    hidden = model(input_ids=tokens).last_hidden_state
np.savez(out + ".npz", ids=[record.id], vectors=hidden[:, 1:-1].mean(1).numpy())
""",
    "bioxfer fp32": """
from bioxfer.backbones.fairesm import load_esm
from bioxfer.embedding import embed_records
from bioxfer.io import iter_sequences
from bioxfer.vectors import write_vectors
backbone = load_esm(source, precision="PRECISION")
rows = embed_records(iter_sequences(fasta), backbone)
write_vectors(out + ".npz", rows, pool="mean", width=backbone.dim, facts={})
""",
}
COLD["transformers bf16"] = (
    COLD["transformers fp32"]
    .replace("from_pretrained(source,", "from_pretrained(source, dtype=torch.bfloat16,")
    .replace(".mean(1)", ".float().mean(1)")
)
COLD["bioxfer bf16"] = COLD["bioxfer fp32"].replace("PRECISION", "bf16")
COLD["bioxfer fp32"] = COLD["bioxfer fp32"].replace("PRECISION", "fp32")


def save_fairesm(model: nn.Module, path: Path) -> None:
    """Save a model and its contact regression as fair-esm publishes them."""
    state, contacts = {}, {}
    for name, weight in model.state_dict().items():
        if name.startswith("contact_head."):
            contacts[name] = weight
        else:
            state["encoder." + ("" if name.startswith("lm_head.") else "sentence_encoder.") + name] = weight
    config = Namespace(
        encoder_layers=model.num_layers,
        encoder_embed_dim=model.embed_dim,
        encoder_attention_heads=model.attention_heads,
        token_dropout=model.token_dropout,
    )
    torch.save({"args": None, "cfg": {"model": config}, "model": state}, path)
    torch.save({"model": contacts}, path.with_name(f"{path.stem}-contact-regression.pt"))


def bench_cold(model: nn.Module, ways: list[Way], options: Namespace) -> dict[str, Any]:
    """Seconds of a fresh process from its start to the vector of one protein on disk."""
    seconds: dict[str, float] = {}
    wanted = {way.name for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        checkpoint = place / f"esm2_t{model.num_layers}_{options.shape}_random.pt"
        save_fairesm(model, checkpoint)
        if any(name.startswith("transformers") for name in wanted):
            save_transformers(model, place / "transformers")
        fasta = place / "one.fasta"
        fasta.write_text(f">one\n{random_proteins(np.array([300]), 3)[0]}\n")
        for _ in range(max(options.repeats, 3)):
            for name in COLD:
                if name not in wanted:
                    continue
                source = place / "transformers" if name.startswith("transformers") else checkpoint
                arguments = [source, fasta, place / "out", options.threads]
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-c", COLD_START + COLD[name], *map(str, arguments)], check=True
                )
                taken = time.perf_counter() - start
                seconds[name] = round(min(taken, seconds.get(name, math.inf)), 3)
    return {"one_protein_cold_seconds": seconds}


def bench_growth(options: Namespace) -> dict[str, Any]:
    """Seconds and peak memory of ``bioxfer embed`` on more and more proteins of an antibody's size."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "proteins.fasta")
        for count in options.records:
            proteins = antibodies(count)
            fasta.write_text("".join(f">p{i}\n{p}\n" for i, p in enumerate(proteins)))
            out = Path(folder, f"{count}.npz")
            command = [sys.executable, "-m", "bioxfer", "embed", fasta, "-o", out]
            command += ["--precision", "auto", "--threads", str(options.threads), "--no-resume"]
            start = time.perf_counter()
            process = subprocess.Popen(list(map(str, command)))
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            if status != 0:
                sys.exit(f"bioxfer embed failed on {count} records")
            residues = sum(map(len, proteins))
            found[str(count)] = {
                "residues": residues,
                "seconds": round(seconds, 2),
                "residues_per_second": round(residues / seconds),
                "peak_memory_mib": round(usage.ru_maxrss / 1024),
            }
            print(f"{count} records: {found[str(count)]}", file=sys.stderr)
    return {"model": "compact", "precision": resolve_precision("auto"), "records": found}


def read_options() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="8M")
    parser.add_argument("--lengths", action="store_true", help="residues a second against length")
    parser.add_argument("--growth", action="store_true", help="cost of the embedded backbone by records")
    parser.add_argument(
        "--cold", action=argparse.BooleanOptionalAction, help="one protein cold; 8M alone has it"
    )
    parser.add_argument("--forward-only", action="store_true", help="no files, no cold starts")
    parser.add_argument("--peers", type=lambda text: text.split(","), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=500, help="proteins of the Swiss-Prot-like set")
    parser.add_argument("--residues", type=int, default=20_000, help="of each set of --lengths")
    parser.add_argument(
        "--records", type=lambda text: [int(word) for word in text.split(",")], default=RECORDS
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--into", type=Path, help="folder of the result file")
    options = parser.parse_args()
    if options.peers is None:
        # Against length, padding does not matter, and two peers are enough lines for a plot.
        options.peers = list(PEERS[:2] if options.lengths else PEERS)
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; choose from {', '.join(PEERS)}")
    if options.cold is None:
        options.cold = options.shape == "8M" and not options.forward_only
    return options


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    facts: dict[str, Any] = {"threads": options.threads}
    if options.growth:
        write_result("engine_growth", facts | bench_growth(options), into=options.into)
        return
    layers, width, heads = SHAPES[options.shape]
    facts |= {"shape": options.shape, "layers": layers, "width": width, "heads": heads}
    facts["best_of"] = options.repeats
    model = make_fairesm(options.shape)
    with tempfile.TemporaryDirectory() as folder:
        ways, left_out = make_ways(model, options.peers, Path(folder), options.threads)
        facts["left_out"] = left_out
        facts |= bench_lengths(ways, options) if options.lengths else bench_sets(ways, options)
    if options.cold and not options.lengths:
        facts |= bench_cold(model, ways, options)
    name = "engine_lengths" if options.lengths else f"engine_{options.shape}"
    write_result(name, facts, packages=PEERS, into=options.into)


if __name__ == "__main__":
    main()
