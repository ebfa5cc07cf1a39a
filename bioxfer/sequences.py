"""Protein sequences: the record that every stage passes on, and its cleaning.

The alphabet is that of the ESM family: the twenty amino acids and the five
letters X, B, Z, U and O. :func:`clean_protein` maps any text onto it, one
symbol for one character, so that a model sees as many tokens as there are
residues (`<mask>` typed into a file is six invalid characters, never a token).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bioxfer.errors import SequenceError, UsageError

__all__ = [
    "AMINO_ACIDS",
    "ORIGIN_COLUMNS",
    "RESIDUES",
    "CleanSequence",
    "OnInvalid",
    "Origin",
    "SequenceRecord",
    "clean_protein",
    "looks_like_nucleotides",
    "remove_gaps",
    "remove_white_space",
    "show_character",
    "tell_nucleotides",
]

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty amino acids of the standard genetic code."""

RESIDUES = AMINO_ACIDS + "XBZUO"
"""All symbols a clean sequence may hold: X any, B Asx, Z Glx, U Sec, O Pyl."""

OnInvalid = Literal["x", "error", "skip"]

ORIGIN_COLUMNS: dict[str, type[str] | type[int]] = {
    "source": str,
    "strand": str,
    "start": int,
    "end": int,
    "frame": int,
    "genetic_code": int,
}
"""Columns of a table that says where proteins are written, and their types."""

# ASCII only: a no-break space inside a sequence is a foreign character, and counted as one.
_WHITE_SPACE = dict.fromkeys(map(ord, " \t\n\r\v\f"))
_GAPS = dict.fromkeys(map(ord, "-."))
_GAP = re.compile(r"[-.]")
_INVALID = re.compile(f"[^{RESIDUES}{RESIDUES.lower()}]")

_NAMED_AT_MOST = 3  # invalid characters listed in a message before it says "..."
_NUCLEOTIDES = "ACGTUN"
_NUCLEOTIDE_SHARE = 0.95
_NUCLEOTIDE_LENGTH = 20  # shorter peptides of these letters alone are not rare


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in which nucleotide sequence a protein is written.

    Attributes
    ----------
    source : str
        Id of the nucleotide sequence.
    strand : str
        ``+``, ``-``, or ``mixed`` of exons on both; empty where nothing was translated.
    start, end : int or None
        First and last nucleotide, counted from 1 on the strand that the file holds, the stop codon
        included, as in GenBank; of joined exons the outermost.
    frame : int or None
        Of the first codon that was read: 1, 2 or 3 where it begins at the first, second or third
        nucleotide, or a multiple of three after it; -1, -2 and -3 are the same from the other end of the
        other strand.
    genetic_code : int or None
        NCBI's number of the table by which it was translated.
    oddities : tuple of str
        What a coding sequence should not have, or lacks.
    """

    source: str
    strand: str = ""
    start: int | None = None
    end: int | None = None
    frame: int | None = None
    genetic_code: int | None = None
    oddities: tuple[str, ...] = ()

    @property
    def cells(self) -> list[str | int | None]:
        """What a table says of it, under :data:`ORIGIN_COLUMNS`."""
        return [self.source, self.strand or None, self.start, self.end, self.frame, self.genetic_code]


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
    origin : Origin or None
        Of a protein that was translated, where from.

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
    origin: Origin | None = None

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
    text, removed = _without_gaps(text, record, degap=degap)
    notes += [removed] if removed else []
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


def remove_gaps(record: SequenceRecord, *, degap: bool) -> SequenceRecord:
    """Remove the gaps of an alignment, and say so in the record's note.

    Raises
    ------
    SequenceError
        The sequence holds gaps and `degap` is off.
    """
    text, removed = _without_gaps(record.sequence, record, degap=degap)
    if not removed:
        return record
    return replace(record, sequence=text, note="; ".join(filter(None, (record.note, removed))))


def _without_gaps(text: str, record: SequenceRecord, *, degap: bool) -> tuple[str, str]:
    gap = _GAP.search(text)
    if gap is None:
        return text, ""
    if not degap:
        raise SequenceError(
            f"{record.place}: the sequence holds gaps ({gap.group()!r} at {gap.start() + 1}), "
            "as an alignment does; use --degap to remove them"
        )
    ungapped = text.translate(_GAPS)
    return ungapped, _count(len(text) - len(ungapped), "gap") + " removed"


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
        "if it is a coding sequence, auto if it may be one"
    )


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
