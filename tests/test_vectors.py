"""Files of embeddings hold every record, in order, with its id and its float32 numbers to the last bit."""

from __future__ import annotations

import subprocess
import sys
import time

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import MissingExtraError, OutputError, UsageError
from bioxfer.sequences import SequenceRecord
from bioxfer.vectors import check_vector_format, write_vectors

IDS = ["a", "empty", "a/b", "..", "007", "1e5", "NA", "../../up", "/etc/x", "A", "é", "caf\udce9", "x" * 300,
       "record_2", "<b>,\"q\""]  # fmt: skip
DIM = 3


def rows(ids=IDS, *, per_residue: bool = False) -> list[EmbeddedRecord]:
    """One record for each id; the second has no vector."""
    dice = np.random.default_rng(0)
    found = []
    for number, name in enumerate(ids):
        if number == 1:
            found.append(EmbeddedRecord(SequenceRecord(name, ""), 0, "skipped", "empty sequence"))
            continue
        pooled = {pool: dice.normal(size=DIM).astype(np.float32) for pool in ("mean", "max")}
        residues = dice.normal(size=(number + 1, DIM)).astype(np.float32)
        record = SequenceRecord(name, "M" * (number + 1))
        found.append(EmbeddedRecord(record, number + 1, "ok", "", pooled, residues if per_residue else None))
    return found


def write(path, given, **changes):
    options = {"pool": "mean+max", "width": DIM, "facts": {"model": "toy", "layer": 2}}
    return write_vectors(path, given, **(options | changes))


@pytest.mark.parametrize("name", ["v.csv", "v.tsv", "v.csv.gz", "v.parquet"])
def test_tables_give_back_every_float(tmp_path, name):
    ids = [i for i in IDS if i.isprintable()]
    given = rows(ids)
    assert write(tmp_path / name, given) == {"ok": len(ids) - 1, "skipped": 1}
    if name.endswith(".parquet"):
        found = pd.read_parquet(tmp_path / name)
        wide = np.full((len(found), 2 * DIM), np.nan, np.float32)
        for place, vector in enumerate(found.pop("embedding")):
            if vector is not None:
                wide[place] = vector
        found[[f"{pool}_{n}" for pool in ("mean", "max") for n in range(DIM)]] = wide
    else:
        kinds = {f"{pool}_{n}": np.float32 for pool in ("mean", "max") for n in range(DIM)}
        separator = "\t" if ".tsv" in name else ","
        found = pd.read_csv(
            tmp_path / name,
            sep=separator,
            dtype={"id": str, **kinds},
            keep_default_na=False,
            na_values={column: [""] for column in kinds},
        )
    assert list(found["id"]) == ids
    assert list(found["length"]) == [each.length for each in given]
    numbers = found.iloc[:, 4:]
    assert list(numbers.columns) == ["mean_0", "mean_1", "mean_2", "max_0", "max_1", "max_2"]
    assert all(pd.api.types.is_float_dtype(kind) for kind in numbers.dtypes)
    assert numbers.iloc[1].isna().all()
    for place, each in enumerate(given):
        if each.pooled is not None:
            np.testing.assert_array_equal(numbers.iloc[place].to_numpy(np.float32), each.vector("mean+max"))


def test_npz_holds_records_and_facts(tmp_path):
    given = rows()
    write(tmp_path / "v.npz", given)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as found:
        assert found["ids"].tolist() == IDS
        assert found["statuses"].tolist() == [each.status for each in given]
        assert found["messages"][1] == "empty sequence"
        assert found["vectors"].dtype == np.float32
        assert np.isnan(found["vectors"][1]).all()
        np.testing.assert_array_equal(found["vectors"][2], given[2].vector("mean+max"))
        assert (str(found["model"]), int(found["layer"])) == ("toy", 2)


# What a header of FASTA can hold: any bytes but NUL, as numpy ends texts there.
ANY_IDS = st.lists(
    st.binary(min_size=1, max_size=12)
    .filter(lambda data: b"\0" not in data)
    .map(lambda data: data.decode("utf-8", "surrogateescape"))
    | st.sampled_from([".", "..", "/", "a/b", "A", "a", "record_1", "record_1_", "mean", "NA", "1e5"]),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(ids=ANY_IDS, per_residue=st.booleans(), suffix=st.sampled_from(["npz", "h5"]))
def test_f8_any_ids_come_back_in_order_with_their_numbers(tmp_path_factory, ids, per_residue, suffix):
    path, given_ = tmp_path_factory.mktemp("v") / f"v.{suffix}", rows(ids, per_residue=per_residue)
    write(path, given_, per_residue=per_residue)
    if suffix == "npz":
        with np.load(path, allow_pickle=False) as file:
            found = file["ids"].tolist()
            arrays = np.split(file["residues"], file["offsets"][1:-1]) if per_residue else file["vectors"]
    else:
        with h5py.File(path) as file:
            names = [entry.attrs["original_id"] for entry in file.values()]
            found = [n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else n for n in names]
            arrays = [entry[()] for entry in file.values()]
    assert found == ids
    for number, each in enumerate(given_):
        wanted = each.residues if per_residue else each.vector("mean+max")
        if wanted is not None:
            np.testing.assert_array_equal(arrays[number], wanted)


def test_npz_per_residue_is_cut_by_offsets(tmp_path):
    given = rows(per_residue=True)
    write(tmp_path / "v.npz", given, per_residue=True)
    with np.load(tmp_path / "v.npz", allow_pickle=False) as found:
        assert found["offsets"][0] == 0
        for number, each in enumerate(given):
            part = found["residues"][found["offsets"][number] : found["offsets"][number + 1]]
            assert len(part) == each.length
            if each.residues is not None:
                np.testing.assert_array_equal(part, each.residues)


@pytest.mark.parametrize("per_residue", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, len(IDS)])
def test_npz_is_to_the_byte_what_numpy_would_write(tmp_path, per_residue, count):
    given = rows(IDS[:count], per_residue=per_residue)
    write(tmp_path / "v.npz", given, per_residue=per_residue)
    arrays = {
        "ids": np.array([each.record.id for each in given], dtype=np.str_),
        "lengths": np.array([each.length for each in given], dtype=np.int64),
        "statuses": np.array([each.status for each in given], dtype=np.str_),
        "messages": np.array([each.message for each in given], dtype=np.str_),
    }
    if per_residue:
        none = np.empty((0, DIM), np.float32)
        found = [none if each.residues is None else each.residues for each in given]
        arrays["residues"] = np.concatenate([none, *found])
        arrays["offsets"] = np.cumsum([0, *map(len, found)])
    else:
        blank = np.full(2 * DIM, np.nan, np.float32)
        found = [blank if each.pooled is None else each.vector("mean+max") for each in given]
        arrays["vectors"] = np.array(found, dtype=np.float32).reshape(-1, 2 * DIM)
    np.savez(tmp_path / "wanted.npz", **arrays, model=np.array("toy"), layer=np.array(2))
    assert (tmp_path / "v.npz").read_bytes() == (tmp_path / "wanted.npz").read_bytes()


def test_an_npz_in_pieces_is_the_same(tmp_path, monkeypatch):
    write(tmp_path / "whole.npz", rows())
    monkeypatch.setattr("bioxfer.containers.npz._PIECE", 100)
    write(tmp_path / "v.npz", rows())
    assert (tmp_path / "v.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_parquet_table_in_groups_is_the_same_table(tmp_path, monkeypatch):
    ids = [i for i in IDS if i.isprintable()]
    write(tmp_path / "whole.parquet", rows(ids))
    monkeypatch.setattr("bioxfer.containers.parquet._ROWS", 3)
    write(tmp_path / "v.parquet", rows(ids))
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "v.parquet"), pd.read_parquet(tmp_path / "whole.parquet")
    )


STREAM = """
import sys, threading, tracemalloc
import numpy as np
from bioxfer.embedding import EmbeddedRecord
from bioxfer.sequences import SequenceRecord
from bioxfer.vectors import write_vectors
def rows(count):
    for n in range(count):
        vector = np.full(64, n, np.float32)
        yield EmbeddedRecord(SequenceRecord(f"p{n}", "MKVLAWMK"), 8, "ok", "", {"mean": vector})
peaks = []
for count in (500, 1_500, 5_500):
    tracemalloc.start()
    write_vectors(sys.argv[1], rows(count), pool="mean", width=64, facts={})
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
assert threading.active_count() == 1
print((peaks[2] - peaks[1]) / 4_000)
"""


@pytest.mark.parametrize("name", ["v.csv", "v.npz", "v.parquet", "v.h5ad"])
def test_memory_does_not_grow_with_the_number_of_records(tmp_path, name, monkeypatch):
    path = tmp_path / name
    code = STREAM.replace("def rows", "import bioxfer.containers as c, bioxfer.vectors as v\n"
                          "import bioxfer.containers.h5ad, bioxfer.containers.npz\n"
                          "import bioxfer.containers.parquet\n"
                          "c.parquet._ROWS, v._BEHIND, c.npz._PIECE = 64, 2**18, 2**12\n"
                          "c.h5ad._ROWS = 64\ndef rows")  # fmt: skip
    told = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert float(told.stdout) < (250 if name == "v.npz" else 60)  # bytes a record; a vector has 256


@pytest.mark.parametrize("per_residue", [False, True])
def test_f8_f9_hdf5_keeps_ids_verbatim_and_inside_the_file(tmp_path, per_residue):
    given = rows(per_residue=per_residue)
    write(tmp_path / "v.h5", given, per_residue=per_residue)
    assert [path.name for path in tmp_path.iterdir()] == ["v.h5"]
    with h5py.File(tmp_path / "v.h5") as file:
        assert dict(file.attrs) == {"model": "toy", "layer": 2}
        assert len(file) == len(given)
        for (key, entry), each in zip(file.items(), given, strict=True):  # in input order
            told = entry.attrs["original_id"]
            told = told if isinstance(told, str) else bytes(told).decode("utf-8", "surrogateescape")
            assert told == each.record.id
            assert entry.attrs["status"] == each.status
            assert entry.attrs["length"] == each.length
            assert isinstance(entry, h5py.Dataset)
            assert "/" not in key
            wanted = each.residues if per_residue else each.vector("mean+max")
            if wanted is None:
                assert entry.shape == (0,)
            else:
                np.testing.assert_array_equal(entry[()], wanted)
        for plain in ("a", "007", "NA", "A", "é"):
            assert file[plain].attrs["original_id"] == plain


@pytest.mark.parametrize("name", ["v.csv", "v.csv.gz", "v.npz", "v.h5", "v.h5ad", "v.parquet"])
def test_the_same_vectors_are_the_same_bytes(tmp_path, name, monkeypatch):
    write(tmp_path / name, rows())
    first = (tmp_path / name).read_bytes()
    later = time.time() + 90_000
    monkeypatch.setattr(time, "time", lambda: later)
    write(tmp_path / name, rows())
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize("name", ["v.csv", "v.npz", "v.h5", "v.parquet"])
def test_no_record_is_an_empty_file_of_its_kind(tmp_path, name):
    assert not write(tmp_path / name, [])
    path = tmp_path / name
    if name == "v.npz":
        with np.load(path) as found:
            assert found["vectors"].shape == (0, 2 * DIM)
    elif name == "v.h5":
        with h5py.File(path) as file:
            assert len(file) == 0
    else:
        table = pd.read_csv(path) if name == "v.csv" else pd.read_parquet(path)
        assert table.shape == (0, 4 + (2 * DIM if name == "v.csv" else 1))


@pytest.mark.parametrize("name", ["v.csv", "v.npz", "v.h5", "v.h5ad", "v.parquet"])
def test_contract_5_what_fails_midway_leaves_the_old_file(tmp_path, name):
    def broken():
        yield from rows()[:3]
        raise OutputError("as if the cache were full")

    path = tmp_path / name
    path.write_bytes(b"from before")
    with pytest.raises(OutputError, match="as if"):
        write(path, broken())
    assert path.read_bytes() == b"from before"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, sys, time
import numpy as np
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import OutputError
from bioxfer.sequences import SequenceRecord
from bioxfer.vectors import write_vectors
limit = int(sys.argv[2])
def rows():
    for n in range(300):
        yield EmbeddedRecord(SequenceRecord(f"p{n}", "M"), 1, "ok", "", {"mean": np.ones(500, np.float32)})
        seen.append(n)
        time.sleep(0.003)  # as a model would, while the writer works
seen = []
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_vectors(sys.argv[1], rows(), pool="mean", width=500, facts={"model": "toy"})
except OutputError as error:
    print(len(seen), error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("name", "limit"),
    [("v.h5", 500), ("v.h5", 100_000), ("v.h5", 600_000), ("v.npz", 100_000), ("v.h5ad", 100_000)],
)
def test_f23_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path, name, limit):
    pytest.importorskip("resource")
    path = tmp_path / name
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, str(limit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
    seen, told = done.stdout.split(" ", 1)
    assert told == f"cannot write {path}: File too large; make room or choose another place\n"
    if name == "v.h5" and limit < 600_000:
        assert int(seen) < 300  # what cannot be kept is not computed
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_formats_that_cannot_hold_it_are_refused(monkeypatch):
    for name in ("v.h5", "v.hdf5", "v.h5ad", "v.npz", "v.csv", "v.tsv.gz", "v.parquet", "-"):
        check_vector_format(name, per_residue=False)
    for name in ("v.h5", "v.npz", "v.parquet"):
        check_vector_format(name, per_residue=True)
    for name in ("v.csv", "-", "v.h5ad"):
        with pytest.raises(UsageError, match=r"per protein; write \.npz, \.h5 or \.parquet"):
            check_vector_format(name, per_residue=True)
    with pytest.raises(UsageError, match=r"'v\.txt'.*\.npz, \.h5 or \.h5ad"):
        check_vector_format("v.txt", per_residue=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bioxfer\[hdf5\]'"):
        check_vector_format("v.h5", per_residue=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bioxfer\[parquet\]'"):
        check_vector_format("v.parquet", per_residue=True)
