"""The tools that bench_engine.py compares, each as a function from proteins to vectors."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_embed import draw_proteins
from torch import Tensor, nn

from bioxfer.backbones import resolve_precision
from bioxfer.backbones.fairesm import from_fairesm
from bioxfer.embedding import embed_records
from bioxfer.io import iter_sequences
from bioxfer.sequences import SequenceRecord
from bioxfer.vectors import write_vectors

SHAPES = {"8M": (6, 320, 20), "35M": (12, 480, 20), "150M": (30, 640, 20), "650M": (33, 1280, 20)}
PEERS = ("fair-esm", "transformers", "onnxruntime", "openvino")
RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"  # fair-esm's numbers from 4 on
CLS, PAD, EOS = 0, 1, 2
TRUNCATION = 1022
# Rows and padded tokens of a batch at most.
PLANS = ((1, math.inf), (4, math.inf), (8, math.inf), (16, math.inf), (math.inf, 4096))

Vectors = np.ndarray  # (N, D) float32


@dataclass
class Way:
    """A tool at a precision: proteins in memory to vectors, and FASTA to vectors on disk."""

    name: str
    precision: str
    forward: Callable[[list[str]], Vectors]
    whole: Callable[[Path, Path], None]
    padded: Padded | None = None


@dataclass
class Padded:
    """A model that takes padded batches, sorted by length.

    ``apply`` maps tokens and mask, ``(B, T)`` int64, to hidden states ``(B, T, D)``.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    plan: tuple[float, float] = PLANS[0]

    def batches(self, proteins: list[str]) -> list[list[int]]:
        """Divide proteins, by their places, as the plan says."""
        rows, tokens = self.plan
        found: list[list[int]] = [[]]
        for i in sorted(range(len(proteins)), key=lambda i: len(proteins[i])):
            rows_then, longest = len(found[-1]) + 1, len(proteins[i]) + 2
            if found[-1] and (rows_then > rows or rows_then * longest > tokens):
                found.append([])
            found[-1].append(i)
        return found

    def run(self, proteins: list[str], batch: list[int]) -> list[Vectors]:
        """Mean vectors of a batch, ``(D,)`` each."""
        lengths = [len(proteins[i]) for i in batch]
        tokens = np.full((len(batch), max(lengths) + 2), PAD, dtype=np.int64)
        for row, i in enumerate(batch):
            tokens[row, 0], tokens[row, lengths[row] + 1] = CLS, EOS
            letters = np.frombuffer(proteins[i].encode(), dtype=np.uint8)
            tokens[row, 1 : lengths[row] + 1] = _TOKENS[letters]
        ids = torch.from_numpy(tokens)
        with torch.inference_mode():
            hidden = self.apply(ids, (ids != PAD).long())
            return [hidden[row, 1 : length + 1].float().mean(0).numpy() for row, length in enumerate(lengths)]

    def forward(self, proteins: list[str]) -> Vectors:
        """Mean vectors of all proteins, in order."""
        found: list[Vectors | None] = [None] * len(proteins)
        for batch in self.batches(proteins):
            for i, vector in zip(batch, self.run(proteins, batch), strict=True):
                found[i] = vector
        return np.stack(found)

    def whole(self, fasta: Path, folder: Path) -> None:
        """Write the mean vectors of a FASTA file into a folder."""
        from Bio import SeqIO

        records = list(SeqIO.parse(fasta, "fasta"))
        vectors = self.forward([str(record.seq) for record in records])
        np.savez(folder / "vectors.npz", ids=[record.id for record in records], vectors=vectors)

    def choose(self, proteins: list[str]) -> dict[str, int]:
        """Take the fastest plan on a quarter of its batches; residues a second of each."""
        rates = {}
        for plan in PLANS:
            self.plan = plan
            batches = self.batches(proteins)
            batches = batches[len(batches) // 8 :: 4] or batches
            self.run(proteins, batches[0])  # the first run of a shape may compile
            start = time.perf_counter()
            for batch in batches:
                self.run(proteins, batch)
            seconds = time.perf_counter() - start
            rates[plan] = sum(len(proteins[i]) for batch in batches for i in batch) / seconds
        self.plan = max(rates, key=rates.__getitem__)
        return {plan_name(plan): round(rate) for plan, rate in rates.items()}


_TOKENS = np.zeros(256, dtype=np.int64)
_TOKENS[np.frombuffer(RESIDUES.encode(), dtype=np.uint8)] = np.arange(4, 4 + len(RESIDUES))


def plan_name(plan: tuple[float, float]) -> str:
    return f"{plan[1]} padded tokens" if math.isinf(plan[0]) else f"{plan[0]} a batch"


def make_fairesm(shape: str) -> nn.Module:
    import esm

    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    return esm.model.esm2.ESM2(layers, width, heads, alphabet=alphabet).eval()


def fairesm_way(model: nn.Module) -> Way:
    """Do what fair-esm's extract.py does with ``--include mean`` and its default options."""
    from esm import FastaBatchedDataset

    last = model.num_layers

    def extract(data: FastaBatchedDataset, keep: Callable[[str, Tensor], object]) -> None:
        loader = torch.utils.data.DataLoader(
            data,
            collate_fn=model.alphabet.get_batch_converter(TRUNCATION),
            batch_sampler=data.get_batch_indices(4096, extra_toks_per_seq=1),
        )
        with torch.no_grad():
            for labels, sequences, tokens in loader:
                hidden = model(tokens, repr_layers=[last], return_contacts=False)["representations"][last]
                for row, label in enumerate(labels):
                    keep(label, hidden[row, 1 : min(TRUNCATION, len(sequences[row])) + 1].mean(0).clone())

    def forward(proteins: list[str]) -> Vectors:
        found: dict[str, Tensor] = {}
        extract(FastaBatchedDataset(map(str, range(len(proteins))), proteins), found.__setitem__)
        return torch.stack([found[str(i)] for i in range(len(proteins))]).numpy()

    def whole(fasta: Path, folder: Path) -> None:
        def save(label: str, vector: Tensor) -> None:
            result = {"label": label, "mean_representations": {last: vector}}
            torch.save(result, folder / f"{label}.pt")

        extract(FastaBatchedDataset.from_file(fasta), save)

    return Way("fair-esm fp32", "fp32", forward, whole)


def bioxfer_way(model: nn.Module, precision: str, *, kernels: bool = True) -> Way:
    if not kernels:  # as where no compiler was at hand
        os.environ["BIOXFER_KERNELS"] = "off"
    backbone = from_fairesm(model, precision=precision)
    os.environ.pop("BIOXFER_KERNELS", None)

    def forward(proteins: list[str]) -> Vectors:
        records = (SequenceRecord(str(i), sequence) for i, sequence in enumerate(proteins))
        return np.stack([row.pooled["mean"] for row in embed_records(records, backbone)])

    def whole(fasta: Path, folder: Path) -> None:
        rows = embed_records(iter_sequences(fasta), backbone)
        write_vectors(folder / "vectors.npz", rows, pool="mean", width=backbone.dim, facts={})

    return Way(f"bioxfer {precision}{'' if kernels else ' without kernels'}", precision, forward, whole)


def save_transformers(model: nn.Module, folder: Path) -> None:
    """Save fair-esm's weights as transformers' EsmModel."""
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(
        vocab_size=model.alphabet_size,
        mask_token_id=model.mask_idx,
        pad_token_id=model.padding_idx,
        hidden_size=model.embed_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.attention_heads,
        intermediate_size=4 * model.embed_dim,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=model.token_dropout,
        layer_norm_eps=1e-5,
    )
    names = {
        "embed_tokens": "embeddings.word_embeddings",
        "emb_layer_norm_after": "encoder.emb_layer_norm_after",
    }
    parts = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.rot_emb": "attention.self.rotary_embeddings",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    for layer in range(model.num_layers):
        names |= {f"layers.{layer}.{a}": f"encoder.layer.{layer}.{b}" for a, b in parts.items()}
    state = {}
    for name, weight in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module in names:
            state[f"{names[module]}.{kind}"] = weight
    theirs = EsmModel(config, add_pooling_layer=False)
    outcome = theirs.load_state_dict(state, strict=False)
    missing = [m for m in outcome.missing_keys if not m.startswith(("contact_head.", "embeddings.position"))]
    if missing or outcome.unexpected_keys:
        sys.exit(f"transformers names its weights otherwise: {missing}, {outcome.unexpected_keys}")
    theirs.save_pretrained(folder)


def load_transformers(folder: Path, precision: str) -> nn.Module:
    from transformers import EsmModel

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return EsmModel.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", add_pooling_layer=False
    ).eval()


class HiddenStates(nn.Module):
    """Only the last hidden states, for exports."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Map ``(B, T)`` to ``(B, T, D)``."""
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


def onnx_apply(folder: Path, threads: int) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    path = folder / "model.onnx"
    if not path.exists():
        example = torch.randint(4, 24, (2, 20))
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=4096)}
        torch.onnx.export(
            HiddenStates(load_transformers(folder, "fp32")).eval(),
            (example, torch.ones_like(example)),
            path,
            input_names=["ids", "mask"],
            output_names=["hidden"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def apply(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})[0])

    return apply


def openvino_apply(folder: Path, threads: int, precision: str) -> Callable[[Tensor, Tensor], Tensor]:
    import openvino

    path = folder / "openvino.xml"
    if not path.exists():
        example = torch.randint(4, 24, (2, 20))
        example = (example, torch.ones_like(example))
        # A second run of the module would find its rotary tables made, and look like another model.
        traced = torch.jit.trace(
            HiddenStates(load_transformers(folder, "fp32")).eval(), example, check_trace=False
        )
        converted = openvino.convert_model(traced, input=[[-1, -1], [-1, -1]])
        openvino.save_model(converted, path, compress_to_fp16=False)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def apply(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([ids.numpy(), mask.numpy()], share_outputs=True)[0])

    return apply


def padded_way(tool: str, precision: str, folder: Path, threads: int) -> Way:
    if tool == "transformers":
        model = load_transformers(folder, precision)
        padded = Padded(lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state)
    elif tool == "onnxruntime":
        padded = Padded(onnx_apply(folder, threads))
    else:
        padded = Padded(openvino_apply(folder, threads, precision))
    return Way(f"{tool} {precision}", precision, padded.forward, padded.whole, padded)


def make_ways(
    model: nn.Module, peers: list[str], folder: Path, threads: int
) -> tuple[list[Way], dict[str, str]]:
    """Make all ways, fair-esm's first, and say of peers that do not run why."""
    precisions = ["fp32"] if resolve_precision("auto") == "fp32" else ["fp32", "bf16"]
    ways, left_out = [fairesm_way(model)], {}
    probe = draw_proteins(3, seed=1)
    truth = ways[0].forward(probe)
    with torch.no_grad():
        ways += [bioxfer_way(model, p, kernels=kernels) for kernels in (True, False) for p in precisions]
    for peer in peers:
        if peer == "fair-esm":
            continue
        for precision in ["fp32"] if peer == "onnxruntime" else precisions:
            try:
                if not (folder / "config.json").exists():
                    save_transformers(model, folder)
                way = padded_way(peer, precision, folder, threads)
                cosine, _ = compare(way.forward([p[:TRUNCATION] for p in probe]), truth)
                if precision == "fp32" and cosine < 0.9999:
                    raise ValueError(f"its vectors differ from fair-esm's, cosine {cosine:.5f}")
            except ImportError as error:
                left_out[peer] = f"not installed ({error})"
            except Exception as error:  # whatever a foreign tool may raise
                left_out[f"{peer} {precision}"] = f"could not run: {type(error).__name__}: {error}"[:300]
            else:
                ways.append(way)
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    return ways, left_out


def compare(vectors: Vectors, truth: Vectors) -> tuple[float, float]:
    """Smallest cosine of a protein, and largest error relative to its largest number."""
    a, b = vectors.astype(float), truth.astype(float)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines.min()), float((abs(a - b).max(1) / abs(b).max(1)).max())
