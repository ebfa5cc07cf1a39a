"""Predicting: rows are what the heads say of each protein alone."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from toys import backbone, fasta, head, proteins, write_head, write_weights

import bioxfer.prediction
from bioxfer.backbones.compact import load_compact
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import embed
from bioxfer.errors import HeadFileError, InputError, UnknownModelError, UsageError
from bioxfer.prediction import list_heads, load_head, load_heads, predict, predict_rows, write_predictions
from bioxfer.sequences import SequenceRecord

ODD = [
    SequenceRecord("a", "MAILVFWAILVFW"),
    SequenceRecord("empty", ""),
    SequenceRecord("b", "MDEKRNQSDEKRNQS"),
    SequenceRecord("copy of a", "mailvfwailvfw*"),
    SequenceRecord("long", "MAILVFWGDE" * 9),
]


def test_cells_are_what_the_head_says():
    records = proteins(8, seed=5)
    found = predict(records, heads=[head()], model=backbone(), probabilities=True)
    vectors = embed(records, model=backbone(), pool="mean").vectors
    decisions, neighbours = head().predict(vectors), head().nearest(vectors)
    assert list(found["id"]) == [record.id for record in records]
    assert list(found["taste"]) == [decision.label for decision in decisions]
    np.testing.assert_allclose(found["taste_score"], [d.score for d in decisions], atol=5.1e-5)
    np.testing.assert_allclose(found[["taste_p_oily", "taste_p_salty"]].sum(axis=1), 1, atol=1.1e-4)
    np.testing.assert_allclose(found[["taste_p_oily", "taste_p_salty"]].max(axis=1), found["taste_score"])
    assert list(found["taste_nearest"]) == [f"{n.id} {n.similarity:.3f}" for n in neighbours]
    assert list(found["taste_flag"]) == [head().flag(n.similarity) for n in neighbours]


def test_a_training_protein_is_its_own_nearest():
    found = predict(proteins(4), heads=[head()], model=backbone())
    assert list(found["taste_nearest"]) == [f"p{n} 1.000" for n in range(4)]
    assert set(found["taste_flag"]) == {"in-domain"}


def test_a_record_without_vector_has_empty_cells():
    found = predict(ODD, heads=[head()], model=backbone(), probabilities=True)
    assert list(found["status"]) == ["ok", "skipped", "ok", "ok", "windowed"]
    assert found.iloc[1, 4:].isna().all()
    assert found.drop(index=1).notna().all(axis=None)
    alone = predict([SequenceRecord("empty", "")], heads=[head()], model=backbone(), probabilities=True)
    assert list(alone.columns) == list(found.columns)
    assert alone.iloc[0, 4:].isna().all()


@pytest.mark.parametrize("shape", ["wide", "long"])
def test_a_parquet_table_grows_as_rows_come_with_the_types_of_any_other(tmp_path, monkeypatch, shape):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("bioxfer.output._ROWS_OF_A_GROUP", 8)
    wide = {"probabilities": True, "coverage": 0.9} if shape == "wide" else {}
    heads = [head(), head("oil", task="regression")]
    for name, records in (("many", [*ODD, *proteins(20)]), ("none", ODD[1:2])):
        write_predictions(records, tmp_path / f"{name}.parquet", heads, backbone(), shape=shape, **wide)
    many, none = (parquet.ParquetFile(tmp_path / f"{name}.parquet") for name in ("many", "none"))
    assert many.metadata.num_row_groups == -(-many.metadata.num_rows // 8) > 2  # memory holds one of them
    assert none.schema_arrow.equals(many.schema_arrow)
    kinds = {field.name: str(field.type) for field in many.schema_arrow}
    assert (kinds["id"], kinds["length"], kinds["message"]) == ("large_string", "int64", "large_string")
    expected = predict([*ODD, *proteins(20)], heads=heads, model=backbone(), shape=shape, **wide)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "many.parquet").astype(object).fillna(""),
        expected.astype(object).fillna(""),
        check_dtype=False,
    )


def test_rows_do_not_depend_on_how_many_the_head_sees_together(monkeypatch):
    whole = predict(ODD, heads=[head()], model=backbone())
    monkeypatch.setattr(bioxfer.prediction, "_ROWS_AT_ONCE", 2)
    pd.testing.assert_frame_equal(predict(ODD, heads=[head()], model=backbone()), whole)


def test_a_long_table_gives_every_class_of_every_head():
    heads = [head(), head("alanine", task="regression")]
    found = predict(ODD, heads=heads, model=backbone(), shape="long")
    assert list(found.columns) == ["id", "length", "status", "message", "head", "rank", "label", "score"]
    per_record = found.groupby(["id", "head"], sort=False).size()
    assert list(per_record) == [2, 1, 1, 1, 2, 1, 2, 1, 2, 1]
    tastes = found[(found["head"] == "taste") & found["rank"].notna()]
    for _, rows in tastes.groupby("id"):
        assert list(rows["rank"]) == [1, 2]
        assert list(rows["score"]) == sorted(rows["score"], reverse=True)
    wide = predict(ODD, heads=heads, model=backbone())
    best = tastes[tastes["rank"] == 1].set_index("id")
    for _, row in wide[wide["status"] != "skipped"].iterrows():
        assert best.loc[row["id"], "label"] == row["taste"]
        assert best.loc[row["id"], "score"] == row["taste_score"]
    numbers = found[(found["head"] == "alanine") & found["rank"].notna()]
    assert list(numbers["label"]) == list(wide["alanine"].dropna())
    assert numbers["score"].isna().all()


def test_a_regression_gives_a_number_and_no_score():
    records = [SequenceRecord("much", "MA" * 20), SequenceRecord("none", "MDEKRDEKRDEKRDEKRDEK")]
    found = predict(records, heads=[head("alanine", task="regression")], model=backbone(), probabilities=True)
    much, none = (float(value) for value in found["alanine"])
    assert much > none
    assert found["alanine_score"].isna().all()
    assert [c for c in found.columns if c.startswith("alanine")] == [
        "alanine",
        "alanine_score",
        "alanine_nearest",
        "alanine_flag",
    ]


def test_heads_and_models_come_as_objects_names_or_files(tmp_path):
    file, weights = write_head(tmp_path), write_weights(tmp_path)
    (tmp_path / "in.fasta").write_text(fasta(proteins(3)))
    wanted = predict(tmp_path / "in.fasta", heads=[head()], model=backbone())
    for given in (file, str(file), [file], [str(file)]):
        pd.testing.assert_frame_equal(predict(tmp_path / "in.fasta", heads=given, model=weights), wanted)
    bare = predict([record.sequence for record in proteins(3)], heads=file, model=weights)
    assert list(bare["id"]) == ["seq1", "seq2", "seq3"]
    assert list(bare["taste"]) == list(wanted["taste"])


def test_heads_that_share_no_embedding_cannot_run_together():
    other = dataclasses.replace(head(), name="other", layer=1)
    with pytest.raises(UsageError, match=r"taste \(toy, layer 2\) and other \(toy, layer 1\)"):
        load_heads([head(), other])
    with pytest.raises(UsageError, match="read different embeddings"):
        load_heads([head(), dataclasses.replace(head(), name="other", fingerprint="f" * 16)])
    with pytest.raises(UsageError, match="2 heads are called 'taste'"):
        load_heads([head(), head()])
    with pytest.raises(UsageError, match="no head was given"):
        load_heads([])
    for name in ("length", "taste_score"):
        clash = [head(), dataclasses.replace(head(), name=name)]
        with pytest.raises(UsageError, match=f"2 columns would be called '{name}'"):
            predict(["MKV"], heads=clash, model=backbone())
        assert len(predict(["MKV"], heads=clash, model=backbone(), shape="long")) == 4
    wider = dataclasses.replace(head(), name="wider", pool="max")
    assert load_heads([head(), wider]) == [head(), wider]


def test_a_head_on_own_weights_asks_for_them():
    with pytest.raises(UnknownModelError, match=r"'taste' was trained on weights called 'toy'.*model=FILE"):
        predict(["MKV"], heads=[head()])


def test_unknown_heads_are_named(tmp_path):
    with pytest.raises(UnknownModelError, match="'fortune'"):
        load_head("fortune")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(HeadFileError, match=r"x\.safetensors"):
        load_head(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"nope\.fasta"):
        predict(tmp_path / "nope.fasta", heads=[head()], model=backbone())


def test_every_ready_head_loads_and_says_its_name():
    assert set(list_heads()) == {
        "structure_class", "localization", "membrane", "solubility", "signal_peptide", "enzyme_class",
        "enzyme_subclass", "secondary_structure", "conservation", "melting_temperature",
    }  # fmt: skip
    compact = load_compact()
    for name in list_heads():
        found = load_head(name)
        assert (found.name, found.backbone, found.fingerprint) == (name, "compact", compact.fingerprint)


def test_records_are_read_and_rows_made_as_they_are_needed():
    read = []
    statuses: Counter[str] = Counter()
    many = [SequenceRecord(f"p{n}", "MKV") for n in range(5000)]
    source = (read.append(record) or record for record in many)
    columns, rows = predict_rows(source, [head()], backbone(), statuses=statuses)
    assert (read, statuses) == ([], Counter())
    assert len(next(rows)) == len(columns)
    assert 0 < len(read) < 5000
    assert statuses["ok"] < 5000


def test_contract_5_a_table_that_fails_midway_leaves_the_old_one(tmp_path):
    def source():
        yield from proteins(3)
        raise InputError("the file is cut off")

    out = tmp_path / "out.csv"
    out.write_text("from before")
    with pytest.raises(InputError, match="cut off"):
        write_predictions(source(), out, [head()], backbone())
    assert out.read_text() == "from before"
    assert list(tmp_path.iterdir()) == [out]
    assert write_predictions(proteins(3), out, [head()], backbone()) == {"ok": 3}


def test_the_cache_changes_no_cell(tmp_path):
    wanted = predict(ODD, heads=[head()], model=backbone())
    with EmbeddingCache(tmp_path / "c.sqlite") as cache:
        for _ in range(2):
            found = predict(ODD, heads=[head()], model=backbone(), cache=cache)
            pd.testing.assert_frame_equal(found, wanted)
        assert len(cache) == 3
