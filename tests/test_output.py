"""Writing: faults F4, F23, F35, F37 and F42, and contract 5 (whole or not at all)."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import logging
import lzma
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bioxfer.errors import FormatError, MissingExtraError, OutputError, UsageError
from bioxfer.io import (
    TableWriter,
    check_output,
    iter_sequences,
    publish,
    read_labels,
    read_sequences,
    table_format,
)

# --- tables ------------------------------------------------------------------------------------------

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def write_table(path: str | Path, rows: list[tuple[object, ...]], columns=("id", "text"), **options) -> None:
    with TableWriter(path, columns, **options) as table:
        table.write(rows)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=6),
    suffix=st.sampled_from(["csv", "tsv", "csv.gz", "tsv.gz"]),
)
@example(rows=[("a\rb", 'c"d'), ("", ""), ("\n", ",")], suffix="csv")
def test_f37_rfc_4180_round_trip(rows, suffix, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / f"out.{suffix}"
    logging.disable(logging.WARNING)
    try:
        write_table(path, rows)
    finally:
        logging.disable(logging.NOTSET)
    data = gzip.decompress(path.read_bytes()) if suffix.endswith("gz") else path.read_bytes()
    reader = csv.reader(
        io.StringIO(data.decode(), newline=""), delimiter="\t" if "tsv" in suffix else ",", strict=True
    )
    assert list(reader) == [["id", "text"], *map(list, rows)]


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(CELLS.filter(str.strip), CELLS.filter(bool), max_size=6))
def test_f37_labels_written_are_labels_read(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("t") / "labels.csv"
    logging.disable(logging.WARNING)
    try:
        write_table(path, list(texts.items()), ("id", "label"))
    finally:
        logging.disable(logging.NOTSET)
    assert {key: label.label for key, label in read_labels(path).items()} == texts


ANY_BYTES = st.text(st.characters(exclude_characters="\0", exclude_categories=[]), max_size=8).map(
    lambda text: text.encode("utf-8", "replace").decode()
) | st.binary(max_size=8).filter(lambda data: b"\0" not in data).map(
    lambda data: data.decode("utf-8", "surrogateescape")
)


@settings(deadline=None, max_examples=60)
@given(
    texts=st.dictionaries(ANY_BYTES.filter(str.strip), st.tuples(ANY_BYTES, ANY_BYTES), max_size=5),
    suffix=st.sampled_from(["csv", "tsv", "csv.gz", "tsv.gz", "csv.xz"]),
)
def test_f37_records_written_to_a_table_are_records_read(texts, suffix, tmp_path_factory):
    """Whatever their bytes, and whatever delimiters, quotes and line ends they hold."""
    path = tmp_path_factory.mktemp("t") / f"in.{suffix}"
    rows = [(key, "MKV", label, split) for key, (label, split) in texts.items()]
    logging.disable(logging.WARNING)
    try:
        write_table(path, rows, ("id", "sequence", "label", "split"))
    finally:
        logging.disable(logging.NOTSET)
    found = [(r.id, r.sequence, r.label or "", r.split or "") for r in read_sequences(path)]
    assert found == rows


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(CELLS, CELLS, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))))
def test_f37_parquet_gives_back_any_text_and_number(rows, tmp_path_factory):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path_factory.mktemp("t") / "out.parquet"
    write_table(path, rows, ("id", "text", "whole", "part"))
    found = parquet.read_table(path).to_pylist()
    assert [tuple(row.values()) for row in found] == rows


def test_f3_latin_1_header_reaches_the_table_byte_for_byte(tmp_path):
    header = b"caf\xe9 prot\xe9ine d'\xe9t\xe9"
    path, out = tmp_path / "in.fasta", tmp_path / "out.csv"
    path.write_bytes(b">" + header + b"\nMKV\n")
    write_table(out, [(record.id, record.description) for record in read_sequences(path)])
    assert out.read_bytes() == b"id,text\ncaf\xe9," + header + b"\n"


def test_table_is_utf_8_with_lf_and_empty_cells_for_none(tmp_path):
    path = tmp_path / "out.csv"
    write_table(path, [("é", None), ("b", 0.5), ("c", True)])
    assert path.read_bytes() == "id,text\né,\nb,0.5\nc,True\n".encode()


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "out.csv"
    write_table(path, [(numpy.float64(0.25), numpy.int64(3)), (numpy.float32(0.5), numpy.str_("a"))])
    assert path.read_text() == "id,text\n0.25,3\n0.5,a\n"


def test_a_lone_empty_cell_is_no_blank_line(tmp_path):
    path = tmp_path / "out.csv"
    write_table(path, [("",), ("a",)], ["id"])
    assert path.read_text() == 'id\n""\na\n'


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.gz", "csv.xz"])
def test_equal_rows_are_equal_bytes(tmp_path, monkeypatch, suffix):
    first, second = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
    write_table(first, [("a", 1)])
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_table(second, [("a", 1)])
    assert first.read_bytes() == second.read_bytes()
    opened = {"gz": gzip.decompress, "xz": lzma.decompress}.get(suffix[-2:], bytes)(first.read_bytes())
    assert opened == (b"id\ttext\na\t1\n" if "tsv" in suffix else b"id,text\na,1\n")


def test_a_row_of_another_width_is_refused_and_nothing_published(tmp_path):
    path = tmp_path / "out.csv"
    with pytest.raises(ValueError, match="a row of 1 values for 2 columns"):
        write_table(path, [("a",)])
    assert list(tmp_path.iterdir()) == []


FORMULAS = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)"]


@pytest.mark.parametrize("identifier", FORMULAS)
def test_f35_formulas_are_verbatim_with_one_warning(tmp_path, caplog, identifier):
    path = tmp_path / "out.csv"
    with caplog.at_level(logging.WARNING, "bioxfer"):
        write_table(path, [(identifier, "x"), (identifier, "=1")])
    assert path.read_text() == f"id,text\n{identifier},x\n{identifier},=1\n"
    assert len(caplog.records) == 1
    assert identifier in caplog.text
    assert "--excel-safe" in caplog.text


@pytest.mark.parametrize("identifier", FORMULAS)
def test_f35_excel_safe_prefixes_text_and_leaves_numbers(tmp_path, caplog, identifier):
    path = tmp_path / "out.csv"
    write_table(path, [(identifier, "=1"), ("a", "-0.5"), ("b", -0.5), ("c", "-1e-05")], excel_safe=True)
    assert path.read_text() == f"id,text\n'{identifier},'=1\na,-0.5\nb,-0.5\nc,-1e-05\n"
    assert not caplog.records


def test_standard_output_gets_bytes_and_stays_open(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer))
    write_table("-", [("caf\udce9", 1)])
    assert buffer.getvalue() == b"id,text\ncaf\xe9,1\n"


def test_an_empty_table_reaches_standard_output_before_the_block_is_left(monkeypatch):
    raw = io.BytesIO()
    buffered = io.BufferedWriter(raw)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffered))
    write_table("-", [])
    assert raw.getvalue() == b"id,text\n"


def test_a_reader_that_leaves_is_no_output_error(monkeypatch):
    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    class Out:
        buffer = Closed()

    monkeypatch.setattr(sys, "stdout", Out())
    with pytest.raises(BrokenPipeError), TableWriter("-", ["id"]) as table:
        table.write([("a",)])


def test_text_without_a_utf_8_form_is_refused(tmp_path):
    with pytest.raises(OutputError, match="has no UTF-8 form"):
        write_table(tmp_path / "out.csv", [("\ud800", 1)])
    assert list(tmp_path.iterdir()) == []


def test_parquet_has_types_and_verbatim_ids(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "out.parquet"
    columns = ["id", "n", "score", "flag", "mixed", "empty"]
    rows = [
        ("NA", 1, None, True, "x", None),
        ("=007", None, 0.5, None, 2, None),
        ("\udce9", 3, 1, False, None, None),
    ]
    write_table(path, rows, columns)
    table = parquet.read_table(path)
    assert [str(t) for t in table.schema.types] == [
        "large_string", "int64", "double", "bool", "large_string", "large_string",
    ]  # fmt: skip
    assert table["id"].to_pylist() == ["NA", "=007", "\\xe9"]
    assert table["score"].to_pylist() == [None, 0.5, 1.0]
    assert table["mixed"].to_pylist() == ["x", "2", None]
    write_table(path, [], columns)
    assert parquet.read_table(path).column_names == columns


def test_parquet_without_its_package_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bioxfer\[parquet\]'"):
        TableWriter(tmp_path / "out.parquet", ["id"])


@pytest.mark.parametrize("name", ["out.txt", "out", "out.xlsx", "out.csv.zip"])
def test_an_unknown_suffix_is_refused_with_the_choices(tmp_path, name):
    with pytest.raises(UsageError, match=r"end it in \.csv, \.tsv, .*\.parquet"):
        table_format(tmp_path / name)


# --- whole or not at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "csv.xz", "parquet"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_table_leaves_the_old_one_and_no_other_trace(tmp_path, suffix, error):
    path = tmp_path / f"out.{suffix}"
    path.write_bytes(b"old")

    def rows():
        yield from [("a",)] * 1000
        raise error

    with pytest.raises(error), TableWriter(path, ["id"]) as table:
        table.write(rows())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_f4_nothing_is_published_from_a_truncated_input(tmp_path):
    path = tmp_path / "in.fasta.gz"
    path.write_bytes(gzip.compress(b">a\nMKV\n" * 50)[:-10])
    out = tmp_path / "out.csv"
    with pytest.raises(FormatError), TableWriter(out, ["id"]) as table:
        table.write((record.id,) for record in iter_sequences(path, on_duplicate="rename"))
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "out.csv"
    with TableWriter(path, ["id"]) as table:
        table.write([("a",)])
        assert not path.exists()
        assert len(list(tmp_path.iterdir())) == 1  # the temporary file, in the target's own folder
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, rename = os.fsync, os.replace

    def note_sync(descriptor):
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def note_rename(source, target):
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_table(tmp_path / "out.csv", [("a", 1)])
    assert steps == ["sync file", "rename", "sync folder"]


def test_a_table_is_closed_after_its_block(tmp_path):
    with TableWriter(tmp_path / "out.csv", ["id"]) as table:
        pass
    with pytest.raises(ValueError, match="the table is not open"):
        table.write([("a",)])


def test_symbolic_link_stays_and_its_target_changes(tmp_path):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "out.csv", tmp_path / "link.csv"
    real.write_text("old")
    link.symlink_to(real)
    write_table(link, [("a", 1)])
    assert link.is_symlink()
    assert real.read_text() == "id,text\na,1\n"
    assert list(real.parent.iterdir()) == [real]


def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.touch()
    old.chmod(0o640)
    previous = os.umask(0o027)
    try:
        write_table(old, [])
        write_table(new, [])
    finally:
        os.umask(previous)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("rows", [1, 20_000])
def test_f23_full_disk_is_one_clear_error(rows):
    with pytest.raises(OutputError, match=r"cannot write /dev/full: No space left on device; make room"):
        write_table("/dev/full", [("a" * 20, 1)] * rows)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_f23_full_disk_leaves_the_old_table(tmp_path, suffix):
    pytest.importorskip("resource")
    path = tmp_path / f"out.{suffix}"
    path.write_bytes(b"old")
    code = (
        "import resource, sys; from bioxfer.io import TableWriter; from bioxfer.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with TableWriter(sys.argv[1], ['id']) as table:\n"
        "        table.write((str(hash(str(n))),) for n in range(20000))\n"
        "except OutputError as error: print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_os_error_of_the_callers_own_is_not_called_an_output_error(tmp_path):
    with pytest.raises(FileNotFoundError), TableWriter(tmp_path / "out.csv", ["id"]):
        (tmp_path / "model").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_publish_renames_a_whole_file_and_keeps_the_suffix(tmp_path):
    target = tmp_path / "vectors.npz"
    with publish(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
        assert temporary.read_bytes() == b""
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_f20_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    target, other = tmp_path / "out.csv", tmp_path / "other.csv"
    code = (
        "import os, signal, sys; from bioxfer.output import publish\n"
        "with publish(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for path in (target, target, other):
        subprocess.run([sys.executable, "-c", code, path], check=False)
    left = set(tmp_path.iterdir())
    assert len(left) == 2  # the second run has removed what the first left
    with publish(target) as busy:
        busy.write_bytes(b"one")
        with publish(target) as temporary:  # as a second process would, at the same time
            temporary.write_bytes(b"two")
        assert target.read_bytes() == b"two"
        assert busy.read_bytes() == b"one"
    assert target.read_bytes() == b"one"
    (stray,) = set(tmp_path.iterdir()) - {target}
    assert stray in left  # the other target's
    with publish(other) as temporary:
        temporary.write_bytes(b"whole")
    assert set(tmp_path.iterdir()) == {target, other}


def test_publish_drops_a_partial_file_and_speaks_of_a_full_disk(tmp_path):
    target = tmp_path / "vectors.npz"
    target.write_bytes(b"old")

    def write_half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = r"cannot write .*vectors\.npz: No space left on device"
    with pytest.raises(OutputError, match=message), publish(target) as temporary:
        write_half(temporary)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_temporary_name_fits_where_the_target_name_just_fits(tmp_path):
    target = tmp_path / ("x" * 251 + ".csv")
    write_table(target, [])
    assert target.read_text() == "id,text\n"


# --- check_output ------------------------------------------------------------------------------------


def test_f42_output_that_is_an_input_is_refused(tmp_path):
    source = tmp_path / "in.csv"
    source.touch()
    symbolic, hard = tmp_path / "symbolic.csv", tmp_path / "hard.csv"
    symbolic.symlink_to(source)
    os.link(source, hard)
    other_spelling = tmp_path / "." / ".." / tmp_path.name / "in.csv"
    for target in (source, symbolic, hard, other_spelling):
        with pytest.raises(OutputError, match="is the input"):
            check_output(target, inputs=["-", source])
    check_output(tmp_path / "out.csv", inputs=["-", source, tmp_path / "missing"])


def test_f42_missing_folder_and_folder_as_target_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"there is no folder .*none; create it first"):
        check_output(tmp_path / "none" / "out.csv")
    (tmp_path / "wall").touch()
    for name in ("out.csv", "sub/out.csv"):
        with pytest.raises(
            OutputError, match=r"out\.csv cannot be written: .*/wall is a file, not a folder; ch"
        ):
            check_output(tmp_path / "wall" / name)
    with pytest.raises(OutputError, match="is a folder; name a file in it"):
        check_output(tmp_path)


def test_f42_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    with pytest.raises(OutputError, match=r"folder .* is not writable"):
        check_output(tmp_path / "out.csv")


def test_an_existing_output_is_kept_without_overwrite(tmp_path):
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"out\.csv exists; .*--overwrite"):
        check_output(path, overwrite=False)
    with pytest.raises(OutputError, match="exists"):
        TableWriter(path, ["id"], overwrite=False)
    check_output(path)
    check_output("-", overwrite=False)


def test_devices_are_written_to_and_not_replaced():
    check_output(os.devnull, overwrite=False)
    write_table(os.devnull, [("a", 1)])
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_boundless_numbers_are_no_formulas(tmp_path, caplog):
    with TableWriter(tmp_path / "t.csv", ["low", "high"]) as table:
        table.write([("-inf", "inf"), ("+inf", "-1.5")])
    assert not caplog.records


def test_a_file_system_without_permissions_takes_the_output(tmp_path, monkeypatch):
    target = tmp_path / "o.csv"
    target.write_text("old")

    def refuse(path, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    with TableWriter(target, ["a"]) as table:
        table.write([["1"]])
    assert target.read_text() == "a\n1\n"
