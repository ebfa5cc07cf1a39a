"""Annotated nucleotides: the coding sequences that GenBank entries and GFF3 files name, as proteins.

An annotation may join exons, lie on the other strand, be partial, state its own genetic code, and except
single codons from it. All of that is read, what is odd stands in the note of the protein, and a coding
sequence that cannot be read keeps its row with the reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from bioxfer.codons import NO_NUCLEOTIDE, as_dna, read_coding, read_genetic_code, reverse_complement
from bioxfer.errors import FormatError, UsageError
from bioxfer.lines import decode
from bioxfer.sequences import Origin, SequenceRecord, remove_white_space

__all__ = [
    "CodingRegion",
    "TextLines",
    "name_regions",
    "parse_genbank",
    "read_numbers",
    "translate_regions",
]

_EXCEPTION = re.compile(r"\(pos:(?P<place>.*),aa:(?P<residue>\w+)\)")
_LENGTH = re.compile(r"\s(\d+) (?:bp|aa|rc)\s")
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class CodingRegion:
    """One coding sequence as it is annotated.

    Attributes
    ----------
    names : tuple of str
        What it may be called, the best first.
    parts : tuple of (int, int, str)
        In the order of reading: first nucleotide counted from 0, the one after the last, and strand.
    codon_start : int
        Nucleotide of the first part at which the first whole codon begins, from 1.
    table : int or None
        Genetic code that it states.
    open_start, open_end : bool
        Whether it goes on beyond the sequence.
    exceptions : tuple of str
        Codons that are read otherwise, as GenBank writes them: ``(pos:1..3,aa:Sec)``.
    translation : str
        The protein that the file states; empty if it states none.
    remarks : tuple of str
        What else the annotation says that is worth a word.
    line : int
        Line of the annotation, counted from 1.
    trouble : str
        Why it cannot be read; empty if it can.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[int, int, str], ...]
    codon_start: int = 1
    table: int | None = None
    open_start: bool = False
    open_end: bool = False
    exceptions: tuple[str, ...] = ()
    translation: str = ""
    remarks: tuple[str, ...] = ()
    line: int = 0
    trouble: str = ""


class TextLines:
    """Numbered lines as the text file that Biopython's parsers read.

    Attributes
    ----------
    number : int
        Line that was read last, counted from 1.
    """

    def __init__(self, lines: Iterable[tuple[int, bytes]]) -> None:
        self._lines = iter(lines)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")

    def readline(self) -> str:
        """Return the next line, its end made LF, and nothing after the last."""
        self.number, line = next(self._lines, (self.number, b""))
        return decode(line.rstrip(b"\r\n")) + "\n" if line else ""

    def read(self, size: int) -> str:
        """Return nothing: this is how the parsers tell text from bytes."""
        return ""


# --- GenBank -----------------------------------------------------------------------------------------


def parse_genbank(
    lines: Iterable[tuple[int, bytes]], source: str, *, table: int = 1, features: bool = True
) -> Iterator[SequenceRecord]:
    """Read GenBank entries.

    Parameters
    ----------
    lines : iterable of (int, bytes)
        What `open_lines` returns.
    source : str
        The file's name, for messages.
    table : int, optional
        Genetic code of coding sequences that state none.
    features : bool, optional
        Whether to read the coding sequences; else whole entries.

    Yields
    ------
    SequenceRecord
        The protein of each coding sequence, or one empty record of an entry without any, or the entry
        itself where it is a protein or asked for as a whole.

    Raises
    ------
    FormatError
        An entry is damaged or cut off.
    """
    from Bio import SeqIO

    begun: list[tuple[int, str]] = []
    handle = TextLines(_close_features(lines, begun))
    count = 0
    parse: Callable[..., Iterator[Any]] = SeqIO.parse
    try:
        for entry in _quietly(parse(handle, "genbank")):
            count += 1
            yield from _read_entry(entry, source, begun[-1], table, features)
    except FormatError:
        raise
    except Exception as error:  # its parser raises whatever a malformed line leads to
        raise FormatError(
            f"{source}, line {handle.number}: not a GenBank entry as it should be ({error}); mend the "
            "file or fetch it again"
        ) from error
    if count < len(begun):
        raise FormatError(
            f"{source}, line {begun[-1][0]}: a GenBank entry begins here and has no end; fetch the file again"
        )


def _quietly(entries: Iterator[Any]) -> Iterator[Any]:
    """Pass entries on without the warnings of Biopython's parser, whose causes are found and told here."""
    import warnings

    from Bio import BiopythonParserWarning

    while True:
        # Only while it parses: a filter set around a yield would hold for whoever asked for the entry.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiopythonParserWarning)
            entry = next(entries, None)
        if entry is None:
            return
        yield entry


def _close_features(
    lines: Iterable[tuple[int, bytes]], begun: list[tuple[int, str]]
) -> Iterator[tuple[int, bytes]]:
    """Pass lines on, note where entries begin, and let one without a sequence have an empty one."""
    has_sequence = True
    for number, line in lines:
        if line.startswith(b"LOCUS"):
            begun.append((number, decode(line)))
            has_sequence = False
        elif line.startswith((b"ORIGIN", b"CONTIG", b"WGS")):
            has_sequence = True
        elif line.startswith(b"//") and not has_sequence:
            yield number, b"ORIGIN\n"
        yield number, line


def _read_entry(
    entry: Any, source: str, locus: tuple[int, str], table: int, features: bool
) -> Iterator[SequenceRecord]:
    from Bio.Seq import UndefinedSequenceError

    line, first = locus
    name = entry.id if entry.id not in ("", ".", "<unknown id>") else entry.name
    try:
        text = str(entry.seq)
    except UndefinedSequenceError:
        text = ""
    stated = _LENGTH.search(first)
    if text and stated is not None and int(stated[1]) != len(text):
        raise FormatError(
            f"{source}, line {line}: entry {name!r} should have {stated[1]} letters and has {len(text)}; it "
            "is cut off or damaged, fetch it again"
        )
    title = f"{name} {entry.description}".rstrip(" .")
    whole = SequenceRecord(name, text, title, source, line)
    if entry.annotations.get("molecule_type") == "protein":
        yield whole
        return
    if not features:
        yield whole if text else _without(whole, "the entry has no sequence")
        return
    regions = [_read_feature(each) for each in entry.features if each.type == "CDS"]
    if not regions:
        trouble = "the entry has no coding sequence (CDS) in its features; see --translate six-frame"
        yield _without(whole, trouble)
        return
    yield from translate_regions(whole, regions, name_regions({name: regions})[name], table=table)


def _read_feature(feature: Any) -> CodingRegion:
    said = feature.qualifiers

    def value(name: str) -> str:
        return str(said.get(name, [""])[0]).strip()

    names = tuple(filter(None, map(value, ("locus_tag", "protein_id", "gene"))))
    remarks = [
        f"marked as {mark}" for mark in ("pseudo", "ribosomal_slippage", "trans_splicing") if mark in said
    ]
    if "pseudogene" in said:
        remarks.append("marked as pseudogene")
    if "exception" in said:  # RNA editing, say
        remarks.append(f"exception: {value('exception')}")
    given = CodingRegion(
        names,
        (),
        exceptions=tuple(map(str, said.get("transl_except", ()))),
        translation=remove_white_space(value("translation")).upper(),
        remarks=tuple(remarks),
    )
    return _place_feature(given, feature.location, value("codon_start"), value("transl_table"))


def _place_feature(given: CodingRegion, location: Any, codon_start: str, table: str) -> CodingRegion:
    from Bio.SeqFeature import AfterPosition, BeforePosition

    if location is None:
        return replace(given, trouble="its location cannot be read")
    if any(part.ref for part in location.parts):
        return replace(given, trouble="a part of it lies in another entry")
    try:
        parts = tuple((int(p.start), int(p.end), "-" if p.strand == -1 else "+") for p in location.parts)
    except TypeError:  # a position that is given as "?"
        return replace(given, trouble="its location is not known")
    first, last = location.parts[0], location.parts[-1]
    return replace(
        given,
        parts=parts,
        **read_numbers(codon_start or "1", table),
        open_start=isinstance(first.end, AfterPosition)
        if first.strand == -1
        else isinstance(first.start, BeforePosition),
        open_end=isinstance(last.start, BeforePosition)
        if last.strand == -1
        else isinstance(last.end, AfterPosition),
    )


def read_numbers(codon_start: str, table: str) -> dict[str, Any]:
    """Read where the first codon begins, and by which code."""
    if codon_start not in ("1", "2", "3"):
        return {"trouble": f"its codon_start is {codon_start!r}, not 1, 2 or 3"}
    if table and not (table.isascii() and table.isdigit()):
        return {"trouble": f"its genetic code is {table!r}, which is no number"}
    return {"codon_start": int(codon_start), "table": int(table) if table else None}


# --- proteins ----------------------------------------------------------------------------------------


def translate_regions(
    record: SequenceRecord, regions: Sequence[CodingRegion], names: Sequence[str], *, table: int = 1
) -> Iterator[SequenceRecord]:
    """Translate the annotated coding sequences of one nucleotide sequence.

    Parameters
    ----------
    record : SequenceRecord
        The sequence; where it is empty, the proteins are those that the annotation states.
    regions : sequence of CodingRegion
        R of them.
    names : sequence of str
        R ids.
    table : int, optional
        Genetic code of those that state none.

    Yields
    ------
    SequenceRecord
        R proteins, in order; one that cannot be read is empty, and its note says why.
    """
    text = as_dna(record.sequence)
    for region, name in zip(regions, names, strict=True):
        title = " ".join(dict.fromkeys((name, *region.names)))
        made = SequenceRecord(name, "", title, record.source, region.line or record.line)
        yield _translate_region(
            made, region, record.id, text, table if region.table is None else region.table
        )


def _translate_region(
    made: SequenceRecord, region: CodingRegion, source: str, text: str, table: int
) -> SequenceRecord:
    try:
        read_genetic_code(table)
    except UsageError as error:
        return _without(made, str(error), source)
    if region.trouble:
        return _without(made, region.trouble, source)
    first, last = min(p[0] for p in region.parts) + 1, max(p[1] for p in region.parts)
    strand = region.parts[0][2] if len({p[2] for p in region.parts}) == 1 else "mixed"
    count = f", joined from {len(region.parts)} parts" if len(region.parts) > 1 else ""
    note = f"annotated in {source}: {first}..{last} on strand {strand}{count}, genetic code {table}"
    origin = Origin(source, strand, first, last, _frame(region, len(text)), table)
    if not text:
        if not region.translation:
            return _without(made, f"{source} has no sequence, and the annotation states no protein", source)
        odd = ("no nucleotides, so the protein is the one that the annotation states", *region.remarks)
        origin = replace(origin, frame=None, oddities=odd)
        return replace(made, sequence=region.translation, note=", ".join((note, *odd)), origin=origin)
    if last > len(text):
        return _without(made, f"it reaches to {last}, beyond the {len(text)} nucleotides of {source}", source)
    coding = "".join(
        text[start:end] if side == "+" else reverse_complement(text[start:end])
        for start, end, side in region.parts
    )
    foreign = NO_NUCLEOTIDE.search(coding)
    if foreign is not None:
        return _without(made, f"{foreign.group()!r} in it is not a nucleotide", source)
    if len(coding) < region.codon_start + 2:
        return _without(made, "it has no whole codon", source)
    exceptions, unread = _read_exceptions(region)
    protein, odd_codons = read_coding(
        coding,
        table,
        codon_start=region.codon_start,
        open_start=region.open_start,
        open_end=region.open_end,
        exceptions=exceptions,
    )
    partial = [
        f"partial at its {end}"
        for end, is_open in (("start", region.open_start), ("end", region.open_end))
        if is_open
    ]
    skipped = [f"codon_start {region.codon_start}"] if region.codon_start > 1 else []
    otherwise = [f"{residue} at {place}" for place, residue in _named(exceptions, region.codon_start)]
    ranges = sorted(part[:2] for part in region.parts)
    overlap = ["its parts overlap"] * any(a[1] > b[0] for a, b in pairwise(ranges))
    seen = [*overlap, *odd_codons, *otherwise, *unread, *region.remarks]
    odd = (*partial, *skipped, *seen, *_compare(protein, region.translation))
    return replace(made, sequence=protein, note=", ".join((note, *odd)), origin=replace(origin, oddities=odd))


def _frame(region: CodingRegion, length: int) -> int | None:
    """Tell the frame of the first whole codon, as `Origin` counts them."""
    start, end, side = region.parts[0]
    shift = region.codon_start - 1
    return (start + shift) % 3 + 1 if side == "+" else -((length - end + shift) % 3 + 1)


def _read_exceptions(region: CodingRegion) -> tuple[dict[int, str], list[str]]:
    """Find the codons that are read otherwise: nucleotides before them, and what could not be read."""
    from Bio.Data.IUPACData import protein_letters_3to1_extended as letters

    known = {name.upper(): letter for name, letter in letters.items()} | {"TERM": "*", "OTHER": "X"}
    found, unread = {}, []
    for text in region.exceptions:
        read = _EXCEPTION.fullmatch(remove_white_space(text))
        places = (
            [_offset(region.parts, int(n) - 1) for n in re.findall(r"\d{1,12}", read["place"])]
            if read
            else []
        )
        residue = known.get(read["residue"].upper()) if read else None
        inside = [place for place in places if place is not None]
        if residue is None or not inside or (min(inside) - region.codon_start + 1) % 3:
            unread.append(f"transl_except {text} not understood")
        else:
            found[min(inside)] = residue
    return found, unread


def _offset(parts: Iterable[tuple[int, int, str]], place: int) -> int | None:
    """Count the coding nucleotides before one of the sequence."""
    before = 0
    for start, end, side in parts:
        if start <= place < end:
            return before + (place - start if side == "+" else end - 1 - place)
        before += end - start
    return None


def _named(exceptions: Mapping[int, str], codon_start: int) -> list[tuple[int, str]]:
    places = [
        ((offset - codon_start + 1) // 3 + 1, residue) for offset, residue in sorted(exceptions.items())
    ]
    return [(place, residue) for place, residue in places if residue != "*"]


def _compare(protein: str, stated: str) -> list[str]:
    if not stated or protein == stated:
        return []
    if len(protein) != len(stated):
        return [f"{len(protein)} residues where /translation has {len(stated)}"]
    places = [n for n, (a, b) in enumerate(zip(protein, stated, strict=True)) if a != b]
    named = ", ".join(f"{protein[n]} at {n + 1}, there {stated[n]}" for n in places[:_NAMED_AT_MOST])
    return [f"differs from /translation in {len(places)} ({named}{', ...' * (len(places) > _NAMED_AT_MOST)})"]


def _without(record: SequenceRecord, trouble: str, source: str | None = None) -> SequenceRecord:
    origin = Origin(record.id if source is None else source)
    return replace(record, sequence="", note=f"not translated: {trouble}", origin=origin)


def name_regions(regions: Mapping[str, Sequence[CodingRegion]]) -> dict[str, list[str]]:
    """Call each coding sequence by its best name that no other has, or else by its number.

    Parameters
    ----------
    regions : mapping of str to sequence of CodingRegion
        By the id of the sequence that they lie on.

    Returns
    -------
    dict of str to list of str
        Ids, distinct among those that are names.
    """
    counts = Counter(each for found in regions.values() for region in found for each in set(region.names))
    return {
        source: [
            next((each for each in region.names if counts[each] == 1), f"{source}_cds{number}")
            for number, region in enumerate(found, start=1)
        ]
        for source, found in regions.items()
    }
