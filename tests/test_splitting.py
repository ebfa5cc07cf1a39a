"""Splits of records and audits of splits: every record once, no cluster on two sides, leaks named."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import run

from bioxfer.audits import audit_split, read_parts
from bioxfer.errors import LabelError, UsageError
from bioxfer.sequences import SequenceRecord
from bioxfer.splitting import describe_partition, read_to_split, split_records

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def mutate(dice, sequence, share):
    return "".join(dice.choice(LETTERS) if dice.random() < share else letter for letter in sequence)


def family_records(families=20, members=3, *, seed=0):
    """Families of copies at about 80% identity, whose label is one of three, in mixed order."""
    dice = random.Random(seed)
    found = []
    for family in range(families):
        ancestor = "".join(dice.choices(LETTERS, k=dice.randint(70, 120)))
        for member in range(members):
            name = f"f{family}m{member}"
            found.append(SequenceRecord(name, mutate(dice, ancestor, 0.1), label="abc"[family % 3]))
    dice.shuffle(found)
    return found


RECORDS = family_records()


def family_of(record):
    return record.id.split("m")[0]


def as_table(records):
    return "id,sequence,label\n" + "".join(f"{r.id},{r.sequence},{r.label or ''}\n" for r in records)


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text.decode() if isinstance(text, bytes) else text)))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(as_table(RECORDS))
    return path


def test_families_stay_together_and_classes_even():
    made = split_records(RECORDS, valid=0.2, test=0.2, dev=0.1, cluster_by="kmer")
    part_of = {}
    for record, part in zip(RECORDS, made.parts, strict=True):
        assert part_of.setdefault(family_of(record), part) == part
    sizes = {part: made.parts.count(part) for part in made.shares}
    assert list(sizes) == ["train", "dev", "valid", "test"]
    for part, size in {"train": 30, "dev": 6, "valid": 12, "test": 12}.items():
        assert sizes[part] == pytest.approx(size, abs=3)  # one family
    held = [record.label for record, part in zip(RECORDS, made.parts, strict=True) if part == "valid"]
    assert set(held) == set("abc")


def test_folds_are_numbered_from_one():
    made = split_records(RECORDS, folds=4, cluster_by="kmer")
    assert made.column == "fold"
    assert list(made.shares) == list("1234")
    assert all(made.parts.count(fold) == pytest.approx(15, abs=3) for fold in made.shares)


def test_joined_labels_are_balanced_each_by_itself():
    dice = random.Random(1)
    texts = ["".join(dice.choices(LETTERS, k=60)) for _ in range(60)]
    labels = [
        ";".join(name for name, every in (("x", 2), ("y", 3), ("z", 5)) if i % every == 0) for i in range(60)
    ]
    records = [
        SequenceRecord(f"p{i}", text, label=label or "w")
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    made = split_records(records, valid=0.5, cluster_by="kmer")
    for name, total in (("x", 30), ("y", 20), ("z", 12)):
        held = sum(
            name in (r.label or "").split(";")
            for r, part in zip(records, made.parts, strict=True)
            if part == "valid"
        )
        assert held == pytest.approx(total / 2, abs=2)


def test_clusters_of_the_table_are_kept_by_name():
    records = [SequenceRecord(f"p{i}", "MKTAYIAKQR", cluster=f"c{i // 2}") for i in range(8)]
    made = split_records(records, valid=0.25)
    assert (made.clusters, made.clustered_by) == ([f"c{i // 2}" for i in range(8)], "given")
    assert made.parts[::2] == made.parts[1::2]


@given(
    st.lists(st.integers(0, 6), min_size=12, max_size=40),
    st.integers(2, 4),
    st.integers(0, 5),
    st.sampled_from(["", "a", "b"]),
)
@settings(max_examples=60)
def test_every_record_has_one_row_and_no_cluster_two_sides(groups, folds, seed, label):
    groups = [*groups, 0, 1, 2, 3]
    records = [
        SequenceRecord(f"p{i}", "MKTAY", cluster=f"c{group}", label=label or str(group % 2))
        for i, group in enumerate(groups)
    ]
    for made in (
        split_records(records, folds=folds, seed=seed),
        split_records(records, valid=0.2, test=0.3, seed=seed),
    ):
        assert len(made.parts) == len(made.clusters) == len(records)
        assert made.clusters == [f"c{group}" for group in groups]
        assert set(made.parts) == set(made.shares)
        assert len(set(zip(made.clusters, made.parts, strict=True))) == len(set(groups))


def test_what_is_uneven_or_missing_is_said(caplog):
    records = [SequenceRecord(f"p{i}", "MK", cluster="big" if i < 16 else f"c{i}") for i in range(20)]
    records = [
        SequenceRecord(r.id, r.sequence, cluster=r.cluster, label="rare" if r.id == "p19" else "many")
        for r in records
    ]
    made = split_records(records, folds=3)
    with caplog.at_level(logging.WARNING, logger="bioxfer"):
        text = describe_partition(made, records)
    assert "20 proteins in 5 homology clusters (the table's own); the largest holds 16 (80.0%)" in text
    assert "holds 80% of the proteins and not 33%" in caplog.text
    assert "has no protein of rare" in caplog.text


# --- audits ----------------------------------------------------------------------------------------------


def audited(parts_of, **options):
    records = [record for record, _ in parts_of]
    return audit_split(records, [part for _, part in parts_of], cluster_by="kmer", **options)


def test_planted_leaks_are_found_by_kind_with_their_relative():
    dice = random.Random(2)
    old, other = ("".join(dice.choices(LETTERS, k=150)) for _ in range(2))
    found = audited(
        [
            (SequenceRecord("old", old), "train"),
            (SequenceRecord("other", other), "dev"),
            (SequenceRecord("copy", old.lower()), "test"),
            (SequenceRecord("near", mutate(dice, old, 0.04)), "test"),
            (SequenceRecord("far", mutate(dice, other, 0.45)), "test"),
            (SequenceRecord("new", "".join(dice.choices(LETTERS, k=150))), "test"),
        ]
    )
    assert [(o.id, o.nearest_id, o.nearest_split, o.kind) for o in found.offenders] == [
        ("copy", "old", "train", "identical"),
        ("near", "old", "train", "near-identical"),
        ("far", "other", "dev", "relative"),
    ]
    assert found.sizes == {"dev": 1, "test": 4}
    assert found.counts("test") == {"identical": 1, "near-identical": 2, "relative": 3}
    assert found.counts("dev") == {"identical": 0, "near-identical": 0, "relative": 0}
    assert "copy (test) and old (train): identical, 100.0% identity over 100%" in found.describe()
    assert "this split leaks: 3 (60.0%) held-out proteins" in found.describe()


def test_a_split_by_homology_does_not_leak_and_a_random_one_does():
    made = split_records(RECORDS, valid=0.3, cluster_by="kmer")
    clean = audit_split(RECORDS, made.parts, cluster_by="kmer")
    assert not clean.offenders
    assert "this split does not leak" in clean.describe()
    drawn = np.random.default_rng(0).choice(["train", "valid"], p=[0.7, 0.3], size=len(RECORDS)).tolist()
    assert len(audit_split(RECORDS, drawn, cluster_by="kmer").offenders) > 10


def test_folds_are_held_out_from_one_another():
    records = [SequenceRecord(f"p{i}", "MKTAYIAKQRQISFVKSHFSRQ") for i in range(3)]
    found = audit_split(records, ["1", "10", "2"], cluster_by="kmer")
    assert found.against == {"1": ("2", "10"), "2": ("1", "10"), "10": ("1", "2")}
    assert [o.kind for o in found.offenders] == ["identical"] * 3


def test_records_without_a_part_are_left_out_and_counted(caplog):
    records = [SequenceRecord(f"p{i}", "MKTAYIAKQRQISFVKSHFSRQ") for i in range(3)]
    with caplog.at_level(logging.WARNING, logger="bioxfer"):
        found = audit_split(records, ["train", None, "valid"], cluster_by="kmer")
    assert [o.id for o in found.offenders] == ["p2"]
    assert "1 of 3 records have no part and are left out" in caplog.text


@pytest.mark.parametrize("parts", [["train", "train"], [None, "valid"], [None, None]])
def test_a_split_that_holds_nothing_out_is_refused(parts):
    with pytest.raises(LabelError, match="holds nothing out"):
        audit_split([SequenceRecord("a", "MK"), SequenceRecord("b", "MV")], parts, cluster_by="kmer")


def test_parts_are_read_by_id(tmp_path):
    path = tmp_path / "parts.tsv"
    path.write_text("where\tid\ntrain\ta\ntest\tb\n\tc\n")
    records = [SequenceRecord(name, "MK") for name in "bacd"]
    assert read_parts(path, "where", records) == ["test", "train", None, None]
    with pytest.raises(LabelError, match="no column 'fold'"):
        read_parts(path, "fold", records)
    with pytest.raises(LabelError, match="names no part for any of 1 record"):
        read_parts(path, "where", [SequenceRecord("x", "MK")])
    path.write_text("id,split\na,train\na,test\n")
    with pytest.raises(LabelError, match="line 3: id 'a' is in 'test' here and in 'train' before"):
        read_parts(path, "split", records)


# --- the command -----------------------------------------------------------------------------------------


def test_the_table_has_every_record_in_order_and_the_audit_is_told(table, tmp_path):
    out = tmp_path / "folds.csv"
    ended = run("split", table, "-o", out, "--valid", "0.2", "--test", "0.2", "--cluster-by", "kmer")
    assert (ended.code, ended.out) == (0, b"")
    rows = rows_of(out.read_text())
    assert list(rows[0]) == ["id", "label", "cluster", "split"]
    assert [(row["id"], row["label"]) for row in rows] == [(r.id, r.label) for r in RECORDS]
    assert "60 proteins in 20 homology clusters (by kmer at 30% identity)" in ended.err
    assert re.search(r"valid: \d+ \(\d+\.\d%\) proteins in [345] clusters; [abc] \d+, ", ended.err)
    assert "this split does not leak" in ended.err
    again = run("split", table, "--audit", "split", "--cluster-by", "kmer", "--labels", out)
    assert again.code == 0
    assert again.out.decode() == "id,split,nearest_id,nearest_split,identity,coverage,kind\n"


def test_train_reads_the_table_as_it_is(table, tmp_path):
    out = tmp_path / "folds.csv"
    run("split", table, "-o", out, "--valid", "0.2", "--test", "0.2", "--cluster-by", "kmer")
    from bioxfer.residue_training import keep_sides
    from bioxfer.training import read_labelled

    kept = keep_sides(read_labelled(table, out))
    expected = [(row["id"], row["split"]) for row in rows_of(out.read_text()) if row["split"] != "test"]
    assert [(record.id, record.split) for record in kept] == expected


def test_folds_without_labels_go_to_standard_output(tmp_path):
    source = tmp_path / "in.fasta"
    source.write_text("".join(f">{r.id}\n{r.sequence}\n" for r in RECORDS[:20]))
    ended = run("split", source, "--folds", "3", "--cluster-by", "kmer", "-q")
    rows = rows_of(ended.out)
    assert (ended.code, ended.err, list(rows[0])) == (0, "", ["id", "cluster", "fold"])
    assert [row["id"] for row in rows] == [r.id for r in RECORDS[:20]]
    assert {row["fold"] for row in rows} == {"1", "2", "3"}


def test_an_audit_lists_offenders(tmp_path):
    source = tmp_path / "in.csv"
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
    source.write_text(f"id,sequence,part\n=a,{sequence},train\nb,{sequence},test\n")
    ended = run("split", source, "--audit", "part", "--cluster-by", "kmer")
    assert ended.code == 0
    assert ended.out.decode().splitlines()[1:] == ["b,test,=a,train,1.0,1.0,identical"]
    assert "this split leaks: 1 (100.0%) held-out proteins" in ended.err


def test_labels_of_a_file_fit_some_records(table, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text(f'id,label\n{RECORDS[1].id},"one, ""two""\nthree"\nnobody,x\n')
    source = tmp_path / "in.fasta"
    source.write_text("".join(f">{r.id}\n{r.sequence}\n" for r in RECORDS[:9]))
    ended = run("split", source, "--labels", labels, "--cluster-by", "kmer")
    assert [row["label"] for row in rows_of(ended.out)][:3] == ["", 'one, "two"\nthree', ""]
    assert "8 of 9 records have no label" in ended.err
    assert "1 labels of" in ended.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--folds", "3", "--valid", "0.2"], "leave --valid out"),
        (["--audit", "split", "--folds", "3"], "leave --folds out"),
        (["--valid", "0.6", "--test", "0.5"], "sum to 1.1"),
        (["--valid", "0"], "sum to 0"),
        (["--folds", "30"], "60 proteins in 20 homology clusters cannot fill 30 folds"),
        (["--folds", "1"], "greater than or equal to 2"),
        (["--audit", "fold"], "no column 'fold'"),
        (["--identity", "30"], "less than or equal to 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(table, options, sentence):
    ended = run("split", table, "--cluster-by", "kmer", *options)
    assert ended.code in (2, 3)
    assert sentence in ended.err
    assert "Traceback" not in ended.err


def test_bad_inputs_are_one_sentence(tmp_path):
    empty = tmp_path / "empty.fasta"
    empty.write_text("")
    ended = run("split", empty)
    assert ended.code == 3
    assert "holds no sequence, so there is nothing to split" in ended.err
    ended = run("split", "-", "--audit", "split", stdin=b"id,sequence\na,MK\n")
    assert ended.code == 2
    assert "--audit reads IN twice" in ended.err
    source, labels = tmp_path / "in.fasta", tmp_path / "labels.csv"
    source.write_text(">a\nMK\n")
    labels.write_text("id,label\nb,x\n")
    with pytest.raises(LabelError, match="none of 1 records has a label"):
        read_to_split(source, labels)
    with pytest.raises(UsageError, match="none may be renamed"):
        read_to_split(source, labels, on_duplicate="rename")


@pytest.mark.parametrize("identity", [-0.1, 30.0])
def test_an_identity_out_of_range_is_refused(identity):
    with pytest.raises(UsageError, match=str(identity)):
        split_records(RECORDS, identity=identity, cluster_by="kmer")


def test_classes_of_odd_names_are_told_apart(caplog):
    names = {"a": "x, y", "b": "two\nlines", "c": "plain one"}
    records = [dataclasses.replace(record, label=names[record.label]) for record in RECORDS]
    text = describe_partition(split_records(records, cluster_by="kmer"), records)
    assert len(text.splitlines()) == 3
    assert "'x, y' 1" in text
    assert "'two\\nlines' 1" in text
    assert "plain one 1" in text
    assert describe_partition(split_records(RECORDS, cluster_by="kmer"), RECORDS).count("'") == 0


def test_numbers_with_gaps_are_not_balanced_as_classes():
    labels = ["nan", *(f"{place / 7:.3f}" for place in range(1, len(RECORDS)))]
    records = [dataclasses.replace(r, label=label) for r, label in zip(RECORDS, labels, strict=True)]
    made = split_records(records, cluster_by="kmer")
    bare = split_records([dataclasses.replace(r, label=None) for r in RECORDS], cluster_by="kmer")
    assert made.parts == bare.parts
    assert "nan" not in describe_partition(made, records)


def test_proteins_of_one_cluster_fill_no_parts(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(as_table([SequenceRecord(f"p{n}", "MKTAYIAKQRQISFVKSHFSRQ") for n in range(4)]))
    ran = run("split", path, "-o", tmp_path / "out.csv")
    assert ran.code == 2
    assert "4 proteins in 1 homology clusters cannot fill 2 parts; hold out fewer parts" in ran.err
