"""Fuzzing: no file, however spoilt, gives a traceback, a hang, a flood or a wrong row (F32 and its kin).

The targets are in `fuzzing`. BIOXFER_FUZZ sets the examples for each (in place of a few), and
``benchmarks/fuzz.py`` runs them by the hundred thousand.
"""

from __future__ import annotations

import os
import struct
import warnings
from dataclasses import replace

import fuzzing
import numpy as np
import pytest
from fuzzing import TARGETS, examine

from bioxfer.errors import BioxferError, FormatError

EXAMPLES = {"fasta": 150, "table": 150, "labels": 150, "head": 100}
FEW = 50


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_a_file_holds_it_is_read_right_or_refused_in_one_sentence(name, tmp_path):
    target = TARGETS[name]
    count = int(os.environ.get("BIOXFER_FUZZ", EXAMPLES.get(name, FEW)))
    seen = set()
    with fuzzing.memory_limit():
        seed = int.from_bytes(name.encode(), "big")
        for number, data in enumerate(fuzzing.examples(target, count, seed=seed)):
            try:
                seen.add(examine(target, data, tmp_path))
            except (Exception, fuzzing.HangError) as error:
                kept = tmp_path / f"found-{number}"
                kept.write_bytes(data)
                raise AssertionError(f"example {number} of {name}, kept as {kept}") from error
    assert "accepted" in seen
    assert len(seen) > 1


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_accepted(name, tmp_path):
    target = TARGETS[name]
    told = {examine(target, data, tmp_path) for data in target.seeds()}
    assert "accepted" in told
    # some tables lack a column that a target asks for
    assert told == {"accepted"} or target.name.endswith((".csv", ".tsv"))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda path: 1 / 0, ZeroDivisionError),
        (lambda path: raised(BioxferError("no file is named")), AssertionError),
        (
            lambda path: [warnings.warn("again", stacklevel=1) for _ in range(fuzzing.LOGGED + 1)],
            AssertionError,
        ),
        (lambda path: endless(), fuzzing.HangError),
        (lambda path: np.zeros(2**40), MemoryError),
    ],
)
def test_the_fuzzer_sees_what_must_not_happen(what, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "SECONDS", 0.1)
    target = replace(TARGETS["fasta"], check=what)
    with fuzzing.memory_limit(), pytest.raises(expected):
        examine(target, b"", tmp_path)


def raised(error: Exception) -> None:
    raise error


def endless() -> None:
    while True:
        pass


def test_the_few_lines_that_fasta_is_held_against_agree_with_biopython():
    """Where its rules are ours: no blanks and no byte-order marks."""
    import io

    from Bio.SeqIO.FastaIO import SimpleFastaParser

    text = ">a first\nMKV\nLLA\n\n>b\nMWW\n>c\n"
    found = [(title.split(None, 1)[0], sequence) for title, sequence in SimpleFastaParser(io.StringIO(text))]
    assert fuzzing.parse_fasta(text.encode()) == found == [("a", "MKVLLA"), ("b", "MWW"), ("c", "")]


def test_the_few_lines_that_tables_are_held_against_are_rfc_4180():
    found = fuzzing.parse_table(b'a,"b ""x"", c"\r\n"two\nlines",\n\n,"d"', ",")
    assert found == [["a", 'b "x", c'], ["two\nlines", ""], ["", "d"]]


def test_a_wrong_row_is_seen(tmp_path, monkeypatch):
    """A reader that loses the last residue of a line is caught."""
    import bioxfer.io

    true = bioxfer.io.remove_white_space
    monkeypatch.setattr(bioxfer.io, "remove_white_space", lambda text: true(text)[:-1])
    with pytest.raises(AssertionError):
        examine(TARGETS["fasta"], b">a\nMKV\n", tmp_path)


def test_a_header_that_claims_the_earth_takes_no_memory(tmp_path):
    """2**40 numbers are stated, none are there."""
    for name in ("head", "compact weights", "adapter", "transfer checkpoint"):
        text = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        with fuzzing.memory_limit():
            assert examine(TARGETS[name], struct.pack("<Q", len(text)) + text, tmp_path) != "accepted"


def test_messages_are_one_sentence_whatever_they_quote():
    message = str(FormatError("in.csv: " + "x" * 5000 + "\n\x1b[31m\u2028; mend it"))
    assert len(message) <= 900
    assert message.startswith("in.csv: xxx")
    assert message.endswith(r"xxx \x1b[31m ; mend it")
