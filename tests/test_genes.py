"""Nucleotides become proteins whose coordinates hold; annotated files are read as Biopython reads them."""

from __future__ import annotations

import re
import sys
import warnings
from io import StringIO

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Data.CodonTable import unambiguous_dna_by_id
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import fasta, one_sentence, proteins, run, table

import bioxfer as bx
from bioxfer.annotated import parse_genbank
from bioxfer.codons import read_coding, read_genetic_code
from bioxfer.corpus import Corpus, read_source, read_test_proteins
from bioxfer.errors import (
    DuplicateIdError,
    FormatError,
    InputError,
    MissingExtraError,
    SequenceError,
    UsageError,
)
from bioxfer.genes import Translation, translate
from bioxfer.io import iter_proteins, read_sequences
from bioxfer.pretrain import PretrainOptions, pretrain
from bioxfer.sequences import ORIGIN_COLUMNS, SequenceRecord
from bioxfer.splitting import read_to_split
from bioxfer.training import read_labelled

CODON = {"A": "GCT", "C": "TGC", "D": "GAT", "E": "GAA", "F": "TTT", "G": "GGT", "H": "CAT", "I": "ATT",
         "K": "AAA", "L": "CTA", "M": "ATG", "N": "AAT", "P": "CCT", "Q": "CAA", "R": "CGT", "S": "TCA",
         "T": "ACT", "V": "GTT", "W": "TGG", "Y": "TAT"}  # fmt: skip
STOPS = "TAATTAATTAA"  # in every frame of both strands
PROTEIN = "MKWVTFISLLFLFSSAYSRGVFRRDAHKSEVAHRFKDLGEENFKALVLIAFAQYLQ"
GENE = "".join(map(CODON.get, PROTEIN)) + "TGA"


def reverse(text: str) -> str:
    return str(Seq(text).reverse_complement())


def read(text: str, how: str = "auto", **options):
    return list(translate([SequenceRecord("a", text)], how, **options))


def extracted(record, text: str) -> str:
    """Translate the stretch that an origin names, as Biopython does."""
    origin = record.origin
    stretch = Seq(text)[origin.start - 1 : origin.end]
    if origin.strand == "-":
        stretch = stretch.reverse_complement()
    return str(stretch.translate(table=origin.genetic_code))


# --- open reading frames -----------------------------------------------------------------------------


def frames_of(text: str, number: int, at_least: int) -> set[tuple[str, str, int, int]]:
    """Find open reading frames codon by codon: protein, strand, start, end."""
    codons, starts, stops = read_genetic_code(number)
    found = set()
    for strand, other in (("+", text), ("-", reverse(text))):
        for shift in range(3):
            stretch: list[int] = []  # places of the codons since the last stop codon
            whole = range(shift, len(other) - 2, 3)
            for place in [*whole, None]:
                if place is not None and other[place : place + 3] not in stops:
                    stretch.append(place)
                    continue
                begins = [n for n in stretch if other[n : n + 3] in starts]
                begins = [n for n in begins if codons[other[n : n + 3]] == "M"] or begins
                if begins:
                    end = stretch[-1] + 3
                    protein = "M" + str(Seq(other[begins[0] : end]).translate(table=number))[1:]
                    end += 0 if place is None else 3
                    span = (
                        (begins[0] + 1, end)
                        if strand == "+"
                        else (len(text) - end + 1, len(text) - begins[0])
                    )
                    if len(protein) >= at_least:
                        found.add((protein, strand, *span))
                stretch = []
    return found


DNA = st.text(alphabet="ACGTACGTACGTACGTN", min_size=1, max_size=300)


@settings(max_examples=150)
@given(text=DNA, number=st.sampled_from([1, 2, 4, 11]), at_least=st.integers(1, 12))
def test_six_frames_are_all_open_reading_frames_and_no_other(text, number, at_least):
    made = read(text, "six-frame", table=number, min_orf=at_least)
    if made[0].origin.strand == "":
        assert [record.id for record in made] == ["a"]
        assert f"no open reading frame of {at_least} or more residues in its {len(text)}" in made[0].note
        made = []
    got = {(r.sequence, r.origin.strand, r.origin.start, r.origin.end) for r in made}
    assert got == frames_of(text, number, at_least)
    assert [r.id for r in made] == [f"a_{place}" for place in range(1, len(made) + 1)]
    assert [r.origin.start for r in made] == sorted(r.origin.start for r in made)
    for record in made:
        origin = record.origin
        assert record.sequence[1:] == extracted(record, text).removesuffix("*")[1:]
        if origin.strand == "+":
            assert origin.frame == (origin.start - 1) % 3 + 1
        else:
            assert origin.frame == -((len(text) - origin.end) % 3 + 1)


@settings(max_examples=150)
@given(text=DNA, number=st.sampled_from([1, 2, 11]))
def test_the_longest_frame_is_the_longest_of_six(text, number):
    (record,) = read(text, "orf", table=number)
    known = frames_of(text, number, 1)
    if not known:
        assert (record.sequence, record.note) == (
            "",
            f"not translated: no open reading frame in its {len(text)} nucleotides",
        )
        return
    wanted = min(known, key=lambda each: (-len(each[0]), each[1], each[2]))
    origin = record.origin
    assert (record.sequence, origin.strand, origin.start, origin.end) == wanted


@pytest.mark.filterwarnings("ignore:This table contains:Bio.BiopythonWarning")
@pytest.mark.parametrize("number", sorted(unambiguous_dna_by_id))
def test_every_genetic_code_is_read_in_frames_as_biopython_reads_it(number):
    """Codes whose stop codons may be residues too: in a frame they are taken to end it."""
    code = unambiguous_dna_by_id[number]
    inner = sorted(set(code.forward_table) - set(code.stop_codons))
    text = "ATG" + "".join(inner) + code.stop_codons[0]
    wanted = "M" + "".join(code.forward_table[codon] for codon in inner)
    assert str(Seq("".join(inner)).translate(table=number)) == wanted[1:]
    found = read(text, "six-frame", table=number, min_orf=len(wanted))
    assert wanted in {record.sequence for record in found}
    (longest,) = read(text, "orf", table=number)
    assert len(longest.sequence) >= len(wanted)
    assert {record.origin.genetic_code for record in found} == {number}


def test_rna_lower_case_and_ambiguity_are_read():
    (record,) = read("cc augGCNTGGyrrNNN uaa", "orf")
    assert (record.sequence, record.origin.start, record.origin.end) == ("MAWXX", 3, 20)
    assert record.origin.oddities == ("2 ambiguous codons read as X",)
    assert record.note == "longest open reading frame, 3..20 on strand +, 2 ambiguous codons read as X"


def test_a_reverse_gene_is_found_where_it_is():
    text = STOPS + reverse(GENE) + STOPS
    (record,) = read(text, "orf")
    assert record.sequence == PROTEIN
    assert (record.origin.strand, record.origin.start, record.origin.end) == ("-", 12, 11 + len(GENE))
    assert record.note == f"longest open reading frame, 12..{11 + len(GENE)} on strand -"


def test_another_start_codon_is_m_and_said():
    (record,) = read("GTGAAATTTTAA", "orf", table=11)
    assert record.sequence == "MKF"
    assert record.origin.oddities == ("start codon GTG read as M",)
    (behind,) = read(reverse("GTGAAATTTTAA"), "orf", table=11)
    assert (behind.sequence, behind.origin.strand) == ("MKF", "-")
    assert behind.origin.oddities == ("start codon GTG read as M",)
    (cut,) = read("ATGAAATTT", "orf")
    assert (cut.sequence, cut.origin.oddities) == ("MKF", ("no stop codon",))


def test_ids_of_frames_never_meet_those_of_contigs():
    records = [
        SequenceRecord(name, text) for name, text in (("a", GENE), ("a_1", "TAA" * 9), ("a_1_2", GENE))
    ]
    made = list(translate(records, "six-frame", min_orf=50))
    ids = [record.id for record in made]
    assert len(set(ids)) == len(ids) == 3
    assert ids[0] == "a_1"
    assert [record.origin.source for record in made] == ["a", "a_1", "a_1_2"]
    assert made[1].renamed_from == "a_1"


# --- auto --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "protein", "note"),
    [
        (PROTEIN, PROTEIN, "auto: read as a protein"),
        (
            GENE,
            PROTEIN,
            f"auto: nucleotides, a whole coding sequence; translated from {len(GENE)} nucleotides",
        ),
        (
            STOPS + GENE + STOPS,
            PROTEIN,
            "auto: nucleotides, no whole coding sequence; longest open reading frame, "
            f"12..{11 + len(GENE)} on strand +",
        ),
        # a stop codon inside: the longer part is read
        (
            "ATGAAATAA" + GENE[3:],
            None,
            r"auto: nucleotides, no whole coding sequence; longest open reading frame, .*",
        ),
        ("ACGTACGT", "ACGTACGT", "auto: read as a protein"),  # too short to tell
        ("TAATTAATTAATTAATTAATTAA", "", r".*not translated: no open reading frame in its 23 nucleotides"),
        (GENE.replace("T", "U").lower(), PROTEIN, r"auto: nucleotides, a whole coding sequence; .*"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_auto_goes_by_the_letters_of_each_record_and_says_so(text, protein, note):
    (record,) = read(text)
    assert protein is None or record.sequence == protein
    assert re.fullmatch(note.replace("+", r"\+") if ".*" not in note else note, record.note)


def test_auto_judges_each_record_by_itself():
    texts = [PROTEIN, GENE, STOPS + GENE, "ACGTACGT"]
    records = [SequenceRecord(f"r{n}", text) for n, text in enumerate(texts)]
    together = list(translate(records, "auto"))
    assert together == [each for record in records for each in translate([record], "auto")]


def test_what_is_no_nucleotide_keeps_its_row():
    for how in ("cds", "orf", "six-frame"):
        (record,) = read("ATGEAA", how)
        assert (record.id, record.sequence) == ("a", "")
        assert record.note == "not translated: 'E' at 4 is not a nucleotide"


# --- gene calls --------------------------------------------------------------------------------------


def test_gene_calls_are_extracted_and_translated():
    pytest.importorskip("pyrodigal", reason="gene calls need pyrodigal (extra genes)")
    dice = np.random.default_rng(0)
    spacer = "".join(dice.choice(list("ACGT"), 150))
    text = f"{spacer}AGGAGGTAACA{GENE}{spacer}{reverse('AGGAGGTAACA' + GENE)}{spacer}"
    made = read(text, "genes")
    assert PROTEIN in {record.sequence for record in made}
    assert {record.origin.strand for record in made} == {"+", "-"}
    for number, record in enumerate(made, start=1):
        assert record.id == f"a_{number}"
        assert record.sequence[1:] == extracted(record, text).removesuffix("*")[1:]
        assert f"genetic code {record.origin.genetic_code}" in record.note
    (none,) = read("TAATTAATTAATTAATTAATTAA", "genes")
    assert none.note == "not translated: no gene was called in its 23 nucleotides"


def test_without_pyrodigal_the_install_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrodigal", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'bioxfer[genes]'")):
        read(GENE, "genes")


# --- options -----------------------------------------------------------------------------------------


def test_options_out_of_range_are_refused():
    with pytest.raises(UsageError, match="how to translate is 'sideways'; choose from off, auto, cds"):
        read(GENE, "sideways")
    with pytest.raises(UsageError, match="no genetic code 7; NCBI numbers them 1, 2, 3"):
        read(GENE, "orf", table=7)
    with pytest.raises(UsageError, match="the shortest open reading frame is 0 residues; choose 1 or more"):
        read(GENE, "six-frame", min_orf=0)
    with pytest.raises(UsageError, match=r"--gff says where .* and --translate orf looks for them itself"):
        Translation("orf", gff="a.gff")
    for made in (lambda: read(GENE, "genes", table=4), lambda: Translation("genes", 4)):
        with pytest.raises(UsageError, match="gene calls bring their own genetic code, 11 or 4"):
            made()


def test_read_coding_tells_what_is_odd():
    assert read_coding("ATGAAATAA", 1) == ("MK", [])
    assert read_coding("AAATAA", 1) == ("K", ["no start codon"])
    assert read_coding("ATGAAA", 1) == ("MK", ["no stop codon"])
    assert read_coding("ATGAAATA", 1) == (
        "MK",
        ["no stop codon", "an incomplete last codon (2 of 3 nucleotides) left out"],
    )
    assert read_coding("GTGAAATAA", 11) == ("MK", ["start codon GTG read as M"])
    assert read_coding("CATGAAATAA", 1, codon_start=2) == ("MK", [])
    assert read_coding("ATGTAAAAATAA", 1) == ("M*K", ["1 stop codon inside"])
    assert read_coding("", 1) == ("", ["no stop codon"])


# --- GenBank -----------------------------------------------------------------------------------------


def genbank(
    text: str, *features: str, name: str = "TEST1", length: int | None = None, unit: str = "bp"
) -> str:
    """Write an entry; a feature is its location and its qualifiers, separated by blanks."""
    rows = []
    for feature in features:
        location, *said = feature.split(" ")
        rows.append(f"     CDS             {location}")
        rows += [f"                     /{each}" for each in said]
    kind = "DNA    " if unit == "bp" else "       "
    letters = text.lower()
    blocks = [letters[n : n + 60] for n in range(0, len(letters), 60)]
    lines = [
        f"{60 * n + 1:>9} " + " ".join(block[k : k + 10] for k in range(0, len(block), 10))
        for n, block in enumerate(blocks)
    ]
    return "\n".join(
        [
            f"LOCUS       {name:<16} {length or len(text):>11} {unit}    {kind} linear   BCT 01-JAN-2026",
            "DEFINITION  A test of locations.",
            f"ACCESSION   {name}",
            f"VERSION     {name}.1",
            "FEATURES             Location/Qualifiers",
            f"     source          1..{len(text) or length}",
            '                     /organism="synthetic construct"',
            *rows,
            *(["ORIGIN", *lines] if text else []),
            "//",
            "",
        ]
    )


@pytest.fixture
def make(tmp_path):
    def write(content: str, name: str = "in.gb"):
        path = tmp_path / name
        path.write_text(content)
        return path

    return write


K = "AAA"
SPLIT = f"CC{GENE[:40]}GTAAGT{GENE[40:]}CC"  # one intron after 40 nucleotides
EXONS = f"join(3..42,49..{len(SPLIT) - 2})"


@pytest.mark.parametrize(
    ("text", "feature", "protein", "said", "place"),
    [
        (f"CC{GENE}", f"3..{len(GENE) + 2} locus_tag=A", PROTEIN, [], ("+", 3, len(GENE) + 2, 3)),
        (SPLIT, EXONS, PROTEIN, ["joined from 2 parts"], ("+", 3, len(SPLIT) - 2, 3)),
        (
            reverse(SPLIT),
            f"complement(join(3..{len(SPLIT) - 48},{len(SPLIT) - 41}..{len(SPLIT) - 2}))",
            PROTEIN,
            ["on strand -, joined from 2 parts"],
            ("-", 3, len(SPLIT) - 2, -3),
        ),
        # the same in the older way of writing it
        (
            reverse(SPLIT),
            f"join(complement({len(SPLIT) - 41}..{len(SPLIT) - 2}),complement(3..{len(SPLIT) - 48}))",
            PROTEIN,
            ["joined from 2 parts"],
            ("-", 3, len(SPLIT) - 2, -3),
        ),
        (
            f"{GENE[:30]}{reverse(GENE[30:])}",
            f"join(1..30,complement(31..{len(GENE)})) trans_splicing",
            PROTEIN,
            ["on strand mixed", "marked as trans_splicing"],
            ("mixed", 1, len(GENE), 1),
        ),
        (
            GENE[1:],
            f"<1..{len(GENE) - 1} codon_start=3",
            PROTEIN[1:],
            ["partial at its start", "codon_start 3"],
            ("+", 1, len(GENE) - 1, 3),
        ),
        (
            reverse(GENE[:-5]),
            f"complement(<1..{len(GENE) - 5})",
            PROTEIN[:-1],
            ["partial at its end"],
            ("-", 1, len(GENE) - 5, -1),
        ),
        (
            "GTGAAAGGGTAA",
            "1..12 transl_table=11",
            "MKG",
            ["genetic code 11", "start codon GTG read as M"],
            None,
        ),
        (
            reverse(GENE[1:]),
            f"complement(1..>{len(GENE) - 1}) codon_start=3",
            PROTEIN[1:],
            ["partial at its start, codon_start 3"],
            ("-", 1, len(GENE) - 1, -3),
        ),
        # the true start lies outside, so this is no start codon
        ("GTGAAATAA", "<1..9 transl_table=11", "VK", ["partial at its start"], None),
        ("ATGTGAATAAGA", "1..12 transl_table=2", "MWM", ["genetic code 2"], None),
        # the poly-A tail makes the stop codon
        (
            "ATGTGAATAT",
            "1..10 transl_table=2 transl_except=(pos:10,aa:TERM)",
            "MWM",
            ["genetic code 2"],
            None,
        ),
        ("ATGTGAAAATAA", "1..12 transl_except=(pos:4..6,aa:Sec)", "MUK", ["U at 2"], ("+", 1, 12, 1)),
        (
            reverse("ATGTGAAAATAA"),
            "complement(1..12) transl_except=(pos:complement(7..9),aa:Sec)",
            "MUK",
            ["U at 2"],
            ("-", 1, 12, -1),
        ),
        (
            "ATGTGAAAATAA",
            "1..12 transl_except=(pos:5..7,aa:Sec)",
            "M*K",
            ["transl_except (pos:5..7,aa:Sec) not understood"],
            None,
        ),
        ("ATGAAATAA", '1..9 translation="MK"', "MK", [], None),
        (
            "ATGAAATAA",
            '1..9 translation="MR"',
            "MK",
            ["differs from /translation in 1 (K at 2, there R)"],
            None,
        ),
        ("ATGAAATAA", '1..9 translation="M"', "MK", ["2 residues where /translation has 1"], None),
        ("ATGAAATAA", "1..9 pseudo", "MK", ["marked as pseudo"], None),
        ("ACGAAATAA", '1..9 exception="RNA_editing"', "TK", ["no start codon, exception: RNA_editing"], None),
        ("AAAAAATAA", "1..9", "KK", ["no start codon"], None),
        ("ATGAATAA", "join(1..6,6..8)", "MN", ["joined from 2 parts", "its parts overlap"], None),
        ("ATGAAAAA", "1..8", "MK", ["no stop codon", "incomplete last codon (2 of 3"], None),
    ],
)
def test_annotated_coding_sequences_are_read(make, text, feature, protein, said, place):
    (record,) = read_sequences(make(genbank(text, feature)))
    assert record.sequence == protein
    for words in said:
        assert words in record.note
    origin = record.origin
    assert record.note.startswith(f"annotated in TEST1.1: {origin.start}..{origin.end} on strand")
    odd = ", ".join(origin.oddities)
    assert record.note.endswith(odd)
    if not said:
        assert not odd
    if place is not None:
        assert (origin.strand, origin.start, origin.end, origin.frame) == place
    assert (origin.source, record.line) == ("TEST1.1", 1)


@pytest.mark.parametrize(
    ("text", "feature", "trouble"),
    [
        ("ATGAAATAA", "1..9 transl_table=7", "there is no genetic code 7; NCBI numbers them 1, 2"),
        ("ATGAAATAA", "1..9 transl_table=x", "its genetic code is 'x', which is no number"),
        ("ATGAAATAA", "1..9 codon_start=4", "its codon_start is '4', not 1, 2 or 3"),
        ("ATGAAATAA", "1..12", "it reaches to 12, beyond the 9 nucleotides of TEST1.1"),
        ("ATGAAATAA", "join(1..3,J00194.1:4..9)", "a part of it lies in another entry"),
        ("ATGAAATAA", "1...9", "its location cannot be read"),
        ("ATG-AATAA", "1..9", "'-' in it is not a nucleotide"),
        ("ATGAAATAA", "3^4", "it has no whole codon"),
        ("ATGAAATAA", "<1..3 codon_start=2", "it has no whole codon"),
        ("", "1..9", "TEST1.1 has no sequence, and the annotation states no protein"),
    ],
)
def test_an_annotation_that_cannot_be_read_keeps_its_row(make, text, feature, trouble):
    (record,) = read_sequences(make(genbank(text, f"{feature} locus_tag=A", length=9)))
    assert (record.id, record.sequence) == ("A", "")
    assert record.note.startswith(f"not translated: {trouble}")
    assert record.origin.source == "TEST1.1"


@pytest.mark.parametrize("end", ["//", "ORIGIN\n//", "CONTIG      join(U00096.1:1..9)\n//"])
def test_an_entry_without_sequence_gives_the_protein_that_it_states(make, end):
    text = genbank("", '1..9 gene=b translation="MK"', length=9).replace("//", end)
    first, record = read_sequences(make(genbank(GENE, "1..9 gene=a", name="TEST0") + text))
    assert (first.id, first.line) == ("a", 1)
    assert record.line > 1
    assert (record.id, record.sequence) == ("b", "MK")
    assert "no nucleotides, so the protein is the one that the annotation states" in record.note


def test_entries_without_coding_sequence_keep_their_row_and_six_frames_read_them_whole(make):
    path = make(genbank(GENE) + genbank(GENE, f"1..{len(GENE)} gene=b", name="TEST2"))
    first, second = read_sequences(path)
    assert (first.id, first.sequence) == ("TEST1.1", "")
    assert "no coding sequence (CDS) in its features; see --translate six-frame" in first.note
    assert (second.id, second.sequence) == ("b", PROTEIN)
    found = list(iter_proteins(path, Translation("orf")))
    assert [(r.id, r.sequence) for r in found] == [("TEST1.1", PROTEIN), ("TEST2.1", PROTEIN)]
    none = make(genbank("", "1..9", length=9))
    (empty,) = iter_proteins(none, Translation("six-frame"))
    assert (empty.id, empty.sequence, empty.note) == (
        "TEST1.1",
        "",
        "not translated: the entry has no sequence",
    )


def test_a_protein_entry_is_a_protein(make):
    (record,) = read_sequences(make(genbank(PROTEIN, unit="aa")))
    assert (record.id, record.sequence, record.origin) == ("TEST1.1", PROTEIN, None)


def test_ids_are_names_that_no_other_coding_sequence_has(make):
    features = [
        "1..9 locus_tag=A protein_id=P.1",
        "1..9 locus_tag=A protein_id=P.2",
        "1..9 gene=g locus_tag=B",
        "1..9 gene=g",
        "1..9",
    ]
    found = read_sequences(make(genbank("ATGAAATAA", *features)))
    assert [record.id for record in found] == ["P.1", "P.2", "B", "TEST1.1_cds4", "TEST1.1_cds5"]
    assert found[0].description == "P.1 A"
    twice = make(genbank("ATGAAATAA", "1..9 gene=g") + genbank("ATGAAATAA", "1..9 gene=g", name="TEST2"))
    with pytest.raises(DuplicateIdError, match="id 'g' is already used in line 1"):
        read_sequences(twice)


def test_reading_leaves_the_filters_of_warnings_as_they_are(make):
    text = genbank(GENE, f"1..{len(GENE)} gene=a", "3..1 gene=b")  # of the second, Biopython warns
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        records = iter_proteins(make(text))
        assert next(records).sequence == PROTEIN
        assert list(warnings.filters) == before  # while the file is still open, too
        (other,) = records
        assert list(warnings.filters) == before
    assert other.note == "not translated: its location cannot be read"
    assert not seen


def test_the_genetic_code_of_the_option_is_of_those_that_state_none(make):
    path = make(genbank("ATGTGAATAAGA", "1..12 gene=a", "1..12 gene=b transl_table=1"))
    mine, stated = iter_proteins(path, Translation("auto", 2))
    assert (mine.sequence, stated.sequence) == ("MWM", "M*IR")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text[: text.index("gttgctcatc")], "is cut off or damaged"),
        (lambda text: text[: text.index("/organism")], "line 7: not a GenBank entry as it should be"),
        (lambda text: text[: text.index("ACCESSION")], "not a GenBank entry as it should be"),
        (lambda text: text.replace("DNA", "   "), None),
        (lambda text: "LOCUS \n", "line 1: a GenBank entry begins here and has no end"),
        (lambda text: text + text.splitlines()[0], r"line \d\d: "),
    ],
)
def test_a_genbank_file_cut_off_is_refused_with_its_place(make, spoil, told):
    path = make(spoil(genbank(GENE, f"1..{len(GENE)}")))
    if told is None:
        assert read_sequences(path)[0].sequence == PROTEIN
        return
    with pytest.raises(FormatError, match=told):
        read_sequences(path)


def test_genbank_is_read_with_any_line_end(make):
    text = genbank(SPLIT, EXONS)
    known = read_sequences(make(text))
    for end in ("\r\n", "\r"):
        path = make("")
        path.write_bytes(text.replace("\n", end).encode())
        assert read_sequences(path) == known


def test_a_file_of_a_genbank_release_begins_with_its_title(make):
    title = "GBVRL1.SEQ           Genetic Sequence Data Bank\n                          October 15 2013\n\n"
    title += "   1 loci,   171 bases, from  1 reported sequences\n\n"
    (record,) = read_sequences(make(title + genbank(GENE, f"1..{len(GENE)} gene=a"), "gbvrl1.seq"))
    assert (record.id, record.sequence, record.line) == ("a", PROTEIN, 6)


@settings(max_examples=150)
@given(data=st.data(), text=st.text("ACGTN", min_size=12, max_size=60), number=st.sampled_from([1, 2, 4, 11]))
def test_locations_are_read_as_biopython_reads_them(data, text, number):
    cuts = data.draw(st.lists(st.integers(1, len(text)), min_size=2, max_size=8, unique=True).map(sorted))
    parts = [f"{a}..{b}" for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    parts[0] = data.draw(st.sampled_from(["", "<"])) + parts[0]
    parts[-1] = parts[-1].replace("..", data.draw(st.sampled_from(["..", "..>"])))
    back = [data.draw(st.booleans()) for _ in parts]
    parts = [f"complement({part})" if turned else part for part, turned in zip(parts, back, strict=True)]
    location = f"join({','.join(parts)})" if len(parts) > 1 else parts[0]
    if not any(back) and data.draw(st.booleans()):
        location = f"complement({location})"
    shift = data.draw(st.integers(1, 3))
    entry = genbank(text, f"{location} gene=a codon_start={shift} transl_table={number}")
    (record,) = parse_genbank(enumerate(entry.encode().splitlines(keepends=True), 1), "in.gb")
    (feature,) = [f for f in SeqIO.read(StringIO(entry), "genbank").features if f.type == "CDS"]
    coding = feature.extract(Seq(text))[shift - 1 :]
    known = str(coding[: len(coding) // 3 * 3].translate(table=number))
    if not known:
        assert record.note == "not translated: it has no whole codon"
        return
    if "start codon" in record.note and "read as M" in record.note:
        known = "M" + known[1:]
    if len(coding) % 3 == 0:
        known = known.removesuffix("*")
    assert record.sequence == known
    # The first codon that was read begins where the table says, on either strand.
    place = feature.location.parts[0]
    first = place.start + shift if place.strand == 1 else len(text) - place.end + shift
    assert abs(record.origin.frame) == (first - 1) % 3 + 1


# --- GFF3 --------------------------------------------------------------------------------------------


def gff(*rows: str) -> str:
    return "##gff-version 3\n" + "".join(row.replace(" ", "\t") + "\n" for row in rows)


@pytest.fixture
def annotated(make):
    """Read a FASTA of contigs beside a GFF3."""

    def read_both(contigs: dict[str, str], *rows: str, text: str | None = None):
        path = make("".join(f">{name} x\n{text}\n" for name, text in contigs.items()), "in.fasta")
        return list(iter_proteins(path, Translation(gff=make(gff(*rows) if text is None else text, "a.gff"))))

    return read_both


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ID=cds1;Parent=t1;locus_tag=A", "ID=cds1;Parent=t1;locus_tag=A"),
        ("Parent=t1;locus_tag=A", "Parent=t1;locus_tag=A"),
        ("ID=x1;Parent=t1;locus_tag=A", "ID=x2;Parent=t1;locus_tag=A"),
    ],
)
def test_lines_of_one_coding_sequence_are_joined(annotated, first, second):
    end = len(SPLIT) - 2
    mrna = f"c1 . mRNA 1 {len(SPLIT)} . + . ID=t1"
    rows = [f"c1 . CDS 49 {end} . + 2 {second}", f"c1 . CDS 3 42 . + 0 {first}"]  # in any order
    (record,) = annotated({"c1": SPLIT}, mrna, *rows)
    assert (record.id, record.sequence) == ("A", PROTEIN)
    origin = record.origin
    assert (origin.source, origin.strand, origin.start, origin.end) == ("c1", "+", 3, end)
    assert "joined from 2 parts" in record.note
    length = len(SPLIT)
    rows = [
        f"c1 . CDS {length - 41} {length - 2} . - 0 {first}",
        f"c1 . CDS 3 {length - 48} . - 2 {second}",
    ]
    (record,) = annotated({"c1": reverse(SPLIT)}, mrna, *rows)
    assert (record.sequence, record.origin.strand, record.origin.frame) == (PROTEIN, "-", -3)


KIN = "ATGGCTTGGAAACTTTGA"  # MAWKL, in two halves of nine
APART = f"{KIN[:9]}GTAAGTAG{KIN[9:]}"
AROUND = f"{KIN[9:]}CCCCCCCC{KIN[:9]}"  # of a circle, begun in the gene's middle
CIRCLE = "c region 1 26 . + . Is_circular=true"


def cds(*rows: str) -> list[str]:
    return [
        f"c . {row}" if row.split()[0] != "c" else row.replace("c region", "c . region", 1) for row in rows
    ]


@pytest.mark.parametrize(
    ("sequence", "rows", "expected"),
    [
        (  # The Arabidopsis genome names the protein's feature as a parent, too.
            APART,
            [
                "mRNA 1 26 . + . ID=t1",
                "CDS 1 9 . + 0 Parent=t1,t1-Protein",
                "CDS 18 26 . + 0 Parent=t1,t1-Protein",
            ],
            {"t1": "MAWKL"},
        ),
        (
            APART + "TTCATTAA",
            [
                "mRNA 1 26 . + . ID=t1",
                "mRNA 1 34 . + . ID=t2",
                "CDS 1 9 . + 0 Parent=t1,t2",
                "CDS 18 26 . + 0 Parent=t1",
                "CDS 29 34 . + 0 Parent=t2",
            ],
            {"t1": "MAWKL", "t2": "MAWH"},
        ),
        (  # each line's first parent is another one's
            "ATGTTTATGGCTATGCATTGGTAA",
            [
                "CDS 1 6 . + 0 Parent=t3",
                "CDS 7 12 . + 0 Parent=t3,t2",
                "CDS 13 18 . + 0 Parent=t2,t1",
                "CDS 19 24 . + 0 Parent=t1,t2,t3",
            ],
            {"t3": "MFMAW", "t2": "MAMHW", "t1": "MHW"},
        ),
        (
            APART,
            [
                "mRNA 1 26 . + . ID=t1",
                "mRNA 1 26 . + . ID=t2",
                "CDS 1 9 . + 0 ID=x1;Parent=t1,t2",
                "CDS 18 26 . + 0 ID=x2;Parent=t1,t2",
            ],
            {"t1": "MAWKL", "t2": "MAWKL"},
        ),
        (
            f"{KIN}GGGGATGCATTAA",
            [
                "mRNA 1 31 . + . ID=t1",
                "CDS 1 18 . + 0 ID=x1;Parent=t1;locus_tag=L1",
                "CDS 23 31 . + 0 ID=x2;Parent=t1;locus_tag=L2",
            ],
            {"L1": "MAWKL", "L2": "MH"},
        ),
        (AROUND, [CIRCLE, "CDS 18 35 . + 0 ID=x"], {"x": "MAWKL"}),
        (AROUND, [CIRCLE, "CDS 1 9 . + 0 ID=x", "CDS 18 26 . + 0 ID=x"], {"x": "MAWKL"}),
        (reverse(AROUND), [CIRCLE, "CDS 18 26 . - 0 ID=x", "CDS 1 9 . - 0 ID=x"], {"x": "MAWKL"}),
        (reverse(AROUND), [CIRCLE, "CDS 18 35 . - 0 ID=x"], {"x": "MAWKL"}),
        (
            f"{reverse(KIN[:9])}CC{KIN[9:]}",
            ["CDS 12 20 . + 0 ID=x;part=2/2", "CDS 1 9 . - 0 ID=x;part=1/2"],
            {"x": "MAWKL"},
        ),
        (
            f"{KIN[9:]}CC{KIN[:9]}",
            ["CDS 1 9 . + 0 ID=x;part=2", "CDS 12 20 . + 0 ID=x;part=1"],
            {"x": "MAWKL"},
        ),
    ],
)
def test_lines_are_put_together_as_files_write_them(annotated, sequence, rows, expected):
    found = annotated({"c": sequence}, *cds(*rows))
    assert {record.id: record.sequence for record in found} == expected
    assert len(found) == len(expected)


def test_a_phase_that_contradicts_the_frame_is_told(annotated):
    sequence = f"{KIN[:8]}GTAAGTAG{KIN[8:]}"
    rows = ["c . CDS 1 8 . + 0 ID=x", "c . CDS 17 26 . + {} ID=x"]
    (right,) = annotated({"c": sequence}, rows[0], rows[1].format(1))
    (wrong,) = annotated({"c": sequence}, rows[0], rows[1].format(2))
    assert right.sequence == wrong.sequence == "MAWKL"
    assert "phase" not in right.note
    assert "phase 2 of line 3 is not that of the frame" in wrong.note


def test_prodigal_states_its_genetic_code_above_its_genes(annotated):
    model = 'version=Prodigal.v2.6.3;run_type=Single;model="Ab initio";gc_cont=50.7;transl_table={};uses_sd=1'
    rows = "".join(
        f"# Sequence Data: seqnum={number};seqlen=12\n# Model Data: {model.format(code)}\n"
        + gff(f"{name} . CDS 1 12 . + 0 ID={number}_1;partial=00;start_type=GTG").partition("\n")[2]
        for number, name, code in ((1, "c1", 11), (2, "c2", 4))
    )
    contigs = {"c1": "GTGTGGAAATGA", "c2": "GTGTGAAAATAA"}
    first, second = annotated(contigs, text="##gff-version  3\n" + rows)
    assert [(r.sequence, r.origin.genetic_code) for r in (first, second)] == [("MWK", 11), ("MWK", 4)]


def test_alternatives_of_one_gene_stay_apart(annotated):
    both = f"{GENE}{GENE}"
    rows = [f"c1 . CDS {1 + n * len(GENE)} {(1 + n) * len(GENE)} . + 0 ID=p{n};Parent=gene1" for n in (0, 1)]
    assert [r.sequence for r in annotated({"c1": both}, *rows)] == [
        PROTEIN,
        PROTEIN,
    ]  # of a gene, no transcript
    rows = [
        "c1 . mRNA 1 99 . + . ID=t1",
        f"c1 . CDS 1 {len(GENE)} . + 0 ID=p0;Parent=t1",
        f"c1 . CDS 4 {len(GENE)} . + 0 ID=p1;Parent=t1",
    ]
    assert [r.sequence for r in annotated({"c1": GENE}, *rows)] == [PROTEIN, PROTEIN[1:]]  # they overlap


def test_phase_table_partial_and_escapes_are_read(annotated):
    rows = [
        f"c%201 . CDS 1 {len(GENE) - 1} . + 2 ID=a%3Bb;partial=true;start_range=.,1",
        "c2 . CDS 1 12 . + 0 ID=mito;transl_table=2",
        "c2 . CDS 1 12 . + 0 ID=left;partial=10",
        "c2 . CDS 1 12 . + . ID=sec;transl_except=(pos:4..6%2Caa:Sec)",
    ]
    contigs = {"c%201": "ACGT", "c2": "ATGTGAATAAGA", "c3": GENE}
    with pytest.raises(InputError, match=r"a\.gff, line 2: there is no sequence 'c 1' in .*in\.fasta"):
        annotated(contigs, *rows)
    rows[0] = rows[0].replace("c%201", "c1")
    head, mito, left, sec, none = annotated({"c1": GENE[1:], "c2": "ATGTGAATAAGA", "c3": GENE}, *rows)
    assert (head.id, head.sequence) == ("a;b", PROTEIN[1:])
    assert "partial at its start, codon_start 3" in head.note
    assert (mito.sequence, mito.origin.genetic_code) == ("MWM", 2)
    assert left.sequence == "M*IR"
    assert left.origin.oddities == ("partial at its start", "no stop codon", "1 stop codon inside")
    assert sec.sequence == "MUIR"
    assert (none.id, none.sequence) == ("c3", "")
    assert re.fullmatch(r"not translated: .*a\.gff has no coding sequence \(CDS\) on it", none.note)


def test_rows_come_in_the_order_of_contigs(annotated):
    rows = [f"c2 . CDS 1 {len(GENE)} . + 0 ID=second", f"c1 . CDS 1 {len(GENE)} . + 0 ID=first"]
    assert [r.id for r in annotated({"c1": GENE, "c2": GENE}, *rows)] == ["first", "second"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            "nowhere . CDS 1 9 . + 0 ID=a",
            r"a\.gff, line 2: there is no sequence 'nowhere' in .*in\.fasta; their",
        ),
        ("c1 . CDS 1 9 . + 0", "line 2: 8 columns where GFF3 has 9"),
        ("c1 . CDS 9 1 . + 0 ID=a", "line 2: the feature reaches from '9' to '1'"),
        ("c1 . CDS one 9 . + 0 ID=a", "line 2: the feature reaches from 'one' to '9'"),
        ("c1 . CDS 1 9 . . 0 ID=a", r"line 2: the strand of a CDS is '\.'; write \+ or -"),
        (
            'c1 . CDS 1 9 . + 0 gene_id\u00a0"a"',
            "line 2: .* is an attribute of GTF; convert the file to GFF3",
        ),
        ("c1 . gene 1 9 . + . ID=a", "holds no line of type CDS"),
    ],
)
def test_a_gff_that_is_none_is_refused_with_its_line(annotated, row, told):
    with pytest.raises(InputError, match=told):
        annotated({"c1": GENE}, row)


@pytest.mark.parametrize(
    ("row", "trouble"),
    [
        ("c1 . CDS 1 9999 . + 0 ID=a", f"it reaches to 9999, beyond the {len(GENE)} nucleotides of c1"),
        ("c1 . CDS 1 9 . + 5 ID=a", "its phase is '5', not 0, 1 or 2"),
        ("c1 . CDS 1 9 . + 0 ID=a;transl_table=7", "there is no genetic code 7"),
    ],
)
def test_a_line_that_does_not_fit_keeps_its_row(annotated, row, trouble):
    (record,) = annotated({"c1": GENE}, row)
    assert (record.id, record.sequence) == ("a", "")
    assert record.note.startswith(f"not translated: {trouble}")


def test_a_gff_needs_a_file_beside_it(make):
    path = make(gff("c1 . CDS 1 9 . + 0 ID=a"), "a.gff")
    with pytest.raises(InputError, match="IN is read twice, which a stream does not allow; name a file"):
        list(iter_proteins("-", Translation(gff=path)))
    with pytest.raises(FormatError, match="looks like a GFF3 file, which goes with a FASTA file as --gff"):
        read_sequences(path)


# --- FASTQ -------------------------------------------------------------------------------------------


def test_fastq_is_read_and_its_qualities_are_not(make):
    text = (
        f"@r1 first\n{GENE[:50]}\n{GENE[50:]}\n+r1 first\n@{'I' * 49}\n{'+' * (len(GENE) - 50)}\n@r2\n\n+\n\n"
    )
    path = make(text, "in.fastq")
    first, second = read_sequences(path)
    assert (first.id, first.sequence, first.description) == ("r1", GENE, "r1 first")
    assert (first.line, second.line) == (1, 7)
    assert (first.note, second.note) == ("FASTQ qualities ignored", "")
    (protein, _) = iter_proteins(path, Translation("cds"))
    assert protein.sequence == PROTEIN
    assert protein.note == f"FASTQ qualities ignored; translated from {len(GENE)} nucleotides"
    (auto, _) = iter_proteins(path, Translation("auto"))
    assert auto.note.startswith("FASTQ qualities ignored; auto: nucleotides, a whole coding sequence; transl")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("@r1\nACGT\n+\nIIII\n@r2\nACGT\n+\nII", r"in\.fastq, line 5: no whole FASTQ record \(Leng"),
        (
            "@r1\nACGT\n+\nIIII\n@r2\nACGT\n",
            r"line 5: no whole .* \(End of file without quality information\); the file is cut off",
        ),
        ("@r1\nACGT\n+\nIIII\n@ r2\nACGT\n+\nIIII\n", "line 5: no id after '@'"),
        ("@r1\nACGT\n+r2\nIIII\n", "captions differ"),
    ],
)
def test_a_fastq_cut_off_is_refused_with_its_place(make, text, told):
    with pytest.raises(FormatError, match=told):
        read_sequences(make(text, "in.fastq"))


# --- commands ----------------------------------------------------------------------------------------


def coding(records) -> str:
    rows = [SequenceRecord(r.id, "".join(map(CODON.get, r.sequence)) + "TAA") for r in records]
    return fasta(rows)


def test_a_gene_and_its_protein_give_the_same_prediction(bench, make):
    some = proteins(4)
    assert bench.predict(bench.write("p.fasta", fasta(some))).code == 0
    known = bench.rows()
    genes = [("".join(map(CODON.get, r.sequence)) + "TAA") for r in some]
    sources = {
        "cds": coding(some),
        "auto": coding(some),
        "orf": "".join(f">{r.id}\n{STOPS}{reverse(g)}{STOPS}\n" for r, g in zip(some, genes, strict=True)),
        "off": "".join(
            genbank(gene, f"1..{len(gene)} gene={r.id}", name=f"E{n}")
            for n, (r, gene) in enumerate(zip(some, genes, strict=True))
        ),
    }
    for how, text in sources.items():
        assert bench.predict(bench.write("genes.in", text), "--translate", how).code == 0
        rows = bench.rows()
        assert all(row["message"] for row in rows)
        kept = [{k: v for k, v in row.items() if k not in ORIGIN_COLUMNS} for row in rows]
        assert [{**row, "message": ""} for row in kept] == known, how


def test_tables_say_where_proteins_are_written(bench):
    source = bench.write("in.fasta", f">c1\n{STOPS}{reverse(GENE)}{STOPS}\n>c2\n{STOPS}\n>c3\n\n")
    stem = ["id", "length", "status", "message"]
    for command in (bench.predict, bench.embed):
        assert command(source, "--translate", "six-frame", "--min-orf", "50").code == 0
        first, none, empty = bench.rows()
        assert list(first)[:10] == [*stem, *ORIGIN_COLUMNS]
        assert [first[name] for name in ORIGIN_COLUMNS] == ["c1", "-", "12", str(11 + len(GENE)), "-3", "1"]
        assert (first["id"], first["length"], first["status"]) == ("c1_1", str(len(PROTEIN)), "ok")
        assert (none["id"], none["status"], none["source"], none["strand"]) == ("c2", "skipped", "c2", "")
        assert (empty["id"], empty["status"], empty["source"]) == ("c3", "skipped", "")
        assert command(source).code == 0
        assert "source" not in bench.rows()[0]
    assert bench.predict(source, "--translate", "orf", "--format", "long").code == 0
    rows = bench.rows()
    assert list(rows[0])[:10] == [*stem, *ORIGIN_COLUMNS]
    assert rows[0]["start"] == "12"


def test_tables_of_an_annotated_file_say_it_too(bench):
    backwards = genbank(reverse(GENE), f"complement(1..{len(GENE)}) gene=b", name="TEST2")
    source = bench.write("in.gb", genbank(GENE, f"1..{len(GENE)} gene=a") + backwards)
    protein = bench.write("in.gp", genbank(PROTEIN, unit="aa"))
    for command in (bench.predict, bench.embed):
        assert command(source).code == 0
        rows = bench.rows()
        assert [row["id"] for row in rows] == ["a", "b"]
        assert [[row[name] for name in ORIGIN_COLUMNS] for row in rows] == [
            ["TEST1.1", "+", "1", str(len(GENE)), "1", "1"],
            ["TEST2.1", "-", "1", str(len(GENE)), "-1", "1"],
        ]
        assert command(protein).code == 0
        assert "source" not in bench.rows()[0]
    assert bench.predict(source, "--format", "long").code == 0
    assert bench.rows()[0]["start"] == "1"
    # a part may hold no record at all
    assert bench.embed(source).code == 0
    whole = bench.out.read_bytes()
    bench.out.unlink()
    for number in (1, 2, 3):
        assert bench.embed(source, "--shard", f"{number}/3").code == 0
    assert run("merge", "-o", bench.out).code == 0
    assert bench.out.read_bytes() == whole


def test_what_was_translated_is_not_taken_for_nucleotides(bench):
    gene = "".join(CODON[each] for each in "M" + "ACGT" * 10) + "TAA"
    assert bench.embed(bench.write("in.fasta", f">a\n{gene}\n"), "--translate", "cds").code == 0
    assert bench.rows()[0]["message"] == f"translated from {len(gene)} nucleotides"
    # one letter that no nucleotide has: the warning stays beside what was decided
    assert bench.embed(bench.write("in.fasta", f">a\nE{gene}\n"), "--translate", "auto").code == 0
    assert bench.rows()[0]["message"].startswith("auto: read as a protein; looks like nucleotides")


def test_numbers_stay_numbers_in_parquet(bench):
    parquet = pytest.importorskip("pyarrow.parquet")
    source = bench.write("in.fasta", f">c1\n{GENE}\n>c2\n{STOPS}\n")
    for command, name in ((bench.predict, "p.parquet"), (bench.embed, "e.parquet")):
        out = bench.folder / name
        assert command(source, "--translate", "orf", out=out).code == 0
        found = parquet.read_table(out)
        assert found.column("start").to_pylist() == [1, None]
        assert found.column("strand").to_pylist() == ["+", None]


def test_a_gff_on_the_command_line(bench):
    source = bench.write("in.fasta", f">c1\n{GENE}\n")
    notes = bench.write("a.gff", gff(f"c1 . CDS 1 {len(GENE)} . + 0 ID=a"))
    named = bench.write("gff.csv", notes.read_bytes())
    assert bench.predict(source, "--gff", notes).code == 0
    assert (bench.rows()[0]["id"], bench.rows()[0]["source"]) == ("a", "c1")
    assert bench.predict(source, "--gff", notes, "--translate", "cds").code == 0
    code, _, err = bench.predict(source, "--gff", notes, "--translate", "orf")
    assert code == 2
    assert "leave one of the two out" in one_sentence(err)
    code, _, err = bench.predict(source, "--gff", named, out=named)
    assert code == 3
    assert "is the input" in one_sentence(err)
    wrong = bench.write("b.gff", gff("c9 . CDS 1 9 . + 0 ID=a"))
    code, _, err = bench.embed(source, "--gff", wrong)
    assert code == 3
    assert "there is no sequence 'c9'" in one_sentence(err)


def test_training_and_splitting_read_genes_too(bench, tmp_path):
    some = proteins(8, seed=3)
    entries = "".join(
        genbank(gene, f"1..{len(gene)} gene={r.id}", name=f"E{n}")
        for n, r in enumerate(some)
        for gene in [("".join(map(CODON.get, r.sequence)) + "TAA")]
    )
    source, labels = bench.write("in.gb", entries), bench.write("l.csv", table(some, "id", "label"))
    found = read_labelled(source, labels)
    assert [(r.id, r.sequence, r.label) for r in found] == [(r.id, r.sequence, r.label) for r in some]
    code, out, err = run("split", source, "--labels", labels, "-o", "-", "--cluster-by", "kmer")
    assert code == 0, err
    assert [line.split(",")[0] for line in out.decode().splitlines()[1:]] == [r.id for r in some]
    rows = bench.write("in.csv", f"id,sequence,label\nc1,{GENE},oily\n")
    with pytest.raises(
        UsageError, match="makes several proteins of one record, and its label cannot be that"
    ):
        read_labelled(rows, None, translation=Translation("six-frame"))
    named = bench.write("six.csv", "id,label\nc1_1,oily\n")
    found = read_labelled(rows, named, translation=Translation("six-frame", min_orf=50))
    assert [(r.id, r.sequence, r.label) for r in found] == [("c1_1", PROTEIN, "oily")]


def test_what_was_translated_is_told_where_no_row_tells_it(make, caplog):
    caplog.set_level("INFO", "bioxfer")
    rows = f"id,sequence,label\na,{GENE},x\nb,{GENE[:-1]},y\nc,{PROTEIN},x\nd,{GENE[:-3]},y\ne,{GENE[1:]},y\n"
    path = make(rows, "in.csv")
    for read_all in (
        lambda how: read_labelled(path, None, translation=how),
        lambda how: read_to_split(path, translation=how),
        lambda how: Corpus.read([path], how),
    ):
        caplog.clear()
        read_all(Translation("cds"))
        (told,) = [each for each in caplog.records if "translat" in each.message]
        assert told.levelname == "WARNING"
        assert told.message == (
            f"{path}: 2 proteins translated, 1 of them with something odd (such as record 'd': no stop "
            f"codon); 3 records not translated (such as record 'b', line 3: its length, {len(GENE) - 1}, is "
            "not a multiple of three)"
        )
        caplog.clear()
        read_all(Translation("auto"))
        (told,) = [each for each in caplog.records if "translat" in each.message]
        assert told.levelname == "INFO"
        assert told.message.startswith(f"{path}: 4 proteins translated, ")
        assert told.message.endswith("; 1 record read as a protein")
        caplog.clear()
        read_all(Translation())
        assert "proteins translated" not in caplog.text
    Corpus.read([make(genbank(GENE, f"1..{len(GENE)} gene=a"))])
    assert caplog.records[-1].message.endswith("in.gb: 1 protein translated")


def test_a_corpus_of_genes_is_one_of_proteins(make):
    some = proteins(3)
    known = Corpus.read([make(fasta(some), "p.fasta")])
    found = Corpus.read([make(coding(some), "g.fasta")], Translation("cds"))
    assert found.sha256 == known.sha256
    with pytest.raises(UsageError, match=r"c\.txt has one protein a line, and these are not translated"):
        Corpus.read([make(GENE, "c.txt")], Translation("cds"))


def test_pretraining_reads_no_nucleotides_as_proteins_without_a_word(make, caplog):
    genes = make(coding(proteins(3)), "g.fasta")
    Corpus.read([genes])
    assert "record 'p0' (" in caplog.text
    assert "use --translate cds if it is a coding sequence" in caplog.text
    assert "(3 of 3 records look so)" in caplog.text
    rows = make("id,sequence,label\n" + "".join(f"{n},{GENE},{n}.5\n" for n in range(12)), "g.csv")
    for read_table in (read_test_proteins, read_source):
        caplog.clear()
        read_table(rows)
        assert caplog.messages == [
            f"{rows}: 12 of 12 records look like nucleotides where proteins are expected; --translate is for "
            "the corpus and --valid, so give a table of the proteins"
        ]


def test_pretraining_is_judged_on_the_proteins_of_genes(make):
    some = proteins(4)
    options = PretrainOptions(width=64, layers=1, batch_tokens=512, steps=1)
    judged = [
        pretrain([path], path.with_suffix(".safetensors"), options=options, translation=how, valid=path)
        for path, how in (
            (make(fasta(some), "p.fasta"), None),
            (make(coding(some), "g.fasta"), Translation("cds")),
        )
    ]
    assert judged[0]["validation"] == judged[1]["validation"]


def test_python_translates_as_the_command_line_does(toy_backbone):
    found = bx.embed([GENE, PROTEIN], model=toy_backbone, translation=bx.Translation("auto"))
    assert found.lengths == [len(PROTEIN)] * 2
    assert np.array_equal(found.vectors[0], found.vectors[1])
    assert found.messages[1] == "auto: read as a protein"
    gapped = f"{GENE[:9]}---{GENE[9:]}"
    for here, there in ((True, False), (False, True)):
        translation = bx.Translation("cds", degap=there)
        degapped = bx.embed([gapped], model=toy_backbone, degap=here, translation=translation)
        assert np.array_equal(degapped.vectors[0], found.vectors[0])
    with pytest.raises(UsageError, match="a GFF3 file goes with a file of sequences; give its path"):
        bx.embed([GENE], model=toy_backbone, translation=bx.Translation(gff="a.gff"))


@pytest.mark.parametrize("how", ["cds", "orf", "six-frame", "auto"])
def test_gaps_of_nucleotides_are_an_error_or_removed(how):
    record = SequenceRecord("g", f"{GENE[:9]}---{GENE[9:]}", source="a.fna", line=1)
    with pytest.raises(SequenceError, match=r"holds gaps \('-' at 10\).*use --degap"):
        list(translate([record], how, min_orf=3))
    found = list(translate([record], how, min_orf=3, degap=True))
    assert PROTEIN in [each.sequence for each in found]
    assert all(each.note.startswith("3 gaps removed; ") for each in found)


@pytest.mark.parametrize("gene", ["ATGGCTTGGTGA", "AUGUAA", "ATGRCYTGGAARRTYCTKGCTGARYTNGCNRAYTGA"])
def test_auto_knows_a_whole_coding_sequence_however_short_or_ambiguous(gene):
    (found,) = translate([SequenceRecord("g", gene)], "auto")
    assert "auto: nucleotides, a whole coding sequence" in found.note
    assert found.sequence == next(translate([SequenceRecord("g", gene)], "cds")).sequence


def test_transfer_refuses_several_proteins_of_one_sequence(bench):
    table = bench.write("t.csv", "id,sequence,label\na,MKV,x\n")
    ended = run(
        "transfer", table, "--source", table, "-o", bench.folder / "h.safetensors", "--translate", "six-frame"
    )
    assert ended.code == 2
    assert "makes several proteins of one sequence" in one_sentence(ended.err)
