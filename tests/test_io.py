"""Reading: faults F1-F6, F8, F10, F11, F36 and F40."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import logging
import lzma
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import open_folder, unprivileged

from bioxfer import lines
from bioxfer.errors import (
    DuplicateIdError,
    FormatError,
    InputError,
    LabelError,
    MissingExtraError,
    UsageError,
)
from bioxfer.io import (
    Label,
    iter_sequences,
    match_labels,
    read_labels,
    read_sequences,
)
from bioxfer.sequences import SequenceRecord, clean_protein

FASTA = b">a first\nMKV\nLLA\n\n>b\nMWW\n"
PARSED = [("a", "MKVLLA", "a first"), ("b", "MWW", "b")]

MakeFile = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> MakeFile:
    def write(data: bytes, name: str = "in.fasta") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def parsed(path: str | Path, **options: str) -> list[tuple[str, str, str]]:
    return [(r.id, r.sequence, r.description) for r in read_sequences(path, **options)]


def parse_bytes(data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[SequenceRecord]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return read_sequences("-")


def cut_small(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Read in pieces of `chunk` bytes, the first one included."""
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    monkeypatch.setattr(lines, "_HEAD", 1)


# --- FASTA -------------------------------------------------------------------------------------------


def test_fasta_is_read_in_order_with_lines_and_source(make):
    path = make(FASTA)
    one, two = read_sequences(path)
    assert one == SequenceRecord("a", "MKVLLA", "a first", str(path), 1)
    assert two == SequenceRecord("b", "MWW", "b", str(path), 5)


def test_sequence_is_as_read_but_for_white_space(make):
    assert parsed(make(b">a\nmk v\tl*\n  -.J7<mask>\n")) == [("a", "mkvl*-.J7<mask>", "a")]


LINES = st.lists(st.text("ACDEFGHIKLMNPQRSTVWYXacd*J1-", max_size=12), max_size=4)
HEADERS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=12)


@settings(deadline=None)
@given(
    records=st.lists(st.tuples(HEADERS, LINES), max_size=5),
    end=st.sampled_from(["\r\n", "\r"]),
    blank=st.booleans(),
    final=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_f1_line_ends_blank_lines_and_a_missing_last_one_change_nothing(records, end, blank, final, chunk):
    text = "".join(f">{i}{h}\n" + "".join(f"{s}\n" for s in seq) for i, (h, seq) in enumerate(records))
    other = text.replace("\n", end + end if blank else end)
    if final:
        other = other.rstrip("\r\n")
    with pytest.MonkeyPatch.context() as patch:
        expected = [(r.id, r.sequence, r.description) for r in parse_bytes(text.encode(), patch)]
        cut_small(patch, chunk)  # so that line ends fall on the edges of pieces
        found = [(r.id, r.sequence, r.description) for r in parse_bytes(other.encode(), patch)]
    assert len(expected) == len(records)
    assert found == expected


@settings(deadline=None)
@given(st.binary().filter(lambda data: not any(c in data for c in b"\0\r\n>")))
@example(b"\xef\xbb\xbfMKV")
def test_f10_any_bytes_in_a_sequence_arrive_and_become_one_residue_each(data):
    with pytest.MonkeyPatch.context() as patch:
        (record,) = parse_bytes(b">a\n" + data, patch)
    assert record.sequence.encode("utf-8", "surrogateescape") == bytes(b for b in data if b not in b" \t\v\f")
    clean = clean_protein(record, degap=True)
    gaps = record.sequence.count("-") + record.sequence.count(".")
    assert len(clean.residues) == len(record.sequence) - gaps - ("one final *" in clean.message)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_result_does_not_depend_on_how_the_file_is_cut_into_pieces(make, monkeypatch, chunk):
    cut_small(monkeypatch, chunk)
    assert parsed(make(FASTA.replace(b"\n", b"\r\n"))) == PARSED


@pytest.mark.parametrize("chunk", [6, 7, 20, 64])
def test_members_may_end_anywhere_in_a_piece(make, monkeypatch, chunk):
    cut_small(monkeypatch, chunk)
    data = gzip.compress(FASTA) + b"\0\0" + gzip.compress(b">c\nM\n")
    assert parsed(make(data)) == [*PARSED, ("c", "M", "c")]


def test_f2_byte_order_mark_is_dropped_also_where_files_were_joined(make):
    bom = b"\xef\xbb\xbf"
    assert parsed(make(bom + FASTA)) == PARSED
    assert parsed(make(bom + FASTA + bom + b">c\nM\n")) == [*PARSED, ("c", "M", "c")]


def test_f2_text_before_the_first_header_is_refused_with_its_line(make):
    path = make(b"\n\nMKVLL\n" + FASTA)
    with pytest.raises(FormatError, match=r"in\.fasta, line 3: 'MKVLL' stands where the first '>' should"):
        read_sequences(path)


def test_f3_latin_1_header_is_kept_byte_for_byte(make):
    header = b"caf\xe9 prot\xe9ine d'\xe9t\xe9"
    (record,) = read_sequences(make(b">" + header + b"\nMKV\n"))
    assert record.id == "caf\udce9"
    assert record.description.encode("utf-8", "surrogateescape") == header


@pytest.mark.parametrize(
    ("data", "line"), [(b">a\0b\nMKV\n", 1), (b">a\nMKV\n\nM\0V\n", 4), (b">a\r\nMKV\r\nM\0", 3)]
)
def test_f3_nul_byte_is_refused_with_its_line(make, data, line):
    with pytest.raises(FormatError, match=f"line {line}: a NUL byte"):
        read_sequences(make(data))


@pytest.mark.parametrize("data", [b"", b"\n\n", b" \r\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
def test_f5_empty_file_has_no_records(make, data):
    assert read_sequences(make(data)) == []


def test_blank_lines_beyond_the_first_piece_hide_no_record(make):
    assert parsed(make(b"\n" * 200_000 + FASTA)) == PARSED


def test_f5_empty_sequence_is_a_record(make):
    assert parsed(make(b">a\n>b\n\n>c")) == [("a", "", "a"), ("b", "", "b"), ("c", "", "c")]


@pytest.mark.parametrize("header", [b">", b"> ", b">\t", b"> a name after a blank"])
def test_f5_missing_id_is_refused_with_its_line(make, header):
    with pytest.raises(FormatError, match=r"in\.fasta, line 3: no id after '>'"):
        read_sequences(make(b">a\nMKV\n" + header + b"\nMKV\n"))


def test_f6_duplicate_id_names_both_lines_and_the_remedy(make):
    with pytest.raises(DuplicateIdError, match=r"line 5: id 'a' is already used in line 1; .*--on-duplicate"):
        read_sequences(make(b">a x\nMKV\n>b\nM\n>a y\nMWW\n"))


def test_f6_rename_keeps_every_record_under_a_name_of_its_own(make):
    data = b"".join(b">%s\nM\n" % name for name in (b"a", b"a one", b"a_2", b"a_4", b"a", b"a", b"b"))
    records = read_sequences(make(data), on_duplicate="rename")
    assert [r.id for r in records] == ["a", "a_2", "a_2_2", "a_4", "a_3", "a_5", "b"]
    assert [r.description for r in records] == ["a", "a one", "a_2", "a_4", "a", "a", "b"]
    assert [r.renamed_from for r in records] == ["", "a", "a_2", "", "a", "a", ""]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "a_2_2", "b"]), max_size=12))
def test_f6_renamed_ids_never_collide(ids):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f">{i}\n" for i in ids).encode())))
        records = list(iter_sequences("-", on_duplicate="rename"))
    assert len({r.id for r in records}) == len(records) == len(ids)
    assert [r.description for r in records] == ids


def test_f8_awkward_ids_are_verbatim(make):
    ids = ["/", ".", "../x", "NA", "1e5", "007", "a,b", '"q"', "'", "=1+1", "sp|P69905|HBA_HUMAN", "A", "a"]
    ids += ["x" * 300, "no\u00a0break", "next\u0085line", "separator\x1c", "\u03b1"]
    data = "".join(f">{i} text\nM\n" for i in ids).encode()
    assert [r.id for r in read_sequences(make(data))] == ids


def test_a_header_amid_a_sequence_line_is_warned_about(make, caplog):
    with caplog.at_level(logging.WARNING, "bioxfer"):
        (record,) = read_sequences(make(b">a\nMKV>b\nMWW\n"))
    assert record.sequence == "MKV>bMWW"
    assert "line 2: a '>' amid a sequence" in caplog.text


def test_many_of_them_are_counted_and_not_listed(make, caplog):
    with caplog.at_level(logging.WARNING, "bioxfer"):
        read_sequences(make(b">a\n" + b"MKV>b\n" * 1000))
    assert len(caplog.records) == 4
    assert "997 more lines hold a '>' amid a sequence" in caplog.text


def test_f11_mask_token_is_no_header(make, caplog):
    assert parsed(make(b">a\nMKV<mask>\n")) == [("a", "MKV<mask>", "a")]
    assert not caplog.records


def test_reading_streams(make):
    path = make(b">a\nMKV\n" * 1 + b">b\nM\n" + b">a\nM\n")
    records = iter_sequences(path)
    assert [next(records).id, next(records).id] == ["a", "b"]
    with pytest.raises(DuplicateIdError):
        next(records)


# --- files -------------------------------------------------------------------------------------------

COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compression_is_told_by_the_first_bytes_and_all_members_are_read(make, kind):
    data = COMPRESS[kind](FASTA) + COMPRESS[kind](b"") + COMPRESS[kind](b">c\nM\n")
    assert parsed(make(data, "named_like_plain.fasta")) == [*PARSED, ("c", "M", "c")]


@pytest.mark.parametrize("kind", COMPRESS)
def test_f4_truncated_file_is_an_error_and_no_end_of_file(make, kind):
    data = COMPRESS[kind](FASTA * 50)
    with pytest.raises(FormatError, match=r"in\.fasta is cut off: its \w+ data end too early"):
        read_sequences(make(data[:-10]), on_duplicate="rename")


@pytest.mark.parametrize("kind", COMPRESS)
def test_damaged_file_is_an_error(make, kind):
    text = b"".join(hashlib.sha256(b"%d" % n).hexdigest().encode() for n in range(200))
    data = bytearray(COMPRESS[kind](b">a\n" + text))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(FormatError):
        read_sequences(make(bytes(data)))


def test_bgzf_with_its_empty_last_member_and_zero_padding_is_read(make):
    members = [gzip.compress(FASTA[i : i + 4]) for i in range(0, len(FASTA), 4)]
    assert parsed(make(b"".join(members) + gzip.compress(b"") + b"\0" * 512, "x.bgz")) == PARSED


def test_rubbish_after_a_gzip_member_is_refused(make):
    with pytest.raises(FormatError, match="damaged: gzip says"):
        read_sequences(make(gzip.compress(FASTA) + b"rubbish"))


def test_zstandard_with_many_frames_and_truncation(make):
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.compress(FASTA) + zstandard.compress(b">c\nM\n")
    assert parsed(make(data, "x.zst")) == [*PARSED, ("c", "M", "c")]
    with pytest.raises(FormatError, match="is cut off: its Zstandard data"):
        read_sequences(make(data[:-5], "x.zst"))


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_what_is_packed_a_thousandfold_is_unpacked_bit_by_bit(make, kind):
    """64 MB in a few kilobytes took several times their size, though one record is held at once."""
    records = b"".join(b">%d\n" % number + b"A" * 65_536 + b"\n" for number in range(1000))
    if kind == "zstd":
        zstandard = pytest.importorskip("zstandard")
        packed = zstandard.ZstdCompressor().compress(records)
    else:
        packed = {"gzip": gzip, "bzip2": bz2, "xz": lzma}[kind].compress(records)
    path = make(packed)
    del records, packed
    tracemalloc.start()
    try:
        assert sum(len(record.sequence) for record in iter_sequences(path)) == 65_536_000
        assert tracemalloc.get_traced_memory()[1] < 32e6
    finally:
        tracemalloc.stop()


def test_endless_white_space_is_refused(make):
    with pytest.raises(FormatError, match=r"begins with 1[0-9]{7} blanks and more; remove them"):
        read_sequences(make(gzip.compress(b"\n" * 40_000_000 + b">a\nMKV\n", 1)))
    assert parsed(make(b"\n" * 1_000_000 + b">a\nMKV\n")) == [("a", "MKV", "a")]


def test_zstandard_without_its_package_names_the_install_command(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bioxfer\[zstd\]'"):
        read_sequences(make(b"\x28\xb5\x2f\xfd rest", "x.zst"))


def test_standard_input_is_read_as_bytes(monkeypatch):
    records = parse_bytes(gzip.compress(b">caf\xe9\nMKV\n"), monkeypatch)
    assert [(r.id, r.sequence, r.source) for r in records] == [("caf\udce9", "MKV", "<stdin>")]


def test_missing_file_is_an_error_at_once_and_not_at_the_first_record(tmp_path):
    with pytest.raises(InputError, match=r"no such file: .*none\.fasta"):
        iter_sequences(tmp_path / "none.fasta")


def test_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*directory"):
        read_sequences(tmp_path)


def test_unreadable_file_is_an_input_error():
    with open_folder() as folder:
        path = folder / "in.fasta"
        path.write_bytes(FASTA)
        path.chmod(0)
        with unprivileged(), pytest.raises(InputError, match="Permission denied"):
            read_sequences(path)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"##gff-version 3\n", "a GFF3 file"),
        (b"@HD\tVN:1.6\n", "a SAM alignment"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
        (b"PK\x03\x04\x14\0\x06\0", "a zip archive"),
        ("MKV\n".encode("utf-16"), "UTF-16 text"),
        (b"<!DOCTYPE html>\n<html>", "HTML or XML"),
        (b"HEADER    HYDROLASE", "a PDB structure"),
        (gzip.compress(gzip.compress(FASTA, mtime=0), mtime=0), "a file compressed twice"),
    ],
)
def test_what_is_no_fasta_is_called_by_its_name(make, data, what):
    with pytest.raises(FormatError, match=rf"in\.fasta looks like {what}.*, not like FASTA"):
        read_sequences(make(data))


def test_unknown_choices_are_refused(make):
    path = make(FASTA)
    with pytest.raises(UsageError, match="on_duplicate is 'drop'; choose"):
        read_sequences(path, on_duplicate="drop")
    with pytest.raises(UsageError, match="format is 'embl'; choose"):
        read_sequences(path, format="embl")


# --- sequence tables ---------------------------------------------------------------------------------

TABLE = b'id,sequence,label,split\nNA,MKV,1e5,train\n007,"M L\nL",,\n"a,b","MWW","x ""y""",test\n'


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz", "in.txt", "in.tsv"])
def test_table_gives_records_with_labels_and_strings_stay_strings(make, name):
    data = TABLE
    if name.endswith("tsv"):
        data = b'id\tsequence\tlabel\tsplit\nNA\tMKV\t1e5\ttrain\n007\tMLL\t\t\n\na,b\tMWW\tx "y"\ttest\n'
    records = read_sequences(make(gzip.compress(data) if name.endswith("gz") else data, name))
    found = [(r.id, r.sequence, r.label, r.split, r.line) for r in records]
    assert found == [
        ("NA", "MKV", "1e5", "train", 2),
        ("007", "MLL", None, None, 3),
        ("a,b", "MWW", 'x "y"', "test", 5),
    ]


def test_table_may_lack_labels_order_its_columns_and_use_semicolons(make):
    (record,) = read_sequences(make(b"\xef\xbb\xbfsequence;note;id\r\nMKV;x;a\r\n", "in.csv"))
    assert (record.id, record.sequence, record.label, record.split) == ("a", "MKV", None, None)


@pytest.mark.parametrize(
    "header", [b'id,sequence,"q" u', b'"id" ,"sequence" ,x', b"id,sequence," + b"x" * 200_000], ids=str
)
def test_a_header_may_be_odd_where_it_can_be_read(make, header):
    (record,) = read_sequences(make(header + b"\na,MKV,c\n", "in.csv"))
    assert (record.id, record.sequence, record.line) == ("a", "MKV", 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'id,sequence,"x\na,MKV,c\n', "line 1: a header without an end; is a quote left open"),
        (b"name,sequence\na,MKV\n", r"line 1: no column 'id' \(columns found: name, sequence\)"),
        (b"id,seq\na,MKV\n", r"line 1: no column 'sequence' \(columns found: id, seq\)"),
        (b"id,sequence,label,label\na,M,x,y\n", "line 1: more than one column 'label'"),
        (b"id,sequence\na,MKV\nb\n", "line 3: 1 cells where the header has 2"),
        (b"id,sequence\na,MKV,x\n", "line 2: 3 cells where the header has 2"),
        (b'id,sequence\n"a\n\nb",MKV\n ,M\n', "line 5: the id is empty"),
        (b'id,sequence\na,M\n"b,MKV\nc,M\n', "line 3: .*is a quote left open"),
        (b"id,sequence\na,M\0V\n", "line 2: a NUL byte"),
    ],
)
def test_malformed_table_is_refused_with_its_line(make, data, message):
    with pytest.raises(FormatError, match=message):
        read_sequences(make(data, "in.csv"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_column_name_may_hold_line_ends(make, end):
    """It was cut at the first, and what followed was taken for a row."""
    text = f'"id","sequence","label",{end}a,MKV,x,1{end}"b","M{end}WW",y,2{end}'
    for name in ('"of the{}gene"', '"{}"', '"a ""b""{}{} c"'):
        head, _, rows = text.partition(f",{end}")
        path = make(f"{head},{name.replace('{}', end)}{end}{rows}".encode(), "in.csv")
        found = read_sequences(path)
        assert [(r.id, r.sequence, r.label) for r in found] == [("a", "MKV", "x"), ("b", "MWW", "y")]
        line = 2 + name.count("{}")
        assert [r.line for r in found] == [line, line + 1]
    labels = read_labels(make(f'"of{end}what",id,label{end}1,a,x{end}'.encode(), "labels.csv"))
    assert labels == {"a": Label("x", None, 3)}


def test_a_column_name_whose_quote_stays_open_is_refused(make):
    with pytest.raises(FormatError, match="quote left open"):
        read_sequences(make(b'id,sequence,"label\na,MKV,x\n', "in.csv"))


def test_columns_that_were_found_are_named_so_that_a_terminal_shows_them(make):
    data = b"id," + b",".join(b"c%d" % number for number in range(5000)) + b",\x1b[31mred\n"
    with pytest.raises(FormatError) as told:
        read_sequences(make(data, "in.csv"))
    named = "id, c0, c1, c2, c3, c4, c5, c6, c7, c8, ..."
    end = f"line 1: no column 'sequence' (columns found: {named}); rename the columns"
    assert str(told.value).endswith(end)


def test_a_cell_may_be_longer_than_any_protein(make):
    limit = csv.field_size_limit()
    sequence = "MKV" * 100_000
    (record,) = read_sequences(make(f"id,sequence\ntitin,{sequence}\n".encode(), "in.csv"))
    assert record.sequence == sequence
    assert csv.field_size_limit() == limit


def test_duplicate_ids_of_a_table_are_treated_as_those_of_a_fasta(make):
    path = make(b"id,sequence\na,MKV\na,MLL\n", "in.csv")
    with pytest.raises(DuplicateIdError, match="line 3: id 'a' is already used in line 2"):
        read_sequences(path)
    records = read_sequences(path, on_duplicate="rename")
    assert [(r.id, r.description) for r in records] == [("a", "a"), ("a_2", "a")]


def test_format_can_be_insisted_on(make):
    with pytest.raises(FormatError, match="line 1: 'id,sequence' stands where"):
        read_sequences(make(b"id,sequence\na,MKV\n", "in.csv"), format="fasta")
    with pytest.raises(FormatError, match="no column 'id'"):
        read_sequences(make(FASTA), format="tsv")


# --- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.txt", "l.csv.xz"])
def test_f36_labels_are_strings_whatever_they_look_like(make, name):
    data = b"id,label,split\nNA,NA,train\n007,1e5,\n1e5,007,test\n"
    data = data.replace(b",", b"\t") if name.endswith("tsv") else data
    labels = read_labels(make(lzma.compress(data) if name.endswith("xz") else data, name))
    assert labels == {
        "NA": Label("NA", "train", 2),
        "007": Label("1e5", None, 3),
        "1e5": Label("007", "test", 4),
    }


def test_label_columns_can_be_named(make):
    path = make(b"protein;site;fold\na;nucleus;1\n", "l.csv")
    labels = read_labels(path, id_column="protein", label_column="site", split_column="fold")
    assert labels == {"a": Label("nucleus", "1", 2)}


def test_missing_label_column_names_the_columns_found(make):
    with pytest.raises(LabelError, match=r"no column 'label' \(columns found: id, class\)"):
        read_labels(make(b"id,class\na,x\n", "l.csv"))
    with pytest.raises(LabelError, match=r"no column 'id' \(columns found: none\)"):
        read_labels(make(b"", "l.csv"))


def test_one_id_with_two_labels_is_refused_with_both_lines(make):
    with pytest.raises(LabelError, match=r"line 4: id 'a' is 'y' here and 'x' in line 2"):
        read_labels(make(b"id,label\na,x\nb,x\na,y\n", "l.csv"))
    with pytest.raises(LabelError, match=r"'x' in split 'test' here and 'x' in split 'train' in line 2"):
        read_labels(make(b"id,label,split\na,x,train\na,x,test\n", "l.csv"))
    assert len(read_labels(make(b"id,label\na,x\na,x\n", "l.csv"))) == 1


def test_empty_label_is_no_label_and_empty_id_is_refused(make):
    assert list(read_labels(make(b"id,label\na,\nb,x\n", "l.csv"))) == ["b"]
    with pytest.raises(LabelError, match="line 2: the id is empty"):
        read_labels(make(b"id,label\n,x\n", "l.csv"))


def test_missing_label_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        read_labels(tmp_path / "none.csv")


def test_f40_match_reports_both_sides_and_keeps_order():
    records = [SequenceRecord(name, "MKV") for name in "abcdefg"]
    labels = {name: Label(name.upper(), "train", 1) for name in "gbxyzw"}
    matched, report = match_labels(records, labels, source="l.csv")
    assert [(r.id, r.label, r.split) for r in matched] == [("b", "B", "train"), ("g", "G", "train")]
    assert report == (
        "2 of 7 records have a label in l.csv; 5 records without a label (a, c, d, ...); "
        "4 labels without a record (x, y, z, ...)"
    )
    _, report = match_labels(records[:1], {"a": Label("x", None, 1)}, source="l.csv")
    assert report == "1 of 1 records have a label in l.csv"


def test_f40_nothing_in_common_shows_both_sides():
    with pytest.raises(LabelError, match=r"none of 1 records .* called sp\|P1\|A, the labels P1;"):
        match_labels([SequenceRecord("sp|P1|A", "M")], {"P1": Label("x", None, 2)}, source="l.csv")
