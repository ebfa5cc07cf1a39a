"""Genes: from nucleotides to proteins, and where each protein is written.

:func:`translate` reads coding sequences from end to end, transcripts by their longest open reading frame,
and contigs in six frames or by gene calls. It never guesses without a word: what was done, and what was odd,
stands in the note of each protein's record, and its :class:`~bioxfer.sequences.Origin` says where it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bioxfer.codons import (
    LETTERS,
    NO_NUCLEOTIDE,
    as_dna,
    code_arrays,
    count_ambiguous,
    read_coding,
    read_genetic_code,
    reverse_complement,
)
from bioxfer.errors import MissingExtraError, UsageError
from bioxfer.ids import make_unique
from bioxfer.sequences import (
    Origin,
    SequenceRecord,
    looks_like_nucleotides,
    remove_gaps,
    show_character,
)

__all__ = [
    "MIN_ORF",
    "How",
    "Translation",
    "find_origins",
    "translate",
    "translate_cds",
]

How = Literal["off", "auto", "cds", "orf", "six-frame", "genes"]

MIN_ORF = 30
"""Residues of the shortest open reading frame that six frames are searched for; chance makes shorter ones."""

_SEARCHING = ("orf", "six-frame", "genes")  # ways that look for proteins where no annotation says them
_SEVERAL = ("six-frame", "genes")  # ways that make several proteins of one record

# Places of the letters in LETTERS, by their bytes; and of their complements.
_PLACES = np.zeros(256, dtype=np.int16)
_PLACES[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = np.arange(len(LETTERS))
_OPPOSITE = np.array([LETTERS.index(letter) for letter in reverse_complement(LETTERS)[::-1]], dtype=np.int16)


@dataclass(frozen=True, slots=True)
class Translation:
    """How the sequences of a file become proteins.

    Attributes
    ----------
    how : {"off", "auto", "cds", "orf", "six-frame", "genes"}
        As in `translate`.
    genetic_code : int
        NCBI's number; an annotated coding sequence may state its own.
    min_orf : int
        Residues of the shortest open reading frame of six frames.
    gff : path, optional
        GFF3 file that says where the coding sequences are.
    degap : bool
        Remove gaps before anything is read.

    Raises
    ------
    UsageError
        An option is none of its choices, or two contradict each other.
    """

    how: How = "off"
    genetic_code: int = 1
    min_orf: int = MIN_ORF
    gff: str | os.PathLike[str] | None = None
    degap: bool = False

    def __post_init__(self) -> None:
        _check(self.how, self.genetic_code, self.min_orf)
        if self.gff is not None and self.searches:
            raise UsageError(
                f"--gff says where the coding sequences are, and --translate {self.how} looks for them "
                "itself; leave one of the two out"
            )

    @property
    def searches(self) -> bool:
        """Whether proteins are looked for, whatever an annotation says."""
        return self.how in _SEARCHING

    @property
    def several(self) -> bool:
        """Whether one record may become several proteins."""
        return self.how in _SEVERAL

    @property
    def traced(self) -> bool:
        """Whether tables say where proteins are written, of whatever file."""
        return self.how != "off" or self.gff is not None


def _check(how: str, table: int, min_orf: int) -> None:
    if how not in get_args(How):
        raise UsageError(f"how to translate is {how!r}; choose from {', '.join(get_args(How))}")
    read_genetic_code(table)
    if how == "genes" and table != 1:
        raise UsageError(
            f"gene calls bring their own genetic code, 11 or 4, as Prodigal finds it; leave code {table} out"
        )
    if min_orf < 1:
        raise UsageError(f"the shortest open reading frame is {min_orf} residues; choose 1 or more")


def find_origins(
    records: Iterable[SequenceRecord], translation: Translation | None = None
) -> tuple[bool, Iterator[SequenceRecord]]:
    """Tell whether a table of these records says where they are written, and give all of them.

    Parameters
    ----------
    records : iterable of SequenceRecord
        Of one file; the first is read at once.
    translation : Translation, optional
        How they were translated.

    Returns
    -------
    origins : bool
        True if `translation` says so, or the first record has an `Origin`, as those of an annotated file.
    records : iterator of SequenceRecord
        All of them.
    """
    drawn = iter(records)
    begun = list(islice(drawn, 1))
    traced = translation is not None and translation.traced
    return traced or any(record.origin is not None for record in begun), chain(begun, drawn)


def translate(
    records: Iterable[SequenceRecord],
    how: How = "auto",
    *,
    table: int = 1,
    min_orf: int = MIN_ORF,
    degap: bool = False,
) -> Iterator[SequenceRecord]:
    """Turn nucleotide sequences into proteins.

    A record that cannot be translated keeps its place, with an empty sequence and a note that says why. A
    record that has an origin already, as from an annotated file, passes as it is.

    Parameters
    ----------
    records : iterable of SequenceRecord
        DNA or RNA, IUPAC ambiguity codes included, in either case; read as they are needed.
    how : {"auto", "cds", "orf", "six-frame", "genes", "off"}
        ``cds``: a coding sequence from its first nucleotide to its last, see `translate_cds`.

        ``orf``: the longest open reading frame of both strands. A frame lies between two stop codons, or
        a stop codon and the end of the sequence; it begins at the first codon there that the table reads
        both as a start and as M (ATG), or, if there is none, at its first other start codon, which then
        is M too. Among equally long ones, that on the forward strand, then the first. A codon that may
        end a protein is taken to do so. (On 1,500 made transcripts with random leaders this found the
        true protein in 74%, and in 47% where rarer starts were taken like ATG.)

        ``six-frame``: every such frame of `min_orf` residues and more, by its start; the proteins of
        ``contig`` are ``contig_1``, ``contig_2``, ... Those that share their end are one.

        ``genes``: what Prodigal calls genes, with its models for metagenomes, so that each record is
        judged by itself; they bring their own genetic code, 11 or 4. Named as above. Needs the package
        ``pyrodigal``.

        ``auto``: by the letters of each record. What has nothing but IUPAC codes of nucleotides, with a
        start codon, a stop codon and none between, is read as ``cds``; other nucleotides
        (`bioxfer.sequences.looks_like_nucleotides`) as ``orf``; and proteins stay. Each note says which.
    table : int
        NCBI's number of the genetic code.
    min_orf : int
        Residues of the shortest open reading frame of six frames.
    degap : bool
        Remove the gaps ``-`` and ``.`` of an alignment beforehand.

    Returns
    -------
    iterator of SequenceRecord
        Proteins in the records' order, each with its `Origin`; ids are distinct if they were.

    Raises
    ------
    UsageError
        An option is none of its choices.
    MissingExtraError
        Genes without the package that calls them.
    SequenceError
        A sequence holds gaps and `degap` is off.

    Examples
    --------
    >>> (protein,) = translate([SequenceRecord("mrna", "ccgATGGCUUGGUGAcc")], "orf")
    >>> protein.sequence, protein.origin.start, protein.origin.end, protein.origin.frame
    ('MAW', 4, 15, 1)
    """
    _check(how, table, min_orf)
    if how == "off":
        return iter(records)
    records = map(partial(remove_gaps, degap=degap), records)
    if how in _SEVERAL:
        finder = _make_caller() if how == "genes" else None
        found = (protein for record in records for protein in _find_several(record, table, min_orf, finder))
        # A contig a_1 without a frame keeps its id, which the first frame of a contig a has too.
        return make_unique(found, "rename")
    one = {"cds": translate_cds, "orf": _translate_longest, "auto": _translate_auto}[how]
    return (record if record.origin is not None else one(record, table=table) for record in records)


# --- coding sequences --------------------------------------------------------------------------------


def translate_cds(record: SequenceRecord, *, table: int = 1) -> SequenceRecord:
    """Translate a coding sequence, from its first nucleotide to its last, into a protein.

    One final stop codon is dropped; a stop codon before the end becomes ``*``, which
    `clean_protein` turns into X and counts. A codon that is ambiguous beyond one
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
    stops = read_genetic_code(table)[2]
    text, trouble = _nucleotides(record)
    if not trouble and len(text) % 3:
        trouble = f"its length, {len(text)}, is not a multiple of three"
    if trouble:
        return _untranslated(record, trouble)
    if not text:
        return record
    whole = text[-3:] in stops
    # Of a sequence that is cut off, the true start may lie before it.
    protein, oddities = read_coding(text, table, open_start=not whole)
    if not whole and text[:3] not in read_genetic_code(table)[1]:
        oddities = ["no start codon", *oddities]
    note = f"translated from {len(text)} nucleotides{_by_code(table)}"
    return _protein(record, protein, Origin(record.id, "+", 1, len(text), 1, table, tuple(oddities)), note)


def _nucleotides(record: SequenceRecord) -> tuple[str, str]:
    """Return a sequence as upper case DNA, and what it is not one for; that is empty if it is."""
    text = as_dna(record.sequence)
    foreign = NO_NUCLEOTIDE.search(text)
    if foreign is None:
        return text, ""
    return text, f"'{show_character(foreign.group())}' at {foreign.start() + 1} is not a nucleotide"


def _untranslated(record: SequenceRecord, trouble: str) -> SequenceRecord:
    note = "; ".join(filter(None, (record.note, f"not translated: {trouble}")))
    return replace(record, sequence="", note=note, origin=Origin(record.id))


def _protein(record: SequenceRecord, protein: str, origin: Origin, note: str) -> SequenceRecord:
    note = ", ".join((note, *origin.oddities))
    note = "; ".join(filter(None, (record.note, note)))
    return replace(record, sequence=protein, note=note, origin=origin)


def _by_code(table: int) -> str:
    return f" by genetic code {table}" if table != 1 else ""


# --- open reading frames -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Frame:
    """Codons of one of six frames, and the open reading frames in it.

    Attributes
    ----------
    strand : str
        ``+`` or ``-``.
    shift : int
        Nucleotides before the first codon.
    residues : bytes
        One a codon; ``*`` for every codon that may end a protein.
    begins, ends : ndarray of int
        First codon of each open reading frame, and the codon after its last.
    """

    strand: str
    shift: int
    residues: bytes
    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def origin(self, number: int, record: SequenceRecord, text: str, table: int) -> tuple[str, Origin]:
        """Return one of the proteins and its origin, in the whole sequence as clean text."""
        begin, end = int(self.begins[number]), int(self.ends[number])
        protein = self.residues[begin:end].decode()
        stopped = end < len(self.residues)
        first, last = self.shift + 3 * begin + 1, self.shift + 3 * (end + stopped)
        if self.strand == "-":
            first, last = len(text) + 1 - last, len(text) + 1 - first
        oddities = []
        if protein[0] != "M":
            codon = text[first - 1 : first + 2] if self.strand == "+" else text[last - 3 : last]
            codon = codon if self.strand == "+" else reverse_complement(codon)
            oddities.append(f"start codon {codon} read as M")
            protein = "M" + protein[1:]
        if not stopped:
            oddities.append("no stop codon")
        frame = self.shift + 1 if self.strand == "+" else -self.shift - 1
        odd = (*oddities, *count_ambiguous(protein))
        return protein, Origin(record.id, self.strand, first, last, frame, table, odd)


def _six_frames(text: str, table: int) -> Iterator[_Frame]:
    residues, starts, stops = code_arrays(table)
    forward = _PLACES[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
    for strand, letters in (("+", forward), ("-", _OPPOSITE[forward][::-1])):
        for shift in range(min(3, len(letters))):
            count = (len(letters) - shift) // 3
            codons = letters[shift : shift + 3 * count].reshape(count, 3)
            number = (codons[:, 0] * 15 + codons[:, 1]) * 15 + codons[:, 2]
            ended = np.flatnonzero(stops[number])
            # One open stretch before each stop codon, and one after the last.
            opened, closed = np.append(0, ended + 1), np.append(ended, count)
            any_start = _first_in(np.flatnonzero(starts[number]), opened, count)
            usual = _first_in(np.flatnonzero(starts[number] & (residues[number] == ord("M"))), opened, count)
            begins = np.where(usual < closed, usual, any_start)
            open_here = begins < closed
            yield _Frame(strand, shift, residues[number].tobytes(), begins[open_here], closed[open_here])


def _first_in(
    places: npt.NDArray[np.int64], opened: npt.NDArray[np.int64], none: int
) -> npt.NDArray[np.int64]:
    """Return the first of some places at or after each stretch's begin; `none` if there is none."""
    return np.append(places, none)[np.searchsorted(places, opened)]


def _translate_longest(record: SequenceRecord, *, table: int) -> SequenceRecord:
    text, trouble = _nucleotides(record)
    if trouble:
        return _untranslated(record, trouble)
    if not text:
        return record
    best: tuple[str, Origin] | None = None
    for frame in _six_frames(text, table):
        if not len(frame.begins):
            continue
        lengths = frame.ends - frame.begins
        # argmax is the first, which of the other strand lies last on this one
        number = int(np.argmax(lengths))
        if frame.strand == "-":
            number = len(lengths) - 1 - int(np.argmax(lengths[::-1]))
        found = frame.origin(number, record, text, table)
        if best is None or _rank(found) < _rank(best):
            best = found
    if best is None:
        return _untranslated(record, f"no open reading frame in its {len(text)} nucleotides")
    protein, origin = best
    return _protein(record, protein, origin, f"longest open reading frame, {_place(origin)}")


def _rank(found: tuple[str, Origin]) -> tuple[int, str, int]:
    protein, origin = found
    return -len(protein), origin.strand, origin.start or 0


def _place(origin: Origin) -> str:
    code = f", genetic code {origin.genetic_code}" if origin.genetic_code != 1 else ""
    return f"{origin.start}..{origin.end} on strand {origin.strand}{code}"


def _translate_auto(record: SequenceRecord, *, table: int) -> SequenceRecord:
    text, trouble = _nucleotides(record)
    if not text:
        return record
    codons, starts, stops = read_genetic_code(table)
    inner = (text[place : place + 3] for place in range(3, len(text) - 3, 3))
    # No protein has only the letters that nucleotides have, and such codons at its ends.
    whole = (
        not trouble
        and len(text) % 3 == 0
        and text[:3] in starts
        and text[-3:] in stops
        and all(codons.get(codon) != "*" for codon in inner)
    )
    if not whole and (trouble or not looks_like_nucleotides(text)):
        note = "; ".join(filter(None, (record.note, "auto: read as a protein")))
        return replace(record, note=note, origin=Origin(record.id))
    if whole:
        found, said = translate_cds(record, table=table), "a whole coding sequence"
    else:
        found, said = _translate_longest(record, table=table), "no whole coding sequence"
    told = found.note[len(record.note) + 2 :] if record.note else found.note
    note = "; ".join(filter(None, (record.note, f"auto: nucleotides, {said}", told)))
    return replace(found, note=note)


# --- several proteins of one record ------------------------------------------------------------------


def _find_several(
    record: SequenceRecord, table: int, min_orf: int, finder: Any | None
) -> Iterator[SequenceRecord]:
    text, trouble = _nucleotides(record)
    if trouble:
        yield _untranslated(record, trouble)
        return
    if not text:
        yield record
        return
    if finder is None:
        found, kind = _find_frames(record, text, table, min_orf), "open reading frame"
        trouble = f"no open reading frame of {min_orf} or more residues in its {len(text)} nucleotides"
    else:
        found, kind = _call_genes(record, text, finder), "gene"
        trouble = f"no gene was called in its {len(text)} nucleotides"
    if not found:
        yield _untranslated(record, trouble)
    for number, (protein, origin) in enumerate(found, start=1):
        made = replace(record, id=f"{record.id}_{number}")
        yield _protein(made, protein, origin, f"{kind} {number} of {len(found)}, {_place(origin)}")


def _find_frames(record: SequenceRecord, text: str, table: int, min_orf: int) -> list[tuple[str, Origin]]:
    found = [
        frame.origin(number, record, text, table)
        for frame in _six_frames(text, table)
        for number in np.flatnonzero(frame.ends - frame.begins >= min_orf).tolist()
    ]
    return sorted(found, key=lambda each: (each[1].start or 0, each[1].end or 0, each[1].strand))


def _make_caller() -> Any:
    try:
        import pyrodigal
    except ImportError as error:
        raise MissingExtraError(
            "gene calls need a package of their own: pip install 'bioxfer[genes]'"
        ) from error
    return pyrodigal.GeneFinder(meta=True)


def _call_genes(record: SequenceRecord, text: str, finder: Any) -> list[tuple[str, Origin]]:
    found = []
    for gene in finder.find_genes(text):
        strand, table = "+" if gene.strand > 0 else "-", int(gene.translation_table)
        first, last = int(gene.begin), int(gene.end)
        coding = text[first - 1 : last]
        if strand == "-":
            coding = reverse_complement(coding)
        left, right = bool(gene.partial_begin), bool(gene.partial_end)
        open_start, open_end = (left, right) if strand == "+" else (right, left)
        protein, oddities = read_coding(coding, table, open_start=open_start, open_end=open_end)
        oddities = [*(["its start lies outside"] if open_start else []), *oddities]
        oddities += ["its end lies outside"] if open_end else []
        frame = (first - 1) % 3 + 1 if strand == "+" else -((len(text) - last) % 3 + 1)
        found.append((protein, Origin(record.id, strand, first, last, frame, table, tuple(oddities))))
    return found
