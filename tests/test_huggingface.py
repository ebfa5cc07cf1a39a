"""Models in Hugging Face's layout: equal to transformers', pinned by commit, refused where not read."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toys import esm2_file, fasta, one_sentence, proteins, run, table

from bioxfer.backbones import download_backbone, load_backbone, verify_backbone
from bioxfer.backbones.adapters import read_base
from bioxfer.backbones.esm import ALPHABET
from bioxfer.backbones.fairesm import load_esm
from bioxfer.backbones.hub import is_hub_name, models_folder
from bioxfer.backbones.huggingface import load_folder
from bioxfer.backbones.t5 import T5Config, T5Encoder, t5_names
from bioxfer.backbones.vocabulary import find_residues, read_vocabulary
from bioxfer.backbones.weights import hub_folder, sha256_of
from bioxfer.embedding import embed
from bioxfer.errors import OfflineError, SequenceError, UsageError, WeightsError

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
DICE = random.Random(0)
SEQUENCES = ["".join(DICE.choices(LETTERS, k=n)) for n in (1, 5, 5, 40, 150)]
T5_TOKENS = ["<pad>", "</s>", "<unk>", *("▁" + letter for letter in "ALGVSREDTIPKFQNYMHWCXBOUZ")]
OTHER = "b" * 40
NAME = "owner/tiny"


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def change_weights(folder: Path, change) -> None:
    """Write weights anew after ``change`` has had them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def write_esm2(folder: Path) -> Path:
    """The toy of fair-esm's layout in that of Hugging Face, written without transformers."""
    from argparse import Namespace

    folder.mkdir(parents=True, exist_ok=True)
    with torch.serialization.safe_globals([Namespace]):
        state = torch.load(io.BytesIO(esm2_file()), weights_only=True)["model"]
    parts = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn.rot_emb.inv_freq": "attention.self.rotary_embeddings.inv_freq",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    tensors = {"lm_head.bias": torch.zeros(33), "esm.embeddings.position_ids": torch.arange(1026)}
    for full, weight in state.items():
        name = full.removeprefix("encoder.sentence_encoder.")
        name = name.replace("embed_tokens", "embeddings.word_embeddings")
        for ours, theirs in parts.items():
            name = re.sub(rf"^layers\.(\d+)\.{re.escape(ours)}", rf"encoder.layer.\1.{theirs}", name)
        name = re.sub("^emb_layer_norm_after", "encoder.emb_layer_norm_after", name)
        tensors[f"esm.{name}"] = weight.contiguous()
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "esm",
        "vocab_size": 33,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
        "mask_token_id": 32,
    }
    write_json(folder / "config.json", config)
    (folder / "vocab.txt").write_text("\n".join(ALPHABET))
    return folder


def write_t5(folder: Path, *, gated: bool = False) -> Path:
    """A tiny T5 encoder of random weights, written without transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = T5Config(2, 32, 48, 4, 8, 32, 32, 128, "gelu_new" if gated else "relu", gated, 1e-6)
    encoder = T5Encoder(shape)
    dice = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in encoder.named_parameters():
        theirs = t5_names(shape)[name]
        rows = torch.randn(weight.shape, generator=dice) * 0.3
        tensors |= dict(zip(theirs, (part.clone() for part in rows.chunk(len(theirs))), strict=True))
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "t5", "vocab_size": 32, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
    projection = "gated-gelu" if gated else "relu"
    write_json(folder / "config.json", {**config, "num_heads": 4, "feed_forward_proj": projection})
    write_tokenizer(folder, T5_TOKENS)
    return folder


def write_tokenizer(folder: Path, tokens: list[str]) -> None:
    """A tokenizer.json as the tokenizers package writes those of SentencePiece."""
    marked = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ends = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    ends["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    ends["special_tokens"] = {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [{"id": n, "content": t, **special} for n, t in enumerate(tokens[:3])],
            "pre_tokenizer": marked,
            "post_processor": ends,
            "model": {"type": "Unigram", "unk_id": 2, "vocab": [[token, -1.0] for token in tokens]},
        },
    )


def spiece(tokens: list[str]) -> bytes:
    """A SentencePiece model: pieces of text, score and type, and after them the trainer's options."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    pieces = (field(1, t.encode()) + b"\x15" + bytes(4) + b"\x18\x01" for t in tokens)
    return b"".join(field(1, piece) for piece in pieces) + field(2, b"\x08\x03" + b"\x40" * 9 + b"\x01")


@pytest.fixture
def esm2(tmp_path) -> Path:
    return write_esm2(tmp_path / "tiny-esm2")


@pytest.fixture
def t5(tmp_path) -> Path:
    return write_t5(tmp_path / "tiny-t5")


# Equal to transformers


ESM = {
    "vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 400,
}  # fmt: skip
T5 = {"vocab_size": 32, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 6}
ESMC = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
MODELS = {
    "esm2": (
        "Esm",
        {**ESM, "position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5},
    ),
    "esm2, other base and eps": ("Esm", {**ESM, "position_embedding_type": "rotary", "rope_theta": 500.0}),
    "esm1b": ("Esm", {**ESM, "emb_layer_norm_before": True, "token_dropout": True, "layer_norm_eps": 1e-5}),
    "esm1v": ("Esm", {**ESM, "emb_layer_norm_before": False, "token_dropout": True, "layer_norm_eps": 1e-3}),
    "prott5": ("T5", {**T5, "feed_forward_proj": "relu"}),
    "ankh": ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "few distances": (
        "T5",
        {**T5, "relative_attention_num_buckets": 16, "relative_attention_max_distance": 60},
    ),
    "esmc": ("Esmc", ESMC),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars of transformers off the page, and its hub away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A model of transformers' with random weights, the folder it wrote, and the frame of its tokens."""
    transformers = pytest.importorskip("transformers", reason="transformers is not here to compare with")
    kind, options = MODELS[request.param]
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"this version of transformers has no {kind}")
    folder = tmp_path_factory.mktemp("saved") / request.param.replace(" ", "_")
    with quiet():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**options)
        suffix = {"Esm": "EsmForMaskedLM", "T5": "T5ForConditionalGeneration", "Esmc": "EsmcForMaskedLM"}[
            kind
        ]
        model = getattr(transformers, suffix)(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder)
        if kind == "Esm":
            (folder / "vocab.txt").write_text("\n".join(ALPHABET))
        elif kind == "Esmc":
            transformers.EsmcTokenizer().save_pretrained(folder)
        else:
            write_tokenizer(folder, T5_TOKENS)
    encoder = {"Esm": "esm", "T5": "encoder", "Esmc": "esmc"}[kind]
    return getattr(model, encoder), folder, kind


def numbers(folder: Path, kind: str, sequence: str) -> list[int]:
    """What the model's own tokenizer makes of a sequence, fed as its authors do."""
    if kind == "Esm":
        return [0, *(ALPHABET.index(letter) for letter in sequence), 2]
    import transformers

    if kind == "Esmc":
        return transformers.EsmcTokenizer()(sequence)["input_ids"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return tokenizer(" ".join(sequence))["input_ids"]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def test_every_layer_equals_transformers_in_a_padded_batch(saved):
    model, folder, kind = saved
    before = 0 if kind == "T5" else 1
    tokens = [numbers(folder, kind, sequence) for sequence in SEQUENCES]
    assert [len(each) for each in tokens] == [len(sequence) + before + 1 for sequence in SEQUENCES]
    longest = max(map(len, tokens))
    padding = 0 if kind == "T5" else 1
    batch = torch.tensor([each + [padding] * (longest - len(each)) for each in tokens])
    mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in tokens])
    with torch.inference_mode():
        told = model(input_ids=batch, attention_mask=mask, output_hidden_states=True).hidden_states
    backbone = load_folder(folder)
    found = backbone.represent(SEQUENCES, layers=range(backbone.n_layers + 1))
    assert len(told) == backbone.n_layers + 1
    for number, sequence in enumerate(SEQUENCES):
        for layer, states in enumerate(told):
            expected = states[number, before : before + len(sequence)]
            assert apart(found[number].residues[layer], expected) < 1e-5, (layer, len(sequence))
            if before:
                assert apart(found[number].cls[layer], states[number, 0]) < 1e-5


def test_contract_3_a_batch_does_not_matter(saved):
    backbone = load_folder(saved[1])
    last = [backbone.n_layers]
    together = backbone.represent(SEQUENCES, layers=last)
    for sequence, found in zip(SEQUENCES, together, strict=True):
        (alone,) = backbone.represent([sequence], layers=last)
        assert apart(found.residues, alone.residues) < 1e-5


def test_half_precision_runs_and_is_close(saved):
    exact, half = (load_folder(saved[1], precision=precision) for precision in ("fp32", "bf16"))
    assert exact.fingerprint == half.fingerprint
    last = [exact.n_layers]
    pairs = zip(*(each.represent(SEQUENCES, layers=last) for each in (exact, half)), strict=True)
    for one, other in pairs:
        cosine = torch.cosine_similarity(one.residues[0].mean(0), other.residues[0].mean(0), dim=0)
        assert other.residues.dtype == torch.float32
        assert cosine > 0.999


def test_half_precision_on_disk_is_computed_in_float32(saved, tmp_path):
    model, folder, kind = saved
    rounded = copy.deepcopy(model)
    for weight in rounded.parameters():
        weight.data = weight.data.half().float()
    copy_texts(folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    halves = {name: t if "inv_freq" in name else t.half() for name, t in tensors.items()}
    save_file(halves, tmp_path / "model.safetensors")
    tokens = torch.tensor([numbers(folder, kind, SEQUENCES[3])])
    with torch.inference_mode():
        told = rounded(input_ids=tokens).last_hidden_state[0]
    before = 0 if kind == "T5" else 1
    backbone = load_folder(tmp_path)
    found = backbone.represent([SEQUENCES[3]], layers=[backbone.n_layers])[0].residues[0]
    assert apart(found, told[before : before + len(found)]) < 1e-5


def copy_texts(source: Path, target: Path) -> None:
    for name in ("config.json", "vocab.txt", "tokenizer.json"):
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())


def test_shards_are_the_same_model(saved, tmp_path):
    folder = saved[1]
    write_shards(tmp_path, load_file(folder / "model.safetensors"))
    copy_texts(folder, tmp_path)
    assert load_folder(tmp_path).fingerprint == load_folder(folder).fingerprint


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    table = {name: f"model-{1 + n % 2:05}-of-00002.safetensors" for n, name in enumerate(names)}
    for shard in set(table.values()):
        save_file({n: tensors[n] for n in names if table[n] == shard}, folder / shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})


# What a folder is


def test_an_esm2_is_that_of_fair_esm_to_the_fingerprint(esm2, tmp_path):
    path = tmp_path / "tiny.pt"
    path.write_bytes(esm2_file())
    theirs, ours = load_esm(path), load_backbone(esm2)
    assert ours.name == "tiny-esm2"
    assert ours.fingerprint == theirs.fingerprint
    for one, other in zip(*(b.represent(SEQUENCES, layers=[1, 2]) for b in (ours, theirs)), strict=True):
        assert torch.equal(one.residues, other.residues)


def test_a_torch_checkpoint_is_the_same_model_and_its_hash_is_kept(esm2, tmp_path):
    before = load_backbone(esm2).fingerprint
    tensors = load_file(esm2 / "model.safetensors")
    (esm2 / "model.safetensors").unlink()
    torch.save(tensors, esm2 / "pytorch_model.bin")
    assert load_backbone(esm2).fingerprint == before
    record = esm2 / "pytorch_model.bin.sha256"
    assert record.read_text().split()[0] == sha256_of(esm2 / "pytorch_model.bin")
    tensors["esm.embeddings.word_embeddings.weight"] += 1
    torch.save(tensors, esm2 / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="was exchanged"):
        load_backbone(esm2)


@pytest.mark.parametrize("gated", [False, True])
def test_t5_embeds_from_the_command_line(tmp_path, gated):
    model = write_t5(tmp_path / "toy", gated=gated)
    (tmp_path / "in.fasta").write_text(">a\nMKUV\n>b\nMKXV\n>c\nMKV*\n>d\nUZOBJ\n>e\n" + "MA" * 600 + "\n")
    ended = run("embed", tmp_path / "in.fasta", "-o", tmp_path / "o.npz", "--model", model)
    assert ended.code == 0, ended.err
    with np.load(tmp_path / "o.npz", allow_pickle=False) as stored:
        vectors = dict(zip(stored["ids"].tolist(), stored["vectors"], strict=True))
        messages = dict(zip(stored["ids"].tolist(), stored["messages"].tolist(), strict=True))
    # ProtT5's authors feed X in their place, Ankh's the letters.
    assert np.array_equal(vectors["a"], vectors["b"]) == (not gated)
    told = [] if gated else ["1 of U Z O B read as X by the model", "4 of U Z O B read as X by the model"]
    assert messages["a"] == "".join(told[:1])
    assert messages["b"] == ""
    assert messages["d"] == "; ".join(["1 residue became X (J at 5)", *told[1:]])
    assert "windowed: 2 windows of 1022" in messages["e"]
    refused = run("embed", tmp_path / "in.fasta", "-o", tmp_path / "p.npz", "--model", model, "--pool", "cls")
    assert refused.code == 2
    assert one_sentence(refused.err).startswith("bioxfer: toy has no token before the first residue")


def test_a_head_fits_its_model_alone(esm2, tmp_path, monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))
    records = proteins(40)
    (tmp_path / "t.csv").write_text(table(records, "id", "sequence", "label"))
    (tmp_path / "in.fasta").write_text(fasta(records[:4]))
    model = write_t5(tmp_path / "toy")
    trained = run(
        *("train", tmp_path / "t.csv", "-o", tmp_path / "h.safetensors", "--model", model),
        *("--head", "linear", "--cluster-by", "kmer"),
    )
    assert trained.code == 0, trained.err

    def predict(with_model: Path):
        arguments = ("--head", tmp_path / "h.safetensors", "--model", with_model, "--overwrite")
        return run("predict", tmp_path / "in.fasta", "-o", tmp_path / "o.csv", *arguments)

    assert predict(model).code == 0
    assert "oily" in (tmp_path / "o.csv").read_text()
    change_weights(model, lambda tensors: tensors["shared.weight"].add_(0.01))
    refused = predict(model)
    assert refused.code == 3
    assert "was trained on" in one_sentence(refused.err)


def test_the_cache_tells_models_apart(tmp_path):
    from bioxfer.cache import EmbeddingCache

    model = write_t5(tmp_path / "toy")
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        first = embed(["MKV"], model=model, cache=cache)
        change_weights(model, lambda tensors: tensors["shared.weight"].add_(0.01))
        second = embed(["MKV"], model=model, cache=cache)
        assert len(cache) == 2
    assert not np.array_equal(np.asarray(first.vectors), np.asarray(second.vectors))


def test_adapters_are_for_esm_and_not_for_t5(esm2, t5):
    base = read_base(esm2)
    assert (base.name, base.fingerprint) == ("tiny-esm2", load_backbone(esm2).fingerprint)
    assert set(base.linear_layers()) == {
        f"blocks.{n}.{p}" for n in (0, 1) for p in ("qkv", "out", "up", "down")
    }
    with pytest.raises(UsageError, match="of the type t5 cannot be adapted; take an ESM-2"):
        read_base(t5)


def test_an_adapted_folder_finds_its_base_again(esm2, tmp_path):
    from bioxfer.lora import Part, adapt
    from bioxfer.tasks import Multiclass

    part = Part(["MKV", "MAAG", "MLLK", "MDE"], np.array([0, 1, 0, 1]), Multiclass(("no", "yes")), 1.0, "t")
    adapter = adapt(esm2, [part], rank=2, epochs=1, precision="fp32", pool="mean")
    adapter.save(tmp_path / "mine.safetensors")
    adapter.save(tmp_path.parent / "above.safetensors")  # from where the base looks like owner/name
    for path in (tmp_path / "mine.safetensors", tmp_path.parent / "above.safetensors"):
        adapted = load_backbone(path)
        assert adapted.name == path.stem
        assert adapted.fingerprint not in ("", load_backbone(esm2).fingerprint)


# Vocabularies


def test_spiece_and_json_say_the_same(t5, tmp_path):
    from_json = read_vocabulary(t5)
    (tmp_path / "spiece.model").write_bytes(spiece(T5_TOKENS))
    assert read_vocabulary(tmp_path) == from_json == {token: n for n, token in enumerate(T5_TOKENS)}
    before = load_backbone(t5).fingerprint
    (t5 / "tokenizer.json").unlink()
    (t5 / "spiece.model").write_bytes(spiece(T5_TOKENS))
    assert load_backbone(t5).fingerprint == before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<AA2fold>": 28, "<fold2AA>": 29}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"28": {"content": "<AA2fold>"}}}),
    ],
)
def test_a_prefix_that_names_the_task_is_given(t5, file, content):
    plain = load_backbone(t5)
    (t5 / "tokenizer.json").unlink()
    (t5 / "spiece.model").write_bytes(spiece(T5_TOKENS))
    write_json(t5 / file, content)
    prefixed = load_backbone(t5)
    assert (plain.has_start, prefixed.has_start) == (False, True)
    assert prefixed.fingerprint != plain.fingerprint
    (found,) = prefixed.represent(["MKV"], layers=[0])
    assert found.residues.shape == (1, 3, 32)
    rows = load_file(t5 / "model.safetensors")["shared.weight"]
    assert torch.equal(found.cls[0], rows[28])
    assert torch.equal(found.residues[0], rows[[T5_TOKENS.index("▁" + letter) for letter in "MKV"]])


@given(st.text(alphabet="ACDEFGHIKLMNPQRSTVWYXUZOB", max_size=60))
def test_contract_2_tokens_equal_residues(sequence):
    vocabulary = {token: n for n, token in enumerate(T5_TOKENS)}
    tokens = find_residues(vocabulary, size=32, after=("</s>",), rare_as_x=True, place="toy")
    found = tokens.tokenize(sequence)
    expected = ["▁" + ("X" if letter in "UZOB" else letter) for letter in sequence]
    assert [T5_TOKENS[number] for number in found] == [*expected, "</s>"]


def test_two_residues_of_one_token_are_refused():
    vocabulary = {token: n for n, token in enumerate(T5_TOKENS)} | {"▁W": T5_TOKENS.index("▁A")}
    with pytest.raises(WeightsError, match="toy: its vocabulary gives one token to several residues"):
        find_residues(vocabulary, size=32, after=("</s>",), place="toy")


@pytest.mark.parametrize("odd", ["m", "J", "<", "Ä", " "])
def test_what_is_no_residue_is_refused(t5, odd):
    with pytest.raises(SequenceError, match="is no residue of this model's vocabulary"):
        load_backbone(t5).represent([f"MK{odd}V"], layers=[1])


# Refusals


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def config(**changes: object):
    """Change the config of a folder."""
    return lambda folder: change_json(folder / "config.json", **changes)


def weights(change):
    """Change the weights of a folder."""
    return lambda folder: change_weights(folder, change)


def reset(tokens: list[str]):
    return lambda folder: write_tokenizer(folder, tokens)


WITHOUT_W = [token for token in T5_TOKENS if token != "▁W"]
REFUSALS = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "a letter lacks": (reset(WITHOUT_W), "has no token of its own for W"),
    "no end": (reset([f"{t}." if t == "</s>" else t for t in T5_TOKENS]), "has no </s>"),
    "too many tokens": (reset(T5_TOKENS[:3] + ["-"] * 20 + T5_TOKENS[3:]), "and its embedding has 32"),
    "cut tokenizer": (lambda f: truncate(f / "tokenizer.json"), "no vocabulary can be read"),
    "tokenizer of lists": (lambda f: (f / "tokenizer.json").write_text("[[]]"), "no vocabulary can be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "cut weights": (lambda f: truncate(f / "model.safetensors"), "not a readable safetensors file"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
    "other model": (config(model_type="bert"), "'bert' is not read; those that"),
    "no model_type": (config(model_type=["t5"]), "is not read"),
    "quantised": (config(quantization_config={"bits": 4}), "quantization_config"),
    "decoder": (config(is_decoder=True), "is_decoder true is not computed"),
    "activation": (config(feed_forward_proj="mish"), 'proj "mish" is not computed'),
    "more layers": (config(num_layers=3), "lacks the weights encoder.block.2"),
    "fewer layers": (config(num_layers=1), "not computed with here, such as"),
    "endless layers": (config(num_layers=10**12), "from 1 to 1000"),
    "endless width": (config(d_ff=10**12), "from 1 to 1048576"),
    "forged width": (config(d_ff=64), "is 48 by 32, and its config says 64 by 32"),
    "layers as text": (config(num_layers="2"), 'num_layers "2"'),
    "eps": (config(layer_norm_epsilon=-1), "it is a number above 0"),
    "NaN": (
        weights(lambda t: t["shared.weight"].fill_(float("nan"))),
        "shared.weight holds numbers that are not finite",
    ),
    "integers": (
        weights(lambda t: t.update({"shared.weight": t["shared.weight"].int()})),
        "shared.weight is no array of float32, float16, bfloat16 or float64 numbers (but torch.int32)",
    ),
    "quarter precision": (
        weights(lambda t: t.update({"shared.weight": t["shared.weight"].to(torch.float8_e4m3fn)})),
        "(but torch.float8_e4m3fn); take a model that is not quantised",
    ),
    "a bias": (
        weights(lambda t: t.update({"encoder.block.0.bias": torch.zeros(32)})),
        "holds 1 weights that are not computed with here, such as encoder.block.0.bias",
    ),
    "two embeddings": (
        weights(lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"] + 1})),
        "and shared.weight differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_faulty_folder_is_refused_in_a_sentence(t5, fault, tmp_path):
    break_it, told = REFUSALS[fault]
    break_it(t5)
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    ended = run("embed", tmp_path / "in.fasta", "-o", tmp_path / "o.csv", "--model", t5)
    assert ended.code == 3
    assert told in one_sentence(ended.err)
    assert not (tmp_path / "o.csv").exists()


ESM_REFUSALS = {
    "vocabulary": (lambda f: (f / "vocab.txt").write_text("\n".join(ALPHABET[::-1])), "is not that of ESM-2"),
    "positions": (config(position_embedding_type="relative_key"), "relative_key"),
    "folding": (config(is_folding_model=True), "is_folding_model true"),
    "norm": (config(emb_layer_norm_before=True), "disagree on emb_layer_norm_before"),
    "layers": (config(num_hidden_layers=1), "not computed with here, such as"),
    "heads": (config(num_attention_heads=5), "cannot be shared among 5 heads"),
    "width": (config(hidden_size=64), "config says 2 layers of 64"),
    "mask": (config(mask_token_id=3), "mask_token_id 3"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ESM_REFUSALS)
def test_a_faulty_esm_is_refused(esm2, fault):
    break_it, told = ESM_REFUSALS[fault]
    break_it(esm2)
    with pytest.raises(WeightsError, match=re.escape(told)):
        load_backbone(esm2)


def test_f34_a_model_with_code_of_its_own_is_refused_and_the_code_not_run(t5, tmp_path):
    canary = tmp_path / "canary"
    (t5 / "modeling_mine.py").write_text(f"open({str(canary)!r}, 'w')\n")
    change_json(t5 / "config.json", auto_map={"AutoModel": "modeling_mine.Mine"})
    with pytest.raises(WeightsError, match=r"names program code of its own \(auto_map\), which is never run"):
        load_backbone(t5)
    assert not canary.exists()


def test_f31_a_pickle_is_refused_and_not_run(t5, tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return open, (str(canary), "w")

    (t5 / "model.safetensors").unlink()
    torch.save({"shared.weight": Evil()}, t5 / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="refused, it is damaged or holds more than tensors"):
        load_backbone(t5)
    assert not canary.exists()


@pytest.mark.parametrize("forge", [lambda t: torch.zeros(1, 1).expand(t.shape), torch.Tensor.to_sparse])
def test_a_checkpoint_of_more_numbers_than_it_holds_is_refused(t5, forge):
    tensors = load_file(t5 / "model.safetensors")
    (t5 / "model.safetensors").unlink()
    torch.save(tensors | {"shared.weight": forge(tensors["shared.weight"])}, t5 / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"shared\.weight is no array of float32"):
        load_backbone(t5)


def test_shards_that_are_missing_or_elsewhere_are_refused(esm2):
    tensors = load_file(esm2 / "model.safetensors")
    (esm2 / "model.safetensors").unlink()
    write_shards(esm2, tensors)
    assert load_backbone(esm2).n_layers == 2
    index = esm2 / "model.safetensors.index.json"
    kept = index.read_bytes()
    change_json(index, weight_map={"a": "../../etc/passwd.bin"})
    with pytest.raises(WeightsError, match="is no name of a shard"):
        load_backbone(esm2)
    index.write_bytes(kept)
    (esm2 / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00002[.]safetensors is missing, one of 2 shards"):
        load_backbone(esm2)
    index.write_bytes(kept[:-20])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_backbone(esm2)


# Names and the hub


class Hub:
    """A web server on this machine that answers as the hub does, and misbehaves as told."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = ""
        self.wrong: dict[str, bytes] = {}  # what comes in place of these files
        self.cuts: list[str] = []  # files of which a third comes, once for each time
        self.status: dict[str, int] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, folder: Path) -> str:
        """Make a commit of a folder's files, and point the branch to it."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        files["README.md"] = b"a toy"
        self.main = hashlib.sha1(repr(files).encode()).hexdigest()
        self.commits[self.main] = files
        return self.main

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        self.asked.append(path)
        kind, _, rest = path.removeprefix("/").partition("/")
        status = next((code for part, code in self.status.items() if part in path), 0)
        if kind == "api" and not status:
            _, owner, name, what, revision = rest.split("/")
            commit = self.main if revision == "main" else revision
            if f"{owner}/{name}" != NAME or commit not in self.commits:
                status = 404
            elif what == "revision":
                body = self.wrong.get("sha", json.dumps({"id": NAME, "sha": commit}).encode())
            else:
                body = self.wrong.get("tree", json.dumps(self.tree(commit)).encode())
        elif kind == "large" and not status:
            commit, name = rest.split("/")
            body = self.wrong.get(name, self.commits[commit][name])
        elif not status:
            owner, name, _, commit, file = path.removeprefix("/").split("/")
            if file not in self.commits.get(commit, {}):
                status = 404
            elif file.endswith((".safetensors", ".bin")):
                handler.send_response(302)
                handler.send_header("Location", f"/large/{commit}/{file}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            else:
                body = self.wrong.get(file, self.commits[commit][file])
        if status:
            handler.send_error(status)
            return
        requested = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        start = int(requested[1]) if requested else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        last = path.rpartition("/")[2]
        if last in self.cuts:
            self.cuts.remove(last)
            body = body[: start + (len(body) - start) // 3]
        with contextlib.suppress(OSError):
            handler.wfile.write(body[start:])

    def tree(self, commit: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = [{"type": "directory", "path": "onnx", "oid": OTHER, "size": 0}]
        for name, data in self.commits[commit].items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": name, "oid": git, "size": len(data)}
            if name.endswith((".safetensors", ".bin")):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
            found.append(entry)
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(hub, tmp_path, monkeypatch) -> Iterator[Hub]:
    """The imitated hub as the only mirror, and empty caches of everyone."""
    monkeypatch.setattr("bioxfer.backbones.downloads.PAUSE", 0.01)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    imitated = Hub()
    monkeypatch.setattr("bioxfer.backbones.hub.HUB", imitated.url)
    yield imitated
    imitated.close()


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("facebook/esm2_t6_8M_UR50D", True),
        (f"Rostlab/prot_t5_xl_uniref50@{OTHER}", True),
        ("owner/name@main", True),
        ("compact", False),
        ("esm2_t6_8M_UR50D", False),
        ("./owner/name", False),
        ("~/owner/name", False),
        ("/owner/name", False),
        ("a/b/c", False),
        ("weights/mine.safetensors", False),
        ("weights/mine.pt", False),
        ("owner/..", False),
        ("../name", False),
        ("owner/a--b", False),
        ("https://huggingface.co/owner/name", False),
    ],
)
def test_hub_names_are_told_from_paths(text, is_one):
    assert is_hub_name(text) is is_one


def test_a_folder_that_is_here_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("models/mine")
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert not is_hub_name("models/mine")


@pytest.mark.parametrize("name", ["compact", "esm2_t6_8M_UR50D"])
def test_a_folder_does_not_take_the_place_of_a_name(name, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    if name == "compact":
        assert load_backbone(name).name == name
        assert verify_backbone(name).known
    else:
        with pytest.raises(OfflineError, match=f"bioxfer models download {name}"):
            load_backbone(name, offline=True)


def test_a_name_without_commit_is_refused_until_one_is_pinned(server, esm2):
    commit = server.publish(esm2)
    with pytest.raises(UsageError, match=f"run: bioxfer models download {NAME}, which pins the present one"):
        load_backbone(NAME)
    assert server.asked == []
    ended = run("models", "download", NAME)
    assert ended.code == 0, ended.err
    assert f"{NAME} is pinned to {commit}" in ended.err
    folder = Path(ended.out.decode().strip())
    assert folder == models_folder() / "owner--tiny" / commit
    assert sorted(p.name for p in folder.iterdir() if not p.name.endswith(".sha256")) == [
        "config.json", "model.safetensors", "source.json", "vocab.txt",
    ]  # fmt: skip
    asked = len(server.asked)
    backbone = load_backbone(NAME, offline=True)
    assert backbone.name == f"{NAME}@{commit}"
    assert backbone.fingerprint == load_backbone(esm2).fingerprint
    assert load_backbone(backbone.name, offline=True).fingerprint == backbone.fingerprint
    assert len(server.asked) == asked


def test_a_named_commit_is_fetched_and_not_pinned(server, esm2):
    commit = server.publish(esm2)
    backbone = load_backbone(f"{NAME}@{commit}")
    assert backbone.n_layers == 2
    with pytest.raises(UsageError, match="names no commit"):
        load_backbone(NAME)


@pytest.mark.parametrize(
    "revision", ["main", "v1.0", "", OTHER[:7], OTHER.upper(), f"{OTHER}\n", f"../{OTHER}"]
)
def test_what_is_no_commit_is_refused(server, revision):
    with pytest.raises(UsageError, match="is no commit of owner/tiny, which has 40 hex digits"):
        load_backbone(f"{NAME}@{revision}")
    assert server.asked == []


def test_a_moved_branch_is_told_and_the_former_commit_stays(server, esm2, caplog):
    first = server.publish(esm2)
    download_backbone(NAME)
    before = load_backbone(NAME).fingerprint
    change_weights(esm2, lambda tensors: tensors["esm.embeddings.word_embeddings.weight"].add_(1))
    second = server.publish(esm2)
    assert load_backbone(NAME).fingerprint == before
    download_backbone(NAME)
    assert f"was pinned to {first} and is now to {second}" in caplog.text
    assert load_backbone(NAME).fingerprint != before
    assert load_backbone(f"{NAME}@{first}", offline=True).fingerprint == before


def test_f29_a_cut_download_goes_on_where_it_stopped(server, esm2):
    server.publish(esm2)
    server.cuts = ["model.safetensors", "config.json"]
    download_backbone(NAME)
    assert load_backbone(NAME).n_layers == 2
    assert sum(path.startswith("/large/") for path in server.asked) == 2


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_f29_what_has_another_hash_is_refused(server, esm2, file):
    commit = server.publish(esm2)
    body = bytearray((esm2 / file).read_bytes())
    body[len(body) // 2] ^= 1
    server.wrong[file] = bytes(body)
    with pytest.raises(WeightsError, match=r"its sha256 is|not what the hub says it is"):
        download_backbone(NAME)
    assert not (models_folder() / "owner--tiny" / commit / "source.json").exists()
    with pytest.raises(UsageError, match="names no commit"):
        load_backbone(NAME)
    server.wrong.clear()
    download_backbone(NAME)
    assert load_backbone(NAME).n_layers == 2


def test_f21_a_damaged_file_is_found_before_use_and_fetched_again(server, esm2):
    commit = server.publish(esm2)
    folder = download_backbone(NAME)
    weights = folder / "model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    with pytest.raises(WeightsError, match=f"run: bioxfer models download {NAME}@{commit}"):
        load_backbone(NAME, offline=True)
    found = run("doctor", "--json")
    problems = [f for f in json.loads(found.out)["findings"] if f["verdict"] == "problem"]
    assert [f["check"] for f in problems] == [f"backbone {NAME}"]
    download_backbone(f"{NAME}@{commit}")
    assert load_backbone(NAME, offline=True).n_layers == 2
    (folder / "vocab.txt").unlink()
    with pytest.raises(WeightsError, match=r"vocab\.txt is missing"):
        load_backbone(NAME, offline=True)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"sha": b"<html>"}, "its answer is no JSON"),
        ({"sha": b"[]"}, "did not say what its present commit is"),
        ({"sha": b'{"sha": "main"}'}, "did not say what its present commit is"),
        ({"tree": b"{}"}, "has no config.json on the hub"),
        ({"tree": b"[1]"}, "list of files cannot be read"),
        (
            {"tree": b'[{"type": "file", "path": "config.json", "size": 1, "oid": "x"}]'},
            "no hash of config.json",
        ),
    ],
)
def test_answers_that_make_no_sense_are_refused(server, esm2, what, told):
    server.publish(esm2)
    server.wrong = what
    with pytest.raises(WeightsError, match=re.escape(told)):
        download_backbone(NAME)


def test_a_hub_that_answers_with_another_commit_is_refused(server, esm2):
    commit = server.publish(esm2)
    server.wrong["sha"] = json.dumps({"sha": OTHER}).encode()
    with pytest.raises(WeightsError, match=f"asked for commit {commit}, the hub answered with {OTHER}"):
        load_backbone(f"{NAME}@{commit}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"), ({"model_type": "bert"}, "'bert' is not read")],
)
def test_what_cannot_be_computed_is_refused_before_its_weights_are_fetched(server, esm2, changes, told):
    change_json(esm2 / "config.json", **changes)
    server.publish(esm2)
    with pytest.raises(WeightsError, match=told):
        download_backbone(NAME)
    assert not any("safetensors" in path for path in server.asked)


def test_what_is_not_there_or_needs_an_account_is_told(server, esm2):
    server.publish(esm2)
    ended = run("models", "download", "owner/other")
    assert ended.code == 3
    assert "the server answered 404" in one_sentence(ended.err)
    server.status["api/"] = 401
    with pytest.raises(WeightsError, match="it may need an account: fetch it by hand and give its folder"):
        download_backbone(NAME)
    server.status = {"api/": 503}
    with pytest.raises(WeightsError, match="the server answered 503"):
        download_backbone(NAME)


def test_shards_are_fetched_and_a_foreign_one_is_not(server, esm2):
    tensors = load_file(esm2 / "model.safetensors")
    (esm2 / "model.safetensors").unlink()
    write_shards(esm2, tensors)
    server.publish(esm2)
    folder = download_backbone(NAME)
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert load_backbone(NAME).n_layers == 2
    change_json(esm2 / "model.safetensors.index.json", weight_map={"a": "../../x.safetensors"})
    server.publish(esm2)
    with pytest.raises(WeightsError, match="is no shard on the hub"):
        download_backbone(NAME)


def test_f30_offline_opens_no_socket_and_names_the_command(server, no_sockets):
    with pytest.raises(OfflineError, match=f"run: bioxfer models download {NAME}@{OTHER}"):
        load_backbone(f"{NAME}@{OTHER}", offline=True)
    with pytest.raises(OfflineError, match=f"run: bioxfer models download {NAME}"):
        download_backbone(NAME, offline=True)


def test_mirrors_are_tried_in_turn_and_folders_are_none(server, esm2, monkeypatch):
    server.publish(esm2)
    monkeypatch.setenv("BIOXFER_MIRRORS", f"/no/folder,http://127.0.0.1:9,{server.url}/")
    monkeypatch.setattr("bioxfer.backbones.hub.HUB", "http://127.0.0.1:9")
    assert load_folder(download_backbone(NAME)).n_layers == 2
    with pytest.raises(UsageError, match="give the model's own folder in place of its name"):
        download_backbone(NAME, base_url=str(esm2))
    with pytest.raises(UsageError, match="whose hashes the hub states"):
        download_backbone(NAME, sha256="0" * 64)


def test_models_list_show_and_verify_know_it(server, esm2, tmp_path):
    commit = server.publish(esm2)
    run("models", "download", NAME)
    listed = run("models", "list").out.decode().splitlines()
    assert f"{NAME}\tESM\t2\t32\t\tcached" in listed
    shown = json.loads(run("models", "show", NAME).out)
    assert (shown["name"], shown["layers"], shown["dim"]) == (f"{NAME}@{commit}", 2, 32)
    assert shown["files"]["model.safetensors"] == sha256_of(esm2 / "model.safetensors")
    verified = run("models", "verify", NAME).out.decode().splitlines()
    assert [line.split("\t")[2] for line in verified] == ["as stated or recorded"] * 3
    assert verify_backbone(NAME).known
    assert not verify_backbone(esm2).known
    with pytest.raises(UsageError, match="leave --sha256 out"):
        verify_backbone(esm2, sha256="0" * 64)
    checks = {f["check"]: f["verdict"] for f in json.loads(run("doctor", "--json").out)["findings"]}
    assert checks[f"backbone {NAME}"] == "ok"


def test_a_head_finds_the_commit_that_it_was_trained_on(server, t5, tmp_path, monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))
    monkeypatch.setenv("BIOXFER_MIRRORS", server.url)
    records = proteins(40)
    (tmp_path / "t.csv").write_text(table(records, "id", "sequence", "label"))
    (tmp_path / "in.fasta").write_text(fasta(records[:4]))
    first = server.publish(t5)
    run("models", "download", NAME)
    head = tmp_path / "h.safetensors"
    trained = run(
        *("train", tmp_path / "t.csv", "-o", head, "--model", NAME),
        *("--head", "linear", "--cluster-by", "kmer"),
    )
    assert trained.code == 0, trained.err
    change_weights(t5, lambda tensors: tensors["shared.weight"].add_(0.01))
    second = server.publish(t5)
    run("models", "download", NAME)
    predicted = run("predict", tmp_path / "in.fasta", "-o", tmp_path / "o.csv", "--head", head, "--offline")
    assert predicted.code == 0, predicted.err
    arguments = ("--head", head, "--model", f"{NAME}@{second}")
    refused = run("predict", tmp_path / "in.fasta", "-o", tmp_path / "p.csv", *arguments)
    assert refused.code == 3
    assert f"{NAME}@{first}" in one_sentence(refused.err)


def test_into_another_folder_leaves_the_cache_alone(server, esm2, tmp_path):
    commit = server.publish(esm2)
    folder = download_backbone(NAME, into=tmp_path / "mine")
    assert folder == tmp_path / "mine" / "owner--tiny" / commit
    assert load_backbone(folder).n_layers == 2
    assert not models_folder().exists()
    with pytest.raises(UsageError, match="names no commit"):
        load_backbone(NAME)


def test_what_transformers_has_fetched_is_used_where_it_is(server, esm2, tmp_path):
    commit = "c" * 40
    cache = tmp_path / "hf" / "hub" / "models--owner--tiny"
    snapshot = cache / "snapshots" / commit
    for folder in (snapshot, cache / "blobs", cache / "refs"):
        folder.mkdir(parents=True)
    for path in esm2.iterdir():
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = cache / "blobs" / (hashlib.sha256(data).hexdigest() if large else git)
        blob.write_bytes(data)
        os.symlink(blob, snapshot / path.name)
    assert load_backbone(f"{NAME}@{commit}").name == f"{NAME}@{commit}"
    with pytest.raises(UsageError, match="names no commit"):
        load_backbone(NAME)
    (cache / "refs" / "main").write_text(commit)
    assert load_backbone(NAME, offline=True).name == f"{NAME}@{commit}"
    assert server.asked == []
    for name in ("config.json", "model.safetensors"):
        blob = (snapshot / name).resolve()
        kept = blob.read_bytes()
        blob.write_bytes(kept[:-1] + b" ")
        with pytest.raises(WeightsError, match="is not what its name in the cache says"):
            load_backbone(NAME)
        blob.write_bytes(kept)
    assert not (hub_folder() / "huggingface").exists()


def test_f31_a_record_that_was_forged_leads_nowhere(server, esm2):
    server.publish(esm2)
    folder = download_backbone(NAME)
    for files in ({"../../config.json": "0" * 64}, {"config.json": "0"}, {}, []):
        change_json(folder / "source.json", files=files)
        with pytest.raises(WeightsError, match=r"source\.json: cannot be read"):
            load_backbone(NAME, offline=True)
