"""Contract 2: tokens equal residues; what the alphabet lacks is X and is counted."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bioxfer.errors import SequenceError, UsageError
from bioxfer.sequences import (
    AMINO_ACIDS,
    RESIDUES,
    CleanSequence,
    SequenceRecord,
    clean_protein,
    looks_like_nucleotides,
    remove_white_space,
    show_character,
)


def record(sequence: str) -> SequenceRecord:
    return SequenceRecord("P53", sequence, source="in.faa", line=12)


def test_alphabet_is_the_twenty_amino_acids_and_x_b_z_u_o():
    assert len(set(AMINO_ACIDS)) == 20
    assert set(RESIDUES) - set(AMINO_ACIDS) == set("XBZUO")


def test_a_clean_sequence_passes_unchanged_and_without_a_message():
    assert clean_protein(record(RESIDUES)) == CleanSequence(RESIDUES, False, "")


def test_lower_case_becomes_upper_case_silently():
    assert clean_protein(record(RESIDUES.lower())) == CleanSequence(RESIDUES, False, "")


@pytest.mark.parametrize(
    ("sequence", "residues", "message"),
    [
        ("MKV*", "MKV", "one final * removed"),
        ("MKV**", "MKVX", "one final * removed; 1 residue became X (* at 4)"),
        ("M*KV", "MXKV", "1 residue became X (* at 2)"),
        ("MKJVLLWA7", "MKXVLLWAX", "2 residues became X (J at 3, 7 at 9)"),
        ("1J2J3", "XXXXX", "5 residues became X (1 at 1, J at 2, 2 at 3, ...)"),
        ("jM", "XM", "1 residue became X (j at 1)"),
        ("Mß", "MX", "1 residue became X (U+00DF at 2)"),
        ("M\udce9V", "MXV", "1 residue became X (byte 0xE9 at 2)"),
        ("M\u00a0V", "MXV", "1 residue became X (U+00A0 at 2)"),
        ("M\U0001f9ecV", "MXV", "1 residue became X (U+1F9EC at 2)"),
        # Kelvin sign and long s: their case mappings are the ASCII letters K and S
        ("\u212a\u017f", "XX", "2 residues became X (U+212A at 1, U+017F at 2)"),
    ],
)
def test_what_the_alphabet_lacks_becomes_one_x_and_is_counted(sequence, residues, message):
    assert clean_protein(record(sequence)) == CleanSequence(residues, False, message)


@pytest.mark.parametrize("token", ["<mask>", "<eos>", "<cls>", "<pad>", "<null_1>"])
def test_f11_special_tokens_in_a_sequence_are_invalid_characters(token):
    clean = clean_protein(record(f"MKV{token}LLA"))
    assert len(clean.residues) == len(f"MKV{token}LLA")
    assert set(clean.residues) <= set(RESIDUES)
    assert clean.message.startswith(
        f"{sum(c not in RESIDUES.lower() for c in token)} residues became X (< at 4"
    )


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="-. \t\n\r\v\f")))
def test_f10_tokens_equal_residues_for_any_text(text):
    body = text[:-1] if text.endswith("*") else text
    expected = "".join(c.upper() if c in RESIDUES + RESIDUES.lower() else "X" for c in body)
    clean = clean_protein(record(text))
    assert clean.residues == expected
    assert clean.skipped == (body == "")
    count = re.search(r"(\d+) residues? became X", clean.message)
    wrong = sum(c not in RESIDUES + RESIDUES.lower() for c in body)
    assert (int(count.group(1)) if count else 0) == wrong
    clean.message.encode("utf-8")  # no lone surrogate may reach a table through a message


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(RESIDUES + "J7-. \t\n")))
def test_cleaning_twice_changes_nothing_more(text):
    once = clean_protein(record(text), degap=True)
    again = clean_protein(record(once.residues))
    assert again.residues == once.residues
    assert again.message in ("", "empty sequence")


def test_white_space_is_no_residue():
    assert clean_protein(record("MK V\tL\r\nL\n*\n")) == CleanSequence("MKVLL", False, "one final * removed")
    assert remove_white_space(" M\u00a0K\v\f\n") == "M\u00a0K"


@pytest.mark.parametrize(
    ("sequence", "message"), [("", "empty sequence"), ("*", "one final * removed; empty sequence")]
)
def test_f5_an_empty_sequence_is_skipped(sequence, message):
    assert clean_protein(record(sequence)) == CleanSequence("", True, message)


def test_on_invalid_skip_keeps_the_length_and_says_why():
    clean = clean_protein(record("MKJV7*"), on_invalid="skip")
    assert clean == CleanSequence("MKXVX", True, "one final * removed; 2 invalid residues (J at 3, 7 at 5)")
    assert not clean_protein(record("MKXBZUOV*"), on_invalid="skip").skipped


def test_on_invalid_error_names_value_place_and_remedy():
    with pytest.raises(SequenceError) as caught:
        clean_protein(record("MKJV"), on_invalid="error")
    assert str(caught.value) == (
        "record 'P53' (in.faa, line 12): 'J' is not an amino acid (residue 3); use --on-invalid x"
    )
    assert clean_protein(record("mkxbzuo*"), on_invalid="error").residues == "MKXBZUO"


def test_an_unknown_choice_is_refused_before_any_work():
    with pytest.raises(UsageError, match="on_invalid is 'drop'; choose from"):
        clean_protein(record("MKV"), on_invalid="drop")


@pytest.mark.parametrize("on_invalid", ["x", "error", "skip"])
@pytest.mark.parametrize(("sequence", "gap"), [("MK-V", "'-' at 3"), ("..MKV", "'.' at 1")])
def test_f12_gaps_are_refused_and_the_message_names_degap(sequence, gap, on_invalid):
    with pytest.raises(SequenceError, match=r"record 'P53' \(in.faa, line 12\).*--degap") as caught:
        clean_protein(record(sequence), on_invalid=on_invalid)
    assert gap in str(caught.value)


@pytest.mark.parametrize(
    ("sequence", "clean"),
    [
        ("M--K.V", CleanSequence("MKV", False, "3 gaps removed")),
        ("MK-J", CleanSequence("MKX", False, "1 gap removed; 1 residue became X (J at 3)")),
        ("MKV*--", CleanSequence("MKV", False, "2 gaps removed; one final * removed")),
        ("----", CleanSequence("", True, "4 gaps removed; empty sequence")),
    ],
)
def test_f12_degap_removes_gaps_and_counts_them(sequence, clean):
    assert clean_protein(record(sequence), degap=True) == clean


@pytest.mark.parametrize(
    ("residues", "expected"),
    [
        ("ACGT" * 5, True),
        ("acgu" * 5, True),
        ("ACGTN" * 19 + "RYKMS", True),  # 95 of 100
        ("ACGTN" * 18 + "ACGT" + "RYKMSW", False),  # 94 of 100
        ("ACGT" * 4 + "ACG", False),  # 19 symbols
        ("MALWMRLLPLLALLALWGPDPAAA", False),
        ("", False),
    ],
)
def test_f13_nucleotides_are_recognised_at_95_percent_and_20_symbols(residues, expected):
    assert looks_like_nucleotides(residues) is expected


@pytest.mark.parametrize(
    ("made", "place"),
    [
        (SequenceRecord("a", "M"), "record 'a'"),
        (SequenceRecord("a", "M", line=3), "record 'a' (line 3)"),
        (SequenceRecord("a", "M", source="x.fa"), "record 'a' (x.fa)"),
        (SequenceRecord("a", "M", source="x.fa", line=3), "record 'a' (x.fa, line 3)"),
    ],
)
def test_place_says_what_is_known(made, place):
    assert made.place == place


def test_records_are_immutable_values():
    one = record("MKV")
    assert one == record("MKV")
    assert hash(one) == hash(record("MKV"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.sequence = "M"


def test_shown_characters_are_printable_ascii():
    shown = [show_character(c) for c in "A~\t\0\x7f\udc80\udcff\ud800"]
    assert shown == ["A", "~", "U+0009", "U+0000", "U+007F", "byte 0x80", "byte 0xFF", "U+D800"]
