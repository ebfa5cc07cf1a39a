"""Families recognise relatives of training proteins, speak for their labels only, and survive their file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toys import backbone

from bioxfer.cards import describe_card
from bioxfer.errors import HeadFileError, UsageError
from bioxfer.families import FamilyMemory
from bioxfer.heads import TrainedHead
from bioxfer.prediction import predict
from bioxfer.sequences import SequenceRecord
from bioxfer.training import evaluate_on_records, train_on_records

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def relatives(rng: np.random.Generator, count: int, *, changed: float = 0.1) -> list[str]:
    """Proteins that descend from one, each with this share of its residues drawn anew."""
    ancestor = rng.integers(20, size=200)
    fates = rng.random((count, 200)) < changed
    return ["".join(LETTERS[np.where(fate, rng.integers(20, size=200), ancestor)]) for fate in fates]


@pytest.fixture(scope="module")
def proteins() -> tuple[list[str], list[int], list[int]]:
    """Six families of five, three labels; the label is that of two families each."""
    rng = np.random.default_rng(0)
    families = [relatives(rng, 5) for _ in range(6)]
    groups = [number for number in range(6) for _ in range(5)]
    return [p for family in families for p in family], [g % 3 for g in groups], groups


def train(proteins, *, left_out: int = 4) -> FamilyMemory:
    """Fit on all but one member of each family."""
    kept = [i for i in range(30) if i % 5 != left_out]
    columns = [[column[i] for i in kept] for column in proteins]
    memory = FamilyMemory.fit(columns[0], np.array(columns[1]), columns[2], n_outputs=4, weight=0.5)
    assert memory is not None
    return memory


def test_a_relative_gets_the_label_of_its_family(proteins):
    asked = [proteins[0][i] for i in range(4, 30, 5)]
    evidence = train(proteins).evidence(asked)
    assert evidence.shape == (6, 4)
    assert evidence.argmax(1).tolist() == [proteins[1][i] for i in range(4, 30, 5)]
    assert (evidence.max(1) > 4).all()


def test_nothing_speaks_against_a_label_and_a_label_without_family_has_no_evidence(proteins):
    stranger = "".join(np.random.default_rng(7).choice(LETTERS, 150))
    evidence = train(proteins).evidence([stranger, "", "MK"])
    assert (evidence >= 0).all()
    assert (evidence[:, 3] == 0).all()
    assert evidence.max() < 2.5
    assert (evidence[1:] == 0).all()


def test_a_protein_does_not_depend_on_the_others_asked_about(proteins):
    memory = train(proteins)
    together = memory.evidence(proteins[0])
    alone = np.concatenate([memory.evidence([p]) for p in proteins[0]])
    np.testing.assert_array_equal(together, alone)


def test_a_cluster_of_two_labels_is_two_families():
    rng = np.random.default_rng(1)
    kin = relatives(rng, 4, changed=0.1)
    memory = FamilyMemory.fit(kin, np.array([0, 0, 1, 1]), [0, 0, 0, 0], n_outputs=2)
    assert memory is not None
    assert memory.targets.tolist() == [0, 1]


def test_without_two_relatives_there_is_no_memory(proteins):
    sequences = [proteins[0][i] for i in range(0, 30, 5)]
    assert FamilyMemory.fit(sequences, np.arange(6) % 3, np.arange(6), n_outputs=3) is None


def test_no_word_of_a_single_protein_is_kept():
    """Two relatives that share one half: the words of the other halves are not remembered."""
    rng = np.random.default_rng(2)
    shared, *own = ("".join(rng.choice(LETTERS, 120)) for _ in range(3))
    memory = FamilyMemory.fit([shared + own[0], shared + own[1]], np.array([0, 0]), [0, 0], n_outputs=2)
    assert memory is not None
    known, first, second = memory.evidence([shared, *own])[:, 0]
    assert known > 10
    assert max(first, second) < 0.5


def test_it_comes_back_from_its_tensors(proteins):
    memory = train(proteins)
    again = FamilyMemory.from_tensors(memory.to_tensors(), n_outputs=4)
    np.testing.assert_array_equal(again.evidence(proteins[0]), memory.evidence(proteins[0]))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("targets", None, "lacks its targets"),
        ("weight", np.array(-1.0), "no number of 0 or more"),
        ("weight", np.array(np.nan), "no number of 0 or more"),
        ("targets", np.full(6, 4), "outside the 4 classes"),
        ("targets", np.zeros(2, dtype=np.int64), "no targets of 6 families"),
        ("words.codes", None, "codes"),
    ],
)
def test_damaged_tensors_are_refused(proteins, name, value, told):
    tensors = train(proteins).to_tensors()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(HeadFileError, match=told):
        FamilyMemory.from_tensors(tensors, n_outputs=4)


# Heads with families.


def labelled(*, per_family: int = 5) -> list[SequenceRecord]:
    """Families in which the label is no matter of composition: only relatives tell it."""
    rng = np.random.default_rng(5)
    records = []
    for family in range(24):
        for number, residues in enumerate(relatives(rng, per_family)):
            # every family has a member in each part, as random splits of real tables have
            split = ("train", "train", "train", "dev", "valid")[number]
            label = ("near", "there", "far")[family % 3]
            records.append(SequenceRecord(f"f{family}-{number}", residues, label=label, split=split))
    return records


@pytest.fixture(scope="module")
def trained():
    options = {"name": "family", "split": "column", "refit": False, "head": "linear", "cluster_by": "kmer"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioxfer.solvers.PENALTIES", (0.01,))
        return train_on_records(labelled(), backbone(), families=True, abstain=0.05, **options)


def test_a_head_with_families_knows_relatives_and_its_card_says_so(trained):
    assert trained.families is not None
    told = trained.card["families"]
    assert told["count"] == 24
    assert told["weight"] == trained.families.weight > 0
    assert told["gain"]["value"] >= 0
    assert trained.card["metrics"]["accuracy"]["value"] > 0.9
    assert "families" in describe_card(trained.card)


def test_it_comes_back_from_its_file_and_predicts_the_same_alone_and_together(trained, tmp_path):
    trained.save(tmp_path / "family.safetensors")
    again = TrainedHead.load(tmp_path / "family.safetensors")
    records = [*labelled()[:12], SequenceRecord("empty", ""), SequenceRecord("alien", "W" * 50)]
    table = predict(records, heads=[again], model=backbone(), probabilities=True)
    pd.testing.assert_frame_equal(
        table, predict(records, heads=[trained], model=backbone(), probabilities=True)
    )
    right = [said == record.label for said, record in zip(table["family"], records[:12], strict=False)]
    assert sum(right) >= 10
    assert set(table["family"][:12][np.logical_not(right)]) <= {"unknown"}
    assert pd.isna(table["family"][12])
    for place, record in enumerate(records):
        alone = predict([record], heads=[again], model=backbone(), probabilities=True)
        assert alone["family"][0] == table["family"][place] or place == 12
    ranked = predict(records, heads=[again], model=backbone(), shape="long")
    best = ranked[(ranked["rank"] == 1) & ranked["id"].str.startswith("f")]
    assert best["label"].tolist() == [record.label for record in records[:12]]


def test_evaluation_uses_the_families_too(trained):
    rows = dict(row[:2] for row in evaluate_on_records(trained, labelled(), backbone(), cluster_by="kmer"))
    assert float(rows["accuracy"]) > 0.9
    assert 0 < float(rows["answered"]) <= 1


def test_vectors_alone_are_refused_in_one_sentence(trained):
    features = np.zeros((2, trained.n_features), dtype=np.float32)
    with pytest.raises(UsageError, match="give sequences, 2 of them"):
        trained.predict(features)


def test_a_damaged_memory_in_a_head_is_refused(trained, tmp_path):
    broken = replace(trained.families, targets=trained.families.targets + 3)
    replace(trained, families=broken).save(tmp_path / "h.safetensors")
    with pytest.raises(HeadFileError, match="outside the 3 classes"):
        TrainedHead.load(tmp_path / "h.safetensors")


@pytest.mark.parametrize(
    ("change", "options", "error", "told"),
    [
        ({"split": "train"}, {}, UsageError, "rows of the split dev, and there are none"),
        ({"label": "41.5"}, {"task": "regression"}, UsageError, "a regression has none"),
    ],
)
def test_families_need_a_selection_part_and_classes(change, options, error, told):
    records = [
        replace(record, **change) if record.split == "dev" or "label" in change else record
        for record in labelled()
    ]
    if "label" in change:
        records = [replace(record, label=f"{40 + i}.5") for i, record in enumerate(records)]
    with pytest.raises(error, match=told):
        train_on_records(
            records, backbone(), name="x", split="column", head="linear", families=True, cluster_by="kmer",
            **options,
        )  # fmt: skip


def test_options_of_families_are_refused_before_anything_is_embedded(monkeypatch):
    monkeypatch.setattr("bioxfer.represented.embed_records", None)
    with pytest.raises(UsageError, match="rows of the split dev, and there are none"):
        train_on_records(labelled(), backbone(), name="x", families=True)


def test_of_too_many_families_the_largest_are_kept(monkeypatch):
    rng = np.random.default_rng(3)
    sizes = (2, 4, 3, 3, 2)
    sequences = [residues for size in sizes for residues in relatives(rng, size)]
    groups = np.repeat(np.arange(5), sizes)
    monkeypatch.setattr("bioxfer.families.MOST_CLASSES", 3)
    memory = FamilyMemory.fit(sequences, groups, groups, n_outputs=5)
    assert memory.targets.tolist() == [1, 2, 3]
    monkeypatch.setattr("bioxfer.families.MOST_CLASSES", 2)
    assert FamilyMemory.fit(sequences, groups, groups, n_outputs=5).targets.tolist() == [1, 2]


def test_the_scikit_learn_face_of_a_head_with_families_predicts_as_the_table_does(trained, tmp_path):
    from bioxfer.estimators import SequenceClassifier

    trained.save(tmp_path / "family.safetensors")
    classifier = SequenceClassifier.load(tmp_path / "family.safetensors", model=backbone())
    records = labelled()[:10]
    table = predict(records, heads=[trained], model=backbone(), probabilities=True)
    texts = [f" {record.sequence.lower()}*" for record in records]
    for X in (records, texts):
        chances = classifier.predict_proba(X)
        wanted = table[[f"family_p_{label}" for label in trained.labels]].to_numpy()
        np.testing.assert_allclose(chances, wanted, atol=1e-3)
        assert classifier.predict(X).tolist() == [trained.labels[n] for n in wanted.argmax(axis=1)]


def test_a_head_that_reads_first_residues_cuts_the_sequences_itself(trained):
    short = replace(trained, first=30)
    features = np.zeros((3, trained.n_features), dtype=np.float32)
    whole = [record.sequence for record in labelled()[:3]]
    np.testing.assert_array_equal(
        short.logits(features, whole), trained.logits(features, [text[:30] for text in whole])
    )
