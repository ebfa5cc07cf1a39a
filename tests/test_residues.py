"""Heads for residues: one label as long as the protein, from training to the table."""

from __future__ import annotations

import dataclasses
import functools
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.metrics import f1_score
from toys import OILY, SALTY, WINDOW, backbone, fasta, run, table, write_weights
from toys import head as protein_head
from toys import proteins as toy_proteins

import bioxfer
import bioxfer.prediction
import bioxfer.residue_fitting
from bioxfer.backbones.compact import random_backbone
from bioxfer.cards import describe_card
from bioxfer.embedding import embed
from bioxfer.errors import FingerprintError, HeadFileError, InputError, LabelError, UsageError
from bioxfer.estimators import ResidueClassifier
from bioxfer.headfile import digest, read_container, to_json
from bioxfer.heads import TrainedHead
from bioxfer.prediction import load_head, predict
from bioxfer.residue_fitting import fit_residues, gather_residues
from bioxfer.residue_labels import encode_labels
from bioxfer.residue_scores import ResidueClassScores, score_residue_gain, window_codes
from bioxfer.residue_tasks import ResidueClasses, look_like_residue_labels
from bioxfer.residues import ResidueHead, read_head, run_residues
from bioxfer.sequences import SequenceRecord
from bioxfer.training import evaluate_on_records, train_on_records

# Few epochs of a small network at a high rate: a short path is a quick test.
SHORT = {"EPOCHS": (2, 20), "WIDTHS": (3,), "HIDDEN": 8, "RATE": {"linear": 2e-3, "conv": 5e-3}}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for key, value in SHORT.items():
        monkeypatch.setattr(bioxfer.residue_fitting, key, value)


def mark(sequence: str) -> str:
    """Label oily residues o, salty ones s, the others n."""
    return "".join("o" if r in OILY else "s" if r in SALTY else "n" for r in sequence)


def proteins(count: int = 40, *, seed: int = 0) -> list[SequenceRecord]:
    dice = random.Random(seed)
    found = []
    for number in range(count):
        sequence = "M" + "".join(dice.choices(OILY + SALTY + "GTPY", k=dice.randint(25, 49)))
        found.append(SequenceRecord(f"p{number}", sequence, label=mark(sequence)))
    return found


def train(records, **options) -> ResidueHead:
    head = train_on_records(
        records,
        backbone(),
        **{"name": "kind", "data_source": "toys", "valid": 0.3, "cluster_by": "kmer", **options},
    )
    assert isinstance(head, ResidueHead)
    return head


@functools.cache
def head(form: str = "linear", name: str = "kind") -> ResidueHead:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SHORT.items():
            patch.setattr(bioxfer.residue_fitting, key, value)
        return train(proteins(), head=form, name=name)


FORMS = pytest.mark.parametrize("form", ["linear", "conv"])

ODD = [
    SequenceRecord("a", "MAILVFWAILVFWPP"),
    SequenceRecord("empty", ""),
    SequenceRecord("b", "MDEKRNQSDEKRNQS"),
    SequenceRecord("copy of a", "mailvfwailvfwpp*"),
    SequenceRecord("long", "MAILVFWGDE" * 15),
]


# --- prediction -----------------------------------------------------------------------------------------


@FORMS
def test_every_record_gets_one_label_as_long_as_itself(form):
    found = predict(ODD, heads=[head(form)], model=backbone(), probabilities=True)
    assert list(found.columns[:4]) == ["id", "length", "status", "message"]
    assert list(found.columns[4:]) == ["kind", "kind_score", "kind_nearest", "kind_flag"]
    assert list(found["status"]) == ["ok", "skipped", "ok", "ok", "windowed"]
    assert found.iloc[1, 4:].isna().all()
    there = found.drop(index=1)
    assert there.notna().all(axis=None)
    assert list(there["kind"].str.len()) == list(there["length"])
    assert set("".join(there["kind"])) <= set(head(form).classes)
    assert there["kind_score"].between(1 / 3, 1).all()
    assert found["kind"][0] == found["kind"][3]


@FORMS
def test_a_batch_says_what_each_protein_alone_is_told(form, monkeypatch):
    whole = predict(ODD, heads=[head(form)], model=backbone())
    for place, record in enumerate(ODD):
        alone = predict([record], heads=[head(form)], model=backbone())
        assert alone["kind"].fillna("")[0] == whole["kind"].fillna("")[place]
        np.testing.assert_allclose(
            alone["kind_score"].astype(float)[0], whole["kind_score"].astype(float)[place], atol=1.1e-4
        )
    monkeypatch.setattr(bioxfer.prediction, "_MATRICES_AT_ONCE", 2)
    pd.testing.assert_frame_equal(predict(ODD, heads=[head(form)], model=backbone()), whole)


def test_the_label_is_what_the_head_says_of_the_matrix():
    embedded = embed(ODD[:1], model=backbone(), per_residue=True)
    matrix = embedded.residues[0]
    found = predict(ODD[:1], heads=[head()], model=backbone()).iloc[0]
    chances = head().predict_proba(matrix)
    assert found["kind"] == head().predict(matrix)
    assert chances.shape == (15, 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert found["kind_score"] == pytest.approx(chances.max(axis=1).mean(), abs=5.1e-5)
    neighbour = head().nearest(embedded.vectors)[0]
    assert found["kind_nearest"] == f"{neighbour.id} {neighbour.similarity:.3f}"
    assert found["kind_flag"] == head().flag(neighbour.similarity)
    assert (neighbour.label, head().flag(float("nan"))) == ("", "")


def test_a_long_protein_is_labelled_through_its_windows_or_up_to_where_it_is_cut():
    long = ODD[4:]
    windowed = predict(long, heads=[head()], model=backbone()).iloc[0]
    assert (len(windowed["kind"]), "?" in windowed["kind"]) == (150, False)
    cut = predict(long, heads=[head()], model=backbone(), long="truncate").iloc[0]
    assert (cut["status"], cut["length"], len(cut["kind"])) == ("truncated", 150, 150)
    assert cut["kind"][WINDOW:] == "?" * (150 - WINDOW)
    assert "?" not in cut["kind"][:WINDOW]
    rows = predict(long, heads=[head()], model=backbone(), long="truncate", shape="long")
    assert "".join(rows["label"]) == cut["kind"]
    assert rows["score"].notna().sum() == WINDOW


def test_heads_for_proteins_and_for_residues_run_together():
    both = [protein_head(), head()]
    found = predict(ODD, heads=both, model=backbone(), probabilities=True)
    for one in both:
        alone = predict(ODD, heads=[one], model=backbone(), probabilities=True)
        pd.testing.assert_frame_equal(found[alone.columns], alone)


def test_a_long_table_has_a_row_for_each_residue():
    both = [protein_head(), head()]
    found = predict(ODD, heads=both, model=backbone(), shape="long")
    assert list(found.columns[4:]) == ["head", "position", "residue", "rank", "label", "score"]
    wide = predict(ODD, heads=both, model=backbone())
    for place, record in enumerate(ODD):
        rows = found[(found["id"] == record.id) & (found["head"] == "kind")]
        if not record.sequence:
            assert len(rows) == 1
            assert rows.iloc[0, 5:].isna().all()
            continue
        assert list(rows["position"]) == list(range(1, wide["length"][place] + 1))
        assert "".join(rows["residue"]) == record.sequence.upper().rstrip("*")
        assert "".join(rows["label"]) == wide["kind"][place]
        assert rows["rank"].isna().all()
        assert rows["score"].mean() == pytest.approx(wide["kind_score"][place], abs=1e-4)
    tastes = found[found["head"] == "taste"]
    assert tastes[["position", "residue"]].isna().all(axis=None)
    alone = predict(ODD, heads=[protein_head()], model=backbone(), shape="long")
    assert "position" not in alone.columns
    pd.testing.assert_frame_equal(tastes[alone.columns].reset_index(drop=True), alone, check_dtype=False)


def test_residues_are_asked_for_only_where_a_head_reads_them(monkeypatch):
    asked = []
    real = bioxfer.prediction.embed_records

    def spy(*arguments, per_residue, **options):
        asked.append(per_residue)
        return real(*arguments, per_residue=per_residue, **options)

    monkeypatch.setattr(bioxfer.prediction, "embed_records", spy)
    for heads in ([protein_head()], [head()], [protein_head(), head()]):
        predict(ODD[:1], heads=heads, model=backbone())
    assert asked == [False, True, True]


def test_a_foreign_backbone_or_layer_is_refused():
    with pytest.raises(FingerprintError, match="'kind' was trained on toy"):
        predict(["MKV"], heads=[head()], model=random_backbone(seed=1))
    with pytest.raises(FingerprintError, match=r"layer 2, and cannot read .*, layer 1"):
        head().check_backbone(backbone(), layer=1)
    with pytest.raises(FingerprintError, match=r"cannot read an array of shape \(4, 3\)"):
        head().logits(np.zeros((4, 3)))


# --- the head and its file --------------------------------------------------------------------------------


def test_a_convolution_is_what_torch_computes():
    import torch

    chance = np.random.default_rng(0)
    tensors = {
        "mean": chance.normal(size=4).astype(np.float32),
        "weight_in": chance.normal(size=(5, 7, 4)).astype(np.float32),
        "bias_in": chance.normal(size=5).astype(np.float32),
        "weight_out": chance.normal(size=(3, 5)).astype(np.float32),
        "bias_out": chance.normal(size=3).astype(np.float32),
    }
    for length in (1, 2, 3, 6, 20):
        x = chance.normal(size=(length, 4)).astype(np.float32)
        hidden = torch.nn.functional.conv1d(
            torch.from_numpy((x - tensors["mean"]).T[None].copy()),
            torch.from_numpy(tensors["weight_in"].transpose(0, 2, 1).copy()),
            torch.from_numpy(tensors["bias_in"]),
            padding=3,
        )[0].T
        wanted = torch.relu(hidden).numpy() @ tensors["weight_out"].T + tensors["bias_out"]
        np.testing.assert_allclose(run_residues("conv", tensors, x), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_trained_is_what_runs():
    """A batch of packed proteins gives in training what each protein gives alone afterwards."""
    import torch

    data, task = toy_set()
    mean, scale = bioxfer.residue_fitting._moments(data, np.arange(len(data)))
    chance = torch.Generator().manual_seed(0)
    form = {"width": 5, "hidden": 8}
    net = bioxfer.residue_fitting._Net("conv", form, task.n_outputs, mean, scale, chance)
    batches = bioxfer.residue_fitting._batches("conv", form, data, np.arange(len(data)), 100, chance)
    labels = [data.targets_of(np.array([place])) for place in range(len(data))]
    lengths = {}
    for (values, filled), wanted in batches:
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(bioxfer.residue_fitting, "DROPOUT", 0.0)
            outputs = net((values, filled)).numpy()
        real = filled.numpy() > 0
        start = 0
        while start < len(real) and real[start]:
            end = start + int(np.argmin(real[start:]))
            matrix = values[start:end].numpy()
            found = run_residues("conv", net.tensors(), matrix)
            np.testing.assert_allclose(outputs[start:end], found, rtol=1e-3, atol=1e-4)
            label = wanted[start:end].numpy()
            place = next(p for p, known in enumerate(labels) if np.array_equal(known, label))
            lengths[place] = end - start
            start = end + 2
    assert lengths == dict(enumerate(data.lengths.tolist()))


@FORMS
def test_a_saved_head_is_the_same_bit_by_bit(form, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    head(form).save(first)
    for load in (ResidueHead.load, read_head, load_head):
        found = load(first)
        assert isinstance(found, ResidueHead)
        found.save(second)
        assert first.read_bytes() == second.read_bytes()
    for name, tensor in head(form).tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)
    assert (found.task, found.index.ids, found.pool) == (head(form).task, head(form).index.ids, "mean")
    assert repr(found) == f"<ResidueHead kind: nos, {form} on toy layer 2, 40 training proteins>"
    assert isinstance(load_head(save_protein_head(tmp_path)), TrainedHead)


def save_protein_head(folder):
    protein_head().save(folder / "taste.safetensors")
    return folder / "taste.safetensors"


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "h.safetensors"
    head("conv").save(path)
    data = path.read_bytes()
    dice = random.Random(0)
    for at in [*range(0, 9), *dice.sample(range(9, len(data)), 60)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with pytest.raises(HeadFileError, match=r"h\.safetensors"):
            load_head(path)
    for size in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(HeadFileError):
            ResidueHead.load(path)
    with pytest.raises(HeadFileError, match="no task of residues"):
        ResidueHead.load(save_protein_head(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        ResidueHead.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mlp"}, "none of linear, conv"),
        ({"temperature": -1.0}, "not above 0"),
        ({"temperature": "1"}, "not a finite number"),
        ({"pool": "max"}, "is not 'mean'"),
        ({"layer": "2"}, "not of type int"),
        ({"format": 9}, "format 9"),
        ({"task": {"name": "residue-class", "classes": ["n", "os"]}}, "no task of residues"),
        ({"task": {"name": "residue-class", "classes": ["n", "o"]}}, "shape"),
        ({"task": {"name": "residue-class", "classes": ["o", "n", "s"]}}, "no task of residues"),
    ],
)
def test_a_file_whose_hash_is_right_and_whose_content_is_not_is_refused(tmp_path, change, message):
    assert_refused(tmp_path, message, change=change)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("head.weight_in", np.zeros((8, 2, 64), np.float32), "even width"),
        ("head.weight_in", np.full((8, 3, 64), np.nan, np.float32), "NaN"),
        ("head.weight_in", np.zeros((8, 3, 64), np.int32), "has the type"),
        ("head.bias_in", np.zeros(9, np.float32), "shape"),
        ("head.mean", np.zeros(9, np.float32), "shape"),
        ("head.strange", np.zeros(9, np.float32), "missing or foreign"),
        ("index.ids", np.frombuffer(b'["x"]', np.uint8).copy(), "1 ids for"),
        ("index.targets", np.ones(40, np.int32), "have labels"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, name, tensor, message):
    assert_refused(tmp_path, message, tensors={name: tensor})


def assert_refused(folder, message, *, change=None, tensors=None):
    from safetensors.numpy import save

    path = folder / "h.safetensors"
    head("conv").save(path)
    meta, arrays = read_container(path.read_bytes())
    del meta["sha256"]
    meta |= change or {}
    arrays |= tensors or {}
    meta["sha256"] = digest(meta, arrays)
    path.write_bytes(save(arrays, metadata={"bioxfer": to_json(meta)}))
    with pytest.raises(HeadFileError, match=message):
        ResidueHead.load(path)


# --- labels -----------------------------------------------------------------------------------------------


def test_classes_and_unresolved_residues():
    task = ResidueClasses.from_labels(["HHE?", "C-_H"])
    assert task.classes == ("C", "E", "H")
    assert task.encode("HE?C-_").tolist() == [2, 1, -1, 0, -1, -1]
    assert task.decode(np.array([2, 1, 0])) == "HEC"
    assert (task.digits, ResidueClasses(("1", "9")).digits.tolist()) == (None, [1, 9])
    with pytest.raises(LabelError, match="'x' at residue 3 is none of the classes CEH"):
        task.encode("HEx")
    with pytest.raises(LabelError, match="at least two classes, and the labels hold 'H'"):
        ResidueClasses.from_labels(["HHH", "H?H"])
    with pytest.raises(LabelError, match="no resolved residue"):
        ResidueClasses.from_labels(["??", ""])
    with pytest.raises(LabelError, match="cannot stand for a class"):
        ResidueClasses.from_labels(["HE E"])
    with pytest.raises(LabelError, match="64 classes at most"):
        ResidueClasses.from_labels(["".join(map(chr, range(200, 300)))])


def test_auto_tells_labels_of_residues_from_labels_of_proteins():
    assert look_like_residue_labels(["H" * 30, "E" * 40], [30, 40])
    assert not look_like_residue_labels(["H" * 30, "E" * 40], [30, 41])
    assert look_like_residue_labels(["H" * 30] * 19 + ["H"], [30] * 20)
    assert not look_like_residue_labels(["abc", "de"], [3, 2])
    assert not look_like_residue_labels([], [])


def test_a_label_of_the_wrong_length_names_its_record():
    records = proteins()
    records[3] = dataclasses.replace(records[3], label=records[3].label[:-1], source="t.csv", line=5)
    with pytest.raises(LabelError, match=r"'p3' \(t\.csv, line 5\): a label of \d+ characters does not fit"):
        train(records)
    with pytest.raises(LabelError, match="'p3'"):
        evaluate_on_records(head(), records, backbone(), cluster_by="kmer")
    short = [SequenceRecord("x", "MKV", label="on")]
    with pytest.raises(LabelError, match="a label of 2 characters does not fit a protein of 3"):
        train(short, task="residue-class")
    # the length that counts is that of the cleaned protein
    encode_labels([SequenceRecord("x", "mkv*", label="ons")])
    with pytest.raises(LabelError, match="'x' has no label"):
        encode_labels([SequenceRecord("x", "MKV")])


def test_one_class_is_none():
    records = [dataclasses.replace(r, label="o" * len(r.sequence)) for r in proteins()]
    with pytest.raises(LabelError, match="at least two classes"):
        train(records)


def test_a_class_that_only_held_out_proteins_have_is_refused():
    records = split_rows()
    held = next(r for r in records if r.split == "valid")
    records[records.index(held)] = dataclasses.replace(held, label="z" + held.label[1:])
    with pytest.raises(LabelError, match="class 'z' is that of no residue of the training part"):
        train(records, split="column")


# --- training ---------------------------------------------------------------------------------------------


def split_rows(count: int = 40) -> list[SequenceRecord]:
    words = ["train", "train_more", "dev", "valid", "train", "train", "test"]
    return [dataclasses.replace(r, split=words[n % 7]) for n, r in enumerate(proteins(count))]


def toy_set():
    records = proteins(12)
    task, codes = encode_labels(records)
    found = embed(records, model=backbone(), per_residue=True)
    rows = zip(found.ids, [r.sequence for r in records], found.residues, strict=True)
    data, kept = gather_residues(rows, codes, width=64)
    assert kept == list(range(12))
    return data, task


@FORMS
def test_training_beats_the_majority_and_says_so(form):
    card = head(form).card
    gain = card["baselines"]["majority"]["head_minus_baseline"]
    assert set(card["baselines"]) == {"majority", "residue", "window15"}
    assert gain["ci95"][0] > 0
    assert card["metrics"]["accuracy"]["value"] > 0.55
    assert set(card["metrics"]) == {"accuracy", "macro_f1", "protein_accuracy"}
    assert (card["task"], card["head"]["kind"], card["backbone"]["pool"]) == ("residue-class", form, "mean")
    assert card["split"]["train"] + card["split"]["dev"] + card["split"]["valid"] == 40
    assert sum(part["valid"] for part in (card["domain"]["far"], card["domain"]["in_domain"])) == 12
    assert (
        card["baselines"]["residue"]["metrics"]["accuracy"]["value"] == 1
    )  # the label is the residue's kind
    text = describe_card(card)
    assert "residue-class" in text
    assert "window15" in text


def test_auto_chooses_by_dev_loss():
    trained = train(proteins())
    candidates = trained.card["head"]["candidates"]
    assert [c["kind"] for c in candidates] == ["linear", "conv"]
    best = min(candidates, key=lambda c: c["loss"])
    assert (trained.kind, trained.card["head"]["setting"]) == (best["kind"], best["setting"])
    with pytest.raises(UsageError, match="'mlp' cannot label residues"):
        train(proteins(), head="mlp")
    with pytest.raises(UsageError, match="'conv' labels residues"):
        train_on_records(toy_proteins(), backbone(), name="x", head="conv")


def test_training_is_deterministic():
    again = train(proteins(), head="conv")
    for name, tensor in head("conv").tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert again.card == head("conv").card
    other = train(proteins(), head="conv", seed=1)
    assert not np.array_equal(other.tensors["weight_in"], again.tensors["weight_in"])


@pytest.mark.parametrize("refit", [True, False])
def test_dev_rows_choose_and_valid_rows_only_measure(refit):
    records = split_rows()
    trained = train(records, split="column", refit=refit)
    counted = trained.card["split"]
    assert (counted["dev_how"], counted["how"]) == ("given with the data", "given with the data")
    assert (counted["train"], counted["dev"], counted["valid"]) == (23, 6, 6)
    assert counted["leakage"]["test"] == 6
    changed = [dataclasses.replace(r, label=r.label[::-1]) if r.split == "valid" else r for r in records]
    other = train(changed, split="column", refit=refit)
    assert other.temperature == trained.temperature
    assert other.card["head"]["candidates"] == trained.card["head"]["candidates"]
    assert other.card["metrics"] != trained.card["metrics"]
    assert len(trained.index.ids) == (35 if refit else 23)
    if not refit:
        for name, tensor in trained.tensors.items():
            np.testing.assert_array_equal(other.tensors[name], tensor)


def test_a_column_without_valid_rows_is_refused():
    with pytest.raises(LabelError, match="no record's split begins with 'val'"):
        train([dataclasses.replace(r, split="train") for r in proteins()], split="column")


def test_random_rows_are_held_out_and_audited():
    card = train(proteins(), split="random", head="linear").card
    assert card["split"]["how"].startswith("random proteins, seed 0")
    assert card["split"]["leakage"]["test"] == card["split"]["valid"] == 12


def test_unresolved_residues_change_nothing():
    """What an unresolved residue would have been said to be counts in no loss and in no metric."""
    records = proteins()
    masked = [dataclasses.replace(r, label="?" + r.label[1:-1] + "-") for r in records]
    trained = train(masked, head="conv")
    counted = sum(sum(sides.values()) for sides in trained.card["labels"].values())
    assert counted == sum(len(r.sequence) - 2 for r in records)
    data, task = toy_set()
    data.targets[data.offsets[:-1]] = -1
    before = fit_residues(data, task, head="linear", train=np.arange(9), dev=np.arange(9, 12), seed=0)
    assert np.isfinite(before.temperature)
    dev = data.rows(np.arange(9, 12))
    unseen = dev[data.targets[dev] < 0]
    data.values[unseen] += 1  # a linear head sees each residue alone
    after = fit_residues(data, task, head="linear", train=np.arange(9), dev=np.arange(9, 12), seed=0)
    assert after.candidates == before.candidates
    rows = evaluate_on_records(head(), masked, backbone(), cluster_by="kmer")
    assert ("residues", str(counted), "", "") in rows


def test_proteins_without_vector_are_left_out_and_counted():
    records = [*proteins(), SequenceRecord("odd", "MKV1KKKKKK", label="onnnnnnnnn")]
    trained = train(records, head="linear", on_invalid="skip")
    assert trained.card["data"]["left_out_without_vector"] == 1
    assert "odd" not in trained.index.ids
    rows = evaluate_on_records(trained, records, backbone(), cluster_by="kmer", on_invalid="skip")
    assert ("left_out_without_vector", "1", "", "") in rows
    nothing = [SequenceRecord("odd", "MKV1KKKKKK", label="onnnnnnnnn")]
    with pytest.raises(InputError, match="none of 1 records could be embedded"):
        evaluate_on_records(trained, nothing, backbone(), cluster_by="kmer", on_invalid="skip")


def test_large_sets_are_compared_on_a_part_and_fitted_on_all(monkeypatch):
    data, task = toy_set()
    monkeypatch.setattr(bioxfer.residue_fitting, "PROBE", 100)
    seen = []
    real = bioxfer.residue_fitting._train

    def spy(kind, form, data, task, train, dev, *, seed):
        seen.append((kind, len(train)))
        return real(kind, form, data, task, train, dev, seed=seed)

    monkeypatch.setattr(bioxfer.residue_fitting, "_train", spy)
    fitted = fit_residues(data, task, train=np.arange(9), dev=np.arange(9, 12), seed=0)
    assert [kind for kind, _ in seen] == ["linear", "conv", fitted.kind]
    assert seen[0][1] < 9
    assert seen[-1][1] == 9


def test_a_second_fit_takes_the_steps_and_the_rates_that_were_chosen(monkeypatch):
    """Also where more residues would make another batch and another schedule."""
    data, task = toy_set()
    resolved = int((data.targets_of(np.arange(9)) >= 0).sum())
    monkeypatch.setattr(bioxfer.residue_fitting, "SMALL_BATCH", 16)
    monkeypatch.setattr(bioxfer.residue_fitting, "BATCH", resolved // 20 + 1)  # of all twelve alone
    rates, made = [], []
    real = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for form in ("linear", "conv"):
        rates.clear()
        fitted = fit_residues(data, task, head=form, train=np.arange(9), dev=np.arange(9, 12), seed=0)
        setting = fitted.setting
        assert setting["batch"] == 16
        assert 0 < setting["epochs"] <= setting["schedule"] == 20
        made = rates[: setting["steps"]]
        assert len(made) == setting["steps"] >= setting["epochs"]
        rates.clear()
        tensors, index = fitted.refit(data, np.arange(12), seed=0)
        assert len(rates) == setting["steps"]
        assert len(index.ids) == 12
        np.testing.assert_allclose(rates, made, atol=0.1 * made[0])
        assert np.diff(rates).max() <= 0
        assert not np.array_equal(tensors["bias" if form == "linear" else "bias_out"], 0)


def test_proteins_without_a_resolved_residue_are_no_side():
    data, task = toy_set()
    data.targets[data.rows(np.arange(9, 12))] = -1
    for train_side, dev, word in (
        (np.arange(9), np.arange(9, 12), "dev"),
        (np.arange(9, 12), np.arange(9), "tr"),
    ):
        with pytest.raises(LabelError, match=f"{word}.* proteins hold no resolved residue"):
            fit_residues(data, task, head="linear", train=train_side, dev=dev, seed=0)


def test_the_estimator_refuses_sides_without_a_resolved_residue():
    records = proteins(6)
    X = [r.sequence for r in records]
    estimator = ResidueClassifier(backbone(), head="linear", identity=None)
    for resolved in range(6):
        y = [r.label if n == resolved else "?" * len(r.label) for n, r in enumerate(records)]
        with pytest.raises(UsageError, match="proteins with a vector hold no resolved residue"):
            clone(estimator).fit(X, y)
    with pytest.raises(UsageError, match="'mlp' cannot label residues"):
        clone(estimator).set_params(head="mlp").fit(X, [r.label for r in records])


def test_a_form_that_labels_no_residues_is_refused_before_anything_is_embedded(monkeypatch):
    monkeypatch.setattr("bioxfer.residue_training.embed_records", None)
    with pytest.raises(UsageError, match="'mlp' cannot label residues"):
        train(proteins(), head="mlp")


def test_clusters_of_the_table_are_kept_in_training_and_judging():
    records = [dataclasses.replace(r, cluster=f"c{n // 2}") for n, r in enumerate(proteins())]
    card = train(records, head="linear").card
    assert card["split"]["clustered_by"] == "given"
    assert "identity" not in card["split"]
    assert "(by the table's own clusters)" in describe_card(card)
    rows = evaluate_on_records(head(), records, backbone(), cluster_by="kmer")
    assert ("clusters", "20", "", "") in rows


def test_relatives_alone_cannot_be_split():
    same = [dataclasses.replace(proteins(1)[0], id=f"p{n}") for n in range(6)]
    with pytest.raises(LabelError, match="homology clusters"):
        train(same)


# --- scores -----------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_text_books():
    rng = np.random.default_rng(0)
    task = ResidueClasses(tuple("1234"))
    lengths = rng.integers(5, 60, 50)
    groups = rng.integers(0, 20, 50)
    targets = rng.integers(-1, 4, lengths.sum())
    said = np.where(rng.random(len(targets)) < 0.6, np.maximum(targets, 0), rng.integers(0, 4, len(targets)))
    expected = said + rng.normal(size=len(said))
    scores = ResidueClassScores(task, targets, said, lengths, groups, expected=expected)
    found = scores.score(seed=0)
    seen = targets >= 0
    assert found["accuracy"]["value"] == pytest.approx((targets == said)[seen].mean())
    assert found["macro_f1"]["value"] == pytest.approx(f1_score(targets[seen], said[seen], average="macro"))
    owner = np.repeat(np.arange(50), lengths)
    each = [(targets == said)[seen & (owner == p)].mean() for p in range(50)]
    assert found["protein_accuracy"]["value"] == pytest.approx(np.mean(each))
    wanted = spearmanr(targets[seen], expected[seen]).statistic
    assert found["spearman"]["value"] == pytest.approx(wanted, abs=2e-3)
    for score in found.values():
        low, high = score["ci95"]
        assert low < score["value"] < high
    assert score_residue_gain(scores, scores, seed=0) == {
        "metric": "accuracy",
        "value": 0.0,
        "ci95": [0.0, 0.0],
    }
    alone = ResidueClassScores(task, targets, said, lengths, np.zeros(50)).score(seed=0)
    assert alone["accuracy"]["ci95"] is None


def test_digits_are_scored_by_rank():
    digits = str.maketrans("nos", "159")
    records = [dataclasses.replace(r, label=r.label.translate(digits)) for r in proteins()]
    card = train(records, head="linear", task="residue-class").card
    assert (
        card["metrics"]["spearman"]["value"] > card["baselines"]["majority"]["metrics"]["spearman"]["value"]
    )


def test_windows_stay_inside_their_protein():
    codes = window_codes(["MK", "V"])
    assert codes.shape == (3, 15)
    kinds = codes - np.arange(15) * 22
    assert kinds[0, 7:9].tolist() == [10, 8]
    assert (kinds[0, [*range(7), *range(9, 15)]] == 21).all()
    assert (kinds[2, [*range(7), *range(8, 15)]] == 21).all()


# --- the command line and Python --------------------------------------------------------------------------


def test_the_command_line_from_labels_to_table(tmp_path):
    weights, data = write_weights(tmp_path), tmp_path / "data.csv"
    data.write_text(table(proteins(), "id", "sequence", "label"))
    made = tmp_path / "kind.safetensors"
    trained = run(
        "train", data, "-o", made, "--model", weights, "--cluster-by", "kmer", "--head", "linear", "-q"
    )
    assert trained.code == 0, trained.err
    assert b"residue-class, linear head on toy" in trained.out
    shown = run("heads", "show", made, "--json")
    assert json.loads(shown.out)["task"] == "residue-class"
    fresh = tmp_path / "fresh.csv"
    fresh.write_text(table(proteins(5, seed=9), "id", "sequence", "label"))
    judged = run("evaluate", made, fresh, "--model", weights, "--cluster-by", "kmer", "-q")
    assert judged.code == 0, judged.err
    rows = dict(line.split(",")[:2] for line in judged.out.decode().splitlines())
    assert rows["proteins"] == "5"
    assert float(rows["accuracy"]) > 0.6
    source = tmp_path / "in.fasta"
    source.write_text(fasta(proteins(5, seed=9)))
    told = run("predict", source, "--head", made, "--model", weights, "-o", "-", "-q")
    assert told.code == 0, told.err
    cells = [line.split(",") for line in told.out.decode().splitlines()]
    assert cells[0] == [
        "id",
        "length",
        "status",
        "message",
        "kind",
        "kind_score",
        "kind_nearest",
        "kind_flag",
    ]
    assert [len(row[4]) for row in cells[1:]] == [int(row[1]) for row in cells[1:]]


def test_evaluation_counts_what_was_trained_on():
    rows = evaluate_on_records(head(), proteins(), backbone(), cluster_by="kmer")
    assert ("trained_on", "40", "", "") in rows
    strange = [dataclasses.replace(r, label="x" + r.label[1:]) for r in proteins(2)]
    with pytest.raises(LabelError, match="'p0': label character 'x' at residue 1"):
        evaluate_on_records(head(), strange, backbone(), cluster_by="kmer")
    blank = [dataclasses.replace(r, label="?" * len(r.label)) for r in proteins(2)]
    with pytest.raises(LabelError, match="nothing to score"):
        evaluate_on_records(head(), blank, backbone(), cluster_by="kmer")


def test_the_estimator_keeps_scikit_learns_rules(tmp_path):
    records = proteins(20)
    X, y = [r.sequence for r in records], [r.label for r in records]
    assert bioxfer.ResidueClassifier is ResidueClassifier
    estimator = clone(ResidueClassifier(backbone(), head="linear", identity=None, name="kind"))
    assert estimator.fit(X, y) is estimator
    said = estimator.predict(X)
    assert [len(label) for label in said] == [len(x) for x in X]
    chances = estimator.predict_proba(X)
    assert [each.shape for each in chances] == [(len(x), 3) for x in X]
    right = [a == b for one, other in zip(said, y, strict=True) for a, b in zip(one, other, strict=True)]
    assert estimator.score(X, y) == pytest.approx(np.mean(right))
    assert list(estimator.classes_) == ["n", "o", "s"]
    path = tmp_path / "kind.safetensors"
    estimator.save(path)
    assert ResidueClassifier.load(path, model=backbone()).predict(X) == said
    assert list(predict(records, heads=path, model=backbone())["kind"]) == said
    assert "nothing was held out" in describe_card(estimator.head_.card)
    as_records = clone(estimator).fit(records, y, groups=np.arange(20))
    assert as_records.predict(records) == said
    with pytest.raises(LabelError, match="does not fit"):
        clone(estimator).fit(X, y[1:] + y[:1])
    with pytest.raises(UsageError, match="19 labels do not fit 20 proteins"):
        clone(estimator).fit(X, y[1:])
    with pytest.raises(UsageError, match="one string"):
        clone(estimator).fit(X[0], y)
    with pytest.raises(InputError, match="have no vector"):
        estimator.predict([*X, ""])
    estimator.set_params(layer=1)
    with pytest.raises(UsageError, match="layer 1 is not"):
        estimator.predict(X)
    with pytest.raises(LabelError, match="nothing to score"):
        as_records.score(X, ["?" * len(x) for x in X])
