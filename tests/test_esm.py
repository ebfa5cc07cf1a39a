"""ESM inference and checkpoints, held against the installed fair-esm."""

from __future__ import annotations

import copy
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import esm
import numpy as np
import pytest
import torch
from esm.pretrained import load_model_and_alphabet_core
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bioxfer.backbones.esm import ALPHABET, CLS, EOS, MASK, PAD, EsmBackbone
from bioxfer.backbones.fairesm import from_fairesm, load_esm
from bioxfer.backbones.kernels import INSTRUCTIONS, load_kernels
from bioxfer.errors import SequenceError, UsageError, WeightsError

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"
LENGTHS = (7, 1, 30, 7, 61, 2)


def _randomised(model: nn.Module, seed: int) -> nn.Module:
    """Give every weight a value that matters, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "layer_norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif weight.ndim == 1 or "embed" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1.5 * noise * weight.shape[1] ** -0.5)
    return model.eval()


def _esm2(head_width: int, *, token_dropout: bool = True) -> nn.Module:
    model = esm.ESM2(num_layers=3, embed_dim=2 * head_width, attention_heads=2, token_dropout=token_dropout)
    return _randomised(model, head_width)


def _esm1_args(*, norm_before: bool, arch: str = "roberta_large", token_dropout: bool = True) -> Namespace:
    return Namespace(
        arch=arch,
        layers=3,
        embed_dim=48,
        ffn_embed_dim=160,
        attention_heads=4,
        max_positions=1024,
        emb_layer_norm_before=norm_before,
        token_dropout=token_dropout,
        final_bias=True,
    )


def _esm1(*, norm_before: bool, arch: str = "roberta_large") -> nn.Module:
    alphabet = esm.Alphabet.from_architecture(arch)
    model = esm.ProteinBertModel(_esm1_args(norm_before=norm_before, arch=arch), alphabet)
    return _randomised(model, 1)


# Every member of the family by what sets it apart: the widths of its heads, or its positions and norms.
FAMILY = {
    "esm2_t6_8M_UR50D": lambda: _esm2(16),
    "esm2_t12_35M_UR50D": lambda: _esm2(24),
    "esm2_t30_150M_UR50D": lambda: _esm2(32),
    "esm2_t33_650M_UR50D": lambda: _esm2(64),
    "esm2_t36_3B_UR50D": lambda: _esm2(64),
    "esm2_t48_15B_UR50D": lambda: _esm2(128),
    "esm2 without token dropout": lambda: _esm2(16, token_dropout=False),
    "esm1b_t33_650M_UR50S": lambda: _esm1(norm_before=True),
    "esm1v_t33_650M_UR90S_1": lambda: _esm1(norm_before=False),
}


def _tokens(lengths: tuple[int, ...], *, masked: float = 0.0, seed: int = 0) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        inner = rng.integers(4, 4 + len(RESIDUES), length)
        inner[rng.random(length) < masked] = MASK
        found.append(torch.from_numpy(np.concatenate(([CLS], inner, [EOS]))))
    return found


def _fairesm_states(model: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    """All layers by fair-esm itself, from one padded batch: ``(layers + 1, T_i, D)`` each."""
    batch = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD)
    wanted = range(model.num_layers + 1)
    with torch.no_grad():
        found = model(batch, repr_layers=list(wanted))["representations"]
    states = torch.stack([found[layer] for layer in wanted], dim=1)
    return [state[:, : len(t)] for state, t in zip(states, tokens, strict=True)]


def _assert_equal(ours: list[Tensor], theirs: list[Tensor], *, tolerance: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        for layer, (x, y) in enumerate(zip(a, b, strict=True)):
            assert float((x - y).abs().max() / y.abs().max()) <= tolerance, f"layer {layer}"


def _all_layers(backbone: EsmBackbone) -> range:
    return range(backbone.n_layers + 1)


def _checkpoint(model: nn.Module, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The model in the layout of the published files."""
    state = {}
    for name, weight in model.state_dict().items():
        if name.startswith("contact_head."):
            continue  # comes in a file of its own
        prefix = "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder."
        state[prefix + name] = weight.to(dtype)
    if isinstance(model, esm.ESM2):
        options = Namespace(
            encoder_layers=model.num_layers,
            encoder_embed_dim=model.embed_dim,
            encoder_attention_heads=model.attention_heads,
            token_dropout=model.token_dropout,
        )
        return {"args": None, "cfg": {"model": options}, "model": state}
    given = dict(vars(model.args))
    del given["emb_layer_norm_before"]  # told by the presence of its weights alone
    renamed = {f"encoder_{key}": given.pop(key) for key in ("layers", "embed_dim", "attention_heads")}
    renamed["encoder_ffn_embed_dim"] = given.pop("ffn_embed_dim")
    return {"args": Namespace(**given, **renamed), "model": state}


def _fairesm_loaded(name: str, checkpoint: dict[str, Any], model: nn.Module) -> nn.Module:
    """What fair-esm's own loader makes of a checkpoint."""
    head = {f"contact_head.{key}": value for key, value in model.contact_head.state_dict().items()}
    loaded, _ = load_model_and_alphabet_core(name, copy.deepcopy(checkpoint), {"model": head})
    return loaded.eval()


def _saved(folder: Path, name: str, checkpoint: object) -> Path:
    path = folder / f"{name}.pt"
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def toy() -> EsmBackbone:
    return from_fairesm(_esm2(16), name="toy")


def test_alphabet_is_that_of_fair_esm():
    assert esm.Alphabet.from_architecture("ESM-1b").all_toks == list(ALPHABET)


@pytest.mark.parametrize("kernels", ["off", *INSTRUCTIONS])
@pytest.mark.parametrize("name", FAMILY)
def test_every_layer_of_every_family_member_equals_fair_esm(monkeypatch, name, kernels):
    monkeypatch.setenv("BIOXFER_KERNELS", kernels)
    model = FAMILY[name]()
    backbone = from_fairesm(model)
    for masked in (0.0, 0.3):
        tokens = _tokens(LENGTHS, masked=masked)
        ours = backbone.represent_tokens(tokens, layers=_all_layers(backbone))
        _assert_equal(ours, _fairesm_states(model, tokens))


def test_sequences_equal_fair_esm_with_its_own_tokens():
    model = _esm2(16)
    backbone = from_fairesm(model)
    sequences = [RESIDUES, "M", "MKTAYIAKQR", "WWWWW"]
    _, _, batch = model.alphabet.get_batch_converter()([("", s) for s in sequences])
    theirs = _fairesm_states(model, [row[: len(s) + 2] for row, s in zip(batch, sequences, strict=True)])
    ours = backbone.represent(sequences, layers=_all_layers(backbone))
    assert [r.residues.shape[1] for r in ours] == [len(s) for s in sequences]
    _assert_equal([r.residues for r in ours], [t[:, 1:-1] for t in theirs])
    _assert_equal([r.cls for r in ours], [t[:, 0] for t in theirs])


def test_esm2_runs_straight_through_beyond_1022_residues():
    model = _esm2(16)
    backbone = from_fairesm(model)
    tokens = _tokens((1500,), masked=0.1)
    _assert_equal(
        backbone.represent_tokens(tokens, layers=_all_layers(backbone)), _fairesm_states(model, tokens)
    )


@pytest.mark.parametrize("norm_before", [True, False], ids=["esm1b", "esm1v"])
def test_learned_positions_reach_1022_residues_and_no_further(norm_before):
    model = _esm1(norm_before=norm_before)
    backbone = from_fairesm(model, name="learned")
    assert backbone.window == 1022
    tokens = _tokens((1022, 5))
    _assert_equal(
        backbone.represent_tokens(tokens, layers=_all_layers(backbone)), _fairesm_states(model, tokens)
    )
    with pytest.raises(SequenceError, match=r"1023 residues is too long for learned.* 1022; cut"):
        backbone.represent(["M" * 1023], layers=[0])


@pytest.mark.parametrize("name", ["esm2_t6_8M_UR50D", "esm1b_t33_650M_UR50S", "esm1v_t33_650M_UR90S_1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_checkpoint_equals_what_fair_esm_loads_from_it(tmp_path, name, dtype):
    checkpoint = _checkpoint(FAMILY[name](), dtype=dtype)
    theirs = _fairesm_loaded(name, checkpoint, FAMILY[name]())
    ours = load_esm(_saved(tmp_path, name, checkpoint))
    # Long enough for rotary frequencies that were rounded to half precision to tell.
    tokens = _tokens((900, 5), masked=0.2)
    _assert_equal(ours.represent_tokens(tokens, layers=_all_layers(ours)), _fairesm_states(theirs, tokens))
    assert ours.name == name
    assert ours.fingerprint == from_fairesm(theirs).fingerprint


def test_older_family_without_token_dropout_has_its_mask_embedding_cleared_like_fair_esm(tmp_path):
    model = _esm1(norm_before=True)
    model.args.token_dropout = False
    checkpoint = _checkpoint(model)
    name = "esm1b_t33_650M_UR50S"
    theirs = _fairesm_loaded(name, checkpoint, model)
    ours = load_esm(_saved(tmp_path, name, checkpoint))
    tokens = _tokens((20,), masked=0.5)
    _assert_equal(ours.represent_tokens(tokens, layers=_all_layers(ours)), _fairesm_states(theirs, tokens))


def test_checkpoint_loads_while_another_package_is_called_esm(tmp_path, monkeypatch):
    path = _saved(tmp_path, "toy", _checkpoint(_esm2(16)))
    for name in [n for n in sys.modules if n == "esm" or n.startswith("esm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "esm", types.ModuleType("esm"))
    assert load_esm(path).n_layers == 3


def test_weights_that_are_not_finite_are_refused(tmp_path):
    checkpoint = _checkpoint(_esm2(16))
    name = next(name for name in checkpoint["model"] if name.endswith("layers.1.fc1.bias"))
    checkpoint["model"][name] = checkpoint["model"][name].clone()
    checkpoint["model"][name][3] = float("nan")
    with pytest.raises(WeightsError, match=r"layers\.1\.fc1\.bias holds numbers that are not finite"):
        load_esm(_saved(tmp_path, "toy", checkpoint))


def test_wrong_esm_package_is_named():
    stranger = type("ESMC", (nn.Module,), {"__module__": "esm.models.esmc"})()
    with pytest.raises(UsageError, match=r"esm\.models\.esmc\.ESMC .*EvolutionaryScale.*fair-esm==2\.0\.0"):
        from_fairesm(stranger)


def test_other_fair_esm_models_are_refused():
    with pytest.raises(WeightsError, match="is no ESM-1b, ESM-1v or ESM-2"):
        from_fairesm(_esm1(norm_before=False, arch="protein_bert_base"))


def test_layers_come_in_the_order_asked_for(toy):
    everything = toy.represent(["MKTAY"], layers=_all_layers(toy))[0]
    some = toy.represent(["MKTAY"], layers=[3, 0, 3])[0]
    assert torch.equal(some.residues, everything.residues[[3, 0, 3]])
    assert torch.equal(some.cls, everything.cls[[3, 0, 3]])


@pytest.mark.parametrize("way", ["run", "forward"])
def test_blocks_above_the_highest_layer_do_not_run(monkeypatch, way):
    if way == "forward":
        monkeypatch.setenv("BIOXFER_KERNELS", "off")
    elif load_kernels() is None:
        pytest.skip("no compiled kernels here: bioxfer was installed without a C++ compiler")
    backbone = from_fairesm(_esm2(16))
    ran = []
    for number, block in enumerate(backbone._encoder.blocks, start=1):
        method = getattr(block, way)

        def counted(*args, number=number, method=method, **options):
            ran.append(number)
            return method(*args, **options)

        monkeypatch.setattr(block, way, counted)
    backbone.represent(["MK"], layers=[1, 0])
    assert ran == [1]


def test_nothing_and_empty_sequences_are_represented(toy):
    assert toy.represent([], layers=[0]) == []
    empty, one = toy.represent(["", "M"], layers=[0, 3])
    assert empty.residues.shape == (2, 0, 32)
    assert empty.cls.shape == (2, 32)
    assert one.residues.shape == (2, 1, 32)
    assert toy.represent(["MK"], layers=[])[0].residues.shape == (0, 2, 32)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("MKl", r"'l' at 3"),
        ("M-K", r"'-' at 2"),
        ("MJ", r"'J' at 2"),
        ("<mask>", r"'<' at 1"),
        ("Mß", r"'ß' at 2"),
    ],
)
def test_what_is_no_residue_is_refused_with_its_place(toy, sequence, message):
    with pytest.raises(SequenceError, match=message):
        toy.represent([sequence], layers=[0])


@pytest.mark.parametrize("layer", [-1, 4])
def test_missing_layer_is_refused(toy, layer):
    with pytest.raises(UsageError, match=f"layer {layer} does not exist; toy has layers 0 to 3"):
        toy.represent(["MK"], layers=[0, layer])


def test_padding_is_refused(toy):
    with pytest.raises(UsageError, match="<pad>"):
        toy.represent_tokens([torch.tensor([CLS, 4, EOS, PAD])], layers=[0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.lists(st.text(alphabet=RESIDUES, min_size=1, max_size=40), min_size=1, max_size=8),
    seed=st.randoms(use_true_random=False),
)
def test_result_does_not_depend_on_batch_or_order(toy, batch, seed):
    shuffled = list(enumerate(batch))
    seed.shuffle(shuffled)
    together = toy.represent([sequence for _, sequence in shuffled], layers=[0, 3])
    for (_, sequence), found in zip(shuffled, together, strict=True):
        alone = toy.represent([sequence], layers=[0, 3])[0]
        _assert_equal([found.residues, found.cls], [alone.residues, alone.cls])


def test_result_does_not_depend_on_threads(toy):
    sequences = ["".join(np.random.default_rng(n).choice(list(RESIDUES), n)) for n in (300, 5, 120)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([r.residues for r in toy.represent(sequences, layers=_all_layers(toy))])
    finally:
        torch.set_num_threads(before)
    _assert_equal(found[1], found[0])
    _assert_equal(found[2], found[0])


def test_two_runs_are_bit_equal_even_in_training_mode(toy):
    first = toy.represent(["MKTAYIAK", "MK"], layers=[3])
    toy._encoder.train()
    second = toy.represent(["MKTAYIAK", "MK"], layers=[3])
    toy._encoder.eval()
    assert all(torch.equal(a.residues, b.residues) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["esm2_t33_650M_UR50D", "esm1b_t33_650M_UR50S"])
def test_bf16_keeps_direction_and_fp32_results(name):
    model = FAMILY[name]()
    full, half = from_fairesm(model), from_fairesm(model, precision="bf16")
    assert (full.precision, half.precision) == ("fp32", "bf16")
    assert full.fingerprint == half.fingerprint
    types_ = {name: weight.dtype for name, weight in half._encoder.named_parameters()}
    assert types_["blocks.0.qkv.weight"] == types_["blocks.2.down.weight"] == torch.bfloat16
    assert types_["blocks.0.norm_attention.weight"] == types_["embedding.weight"] == torch.float32
    sequence = "".join(np.random.default_rng(0).choice(list(RESIDUES), 300))
    a, b = (m.represent([sequence], layers=[0, 1, 3])[0].residues for m in (full, half))
    assert b.dtype == torch.float32
    assert torch.equal(a[0], b[0])  # the embedding is float32 in both
    # 2^-8 of a product's size; random weights amplify it from block to block
    assert float(nn.functional.cosine_similarity(a, b, dim=-1).min()) > 0.999


def test_fingerprint_tells_weights_and_settings_apart():
    def build(**changes: bool) -> esm.ESM2:
        return _esm2(16, **changes)

    base = from_fairesm(build()).fingerprint
    changed = build()
    with torch.no_grad():
        changed.layers[1].fc1.bias[0] += 1e-3
    head_only = build()
    with torch.no_grad():
        head_only.lm_head.bias[0] += 1
    assert len(base) == 16
    assert from_fairesm(build(), name="other").fingerprint == base
    assert from_fairesm(head_only).fingerprint == base
    assert from_fairesm(changed).fingerprint != base
    assert from_fairesm(build(token_dropout=False)).fingerprint != base


def test_backbone_keeps_its_weights_when_the_source_model_changes():
    model = _esm2(16)
    backbone = from_fairesm(model)
    before = backbone.represent(["MKT"], layers=[3])[0].residues
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(backbone.represent(["MKT"], layers=[3])[0].residues, before)


class Canary:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_pickled_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "ran"
    checkpoint = _checkpoint(_esm2(16))
    checkpoint["extra"] = Canary(canary)
    with pytest.raises(WeightsError, match=r"evil\.pt: refused.*(?i:unsupported)"):
        load_esm(_saved(tmp_path, "evil", checkpoint))
    assert not canary.exists()


def test_damaged_and_missing_files_are_one_clear_error(tmp_path):
    path = _saved(tmp_path, "toy", _checkpoint(_esm2(16)))
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"toy\.pt: refused, it is damaged"):
            load_esm(path)
    with pytest.raises(WeightsError, match=r"none\.pt: cannot be read"):
        load_esm(tmp_path / "none.pt")


def _without(checkpoint: dict[str, Any], part: str) -> dict[str, Any]:
    kept = {name: weight for name, weight in checkpoint["model"].items() if part not in name}
    return {**checkpoint, "model": kept}


def _with(checkpoint: dict[str, Any], name: str, weight: Any) -> dict[str, Any]:
    return {**checkpoint, "model": {**checkpoint["model"], f"encoder.sentence_encoder.{name}": weight}}


MALFORMED = {
    "holds no model": lambda c: {"weights": c["model"]},
    "holds no model;": lambda c: _with(c, "embed_tokens.weight", 3),
    "attention heads": lambda c: {"model": c["model"]},
    "cannot be shared among 7 heads": lambda c: {**c, "cfg": {"model": {"encoder_attention_heads": 7}}},
    r"lacks 1 weights such as layers\.1\.fc1\.bias": lambda c: _without(c, "layers.1.fc1.bias"),
    "is no ESM-1b": lambda c: _without(c, "embed_tokens"),
    "is no ESM-1b, ESM-1v": lambda c: _without(c, "layers."),
    r"holds 1 weights .* such as layers\.0\.adapter": lambda c: _with(c, "layers.0.adapter", torch.ones(2)),
    "do not fit together": lambda c: _with(c, "layers.0.fc2.bias", torch.ones(3)),
    "40 tokens instead of 33": lambda c: _with(c, "embed_tokens.weight", torch.ones(40, 32)),
    "holds 1 weights .* such as layers.999999999": lambda c: _with(c, "layers.999999999.x", torch.ones(1)),
    "lacks weights of 10000 layers": lambda c: _with(c, "layers.9999.x", torch.ones(1)),
    "norm_after.bias' is no array": lambda c: _with(
        c, "emb_layer_norm_after.bias", torch.ones(1).expand(2**40)
    ),
    "norm_after.bias' is no array of": lambda c: _with(
        c, "emb_layer_norm_after.bias", torch.empty(32, device="meta")
    ),
    "norm_after.bias' is no array of n": lambda c: _with(
        c, "emb_layer_norm_after.bias", torch.ones(32).to_sparse()
    ),
    "norm_after.bias' is no array of nu": lambda c: _with(c, "emb_layer_norm_after.bias", torch.ones(0)),
    "norm_after.bias' is no array of num": lambda c: _with(
        c, "emb_layer_norm_after.bias", torch.ones(32, dtype=torch.complex64)
    ),
    "how many attention heads": lambda c: {**c, "cfg": {"model": {3: 1, "encoder_attention_heads": True}}},
    "frequencies differ": lambda c: _with(c, "layers.1.self_attn.rot_emb.inv_freq", torch.ones(8)),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_checkpoint_is_one_clear_error(tmp_path, message):
    with pytest.raises(WeightsError, match=message):
        load_esm(_saved(tmp_path, "toy", MALFORMED[message](_checkpoint(_esm2(16)))))


@pytest.mark.parametrize("version", ["2.9.1", "2.6.0+cu124", "1.13.1"])
def test_unsafe_torch_reads_no_checkpoint(tmp_path, monkeypatch, version):
    path = _saved(tmp_path, "toy", _checkpoint(_esm2(16)))
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(WeightsError, match=r"pip install 'torch>=2\.10'"):
        load_esm(path)
