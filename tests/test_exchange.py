"""Embeddings go from file to file and tool to tool with every id, status and bit; no stranger is trusted."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_security import Canary
from test_vectors import ANY_IDS, DIM, IDS, rows, write
from toys import fasta, one_sentence, proteins, run

import bioxfer as bx
from bioxfer.containers.hdf5 import _Keys
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import BioxferError, DuplicateIdError, FormatError, InputError, UsageError
from bioxfer.exchange import convert_embeddings, open_embeddings, read_embeddings
from bioxfer.sequences import ORIGIN_COLUMNS, Origin, SequenceRecord
from bioxfer.vectors import write_vectors

h5py = pytest.importorskip("h5py")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

FACTS = {"model": "toy", "fingerprint": "f00", "layer": 2, "precision": "fp32"}
ALL = ["v.npz", "v.h5", "v.h5ad", "v.parquet", "v.csv", "v.tsv.gz"]
MATRICES = ["v.npz", "v.h5", "v.parquet"]
PLAIN = [name for name in IDS if name.isprintable()]  # what text of UTF-8 can hold


def store(path: Path, given_: list[EmbeddedRecord], *, per_residue: bool = False, **changes) -> Path:
    facts = FACTS | {"pool": "residues" if per_residue else "mean+max"}
    write(path, given_, per_residue=per_residue, facts=facts, **changes)
    return path


def same(found: bx.Embeddings, given_: list[EmbeddedRecord], *, per_residue: bool = False) -> None:
    """Assert that what was read is what was written."""
    assert found.ids == [each.record.id for each in given_]
    assert found.lengths == [each.length for each in given_]
    assert found.statuses == [each.status for each in given_]
    assert found.messages == [each.message for each in given_]
    for place, each in enumerate(given_):
        if per_residue:
            assert (found.residues[place] is None) == (each.residues is None)
            if each.residues is not None:
                np.testing.assert_array_equal(found.residues[place], each.residues)
                np.testing.assert_allclose(found.vectors[place], each.residues.mean(0), rtol=1e-5, atol=1e-6)
        elif each.pooled is not None:
            np.testing.assert_array_equal(found.vectors[place], each.vector("mean+max"))
        else:
            assert np.isnan(found.vectors[place]).all()


# --- our own files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_what_embed_wrote_is_read_to_the_bit(tmp_path, name):
    found = read_embeddings(store(tmp_path / name, rows(PLAIN)))
    same(found, rows(PLAIN))
    assert found.vectors.dtype == np.float32
    assert found.pool == "mean+max"
    text = ".csv" in name or ".tsv" in name
    told = ("unknown", -1, "") if text else ("toy", 2, "f00")
    assert (found.model, found.layer, found.fingerprint) == told
    assert ("layer" in repr(found)) == (not text)


@pytest.mark.parametrize("name", MATRICES)
def test_residues_are_read_to_the_bit_and_averaged(tmp_path, name):
    given_ = rows(PLAIN, per_residue=True)
    found = read_embeddings(store(tmp_path / name, given_, per_residue=True))
    same(found, given_, per_residue=True)
    assert found.pool == "mean"
    mean = read_embeddings(tmp_path / name, pool="mean")
    np.testing.assert_array_equal(mean.vectors, found.vectors)
    assert mean.residues is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("to", ALL)
def test_each_format_becomes_each_other(tmp_path, name, to):
    source = store(tmp_path / name, rows(PLAIN))
    out = tmp_path / f"out{''.join(Path(to).suffixes)}"
    assert convert_embeddings(source, out) == {"ok": len(PLAIN) - 1, "skipped": 1}
    same(read_embeddings(out), rows(PLAIN))


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("to", [*MATRICES, "v.csv"])
def test_residues_become_each_other_or_means(tmp_path, name, to):
    given_ = rows(PLAIN, per_residue=True)
    source = store(tmp_path / name, given_, per_residue=True)
    out = tmp_path / f"out{Path(to).suffix}"
    if to == "v.csv":
        with pytest.raises(UsageError, match="cannot hold one matrix per protein"):
            convert_embeddings(source, out)
        convert_embeddings(source, out, pool="mean")
        np.testing.assert_array_equal(read_embeddings(out).vectors, read_embeddings(source).vectors)
    else:
        convert_embeddings(source, out)
        same(read_embeddings(out), given_, per_residue=True)


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.sampled_from([*IDS, "a|b|c", "sp|P1|A", "P1", "%2F"]) | ANY_IDS.flatmap(
    lambda found: st.sampled_from(found or ["x"])), max_size=8, unique=True), name=st.sampled_from(MATRICES),
    per_residue=st.booleans())  # fmt: skip
def test_any_ids_come_back(tmp_path_factory, ids, name, per_residue):
    if name == "v.parquet":  # whose text is UTF-8
        ids = [each for each in ids if each.isprintable()]
    given_ = rows(ids, per_residue=per_residue)
    path = store(tmp_path_factory.mktemp("v") / name, given_, per_residue=per_residue)
    found = read_embeddings(path)
    assert found.ids == ids
    assert found.statuses == [each.status for each in given_]


@pytest.mark.parametrize("name", ALL)
def test_an_id_may_be_very_long(tmp_path, name):
    ids = ["x" * 70_000, "é/" * 40_000, "b"]
    assert read_embeddings(store(tmp_path / name, rows(ids))).ids == ids


def test_a_long_id_that_is_not_utf8_comes_back_from_hdf5(tmp_path):
    ids = ["\udce9/" * 40_000, "b"]
    assert read_embeddings(store(tmp_path / "v.h5", rows(ids))).ids == ids


@pytest.mark.parametrize("name", ["v.csv", "v.parquet", "v.h5ad"])
def test_origins_are_kept(tmp_path, name):
    given_ = rows(["a", "b", "c"])
    origins = [Origin("chr", "+", 1, 9, 1, 11), None, Origin("chr")]
    for each, origin in zip(given_, origins, strict=True):
        each.record = SequenceRecord(each.record.id, each.record.sequence, origin=origin)
    source = store(tmp_path / name, given_, origins=True)
    out = tmp_path / f"out{Path(name).suffix}"
    convert_embeddings(source, out)
    for path in (source, out):
        with open_embeddings(path) as stored:
            assert [row.record.origin for row in stored.rows()] == origins


@pytest.mark.parametrize("name", ["v.npz", "v.parquet", "v.h5ad", "v.h5"])
def test_no_records_are_read_as_none(tmp_path, name):
    found = read_embeddings(store(tmp_path / name, []))
    assert (len(found), found.ids) == (0, [])
    assert read_embeddings(store(tmp_path / name, rows(["a", "b"])[1:])).statuses == ["skipped"]


def test_a_parquet_of_a_column_for_each_dimension_is_read_too(tmp_path):
    """As 0.5.0 wrote them."""
    store(tmp_path / "v.csv", rows(PLAIN))
    table = pd.read_csv(
        tmp_path / "v.csv", keep_default_na=False, na_values={"mean_0": [""]}, dtype={"id": str}
    )
    for column in table.columns[4:]:
        table[column] = pd.to_numeric(table[column]).astype(float)
    table.to_parquet(tmp_path / "v.parquet")
    same(read_embeddings(tmp_path / "v.parquet"), rows(PLAIN))


# --- what other programs read -------------------------------------------------------------------------


def test_hdf5_has_uniprots_layout(tmp_path):
    ids = ["sp|P01308|INS_HUMAN", "tr|P01308|X_HUMAN", "P01308", "pdb|4INS|A", "a/b", "a%2Fb", ".", "a|b"]
    given_ = rows(ids)
    store(tmp_path / "v.h5", given_)
    with h5py.File(tmp_path / "v.h5") as file:
        assert list(file) == [
            "P01308", "tr|P01308|X_HUMAN", "P01308%%2", "pdb|4INS|A", "a%2Fb", "a%252Fb", "%2E", "a|b",
        ]  # fmt: skip
        assert [entry.attrs["original_id"] for entry in file.values()] == ids
        assert file["P01308"].shape == (2 * DIM,)
        np.testing.assert_array_equal(file["P01308"][()], given_[0].vector("mean+max"))


def test_other_spellings_are_told(tmp_path, caplog):
    caplog.set_level("INFO", "bioxfer")
    store(tmp_path / "v.h5", rows(["a", "b", "sp|P1|A"]))
    assert not caplog.messages
    store(tmp_path / "v.h5", rows(["a", "b/c", "."]))
    (told,) = caplog.messages
    assert told.startswith("2 ids are no plain or free key of HDF5 and spelled otherwise ('b/c' as 'b%2Fc')")


@given(ids=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
       | st.sampled_from(["a/b", "a%2Fb", "a%252Fb", "x%%2", "x", "sp|x|y", "tr|x|z", ".", "%2E", "", "%",
                           "\udce9"]), max_size=12))  # fmt: skip
def test_no_two_ids_get_one_key(ids):
    keys = _Keys()
    found = [keys.name(each) for each in ids]
    assert len(set(found)) == len(ids)
    assert not any("/" in key or not key or set(key) <= {"."} for key in found)


def test_parquet_holds_one_column_of_lists_of_fixed_size(tmp_path):
    given_ = rows(PLAIN)
    store(tmp_path / "v.parquet", given_)
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["id", "length", "status", "message", "embedding"]
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 2 * DIM)
    found = table["embedding"].to_pylist()
    assert found[1] is None
    assert np.float32(found[2]).tolist() == given_[2].vector("mean+max").tolist()
    wanted = {"model": "toy", "fingerprint": "f00", "layer": "2", "pool": "mean+max", "precision": "fp32"}
    assert {k.decode(): v.decode() for k, v in table.schema.metadata.items()} == wanted


def test_parquet_of_residues_streams_in_groups(tmp_path, monkeypatch):
    given_ = rows(PLAIN, per_residue=True)
    monkeypatch.setattr("bioxfer.containers.parquet._BYTES", 100)
    store(tmp_path / "v.parquet", given_, per_residue=True)
    assert parquet.ParquetFile(tmp_path / "v.parquet").num_row_groups > 3
    found = pd.read_parquet(tmp_path / "v.parquet")["embedding"]
    assert found[1] is None
    for matrix, each in zip(found, given_, strict=True):
        if each.residues is not None:
            np.testing.assert_array_equal(np.stack(matrix), each.residues)


def test_anndata_reads_it_and_what_it_writes_is_read_again(tmp_path):
    anndata = pytest.importorskip("anndata", reason="the package anndata is not installed")
    given_ = rows(PLAIN)
    path = store(tmp_path / "v.h5ad", given_)
    found = anndata.read_h5ad(path)
    assert found.X.dtype == np.float32
    assert found.obs_names.tolist() == PLAIN
    assert found.obs.index.name == "id"
    assert found.obs["length"].tolist() == [each.length for each in given_]
    assert found.obs["status"].tolist() == [each.status for each in given_]
    assert found.obs["message"].tolist()[1] == "empty sequence"
    assert found.var_names.tolist() == ["mean_0", "mean_1", "mean_2", "max_0", "max_1", "max_2"]
    assert found.uns == FACTS | {"pool": "mean+max"}
    np.testing.assert_array_equal(found.X, read_embeddings(path).vectors)
    good = found[found.obs["status"] == "ok", ["mean_0", "max_2"]]
    assert good.shape == (len(PLAIN) - 1, 2)
    given_[0].record = SequenceRecord("a", "", origin=Origin("chr", "+", 1, 9, 1, 11))
    traced = anndata.read_h5ad(store(tmp_path / "o.h5ad", given_, origins=True))
    assert traced.obs["start"].tolist()[0] == 1
    assert traced.obs["start"].isna().tolist() == [False] + [True] * (len(PLAIN) - 1)
    if int(pd.__version__.split(".")[0]) >= 3:
        pytest.skip("anndata 0.12 reads with pandas 3 but cannot write")
    found.write_h5ad(tmp_path / "again.h5ad")  # where texts become categories
    same(read_embeddings(tmp_path / "again.h5ad"), given_)
    traced.write_h5ad(tmp_path / "again.h5ad")
    with open_embeddings(tmp_path / "again.h5ad") as stored:
        assert next(stored.rows()).record.origin == Origin("chr", "+", 1, 9, 1, 11)


def test_h5ad_is_laid_out_as_described(tmp_path):
    """Where anndata is not installed; a reader goes by these attributes."""
    store(tmp_path / "v.h5ad", rows(PLAIN))
    with h5py.File(tmp_path / "v.h5ad") as file:
        kinds = {
            name: (entry.attrs["encoding-type"], entry.attrs["encoding-version"])
            for name, entry in [("", file), *file.items(), *file["obs"].items()]
        }
        assert kinds[""] == ("anndata", "0.1.0")
        assert kinds["X"] == kinds["length"] == ("array", "0.2.0")
        assert kinds["obs"] == kinds["var"] == ("dataframe", "0.2.0")
        assert kinds["id"] == kinds["status"] == ("string-array", "0.2.0")
        assert kinds["uns"] == kinds["obsm"] == ("dict", "0.1.0")
        assert file["obs"].attrs["_index"] == "id"
        assert file["obs"].attrs["column-order"].tolist() == ["length", "status", "message"]
        assert file["X"].shape == (len(PLAIN), 2 * DIM)


def test_converted_vectors_serve_scikit_learn(tmp_path):
    from sklearn.linear_model import LogisticRegression

    dice = np.random.default_rng(0)
    labels = np.arange(20) % 2
    (tmp_path / "pt").mkdir()
    for number, label in enumerate(labels):
        vector = torch.tensor(dice.normal(size=4) + 3 * label, dtype=torch.float32)
        entry = {"label": f"p{number:02}", "mean_representations": {6: vector}}
        torch.save(entry, tmp_path / "pt" / f"p{number:02}.pt")
    convert_embeddings(tmp_path / "pt", tmp_path / "v.h5")
    found = bx.read_embeddings(tmp_path / "v.h5")
    assert LogisticRegression().fit(found.vectors, labels).score(found.vectors, labels) > 0.9


# --- fair-esm's folders -------------------------------------------------------------------------------


def pt_folder(folder: Path, records, *, parts=("mean",), layers=(6,), longest=1022) -> dict[str, dict]:
    """Write what fair-esm's extract.py does, a file for each record; what they hold."""
    dice = torch.Generator().manual_seed(0)
    told = {}
    for record in records:
        label = record.description or record.id
        count = min(longest, len(record.sequence))
        matrices = {layer: torch.randn(count, DIM, generator=dice) for layer in layers}
        entry: dict = {"label": label}
        if "per_tok" in parts:
            entry["representations"] = matrices
        if "mean" in parts:
            entry["mean_representations"] = {layer: matrix.mean(0) for layer, matrix in matrices.items()}
        if "bos" in parts:
            entry["bos_representations"] = {layer: torch.randn(DIM, generator=dice) for layer in layers}
        if "contacts" in parts:
            entry["contacts"] = torch.rand(count, count, generator=dice)
        path = folder / f"{label}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(entry, path)
        told[record.id] = entry
    return told


LABELLED = [
    SequenceRecord("sp|P2|B", "MKVLA", "sp|P2|B Second protein"),
    SequenceRecord("a/b/c", "MKVLAW", "a/b/c with slashes"),
    SequenceRecord("p1", "MK"),
]


def test_a_folder_of_fairesm_is_read_by_label(tmp_path):
    told = pt_folder(tmp_path / "pt", LABELLED)
    found = read_embeddings(tmp_path / "pt")
    assert found.ids == ["a/b/c", "p1", "sp|P2|B"]
    assert (found.layer, found.pool, found.lengths, found.statuses) == (6, "mean", [-1] * 3, ["ok"] * 3)
    for name, vector in zip(found.ids, found.vectors, strict=True):
        np.testing.assert_array_equal(vector, told[name]["mean_representations"][6])


def test_layers_and_poolings_of_a_folder_are_chosen(tmp_path):
    told = pt_folder(tmp_path / "pt", LABELLED, parts=("mean", "bos", "per_tok"), layers=(0, 6))
    source, out = tmp_path / "pt", tmp_path / "v.npz"
    code, _, err = run("convert", source, "-o", out)
    assert code == 2
    assert one_sentence(err).endswith(
        "c with slashes.pt: holds mean and bos and residues; choose one with --pool"
    )
    code, _, err = run("convert", source, "-o", out, "--pool", "bos")
    assert code == 2
    assert one_sentence(err).endswith("holds layers 0, 6; choose one with --layer")
    code, _, err = run("convert", source, "-o", out, "--pool", "bos", "--layer", "5")
    assert "holds layer 0, 6, but no layer 5; choose another with --layer" in one_sentence(err)
    for pool, key in (("mean", "mean_representations"), ("bos", "bos_representations")):
        assert run("convert", source, "-o", out, "--pool", pool, "--layer", 0, "--overwrite").code == 0
        found = read_embeddings(out)
        assert (found.layer, found.pool) == (0, "cls" if pool == "bos" else "mean")
        np.testing.assert_array_equal(found.vectors[1], told["p1"][key][0])
    assert run("convert", source, "-o", out, "--pool", "residues", "--layer", 6, "--overwrite").code == 0
    found = read_embeddings(out)
    assert found.lengths == [6, 2, 5]
    np.testing.assert_array_equal(found.residues[2], told["sp|P2|B"]["representations"][6])


def test_means_are_made_where_only_residues_are_stored(tmp_path):
    told = pt_folder(tmp_path / "pt", LABELLED, parts=("per_tok",))
    found = read_embeddings(tmp_path / "pt", pool="mean")
    np.testing.assert_allclose(
        found.vectors[1], told["p1"]["representations"][6].mean(0), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(UsageError, match="holds residues, but no cls"):
        read_embeddings(tmp_path / "pt", pool="bos")


def test_a_protein_without_residues_and_one_of_nan_keep_their_rows(tmp_path):
    pt_folder(tmp_path / "pt", [*LABELLED, SequenceRecord("void", "")], parts=("mean",))
    found = read_embeddings(tmp_path / "pt")
    assert (found.statuses[-1], found.messages[-1]) == ("failed", "numbers that are not finite")  # 0 / 0
    pt_folder(tmp_path / "r", [*LABELLED, SequenceRecord("void", "")], parts=("per_tok",))
    found = read_embeddings(tmp_path / "r")
    assert (found.statuses[-1], found.messages[-1], found.residues[-1]) == ("skipped", "no numbers", None)
    assert np.isnan(found.vectors[-1]).all()


def pt_file(folder: Path, entry: object, name: str = "p9.pt", **options) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(entry, folder / name, **options)
    return folder


VECTOR = {6: torch.zeros(DIM)}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ([1], "holds no dictionary"),
        ({"mean_representations": VECTOR}, "has no label"),
        ({"label": 7, "mean_representations": VECTOR}, "has no label"),
        ({"label": " x", "mean_representations": VECTOR}, "without an id"),
        ({"label": "p9"}, "has no mean_representations of layer 6, which the first file has"),
        ({"label": "p9", "mean_representations": {5: torch.zeros(DIM)}}, "of layer 6"),
        ({"label": "p9", "mean_representations": {6: torch.zeros(2, DIM)}}, "no array of 1 dimensions"),
        ({"label": "p9", "mean_representations": {6: [0.0] * DIM}}, "no array of 1 dimensions"),
        ({"label": "p9", "mean_representations": {6: torch.zeros(1).expand(2**40)}}, "of its own"),
        ({"label": "p9", "mean_representations": {6: torch.zeros(DIM + 1)}}, "4 numbers where the first"),
        ({"label": "p1 again", "mean_representations": VECTOR}, "both have the id 'p1', the first word"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_a_folder_that_is_odd_is_refused_by_name(tmp_path, entry, told, zipped):
    pt_folder(tmp_path / "pt", LABELLED)
    pt_file(tmp_path / "pt", entry, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BioxferError, match=told) as refused:
        read_embeddings(tmp_path / "pt")
    assert "p9" in str(refused.value)
    out = tmp_path / "v.h5"
    code, _, err = run("convert", tmp_path / "pt", "-o", out)
    assert (code, out.exists()) == (3, False)
    assert told in one_sentence(err)


@pytest.mark.parametrize("zipped", [True, False])
def test_f31_a_file_that_wants_more_than_tensors_is_refused_and_not_run(tmp_path, zipped):
    pt_folder(tmp_path / "pt", LABELLED)
    entry = {"label": Canary(tmp_path / "canary"), "mean_representations": VECTOR}
    pt_file(tmp_path / "pt", entry, _use_new_zipfile_serialization=zipped)
    for options in ([], ["--fasta", tmp_path / "in.fasta"]):
        (tmp_path / "in.fasta").write_text(fasta(LABELLED))
        code, _, err = run("convert", tmp_path / "pt", "-o", tmp_path / "v.h5", *options)
        assert code == 3
        assert "p9.pt: refused, it is damaged or holds more than tensors and plain values" in one_sentence(
            err
        )
    assert not (tmp_path / "canary").exists()


def test_what_is_no_folder_of_fairesm_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"a folder without a \.pt file"):
        read_embeddings(tmp_path)
    pt_file(tmp_path / "pt", {"label": "a", "model": {}})
    with pytest.raises(FormatError, match="holds no representations; give the folder that fair-esm"):
        read_embeddings(tmp_path / "pt")
    with pytest.raises(InputError, match="give the folder it lies in"):
        read_embeddings(tmp_path / "pt" / "p9.pt")
    with pytest.raises(InputError, match="no such file or folder"):
        read_embeddings(tmp_path / "none.h5")
    (tmp_path / "v.txt").touch()
    with pytest.raises(InputError, match="choose one of these"):
        read_embeddings(tmp_path / "v.txt")


def test_memory_holds_one_file_of_a_folder_at_a_time(tmp_path, monkeypatch):
    """Read one by one: nothing is opened before the row before it was handed on."""
    import bioxfer.containers.fairesm as module

    opened = []
    true = module.read_restricted
    monkeypatch.setattr(module, "read_restricted", lambda path, **k: opened.append(path) or true(path, **k))
    pt_folder(tmp_path / "pt", proteins(30), parts=("per_tok",))
    with open_embeddings(tmp_path / "pt") as stored:
        for number, row in enumerate(stored.rows(), start=1):
            assert len(opened) == number + 1  # the first twice: it tells layers and poolings
            assert row.residues.flags.owndata  # no view of a file that is mapped


STREAM = """
import sys, tracemalloc
import numpy as np
import bioxfer.vectors
from bioxfer.embedding import EmbeddedRecord
from bioxfer.exchange import convert_embeddings
from bioxfer.sequences import SequenceRecord
import bioxfer.containers.h5ad as h5ad, bioxfer.containers.npz as npz, bioxfer.containers.parquet as pq
bioxfer.vectors._BEHIND = 2**18
h5ad._ROWS = pq._ROWS = 64
npz._PIECE = 2**14
def rows(count):
    for n in range(count):
        record = SequenceRecord(f"p{n}", "M" * 40)
        yield EmbeddedRecord(record, 40, "ok", residues=np.ones((40, 64), np.float32),
                             pooled={"mean": np.ones(64, np.float32)})
name, per_residue = sys.argv[1], "residues" in sys.argv[1]
peaks = []
for count in (100, 200, 1200):
    bioxfer.vectors.write_vectors(name, rows(count), pool="mean", width=64, facts={}, per_residue=per_residue)
    tracemalloc.start()
    convert_embeddings(name, sys.argv[2])
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
print((peaks[2] - peaks[1]) / 1000)  # what waits for the writer is 262 bytes of it at most
"""


@pytest.mark.parametrize("name", ["residues.npz", "residues.h5", "residues.parquet", "v.csv", "v.h5ad"])
def test_memory_does_not_grow_with_what_is_converted(tmp_path, name):
    out = tmp_path / ("out.h5" if "residues" in name else "out.h5ad")
    told = subprocess.run(
        [sys.executable, "-c", STREAM, tmp_path / name, out], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert float(told.stdout) < 600  # bytes a record, ids and keys among them; a matrix has 10,240


# --- HDF5 of other tools ------------------------------------------------------------------------------


def h5_file(path: Path, entries: dict[str, object], ids: dict[str, object] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in entries.items():
            file.create_dataset(key, data=values)
            if ids and key in ids:
                file[key].attrs["original_id"] = ids[key]
    return path


def test_numbers_as_keys_are_in_the_order_of_numbers(tmp_path):
    """bio_embeddings numbers its proteins by their place in the FASTA."""
    entries = {str(n): np.full((n + 1, DIM), n, np.float16) for n in range(12)}
    path = h5_file(tmp_path / "v.h5", entries, {key: f"p{key}" for key in entries})
    found = read_embeddings(path)
    assert found.ids == [f"p{n}" for n in range(12)]
    assert found.lengths == [n + 1 for n in range(12)]
    assert found.residues[11].dtype == np.float32
    assert (found.residues[11] == 11).all()


def test_biotrainers_hashes_and_uniprots_accessions_have_their_ids(tmp_path):
    """biotrainer: packed chunks under hashes; UniProt: half precision under accessions."""
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for key, name in (("9f", "sp|P1|A"), ("0a", "b")):
            data = np.arange(DIM, dtype=np.float32)
            file.create_dataset(key, data=data, compression="gzip", chunks=True).attrs["original_id"] = name
    assert read_embeddings(tmp_path / "b.h5").ids == ["b", "sp|P1|A"]
    path = h5_file(tmp_path / "u.h5", {"P2": np.ones(DIM, np.float16), "P1": np.zeros(DIM, np.float16)})
    found = read_embeddings(path)
    assert (found.ids, found.pool, found.lengths) == (["P1", "P2"], "mean", [-1, -1])
    assert found.vectors.tolist() == [[0] * DIM, [1] * DIM]


def test_keys_with_slashes_are_joined_again(tmp_path):
    path = h5_file(tmp_path / "v.h5", {"a/b/c": np.ones(DIM), "a/d": np.zeros(DIM), "e": np.ones(DIM)})
    assert read_embeddings(path).ids == ["a/b/c", "a/d", "e"]
    (tmp_path / "in.fasta").write_text(">e\nMK\n>a/b/c\nMKV\n")
    convert_embeddings(path, tmp_path / "out.h5", fasta=tmp_path / "in.fasta")
    found = read_embeddings(tmp_path / "out.h5")
    assert (found.ids, found.lengths) == (["e", "a/b/c"], [2, 3])


def linked(path: Path, what: str) -> Path:
    """Write an HDF5 whose second entry lies elsewhere, or is none."""
    other = h5_file(path.with_name("secret.h5"), {"s": np.ones(DIM)})
    h5_file(path, {"a": np.ones(DIM, np.float32)})
    with h5py.File(path, "a") as file:
        if what == "soft":
            file["b"] = h5py.SoftLink("/a")
        elif what == "external":
            file["b"] = h5py.ExternalLink(str(other), "/s")
        elif what == "virtual":
            layout = h5py.VirtualLayout((DIM,), "f4")
            layout[:] = h5py.VirtualSource(str(other), "s", shape=(DIM,))
            file.create_virtual_dataset("b", layout)
        elif what == "storage":
            raw = path.with_name("raw.bin")
            raw.write_bytes(bytes(4 * DIM))
            file.create_dataset("b", (DIM,), "f4", external=[(str(raw), 0, 4 * DIM)])
        elif what == "reference":
            file.create_dataset("b", data=[file["a"].ref] * DIM, dtype=h5py.ref_dtype)
        elif what == "type":
            file["b"] = np.dtype("f4")
        elif what == "cycle":
            file["b/c"] = file["/"]
        elif what == "doubling":  # 2 ** 40 keys
            group = file
            for _ in range(40):
                group["c"] = group.create_group("b")
                group = group["b"]
        elif what == "unwritten":
            file.create_dataset("b", (DIM,), "f4")
        elif what == "claim":
            file.create_dataset("b", (2**40, DIM), "f4", chunks=(1024, DIM))
        elif what == "twice":
            for key in ("b", "c"):
                file.create_dataset(key, data=np.ones(DIM)).attrs["original_id"] = "x"
        elif what == "status":
            file.create_dataset("b", data=np.ones(DIM)).attrs["status"] = "fine"
        elif what == "id":
            file.create_dataset("b", data=np.ones(DIM)).attrs["original_id"] = ""
        else:
            file["b"] = {
                "text": np.array([b"x"] * DIM), "whole": np.ones(DIM, int), "wide": np.ones(DIM + 1),
                "matrix": np.ones((2, DIM)), "cube": np.ones((2, 2, DIM)), "one": np.float32(1),
            }[what]  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("soft", "a link to another name, which is not followed"),
        ("external", r"a link to another file, '.*secret\.h5', which is not followed"),
        ("virtual", "its numbers lie in other files, which are not opened"),
        ("storage", "its numbers lie in other files, which are not opened"),
        ("reference", "holds object, where floating-point numbers should be"),
        ("type", "is neither a group nor a dataset"),
        ("cycle", "a group that the file holds twice"),
        ("doubling", "a group that the file holds twice"),
        ("unwritten", "states 3 numbers but has 0 bytes of them"),
        ("claim", "states 3298534883328 numbers but has 0 bytes of them"),
        ("twice", "'b' and 'c' both have the id 'x'"),
        ("status", "the status 'fine' is none of ok, windowed"),
        ("id", "a record without an id"),
        ("text", "where floating-point numbers should be"),
        ("whole", "holds int64, where floating-point numbers should be"),
        ("wide", "4 numbers where the first record has 3"),
        ("matrix", "2 x 3 numbers where the first record has 3"),
        ("cube", "2 x 2 x 3 numbers where the first record has 3"),
        ("one", "numbers where the first record has 3"),
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_an_hdf5_that_is_not_its_own_is_refused(tmp_path, what, told, ordered):
    path = linked(tmp_path / "v.h5", what)
    out = tmp_path / "out.npz"
    (tmp_path / "in.fasta").write_text(">b\nMK\n>a\nMK\n")
    options = {"fasta": tmp_path / "in.fasta"} if ordered and what not in ("twice", "id") else {}
    with pytest.raises(BioxferError, match=told) as refused:
        convert_embeddings(path, out, **options)
    assert "v.h5" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_three_layers_of_seqvec_are_refused_with_what_to_do(tmp_path):
    path = h5_file(tmp_path / "v.h5", {"a": np.ones((3, 5, DIM))})
    with pytest.raises(FormatError, match=r"has 3 dimensions, where \(D,\) or \(L, D\) should be"):
        read_embeddings(path)


@pytest.mark.parametrize("name", ["v.npz", "v.h5", "v.h5ad", "v.parquet"])
@pytest.mark.parametrize("how", ["cut", "text", "empty"])
def test_a_damaged_file_is_one_sentence(tmp_path, name, how):
    path = store(tmp_path / name, rows(PLAIN))
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b">a\nMKV\n", "empty": b""}[how])
    code, _, err = run("convert", path, "-o", tmp_path / "out.csv")
    assert code == 3
    assert name in one_sentence(err)


# --- NumPy archives of strangers ----------------------------------------------------------------------


def npz_arrays(**changes: object) -> dict[str, object]:
    arrays: dict[str, object] = {
        "ids": np.array(["a", "b"]),
        "lengths": np.array([3, 2]),
        "statuses": np.array(["ok", "ok"]),
        "messages": np.array(["", ""]),
        "vectors": np.ones((2, DIM), np.float32),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


RESIDUES = {"vectors": None, "residues": np.ones((5, DIM), np.float32), "offsets": np.array([0, 3, 5])}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vectors": None}, r"no array 'vectors' \(found: ids, lengths, messages, statuses\)"),
        ({"statuses": None}, "no array 'statuses'"),
        ({"vectors": np.ones((3, DIM))}, "3 vectors for 2 ids"),
        ({"lengths": np.ones(3, int)}, "3 lengths for 2 ids"),
        ({"vectors": np.ones(DIM)}, "is 1-dimensional of float64, where rows"),
        ({"vectors": np.ones((2, DIM), int)}, "of int64, where rows of floating-point numbers"),
        ({"vectors": np.asfortranarray(np.ones((2, DIM)))}, "lies in columns"),
        ({"ids": np.array([1, 2])}, "of int64, where a list of texts should be"),
        ({"ids": np.array([["a", "b"]])}, "is 2-dimensional"),
        ({"ids": np.array(["a", ""])}, "a record without an id"),
        ({"lengths": np.array([1.0, 2.0])}, "where a list of whole numbers should be"),
        ({"lengths": np.array([-2, 2])}, "a length of -2"),
        ({"lengths": np.array([2**63, 2], np.uint64)}, "a length of 9223372036854775808"),
        ({"ids": np.array(["a\0b", "b"])}, "record 1 .*: holds a NUL or half a character"),
        ({"ids": np.array(["\ud800", "b"])}, "record 1 .*: holds a NUL or half a character"),
        ({"messages": np.array(["", "\0b"])}, "holds a NUL or half a character"),
        ({"statuses": np.array(["ok", "good"])}, "the status 'good' is none of"),
        ({"statuses": np.array(["ok", "skipped"])}, "has status skipped and a vector"),
        ({"vectors": np.array([[1, 1, np.nan]] * 2)}, "has status ok and no vector of finite numbers"),
        ({"pool": np.array("median")}, "'median' in 'median' is no pooling"),
        ({"pool": np.array("mean+max")}, r"3 dimensions are no mean\+max"),
        (RESIDUES | {"offsets": np.array([0, 3])}, "2 offsets for 2 ids"),
        (RESIDUES | {"offsets": np.array([0, 4, 5])}, "4 residues where the length is 3"),
        (RESIDUES | {"offsets": np.array([0, 6, 5])}, "offsets from 0 to 6 of 5 residues"),
        (RESIDUES | {"offsets": np.array([0, -3, 5])}, "offsets from 0 to -3 of 5 residues"),
        (RESIDUES | {"offsets": np.array([1, 3, 5])}, "offsets do not begin with 0"),
        (RESIDUES | {"residues": np.ones((6, DIM))}, "1 residues are no record's"),
    ],
)
def test_an_npz_of_strangers_is_refused(tmp_path, changes, told):
    path = tmp_path / "v.npz"
    np.savez(path, **npz_arrays())
    assert read_embeddings(path).lengths == [3, 2]  # as it stands it is sound
    np.savez(path, **npz_arrays(**changes))
    with pytest.raises(FormatError, match=told) as refused:
        read_embeddings(path)
    assert "v.npz" in str(refused.value)


def test_f31_an_npz_with_objects_is_not_unpickled(tmp_path):
    canary = np.array([Canary(tmp_path / "canary")] * 2, dtype=object)
    for name in ("ids", "vectors", "model"):
        np.savez(tmp_path / "v.npz", **npz_arrays(**{name: canary}))
        code, _, err = run("convert", tmp_path / "v.npz", "-o", tmp_path / "out.csv")
        assert code == 3
        assert f"array '{name}' holds Python objects, which are never unpickled" in one_sentence(err)
    assert not (tmp_path / "canary").exists()


def raw_npz(path: Path, members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return path


def npy(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_members_that_are_no_arrays_is_refused(tmp_path):
    sound = [(f"{name}.npy", npy(values)) for name, values in npz_arrays().items()]
    path = tmp_path / "v.npz"
    assert read_embeddings(raw_npz(path, sound)).ids == ["a", "b"]
    for name in ("../../up.npy", "/etc/x.npy", "a/b.npy", "..\\up.npy", "readme.txt"):
        with pytest.raises(FormatError, match="which names no array"):
            read_embeddings(raw_npz(path, [*sound, (name, npy(np.ones(1)))]))
    with pytest.raises(FormatError, match=r"holds 'ids\.npy' 2 times"):
        read_embeddings(raw_npz(path, [*sound, sound[0]]))
    head = npy(np.ones((2, DIM), np.float32))
    claim = head.replace(b"(2, 3), }            ", b"(2, 1099511627776), }")
    assert len(claim) == len(head)
    assert claim != head
    with pytest.raises(FormatError, match="states 2 x 1099511627776 of float32, but has 24 bytes"):
        read_embeddings(raw_npz(path, [*sound[:4], ("vectors.npy", claim)]))
    assert [each.name for each in tmp_path.iterdir()] == ["v.npz"]


def test_a_zip_bomb_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("bioxfer.containers.npz._LARGE", 2**20)
    arrays = npz_arrays(vectors=np.zeros((2, 2**20), np.float32))
    np.savez_compressed(tmp_path / "v.npz", **arrays)
    with pytest.raises(
        FormatError, match=r"bytes would unpack to 83\d+; no embeddings do, so it is not opened"
    ):
        read_embeddings(tmp_path / "v.npz")
    np.savez_compressed(tmp_path / "v.npz", **npz_arrays())  # one that is packed as usual
    assert read_embeddings(tmp_path / "v.npz").ids == ["a", "b"]


def test_a_flipped_bit_of_an_npz_is_seen(tmp_path):
    path = store(tmp_path / "v.npz", rows(PLAIN))
    data = bytearray(path.read_bytes())
    place = data.index(rows(PLAIN)[2].vector("mean+max").tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="Bad CRC-32"):
        read_embeddings(path)


# --- tables and AnnData of strangers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id,length,mean_0\na,1,0.5\n", "no column 'status'"),
        ("id,length,status,message\na,1,ok,\n", "no columns where mean_0, mean_1, ... should stand"),
        ("id,length,status,message,mean_1\na,1,ok,,1\n", "'mean_1' where mean_0"),
        ("id,length,status,message,mean_0,max_1\na,1,ok,,1,2\n", "'mean_0', 'max_1' where mean_0"),
        ("id,length,status,message,mean_0\na,1,ok,,x\n", "line 2: could not convert string to float: 'x'"),
        ("id,length,status,message,mean_0,mean_1\na,1,ok,,1,\n", "line 2: could not convert"),
        ("id,length,status,message,mean_0\na,1,ok,,inf\n", "has status ok and no vector of finite numbers"),
        ("id,length,status,message,mean_0\na,1,ok,,\n", "has status ok and no vector"),
        ("id,length,status,message,mean_0\na,one,ok,,1\n", "invalid literal for int"),
        ("id,length,status,message,mean_0\n,1,ok,,1\n", "a record without an id"),
        ("id,length,status,message,mean_0\na,1" + "0" * 20 + ",ok,,1\n", "a length of 1000"),
        (
            f"id,length,status,message,{','.join(ORIGIN_COLUMNS)},mean_0\na,1,ok,,c,+,1{'0' * 20},9,1,1,1\n",
            "line 2: 100000000000000000000, in the columns of the origin",
        ),
    ],
)
def test_a_table_of_strangers_is_refused(tmp_path, text, told):
    path = tmp_path / "v.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=told) as refused:
        read_embeddings(path)
    assert "v.csv" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.drop(columns="status"), "no column 'status'"),
        (lambda t: t.assign(length=["x", "y"]), "column 'length' is"),
        (lambda t: t.drop(columns="embedding"), "no columns where mean_0"),
        (lambda t: t.assign(embedding=[1.0, 2.0]), "column 'embedding' is double"),
        (lambda t: t.assign(embedding=[[1.0], [2.0, 3.0]]), "column 'embedding' is list"),
        (lambda t: t.assign(embedding=["a", "b"]), "where fixed_size_list<float> should be"),
    ],
)
def test_a_parquet_of_strangers_is_refused(tmp_path, change, told):
    path = store(tmp_path / "v.parquet", rows(["a", "b"]))
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(FormatError, match=told):
        read_embeddings(path)


def spoiled(path: Path, what: str) -> Path:
    store(path, rows(PLAIN))
    with h5py.File(path, "a") as file:
        if what == "sparse":
            del file["X"]
            file.create_group("X").create_dataset("data", data=np.ones(3))
        elif what == "rows":
            file["X"].resize(5, axis=0)
        elif what == "columns":
            file["var/_index"].resize((5,))
        elif what == "genes":
            file["var/_index"][0] = "BRCA1"
        elif what == "link":
            del file["obs/status"]
            file["obs/status"] = h5py.ExternalLink("other.h5", "/s")
        else:
            del file[what]
    return path


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("sparse", "X is no dense matrix"),
        ("rows", "14 of 'id' for 5 rows of X"),
        ("columns", "5 names for 6 columns of X"),
        ("genes", "'BRCA1', 'mean_1', 'mean_2', ... where mean_0"),
        ("link", r"a link to another file, 'other\.h5'"),
        ("obs", "has no 'obs'; this is no AnnData file"),
        ("obs/id", "has no 'id'"),
        ("obs/status", "no column 'status' in obs"),
    ],
)
def test_an_h5ad_of_strangers_is_refused(tmp_path, what, told):
    path = spoiled(tmp_path / "v.h5ad", what)
    with pytest.raises(FormatError, match=told):
        read_embeddings(path)


# --- in the order of a FASTA --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pt", *ALL])
def test_a_fasta_gives_order_and_lengths(tmp_path, name, caplog):
    if name == "pt":
        pt_folder(tmp_path / "pt", LABELLED)
    else:
        given_ = [EmbeddedRecord(r, -1, "ok", "", {"mean": np.full(DIM, n, np.float32)})
                  for n, r in enumerate(LABELLED)]  # fmt: skip
        write_vectors(tmp_path / name, given_, pool="mean", width=DIM, facts={})
    found = read_embeddings(tmp_path / name)
    assert found.lengths == [-1] * 3
    vectors = dict(zip(found.ids, found.vectors.tolist(), strict=True))
    (tmp_path / "in.fasta").write_text(">p1 one\nMK*\n>new\nMKV\n>sp|P2|B\nMKVLA\n")
    out = tmp_path / "out.csv"
    code, _, err = run("convert", tmp_path / name, "-o", out, "--fasta", tmp_path / "in.fasta")
    assert code == 0
    first, last = err.splitlines()
    assert f"1 of 3 entries of {tmp_path / name} are not in" in first
    assert first.endswith("left out ('a/b/c')")
    assert last.endswith("3 records (2 ok, 1 skipped)")
    found = read_embeddings(out)
    assert (found.ids, found.lengths) == (["p1", "new", "sp|P2|B"], [2, 3, 5])
    assert found.statuses == ["ok", "skipped", "ok"]
    assert found.messages == ["", f"not in {name}", ""]
    assert found.vectors[[0, 2]].tolist() == [vectors["p1"], vectors["sp|P2|B"]]


@pytest.mark.parametrize("name", MATRICES)
def test_a_fasta_orders_residues_too(tmp_path, name):
    given_ = rows(PLAIN, per_residue=True)
    source = store(tmp_path / name, given_, per_residue=True)
    (tmp_path / "in.fasta").write_text(
        "".join(f">{e.record.id}\n{e.record.sequence}\n" for e in given_[::-1])
    )
    convert_embeddings(source, tmp_path / "out.npz", fasta=tmp_path / "in.fasta")
    same(read_embeddings(tmp_path / "out.npz"), given_[::-1], per_residue=True)


def test_accessions_find_their_proteins(tmp_path):
    """UniProt's files have accessions where its FASTA has sp|P1|A_HUMAN."""
    path = h5_file(tmp_path / "v.h5", {"P1": np.ones(DIM), "P2": np.zeros(DIM)})
    (tmp_path / "in.fasta").write_text(">sp|P2|B_HUMAN\nMK\n>sp|P1|A_HUMAN\nMKV\n")
    convert_embeddings(path, tmp_path / "out.h5", fasta=tmp_path / "in.fasta")
    found = read_embeddings(tmp_path / "out.h5")
    assert found.ids == ["sp|P2|B_HUMAN", "sp|P1|A_HUMAN"]
    assert found.vectors[:, 0].tolist() == [0, 1]
    (tmp_path / "in.fasta").write_text(">sp|P2|B_HUMAN\nMK\n>P2\nMK\n")
    with pytest.raises(InputError, match=r"'sp\|P2\|B_HUMAN' and 'P2' are both the entry 'P2'"):
        convert_embeddings(path, tmp_path / "out.h5", fasta=tmp_path / "in.fasta")


def test_what_fairesm_has_cut_is_told(tmp_path):
    long = [SequenceRecord("l", "MKV" * 400)]
    (tmp_path / "in.fasta").write_text(fasta(long))
    pt_folder(tmp_path / "r", long, parts=("per_tok",))
    convert_embeddings(tmp_path / "r", tmp_path / "r.npz", fasta=tmp_path / "in.fasta")
    found = read_embeddings(tmp_path / "r.npz")
    assert (found.lengths, found.statuses) == ([1200], ["truncated"])
    assert found.messages == ["1022 of 1200 residues are represented"]
    pt_folder(tmp_path / "c", long, parts=("mean", "contacts"))
    convert_embeddings(tmp_path / "c", tmp_path / "c.npz", fasta=tmp_path / "in.fasta")
    assert read_embeddings(tmp_path / "c.npz").statuses == ["truncated"]
    pt_folder(tmp_path / "m", long)
    convert_embeddings(tmp_path / "m", tmp_path / "m.npz", fasta=tmp_path / "in.fasta")
    found = read_embeddings(tmp_path / "m.npz")
    assert found.messages == ["1200 residues, of which fair-esm's extract.py may have read 1022 alone"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (">x\nMK\n>y\nMK\n", r"none of the 2 ids of .*in\.fasta is in .*: there they are 'a/b/c', 'p1', 'sp"),
        (">p1\nM\n", r"record 'p1' .*: has 1 residues, but 2 in"),
        (">p1\nMK\n>p1\nMK\n", "id 'p1' is already used"),
        ("p1\n", "stands where the first '>' should"),
    ],
)
def test_a_fasta_of_other_proteins_is_refused(tmp_path, text, told):
    pt_folder(tmp_path / "pt", LABELLED, parts=("per_tok",))
    (tmp_path / "in.fasta").write_text(text)
    out = tmp_path / "out.npz"
    with pytest.raises(InputError, match=told):
        convert_embeddings(tmp_path / "pt", out, fasta=tmp_path / "in.fasta")
    assert not out.exists()


def test_a_fasta_must_be_a_file_and_there(tmp_path):
    path = store(tmp_path / "v.npz", rows(["a", "b"]))
    for name, told in (("-", "read twice, which a stream does not allow"), ("none.fasta", "no such file")):
        code, _, err = run("convert", path, "-o", tmp_path / "o.csv", "--fasta", name, stdin=b">a\nM\n")
        assert code == 3
        assert told in one_sentence(err)


@pytest.mark.parametrize("name", ["v.npz", "v.h5ad", "v.parquet", "v.csv"])
@pytest.mark.parametrize("ordered", [False, True])
def test_f6_two_records_of_one_id_are_refused(tmp_path, name, ordered):
    path = store(tmp_path / name, rows(["a", "b", "a"]))
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    fasta = tmp_path / "in.fasta" if ordered else None
    with pytest.raises(DuplicateIdError, match="records 1 and 3 have the id 'a'"):
        convert_embeddings(path, tmp_path / "out.h5", fasta=fasta)
    with pytest.raises(DuplicateIdError, match="records 1 and 3 have the id 'a'"):
        read_embeddings(path)
    assert not (tmp_path / "out.h5").exists()


# --- the command --------------------------------------------------------------------------------------


def test_embed_and_convert_on_the_command_line(bench):
    for name in ("v.h5", "v.h5ad", "v.parquet"):
        assert bench.embed(bench.fasta, out=bench.folder / name).code == 0
    bench.embed(bench.fasta)
    code, out, err = run("convert", bench.folder / "v.h5", "-o", "-")
    assert (code, err) == (0, "bioxfer: 6 records (6 ok)\n")
    assert out == bench.out.read_bytes()
    found = [read_embeddings(bench.folder / name) for name in ("v.h5", "v.h5ad", "v.parquet")]
    assert len({(each.model, each.layer, each.fingerprint) for each in found}) == 1
    assert found[0].fingerprint
    assert bench.embed(bench.fasta, "--per-residue", out=bench.folder / "r.parquet").code == 0
    means = read_embeddings(bench.folder / "r.parquet")
    np.testing.assert_allclose(means.vectors, found[0].vectors, rtol=1e-4, atol=1e-5)


def test_f42_what_convert_would_destroy_or_cannot_write_is_refused(tmp_path):
    path = store(tmp_path / "v.npz", rows(PLAIN))
    old = path.read_bytes()
    code, _, err = run("convert", path, "-o", path, "--overwrite")
    assert (code, path.read_bytes()) == (3, old)
    assert "is the input" in one_sentence(err)
    (tmp_path / "out.h5").write_bytes(b"old")
    assert "exists" in one_sentence(run("convert", path, "-o", tmp_path / "out.h5").err)
    assert "cannot tell" in one_sentence(run("convert", path, "-o", tmp_path / "out.txt").err)
    told = one_sentence(run("convert", path, "-o", tmp_path / "o.csv", "--pool", "residues").err)
    assert told.endswith("holds mean+max, not residues; leave --pool out")
    told = one_sentence(run("convert", path, "-o", tmp_path / "o.csv", "--layer", "5").err)
    assert told.endswith("is of layer 2, not 5; leave --layer out")
    assert run("convert", tmp_path / "v.npz", "-o", tmp_path / "v.csv").code == 0
    code, _, err = run("convert", tmp_path / "v.csv", "-o", tmp_path / "out.npz", "--layer", 2)
    assert code == 2
    assert one_sentence(err).endswith("v.csv: does not tell its layer; leave --layer out")
    store(path, rows(["a", "b"])[1:])
    h5 = store(tmp_path / "v.h5", rows(["a", "b"])[1:])
    assert run("convert", path, "-o", tmp_path / "one.csv").code == 0
    told = one_sentence(run("convert", h5, "-o", tmp_path / "two.csv").err)
    assert told.endswith("holds no vector, so there is nothing to convert")
