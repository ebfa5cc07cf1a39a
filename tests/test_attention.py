"""Light attention: the learned pooling alone, and as a head from training to the table."""

from __future__ import annotations

import functools
import io

import numpy as np
import pandas as pd
import pytest
import torch
from test_residues import head as residue_head
from toys import WINDOW, backbone, fasta, proteins, run, table, write_weights
from toys import head as plain_head

import bioxfer.attention
import bioxfer.attention_fitting
from bioxfer.attention import AttentionPool
from bioxfer.attention_fitting import Matrices, fit_attention, gather_matrices
from bioxfer.attention_training import AttentionForm, attend
from bioxfer.cards import describe_card
from bioxfer.embedding import embed
from bioxfer.errors import FingerprintError, HeadFileError, LabelError, UsageError
from bioxfer.estimators import SequenceClassifier
from bioxfer.head_training import fit_head
from bioxfer.headfile import digest, read_container, to_json
from bioxfer.heads import TrainedHead
from bioxfer.prediction import predict
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import task_from_name
from bioxfer.training import evaluate_on_records, train_on_records

# Few steps of a small network: a short path is a quick test.
SHORT = {"STEPS": 60, "CHANNELS": 8, "HIDDEN": 8, "WIDTHS": (3,), "EPOCHS": (2, 8)}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for key, value in SHORT.items():
        monkeypatch.setattr(bioxfer.attention_fitting, key, value)


def motifs(count: int, *, seed: int = 0) -> tuple[Matrices, list[str]]:
    """Noise with two marks side by side: their order tells the label, and their mean says nothing."""
    dice = np.random.default_rng(seed)
    mark = np.array([3, -3], dtype=np.float32)
    rows = []
    for number in range(count):
        matrix = dice.normal(size=(dice.integers(15, 40), 6)).astype(np.float32)
        place = dice.integers(0, len(matrix) - 1)
        sign = 1 if number % 2 else -1
        matrix[place, :2], matrix[place + 1, :2] = sign * mark, -sign * mark
        rows.append(matrix)
    return gather_matrices(rows, most=sum(map(len, rows))), ["ab"[n % 2] for n in range(count)]


def pool(*, deep: int = 6, channels: int = 4, width: int = 5) -> AttentionPool:
    dice = np.random.default_rng(1)
    shapes = ((deep,), (channels, width, deep), (channels, width, deep), (channels,))
    return AttentionPool(*(dice.normal(size=shape).astype(np.float32) for shape in shapes))


def train(records, **changes):
    options = {
        "name": "taste", "data_source": "toys", "head": "light-attention", "pool": "mean", "valid": 0.3,
        "cluster_by": "kmer",
    }  # fmt: skip
    return train_on_records(records, backbone(), **options | changes)


@functools.cache
def head(refit: bool = True, first: int | None = None) -> TrainedHead:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SHORT.items():
            patch.setattr(bioxfer.attention_fitting, key, value)
        return train(proteins(), refit=refit, first=first)


def matrices(records) -> list[np.ndarray]:
    return embed(records, model=backbone(), per_residue=True).residues


# --- the pooling ----------------------------------------------------------------------------------------


def test_the_pooling_is_what_its_words_say():
    own, matrix = pool(width=3), np.random.default_rng(2).normal(size=(7, 6)).astype(np.float32)
    padded = np.vstack([np.zeros((1, 6)), matrix - own.mean, np.zeros((1, 6))])  # beyond the ends: the mean
    values = np.array([(own.value * padded[i : i + 3]).sum((1, 2)) + own.bias for i in range(7)])
    scores = np.array([(own.attention * padded[i : i + 3]).sum((1, 2)) for i in range(7)])
    weights = np.exp(scores) / np.exp(scores).sum(0)
    expected = np.concatenate([(weights * values).sum(0), values.max(0)])
    np.testing.assert_allclose(own.pool(matrix), expected, rtol=1e-5, atol=1e-5)
    assert own.n_features == len(expected)


@pytest.mark.parametrize("block", [1, 2, 5, 4096])
def test_long_proteins_are_read_in_blocks_without_seams(monkeypatch, block):
    own, matrix = pool(), np.random.default_rng(2).normal(size=(23, 6)).astype(np.float32)
    expected = own.pool(matrix)
    monkeypatch.setattr(bioxfer.attention, "_BLOCK", block)
    np.testing.assert_allclose(own.pool(matrix), expected, rtol=1e-5, atol=1e-6)


def test_large_numbers_overflow_nothing():
    own = pool()
    assert np.isfinite(own.pool(np.full((30, 6), 1e4, dtype=np.float32))).all()


def test_numpy_runs_what_torch_trained():
    data, _labels = motifs(40)
    dice = np.random.default_rng(3)
    rows = [data[place] * 5 + 2 for place in range(len(data))] + [dice.normal(size=(1, 6)).astype(np.float32)]
    data = gather_matrices(rows, most=10_000)
    mean, scale = bioxfer.attention_fitting._moments(data, np.arange(40))
    net = bioxfer.attention_fitting._Net(mean, scale, 5, 2, torch.Generator().manual_seed(0))
    own, _ = net.tensors()
    with torch.no_grad():
        together = net.pool(bioxfer.attention_fitting._pad(data, np.arange(41), mean, scale)).numpy()
    alone = np.stack([own.pool(data[place]) for place in range(41)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


def test_a_protein_is_not_changed_by_its_company():
    data, _ = motifs(30)
    mean, scale = bioxfer.attention_fitting._moments(data, np.arange(30))
    net = bioxfer.attention_fitting._Net(mean, scale, 5, 2, torch.Generator().manual_seed(0))
    whole = net.run(data, np.arange(30))
    for place in (0, 7, 29):
        np.testing.assert_allclose(net.run(data, np.array([place]))[0], whole[place], rtol=1e-5, atol=1e-6)


def test_batches_hold_every_protein_once_and_no_more_than_they_may():
    lengths = np.random.default_rng(0).integers(1, 300, size=5000)
    places = np.arange(100, 5000)
    for chance in (None, torch.Generator().manual_seed(0)):
        found = bioxfer.attention_fitting._batches(lengths, places, 1000, chance)
        assert sorted(np.concatenate(found).tolist()) == places.tolist()
        assert all(lengths[part].max() * len(part) <= 1000 for part in found)


@pytest.mark.parametrize(
    ("matrix", "error", "told"),
    [
        (np.zeros((3, 5)), FingerprintError, r"width 6 and cannot read an array of shape \(3, 5\)"),
        (np.zeros(6), FingerprintError, r"shape \(6,\)"),
        (np.zeros((0, 6)), UsageError, "0 residues has no vector"),
    ],
)
def test_what_is_no_matrix_of_residues_is_refused(matrix, error, told):
    with pytest.raises(error, match=told):
        pool().pool(matrix)


def test_without_residues_there_is_a_word():
    with pytest.raises(UsageError, match="per_residue=True"):
        pool().extend(np.zeros(3), None)


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("value", None, "missing or foreign: value"),
        ("more", np.zeros(3), "missing or foreign: more"),
        ("bias", np.zeros(4), "bias holds what are no finite float32 numbers"),
        ("mean", np.full(6, np.nan, dtype=np.float32), "mean holds"),
        ("mean", np.zeros(5, dtype=np.float32), r"mean of shape \(5,\) is not \(6,\)"),
        ("attention", np.zeros((4, 3, 6), dtype=np.float32), "attention of shape"),
        ("value", np.zeros((4, 4, 6), dtype=np.float32), "no convolution of odd width"),
        ("value", np.zeros((4, 6), dtype=np.float32), "no convolution of odd width"),
    ],
)
def test_arrays_that_are_no_pooling_are_refused(name, array, told):
    arrays = pool().to_tensors()
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(HeadFileError, match=told):
        AttentionPool.from_tensors(arrays)


# --- training -------------------------------------------------------------------------------------------


def test_a_motif_is_learnt_that_the_mean_does_not_show(monkeypatch):
    for key, value in {
        "STEPS": 600,
        "CHANNELS": 32,
        "HIDDEN": 32,
        "EPOCHS": (6, 30),
        "WIDTHS": (1, 3),
    }.items():
        monkeypatch.setattr(bioxfer.attention_fitting, key, value)
    data, labels = motifs(360)
    task = task_from_name("auto", labels)
    y = task.encode(labels)
    train, dev, test = np.arange(240), np.arange(240, 300), np.arange(300, 360)
    fitted = fit_attention(data, y, task, train=train, dev=dev, seed=0)
    assert fitted.setting["width"] == 3
    assert [candidate["width"] for candidate in fitted.candidates] == [1, 3]
    form = AttentionForm(fitted, 0)
    vectors = np.stack([fitted.pool.pool(data[place]) for place in range(360)])
    hidden = np.maximum(vectors @ form.tensors()["weight_in"][0].T + form.tensors()["bias_in"][0], 0)
    outputs = hidden @ form.tensors()["weight_out"][0].T + form.tensors()["bias_out"][0]
    assert (outputs.argmax(1) == y)[test].mean() > 0.9
    means = np.stack([data[place].mean(0, dtype=np.float32) for place in range(360)])
    plain = fit_head(means[:300], labels[:300], head="linear", folds=3)
    assert (plain.outputs(means[test]).argmax(1) == y[test]).mean() < 0.75


def test_the_same_seed_gives_the_same_weights_and_moves_no_other_chance():
    data, labels = motifs(40)
    task = task_from_name("auto", labels)
    found = []
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for seed in (1, 1, 2):
        fitted = fit_attention(
            data, task.encode(labels), task, train=np.arange(30), dev=np.arange(30, 40), seed=seed
        )
        found.append(fitted.pool.value)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_a_fit_can_be_repeated_on_other_proteins():
    data, labels = motifs(40)
    task = task_from_name("auto", labels)
    y = task.encode(labels)
    first = fit_attention(data, y, task, train=np.arange(30), dev=np.arange(30, 40))
    again = fit_attention(data, y, task, train=np.arange(40), dev=None, setting=first.setting)
    assert again.setting == first.setting
    assert np.isnan(again.loss)


def test_a_fit_needs_proteins_to_stop_by():
    data, labels = motifs(6)
    task = task_from_name("auto", labels)
    with pytest.raises(LabelError, match="6 training and 0 dev proteins"):
        fit_attention(data, task.encode(labels), task, train=np.arange(6), dev=np.arange(0))


def test_sides_are_those_of_any_other_head_and_dev_is_cut_off_training():
    data, labels = motifs(60)
    groups = np.repeat(np.arange(30), 2)
    found = attend(np.zeros((60, 3), dtype=np.float32), data, labels, groups, valid=0.2)
    sides = np.array(found.sides)
    expected = bioxfer.clusters.homology_split(
        groups, valid=0.2, y=task_from_name("auto", labels).encode(labels)
    )
    assert (sides == "valid").tolist() == (expected == "valid").tolist()
    for part in ("train", "dev"):
        assert not set(groups[sides == part]) & set(groups[sides != part])
    assert "15% of the training part" in found.dev_how


# --- as a head ------------------------------------------------------------------------------------------


def test_a_head_says_what_it_reads():
    own = head()
    assert own.attention is not None
    assert own.n_features == 64 + 2 * SHORT["CHANNELS"]
    assert "mean and light attention" in repr(own)
    text = describe_card(own.card)
    assert "mean and light attention" in text
    assert "to choose by" in text
    told = own.card["head"]["attention"]
    assert told["setting"]["width"] == 3
    assert told["setting"]["steps"] > 0
    assert own.card["split"]["dev_how"] == "whole homology clusters, 15% of the training part"
    kinds = {candidate["kind"] for candidate in own.card["head"]["candidates"]}
    assert kinds == {"linear", "mlp", "nearest", "blend"}


def test_refitted_weights_know_all_proteins_and_numbers_stay():
    whole, part = head(), head(refit=False)
    assert whole.card["metrics"] == part.card["metrics"]
    assert whole.card["head"]["weights_fitted_on"] == "train, dev, valid"
    assert part.card["head"]["weights_fitted_on"] == "train"
    assert len(whole.index.ids) == 40
    assert len(part.index.ids) == part.card["split"]["train"]
    assert not np.array_equal(whole.attention.value, part.attention.value)


def test_a_saved_head_says_the_same_to_the_last_bit(tmp_path):
    path = tmp_path / "taste.safetensors"
    head().save(path)
    again = TrainedHead.load(path)
    records = proteins(12, seed=1)
    found = embed(records, model=backbone(), per_residue=True)
    said = []
    for own in (head(), again):
        joined = np.stack([own.join(v, m) for v, m in zip(found.vectors, found.residues, strict=True)])
        said.append(own.logits(joined).tobytes())
    assert said[0] == said[1]
    again.save(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_a_plain_head_joins_nothing():
    vector = np.arange(64, dtype=np.float32)
    assert np.array_equal(plain_head().join(vector), vector)


def test_vectors_without_light_attention_are_refused():
    with pytest.raises(FingerprintError, match=r"mean and light attention\) and cannot read .*\(2, 64\)"):
        head().logits(np.zeros((2, 64)))


def damage(path, change) -> None:
    """Change the tensors of a head file, and state the hash that they then have."""
    from safetensors.numpy import save

    header, tensors = read_container(path.read_bytes())
    header.pop("sha256")
    change(tensors)
    header["sha256"] = digest(header, tensors)
    path.write_bytes(save(tensors, metadata={"bioxfer": to_json(header)}))


def test_a_damaged_pooling_is_refused(tmp_path):
    path = tmp_path / "taste.safetensors"
    head().save(path)
    damage(path, lambda tensors: tensors.pop("attention.bias"))
    with pytest.raises(HeadFileError, match="missing or foreign: bias"):
        TrainedHead.load(path)
    head().save(path)
    wide = pool(deep=64, channels=40)
    damage(path, lambda tensors: tensors.update({f"attention.{n}": t for n, t in wide.to_tensors().items()}))
    with pytest.raises(HeadFileError, match="80 numbers of light attention do not fit vectors of 80"):
        TrainedHead.load(path)


@pytest.mark.parametrize("first", [None, 15])
def test_a_table_is_what_python_says(first):
    own = head(first=first)
    records = [*proteins(8, seed=1), SequenceRecord("empty", ""), SequenceRecord("long", "MAILVFWGDE" * 15)]
    told = predict(records, heads=[own], model=backbone(), probabilities=True)
    assert told["id"].tolist() == [record.id for record in records]
    assert told["taste"].isna().tolist() == [record.id == "empty" for record in records]
    found = embed(records[:8], model=backbone(), per_residue=True, first=first)
    joined = np.stack([own.join(v, m) for v, m in zip(found.vectors, found.residues, strict=True)])
    assert told["taste"].tolist()[:8] == [decision.label for decision in own.predict(joined)]
    np.testing.assert_allclose(
        told[["taste_p_oily", "taste_p_salty"]][:8].astype(float), own.predict_proba(joined), atol=1e-4
    )


def test_company_and_order_change_no_row():
    records = [*proteins(8, seed=1), SequenceRecord("long", "MAILVFWGDE" * (WINDOW // 4))]
    whole = predict(records, heads=[head()], model=backbone())
    turned = predict(records[::-1], heads=[head()], model=backbone())[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(whole, turned, atol=2e-4)


def test_it_stands_beside_other_heads():
    records = proteins(6, seed=1)
    other, residues = plain_head("plain"), residue_head()
    short = head(first=15)
    short.name = "short"
    try:
        together = predict(records, heads=[head(), other, residues, short], model=backbone())
        alone = [
            predict(records, heads=[each], model=backbone()) for each in (head(), other, residues, short)
        ]
    finally:
        short.name = "taste"
    for each in alone:
        pd.testing.assert_frame_equal(together[list(each.columns)], each, atol=2e-4)


def test_evaluation_reads_the_same_residues():
    own = head(refit=False)
    rows = {row[0]: row[1] for row in evaluate_on_records(own, proteins(40), backbone(), cluster_by="kmer")}
    assert rows["proteins"] == "40"
    assert float(rows["accuracy"]) > 0.8


def test_numbers_and_several_labels_are_learnt_too():
    records = proteins()
    shares = [SequenceRecord(r.id, r.sequence, label=f"{r.sequence.count('A'):d}.5") for r in records]
    own = train(shares, task="regression")
    assert own.task.name == "regression"
    assert np.isfinite(own.card["metrics"]["spearman"]["value"])
    several = [
        SequenceRecord(r.id, r.sequence, label=(r.label or "") + (";long" if len(r.sequence) > 35 else ""))
        for r in records
    ]
    own = train(several, task="multilabel")
    assert own.labels == ("long", "oily", "salty")
    assert predict(records[:3], heads=[own], model=backbone())["taste"].notna().all()


def test_a_protein_without_a_vector_is_left_out_and_counted():
    records = [*proteins(), SequenceRecord("empty", "", label="oily")]
    own = train(records)
    assert own.card["data"]["left_out_without_vector"] == 1
    assert "empty" not in own.index.ids


def test_families_are_no_part_of_it():
    with pytest.raises(UsageError, match="leave families out"):
        train(proteins(), families=True)


def test_too_few_relatives_are_named():
    records = [SequenceRecord(r.id, r.sequence, label=r.label, cluster="one") for r in proteins(8)]
    with pytest.raises(LabelError, match="relatives of each other"):
        train(records)


def test_the_command_line_trains_and_predicts(tmp_path):
    weights = write_weights(tmp_path)
    data, out = tmp_path / "data.csv", tmp_path / "taste.safetensors"
    data.write_text(table(proteins(), "id", "sequence", "label"))
    ran = run(
        "train", data, "-o", out, "--head", "light-attention", "--model", weights, "--pool", "mean",
        "--cluster-by", "kmer", "-v",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "light attention of width 3, epoch 1" in ran.err
    assert b"mean and light attention" in ran.out
    few = tmp_path / "few.fasta"
    few.write_text(fasta(proteins(5, seed=2)))
    ran = run("predict", few, "-o", "-", "--head", out, "--model", weights)
    assert ran.code == 0, ran.err
    rows = pd.read_csv(io.BytesIO(ran.out))
    assert rows["taste"].isin(["oily", "salty"]).all()
    assert len(rows) == 5
    assert TrainedHead.load(out).card["head"]["attention"]["channels"] == SHORT["CHANNELS"]


def test_the_estimator_loads_it(tmp_path):
    path = tmp_path / "taste.safetensors"
    head().save(path)
    records = proteins(6, seed=1)
    told = predict(records, heads=[head()], model=backbone())
    loaded = SequenceClassifier.load(path, model=backbone())
    assert loaded.predict([record.sequence for record in records]).tolist() == told["taste"].tolist()
