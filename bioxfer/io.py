"""Files in, files out: sequences and labels are read here, tables written in :mod:`bioxfer.output`.

Sequences come from FASTA, FASTQ, GenBank, or a CSV or TSV with the columns
``id,sequence[,label][,split]``, one record at a time. Compression (gzip, bzip2, xz,
Zstandard) is told by the first bytes, not by the name, and ``-`` is standard
input. Bytes that are not UTF-8 survive from header to table (PEP 383,
surrogateescape).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, dropwhile
from typing import Literal, get_args

from bioxfer.annotated import (
    CodingRegion,
    TextLines,
    name_regions,
    parse_genbank,
    translate_regions,
)
from bioxfer.codons import read_genetic_code
from bioxfer.errors import (
    FormatError,
    InputError,
    LabelError,
    UsageError,
)
from bioxfer.genes import Translation, translate
from bioxfer.gff import read_gff
from bioxfer.ids import OnDuplicate, make_unique
from bioxfer.lines import (
    BYTE_ORDER_MARK,
    decode,
    delimiters_for,
    input_name,
    open_lines,
    read_rows,
    split_header,
    table_suffix,
)
from bioxfer.output import TableWriter, check_output, publish, table_format
from bioxfer.sequences import Origin, SequenceRecord, remove_white_space

__all__ = [
    "Label",
    "OnDuplicate",
    "SequenceFormat",
    "TableWriter",
    "check_output",
    "iter_proteins",
    "iter_sequences",
    "match_labels",
    "publish",
    "read_labels",
    "read_sequences",
    "table_format",
]

SequenceFormat = Literal["auto", "fasta", "fastq", "genbank", "csv", "tsv"]

logger = logging.getLogger("bioxfer")

_NAMED_AT_MOST = 3  # ids listed in a message before it says "..."

# First bytes of what users hand over in place of a FASTA.
_FOREIGN = (
    (b"##gff", "a GFF3 file, which goes with a FASTA file as --gff"),
    (b"ID   ", "an EMBL or UniProt flat file"),
    (b"CLUSTAL", "a Clustal alignment"),
    (b"# STOCKHOLM", "a Stockholm alignment"),
    (b"#NEXUS", "a NEXUS file"),
    (b"HEADER    ", "a PDB structure"),
    (b"ATOM  ", "a PDB structure"),
    (b"data_", "an mmCIF structure"),
    (b"@HD\t", "a SAM alignment"),
    (b"@SQ\t", "a SAM alignment"),
    (b"<", "HTML or XML"),
    (b"{\\rtf", "an RTF document"),
    (b"{", "JSON"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"\x1f\x8b", "a file compressed twice"),
)


_SAM = tuple(magic for magic, what in _FOREIGN if magic.startswith(b"@"))


# --- sequences ---------------------------------------------------------------------------------------


def iter_sequences(
    path: str | os.PathLike[str],
    *,
    on_duplicate: OnDuplicate = "error",
    format: SequenceFormat = "auto",
    genetic_code: int = 1,
    features: bool = True,
) -> Iterator[SequenceRecord]:
    """Read sequences one by one, in the file's order.

    Parameters
    ----------
    path : path-like
        FASTA, FASTQ (its qualities are ignored), GenBank, or CSV/TSV with columns
        ``id,sequence[,label][,split]``, plain or compressed; ``-`` is standard input. A GenBank
        file gives the protein of each coding sequence that it annotates.
    on_duplicate : {"error", "rename"}
        Refuse a second record of the same id, or call it ``id_2``, ``id_3``, ...; the
        message of its row tells the old id. A later record that was called ``id_2``
        all along is renamed in its turn.
    format : {"auto", "fasta", "fastq", "genbank", "csv", "tsv"}
        Tell by the content, or insist.
    genetic_code : int
        Of annotated coding sequences that state none, by NCBI's number.
    features : bool
        Whether a GenBank file gives its proteins; else its whole entries.

    Yields
    ------
    SequenceRecord
        Memory holds one record and the latest ids. An empty file has no records.

    Raises
    ------
    InputError
        The file is missing or unreadable.
    FormatError
        It is not in the format, cut off or damaged.
    DuplicateIdError
        Two records have one id.
    UsageError
        An option is none of its choices.
    """
    if on_duplicate not in get_args(OnDuplicate):
        raise UsageError(f"on_duplicate is {on_duplicate!r}; choose from 'error' and 'rename'")
    if format not in get_args(SequenceFormat):
        raise UsageError(f"format is {format!r}; choose from {', '.join(get_args(SequenceFormat))}")
    read_genetic_code(genetic_code)
    # A missing file is an error here and now, not at the first record.
    if os.fspath(path) != "-" and not os.path.exists(path):
        raise InputError(f"no such file: {input_name(path)}; check the name and the folder")
    return make_unique(_parse_sequences(path, format, genetic_code, features), on_duplicate)


def read_sequences(
    path: str | os.PathLike[str],
    *,
    on_duplicate: OnDuplicate = "error",
    format: SequenceFormat = "auto",
) -> list[SequenceRecord]:
    r"""Read all sequences of a file; :func:`iter_sequences` has the details.

    Parameters
    ----------
    path : path-like
        FASTA, FASTQ, GenBank, CSV or TSV, plain or compressed; ``-`` is standard input.
    on_duplicate : {"error", "rename"}
        What to do with a second record of the same id.
    format : {"auto", "fasta", "fastq", "genbank", "csv", "tsv"}
        Tell by the content, or insist.

    Returns
    -------
    list of SequenceRecord
        In the file's order.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "crambin.fasta")
    ...     size = path.write_text(">sp|P01542|CRAM_CRAAB Crambin\nTTCCPSIVARSNFNVCRL\nPGTPEALCATYTG\n")
    ...     records = read_sequences(path)
    >>> records[0].id, len(records[0].sequence), records[0].line
    ('sp|P01542|CRAM_CRAAB', 31, 1)
    """
    return list(iter_sequences(path, on_duplicate=on_duplicate, format=format))


def iter_proteins(
    path: str | os.PathLike[str],
    translation: Translation | None = None,
    *,
    on_duplicate: OnDuplicate = "error",
    tell: bool = False,
) -> Iterator[SequenceRecord]:
    """Read sequences one by one, and translate them as they are read.

    Parameters
    ----------
    path : path-like
        What `iter_sequences` reads. With a GFF3 file it is read twice, so it must be a file.
    translation : Translation, optional
        How; not at all if not given.
    on_duplicate : {"error", "rename"}
        What to do with a second record of the same id.
    tell : bool, optional
        Log at the end what was translated and what was not, where no table has a row for each.

    Yields
    ------
    SequenceRecord
        At least one for each record of the file, in its order.

    Raises
    ------
    InputError
        A GFF3 file names a sequence that is not in the file, or the file is standard input.
    BioxferError
        As `iter_sequences`, `translate` and `read_gff` raise.
    """
    wanted = translation or Translation()
    records = _read_proteins(path, wanted, on_duplicate)
    return _tell_translated(records, input_name(path)) if tell else records


def _read_proteins(
    path: str | os.PathLike[str], wanted: Translation, on_duplicate: OnDuplicate
) -> Iterator[SequenceRecord]:
    code = wanted.genetic_code
    if wanted.gff is None:
        records = iter_sequences(
            path, on_duplicate=on_duplicate, genetic_code=code, features=not wanted.searches
        )
        return translate(records, wanted.how, table=code, min_orf=wanted.min_orf, degap=wanted.degap)
    if os.fspath(path) == "-" or (os.path.exists(path) and not os.path.isfile(path)):
        raise InputError("with --gff IN is read twice, which a stream does not allow; name a file")
    regions = read_gff(wanted.gff)
    # Read once for the ids alone, so that a wrong pair of files does not cost the work.
    absent = regions.keys() - {
        record.id for record in iter_sequences(path, on_duplicate=on_duplicate, features=False)
    }
    if absent:
        name = min(absent, key=lambda each: regions[each][0].line)
        raise InputError(
            f"{input_name(wanted.gff)}, line {regions[name][0].line}: there is no sequence {name!r} in "
            f"{input_name(path)}; their names must be equal letter by letter"
        )
    records = iter_sequences(path, on_duplicate=on_duplicate, features=False)
    return make_unique(_annotate(records, regions, input_name(wanted.gff), code), "rename")


def _tell_translated(records: Iterable[SequenceRecord], source: str) -> Iterator[SequenceRecord]:
    """Pass records on, and log what became of them if any is of nucleotides."""
    done = odd = failed = proteins = 0
    strange = wrong = ""
    for record in records:
        origin = record.origin
        if origin is not None and origin.start is not None:
            done += 1
            odd += bool(origin.oddities)
            if origin.oddities and not strange:
                strange = f"such as record {record.id!r}: {origin.oddities[0]}"
        elif origin is not None and not record.sequence:
            failed += 1
            reason = record.note.rpartition("not translated: ")[2]
            wrong = wrong or f"such as record {record.id!r}, line {record.line}: {reason}"
        else:
            proteins += bool(record.sequence)
        yield record
    if not done + failed:
        return
    told = f"{done} protein{'s' * (done != 1)} translated"
    told += f", {odd} of them with something odd ({strange})" if odd else ""
    told += f"; {failed} record{'s' * (failed > 1)} not translated ({wrong})" if failed else ""
    told += f"; {proteins} record{'s' * (proteins > 1)} read as a protein" if proteins else ""
    (logger.warning if failed else logger.info)("%s: %s", source, told)


def _annotate(
    records: Iterable[SequenceRecord], regions: dict[str, list[CodingRegion]], gff: str, code: int
) -> Iterator[SequenceRecord]:
    names = name_regions(regions)
    for record in records:
        if record.id in regions:
            yield from translate_regions(record, regions[record.id], names[record.id], table=code)
        else:
            note = f"not translated: {gff} has no coding sequence (CDS) on it"
            yield replace(record, sequence="", note=note, origin=Origin(record.id))


def _parse_sequences(
    path: str | os.PathLike[str], format: SequenceFormat, genetic_code: int, features: bool
) -> Iterator[SequenceRecord]:
    source = input_name(path)
    start, lines = open_lines(path)
    if not start:
        return
    if format == "fasta" or (format == "auto" and start.startswith(b">")):
        yield from _parse_fasta(lines, source)
    elif format == "genbank" or (format == "auto" and _is_genbank(start)):
        yield from parse_genbank(lines, source, table=genetic_code, features=features)
    elif format == "fastq" or (format == "auto" and start.startswith(b"@") and not start.startswith(_SAM)):
        yield from _parse_fastq(lines, source)
    elif format in ("csv", "tsv") or _is_sequence_table(path, start):
        delimiters = {"csv": ",", "tsv": "\t"}.get(format) or delimiters_for(path)
        yield from _parse_table(lines, source, delimiters)
    else:
        for magic, what in _FOREIGN:
            if start.startswith(magic):
                raise FormatError(f"{source} looks like {what}, not like FASTA; convert it to FASTA first")
        yield from _parse_fasta(lines, source)


def _is_genbank(start: bytes) -> bool:
    # The files of a release begin with a title.
    return start.startswith(b"LOCUS ") or b"Genetic Sequence Data Bank" in start.splitlines()[0]


def _is_sequence_table(path: str | os.PathLike[str], start: bytes) -> bool:
    first = decode(start.splitlines()[0])
    if "\0" in first:
        return False
    return bool(table_suffix(path)) or any("sequence" in split_header(first, each) for each in ",\t;")


def _parse_fasta(lines: Iterable[tuple[int, bytes]], source: str) -> Iterator[SequenceRecord]:
    header: bytes | None = None
    header_line = 0
    parts: list[bytes] = []
    amid = 0
    for number, line in lines:
        if line.startswith(BYTE_ORDER_MARK + b">"):  # joined files may carry a byte-order mark in their midst
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.startswith(b">"):
            if header is not None:
                yield _fasta_record(header, parts, source, header_line)
            header, header_line, parts = line[1:].rstrip(b"\r\n"), number, []
        elif header is not None:
            if b">" in line and b"<" not in line:
                amid += 1
                if amid <= _NAMED_AT_MOST:
                    logger.warning(
                        "%s, line %d: a '>' amid a sequence; if a record starts there, a line end is missing",
                        source,
                        number,
                    )
            parts.append(line)
        elif not line.isspace():
            text = decode(line).strip()
            raise FormatError(
                f"{source}, line {number}: {text[:30]!r} stands where the first '>' should; "
                "this is not FASTA, or its first header is lost"
            )
    if header is not None:
        yield _fasta_record(header, parts, source, header_line)
    if amid > _NAMED_AT_MOST:
        logger.warning("%s: %d more lines hold a '>' amid a sequence", source, amid - _NAMED_AT_MOST)


def _fasta_record(header: bytes, parts: list[bytes], source: str, line: int) -> SequenceRecord:
    # Split as bytes: to str.split, U+00A0 and U+0085 inside an id would be white space too.
    identifier = decode(re.split(rb"[ \t\v\f]", header, maxsplit=1)[0])
    if not identifier:
        raise FormatError(f"{source}, line {line}: no id after '>'; a record's id must follow it at once")
    sequence = remove_white_space(decode(b"".join(parts)))
    return SequenceRecord(identifier, sequence, decode(header), source, line)


def _parse_fastq(lines: Iterable[tuple[int, bytes]], source: str) -> Iterator[SequenceRecord]:
    from Bio.SeqIO.QualityIO import FastqGeneralIterator

    parse: Callable[..., Iterator[tuple[str, str, str]]] = FastqGeneralIterator
    first = next(dropwhile(lambda each: each[1].isspace(), lines))
    handle, line = TextLines(chain([first], lines)), first[0]
    try:
        for title, letters, _ in parse(handle):
            identifier = re.split(r"[ \t\v\f]", title, maxsplit=1)[0]
            if not identifier:
                raise FormatError(
                    f"{source}, line {line}: no id after '@'; a record's id must follow it at once"
                )
            note = "FASTQ qualities ignored" if letters else ""
            yield SequenceRecord(identifier, letters, title, source, line, note=note)
            line = handle.number  # its parser has read the next header by now
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{source}, line {line}: no whole FASTQ record ({str(error).rstrip('.')}); the file is cut off "
            "or damaged, fetch it again"
        ) from error


def _parse_table(
    lines: Iterable[tuple[int, bytes]], source: str, delimiters: str
) -> Iterator[SequenceRecord]:
    for line, row in read_rows(
        lines, source, delimiters, required=("id", "sequence"), optional=("label", "split", "cluster")
    ):
        identifier = row["id"]
        if not identifier.strip():
            raise FormatError(f"{source}, line {line}: the id is empty; give every row an id")
        yield SequenceRecord(
            identifier,
            remove_white_space(row["sequence"]),
            identifier,
            source,
            line,
            row.get("label") or None,
            row.get("split") or None,
            row.get("cluster") or None,
        )


# --- labels ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Label:
    """What a label table says of one id.

    Attributes
    ----------
    label : str
        Verbatim: ``NA``, ``007`` and ``1e5`` stay what they are.
    split : str or None
        The cell of the split column; None if there is no such column or it is empty.
    line : int
        Line of the row in its file, counted from 1.
    """

    label: str
    split: str | None
    line: int


def read_labels(
    path: str | os.PathLike[str],
    *,
    id_column: str = "id",
    label_column: str = "label",
    split_column: str = "split",
) -> dict[str, Label]:
    """Read a table of labels, CSV or TSV, plain or compressed.

    Parameters
    ----------
    path : path-like
        The table; ``-`` is standard input.
    id_column, label_column : str
        Names of columns that must be there.
    split_column : str
        Name of a column that may be there.

    Returns
    -------
    dict of str to Label
        By id, in the file's order. A row with an empty label is left out: its
        record has no label, and :func:`match_labels` counts it so.

    Raises
    ------
    LabelError
        A column is missing, an id is empty, or an id has two different labels or splits.
    InputError, FormatError
        The file cannot be read.
    """
    source = input_name(path)
    _, lines = open_lines(path)
    labels: dict[str, Label] = {}
    rows = read_rows(
        lines,
        source,
        delimiters_for(path),
        required=(id_column, label_column),
        optional=(split_column,),
        header_error=LabelError,
    )
    for line, row in rows:
        identifier, text = row[id_column], row[label_column]
        if not identifier.strip():
            raise LabelError(f"{source}, line {line}: the id is empty; give every row an id")
        if not text:
            continue
        label = Label(text, row.get(split_column) or None, line)
        first = labels.setdefault(identifier, label)
        if (first.label, first.split) != (label.label, label.split):
            raise LabelError(
                f"{source}, line {line}: id {identifier!r} is {_describe(label)} here and "
                f"{_describe(first)} in line {first.line}; keep one of the rows"
            )
    return labels


def _describe(label: Label) -> str:
    return repr(label.label) if label.split is None else f"{label.label!r} in split {label.split!r}"


def match_labels(
    records: Iterable[SequenceRecord], labels: dict[str, Label], *, source: str
) -> tuple[list[SequenceRecord], str]:
    """Give each record the label of its id.

    Parameters
    ----------
    records : iterable of SequenceRecord
        The sequences.
    labels : dict of str to Label
        What :func:`read_labels` returns.
    source : str
        The label table's name, for messages.

    Returns
    -------
    matched : list of SequenceRecord
        The records that have a label, in their order, `label` and `split` filled in.
    report : str
        How many fit, and the first names of those on either side that do not.

    Raises
    ------
    LabelError
        No id is on both sides.

    Examples
    --------
    >>> records = [SequenceRecord("a", "MKV"), SequenceRecord("b", "MLL")]
    >>> matched, report = match_labels(records, {"b": Label("x", None, 2)}, source="labels.csv")
    >>> report
    '1 of 2 records have a label in labels.csv; 1 record without a label (a)'
    """
    matched, without, seen = [], [], set()
    for record in records:
        label = labels.get(record.id)
        if label is None:
            without.append(record.id)
        else:
            seen.add(record.id)
            matched.append(replace(record, label=label.label, split=label.split))
    unused = [identifier for identifier in labels if identifier not in seen]
    if not matched:
        raise LabelError(
            f"none of {len(without)} records has a label in {source}: the records are called "
            f"{_first(without)}, the labels {_first(unused)}; ids must be equal letter by letter"
        )
    notes = [f"{len(matched)} of {len(matched) + len(without)} records have a label in {source}"]
    if without:
        notes.append(f"{len(without)} record{'s' * (len(without) > 1)} without a label ({_first(without)})")
    if unused:
        notes.append(f"{len(unused)} label{'s' * (len(unused) > 1)} without a record ({_first(unused)})")
    return matched, "; ".join(notes)


def _first(ids: Sequence[str]) -> str:
    named = ", ".join(ids[:_NAMED_AT_MOST]) or "nothing"
    return f"{named}, ..." if len(ids) > _NAMED_AT_MOST else named
