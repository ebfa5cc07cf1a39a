"""On a CUDA device: the numbers of the processor, whatever the precision, batch or memory."""

from __future__ import annotations

import esm
import numpy as np
import pytest
import torch

from bioxfer.backbones.compact import load_compact
from bioxfer.backbones.fairesm import from_fairesm
from bioxfer.embedding import embed_records
from bioxfer.sequences import SequenceRecord

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

# Least cosine of a mean vector with the one of fp32.
COSINE = {"fp32": 0.999999, "bf16": 0.9999, "fp16": 0.9999}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return esm.ESM2(num_layers=3, embed_dim=320, attention_heads=20).eval()


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(20, 900, size=40), 1022, 1500]
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    return [SequenceRecord(f"p{i}", "".join(rng.choice(letters, size=n))) for i, n in enumerate(lengths)]


def _vectors(records, backbone, **options):
    rows = list(embed_records(records, backbone, **options))
    assert [row.record.id for row in rows] == [record.id for record in records]
    assert {row.status for row in rows} <= {"ok", "windowed"}
    return np.stack([row.pooled["mean"] for row in rows])


def _cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("precision", COSINE)
@pytest.mark.parametrize("tokens", [2048, 32768])
def test_esm_equals_the_processor(model, records, precision, tokens):
    expected = _vectors(records, from_fairesm(model))
    found = _vectors(records, from_fairesm(model, device="cuda", precision=precision), batch_tokens=tokens)
    assert _cosines(found, expected).min() >= COSINE[precision]


@pytest.mark.parametrize("precision", COSINE)
def test_the_embedded_backbone_equals_the_processor(records, precision):
    expected = _vectors(records, load_compact())
    found = _vectors(records, load_compact(device="cuda", precision=precision))
    assert _cosines(found, expected).min() >= COSINE[precision]


def test_out_of_memory_halves_the_batch_and_keeps_the_order(model, records):
    backbone = from_fairesm(model, device="cuda", precision="bf16")
    expected = _vectors(records, backbone)
    whole, refused = backbone.represent, []

    def cramped(sequences, *, layers):
        if sum(map(len, sequences)) > 3000 and len(sequences) > 1:
            refused.append(len(sequences))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(sequences, layers=layers)

    backbone.represent = cramped
    assert _cosines(_vectors(records, backbone, batch_tokens=32768), expected).min() > 0.9999
    assert refused


def test_overflow_in_fp16_is_computed_again_in_fp32(model, records):
    backbone = from_fairesm(model, device="cuda", precision="fp16")
    with torch.no_grad():
        backbone._encoder.blocks[0].up.weight.mul_(1e5)  # leaves the range of fp16
    rows = list(embed_records(records[:3], backbone, fp32=lambda: from_fairesm(model, device="cuda")))
    assert all("computed again, alone and in fp32" in row.message for row in rows)
    assert all(np.isfinite(row.pooled["mean"]).all() for row in rows)
