"""The faults that must be held, F1 to F42 by number and in order, as whoever runs the commands meets them.

Parts are tested where they are made; here a fault goes in at the command line, or at the Python calls that
README shows, and every word of what is promised for it is looked for. Kills in number are test_kills.py's,
downloads that lie test_downloads.py's, mutated files in number test_fuzz.py's.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import gc
import gzip
import hashlib
import io
import itertools
import logging
import os
import pickle
import random
import re
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_downloads import NAME, Publisher
from test_heads import rewrite
from test_io import HEADERS, LINES
from torch import nn
from toys import (
    WINDOW,
    Bench,
    backbone,
    bits_stand_alone,
    esm2_file,
    fasta,
    head,
    one_sentence,
    proteins,
    run,
    table,
    weights_bytes,
)

import bioxfer as bx
import bioxfer.head_training
from bioxfer.backbones import Representation
from bioxfer.backbones.compact import (
    CompactBackbone,
    CompactConfig,
    CompactModel,
    random_backbone,
    save_compact,
)
from bioxfer.cache import EmbeddingCache, default_cache_path
from bioxfer.embedding import embed_records
from bioxfer.errors import FingerprintError, LabelError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.sequences import RESIDUES, SequenceRecord
from bioxfer.tasks.classes import Multiclass

PACKAGE = Path(bx.__file__).parents[1]
BEFORE = "from before"

KMER = ("--cluster-by", "kmer")

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Bench:
    """One bench for all examples of a property."""
    return Bench(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def short_path(monkeypatch) -> None:
    """Few penalties to choose from, as a short path is a quick test."""
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))


@pytest.fixture
def no_mmseqs(monkeypatch) -> None:
    """Our own search, which starts no program."""
    monkeypatch.setattr("shutil.which", lambda name: None)


def read_table(data: bytes | Path) -> Rows:
    content = data.read_bytes() if isinstance(data, Path) else data
    text = content.decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, by its place; None where it is a folder itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_refused(ended, *told: str, code: int = 3, before: str = "") -> str:
    """One sentence, nothing on standard output, and the exit code of it; `before` may come before it."""
    *lines, sentence = ended.err.splitlines()
    assert all(re.search(before, line) for line in lines) if before else not lines, ended.err
    assert one_sentence(sentence)
    assert (ended.code, ended.out) == (code, b""), sentence
    for words in told:
        assert re.search(words, sentence), sentence
    return sentence


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def assert_same(found: Rows, wanted: Rows) -> None:
    """The same cells; or, on a processor whose products vary with the batch, numbers the same to 1e-5."""
    if found == wanted:
        return
    assert not bits_stand_alone()
    for row, other in zip(found, wanted, strict=True):
        for name, cell in other.items():
            if row[name] != cell:
                assert name not in ("id", "length", "status", "message"), row
                assert float(row[name]) == pytest.approx(float(cell), rel=1e-4, abs=1e-5)


# Reading.


@settings(max_examples=25)
@given(
    records=st.lists(st.tuples(HEADERS, LINES), max_size=5),
    end=st.sampled_from(["\r\n", "\r", "\n"]),
    blank=st.booleans(),
    final=st.booleans(),
)
def test_f01_line_ends_blank_lines_and_a_missing_last_one_change_nothing(desk, records, end, blank, final):
    text = "".join(f">{i}{h}\n" + "".join(f"{s}\n" for s in seq) for i, (h, seq) in enumerate(records))
    other = text.replace("\n", end + end if blank else end)
    if final:
        other = other.rstrip("\r\n")
    wanted, found = (
        desk.predict("-", "--degap", out="-", stdin=content.encode()) for content in (text, other)
    )
    assert (found.code, found.out) == (wanted.code, wanted.out) == (0, wanted.out)
    assert len(read_table(found.out)) == len(records)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", ["in.fasta", "in.csv"])
def test_f02_a_byte_order_mark_is_stripped(bench, name):
    content = fasta(proteins(6)) if name == "in.fasta" else table(proteins(6), "id", "sequence")
    wanted = bench.predict(bench.write(name, content), out="-").out
    assert bench.predict(bench.write(name, BOM + content.encode()), out="-").out == wanted
    assert len(read_table(wanted)) == 6
    if name == "in.fasta":  # also where files were joined
        joined = BOM + content.encode() + BOM + b">last\nMKV\n"
        assert [row["id"] for row in read_table(bench.predict("-", out="-", stdin=joined).out)][-1] == "last"


def test_f02_a_byte_order_mark_of_labels_is_stripped(bench):
    source = bench.write("train.fasta", fasta(proteins(24)))
    made = []
    for start in (b"", BOM):
        labels = bench.write("labels.csv", start + table(proteins(24), "id", "label").encode())
        words = ["--model", bench.weights, "--head", "nearest", "--overwrite", *KMER]
        ended = run("train", source, "--labels", labels, "-o", bench.folder / "h.safetensors", *words)
        assert ended.code == 0, ended.err
        made.append(TrainedHead.load(bench.folder / "h.safetensors").index.ids)
    assert made[0] == made[1]


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_f02_text_before_the_first_header_is_exit_3_with_the_line(bench, command):
    bench.out.write_text(BEFORE)
    ended = getattr(bench, command)(bench.write("in.fasta", "\n\nhello there\n>a\nMKV\n"))
    assert_refused(ended, r"in\.fasta, line 3: 'hello there'")
    assert bench.out.read_text() == BEFORE


def test_f03_a_latin_1_header_is_kept_byte_for_byte(bench):
    source = bench.write("in.fasta", b">caf\xe9|\xff\xfe x\nMKV\n>caf\xc3\xa9\nMKV\n")
    for command in (bench.predict, bench.embed):
        assert command(source).code == 0
        lines = bench.out.read_bytes().splitlines()
        assert lines[1].startswith(b"caf\xe9|\xff\xfe,3,ok,")
        assert lines[2].startswith(b"caf\xc3\xa9,3,ok,")
    h5py = pytest.importorskip("h5py")
    bench.embed(source, out=bench.folder / "v.h5")
    with h5py.File(bench.folder / "v.h5") as file:
        ids = [entry.attrs["original_id"] for entry in file.values()]
    found = [
        name.encode("utf-8", "surrogateescape") if isinstance(name, str) else bytes(name) for name in ids
    ]
    assert found == [b"caf\xe9|\xff\xfe", b"caf\xc3\xa9"]


@pytest.mark.parametrize(
    ("content", "line"), [(b">a\0b\nMKV\n", 1), (b">a\nMKV\n\nM\0V\n", 4), (b">a\r\nMKV\r\nM\0", 3)]
)
def test_f03_a_nul_byte_is_refused_with_its_line(bench, content, line):
    for command in (bench.predict, bench.embed):
        assert_refused(command(bench.write("in.fasta", content)), rf"in\.fasta, line {line}: a NUL byte")
    assert not bench.out.exists()


def test_f04_a_truncated_gzip_is_an_error_and_nothing_is_published(bench):
    content = gzip.compress(fasta(proteins(200)).encode())
    before = tree(bench.folder)
    for command in (bench.predict, bench.embed):
        ended = command(bench.write("in.fasta.gz", content[:-10]))
        assert_refused(ended, r"in\.fasta\.gz is cut off: its gzip data end too early")
        assert set(tree(bench.folder)) - set(before) == {"in.fasta.gz"}


def test_f04_every_member_of_a_bgzf_file_is_read(bench):
    text = bench.fasta.read_bytes()
    wanted = bench.predict(bench.fasta, out="-").out
    members = [gzip.compress(text[place : place + 50]) for place in range(0, len(text), 50)]
    blocked = bench.write("in.fasta.bgz", b"".join(members) + gzip.compress(b""))
    assert len(members) > 4
    assert bench.predict(blocked, out="-").out == wanted
    assert len(read_table(wanted)) == 6


@pytest.mark.parametrize("content", [b"", b"\n \r\n", gzip.compress(b"")], ids=["empty", "blank", "gz"])
def test_f05_an_empty_file_gives_a_header_alone_and_a_warning(bench, content):
    source = bench.write("in.fasta", content)
    code, _, err = bench.predict(source)
    assert code == 0
    assert bench.out.read_text() == "id,length,status,message,taste,taste_score,taste_nearest,taste_flag\n"
    assert "in.fasta holds no sequence" in one_sentence(err)
    code, out, err = bench.embed("-", out="-", stdin=content)
    assert (code, out.count(b"\n"), out[:23]) == (0, 1, b"id,length,status,messag")
    assert "holds no sequence" in one_sentence(err)


def test_f05_an_empty_sequence_is_a_skipped_row_and_no_id_is_exit_3(bench):
    assert bench.predict(bench.write("in.fasta", ">a\n>b\nMKV\n>c\n\n>d\n*\n")).code == 0
    rows = bench.rows()
    assert [(row["id"], row["status"], row["length"]) for row in rows] == [
        ("a", "skipped", "0"),
        ("b", "ok", "3"),
        ("c", "skipped", "0"),
        ("d", "skipped", "0"),
    ]
    assert [row["taste"] != "" for row in rows] == [False, True, False, False]
    assert all("empty sequence" in row["message"] for row in rows if row["status"] == "skipped")
    for header in (">", "> late"):
        source = bench.write("in.fasta", f">a\nMKV\n{header}\nMKV\n")
        assert_refused(bench.predict(source), r"in\.fasta, line 3: no id after '>'")
    source = bench.write("in.csv", 'id,sequence\na,MKV\n"",MKV\n')
    assert_refused(bench.predict(source), r"in\.csv, line 3: the id is empty")


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("in.fasta", ">a x\nMWK\n>b\nM\n>a y\nMKV\n", (5, 1)),
        ("in.csv", "id,sequence\na,MWK\nb,M\na,MKV\n", (4, 2)),
    ],
)
def test_f06_a_duplicate_id_names_both_lines_and_rename_keeps_both(bench, name, content, lines):
    source = bench.write(name, content)
    for command in (bench.predict, bench.embed):
        ended = command(source)
        assert_refused(ended, "line {}: id 'a' is already used in line {};".format(*lines), "--on-duplicate")
    assert not bench.out.exists()
    assert bench.predict(source, "--on-duplicate", "rename").code == 0
    kept = [(row["id"], row["length"], row["message"]) for row in bench.rows()]
    assert kept == [("a", "3", ""), ("b", "1", ""), ("a_2", "3", "renamed from 'a'")]


def test_f07_a_duplicate_sequence_is_computed_once_and_has_both_rows(bench, runs):
    text = "MKVLAWGDESTIQRNPFYHC"
    source = bench.write("in.fasta", f">a\n{text}\n>b\nMWWK\n>c\n{text.lower()}\n>d\n{text}*\n")
    assert bench.predict(source, "--no-resume").code == 0
    assert sorted(itertools.chain(*runs)) == sorted([text, "MWWK"])
    a, b, c, d = bench.rows()
    assert a | {"id": "c"} == c
    assert a | {"id": "d", "message": "one final * removed"} == d
    assert b["length"] == "4"


AWKWARD = ["/", ".", "..", "a/b", "NA", "1e5", "007", "nan", "None", "True", "'", "A", "a"]
AWKWARD += ["sp|P69905|HBA_HUMAN", "#", "\\", "\u00a0x"]


def test_f08_awkward_ids_are_verbatim_in_every_format(bench):
    h5py, parquet = pytest.importorskip("h5py"), pytest.importorskip("pyarrow.parquet")
    source = bench.write(
        "in.fasta", "".join(f">{name} text\nMKV{'A' * n}\n" for n, name in enumerate(AWKWARD))
    )
    for command in (bench.predict, bench.embed):
        for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
            out = bench.folder / f"out.{suffix}"
            assert command(source, out=out).code == 0
            with out.open(newline="") as file:
                assert [row[0] for row in csv.reader(file, delimiter=delimiter)] == ["id", *AWKWARD]
        out = bench.folder / "out.parquet"
        assert command(source, out=out).code == 0
        assert parquet.read_table(out)["id"].to_pylist() == AWKWARD
    assert bench.embed(source, out=bench.folder / "v.npz").code == 0
    with np.load(bench.folder / "v.npz") as found:
        assert found["ids"].tolist() == AWKWARD
        vectors = found["vectors"]
    assert bench.embed(source, out=bench.folder / "v.h5").code == 0
    with h5py.File(bench.folder / "v.h5") as file:
        assert [entry.attrs["original_id"] for entry in file.values()] == AWKWARD
        assert all(isinstance(entry, h5py.Dataset) for entry in file.values())  # "/" made no groups
        np.testing.assert_array_equal(np.stack([entry[()] for entry in file.values()]), vectors)
    assert [record.id for record in bx.read_sequences(source)] == AWKWARD


def test_f08_nul_and_empty_ids_are_refused(bench):
    assert_refused(bench.embed(bench.write("in.fasta", b">a\0\nMKV\n")), "line 1: a NUL byte")
    assert_refused(bench.embed(bench.write("in.fasta", b">\nMKV\n")), "line 1: no id")


def test_f09_an_id_is_never_a_path(tmp_path, monkeypatch, short_path):
    pytest.importorskip("h5py")
    folder = tmp_path / "one" / "two" / "three"
    folder.mkdir(parents=True)
    bench = Bench(folder)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("BIOXFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(folder)
    names = ["../up", "../../../out.csv", f"{tmp_path}/absolute", "x" * 300, "A", "a"]
    names += ["-rf", "~", "C:\\x", "$HOME", "con.csv", "out.csv"]
    records = proteins(24)
    named = [
        dataclasses.replace(record, id=name)
        for record, name in zip(records, [*names, *(r.id for r in records[len(names) :])], strict=True)
    ]
    source = bench.write("in.csv", table(named, "id", "sequence", "label"))
    assert bench.embed(source).code == 0  # the cache is there from here on
    bench.out.unlink()
    before = set(tree(tmp_path))
    for suffix in ("csv", "npz", "h5", "parquet"):
        assert bench.embed(source, out=folder / f"v.{suffix}").code == 0
    for suffix in ("npz", "h5"):
        assert bench.embed(source, "--per-residue", out=folder / f"r.{suffix}").code == 0
    assert bench.predict(source, out=folder / "p.csv").code == 0
    assert run("split", source, "-o", folder / "s.csv", *KMER).code == 0
    words = ["--model", bench.weights, "--head", "linear", *KMER]
    ended = run("train", source, "-o", folder / "h.safetensors", *words)
    assert ended.code == 0, ended.err
    new = set(tree(tmp_path)) - before
    made = {"v.csv", "v.npz", "v.h5", "v.parquet", "r.npz", "r.h5", "p.csv", "s.csv", "h.safetensors"}
    assert {name for name in new if not name.startswith("cache")} == {
        f"one/two/three/{name}" for name in made
    }
    assert [row["id"] for row in read_table(folder / "p.csv")] == [record.id for record in named]
    assert set(TrainedHead.load(folder / "h.safetensors").index.ids) <= {record.id for record in named}


# Sequences.


@settings(max_examples=30)
@given(
    st.one_of(st.text("ACDEXkUOBZ*J7<>ß \t", max_size=40), st.text(max_size=30)).map(
        lambda text: text.replace("-", "").replace(".", "")
    )
)
def test_f10_whatever_the_text_tokens_equal_residues(text):
    letters = [c for c in text if c not in " \t\n\r\v\f"]
    stop = letters[-1:] == ["*"]
    letters = letters[: len(letters) - stop]
    invalid = [c for c in letters if not (c.isascii() and c.isalpha()) or c in "Jj"]
    residues = "".join("X" if c in invalid else c.upper() for c in letters)
    found = bx.embed([text, residues], model=backbone(), per_residue=True)
    assert found.lengths == [len(residues)] * 2
    assert found.statuses == ["ok" if residues else "skipped"] * 2
    if residues:
        assert found.residues[0].shape == (len(residues), backbone().dim)
        np.testing.assert_array_equal(found.residues[0], found.residues[1])
        assert (f"{len(invalid)} residue" in found.messages[0]) == bool(invalid)
        assert ("one final * removed" in found.messages[0]) == stop
        assert found.messages[1] == ""


@pytest.mark.parametrize(("token", "letters"), [("<mask>", "XMASKX"), ("<eos>", "XEOSX"), ("<cls>", "XCLSX")])
def test_f11_special_tokens_are_invalid_characters(bench, token, letters):
    source = bench.write("in.fasta", f">token\nMK{token}V\n>letters\nMK{letters}V\n")
    assert bench.embed(source).code == 0
    first, second = bench.rows()
    assert (first["length"], first["status"]) == (str(len(letters) + 3), "ok")
    assert f"2 residues became X (< at 3, > at {len(letters) + 2})" in first["message"]
    assert {**first, "id": "", "message": ""} == {**second, "id": "", "message": ""}
    assert_refused(bench.embed(source, "--on-invalid", "error"), "record 'token'.*'<' is not an amino acid")


def test_f12_gaps_are_an_error_and_degap_removes_them(bench):
    source = bench.write("in.fasta", ">plain\nMKVLAW\n>aligned\nMK-V.LA--W\n")
    for command in (bench.predict, bench.embed):
        assert_refused(command(source), r"record 'aligned' \(.*in\.fasta, line 3\)", "'-' at 3", "--degap")
        assert not bench.out.exists()
        assert command(source, "--degap").code == 0
        plain, aligned = bench.rows()
        assert aligned["message"] == "4 gaps removed"
        assert {**aligned, "id": "plain", "message": ""} == plain
        bench.out.unlink()


@pytest.mark.parametrize(
    ("sequence", "warned"),
    [
        ("ACGT" * 10, True),
        ("acgu" * 10, True),
        ("N" * 4 + "ACGT" * 9, True),
        ("ACGT" * 23 + "ACG" + "MKVLF", True),  # 95 of 100
        ("ACGT" * 23 + "AC" + "MKVLFW", False),
    ],
)
def test_f13_nucleotides_are_warned_of_and_translate_is_named(bench, short_path, sequence, warned):
    source = bench.write("in.fasta", f">protein\nMKVLAWGDESTIQRNPFYHC\n>genes\n{sequence}\n")
    for command in (bench.predict, bench.embed):
        code, _, err = command(source)
        assert code == 0
        assert ("record 'genes'" in err and "--translate" in err) == warned
        protein, genes = bench.rows()
        assert protein["message"] == ""
        assert ("nucleotides" in genes["message"] and "--translate" in genes["message"]) == warned
    records = [*proteins(24), SequenceRecord("genes", sequence, label="oily")]
    source = bench.write("in.csv", table(records, "id", "sequence", "label"))
    out = bench.folder / "h.safetensors"
    for words in (
        ["split", source, "-o", bench.out, "--overwrite"],
        ["train", source, "-o", out, "--model", bench.weights, "--head", "nearest"],
    ):
        code, _, err = run(*words, *KMER)
        assert code == 0
        assert ("record 'genes'" in err and "--translate" in err) == warned, words[0]


def test_f14_titin_is_windowed_and_its_row_says_so(bench):
    titin = "".join(random.Random(0).choices("ACDEFGHIKLMNPQRSTVWY", k=35_213))
    source = bench.write("in.fasta", f">titin\n{titin}\n>short\nMKV\n")
    assert bench.predict(source).code == 0
    row, short = bench.rows()
    assert (row["length"], row["status"], short["status"]) == ("35213", "windowed", "ok")
    assert re.fullmatch(r"windowed: \d+ windows of 60, overlap 15", row["message"])
    assert row["taste"]
    out = bench.folder / "v.npz"
    assert bench.embed(source, "--per-residue", out=out).code == 0
    with np.load(out) as found:
        assert found["offsets"].tolist() == [0, 35_213, 35_216]
        assert np.isfinite(found["residues"]).all()
        start = found["residues"][: WINDOW // 2]
    alone = bx.embed([titin[:WINDOW]], model=backbone(), per_residue=True).residues[0]
    assert_close(start, alone[: WINDOW // 2], 1e-5)  # before the second window begins


class Half:
    """Gives 1000 and 1000.5 in turns in half precision, which holds neither their sum nor their mean."""

    name, dim, n_layers, window, precision, fingerprint = "half", 4, 1, 40_000, "fp16", "0" * 16

    def represent(self, sequences, *, layers):
        turns = torch.tensor([1000.0, 1000.5], dtype=torch.float16).repeat(20_000)
        return [
            Representation(
                residues=turns[: len(sequence), None].expand(-1, self.dim)[None],
                cls=turns[:1].expand(self.dim)[None],
            )
            for sequence in sequences
        ]


@pytest.mark.parametrize("window", [40_000, 1022])
def test_f15_half_precision_is_pooled_in_fp32(window):
    model = Half()
    model.window = window
    given_ = model.represent(["M" * 35_000], layers=[1])[0].residues
    assert not given_.sum().isfinite()
    assert given_.mean() != 1000.25
    found = bx.embed(["M" * 35_000], model=model, pool="mean+max+start+end+cls")
    assert found.vectors.dtype == np.float32
    wanted = np.repeat([1000.25, 1000.5, 1000.25, 1000.25, 1000.0], 4)[None]
    assert_close(found.vectors, wanted, 1e-4)  # in half precision it would be off by 2.5e-4
    assert found.statuses == ["ok" if window == 40_000 else "windowed"]


# Computing.


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f16_what_is_not_finite_is_retried_in_fp32_or_fails_alone(bench, monkeypatch, bad):
    original = CompactBackbone.represent
    poisoned = {"bf16"}

    def represent(self, sequences, *, layers):
        found = original(self, sequences, layers=layers)
        for sequence, one in zip(sequences, found, strict=True):
            if sequence == "MWWW" and self.precision in poisoned:
                one.residues[0, 1, 2] = bad
        return found

    source = bench.write("in.fasta", ">a\nMKV\n>b\nMWWW\n>c\nMLL\n")
    bench.embed(source, "--no-resume")
    plain = bench.rows()
    monkeypatch.setattr(CompactBackbone, "represent", represent)
    code, _, _ = bench.embed(source, "--precision", "bf16", "--no-resume")
    a, b, c = bench.rows()
    assert (code, [row["status"] for row in (a, b, c)]) == (0, ["ok"] * 3)
    assert "in fp32" in b["message"]
    assert_same([{**b, "message": ""}], plain[1:2])
    poisoned.add("fp32")
    for command in (bench.embed, bench.predict):
        code, _, err = command(source, "--no-resume")
        assert code == 4
        assert "1 of 3 records failed" in err
        a, b, c = bench.rows()
        assert (a["status"], b["status"], c["status"]) == ("ok", "failed", "ok")
        assert "not finite" in b["message"]
        assert set(list(b.values())[4:]) == {""}
    bench.embed(source, "--no-resume")
    assert_same(bench.rows()[::2], plain[::2])


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 130), min_size=1, max_size=10),
    seed=st.integers(0, 3),
    batch_tokens=st.integers(1, 400),
    threads=st.sampled_from([1, 2]),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_f17_a_result_is_free_of_batch_order_padding_and_threads(
    lengths, seed, batch_tokens, threads, precision
):
    model = random_backbone(width=64, layers=2, window=60, precision=precision)
    dice = random.Random(seed)
    sequences = ["".join(dice.choices(RESIDUES, k=length)) for length in lengths]
    order = dice.sample(range(len(sequences)), len(sequences))
    before = torch.get_num_threads()
    options = {"model": model, "pool": "mean+max+cls", "per_residue": True}
    try:
        torch.set_num_threads(1)
        alone = [bx.embed([sequence], **options) for sequence in sequences]
        torch.set_num_threads(threads)
        together = bx.embed([sequences[place] for place in order], batch_tokens=batch_tokens, **options)
    finally:
        torch.set_num_threads(before)
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for row, place in enumerate(order):
        assert_close(together.vectors[row], alone[place].vectors[0], tolerance)
        assert_close(together.residues[row], alone[place].residues[0], tolerance)


class Dropping(nn.Module):
    """A module with dropout, in training mode as modules begin."""

    name, dim, n_layers, window, precision, fingerprint = "dropping", 6, 1, 50, "fp32", "fedcba9876543210"

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def represent(self, sequences, *, layers):
        x = [self.dropout(torch.ones(1, len(sequence), self.dim)) for sequence in sequences]
        return [Representation(residues=part, cls=part[:, 0]) for part in x]


def test_f18_dropout_is_off_even_where_it_was_left_on():
    sequences = [record.sequence for record in proteins(5)]
    model = Dropping()
    first, second = (bx.embed(sequences, model=model.train()).vectors for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, 1)
    left_on, plain = random_backbone(), random_backbone()
    left_on._model.train()
    first, second, wanted = (bx.embed(sequences, model=m).vectors for m in (left_on, left_on, plain))
    assert first.tobytes() == second.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_f19_out_of_memory_halves_the_batch_and_keeps_order_and_device(bench, monkeypatch, error, nth):
    bench.fasta.write_text(fasta(proteins(30)))
    options = ["--no-resume", "--threads", "1", "--batch-tokens", "400"]
    bench.predict(bench.fasta, *options)
    wanted = bench.rows()
    original = CompactBackbone.represent
    calls, devices = [], set()

    def represent(self, sequences, *, layers):
        calls.append(list(sequences))
        devices.add(str(self.device))
        if len(calls) == nth:
            raise error
        return original(self, sequences, layers=layers)

    monkeypatch.setattr(CompactBackbone, "represent", represent)
    code, _, err = bench.predict(bench.fasta, *options)
    assert code == 0
    assert f"out of memory with a batch of {len(calls[nth - 1])}; trying it in halves" in err
    assert calls[nth] + calls[nth + 1] == calls[nth - 1]
    assert abs(len(calls[nth]) - len(calls[nth + 1])) <= 1
    assert devices == {"cpu"}
    assert_same(bench.rows(), wanted)


# What ends a run before its time.

SLOW = """
import sys, time
from bioxfer.backbones.compact import CompactBackbone
fast = CompactBackbone.represent
def represent(self, sequences, *, layers):
    found = fast(self, sequences, layers=layers)
    print("batch", file=sys.stderr, flush=True)
    time.sleep(0.03)
    return found
CompactBackbone.represent = represent
from bioxfer.cli import main
main()
"""


class Turns:
    """Forty proteins, each a batch of its own, and a slow process that predicts them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        text = "MKVLAWGDESTIQRNPFYHC" + "MKVLAWGDESTIQRNPFYHC"[::-1]
        bench.fasta.write_text("".join(f">p{n}\n{text[n:] + text[:n]}\n" for n in range(40)))
        self.options = ["--batch-tokens", "60", "--threads", "1"]

    def start(self, *, after: int) -> subprocess.Popen[str]:
        """Begin it anew, and come back when so many batches are done."""
        here = self.bench
        command = ["predict", here.fasta, "-o", here.out, "--head", here.head, "--model", here.weights]
        child = subprocess.Popen(
            [sys.executable, "-c", SLOW, *command, "--overwrite", *self.options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=PACKAGE,
        )
        assert [child.stderr.readline() for _ in range(after)] == ["batch\n"] * after
        return child


def test_f20_after_sigkill_the_cache_is_readable_and_finished_work_kept(bench, runs, monkeypatch):
    turns = Turns(bench)
    assert bench.predict(bench.fasta, *turns.options).code == 0
    wanted = bench.out.read_bytes()
    assert (len(runs), wanted.count(b"\n")) == (40, 41)
    monkeypatch.setenv("BIOXFER_CACHE", str(bench.folder / "killed"))
    bench.out.write_text(BEFORE)
    child = turns.start(after=8)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert bench.out.read_text() == BEFORE
    with EmbeddingCache(default_cache_path()) as opened:
        kept = len(opened)
    assert kept >= 7  # a batch is kept before the next one begins
    runs.clear()
    assert bench.predict(bench.fasta, *turns.options).code == 0
    assert len(runs) == 40 - kept
    assert bench.out.read_bytes() == wanted


@pytest.mark.parametrize("damage", ["cut", "flip", "rubbish", "value"])
def test_f21_a_damaged_cache_is_detected_and_redone(bench, runs, damage):
    bench.fasta.write_text(fasta(proteins(20)))
    bench.predict(bench.fasta)
    wanted = bench.out.read_bytes()
    path = Path(default_cache_path())
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":  # in the midst of every page
        changed = bytearray(whole)
        for place in range(2048, len(whole), 4096):
            changed[place] ^= 0xFF
        path.write_bytes(changed)
    elif damage == "rubbish":
        path.write_bytes(b"no database " * 1000)
    else:
        raw = sqlite3.connect(path)
        (name,) = raw.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE 'bioxfer_embedding%'"
        ).fetchone()
        raw.execute(f"UPDATE {name} SET data = zeroblob(length(data))")
        raw.commit()
        raw.close()
    runs.clear()
    code, _, err = bench.predict(bench.fasta)
    assert (code, bench.out.read_bytes()) == (0, wanted), err
    assert sum(map(len, runs)) > 0
    runs.clear()
    assert bench.predict(bench.fasta).code == 0
    assert (runs, bench.out.read_bytes()) == ([], wanted)  # mended for good


def test_f21_a_cut_output_is_never_taken_for_a_whole_one(bench):
    bench.predict(bench.fasta)
    wanted = bench.out.read_bytes()
    bench.out.write_bytes(wanted[:-20])
    command = ["predict", bench.fasta, "-o", bench.out, "--head", bench.head, "--model", bench.weights]
    assert_refused(run(*command), r"out\.csv exists; .*--overwrite")
    assert run(*command, "--overwrite").code == 0
    assert bench.out.read_bytes() == wanted


def test_f22_whatever_changes_before_a_resume_the_results_are_right(bench):
    long = [SequenceRecord("long", "".join(random.Random(1).choices("ACDEFGHIKLMN", k=150)))]
    text, other = (fasta([*proteins(6, seed=seed), *long]) for seed in (0, 1))
    weights = [bench.weights]
    for number, window in ((1, WINDOW), (0, 50)):
        torch.manual_seed(number)
        weights.append(bench.folder / f"weights{number}.safetensors")
        model = CompactModel(CompactConfig(width=64, layers=2, window=window))
        save_compact(model, weights[-1], card={"corpus": "none"})
    runs = [
        (text, weights[0], []),
        (other, weights[0], []),
        (text.replace("M", "W"), weights[0], []),
        (text, weights[1], []),
        (text, weights[2], []),
        (text, weights[0], ["--layer", "1"]),
        (text, weights[0], ["--layer", "0"]),
        (text, weights[0], ["--pool", "max"]),
        (text, weights[0], ["--pool", "mean+max"]),
        (text, weights[0], ["--precision", "bf16"]),
        (text, weights[0], ["--long", "truncate"]),
        (text, weights[0], ["--long", "skip"]),
    ]
    tables = []
    for content, model, options in [*runs, *reversed(runs)]:  # all into one cache
        bench.fasta.write_text(content)
        common = ["embed", bench.fasta, "-o", "-", "--model", model, "-q", *options]
        resumed, plain = run(*common), run(*common, "--no-resume")
        assert resumed.code == plain.code == 0
        assert_same(read_table(resumed.out), read_table(plain.out))
        tables.append(plain.out)
    assert len(set(tables[: len(runs)])) == len(runs)  # each change is one


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_f23_a_full_disk_leaves_the_old_output_and_is_one_sentence(bench):
    bench.out.write_text(BEFORE)
    before = set(bench.folder.iterdir())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "from bioxfer.cli import main; main(sys.argv[1:])"
    )
    command = ["embed", bench.fasta, "-o", bench.out, "--model", bench.weights, "--overwrite", "--no-resume"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=PACKAGE, check=False
    )
    assert done.returncode == 3
    assert re.search(r"cannot write .*out\.csv: File too large; make room", one_sentence(done.stderr))
    assert bench.out.read_text() == BEFORE
    assert set(bench.folder.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["heads list", "predict IN -o -", "predict IN -o /dev/full"])
def test_f23_a_full_device_is_one_sentence(bench, words):
    command = [str(bench.fasta) if word == "IN" else word for word in words.split()]
    if command[0] == "predict":
        command += ["--head", str(bench.head), "--model", str(bench.weights)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bioxfer", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PACKAGE,
            check=False,
        )
    place = "/dev/full" if command[-5:-4] == ["/dev/full"] else "standard output"
    assert one_sentence(done.stderr).startswith(f"bioxfer: cannot write {place}: No space left")
    assert done.returncode == 3


def test_f24_two_writers_on_one_cache_both_end_right(bench, runs, monkeypatch):
    records = proteins(60)
    wanted, children = {}, []
    for name, some in (("one", records[:40]), ("two", records[20:])):
        source = bench.write(f"{name}.fasta", fasta(some))
        assert bench.predict(source, "--no-resume").code == 0
        wanted[name] = bench.out.read_bytes()
    monkeypatch.setenv("BIOXFER_CACHE", str(bench.folder / "both"))
    common = ["--head", bench.head, "--model", bench.weights, "--batch-tokens", "100", "-q"]
    for name in wanted:
        words = ["predict", bench.folder / f"{name}.fasta", "-o", bench.folder / f"{name}.csv", *common]
        children.append(
            subprocess.Popen([sys.executable, "-m", "bioxfer", *words], stderr=subprocess.PIPE, cwd=PACKAGE)
        )
    for child in children:
        assert (child.communicate(timeout=120)[1], child.returncode) == (b"", 0)
    for name, content in wanted.items():
        assert_same(read_table(bench.folder / f"{name}.csv"), read_table(content))
    runs.clear()
    assert bench.predict(bench.write("all.fasta", fasta(records))).code == 0
    assert runs == []  # what either has computed is in the cache


def _wait_for_threads() -> None:
    """Those that read, compute and write; what draws for the kernels stays for the next run."""
    end = time.monotonic() + 5
    while named := [
        thread.name
        for thread in threading.enumerate()
        if thread.name in ("bioxfer-reader", "bioxfer-writer") or "(_serve)" in thread.name
    ]:
        assert time.monotonic() < end, named
        time.sleep(0.01)


@pytest.mark.parametrize("command", ["predict", "embed"])
@pytest.mark.parametrize("side", ["reader", "writer", "worker", "reader's bug", "writer's bug"])
def test_f25_a_side_that_dies_ends_it_within_seconds_with_the_cause(
    bench, monkeypatch, request, command, side
):
    # More than one chunk of records and what may lie ready, so that the reader has to wait in its midst.
    monkeypatch.setattr("bioxfer.embedding._AHEAD", 2000)
    some = proteins(200)
    bench.fasta.write_text("".join(f">{n}\n{some[n % 200].sequence}\n" for n in range(6000)))
    bench.out.write_text(BEFORE)
    broken = OSError(errno.EIO, os.strerror(errno.EIO)) if "bug" not in side else RuntimeError("a bug")
    if side.startswith("reader"):
        monkeypatch.setattr("bioxfer.lines._CHUNK", 1000)

        class Failing(io.BytesIO):
            def read(self, size=-1):
                if self.tell() > 4000:
                    raise broken
                return super().read(size)

        monkeypatch.setattr(
            "bioxfer.lines.open", lambda path, mode: Failing(Path(path).read_bytes()), raising=False
        )
    elif side.startswith("writer"):
        from bioxfer.output import TableWriter

        append, rows = TableWriter._append, itertools.count()

        def failing(self, row):
            if next(rows) == 5:
                raise broken
            append(self, row)

        monkeypatch.setattr(TableWriter, "_append", failing)
    else:
        original, calls = CompactBackbone.represent, itertools.count()

        def represent(self, sequences, *, layers):
            if next(calls) == 2:
                raise RuntimeError("a bug")
            return original(self, sequences, layers=layers)

        monkeypatch.setattr(CompactBackbone, "represent", represent)
    gc.disable()  # threads end by themselves, and not when memory is collected
    request.addfinalizer(gc.enable)
    start = time.monotonic()
    options = ["--batch-tokens", "300", "--threads", "2"]
    if side in ("reader", "writer"):
        ended = getattr(bench, command)(bench.fasta, *options)
        place = r"cannot read on in .*in\.fasta" if side == "reader" else r"cannot write .*out\.csv"
        assert_refused(ended, f"{place}: Input/output error")
    else:  # what is a bug rises as it is
        with pytest.raises(RuntimeError, match="a bug"):
            getattr(bench, command)(bench.fasta, *options)
    assert time.monotonic() - start < 10
    _wait_for_threads()
    assert bench.out.read_text() == BEFORE
    assert not [path for path in bench.folder.iterdir() if path.name.startswith(".bioxfer")]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_f26_signals_end_a_run_that_goes_on_to_the_same_bytes(bench, runs, monkeypatch):
    turns = Turns(bench)
    assert bench.predict(bench.fasta, *turns.options).code == 0
    wanted = bench.out.read_bytes()
    assert (len(runs), wanted.count(b"\n")) == (40, 41)
    monkeypatch.setenv("BIOXFER_CACHE", str(bench.folder / "cut"))
    bench.out.write_text(BEFORE)
    for signals, code, word in (
        ([signal.SIGTERM], 143, "terminated"),
        ([signal.SIGINT, signal.SIGINT], 130, "interrupted"),
    ):
        child = turns.start(after=8)
        for number in signals:
            child.send_signal(number)
            time.sleep(0.002)
        told = child.communicate()[1].splitlines()
        assert child.returncode == code
        assert (
            told[-1]
            == f"bioxfer: {word}; run it again, what it keeps (cache, checkpoint, parts) is not made twice"
        )
        assert set(told[:-1]) <= {"batch"}
        assert bench.out.read_text() == BEFORE
        assert not [path for path in bench.folder.iterdir() if path.name.startswith(".bioxfer")]
    runs.clear()
    assert bench.predict(bench.fasta, *turns.options).code == 0
    assert 0 < len(runs) <= 40 - 2 * 7  # what the two runs had finished is not done again
    assert bench.out.read_bytes() == wanted


def test_f27_a_reader_that_has_enough_ends_it_quietly(bench):
    bench.fasta.write_text(fasta(proteins(300)))  # 64 numbers each: more than a pipe holds
    child = subprocess.Popen(
        [sys.executable, "-m", "bioxfer", "embed", bench.fasta, "-o", "-", "--model", bench.weights],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PACKAGE,
    )
    assert child.stdout.readline().startswith(b"id,length,status,message,mean_0")
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 0
    child.stderr.close()


@pytest.mark.parametrize("n", range(1, 8))
def test_f28_parts_of_an_input_make_the_whole_table_once_each(bench, n):
    records = proteins(20)
    wanted = bench.predict(bench.write("whole.fasta", fasta(records)), "--batch-tokens", "200", out="-").out
    header, *rows = wanted.splitlines(keepends=True)
    merged = []
    for number in range(n):
        part = records[number * 20 // n : (number + 1) * 20 // n]
        out = bench.predict(bench.write("part.fasta", fasta(part)), out="-").out
        assert out.startswith(header)
        merged += out.splitlines(keepends=True)[1:]
    assert merged == rows
    assert [row.split(b",")[0].decode() for row in merged] == [record.id for record in records]


@pytest.mark.parametrize("n", range(1, 8))
def test_f28_chunks_workers_and_folds_neither_pad_nor_repeat_nor_skip(bench, n):
    records = [*proteins(20), *proteins(3), SequenceRecord("empty", "")]  # three come twice
    rows = list(embed_records(records, backbone(), chunk=n, batch_tokens=60 * n))
    assert [row.record for row in rows] == records
    source = bench.write("in.fasta", fasta(records[:20]))
    assert bench.embed(source, "--threads", n, "--batch-tokens", 100, "--no-resume").code == 0
    assert [row["id"] for row in bench.rows()] == [record.id for record in records[:20]]
    if n > 1:
        assert run("split", source, "-o", "-", "--folds", n, *KMER).code == 0
        found = read_table(run("split", source, "-o", "-", "--folds", n, "-q", *KMER).out)
        assert [row["id"] for row in found] == [record.id for record in records[:20]]
        assert {row["fold"] for row in found} == {str(number + 1) for number in range(n)}
        held = [place for _, test in bx.HomologyKFold(n, method="kmer").split(records[:20]) for place in test]
        assert sorted(held) == list(range(20))


# Models and heads.


@pytest.fixture
def publisher(bench, monkeypatch) -> Iterator[Publisher]:
    """A server of weights on this machine, and an empty folder to fetch them into."""
    monkeypatch.setenv("TORCH_HOME", str(bench.folder / "torch"))
    server = Publisher(esm2_file())
    yield server
    server.close()


def fetched(bench: Bench) -> dict[str, bytes | None]:
    return tree(bench.folder / "torch" / "hub" / "checkpoints")


def test_f29_a_damaged_download_is_fetched_again_and_its_sha256_kept_before_first_use(bench, publisher):
    publisher.faults = ["cut", "flip"]
    code, out, err = run("models", "download", NAME, "--base-url", publisher.url)
    assert code == 0, err
    path = Path(out.decode().strip())
    digest = hashlib.sha256(publisher.content).hexdigest()
    assert path.read_bytes() == publisher.content
    assert path.with_name(f"{path.name}.sha256").read_text() == f"{digest}  {path.name}\n"
    assert len(publisher.requests) == 3
    ask = ["embed", bench.fasta, "-o", bench.out, "--overwrite", "--model", NAME, "--offline"]
    assert run(*ask).code == 0
    assert len(bench.rows()) == 6
    wanted = bench.out.read_bytes()
    path.write_bytes(publisher.content[:-1] + b"!")
    ended = run(*ask)
    assert ended.code == 3
    assert "damaged or was exchanged" in one_sentence(ended.err)
    assert bench.out.read_bytes() == wanted
    code, _, err = run("models", "download", NAME, "--base-url", publisher.url)
    assert (code, path.read_bytes()) == (0, publisher.content)
    assert "fetching it again" in err


@pytest.mark.parametrize(
    ("fault", "told"),
    [("flip", "damaged archive"), ("cut", "bytes arrived"), ("page", "no torch checkpoint")],
)
def test_f29_lasting_damage_is_one_clear_error(bench, publisher, fault, told):
    publisher.faults = [fault] * 30
    code, out, err = run("models", "download", NAME, "--base-url", publisher.url)
    assert (code, out) == (3, b"")
    assert "Traceback" not in err
    assert told in err.splitlines()[-1]
    assert publisher.url in err.splitlines()[-1]
    assert not [name for name in fetched(bench) if name.endswith((".pt", ".sha256"))]
    publisher.faults = []
    assert run("models", "download", NAME, "--base-url", publisher.url).code == 0
    assert fetched(bench)[f"{NAME}.pt"] == publisher.content


def test_f29_a_refused_file_does_not_stand_in_the_way_of_the_right_one(bench):
    weights = bench.folder / "own.pt"
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("own/data.pkl", b"no pickle")
    ask = ["embed", bench.fasta, "-o", bench.out, "--model", weights]
    assert_refused(run(*ask), r"own\.pt: refused", before="first use")
    weights.write_bytes(esm2_file())
    assert run(*ask).code == 0
    weights.write_bytes(esm2_file()[:-200])
    assert_refused(run(*ask, "--overwrite"), "damaged or was exchanged")
    weights.write_bytes(esm2_file())
    assert run(*ask, "--overwrite").code == 0


def refuse_sockets(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_f30_offline_opens_no_socket_and_names_the_command_that_would_fetch(bench, monkeypatch, how):
    refuse_sockets(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(bench.folder))
    if how == "variable":
        monkeypatch.setenv("BIOXFER_OFFLINE", "1")
    flag = ["--offline"] * (how == "flag")
    ended = run("embed", bench.fasta, "-o", bench.out, "--model", "esm2_t6_8M_UR50D", *flag)
    assert_refused(ended, "bioxfer models download esm2_t6_8M_UR50D")
    assert_refused(run("models", "download", "esm2_t6_8M_UR50D", *flag), "esm2_t6_8M_UR50D")
    assert bench.predict(bench.fasta, *flag).code == 0
    assert bench.predict(bench.fasta, "--model", bench.weights, "--no-resume").code == 0


class Canary:
    """Leaves a file behind where a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_f31_a_pickle_is_refused_and_its_code_not_run(bench, monkeypatch):
    canary = Canary(bench.folder / "canary")
    pickled = pickle.dumps(canary)
    for name in ("evil.safetensors", "evil.pt", "evil.csv", "evil.fasta", "evil.npz"):
        (bench.folder / name).write_bytes(pickled)
    torch.save({"model": canary, "args": None}, bench.folder / "zipped.pt")
    torch.save({"model": canary}, bench.folder / "old.pt", _use_new_zipfile_serialization=False)
    evil = bench.folder / "evil.safetensors"
    source = bench.write("in.csv", table(proteins(24), "id", "sequence", "label"))
    made = bench.folder / "made.safetensors"
    for words in (
        ["predict", bench.fasta, "-o", "-", "--head", evil],
        ["heads", "show", evil],
        ["heads", "plot", evil, "-o", bench.folder / "p.svg"],
        ["models", "show", evil],
        ["evaluate", evil, source],
        ["predict", bench.folder / "evil.fasta", "-o", bench.out, "--head", bench.head],
        ["embed", bench.folder / "evil.npz", "-o", bench.out],
        ["train", source, "--labels", bench.folder / "evil.csv", "-o", made, "--model", bench.weights],
        *(
            [*command, "--model", bench.folder / name]
            for name in ("evil.safetensors", "evil.pt", "zipped.pt", "old.pt")
            for command in (
                ["predict", bench.fasta, "-o", "-", "--head", bench.head],
                ["embed", bench.fasta, "-o", "-"],
                ["train", source, "-o", made],
            )
        ),
    ):
        assert_refused(run(*words), before="first use")
        assert not canary.path.exists(), words
    for name in ("evil.pt", "zipped.pt", "old.pt"):
        run("models", "verify", bench.folder / name)
    monkeypatch.setenv("BIOXFER_CACHE", str(bench.folder / "cache"))
    bench.predict(bench.fasta)
    Path(default_cache_path()).write_bytes(pickled)
    assert bench.predict(bench.fasta).code == 0
    assert not canary.path.exists()
    pickle.loads(pickled)
    assert canary.path.exists()  # it would have told


DAMAGES = {
    "key": lambda m, t: t.pop("head.bias"),
    "foreign key": lambda m, t: t.update(extra=np.zeros(2)),
    "shape": lambda m, t: t.update({"head.bias": np.zeros(7, np.float32)}),
    "type": lambda m, t: t.update({"head.bias": np.zeros(2, np.int64)}),
    "NaN": lambda m, t: t.update({"head.weight": np.full_like(t["head.weight"], np.nan)}),
    "infinity": lambda m, t: t.update({"index.vectors": np.full_like(t["index.vectors"], np.inf)}),
    "labels": lambda m, t: m["task"]["classes"].append("third"),
    "fewer labels": lambda m, t: m["task"]["classes"].pop(),
    "equal labels": lambda m, t: m["task"].update(classes=["oily", "oily"]),
    "task": lambda m, t: m.update(task={"name": "?"}),
    "no task": lambda m, t: m.pop("task"),
    "no number": lambda m, t: m.update(layer="last"),
    "card": lambda m, t: m.update(card=[]),
    "pool": lambda m, t: m.update(pool="median"),
    "no pool": lambda m, t: m.update(pool=""),
    "far layer": lambda m, t: m.update(layer=99),
    "negative layer": lambda m, t: m.update(layer=-1),
    "wide pool": lambda m, t: m.update(pool="mean+max"),
}


@settings(max_examples=60)
@given(data=st.data())
def test_f32_a_malformed_head_file_is_one_clear_error_before_inference(desk, data):
    whole = desk.head.read_bytes()
    how = data.draw(st.sampled_from([*DAMAGES, "huge header", "byte", "cut", "more"]))
    if how == "huge header":
        content = struct.pack("<Q", data.draw(st.sampled_from([2**63, 2**40, len(whole), 2**24]))) + whole[8:]
    elif how == "byte":
        place = data.draw(st.integers(0, len(whole) - 1))
        content = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    elif how == "cut":
        content = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif how == "more":
        content = whole + data.draw(st.binary(min_size=1, max_size=9))
    else:
        content = rewrite(whole, DAMAGES[how])
    bad = desk.write("bad.safetensors", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompactBackbone, "represent", lambda *_, **__: pytest.fail("inference has begun"))
        ended = run("predict", desk.fasta, "-o", "-", "--head", bad, "--model", desk.weights, "--no-resume")
    sentence = assert_refused(ended)
    assert len(sentence) < 500
    assert ("'taste'" if "layer" in how or how == "wide pool" else "bad.safetensors") in sentence


def test_f33_another_backbone_layer_or_pooling_is_refused_with_both_named(bench):
    other = bench.folder / "other.safetensors"
    torch.manual_seed(1)
    save_compact(CompactModel(CompactConfig(width=64, layers=2, window=WINDOW)), other, card={})
    own, strange = head().fingerprint, bx.load_backbone(str(other)).fingerprint
    assert own != strange
    words = ["--head", bench.head, "--model", other]
    assert_refused(run("predict", bench.fasta, "-o", bench.out, *words), own, strange)
    labelled = bench.write("new.csv", table(proteins(4), "id", "sequence", "label"))
    assert_refused(run("evaluate", bench.head, labelled, "--model", other), own, strange)
    with pytest.raises(FingerprintError, match=f"{own}.*{strange}"):
        bx.predict(["MKV"], heads=bench.head, model=other)
    lower = dataclasses.replace(head(), name="lower", layer=1)
    lower.save(bench.folder / "lower.safetensors")
    ended = bench.predict(bench.fasta, "--head", bench.folder / "lower.safetensors")
    assert_refused(ended, r"taste \(toy, layer 2\) and lower \(toy, layer 1\)", code=2)
    with pytest.raises(FingerprintError, match=r"layer 2 .* layer 1"):
        head().check_backbone(backbone(), layer=1)
    with pytest.raises(FingerprintError, match=r"pooling mean .* pooling max"):
        head().check_backbone(backbone(), pool="max")
    assert not bench.out.exists()
    # Heads of two poolings may run together: each is given its own.
    widest = dataclasses.replace(head(), name="widest", pool="max")
    widest.save(bench.folder / "widest.safetensors")
    both = read_table(bench.predict(bench.fasta, "--head", bench.folder / "widest.safetensors", out="-").out)
    alone = read_table(bench.predict(bench.fasta, out="-").out)
    assert [row["taste_nearest"] for row in both] == [row["taste_nearest"] for row in alone]


@pytest.mark.parametrize("kind", ["yaml", "archive", "configuration"])
def test_f34_no_yaml_is_loaded_no_archive_unpacked_no_remote_code_run(bench, kind):
    bench.predict(bench.fasta)  # the cache and its folder are there from here on
    bench.out.unlink()
    canary = bench.folder / "canary"
    evil = bench.folder / "evil"
    if kind == "yaml":
        paths = [evil.with_suffix(suffix) for suffix in (".safetensors", ".yaml", ".csv", ".fasta")]
        for path in paths:
            path.write_text(f'!!python/object/apply:os.system ["touch {canary}"]\n')
    elif kind == "archive":
        paths = [evil.with_suffix(suffix) for suffix in (".safetensors", ".pt", ".zip")]
        for path in paths:
            with zipfile.ZipFile(path, "w") as archive:
                for name in ("../canary", str(canary), "evil/data.pkl", "evil/../../canary"):
                    archive.writestr(name, "slipped")
    else:
        evil.mkdir()
        (evil / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "esm"}')
        (evil / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
        (evil / "model.safetensors").write_bytes(weights_bytes())
        paths = [evil, evil / "config.json"]
    before = set(bench.folder.parent.rglob("*"))
    for path in paths:
        for words in (
            ["predict", bench.fasta, "-o", bench.out, "--head", path],
            ["predict", bench.fasta, "-o", bench.out, "--head", bench.head, "--model", path],
            ["embed", bench.fasta, "-o", bench.out, "--model", path],
            ["embed", path, "-o", bench.out, "--model", bench.weights],
            ["train", bench.fasta, "--labels", path, "-o", bench.folder / "h.safetensors"],
            ["models", "show", path],
            ["heads", "show", path],
        ):
            assert_refused(run(*words), before="first use")
    assert set(bench.folder.parent.rglob("*")) == before


# Writing.

FORMULAS = ['=HYPERLINK("http://x","y")', "+1+1", "-2+3", "@SUM(A1)", "=1+1", "<script>alert(1)</script>"]


@pytest.mark.parametrize("command", ["predict", "embed", "split"])
def test_f35_formulas_are_verbatim_with_a_warning_and_prefixed_on_request(bench, command):
    names = [name for name in FORMULAS if name[0] != "<"]
    text = table(proteins(5), "id", "sequence").splitlines()[1:]
    rows = [
        "id,sequence",
        *('"' + n.replace('"', '""') + '",' + r.split(",")[1] for n, r in zip(names, text, strict=True)),
    ]
    source = bench.write("in.csv", "\n".join(rows) + "\n")

    def write(*options: str):
        if command == "split":
            return run("split", source, "-o", bench.out, "--overwrite", *KMER, *options)
        return getattr(bench, command)(source, *options)

    code, _, err = write()
    assert code == 0
    assert "starts like a spreadsheet formula" in err
    assert err.count("--excel-safe") == 1
    assert [row["id"] for row in bench.rows()] == names
    code, _, err = write("--excel-safe")
    assert (code, "spreadsheet formula" in err) == (0, False)
    assert [row["id"] for row in bench.rows()] == [f"'{name}" for name in names]


def test_f35_html_is_escaped(tmp_path):
    given_ = [SequenceRecord(f"{name}\udce9", "MKV<b>") for name in FORMULAS]
    shown = bx.embed([given_[-1]] * 7, model=backbone())._repr_html_()
    shown.encode()  # a byte that is no UTF-8 could not be sent
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "and 2 more" in shown
    pytest.importorskip("matplotlib")
    named = dataclasses.replace(head(), name="<script>", card={**head().card, "name": "<script>--><script>"})
    named.save(tmp_path / "h.safetensors")
    assert run("heads", "plot", tmp_path / "h.safetensors", "-o", tmp_path / "p.svg").code == 0
    assert "<script" not in (tmp_path / "p.svg").read_text()


STRINGS = ["NA", "1e5", "007", "7", "null", "nan", "None", "True", "1e05", "0x1", "1_000", "15"]


@pytest.mark.parametrize("where", ["labels", "table"])
def test_f36_ids_and_labels_of_a_table_stay_strings(bench, where):
    copies = zip([f"{name}{end}" for end in ("", "x") for name in STRINGS], proteins(24), strict=True)
    records = [
        dataclasses.replace(record, id=name, label={"oily": "007", "salty": "NA"}[record.label])
        for name, record in copies
    ]
    if where == "labels":
        labels = bench.write("labels.csv", table(records, "id", "label"))
        source, extra = bench.write("train.fasta", fasta(records)), ["--labels", labels]
        assert list(bx.read_labels(labels)) == [record.id for record in records]
    else:
        source, extra = bench.write("train.csv", table(records, "id", "sequence", "label")), []
    made = bench.folder / "h.safetensors"
    words = ["--model", bench.weights, "--head", "nearest", "--name", "h", *KMER]
    code, out, err = run("train", source, *extra, "-o", made, *words)
    assert code == 0, err
    assert "classes  2: 007, NA" in out.decode()
    trained = TrainedHead.load(made)
    assert trained.labels == ("007", "NA")
    assert set(trained.index.ids) == {record.id for record in records}
    rows = read_table(run("predict", source, "-o", "-", "--head", made, "--model", bench.weights).out)
    assert [row["id"] for row in rows] == [record.id for record in records]
    assert [row["h"] for row in rows] == [record.label for record in records]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12) | st.text(
    ",\"\n\r;\t' a=", min_size=1, max_size=8
)


@settings(max_examples=30)
@given(
    ids=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4, unique=True),
    classes=st.lists(TEXTS.filter(str.strip), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_f37_commas_quotes_and_line_ends_in_ids_and_labels_survive(desk, ids, classes):
    def quoted(*cells: str) -> str:
        return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n"

    content = quoted("id", "sequence", "label")
    content += "".join(quoted(name, "AILVFW" * 4, classes[0]) for name in ids)
    own = desk.folder / "own.safetensors"
    dataclasses.replace(head(), task=Multiclass(tuple(classes))).save(own)
    code, out, err = run(
        *("predict", "-", "-o", "-", "--head", own, "--model", desk.weights, "--probabilities"),
        stdin=content.encode(),
    )
    assert code == 0, err
    header, *rows = list(csv.reader(io.StringIO(out.decode(), newline=""), strict=True))
    assert header[-2:] == [f"taste_p_{name}" for name in classes]
    assert [row[0] for row in rows] == ids
    assert {row[header.index("taste")] for row in rows} <= set(classes)
    (desk.folder / "labels.csv").write_text(content, newline="")
    kept = bx.read_labels(desk.folder / "labels.csv")
    assert {name: label.label for name, label in kept.items()} == dict.fromkeys(ids, classes[0])


# Training.

EDITED = ["sp|P12345|A_HUMAN", "sp|P12345|B_HUMAN", "ucsomething", "uc002.1"]
EDITED += ["gi|1|ref|NP_1.1|", "a|b", "P1;x", "tr|A0A|X"]


# What MMseqs2 does to names: it cuts those it takes for accessions. Hits are equal sequences alone.
FAKE_MMSEQS = """#!{python} -S
import re, sys
def read(path):
    names = [block.split("\\n", 1) for block in open(path).read().split(">")[1:]]
    return [(re.sub(r"^(?:sp|tr|gi|uc)\\|?([^| ]*).*", r"\\1", name), s.strip()) for name, s in names]
queries, targets = read(sys.argv[2]), read(sys.argv[3])
with open({fed!r}, "a") as fed:
    print(*(name for name, _ in queries + targets), file=fed)
with open(sys.argv[4], "w") as hits:
    for name, sequence in queries:
        for other, target in targets:
            if sequence[:20] == target[:20]:
                n = len(sequence)
                print(name, other, 1.0, 1.0, 1.0, 99, n, n, sep="\\t", file=hits)
"""


@pytest.mark.parametrize("search", ["fake", "mmseqs", "kmer"])
def test_f38_a_homology_tool_is_fed_names_of_our_own(bench, monkeypatch, search):
    if search == "mmseqs" and not shutil.which("mmseqs"):
        pytest.skip("no mmseqs on PATH")
    if search == "fake":
        tools = bench.folder / "tools"
        tools.mkdir()
        (tools / "mmseqs").write_text(FAKE_MMSEQS.format(python=sys.executable, fed=str(tools / "fed")))
        (tools / "mmseqs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    members = [record.sequence for record in proteins(8, longest=60)]
    rows = list(zip(EDITED, members, strict=True))
    rows += [(f"{name}.copy", text + "GTA") for name, text in rows]  # a relative of each
    source = bench.write("in.csv", "id,sequence\n" + "".join(f"{name},{text}\n" for name, text in rows))
    by = "kmer" if search == "kmer" else "mmseqs"
    code, out, err = run("split", source, "-o", "-", "--cluster-by", by, "--identity", 0.9, "--valid", 0.3)
    assert code == 0, err
    found = read_table(out)
    assert [row["id"] for row in found] == [name for name, _ in rows]
    cluster = {row["id"]: row["cluster"] for row in found}
    part = {row["id"]: row["split"] for row in found}
    assert len(set(cluster.values())) == len(EDITED)
    for name in EDITED:
        assert cluster[name] == cluster[f"{name}.copy"]
        assert part[name] == part[f"{name}.copy"]
    if search == "fake":
        assert all(re.fullmatch(r"s\d+", name) for name in (tools / "fed").read_text().split())


def test_f39_planted_copies_stay_in_one_fold(bench):
    dice = random.Random(3)
    rows = []
    for family in proteins(12, longest=120):
        text = "".join(dice.choices("ACDEFGHIKLMNPQRSTVWY", k=80))
        for copy in range(4):
            cut = dice.randrange(len(text))
            rows.append((f"{family.id}.{copy}", text[:cut] + "A" + text[cut + 1 :], family.label))
    dice.shuffle(rows)
    source = bench.write("in.csv", "id,sequence,label\n" + "".join(",".join(row) + "\n" for row in rows))
    code, out, err = run("split", source, "-o", "-", "--folds", 4, *KMER)
    assert code == 0, err
    found = read_table(out)
    by_family, by_cluster = {}, {}
    for row in found:
        by_family.setdefault(row["id"].split(".")[0], set()).add(row["fold"])
        by_cluster.setdefault(row["cluster"], set()).add(row["fold"])
    assert all(len(folds) == 1 for folds in [*by_family.values(), *by_cluster.values()])
    assert len({row["fold"] for row in found}) == 4
    assert "this split does not leak" in err


def test_f39_what_judges_a_head_is_fitted_without_what_is_held_out(bench, short_path, monkeypatch):
    """The shipped weights are fitted on all proteins in the end; what stands in the card is not."""
    rows = [(r.id, r.sequence, r.label, "train") for r in proteins(40)]
    held = [(f"v{r.id}", r.sequence, r.label, "valid") for r in proteins(12, seed=8)]
    source = bench.write(
        "in.csv", "id,sequence,label,split\n" + "".join(",".join(row) + "\n" for row in rows + held)
    )
    seen: list[np.ndarray] = []
    original = bioxfer.head_training.select

    def select(values, *arguments, **options):
        seen.append(values)
        return original(values, *arguments, **options)

    monkeypatch.setattr("bioxfer.head_training.select", select)
    words = ["--split", "column", "--model", bench.weights, "--head", "linear", "--pool", "mean", *KMER]
    code, _, err = run("train", source, "-o", bench.folder / "h.safetensors", *words)
    assert code == 0, err
    assert [len(values) for values in seen] == [40, 40, 40]  # the head and two baselines
    assert_close(seen[0], bx.embed([row[1] for row in rows], model=backbone()).vectors, 1e-5)
    card = TrainedHead.load(bench.folder / "h.safetensors").card
    assert card["head"]["metrics_measured_on"] == "valid, by the fit on train alone"


def test_f39_a_scaler_is_fitted_inside_the_fold(short_path, no_mmseqs):
    from sklearn.model_selection import cross_val_predict

    records = proteins(24)
    X, y = [r.sequence for r in records], [r.label for r in records]
    model = bx.SequenceClassifier(model=backbone(), head="linear", pool="mean")
    folds = list(bx.HomologyKFold(3, method="kmer").split(X, y))
    outside = cross_val_predict(model, X, y, cv=folds, method="predict_proba")
    for train, test in folds:
        alone = model.fit([X[n] for n in train], [y[n] for n in train])
        np.testing.assert_allclose(outside[test], alone.predict_proba([X[n] for n in test]), atol=1e-4)
        assert len(alone.head_.index.ids) == len(train)


LABELS = {
    "other ids": ("id,label\nx1,oily\nx2,salty\n", ["none of 6 records", r"p0, p1, p2, \.\.\.", "x1, x2"]),
    "no id column": ("name,label\np0,oily\n", ["labels.csv", "'?id'?", "name"]),
    "two labels": ("id,label\np0,oily\np0,salty\n", ["line 3", "line 2", "p0"]),
    "one class": ("id,label\np0,oily\np1,oily\np2,oily\n", ["oily"]),
    "empty": ("", ["labels.csv"]),
    "no label": ("id,label\np0,\np1,\n", ["none of 6 records"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_f40_labels_that_do_not_fit_are_one_clear_error(bench, case):
    text, told = LABELS[case]
    made = bench.folder / "h.safetensors"
    options = ["--labels", bench.write("labels.csv", text), "--model", bench.weights, *KMER]
    code, _, err = run("train", bench.fasta, "-o", made, *options)
    assert code == 3
    assert "Traceback" not in err
    for words in told:
        assert re.search(words, err.splitlines()[-1])
    assert not made.exists()


def test_f40_rows_that_are_missing_are_counted_on_both_sides(bench, short_path):
    records = proteins(30)
    source = bench.write("train.fasta", fasta(records[:28]))
    labels = bench.write("labels.csv", table(records[3:], "id", "label"))
    words = ["--model", bench.weights, "--head", "linear", "--pool", "mean", *KMER]
    code, _, err = run("train", source, "--labels", labels, "-o", bench.folder / "h.safetensors", *words)
    assert code == 0, err
    assert "25 of 28 records have a label" in err
    assert "3 records without a label (p0, p1, p2)" in err
    assert "2 labels without a record (p28, p29)" in err


@pytest.mark.parametrize(("held", "told"), [("valid", "sour"), ("train", None)])
def test_f40_a_class_that_one_side_lacks_is_told(bench, short_path, held, told):
    rows = [
        (r.id, r.sequence, r.label, ("train", "valid")[n % 4 == 3 or n % 4 == 2])
        for n, r in enumerate(proteins(40))
    ]
    rows += [(f"s{r.id}", r.sequence, "sour", held) for r in proteins(8, seed=4)]
    text = "id,sequence,label,split\n" + "".join(",".join(row) + "\n" for row in rows)
    made = bench.folder / "h.safetensors"
    words = ["--split", "column", "--model", bench.weights, "--head", "linear", "--pool", "mean", *KMER]
    code, _, err = run("train", bench.write("in.csv", text), "-o", made, *words)
    if told:
        assert code == 3
        assert re.search(r"class 'sour' has 0 training proteins", err.splitlines()[-1])
        assert not made.exists()
    else:
        assert code == 0, err
        assert re.search(r"class 'sour' has 8 training proteins .* and 0 held-out", err)


def test_f40_a_class_absent_in_a_fold_is_warned_of(caplog, no_mmseqs):
    records = proteins(12)
    y = ["rare", *(record.label for record in records[1:])]
    with caplog.at_level(logging.WARNING, "bioxfer"):
        list(bx.HomologyKFold(3, method="kmer").split(records, y))
    assert "missing in that fold's training: rare;" in caplog.text
    with pytest.raises(UsageError, match=r"\(11,\) do not fit 12 proteins"):
        list(bx.HomologyKFold(3, method="kmer").split(records, y[1:]))
    with pytest.raises((LabelError, UsageError), match="oily"):
        bx.SequenceClassifier(model=backbone()).fit([r.sequence for r in records[::2]], ["oily"] * 6)


# Output.


def test_f41_no_arrow_column_of_text_has_a_limit_of_2_gigabytes(bench, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    narrow = (pyarrow.types.is_string, pyarrow.types.is_binary, pyarrow.types.is_list)
    array, seen = pyarrow.array, []

    def limited(values, *arguments, **options):
        """Make an array as if offsets of 32 bits ended at 100 bytes."""
        made = array(values, *arguments, **options)
        seen.append(made.type)
        if any(is_narrow(made.type) for is_narrow in narrow) and made.nbytes > 100:
            raise pyarrow.ArrowCapacityError("array cannot contain more than 100 bytes")
        return made

    with pytest.raises(pyarrow.ArrowCapacityError):
        limited(["x" * 101])
    monkeypatch.setattr(pyarrow, "array", limited)
    monkeypatch.setattr("bioxfer.output._ROWS_OF_A_GROUP", 4)
    seen.clear()
    bench.fasta.write_text(fasta([dataclasses.replace(r, id=r.id + "x" * 40) for r in proteins(10)]))
    for command, options in (
        (bench.embed, []),
        (bench.predict, ["--probabilities"]),
        (bench.predict, ["--format", "long"]),
    ):
        out = bench.folder / "out.parquet"
        assert command(bench.fasta, *options, out=out).code == 0
        schema = parquet.read_schema(out)
        kinds = {schema.field(name).type for name in schema.names}
        assert pyarrow.large_string() in kinds
        assert not [kind for kind in kinds if any(is_narrow(kind) for is_narrow in narrow)]
        assert len(parquet.read_table(out)) == (20 if "long" in options else 10)
    assert run("split", bench.fasta, "-o", bench.folder / "s.parquet", *KMER).code == 0
    assert pyarrow.large_string() in seen


def test_f42_a_hopeless_output_is_refused_before_a_model_loads(bench, monkeypatch):
    monkeypatch.setattr("bioxfer.backbones.load_backbone", lambda *_, **__: pytest.fail("too early"))
    own = bench.write("own.csv", table(proteins(24), "id", "sequence", "label"))
    for name, link in (("soft.csv", Path.symlink_to), ("hard.csv", Path.hardlink_to)):
        link(bench.folder / name, own)
    (bench.folder / "loop").symlink_to(bench.folder)
    bench.out.write_text(BEFORE)
    kept = own.read_bytes()
    for out, told in (
        (own, "is the input"),
        (bench.folder / "soft.csv", "is the input"),
        (bench.folder / "hard.csv", "is the input"),
        (bench.folder / "loop" / "own.csv", "is the input"),
        (bench.folder / "none" / "out.csv", "there is no folder"),
        (bench.folder, "cannot tell"),
        (bench.out, "--overwrite"),
    ):
        for words in (["predict", own, "--head", bench.head], ["embed", own]):
            code, _, err = run(*words, "-o", out)
            assert code in (2, 3)
            assert told in one_sentence(err)
        if told == "is the input":
            assert_refused(run("split", own, "-o", out, "--overwrite", *KMER), told)
    made = bench.folder / "none" / "h.safetensors"
    assert_refused(run("train", own, "-o", made, "--model", bench.weights), "there is no folder")
    assert_refused(
        run("predict", own, "-o", bench.head, "--head", bench.head, "--overwrite"), "cannot tell", code=2
    )
    assert own.read_bytes() == kept
    assert bench.out.read_text() == BEFORE


def test_f42_an_unwritable_folder_is_refused_before_a_model_loads(bench, monkeypatch):
    monkeypatch.setattr("bioxfer.backbones.load_backbone", lambda *_, **__: pytest.fail("too early"))
    locked = bench.folder / "locked"
    locked.mkdir()
    access = os.access
    # Root may write everywhere, so that the mode is asked instead.
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: (
            (not mode & os.W_OK or bool(os.stat(path).st_mode & stat.S_IWUSR)) and access(path, mode)
        ),
    )
    locked.chmod(0o555)
    try:
        for words in (
            ["predict", bench.fasta, "-o", locked / "o.csv", "--head", bench.head],
            ["embed", bench.fasta, "-o", locked / "o.npz"],
            ["split", bench.fasta, "-o", locked / "o.csv"],
            ["train", bench.fasta, "-o", locked / "h.safetensors"],
        ):
            assert_refused(run(*words), "folder .*locked is not writable")
    finally:
        locked.chmod(0o755)
    assert list(locked.iterdir()) == []


# The same command, the same bytes.


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_the_same_command_gives_the_same_bytes_whatever_surrounds_a_protein(bench, command):
    long = [SequenceRecord("long", "".join(random.Random(1).choices("ACDEFGHIKLMN", k=150)))]
    records = [*proteins(30, longest=60), *long]
    bench.fasta.write_text(fasta(records))
    ask = getattr(bench, command)
    wanted = ask(bench.fasta, out="-").out
    rows = read_table(wanted)
    assert len(rows) == 31
    assert ask(bench.fasta, out="-").out == wanted  # from the cache
    for options in (
        ["--batch-tokens", 1],
        ["--batch-tokens", 300],
        ["--batch-tokens", 100_000],
        ["--threads", 1],
        ["--threads", 2],
        ["--threads", 3, "--batch-tokens", 128],
    ):
        assert_same(read_table(ask(bench.fasta, "--no-resume", *options, out="-").out), rows)
    order = random.Random(0).sample(range(31), 31)
    mixed = fasta([records[place] for place in order])
    copies = [SequenceRecord(f"copy{n}", record.sequence.lower()) for n, record in enumerate(records[::3])]
    mixed += fasta(copies)
    found = read_table(ask("-", "--no-resume", out="-", stdin=mixed.encode()).out)
    assert_same(found[:31], [rows[place] for place in order])
    twins = [row | {"id": f"copy{n}"} for n, row in enumerate(rows[::3])]
    assert_same(found[31:], twins)


def test_the_same_training_gives_the_same_head_file(bench, short_path):
    source = bench.write("in.csv", table(proteins(30, longest=60), "id", "sequence", "label"))
    common = ["--model", bench.weights, "--name", "taste", "--head", "linear", "--overwrite", *KMER]
    made = []
    for number, options in enumerate(
        (
            [],
            [],
            ["--no-resume"],
            ["--batch-tokens", 1],
            ["--batch-tokens", 300, "--threads", 2],
            ["--threads", 1],
        )
    ):
        out = bench.folder / f"{number}.safetensors"
        code, _, err = run("train", source, "-o", out, *common, *options, *(["--no-resume"] * (number > 2)))
        assert code == 0, err
        made.append(out)
    assert made[0].read_bytes() == made[1].read_bytes()
    first = TrainedHead.load(made[0])
    for path in made[2:]:
        if bits_stand_alone():
            assert path.read_bytes() == made[0].read_bytes()
        else:
            for name, tensor in TrainedHead.load(path).tensors.items():
                np.testing.assert_allclose(tensor, first.tensors[name], rtol=1e-3, atol=1e-4)


# The list itself.


def _numbers() -> list[int]:
    names = [name for name, thing in globals().items() if name.startswith("test_f") and callable(thing)]
    return [int(re.match(r"test_f(\d\d)_", name)[1]) for name in names]


def test_every_fault_is_here_by_its_number_and_in_order():
    numbers = _numbers()
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 43))


@pytest.mark.shared_data
def test_the_list_of_faults_has_these_numbers(shared):
    path = shared.parent / "FAULTS.md"
    if not path.exists():
        pytest.skip(f"the list of faults is not here ({path})")
    rows = re.findall(r"^\| F(\d+)( P)? \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 43)) == sorted(set(_numbers()))
    for number in (int(number) for number, marked in rows if marked):
        tests = [thing for name, thing in globals().items() if name.startswith(f"test_f{number:02}_")]
        assert any(hasattr(test, "hypothesis") for test in tests), f"F{number} is to be a property test"
