"""Training from labelled records: honest splits, a card that says so, the same file every time."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from toys import backbone, fasta, head, one_sentence, proteins, run, table, write_weights

from bioxfer.cards import describe_card
from bioxfer.errors import FingerprintError, InputError, LabelError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord
from bioxfer.training import evaluate_on_records, read_labelled, train_on_records


@pytest.fixture(autouse=True)
def _short_path(monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))  # a short path is a quick test


def train(records, **changes):
    options = {"name": "taste", "head": "linear", "pool": "mean", "valid": 0.3, "cluster_by": "kmer"}
    return train_on_records(records, backbone(), **(options | changes))


def with_splits(*splits: str) -> list[SequenceRecord]:
    return [
        SequenceRecord(r.id, r.sequence, label=r.label, split=splits[n // 2 % len(splits)])
        for n, r in enumerate(proteins())
    ]


# Reading.


def test_labels_come_from_a_file_beside_the_sequences_or_from_the_table(tmp_path):
    records = proteins(4)
    (tmp_path / "in.fasta").write_text(fasta(records))
    (tmp_path / "labels.csv").write_text(table(records, "id", "label"))
    (tmp_path / "all.csv").write_text(table(records, "id", "sequence", "label"))
    beside = read_labelled(tmp_path / "in.fasta", tmp_path / "labels.csv")
    within = read_labelled(tmp_path / "all.csv", None)
    assert [(r.id, r.sequence, r.label) for r in beside] == [(r.id, r.sequence, r.label) for r in records]
    assert [(r.id, r.sequence, r.label) for r in within] == [(r.id, r.sequence, r.label) for r in records]


def test_records_without_a_label_are_counted_and_named(tmp_path, caplog):
    records = proteins(4)
    (tmp_path / "labels.csv").write_text("id,label\np0,oily\np1,salty\np9,oily\n")
    (tmp_path / "in.fasta").write_text(fasta(records))
    (tmp_path / "all.csv").write_text("id,sequence,label\na,MKV,x\nb,MLL,\n")
    with caplog.at_level(logging.INFO, logger="bioxfer"):
        assert len(read_labelled(tmp_path / "in.fasta", tmp_path / "labels.csv")) == 2
        assert [r.id for r in read_labelled(tmp_path / "all.csv", None)] == ["a"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "2 records without a label (p2, p3)" in caplog.text
    assert "1 label without a record (p9)" in caplog.text
    assert "1 of 2 records have no label (b)" in caplog.text


def test_f40_no_label_at_all_is_an_error(tmp_path):
    (tmp_path / "in.fasta").write_text(fasta(proteins(4)))
    with pytest.raises(LabelError, match="give --labels"):
        read_labelled(tmp_path / "in.fasta", None)
    (tmp_path / "labels.csv").write_text("id,label\nx,oily\n")
    with pytest.raises(LabelError, match=r"none of 4 records .*p0, p1, p2, \.\.\.; *the labels x|p0"):
        read_labelled(tmp_path / "in.fasta", tmp_path / "labels.csv")


def test_a_label_file_and_renamed_records_are_not_matched(tmp_path):
    (tmp_path / "in.fasta").write_text(">a\nMKV\n>a\nMLL\n")
    (tmp_path / "labels.csv").write_text("id,label\na,oily\na_2,salty\n")
    with pytest.raises(UsageError, match="none may be renamed"):
        read_labelled(tmp_path / "in.fasta", tmp_path / "labels.csv", on_duplicate="rename")
    (tmp_path / "all.csv").write_text("id,sequence,label\na,MKV,x\na,MLL,y\n")
    records = read_labelled(tmp_path / "all.csv", None, on_duplicate="rename")
    assert [(r.id, r.label) for r in records] == [("a", "x"), ("a_2", "y")]


# Splits.


def test_homology_split_keeps_relatives_on_one_side():
    split = train(proteins()).card["split"]
    assert split["valid_with_relatives_in_train"] == 0
    assert (split["identity"], split["clustered_by"]) == (0.3, "kmer")
    assert split["train"] + split["valid"] == 40
    assert split["valid"] == pytest.approx(12, abs=2)


def test_f39_relatives_across_a_random_split_are_counted():
    families = [
        SequenceRecord(f"{r.id}.{copy}", r.sequence[:-1] + "GAC"[copy], label=r.label)
        for r in proteins(14, longest=50)
        for copy in range(3)
    ]
    random = train(families, split="random", seed=3).card["split"]
    assert "relatives may be on both sides" in random["how"]
    assert random["valid"] == round(0.3 * 42)
    assert random["valid_with_relatives_in_train"] > 6
    assert random["leakage"]["near_identical"] > 3
    assert train(families).card["split"]["valid_with_relatives_in_train"] == 0


def test_a_split_column_is_followed_to_the_letter(caplog):
    records = with_splits("train", "train", "valid", "test")
    split = train(records, split="column").card["split"]
    assert (split["train"], split["valid"]) == (20, 10)
    assert split["how"] == "given with the data"
    assert "10 of 'test'" in caplog.text
    with pytest.raises(LabelError, match=r"begins with 'val' .*test, train"):
        train(with_splits("train", "test"), split="column")
    with pytest.raises(LabelError, match=r"\(empty\)"):
        train(proteins(), split="column")
    with pytest.raises(LabelError, match="no record's split begins with 'train'"):
        train(with_splits("valid"), split="column")


def test_rows_of_a_split_dev_choose_the_head(caplog):
    records = with_splits("train", "dev1", "valid", "train_2", "test")
    trained = train(records, split="column", refit=False)
    split = trained.card["split"]
    assert (split["train"], split["dev"], split["valid"]) == (16, 8, 8)
    assert {"leakage", "leakage_from_dev"} <= set(split)
    assert set(trained.index.ids) == {r.id for r in records if r.split.startswith("train")}
    assert trained.card["head"]["chosen_by"] == "least loss on dev, by the fit on train"
    assert "8 of 'test'" in caplog.text
    assert "16 for training, 8 to choose by, 8 held out" in describe_card(trained.card)
    assert "leakage_from_dev" not in train(with_splits("train", "valid"), split="column").card["split"]


def test_copies_across_dev_and_validation_are_counted():
    records = with_splits("train", "dev", "valid", "train")
    known = next(r for r in records if r.split == "dev")
    held = next(r for r in records if r.split == "valid" and r.label == known.label)
    twin = SequenceRecord(held.id, known.sequence, label=known.label, split="valid")
    split = train([twin if r is held else r for r in records], split="column").card["split"]
    assert split["leakage"]["identical"] == 0
    assert split["leakage_from_dev"]["identical"] == split["valid_with_relatives_in_dev"] == 1


def test_a_selection_part_with_relatives_in_training_is_warned_of(caplog):
    records = with_splits("train", "dev", "valid", "train")
    split = train(records, split="column").card["split"]
    assert split["dev_with_relatives_in_train"] == 0
    assert "too sure" not in caplog.text
    known = next(r for r in records if r.split == "train")
    copies = [SequenceRecord(f"copy{n}", known.sequence, label=known.label, split="dev") for n in range(3)]
    train([*records, *copies], split="column")
    assert "3 of 13 proteins of the split 'dev' have relatives in training" in caplog.text


# The head and its card.


def test_labels_and_proteins_that_cannot_be_trained_on_are_told_with_their_place():
    records = proteins(4)
    bad = SequenceRecord("n", "MKV", source="in.csv", line=7, label="high")
    with pytest.raises(
        LabelError, match=r"record 'n' \(in\.csv, line 7\): label 'high' is not a finite number"
    ):
        train([SequenceRecord("m", "MKV", label="0.5"), bad], task="regression")
    with pytest.raises(LabelError, match="record 'n' has no label"):
        train([*records, SequenceRecord("n", "MKV")])
    kin = [SequenceRecord(f"k{n}", proteins(1)[0].sequence, label="xy"[n % 2]) for n in range(6)]
    with pytest.raises(LabelError, match="all 6 proteins are relatives of each other"):
        train(kin)


def test_the_same_data_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        train(proteins()).save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_data_hash_tells_every_change_of_the_data(monkeypatch):
    def no_training(*_, data_sha256, **__):
        return SimpleNamespace(card={"data": {"sha256": data_sha256}, "split": {}, "backbone": {}})

    monkeypatch.setattr("bioxfer.training.train_head", no_training)
    records = proteins()
    wanted = train(records).card["data"]["sha256"]
    first = records[0]
    for changed in (
        SequenceRecord("other", first.sequence, label=first.label),
        SequenceRecord(first.id, first.sequence + "A", label=first.label),
        SequenceRecord(first.id, first.sequence, label="salty"),
    ):
        assert train([changed, *records[1:]]).card["data"]["sha256"] != wanted
    assert train(records[::-1]).card["data"]["sha256"] != wanted
    assert train(records, seed=1).card["data"]["sha256"] == wanted
    assert len(wanted) == 64


def test_a_record_without_vector_is_left_out_and_counted():
    trained = train([SequenceRecord("empty", "", label="oily"), *proteins()])
    assert trained.card["data"] | {"sha256": ""} == {
        "source": "",
        "sha256": "",
        "licence": "not stated",
        "proteins": 41,
        "left_out_without_vector": 1,
    }
    assert "empty" not in trained.index.ids
    with pytest.raises(InputError, match="none of 2 records could be embedded"):
        train([SequenceRecord("a", "", label="x"), SequenceRecord("b", "*", label="y")])


def test_the_card_as_text_is_the_card():
    card = head().card
    text = describe_card(card)
    for number in (card["split"]["train"], card["split"]["valid"], card["data"]["proteins"]):
        assert str(number) in text
    value, (low, high) = card["metrics"]["accuracy"]["value"], card["metrics"]["accuracy"]["ci95"]
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in text
    for baseline in card["baselines"]:
        assert f"\n{baseline} " in text
    assert f"temperature {card['calibration']['temperature']:.2f}" in text
    assert all(f"limit: {limit}" in text for limit in card["limits"])
    assert "calibration" not in describe_card(head("alanine", task="regression").card)


def test_the_card_as_text_tells_of_abstention_and_of_the_width_of_a_number():
    card = train(proteins(), abstain=0.1).card
    told = card["abstention"]
    text = describe_card(card)
    assert f"answers {told['answered']['value']:.3f} [" in text
    assert f"an accuracy of {told['accuracy_answered']['value']:.3f}" in text
    assert "answers" not in describe_card(head().card)
    card = head("alanine", task="regression").card
    assert f"±{card['uncertainty']['halfwidth90']:.3g} (90%)" in describe_card(card)


# Judging.


def judge(records, which=None, **changes):
    rows = evaluate_on_records(which or head(), records, backbone(), cluster_by="kmer", **changes)
    return {metric: rest for metric, *rest in rows}


def test_evaluation_counts_what_it_judges(caplog):
    fresh = [SequenceRecord(f"new{n}", r.sequence, label=r.label) for n, r in enumerate(proteins(30, seed=9))]
    rows = judge([*fresh, SequenceRecord("empty", "", label="oily")])
    assert (rows["proteins"][0], rows["trained_on"][0]) == ("30", "0")
    assert rows["left_out_without_vector"][0] == "1"
    assert rows["clusters"][0] == "30"
    value, low, high = map(float, rows["accuracy"])
    assert low <= value <= high
    assert value > 0.8
    assert 0 <= float(rows["calibration_error"][0]) < 0.5
    assert "memory" not in caplog.text


def test_evaluation_says_how_often_label_sets_hold_the_truth():
    fresh = [SequenceRecord(f"new{n}", r.sequence, label=r.label) for n, r in enumerate(proteins(30, seed=9))]
    rows = judge(fresh)
    for coverage in (0.8, 0.9, 0.95):
        assert 0.8 <= float(rows[f"set_covered_{coverage}"][0]) <= 1
        value, low, high = map(float, rows[f"set_size_{coverage}"])
        assert 1 <= low <= value <= high <= 2
    assert "set_covered_0.9" not in judge(fresh, replace(head(), conformal=None))


def test_evaluation_on_training_proteins_says_so(caplog):
    rows = judge(proteins(10))
    assert rows["trained_on"][0] == "10"
    assert "10 of 10 proteins bear ids that head 'taste' was trained on" in caplog.text


def test_evaluation_equals_the_metrics_by_hand():
    records = proteins(20, seed=4)
    wrong = [SequenceRecord(r.id, r.sequence, label="oily") for r in records]  # half of them are not
    said = np.array([float(judge(part)["accuracy"][0]) for part in (records, wrong)])
    assert said[0] > 0.8
    assert abs(said[1] - 0.5) < 0.2


def test_a_head_that_abstains_is_judged_by_what_it_answers():
    fresh = [SequenceRecord(f"new{n}", r.sequence, label=r.label) for n, r in enumerate(proteins(30, seed=9))]
    strict = train(proteins(), abstain=0.3)
    rows = judge(fresh, strict)
    share, low, high = map(float, rows["answered"])
    assert 0 < low <= share <= high < 1
    assert float(rows["accuracy_answered"][0]) >= float(rows["accuracy"][0])
    assert "answered" not in judge(fresh)
    strict.threshold = 1.0
    rows = judge(fresh, strict)
    assert float(rows["answered"][0]) == 0
    assert rows["accuracy_answered"] == ["", "", ""]


def test_a_regression_is_judged_too():
    records = [
        SequenceRecord(f"n{n}", r.sequence, label=f"{r.sequence.count('A') / len(r.sequence):.3f}")
        for n, r in enumerate(proteins(30, seed=9))
    ]
    rows = judge(records, head("alanine", task="regression"))
    assert float(rows["spearman"][0]) > 0.3
    assert "calibration_error" not in rows


def test_labels_and_backbones_that_are_not_the_heads_are_refused(toy_backbone):
    with pytest.raises(LabelError, match=r"record 'a' \(new\.csv, line 2\): label 'sour' is none of"):
        judge([SequenceRecord("a", "MKV", source="new.csv", line=2, label="sour")])
    with pytest.raises(FingerprintError):
        evaluate_on_records(head(), proteins(4), toy_backbone)
    with pytest.raises(InputError, match="none of 1"):
        judge([SequenceRecord("a", "", label="oily")])


def test_clusters_of_the_table_are_taken_as_they_are(tmp_path):
    """Relatives by the table's word go to one side together, whatever their sequences say."""
    records = [replace(r, cluster=f"c{n // 4}") for n, r in enumerate(proteins())]
    trained = train(records)
    assert trained.card["split"]["clustered_by"] == "given"
    assert trained.card["split"]["valid_with_relatives_in_train"] == 0
    assert (
        trained.card["split"]["train_clusters"] + trained.card["split"]["valid_clusters"] == len(records) / 4
    )
    table = tmp_path / "t.csv"
    table.write_text("id,sequence,label,cluster\na,MKV,x,one\nb,MKL,y,\n")
    assert [r.cluster for r in read_labelled(table, None)] == ["one", None]
    with pytest.raises(LabelError, match=r"record 'b' .*line 3.* has no cluster while others have"):
        train(read_labelled(table, None))


def test_clusters_of_the_table_are_hashed_and_told_and_no_identity_beside_them():
    records = [replace(r, cluster=f"c{n // 4}") for n, r in enumerate(proteins())]
    trained = train(records)
    assert "identity" not in trained.card["split"]
    assert "(by the table's own clusters)" in describe_card(trained.card)
    old = trained.card | {"split": trained.card["split"] | {"identity": 0.3}}
    assert "identity 0.3" not in describe_card(old)
    alone = train(proteins()).card
    assert "(by kmer, identity 0.3)" in describe_card(alone)
    assert alone["data"]["sha256"] == head().card["data"]["sha256"]
    other = [replace(r, cluster=f"c{n // 2}") for n, r in enumerate(proteins())]
    hashes = {train(part).card["data"]["sha256"] for part in (records, other, proteins())}
    assert len(hashes) == 3


def test_evaluation_keeps_the_clusters_of_the_table():
    records = [replace(r, cluster=f"c{n // 4}") for n, r in enumerate(proteins(20, seed=4))]
    assert judge(records)["clusters"][0] == "5"
    with pytest.raises(LabelError, match="has no cluster while others have"):
        judge([*records, *proteins(1, seed=5)])


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"abstain": 1.5}, UsageError, "abstain 1.5 is not between 0 and 1"),
        ({"families": True}, UsageError, "rows of the split dev, and there are none"),
        ({"head": "tree"}, UsageError, "head 'tree' is not one of"),
        ({"split": "column"}, LabelError, "no record's split begins with 'train'"),
        ({"task": "regression", "families": True}, UsageError, "a regression has none"),
        ({"task": "regression", "abstain": 0.1}, UsageError, "no classes to abstain from"),
    ],
)
def test_options_are_refused_before_anything_is_embedded(monkeypatch, options, error, told):
    monkeypatch.setattr("bioxfer.represented.embed_records", None)
    records = with_splits("valid")
    if options.get("task") == "regression":
        records = [replace(r, label=f"{n}.5") for n, r in enumerate(records)]
    with pytest.raises(error, match=told):
        train(records, **options)


def test_a_share_to_abstain_that_refuses_nothing_is_refused(monkeypatch):
    monkeypatch.setattr("bioxfer.selection.confidence", lambda chances, cosines: np.zeros(len(chances)))
    with pytest.raises(UsageError, match=r"abstain 0\.1 refuses nothing.*give a larger share"):
        train(proteins(), abstain=0.1)


def test_a_learning_curve_is_asked_for_by_sizes(tmp_path):
    (tmp_path / "in.csv").write_text(table(proteins(), "id", "sequence", "label"))
    words = (
        "train", tmp_path / "in.csv", "-o", tmp_path / "h.safetensors", "--model", write_weights(tmp_path),
        "--cluster-by", "kmer", "--valid", "0.3", "--head", "linear",
    )  # fmt: skip
    done = run(*words, "--sizes", "10,900")
    assert done.code == 0, done.err
    points = TrainedHead.load(tmp_path / "h.safetensors").card["curve"]
    assert [point["size"] for point in points] == [10, points[-1]["size"]]
    assert f"{'10 proteins':<20}" in done.out.decode()
    assert "900 proteins: left out of the learning curve, as 900 proteins are no part of" in done.err
    for sizes, told in (("ten", "--sizes ten: give numbers of proteins"), ("1", "make no learning curve")):
        refused = run(*words, "--sizes", sizes, "--overwrite")
        assert refused.code == 2
        assert told in one_sentence(refused.err.splitlines()[-1])


def test_heads_that_have_no_learning_curve_say_so(monkeypatch):
    monkeypatch.setattr("bioxfer.training.represent", None)
    residues = [replace(r, label="o" * len(r.sequence)) for r in proteins()]
    with pytest.raises(UsageError, match="a learning curve is of heads for proteins; leave sizes out"):
        train(residues, sizes=[10])
    with pytest.raises(UsageError, match="on pooled vectors without transfer; leave sizes out"):
        train(proteins(), head="light-attention", sizes=[10])
