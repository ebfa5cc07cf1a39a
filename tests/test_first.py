"""Heads that read only the first residues: alone and beside others, from training to the table."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from test_residues import head as residue_head
from toys import OILY, SALTY, WINDOW, backbone, run, table, write_weights
from toys import head as whole_head

import bioxfer.clusters
import bioxfer.estimators
import bioxfer.prediction
import bioxfer.training
from bioxfer.cache import EmbeddingCache
from bioxfer.cards import describe_card
from bioxfer.embedding import embed, embed_first, embed_records, make_engine
from bioxfer.errors import SequenceError, UsageError
from bioxfer.estimators import SequenceClassifier, SequenceRegressor
from bioxfer.heads import TrainedHead
from bioxfer.prediction import predict, predict_rows
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import UNKNOWN
from bioxfer.training import evaluate_on_records, train_on_records

FIRST = 12

ODD = [
    SequenceRecord("a", "MAILVFWAILVFWDEKRDEKR"),
    SequenceRecord("empty", ""),
    SequenceRecord("shorter", "MDEKRNQ"),
    SequenceRecord("copy of a", "mailvfwailvfwdekrdekr*"),
    SequenceRecord("same start", "MAILVFWAILVFWGGG"),
    SequenceRecord("long", "MAILVFWGDE" * 15),
    SequenceRecord("J", "MDEKRNQSDEKRNQJSTS"),
]


def proteins(count: int = 40, *, seed: int = 0) -> list[SequenceRecord]:
    """Proteins whose start tells their label; what follows says nothing."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        letters, label = ((OILY, "oily"), (SALTY, "salty"))[number % 2]
        start = "M" + "".join(dice.choices(letters, k=FIRST - 1))
        rest = "".join(dice.choices(OILY + SALTY + "GTPYC", k=dice.randint(20, 80)))
        found.append(SequenceRecord(f"p{number}", start + rest, label=label))
    return found


def train(records, **changes):
    options = {"name": "start", "head": "linear", "pool": "mean", "valid": 0.3, "cluster_by": "kmer"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))  # a short path is a quick test
        return train_on_records(records, backbone(), **({"first": FIRST} | options | changes))


@functools.cache
def head(name: str = "start", first: int | None = FIRST, pool: str = "mean") -> TrainedHead:
    return train(proteins(), name=name, first=first, pool=pool)


class Proxy:
    """The toy backbone, with a list of what it is given, and of what it fails on."""

    def __init__(self, *bad: str) -> None:
        self.real, self.bad, self.seen = backbone(), bad, []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def represent(self, sequences, *, layers):
        self.seen += sequences
        found = self.real.represent(sequences, layers=layers)
        return [
            SimpleNamespace(residues=part.residues * np.nan, cls=part.cls * np.nan) if s in self.bad else part
            for s, part in zip(sequences, found, strict=True)
        ]


# Vectors.


def test_a_vector_is_that_of_the_first_residues_after_cleaning():
    rows = list(embed_records(ODD, backbone(), pools=["mean+end"], first=FIRST))
    cut = [SequenceRecord(r.id, r.sequence.upper().replace("J", "X")[:FIRST]) for r in ODD]
    for row, short in zip(rows, embed_records(cut, backbone(), pools=["mean+end"]), strict=True):
        assert (row.pooled is None) == (short.pooled is None)
        if row.pooled is not None:
            np.testing.assert_allclose(row.vector("mean+end"), short.vector("mean+end"), atol=1e-6)
    assert [row.length for row in rows] == [21, 0, 7, 21, 16, 150, 18]
    assert [row.status for row in rows] == ["ok", "skipped", "ok", "ok", "ok", "ok", "ok"]
    assert "J at 15" in rows[-1].message
    assert [len(row.sequence) for row in rows] == [row.length for row in rows]


def test_what_is_read_is_windowed_only_if_it_is_long_itself():
    def status(first, long="window"):
        (row,) = embed_records(ODD[5:6], backbone(), first=first, long=long)
        return row.status

    assert [status(n) for n in (None, WINDOW + 1, WINDOW, 1)] == ["windowed", "windowed", "ok", "ok"]
    assert [status(n, "truncate") for n in (WINDOW + 1, WINDOW)] == ["truncated", "ok"]
    assert status(FIRST, "skip") == "skipped"  # as it is beside a head that reads the whole protein
    with pytest.raises(SequenceError, match="150 residues exceed"):
        status(FIRST, "error")
    with pytest.raises(UsageError, match="first is 0 residues; choose 1 or more"):
        embed_records(ODD, backbone(), first=0)


def test_first_residues_are_read_again_without_cleaning_or_warning(caplog):
    records = [*ODD, SequenceRecord("dna", "ACGT" * 10)]
    rows = list(embed_records(records, backbone()))
    caplog.clear()
    engine = make_engine(backbone(), pools=["mean"])
    for long in ("window", "truncate"):
        again = embed_first(rows, engine, first=FIRST, long=long)
        assert [(r.record, r.length) for r in again] == [(r.record, r.length) for r in rows]
        assert {r.message for r in again} == {""}
        for row, alone in zip(again, embed_records(records, backbone(), first=FIRST), strict=True):
            assert row.status == alone.status
            if alone.pooled is not None:
                np.testing.assert_allclose(row.vector("mean"), alone.vector("mean"), atol=1e-6)
    assert len(caplog.records) <= 2  # of the calls of embed_records here
    (cut,) = embed_first(rows[5:6], engine, first=WINDOW + 5, long="truncate")
    (whole,) = embed_records(ODD[5:6], backbone(), long="truncate")
    np.testing.assert_allclose(cut.vector("mean"), whole.vector("mean"), atol=1e-6)
    assert embed_first([], engine, first=FIRST) == []


def test_the_python_embed_takes_it_too():
    found = embed(["MAILVFW", "MAILDEK"], model=backbone(), first=4)
    np.testing.assert_allclose(found.vectors[0], found.vectors[1])
    assert found.lengths == [7, 7]


# Training and judging.


def test_training_reads_the_start_and_clusters_the_whole(monkeypatch):
    clustered, seen = [], []
    cluster, compose = bioxfer.clusters.cluster_sequences, bioxfer.head_training.composition
    monkeypatch.setattr(
        bioxfer.clusters,
        "cluster_sequences",
        lambda sequences, **o: clustered.extend(sequences) or cluster(sequences, **o),
    )
    monkeypatch.setattr(bioxfer.head_training, "composition", lambda s: seen.extend(s) or compose(s))
    records = proteins()
    trained = train(records)
    assert clustered == [r.sequence for r in records]
    assert seen == [r.sequence[:FIRST] for r in records]
    assert trained.first == trained.card["backbone"]["first"] == FIRST
    assert trained.card["metrics"]["accuracy"]["value"] == 1
    assert trained.card["baselines"]["composition"]["metrics"]["accuracy"]["value"] == 1
    assert f"mean, first {FIRST} residues" in describe_card(trained.card)
    assert f"mean, first {FIRST} residues, 40 training proteins" in repr(trained)
    audited = train(records, split="random", seed=1).card["split"]["leakage"]
    assert audited["near_identical"] == 0
    whole = train(records, first=None)
    assert "first" not in whole.card["backbone"]
    assert "first" not in describe_card(whole.card) + repr(whole)


def test_a_head_for_residues_reads_whole_proteins():
    records = [dataclasses.replace(r, label="o" * len(r.sequence)) for r in proteins()]
    with pytest.raises(UsageError, match="head for residues reads whole proteins; leave first out"):
        train(records)
    with pytest.raises(UsageError, match="first is -1 residues"):
        train(proteins(), first=-1)


def test_judging_reads_the_start_alone():
    fresh = proteins(seed=1)
    swapped = [
        dataclasses.replace(r, sequence=r.sequence[:FIRST] + s.sequence[FIRST:])
        for r, s in zip(fresh, fresh[1:] + fresh[:1], strict=True)
    ]
    scores = []
    for records in (fresh, swapped):
        rows = evaluate_on_records(head(), records, backbone(), cluster_by="kmer")
        scores.append({metric: value for metric, value, _, _ in rows if metric != "clusters"})
    assert scores[0] == scores[1]
    assert float(scores[0]["accuracy"]) == 1


# The file.


def test_first_is_kept_in_the_file_and_only_if_it_is_set(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    head().save(tmp_path / "h")
    again = TrainedHead.load(tmp_path / "h")
    assert again.first == FIRST
    assert again.predict(vectors) == head().predict(vectors)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "h").read_bytes()
    whole_head().save(tmp_path / "whole")
    assert b"first" not in (tmp_path / "whole").read_bytes()
    assert TrainedHead.load(tmp_path / "whole").first is None


# Prediction.


def heads(*names: str):
    known = {
        "whole": whole_head(),
        "start": head(),
        "twenty": head("twenty", 20, "mean+max"),
        "residues": residue_head(),
    }
    return [known[name] for name in names]


MIXES = [
    ("whole", "start"),
    ("start", "whole"),
    ("twenty", "start"),
    ("start", "residues", "twenty", "whole"),
]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("long", ["window", "truncate", "skip"])
def test_heads_of_different_readings_say_together_what_each_says_alone(mix, long, monkeypatch):
    def ask(which, **options):
        return predict(ODD, heads=which, model=backbone(), long=long, **options)

    found = ask(heads(*mix), probabilities=True)
    assert list(found["id"]) == [r.id for r in ODD]
    for one in heads(*mix):
        alone = ask([one], probabilities=True)
        assert (alone["status"] != "skipped").sum() == alone[one.name].notna().sum()
        columns = [c for c in alone.columns if c not in ("status", "message")]
        pd.testing.assert_frame_equal(found[columns], alone[columns], rtol=0, atol=1.1e-4)
    speaker = ask(heads("whole") if {"whole", "residues"} & set(mix) else heads("twenty"))
    pd.testing.assert_frame_equal(found[["status", "message"]], speaker[["status", "message"]])
    monkeypatch.setattr(bioxfer.prediction, "_ROWS_AT_ONCE", 2)
    pd.testing.assert_frame_equal(ask(heads(*mix), probabilities=True), found, rtol=0, atol=1.1e-4)
    pd.testing.assert_frame_equal(ask(heads(*mix), probabilities=True), ask(heads(*mix), probabilities=True))


@pytest.mark.parametrize("mix", MIXES)
def test_a_batch_says_what_each_protein_alone_is_told(mix):
    whole = predict(ODD, heads=heads(*mix), model=backbone())
    for place, record in enumerate(ODD):
        alone = predict([record], heads=heads(*mix), model=backbone())
        pd.testing.assert_frame_equal(
            alone.astype(object).fillna(""),
            whole.iloc[[place]].reset_index(drop=True).astype(object).fillna(""),
            check_dtype=False,
            rtol=0,
            atol=1.1e-4,
        )


def test_a_long_table_of_different_readings():
    mix = heads("start", "residues", "whole")
    found = predict(ODD, heads=mix, model=backbone(), shape="long")
    for one in mix:
        alone = predict(ODD, heads=[one], model=backbone(), shape="long")
        rows = found[found["head"] == one.name].reset_index(drop=True)
        columns = ["id", "length", "head", "rank", "label", "score"]
        asked, wanted = (t[columns].astype({"rank": float, "score": float}) for t in (rows, alone))
        pd.testing.assert_frame_equal(asked, wanted, rtol=0, atol=1.1e-4)


def test_a_protein_shorter_than_first_is_read_whole_and_once():
    proxy = Proxy()
    short = [r for r in ODD if 0 < len(r.sequence) <= FIRST]
    mean = dataclasses.replace(head(), name="mean")
    everything = dataclasses.replace(head(), name="all", first=None)
    found = predict(short, heads=[mean, everything], model=proxy)
    assert list(found["mean_score"]) == list(found["all_score"])


def test_each_reading_runs_each_distinct_start_once(tmp_path):
    proxy = Proxy()
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        wanted = predict(ODD, heads=heads("whole", "start"), model=proxy, cache=cache)
        starts = Counter(s for s in proxy.seen if len(s) == FIRST)
        assert set(starts.values()) == {1}
        assert starts["MAILVFWAILVF"] == 1  # of three proteins
        before = len(proxy.seen)
        again = predict(ODD, heads=heads("whole", "start"), model=proxy, cache=cache)
        assert len(proxy.seen) == before
    pd.testing.assert_frame_equal(again, wanted)


def test_records_are_read_as_they_are_needed_and_counted_once():
    read, counted = [], []
    statuses: Counter[str] = Counter()
    many = [SequenceRecord(f"p{n}", "MKVDEKRNQSDEKRNQS") for n in range(9000)]
    source = (read.append(record) or record for record in many)
    columns, rows = predict_rows(
        source, heads("start", "whole", "twenty"), backbone(), statuses=statuses, progress=counted.append
    )
    assert (read, counted) == ([], [])
    assert len(next(rows)) == len(columns)
    assert 0 < len(read) < 9000
    assert sum(counted) <= len(read)
    assert [row[0] for row in rows] == [f"p{n}" for n in range(1, 9000)]
    assert sum(counted) == sum(statuses.values()) == 9000


def test_a_failure_of_one_reading_empties_only_its_cells():
    start, whole = ODD[0].sequence[:FIRST], ODD[0].sequence
    mix = heads("whole", "start")
    found = predict(ODD, heads=mix, model=Proxy(start))
    failed = [0, 3, 4]  # share these first residues
    assert found["start"].isna().to_numpy().nonzero()[0].tolist() == [0, 1, 3, 4]
    assert found["taste"].isna().to_numpy().nonzero()[0].tolist() == [1]
    assert list(found["status"][failed]) == ["ok"] * 3
    assert all(m.endswith(f"first {FIRST} residues: {m.split(': ', 1)[1]}") for m in found["message"][failed])
    assert all("not finite" in m for m in found["message"][failed])
    found = predict(ODD, heads=mix, model=Proxy(whole))
    assert list(found["status"][[0, 3, 4]]) == ["failed", "failed", "ok"]
    assert found["taste"].isna().to_numpy().nonzero()[0].tolist() == [0, 1, 3]
    assert found["start"].isna().to_numpy().nonzero()[0].tolist() == [1]


# Heads that abstain.


def test_a_head_that_abstains_says_so_in_both_formats():
    sure = head()
    found = predict(ODD, heads=[sure], model=backbone()).dropna()
    confidence = found["start_score"] * found["start_nearest"].str.split().str[-1].astype(float)
    unsure = dataclasses.replace(sure, threshold=float(confidence.median()))
    wide = predict(ODD, heads=[unsure], model=backbone(), probabilities=True)
    every = predict(ODD, heads=[sure], model=backbone(), probabilities=True)
    silent = wide["start"] == UNKNOWN
    assert 0 < silent.sum() < len(ODD) - 1
    pd.testing.assert_frame_equal(wide.drop(columns="start"), every.drop(columns="start"))
    long = predict(ODD, heads=[unsure], model=backbone(), shape="long")
    for place, record in enumerate(ODD):
        rows = long[long["id"] == record.id]
        if silent[place]:
            assert list(rows["rank"]) == [0, 1, 2]
            assert (rows["label"].iloc[0], np.isnan(rows["score"].iloc[0])) == (UNKNOWN, True)
        elif record.sequence:
            assert list(rows["rank"]) == [1, 2]
            assert rows["label"].iloc[0] == wide["start"][place]
        if record.sequence:
            assert rows["score"].iloc[-2] == wide["start_score"][place]
            assert rows["score"].sum() == pytest.approx(1, abs=2e-4)
    ranked = predict(ODD, heads=[sure], model=backbone(), shape="long")
    pd.testing.assert_frame_equal(long[long["rank"] != 0].reset_index(drop=True), ranked, check_dtype=False)


# Estimators.


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
def test_an_estimator_reads_the_start_and_keeps_it(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))
    records = proteins(20)
    y = [r.label if kind is SequenceClassifier else float(r.label == "oily") for r in records]
    estimator = clone(kind(model=backbone(), head="linear", first=FIRST, identity=None, folds=2))
    estimator.fit([r.sequence for r in records], y)
    starts = estimator.predict([r.sequence[:FIRST] for r in records])
    np.testing.assert_array_equal(starts, estimator.predict(records))
    assert estimator.head_.first == estimator.head_.card["backbone"]["first"] == FIRST
    estimator.save(tmp_path / "h")
    again = kind.load(tmp_path / "h", model=backbone())
    assert again.first == FIRST
    np.testing.assert_array_equal(again.predict(records), starts)
    estimator.set_params(first=None)
    with pytest.raises(UsageError, match=r"layer 2, mean is not .* mean, first 12 residues, which"):
        estimator.predict(records)


# The command line.


def test_the_commands_train_show_list_judge_and_predict(tmp_path, monkeypatch):
    weights = write_weights(tmp_path)
    (tmp_path / "in.csv").write_text(table(proteins(), "id", "sequence", "label"))
    made = tmp_path / "start.safetensors"
    source = tmp_path / "in.csv"
    code, out, err = run(
        *("train", source, "-o", made, "--first", FIRST, "--head", "linear", "--pool", "mean"),
        *("--model", weights, "--cluster-by", "kmer", "--abstain", "0.05"),
    )
    assert code == 0, err
    assert f"layer 2, mean, first {FIRST} residues" in out.decode()
    assert "\nclasses  2: oily, salty\n" in out.decode()
    assert run("heads", "show", made).out == out
    card = json.loads(run("heads", "show", made, "--json").out)
    assert card["backbone"]["first"] == FIRST
    residue_head().save(tmp_path / "kind.safetensors")
    assert b"\nclasses  3: n, o, s\n" in run("heads", "show", tmp_path / "kind.safetensors").out
    both = ("--head", made, "--head", tmp_path / "kind.safetensors")
    code, out, err = run("predict", source, "-o", "-", *both, "--model", weights)
    assert (code, len(out.splitlines())) == (0, 41), err
    code, out, err = run("evaluate", made, source, "--model", weights, "--cluster-by", "kmer")
    assert (code, b"accuracy,1.0000" in out) == (0, True), err
    assert run("train", source, "-o", tmp_path / "x.safetensors", "--first", 0).code == 2
    monkeypatch.setattr(bioxfer.prediction, "READY_HEADS", tmp_path)
    weights.unlink()
    rows = [line.split("\t") for line in run("heads", "list").out.decode().splitlines()]
    assert rows[0] == ["name", "task", "kind", "classes", "backbone", "pool", "first", "threshold"]
    assert rows[1] == ["kind", "residue-class", "linear", "3", "toy", "mean", "all", "none"]
    assert rows[2][:-1] == ["start", "multiclass", "linear", "2", "toy", "mean", str(FIRST)]
    assert float(rows[2][-1]) == pytest.approx(card["abstention"]["threshold"], abs=5e-4)
