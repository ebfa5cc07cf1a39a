"""Protein sequences: the record that every stage passes on, and its cleaning.

The alphabet is that of the ESM family: the twenty amino acids and the five
letters X, B, Z, U and O. :func:`clean_protein` maps any text onto it, one
symbol for one character, so that a model sees as many tokens as there are
residues (`<mask>` typed into a file is six invalid characters, never a token).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, get_args

from bioxfer.errors import SequenceError, UsageError

__all__ = [
    "AMINO_ACIDS",
    "RESIDUES",
    "CleanSequence",
    "OnInvalid",
    "SequenceRecord",
    "clean_protein",
    "looks_like_nucleotides",
    "read_genetic_code",
    "remove_white_space",
    "show_character",
    "tell_nucleotides",
    "translate_cds",
]

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty amino acids of the standard genetic code."""

RESIDUES = AMINO_ACIDS + "XBZUO"
"""All symbols a clean sequence may hold: X any, B Asx, Z Glx, U Sec, O Pyl."""

OnInvalid = Literal["x", "error", "skip"]

# ASCII only: a no-break space inside a sequence is a foreign character, and counted as one.
_WHITE_SPACE = dict.fromkeys(map(ord, " \t\n\r\v\f"))
_GAPS = dict.fromkeys(map(ord, "-."))
_GAP = re.compile(r"[-.]")
_INVALID = re.compile(f"[^{RESIDUES}{RESIDUES.lower()}]")

_NO_NUCLEOTIDE = re.compile("[^ACGTRYSWKMBDHVN]")

_NAMED_AT_MOST = 3  # invalid characters listed in a message before it says "..."
_NUCLEOTIDES = "ACGTUN"
_NUCLEOTIDE_SHARE = 0.95
_NUCLEOTIDE_LENGTH = 20  # shorter peptides of these letters alone are not rare


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One sequence as it was read.

    Attributes
    ----------
    id : str
        The header up to its first white space, verbatim.
    sequence : str
        The sequence as read without white space, otherwise untouched.
    description : str
        The whole header after ``>``, verbatim; the id for records of a table.
    source : str
        The file's name, for messages.
    line : int
        Line of the header (FASTA) or of the row (table), counted from 1; 0 if unknown.
    label, split, cluster : str or None
        What a table said in its columns of these names; None where it said nothing.
    note : str
        What became of the sequence after it was read (translated, say), for the message
        of the record's row; empty if it is as it was read.
    renamed_from : str
        The id as read, where another record bears it; empty if `id` is as read.

    Examples
    --------
    >>> SequenceRecord("P01542", "TTCCPSIVARSNFNVCRLPG", source="in.faa", line=3).place
    "record 'P01542' (in.faa, line 3)"
    """

    id: str
    sequence: str
    description: str = ""
    source: str = ""
    line: int = 0
    label: str | None = None
    split: str | None = None
    cluster: str | None = None
    note: str = ""
    renamed_from: str = ""

    @property
    def place(self) -> str:
        """The record's name and origin, as the start of a message."""
        origin = [self.source] if self.source else []
        if self.line:
            origin.append(f"line {self.line}")
        return f"record {self.id!r} ({', '.join(origin)})" if origin else f"record {self.id!r}"


@dataclass(frozen=True, slots=True)
class CleanSequence:
    """A sequence in the models' alphabet.

    Attributes
    ----------
    residues : str
        Upper case, symbols of :data:`RESIDUES` alone; what the alphabet lacks is X.
    skipped : bool
        True if there is nothing to compute: an empty sequence, or an invalid
        character under ``on_invalid="skip"``.
    message : str
        What was changed or why the record is skipped, for the record's row; empty if nothing.
    """

    residues: str
    skipped: bool
    message: str


def clean_protein(
    record: SequenceRecord, *, on_invalid: OnInvalid = "x", degap: bool = False
) -> CleanSequence:
    """Bring a protein sequence into the models' alphabet.

    White space and one final ``*`` (a translated stop codon) are removed, lower
    case becomes upper case, X B Z U O stay. Every other character is invalid:
    it becomes one X and is counted in the message.

    Parameters
    ----------
    record : SequenceRecord
        The record as read.
    on_invalid : {"x", "error", "skip"}
        Put X for an invalid character, refuse the record, or mark it as skipped.
    degap : bool
        Remove the gaps ``-`` and ``.`` of an alignment.

    Returns
    -------
    CleanSequence
        The residues, whether the record is skipped, and the message for its row.

    Raises
    ------
    SequenceError
        The sequence holds gaps and `degap` is off, or an invalid character
        under ``on_invalid="error"``.
    UsageError
        `on_invalid` is none of its choices.

    Examples
    --------
    >>> clean = clean_protein(SequenceRecord("a", "mkJvl7*"))
    >>> clean.residues
    'MKXVLX'
    >>> clean.message
    'one final * removed; 2 residues became X (J at 3, 7 at 6)'
    """
    if on_invalid not in get_args(OnInvalid):
        raise UsageError(f"on_invalid is {on_invalid!r}; choose from 'x', 'error' and 'skip'")
    notes = [f"renamed from {record.renamed_from!r}"] if record.renamed_from else []
    notes += [record.note] if record.note else []
    text = remove_white_space(record.sequence)
    gap = _GAP.search(text)
    if gap is not None:
        if not degap:
            raise SequenceError(
                f"{record.place}: the sequence holds gaps ({gap.group()!r} at {gap.start() + 1}), "
                "as an alignment does; use --degap to remove them"
            )
        ungapped = text.translate(_GAPS)
        notes.append(_count(len(text) - len(ungapped), "gap") + " removed")
        text = ungapped
    if text.endswith("*"):
        notes.append("one final * removed")
        text = text[:-1]
    if not text:
        # A note already says why nothing is left.
        empty = [] if record.note and not record.sequence else ["empty sequence"]
        return CleanSequence("", True, "; ".join(notes + empty))

    invalid = [(match.start() + 1, match.group()) for match in _INVALID.finditer(text)]
    if not invalid:
        return CleanSequence(text.upper(), False, "; ".join(notes))
    if on_invalid == "error":
        position, character = invalid[0]
        raise SequenceError(
            f"{record.place}: '{show_character(character)}' is not an amino acid (residue {position}); "
            "use --on-invalid x"
        )
    # Only ASCII letters are left for upper(), which would turn one 'ß' into two letters.
    residues = _INVALID.sub("X", text).upper()
    named = [f"{show_character(character)} at {position}" for position, character in invalid[:_NAMED_AT_MOST]]
    if len(invalid) > _NAMED_AT_MOST:
        named.append("...")
    where = f"({', '.join(named)})"
    if on_invalid == "skip":
        notes.append(f"{_count(len(invalid), 'invalid residue')} {where}")
        return CleanSequence(residues, True, "; ".join(notes))
    notes.append(f"{_count(len(invalid), 'residue')} became X {where}")
    return CleanSequence(residues, False, "; ".join(notes))


def looks_like_nucleotides(residues: str) -> bool:
    """Tell whether a sequence is DNA or RNA rather than protein.

    Parameters
    ----------
    residues : str
        A sequence, clean or not, in either case.

    Returns
    -------
    bool
        True if there are at least 20 symbols and at least 95% of them are A, C, G, T, U or N.

    Examples
    --------
    >>> looks_like_nucleotides("ATGGCCCTGTGGATGCGCCTCCTG"), looks_like_nucleotides("MALWMRLLPLLALLALWGPDPAAA")
    (True, False)
    """
    upper = residues.upper()
    count = sum(upper.count(symbol) for symbol in _NUCLEOTIDES)
    return len(upper) >= _NUCLEOTIDE_LENGTH and count >= _NUCLEOTIDE_SHARE * len(upper)


def tell_nucleotides(record: SequenceRecord) -> str:
    """Word the warning of a record that `looks_like_nucleotides`, with its place and the remedy."""
    return (
        f"{record.place} looks like nucleotides where a protein is expected; use --translate cds "
        "if it is a coding sequence"
    )


def translate_cds(record: SequenceRecord, *, table: int = 1) -> SequenceRecord:
    """Translate a coding sequence, from its first nucleotide to its last, into a protein.

    One final stop codon is dropped; a stop codon before the end becomes ``*``, which
    :func:`clean_protein` turns into X and counts. A codon that is ambiguous beyond one
    amino acid becomes X (or B, Z, J). Where the sequence ends in a stop codon it is taken
    for complete, so that another start codon of the table than ATG, first in it, becomes M
    as in the living cell. A sequence that is no coding sequence is not guessed at: the
    protein is empty and the note says why.

    Parameters
    ----------
    record : SequenceRecord
        DNA or RNA, IUPAC ambiguity codes included, in either case.
    table : int
        NCBI's number of the genetic code: 1 is the standard one, 2 that of vertebrate
        mitochondria, 11 that of bacteria.

    Returns
    -------
    SequenceRecord
        The same record with the protein for its sequence, and a note for its row.

    Raises
    ------
    UsageError
        There is no such genetic code.

    Examples
    --------
    >>> protein = translate_cds(SequenceRecord("cds", "ATGGCNTGGTGA"))
    >>> protein.sequence, protein.note
    ('MAW', 'translated from 12 nucleotides')
    >>> translate_cds(SequenceRecord("cut", "ATGGC")).note
    'not translated: its length, 5, is not a multiple of three'
    """
    codons, starts, stops = read_genetic_code(table)
    text = remove_white_space(record.sequence).upper().replace("U", "T")
    foreign = _NO_NUCLEOTIDE.search(text)
    if not text:
        return record
    if foreign is not None:
        shown = f"'{show_character(foreign.group())}' at {foreign.start() + 1}"
        return replace(record, sequence="", note=f"not translated: {shown} is not a nucleotide")
    if len(text) % 3:
        note = f"not translated: its length, {len(text)}, is not a multiple of three"
        return replace(record, sequence="", note=note)
    note = f"translated from {len(text)} nucleotides" + (f" by genetic code {table}" if table != 1 else "")
    parts = [text[place : place + 3] for place in range(0, len(text), 3)]
    complete = parts[-1] in stops
    if complete:
        parts.pop()
    if not parts:
        note += ", a stop codon alone"
    protein = [codons.get(codon, "X") for codon in parts]
    if complete and parts and parts[0] in starts and protein[0] != "M":
        note += f", start codon {parts[0]} read as M"
        protein[0] = "M"
    return replace(record, sequence="".join(protein), note=note)


@lru_cache(maxsize=4)
def read_genetic_code(table: int) -> tuple[Mapping[str, str], frozenset[str], frozenset[str]]:
    """Look a genetic code up in Biopython's copy of NCBI's tables.

    Returns
    -------
    codons : mapping of str to str
        Amino acid, or ``*``, of each codon, ambiguous ones included where their meaning is not.
    starts, stops : frozenset of str
        Codons that begin and end a protein; some codes have codons that both end it and mean a residue.

    Raises
    ------
    UsageError
        There is no such genetic code.
    """
    from itertools import product

    from Bio.Data.CodonTable import TranslationError, ambiguous_dna_by_id

    if table not in ambiguous_dna_by_id:
        known = ", ".join(map(str, sorted(ambiguous_dna_by_id)))
        raise UsageError(f"there is no genetic code {table}; NCBI numbers them {known}")
    code = ambiguous_dna_by_id[table]
    stops = frozenset(code.stop_codons)
    codons = {}
    for letters in product("ACGTRYSWKMBDHVN", repeat=3):
        codon = "".join(letters)
        try:
            codons[codon] = code.forward_table[codon]
        except (KeyError, TranslationError):  # a stop codon; or more than one meaning
            if codon in stops:
                codons[codon] = "*"
    return MappingProxyType(codons), frozenset(code.start_codons), stops


def remove_white_space(text: str) -> str:
    """Return the text without ASCII white space (blank, tab, line ends, form feed)."""
    return text.translate(_WHITE_SPACE)


def show_character(character: str) -> str:
    r"""Write a character so that a message stays readable and printable.

    Examples
    --------
    >>> [show_character(c) for c in ("J", "é", "\udce9")]  # the last: a byte that is not UTF-8
    ['J', 'U+00E9', 'byte 0xE9']
    """
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # where surrogateescape (PEP 383) keeps bytes that are not UTF-8
        return f"byte 0x{code - 0xDC00:02X}"
    return character if character.isascii() and character.isprintable() else f"U+{code:04X}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
