"""The embedded backbone: packing changes nothing, files hold all, and its weights are in the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bioxfer.backbones import load_backbone
from bioxfer.backbones.compact import (
    BOS,
    COMPACT_WEIGHTS,
    EOS,
    HEAD_WIDTH,
    RESIDUES,
    CompactBlock,
    CompactModel,
    _all_taps,
    _convolve,
    _Layout,
    _Neighbours,
    load_compact,
    random_backbone,
    read_card,
    save_compact,
    tokenize,
)
from bioxfer.backbones.packing import pack_tokens
from bioxfer.corpus import Corpus
from bioxfer.errors import UsageError, WeightsError
from bioxfer.io import read_sequences
from bioxfer.pretrain import masked_perplexity

proteins = st.text(alphabet="ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=80)


def by_the_book(model: CompactModel, residues: str) -> list[Tensor]:
    """Every layer of one sequence, written as the papers have it: conv1d, plain softmax, complex rotation."""
    tokens = torch.tensor([BOS, *tokenize(residues).tolist(), EOS])
    length, heads = len(tokens), model.config.width // HEAD_WIDTH
    frequency = 10000.0 ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
    turn = torch.polar(torch.ones(length, HEAD_WIDTH // 2), torch.arange(length)[:, None] * frequency)

    def rotated(x: Tensor) -> Tensor:
        half = HEAD_WIDTH // 2
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((turned.real, turned.imag), dim=-1)

    x = model.embedding(tokens)
    layers = [x]
    for block in model.blocks:
        assert isinstance(block, CompactBlock)
        h = block.norm_mix(x)
        kernel = block.neighbours.T.unsqueeze(1)  # (D, 1, taps)
        h = h + F.conv1d(h.T[None], kernel, padding="same", groups=h.shape[1])[0].T
        if block.qkv is None:
            mixed = F.gelu(h)
        else:
            q, k, v = block.qkv(h).view(length, 3, heads, HEAD_WIDTH).permute(1, 2, 0, 3)
            weights = (rotated(q) @ rotated(k).transpose(-1, -2) / HEAD_WIDTH**0.5).softmax(-1)
            mixed = (weights @ v).transpose(0, 1).reshape(length, -1)
        x = x + block.out(mixed)
        x = x + block.down(F.gelu(block.up(block.norm_feedforward(x))))
        layers.append(x)
    layers[-1] = model.norm(x)
    return layers


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@settings(max_examples=15)
@given(sequences=st.lists(proteins, min_size=1, max_size=6))
def test_packed_representations_equal_the_definition_at_every_layer(sequences):
    backbone = random_backbone(seed=1)
    found = backbone.represent(sequences, layers=[0, 1, 2])
    for residues, representation in zip(sequences, found, strict=True):
        assert representation.residues.shape == (3, len(residues), 64)
        for layer, expected in enumerate(by_the_book(backbone._model, residues)):
            assert relative_error(representation.residues[layer], expected[1:-1]) < 1e-5
            assert relative_error(representation.cls[layer], expected[0]) < 1e-5


def test_gradients_of_packed_training_equal_those_of_the_definition():
    model = random_backbone(width=128, seed=3)._model.train().requires_grad_(True)
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in (30, 30, 62, 17, 94)]
    framed = [torch.tensor([BOS, *tokenize(s).tolist(), EOS]) for s in sequences]

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    pack = pack_tokens(framed)
    packed = F.cross_entropy(model.lm_head(model(pack)[0]), pack.tokens, reduction="sum")
    plain = [
        F.cross_entropy(model.lm_head(by_the_book(model, s)[-1]), t, reduction="sum")
        for s, t in zip(sequences, framed, strict=True)
    ]
    found, expected = gradients(packed), gradients(torch.stack(plain).sum())
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < 1e-5, name


def test_the_compiled_convolution_equals_the_other():
    torch.manual_seed(0)
    h, weight = torch.randn(19, 8), torch.randn(9, 8)
    pack = pack_tokens([torch.zeros(n, dtype=torch.int64) for n in (2, 4, 4, 9)])
    after = torch.tensor(pack.lengths)[pack.segments] - 1 - pack.positions
    layout = _Layout(pack.groups, pack.positions, after, h, h)
    assert torch.allclose(_all_taps(h, weight, layout), _convolve(h, weight, layout), atol=1e-5)


def test_layers_come_in_the_order_asked_for(toy_backbone):
    both = toy_backbone.represent(["MKVLAA"], layers=[2, 0])[0].residues
    single = [toy_backbone.represent(["MKVLAA"], layers=[layer])[0].residues[0] for layer in (2, 0)]
    assert torch.equal(both, torch.stack(single))


def test_a_neighbour_that_is_not_finite_does_not_leak():
    h = torch.randn(12, 8)
    h[6:] = torch.nan
    out = _Neighbours.apply(h, torch.randn(5, 8), ((0, 2, 6),))
    assert torch.isfinite(out[:6]).all()
    assert torch.isnan(out[6:]).all()


def test_the_gradient_of_the_neighbours_is_the_true_one():
    torch.manual_seed(0)
    h = torch.randn(3 + 2 * 4 + 1, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    groups = ((0, 1, 3), (3, 2, 4), (11, 1, 1))
    # atol: the weight's gradient is summed in float32
    assert torch.autograd.gradcheck(lambda a, b: _Neighbours.apply(a, b, groups), (h, weight), atol=1e-4)


def test_bf16_stays_close_and_its_results_are_float32():
    sequences = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 3, "GAVLI", "W"]
    exact = random_backbone(width=128, layers=3).represent(sequences, layers=[3])
    fast = random_backbone(width=128, layers=3, precision="bf16").represent(sequences, layers=[3])
    for a, b in zip(exact, fast, strict=True):
        assert b.residues.dtype == torch.float32
        assert F.cosine_similarity(a.residues.mean(1), b.residues.mean(1)).item() > 0.999


@given(text=st.text(max_size=50))
def test_one_token_for_each_character_of_any_text(text):
    assert len(tokenize(text)) == len(text)
    assert (tokenize(text) < len(RESIDUES)).all()


def test_known_residues_have_distinct_tokens():
    assert tokenize(RESIDUES).tolist() == list(range(len(RESIDUES)))
    assert tokenize("J*-").tolist() == [RESIDUES.index("X")] * 3


def test_groups_of_a_pack_cover_it_and_unpack_restores_the_input():
    lengths = [5, 2, 5, 9, 2]
    pack = pack_tokens([torch.full((n,), i) for i, n in enumerate(lengths)])
    assert pack.groups == ((0, 2, 2), (4, 2, 5), (14, 1, 9))
    assert pack.positions.tolist() == [p for n in sorted(lengths) for p in range(n)]
    assert [part.tolist() for part in pack.unpack(pack.tokens)] == [[i] * n for i, n in enumerate(lengths)]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20), multiple=st.sampled_from([1, 2, 64]))
def test_a_pack_holds_each_token_once_whatever_the_lengths(lengths, multiple):
    sequences = [torch.arange(length) + 1000 * number for number, length in enumerate(lengths)]
    pack = pack_tokens(sequences, multiple=multiple)
    total = sum(lengths)
    assert len(pack.tokens) == len(pack.positions) == len(pack.segments) == -(-total // multiple) * multiple
    assert sorted(pack.tokens[:total].tolist()) == sorted(torch.cat(sequences).tolist())
    assert not pack.tokens[total:].any()
    assert (pack.tokens[:total] % 1000).tolist() == pack.positions[:total].tolist()
    # runs of one length each lie end to end over the whole pack
    ends = [start + count * length for start, count, length in pack.groups]
    assert [start for start, _, _ in pack.groups] == [0, *ends[:-1]]
    assert ends[-1] == len(pack.tokens)
    of_lengths = [length for _, count, length in pack.groups for _ in range(count)]
    assert tuple(of_lengths[: len(lengths)]) == pack.lengths == tuple(sorted(lengths))
    for place, start in enumerate(pack.starts[:-1].tolist()):
        assert (pack.tokens[start] // 1000).item() == pack.order[place]
    restored = pack.unpack(pack.tokens)
    assert all(torch.equal(found, wanted) for found, wanted in zip(restored, sequences, strict=True))


def test_weights_come_back_from_their_file(tmp_path, toy_backbone):
    path = tmp_path / "own.safetensors"
    save_compact(toy_backbone._model, path, card={"steps": 3})
    again = load_backbone(str(path))
    assert again.name == "own"
    assert read_card(path) == {"steps": 3}
    assert load_compact(path).fingerprint == again.fingerprint
    expected = toy_backbone.represent(["MKV"], layers=[2])[0].residues
    # half precision keeps 11 significant bits
    assert torch.allclose(again.represent(["MKV"], layers=[2])[0].residues, expected, atol=2e-2)


def test_the_same_weights_are_the_same_bytes(tmp_path, toy_backbone):
    path = tmp_path / "own.safetensors"
    written = set()
    for _ in range(20):  # safetensors alone writes the texts of the header in one of six orders
        save_compact(toy_backbone._model, path, card={"corpus": "größer", "steps": 3})
        written.add(path.read_bytes())
    assert len(written) == 1
    assert read_card(path)["corpus"] == "größer"


def test_other_weights_have_another_fingerprint():
    assert random_backbone(seed=1).fingerprint == random_backbone(seed=1).fingerprint
    assert random_backbone(seed=1).fingerprint != random_backbone(seed=2).fingerprint


def test_damaged_and_foreign_weights_are_refused_in_one_sentence(tmp_path, toy_backbone):
    path = tmp_path / "own.safetensors"
    save_compact(toy_backbone._model, path, card={})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_compact(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="not weights of a compact backbone"):
        load_compact(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 10**9}, "not 1000000000 layers of width 64 and kernel 9"),
        ({"width": 2**30}, "not 2 layers of width 1073741824 and kernel 9"),
        ({"kernel": 2**30 + 1}, "not 2 layers of width 64 and kernel 1073741825"),
        ({"width": 100}, "not 2 layers of width 100 and kernel 9"),
        ({"width": 64.0}, "is no shape"),
        ({"layers": True}, "is no shape"),
        ({"window": 10**400}, "is no shape"),
        ({"attention": ["2"]}, "is no shape"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
        ({"attention": [1]}, "Missing key.*qkv"),
    ],
)
def test_a_shape_that_is_not_that_of_the_weights_is_refused_before_it_takes_memory(
    tmp_path, toy_backbone, change, message
):
    path = tmp_path / "own.safetensors"
    save_compact(toy_backbone._model, path, card={})
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | change)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(WeightsError, match=rf"do not fit their stated shape \(.*{message}") as told:
        load_compact(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("card", [None, "[]", "{", '{"a": NaN}'])
def test_a_card_that_is_none_is_refused(tmp_path, toy_backbone, card):
    path = tmp_path / "own.safetensors"
    save_compact(toy_backbone._model, path, card={})
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata.pop("card")
    save_file(tensors, path, metadata=metadata | ({} if card is None else {"card": card}))
    with pytest.raises(WeightsError, match=r"own\.safetensors: weights without a card"):
        read_card(path)
    with pytest.raises(WeightsError):
        load_compact(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    backbone = random_backbone()
    with torch.no_grad():
        backbone._model.norm.weight[0] = torch.nan
    save_compact(backbone._model, tmp_path / "nan.safetensors", card={})
    with pytest.raises(WeightsError, match="not finite"):
        load_compact(tmp_path / "nan.safetensors")


def test_unknown_precision_is_a_usage_error():
    with pytest.raises(UsageError, match="fp8"):
        random_backbone(precision="fp8")


def test_the_embedded_weights_are_small_and_state_how_they_were_made():
    assert COMPACT_WEIGHTS.stat().st_size <= 20e6
    tensors = load_file(COMPACT_WEIGHTS)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    card = read_card()
    validation = card["validation"]
    assert validation["perplexity"] < validation["previous_residue"] < validation["unigram"] < 20
    assert card["licence"] != "not stated"
    for fact in ("corpus", "steps", "tokens", "sources", "stages"):
        assert card[fact]


def test_the_embedded_backbone_uses_the_context_of_a_hidden_residue(demo):
    """Trained weights name hidden residues better in a protein than in its shuffled residues."""
    model = load_compact()._model
    rng = np.random.default_rng(0)
    proteins = [record.sequence for record in read_sequences(demo)]
    shuffled = ["".join(rng.permutation(list(residues))) for residues in proteins]
    scores = [
        masked_perplexity(model, Corpus.from_sequences(sequences * 20), mask_share=0.1)["perplexity"]
        for sequences in (proteins, shuffled)
    ]
    assert scores[0] < 0.98 * scores[1]
