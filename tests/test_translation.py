"""Coding sequences become the proteins that Biopython reads in them, or an empty row that says why not."""

from __future__ import annotations

import random

import pytest
from Bio.Data.CodonTable import unambiguous_dna_by_id
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from bioxfer.codons import read_genetic_code
from bioxfer.errors import UsageError
from bioxfer.genes import translate_cds
from bioxfer.sequences import SequenceRecord, clean_protein


def protein_of(text: str, *, table: int = 1) -> str:
    return translate_cds(SequenceRecord("a", text), table=table).sequence


@given(
    codons=st.lists(st.text(alphabet="ACGTacgtUNRY", min_size=3, max_size=3), max_size=30),
    table=st.sampled_from([1, 2, 11, 6]),
)
def test_every_codon_is_translated_as_biopython_does(codons, table):
    text = "".join([*codons, "AAA"])  # the end is no stop codon, so neither end is special
    assert protein_of(text, table=table) == str(Seq(text).translate(table=table))


@pytest.mark.parametrize("table", sorted(unambiguous_dna_by_id))
def test_every_genetic_code_keeps_its_amino_acids_and_its_stop(table):
    code = unambiguous_dna_by_id[table]
    codons = sorted(code.forward_table)
    random.Random(0).shuffle(codons)
    codons.insert(0, "ATG")
    wanted = "".join(code.forward_table[codon] for codon in codons)
    for stop in code.stop_codons:
        assert protein_of("".join([*codons, stop]), table=table) == wanted


def test_a_file_of_many_genetic_codes_makes_each_once():
    first = [read_genetic_code(table) for table in unambiguous_dna_by_id]
    again = [read_genetic_code(table) for table in unambiguous_dna_by_id]
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_a_complete_sequence_begins_with_methionine_whatever_its_start_codon():
    record = translate_cds(SequenceRecord("a", "GTGAAATAA"), table=11)
    assert record.sequence == "MK"
    assert record.note == "translated from 9 nucleotides by genetic code 11, start codon GTG read as M"
    assert protein_of("GTGAAA", table=11) == "VK"  # cut off, so its start may lie before
    assert protein_of("GTGAAATAA") == "VK"  # no start codon of the standard code


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("ATGG", "not translated: its length, 4, is not a multiple of three"),
        ("ATGEAA", "not translated: 'E' at 4 is not a nucleotide"),
        ("ATG-AA", "not translated: '-' at 4 is not a nucleotide"),
        # What Python's upper() makes letters of nucleotides of, and even two of one.
        ("ATGßA", "not translated: 'U+00DF' at 4 is not a nucleotide"),
        ("ATGſAA", "not translated: 'U+017F' at 4 is not a nucleotide"),
        ("TAA", "translated from 3 nucleotides, a stop codon alone"),
    ],
)
def test_what_holds_no_protein_is_skipped_with_the_reason(text, note):
    record = translate_cds(SequenceRecord("a", text))
    assert (record.sequence, record.note) == ("", note)
    clean = clean_protein(record)
    assert (clean.skipped, clean.message) == (True, note)


def test_an_inner_stop_codon_is_one_counted_x():
    clean = clean_protein(translate_cds(SequenceRecord("a", "ATGTAGAAATGA")))
    assert clean.residues == "MXK"
    assert clean.message == "translated from 12 nucleotides, 1 stop codon inside; 1 residue became X (* at 2)"


def test_an_empty_record_stays_what_it_was():
    record = SequenceRecord("a", "")
    assert translate_cds(record) is record
    assert clean_protein(record).message == "empty sequence"


def test_an_unknown_genetic_code_is_refused():
    with pytest.raises(UsageError, match="no genetic code 7; NCBI numbers them 1, 2, 3"):
        translate_cds(SequenceRecord("a", "ATG"), table=7)
