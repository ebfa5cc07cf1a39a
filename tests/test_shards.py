"""One output in parts: who has which record, marks, and merge, which gives the bytes of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Bench, bits_stand_alone, fasta, one_sentence, proteins, run

import bioxfer
from bioxfer import merging
from bioxfer.errors import UsageError
from bioxfer.jobs import EmbedJob
from bioxfer.merging import merge_parts
from bioxfer.output import TableWriter
from bioxfer.sequences import SequenceRecord
from bioxfer.shards import (
    Input,
    Mark,
    Shard,
    Tally,
    find_parts,
    finish_part,
    name_mark,
    name_part,
    parse_shard,
    read_mark,
    take,
)

PACKAGE = Path(bioxfer.__file__).parents[1]
ODD = ["a,b", 'say "hi"', "line\nend", "=1+1", "'=1", "", "plain", "tab\there", "b\udce9", "c\rd"]

exact = pytest.mark.skipif(
    not bits_stand_alone(), reason="vectors are equal to 1e-5 here, and not to the last bit"
)


def needed(suffix: str) -> None:
    for end, package in ((".h5", "h5py"), (".parquet", "pyarrow")):
        if suffix.endswith(end):
            pytest.importorskip(package)


# The rule.


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 7))
def test_f28_every_record_belongs_to_one_part(records, of, block):
    shards = [Shard(number, of, block) for number in range(1, of + 1)]
    kept = [[r for r in range(records) if shard.keeps(r)] for shard in shards]
    assert sorted(r for some in kept for r in some) == list(range(records))
    assert [len(some) for some in kept] == [shard.count(records) for shard in shards]


def test_the_rule_as_it_is_told():
    assert [r for r in range(12) if Shard(2, 3, 2).keeps(r)] == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0/8", "there is no shard 0/8; shards are counted from 1/8 to 8/8"),
        ("9/8", "there is no shard 9/8"),
        ("x/8", "'x/8' is not one of so many, such as 3/8"),
        ("3/0", "'3/0' is not one of so many"),
        ("3", "give I/N"),
        ("-1/8", "give I/N"),
        ("1/8/9", "give I/N"),
        ("١/٨", "give I/N"),
    ],
)
def test_a_shard_that_is_none_is_named(text, told):
    with pytest.raises(UsageError, match=told.replace("/", "/")):
        parse_shard(text)


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("out.csv.gz", "out-00003-of-00008.csv.gz"),
        ("a.b/v.1.H5", "a.b/v.1-00003-of-00008.H5"),
        ("a.b/bare", "a.b/bare-00003-of-00008"),
    ],
)
def test_a_part_is_named_after_its_output(out, part):
    assert name_part(out, Shard(3, 8)) == part


def test_parts_are_found_beside_their_output_and_no_other_file_is(tmp_path):
    for name in ("o-00001-of-00002.csv", "o-00002-of-00002.csv", "o-00001-of-00002.csv.json"):
        (tmp_path / name).touch()
    for name in ("o-1-of-2.csv", "xo-00001-of-00002.csv", "o-00001-of-00002.tsv", "o.csv"):
        (tmp_path / name).touch()
    found = find_parts(tmp_path / "o.csv")
    assert [os.path.basename(each) for each in found] == ["o-00001-of-00002.csv", "o-00002-of-00002.csv"]


def test_the_whole_input_is_read_for_each_part():
    tallies = [Tally() for _ in range(3)]
    records = proteins(7)
    for number, tally in enumerate(tallies, start=1):
        list(take(records, Shard(number, 3), tally))
    assert len({tally.total for tally in tallies}) == 1
    assert tallies[0].total.records == 7


@pytest.mark.parametrize(
    "change",
    [{"id": "other"}, {"sequence": "MKV"}, {"note": "odd"}, {"renamed_from": "p1"}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_stands_in_a_row_changes_the_digest_of_the_input(change):
    record = SequenceRecord("p", "MK")
    tallies = Tally(), Tally()
    tallies[0].add(record)
    tallies[1].add(replace(record, **change))
    assert tallies[0].total != tallies[1].total


# Merging, any number of parts: tables without a model.


def rows_of(record: SequenceRecord, several: bool) -> list[list[object]]:
    count = 1 + len(record.sequence) % 3 if several else 1
    return [[record.id, len(record.sequence), row, record.sequence] for row in range(count)]


def write_rows(path: Path, records, *, several: bool, excel_safe: bool) -> Counter[str]:
    statuses: Counter[str] = Counter()
    columns = ["id", "length", "row", "sequence"]
    with TableWriter(path, columns, excel_safe=excel_safe, kinds=[str, int, int, str]) as table:
        for record in records:
            statuses["ok"] += 1
            table.write(rows_of(record, several))
    return statuses


def write_parts(
    out: Path, records, of: int, block: int = 1, *, several: bool = False, excel_safe: bool = False
) -> list[str]:
    """Write an output in parts as embed and predict do."""
    request = {"command": "toy", "format": "long" if several else "wide", "excel_safe": excel_safe}
    request |= {
        "translate": "off",
        "genetic_code": 1,
        "min_orf": 30,
        "on_duplicate": "error",
        "gff": False,
        "degap": False,
    }
    parts = []
    for number in range(1, of + 1):
        shard, tally = Shard(number, of, block), Tally()
        part = name_part(out, shard)
        finish_part(
            part,
            Mark(shard, request, f"bioxfer toy in.fasta -o {out.name}", Input(0, "")),
            lambda part=part, shard=shard, tally=tally: write_rows(
                Path(part), take(records, shard, tally), several=several, excel_safe=excel_safe
            ),
            lambda tally=tally: tally.total,
        )
        parts.append(part)
    return parts


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.xz", ".parquet"])
@settings(max_examples=15)
@given(
    count=st.integers(0, 25),
    of=st.integers(1, 7),
    block=st.integers(1, 4),
    several=st.booleans(),
    excel_safe=st.booleans(),
)
def test_f28_merged_parts_are_the_bytes_of_one_process(
    tmp_path_factory, suffix, count, of, block, several, excel_safe
):
    needed(suffix)
    folder = tmp_path_factory.mktemp("merge")
    records = [
        SequenceRecord((ODD[number] if number < len(ODD) else f"p{number}") or "empty", "M" * (number % 5))
        for number in range(count)
    ]
    whole, out = folder / f"whole{suffix}", folder / f"out{suffix}"
    write_rows(whole, records, several=several, excel_safe=excel_safe)
    parts = write_parts(out, records, of, block, several=several, excel_safe=excel_safe)
    statuses = merge_parts(out, parts[::-1])
    assert out.read_bytes() == whole.read_bytes()
    assert sum(statuses.values()) == count


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".parquet"])
@pytest.mark.parametrize("several", [False, True])
def test_more_parts_than_can_be_open_are_joined_in_two_rounds(tmp_path, monkeypatch, suffix, several):
    needed(suffix)
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    records = [replace(record, id=f'"{record.id}",\n') for record in proteins(100)]
    write_rows(whole, records, several=several, excel_safe=False)
    write_parts(out, records, 23, 2, several=several)
    monkeypatch.setattr(merging, "_AT_ONCE", 5)
    monkeypatch.setattr(merging, "_GROUPS_AT_ONCE", 5)
    monkeypatch.setattr(merging, "_BATCH", 3)
    merge_parts(out)
    assert out.read_bytes() == whole.read_bytes()
    assert len(os.listdir(tmp_path)) == 2 + 2 * 23


def test_files_stay_open_only_while_they_are_read(tmp_path):
    resource = pytest.importorskip("resource")
    write_parts(tmp_path / "out.csv", proteins(260), 130, 2)  # one after the other, as workers make them
    held = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 12, held[1]))
    try:
        merge_parts(tmp_path / "out.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, held)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 261


def test_compression_may_differ_from_that_of_the_parts(tmp_path):
    write_rows(tmp_path / "whole.csv.gz", proteins(9), several=False, excel_safe=False)
    parts = write_parts(tmp_path / "out.csv", proteins(9), 3)
    merge_parts(tmp_path / "out.csv.gz", parts)
    assert (tmp_path / "out.csv.gz").read_bytes() == (tmp_path / "whole.csv.gz").read_bytes()


# What merge refuses.


@pytest.fixture
def parts(tmp_path) -> list[str]:
    """Three parts of ten records, and their input beside."""
    (tmp_path / "in.fasta").write_text(fasta(proteins(10)))
    return write_parts(tmp_path / "out.csv", proteins(10), 3)


def merge(parts: list[str], *options: object) -> str:
    """Have a merge refused; give its sentence."""
    out = Path(parts[0]).parent / "out.csv"
    ended = run("merge", *parts, "-o", out, *options)
    assert ended.code == 3
    assert not out.exists()
    return one_sentence(ended.err)


def change_mark(part: str, change) -> None:
    found = json.loads(Path(name_mark(part)).read_text())
    change(found)
    Path(name_mark(part)).write_text(json.dumps(found))


def remake(part: str, text: str) -> None:
    """Put another table in a part's place, and let its mark tell of that one."""
    Path(part).write_text(text)
    change_mark(part, lambda found: found.update(sha256=merging.sum_file(part)))


def test_a_missing_part_is_named_with_the_command_that_makes_it(parts):
    told = "part 2 of 3 is missing; make it: bioxfer toy in.fasta -o out.csv --shard 2/3"
    assert told in merge([parts[0], parts[2]])
    os.unlink(parts[1])
    assert told in one_sentence(run("merge", "-o", Path(parts[0]).parent / "out.csv").err)
    assert "(and 1 more)" in merge(parts[:1])


def test_a_part_without_its_mark_is_not_finished(parts):
    os.unlink(name_mark(parts[2]))
    told = merge(parts)
    assert "out-00003-of-00003.csv is not finished" in told
    assert "--shard 3/3" in told


def test_no_parts_at_all(tmp_path):
    ended = run("merge", "-o", tmp_path / "out.csv")
    assert ended.code == 3
    assert "out-00001-of-00008.csv" in one_sentence(ended.err)


def test_a_part_that_is_not_there(parts):
    assert "no such file" in merge([*parts, f"{parts[0]}x.csv"])


def test_a_part_named_twice(parts):
    twin = str(Path(parts[0]).parent / "twin.csv")
    for each in (lambda part: part, name_mark):
        Path(each(twin)).write_bytes(Path(each(parts[0])).read_bytes())
    assert "are both part 1/3; name each part once" in merge([*parts, twin])


def test_a_byte_changed_in_a_part(parts):
    data = bytearray(Path(parts[1]).read_bytes())
    data[-3] ^= 1
    Path(parts[1]).write_bytes(data)
    told = merge(parts)
    assert "out-00002-of-00003.csv has changed since it was finished" in told
    assert "--shard 2/3" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found["request"].update(precision="bf16"), "made with precision null, not bf16 as"),
        (lambda found: found["shard"].update(of=4), "made with number of parts 3, not 4"),
        (lambda found: found["shard"].update(block=2), "made with records of a block 1, not 2"),
        (lambda found: found["input"].update(sha256="0"), "made from another input than"),
        (lambda found: found.update(records=9), "holds 9 records where 3 of 10 fall to part 2/3"),
        (lambda found: found.update(bioxfer_part=2), "is not the mark of a part (its layout is 2"),
        (lambda found: found.update(records="9"), "records is '9'"),
        (lambda found: found["statuses"].update(ok=-1), "status ok is -1"),
        (lambda found: found["shard"].update(number=0), "there is no shard 0/3"),
        (lambda found: found["shard"].update(block=10**30), "records of a block"),
        (lambda found: found["shard"].update(colour=1), "is not the mark of a part"),
        (lambda found: found.pop("input"), "is not the mark of a part"),
    ],
)
def test_marks_that_do_not_fit(parts, change, told):
    change_mark(parts[1], change)
    assert told in merge(parts)


def test_marks_that_do_not_tell_what_joining_needs(bench):
    for suffix, key, options in ((".npz", "pool", ()), (".csv", "translate", ("--input", bench.fasta))):
        out = bench.folder / f"out{suffix}"
        parts = [f"{bench.folder}/out-0000{n}-of-00002{suffix}" for n in (1, 2)]
        for number, part in enumerate(parts, start=1):
            assert bench.embed(bench.fasta, "--shard", f"{number}/2", out=out).code == 0
            change_mark(part, lambda found, key=key: found["request"].pop(key))
        ended = run("merge", "-o", out, *options)
        assert ended.code == 3
        assert f"is not the mark of a part ({key} of its request is None)" in one_sentence(ended.err)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\udce9", "[" * 5000])
def test_a_mark_that_is_none(parts, text):
    Path(name_mark(parts[1])).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "out-00002-of-00003.csv.json is not the mark of a part" in merge(parts)


def test_an_id_that_is_there_twice(parts):
    remake(parts[1], Path(parts[1]).read_text().replace("p4,", "p3,"))
    assert "id 'p3' is that of record 4 and of record 5" in merge(parts)


def test_a_record_more_or_less_than_the_mark_counts(parts):
    text = Path(parts[1]).read_text()
    remake(parts[1], text + "p99,3,0,MKV\n")
    assert "does not hold the records that its mark counts" in merge(parts)
    remake(parts[1], "".join(text.splitlines(keepends=True)[:-1]))
    assert "does not hold the records that its mark counts" in merge(parts)


def test_other_columns(parts):
    remake(parts[1], Path(parts[1]).read_text().replace("length", "width", 1))
    assert "has other columns than" in merge(parts)


def test_a_table_that_is_cut_or_no_table(parts):
    remake(parts[1], Path(parts[1]).read_text() + 'p99,"')
    assert "does not hold the records" in merge(parts)
    gz = [part.replace(".csv", ".csv.gz") for part in parts]
    for old, new in zip(parts, gz, strict=True):
        for each in (lambda part: part, name_mark):
            Path(each(new)).write_bytes(Path(each(old)).read_bytes())
    assert "cannot be read (Not a gzipped file" in merge(gz)


def test_parts_of_another_format(parts):
    ended = run("merge", *parts, "-o", Path(parts[0]).parent / "out.tsv")
    assert ended.code == 2
    assert "is no part of a tsv file" in one_sentence(ended.err)


@pytest.mark.parametrize("out", ["-", "/dev/null"])
def test_merge_writes_no_stream(parts, out):
    ended = run("merge", *parts, "-o", out)
    assert ended.code == 3
    assert "merge writes a file" in one_sentence(ended.err)


def test_an_output_that_is_there_stays_unless_it_may_go(parts):
    out = Path(parts[0]).parent / "out.csv"
    out.write_text("old")
    assert "exists" in one_sentence(run("merge", *parts, "-o", out).err)
    assert run("merge", *parts, "-o", out, "--overwrite").code == 0
    assert out.read_text().startswith("id,")
    assert "is the input" in one_sentence(run("merge", *parts, "-o", parts[0], "--overwrite").err)


def test_parts_are_removed_when_the_output_is_there_and_not_before(parts):
    folder = Path(parts[0]).parent
    remake(parts[1], Path(parts[1]).read_text().replace("p4,", "p3,"))
    merge(parts, "--delete-parts")
    assert len(find_parts(folder / "out.csv")) == 3
    remake(parts[1], Path(parts[1]).read_text().replace("p3,", "p4,"))
    assert run("merge", "-o", folder / "out.csv", "--delete-parts").code == 0
    assert sorted(os.listdir(folder)) == ["in.fasta", "out.csv"]


def test_the_input_is_compared_record_by_record(parts):
    folder = Path(parts[0]).parent
    records = proteins(10)
    for name, some in {
        "less.fasta": records[:9],
        "more.fasta": [*records, SequenceRecord("q", "MKV")],
        "turned.fasta": [*records[:3], records[4], records[3], *records[5:]],
        "changed.fasta": [replace(records[0], sequence="MKV"), *records[1:]],
    }.items():
        (folder / name).write_text(fasta(some))
    assert "'p9' in the parts, and none any more" in merge(parts, "--input", folder / "less.fasta")
    assert "is not the input" in merge(parts, "--input", folder / "more.fasta")
    assert "record 4 is 'p3' in the parts, and 'p4' in" in merge(parts, "--input", folder / "turned.fasta")
    assert "is not the input" in merge(parts, "--input", folder / "changed.fasta")
    assert "no such file" in merge(parts, "--input", folder / "absent.fasta")
    assert run("merge", *parts, "-o", folder / "out.csv", "--input", folder / "in.fasta").code == 0
    ended = run("merge", *parts, "-o", folder / "o.csv", "--input", folder / "in.fasta", "--gff", "x.gff")
    assert "made without --gff" in one_sentence(ended.err)


# The commands.


def make_parts(command, source: Path, out: Path, *options: object, of: int = 3) -> list[int]:
    """Make all parts by the command line, one command each."""
    codes = []
    for number in range(1, of + 1):
        ended = command(source, *options, "--shard", f"{number}/{of}", out=out)
        codes.append(ended.code)
    return codes


@pytest.fixture
def odd(bench: Bench) -> Path:
    """Proteins of all sorts: a long one, an empty one, a copy, lower case, ids that need care."""
    records = proteins(9)
    records[1] = replace(records[1], sequence="")
    records[2] = replace(records[2], sequence=records[3].sequence)
    records[4] = replace(records[4], sequence=records[4].sequence * 5)
    records[5] = replace(records[5], id="a/b,c", sequence=records[5].sequence.lower() + "J*")
    records[6] = replace(records[6], id="=1+1")
    return bench.write("odd.fasta", fasta(records))


@exact
@pytest.mark.parametrize(
    "suffix",
    [
        *(".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.xz", ".parquet", ".npz", ".h5", ".h5ad"),
        *(".npz residues", ".h5 residues", ".parquet residues"),
    ],
)
def test_embedded_in_parts_and_merged(bench, odd, suffix):
    suffix, _, residues = suffix.partition(" ")
    needed(suffix)
    options = ["--per-residue"] if residues else ["--pool", "mean+max"]
    whole, out = bench.folder / f"whole{suffix}", bench.folder / f"out{suffix}"
    assert bench.embed(odd, *options, out=whole).code == 0
    assert make_parts(bench.embed, odd, out, *options) == [0, 0, 0]
    ended = run("merge", "-o", out, "--input", odd)
    told = f"bioxfer: {out}: 9 records (7 ok, 1 skipped, 1 windowed)"
    assert (ended.code, ended.err.splitlines()[-1]) == (0, told)
    assert out.read_bytes() == whole.read_bytes()


@exact
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".h5", ".h5ad", ".parquet residues"])
def test_more_parts_of_embeddings_than_can_be_open_are_joined_in_two_rounds(bench, odd, monkeypatch, suffix):
    suffix, _, residues = suffix.partition(" ")
    needed(suffix)
    options = ["--per-residue"] if residues else ["--translate", "auto"]
    whole, out = bench.folder / f"whole{suffix}", bench.folder / f"out{suffix}"
    assert bench.embed(odd, *options, out=whole).code == 0
    assert make_parts(bench.embed, odd, out, *options) == [0, 0, 0]
    monkeypatch.setattr(merging, "_GROUPS_AT_ONCE", 2)
    assert run("merge", "-o", out).code == 0
    assert out.read_bytes() == whole.read_bytes()


@exact
def test_ids_that_are_numbers_keep_their_order_in_hdf5(bench):
    needed(".h5")
    records = [replace(r, id=str(12 - number)) for number, r in enumerate(proteins(5))]
    source = bench.write("numbers.fasta", fasta(records))
    whole, out = bench.folder / "whole.h5", bench.folder / "out.h5"
    assert bench.embed(source, out=whole).code == 0
    assert make_parts(bench.embed, source, out) == [0, 0, 0]
    assert run("merge", "-o", out).code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert bioxfer.read_embeddings(whole).ids == ["12", "11", "10", "9", "8"]


@exact
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("shape", ["wide", "long"])
def test_predicted_in_parts_and_merged(bench, odd, suffix, shape):
    needed(suffix)
    whole, out = bench.folder / f"whole{suffix}", bench.folder / f"out{suffix}"
    assert bench.predict(odd, "--format", shape, out=whole).code == 0
    assert make_parts(bench.predict, odd, out, "--format", shape, of=4) == [0] * 4
    assert run("merge", "-o", out).code == 0
    assert out.read_bytes() == whole.read_bytes()


@exact
def test_residues_predicted_in_parts_and_merged(tmp_path, demo):
    source = tmp_path / "some.fasta"
    source.write_text(fasta(bioxfer.read_sequences(demo)[:5]))
    common = "--head", "secondary_structure", "--format", "long"
    assert run("predict", source, "-o", tmp_path / "whole.csv", *common).code == 0
    for number in (1, 2):
        assert run("predict", source, "-o", tmp_path / "o.csv", *common, "--shard", f"{number}/2").code == 0
    assert run("merge", "-o", tmp_path / "o.csv").code == 0
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@exact
def test_translated_in_parts_and_merged(bench):
    genes = bench.write("genes.fasta", ">g1\nATGAAAGTTTTATAA\n>g2\nATGGGTGGTGCTTAA\n>g3\nATGTAA\n")
    options = "--translate", "six-frame", "--min-orf", "1", "--on-duplicate", "rename"
    whole, out = bench.folder / "whole.csv", bench.folder / "out.csv"
    assert bench.embed(genes, *options, out=whole).code == 0
    assert make_parts(bench.embed, genes, out, *options) == [0, 0, 0]
    assert run("merge", "-o", out, "--input", genes).code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_more_parts_than_records(bench):
    source = bench.write("two.fasta", fasta(proteins(2)))
    assert make_parts(bench.embed, source, bench.out, of=4) == [0] * 4
    ended = bench.embed(source, "--shard", "4/4")
    assert "none of the 2 records falls on this part" in one_sentence(ended.err)
    assert run("merge", "-o", bench.out).code == 0
    assert [row["id"] for row in bench.rows()] == ["p0", "p1"]


def test_an_empty_input_in_parts(bench):
    source = bench.write("none.fasta", "")
    assert make_parts(bench.embed, source, bench.out, of=2) == [0, 0]
    assert run("merge", "-o", bench.out).code == 0
    assert bench.rows() == []


def test_standard_input_can_be_dealt_out(bench):
    data = bench.fasta.read_bytes()
    for number in (1, 2):
        assert bench.embed("-", "--shard", f"{number}/2", stdin=data).code == 0
    assert run("merge", "-o", bench.out, "--input", bench.fasta).code == 0


def command(bench: Bench, *options: object):
    """Make the second of two parts, and replace nothing."""
    words = "embed", bench.fasta, "-o", bench.out, "--model", bench.weights, "--shard", "2/2"
    return run(*words, *options)


def test_a_finished_part_stays_as_it_is(bench, runs):
    assert command(bench).code == 0
    part = Path(name_part(bench.out, Shard(2, 2)))
    before, batches = part.stat(), len(runs)
    ended = command(bench)
    assert ended.code == 0
    assert f"{part} is finished and stays as it is" in ended.err
    assert part.stat() == before
    assert len(runs) == batches


def test_a_finished_part_with_failures_ends_as_it_did_at_first(bench, monkeypatch):
    from bioxfer.backbones.compact import CompactBackbone

    original = CompactBackbone.represent

    def represent(self, sequences, *, layers):
        found = original(self, sequences, layers=layers)
        for each in found:
            each.residues[:] = float("nan")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(CompactBackbone, "represent", represent)
        assert command(bench).code == 4
    ended = command(bench)
    assert (ended.code, "stays as it is" in ended.err) == (4, True)
    assert "3 of 3 records failed" in ended.err


def test_a_part_of_another_request_is_refused_unless_it_may_be_replaced(bench):
    assert command(bench).code == 0
    for options, told in (
        (["--pool", "max"], "was made with pool mean, not max"),
        (["--layer", "1"], "was made with layer 2, not 1"),
        (["--long", "skip"], "was made with long window, not skip"),
        (["--precision", "bf16"], "was made with precision fp32, not bf16"),
    ):
        ended = command(bench, *options)
        assert ended.code == 3
        assert told in one_sentence(ended.err)
    assert command(bench, "--pool", "max", "--overwrite").code == 0
    assert read_mark(name_part(bench.out, Shard(2, 2))).request["pool"] == "max"


def test_a_part_that_cannot_be_replaced_stays_finished(bench, monkeypatch):
    assert command(bench).code == 0
    part = name_part(bench.out, Shard(2, 2))
    data = Path(part).read_bytes(), Path(name_mark(part)).read_bytes()
    bench.fasta.write_text(fasta(proteins(4)).replace("M", "-"))
    assert command(bench, "--overwrite").code == 3
    assert (Path(part).read_bytes(), Path(name_mark(part)).read_bytes()) == data


def test_a_part_of_another_input_is_refused(bench):
    assert command(bench).code == 0
    bench.fasta.write_text(fasta(proteins(7)))
    ended = command(bench)
    assert ended.code == 3
    assert "was made from another input (6 records, not 7); use --overwrite" in one_sentence(ended.err)
    bench.fasta.write_text(fasta(proteins(6, seed=9)))
    told = one_sentence(command(bench).err)
    assert "(as many records, 6, but other ids or residues); use --overwrite" in told


def test_another_head_under_the_same_name_is_another_request(bench):
    words = "predict", bench.fasta, "-o", bench.out, "--head", bench.head, "--model", bench.weights
    assert run(*words, "--shard", "1/2").code == 0
    from toys import head

    other = head("taste", task="regression")
    other.save(bench.head)
    assert "was made with heads" in one_sentence(run(*words, "--shard", "1/2").err)


@pytest.mark.parametrize("damage", ["mark", "byte", "cut"])
def test_f21_a_part_that_is_not_what_its_mark_says_is_made_anew(bench, damage):
    assert command(bench).code == 0
    part = Path(name_part(bench.out, Shard(2, 2)))
    data = part.read_bytes()
    if damage == "mark":
        os.unlink(name_mark(part))
    else:
        part.write_bytes(data[:-5] if damage == "cut" else data[:-5] + b"9" + data[-4:])
    ended = command(bench)
    assert ended.code == 0
    assert f"{part} is {'not finished' if damage == 'mark' else 'damaged'}; it is made anew" in ended.err
    assert part.read_bytes() == data
    assert read_mark(str(part)).sha256 == merging.sum_file(str(part))


def test_a_mark_that_cannot_be_read_is_no_reason_to_replace_a_part(bench):
    assert command(bench).code == 0
    Path(name_mark(name_part(bench.out, Shard(2, 2)))).write_text("{}")
    assert "is not the mark of a part" in one_sentence(command(bench).err)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-o", "-", "--shard", "1/2"], "parts are files, and - is none; name one with -o"),
        (["-o", "out.csv", "--shard", "3/2"], "there is no shard 3/2"),
        (["-o", "out.csv", "--shard", "1/2", "--report", "r.html"], "--report shows all proteins"),
        (["-o", "out.csv", "--shard", "1/2", "--distributed"], "leave one of the two out"),
        (["-o", "out.csv", "--workers", "2"], "--workers is for --distributed"),
        (["-o", "out.csv", "--part-records", "2"], "--part-records is for --distributed"),
        (["-o", "out.csv", "--merge"], "--merge is for --distributed"),
    ],
)
def test_what_does_not_go_with_parts_is_told_before_the_work(bench, monkeypatch, options, told):
    monkeypatch.chdir(bench.folder)
    before = sorted(os.listdir(bench.folder))
    ended = run("predict", bench.fasta, "--head", bench.head, "--model", bench.weights, *options)
    assert ended.code in (2, 3)
    assert told in one_sentence(ended.err)
    assert sorted(os.listdir(bench.folder)) == before


def test_a_missing_input_is_told_before_the_model_is_loaded(bench):
    ended = run("embed", "absent.fasta", "-o", bench.out, "--model", "absent", "--shard", "1/2")
    assert "no such file" in one_sentence(ended.err)


def test_the_command_in_the_mark_makes_the_part(bench):
    words = bench.predict(bench.fasta, "--probabilities", "--batch-tokens", 64, "--shard", "1/2")
    assert words.code == 0
    said = read_mark(name_part(bench.out, Shard(1, 2))).command
    assert said == (
        f"bioxfer predict {bench.fasta} -o {bench.out} --model {bench.weights} --batch-tokens 64 "
        f"--head {bench.head} --probabilities"
    )


def test_a_job_words_all_that_differs_from_the_usual():
    from bioxfer.genes import Translation

    job = EmbedJob(source="in put", out="o.csv", translation=Translation("orf", 11, 40), degap=True, layer=0)
    assert job.command_line() == (
        "bioxfer embed 'in put' -o o.csv --degap --layer 0 --translate orf --genetic-code 11 --min-orf 40"
    )


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is of POSIX")
@exact
def test_f20_a_shard_that_was_killed_is_made_by_the_same_command(bench):
    source = bench.write("many.fasta", fasta(proteins(3000)))
    words = [
        *("embed", str(source), "-o", str(bench.out), "--model", str(bench.weights)),
        *("--shard", "1/2", "--batch-tokens", "64"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "bioxfer", *words], env={**os.environ, "PYTHONPATH": str(PACKAGE)}
    )
    part, started = Path(name_part(bench.out, Shard(1, 2))), time.monotonic()
    while child.poll() is None and not list(bench.folder.glob(".bioxfer-*")):
        assert time.monotonic() - started < 120
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not part.exists()
    assert run(*words).code == 0
    assert not list(bench.folder.glob(".bioxfer-*"))
    assert run(*words[:-4], "--shard", "2/2", "--batch-tokens", "64").code == 0
    assert run("merge", "-o", bench.out).code == 0
    whole = bench.folder / "whole.csv"
    assert bench.embed(source, out=whole).code == 0
    assert bench.out.read_bytes() == whole.read_bytes()
