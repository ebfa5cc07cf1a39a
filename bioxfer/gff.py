"""GFF3: where the coding sequences of a FASTA file are, told by a file beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bioxfer.annotated import CodingRegion, read_numbers
from bioxfer.errors import FormatError
from bioxfer.lines import decode, input_name, open_lines
from bioxfer.sequences import remove_white_space

__all__ = ["read_gff"]

# Features whose coding sequence may come in lines of different ids.
_TRANSCRIPTS = {"mRNA", "transcript", "primary_transcript", "V_gene_segment", "C_gene_segment"}

_SHIFTS = {".": "1", "0": "1", "1": "2", "2": "3"}  # GFF's phase, as GenBank's codon_start


@dataclass(slots=True)
class _Line:
    number: int
    start: int
    end: int
    strand: str
    phase: str
    said: dict[str, str]


def read_gff(path: str | os.PathLike[str]) -> dict[str, list[CodingRegion]]:
    """Read the coding sequences of a GFF3 file.

    Lines of type CDS belong together if they bear one ID; or, without an ID, one Parent; or, where each has
    an ID of its own, if one transcript is the Parent of all, and they do not overlap.

    Parameters
    ----------
    path : path-like
        GFF3, plain or compressed. What follows ``##FASTA`` is not read.

    Returns
    -------
    dict of str to list of CodingRegion
        By the name of the sequence that they lie on, in the file's order.

    Raises
    ------
    InputError, FormatError
        The file cannot be read, is no GFF3, or has no coding sequence.
    """
    source = input_name(path)
    groups: dict[tuple[str, str, str], list[_Line]] = {}
    transcripts: set[str] = set()
    for number, raw in open_lines(path)[1]:
        text = decode(raw).strip("\r\n")
        if text.startswith("##FASTA") or text.startswith(">"):
            break
        if not text.strip() or text.startswith("#"):
            continue
        cells = text.split("\t")
        if len(cells) != 9:
            raise FormatError(
                f"{source}, line {number}: {len(cells)} columns where GFF3 has 9, separated by tabs; give a "
                "GFF3 file"
            )
        said = _attributes(cells[8], cells[2], source, number)
        if cells[2] in _TRANSCRIPTS and "ID" in said:
            transcripts.add(said["ID"])
        if cells[2] != "CDS":
            continue
        line = _Line(number, *_span(cells, source, number), cells[6], cells[7], said)
        name = _unescape(cells[0])
        if "ID" in said:
            groups.setdefault((name, "ID", said["ID"]), []).append(line)
        elif "Parent" in said:
            for parent in said["Parent"].split(","):
                groups.setdefault((name, "Parent", parent), []).append(line)
        else:
            groups[name, "line", str(number)] = [line]
    if not groups:
        raise FormatError(f"{source} holds no line of type CDS; give the GFF3 file with the coding sequences")
    regions: dict[str, list[CodingRegion]] = {}
    for (name, _, _), found in _join_single(groups, transcripts).items():
        regions.setdefault(name, []).append(_read_group(found))
    return regions


def _attributes(text: str, kind: str, source: str, number: int) -> dict[str, str]:
    said = {}
    for each in text.split(";"):
        name, sign, value = each.strip().partition("=")
        if not name:
            continue
        if not sign:
            if kind == "CDS" and '"' in each:
                raise FormatError(
                    f"{source}, line {number}: {each.strip()[:30]!r} is an attribute of GTF; convert the "
                    "file to GFF3"
                )
            continue
        # Commas part the values of one attribute; those inside one are escaped.
        said[name] = value if name == "Parent" else _unescape(value)
    return said


def _span(cells: Sequence[str], source: str, number: int) -> tuple[int, int]:
    start, end = (int(cell) if cell.isascii() and cell.isdigit() else 0 for cell in cells[3:5])
    if not 1 <= start <= end:
        raise FormatError(
            f"{source}, line {number}: the feature reaches from {cells[3]!r} to {cells[4]!r}; both must be "
            "counted from 1, the smaller first"
        )
    if cells[6] not in ("+", "-"):
        raise FormatError(f"{source}, line {number}: the strand of a CDS is {cells[6]!r}; write + or -")
    return start, end


def _unescape(text: str) -> str:
    """Decode what GFF3 writes as % and two digits."""
    if "%" not in text:
        return text
    data = text.encode("utf-8", "surrogateescape")
    return decode(re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), data))


def _join_single(
    groups: dict[tuple[str, str, str], list[_Line]], transcripts: set[str]
) -> dict[tuple[str, str, str], list[_Line]]:
    """Join lines that have ids of their own, where one transcript holds them all and none overlap."""
    by_parent: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for key, found in groups.items():
        parent = found[0].said.get("Parent", "")
        if key[1] == "ID" and len(found) == 1 and parent in transcripts:
            by_parent.setdefault((key[0], parent), []).append(key)
    joined = dict(groups)
    for keys in by_parent.values():
        found = sorted((groups[key][0] for key in keys), key=lambda line: line.start)
        apart = all(a.end < b.start for a, b in pairwise(found))
        if len(keys) > 1 and apart and len({line.strand for line in found}) == 1:
            joined[keys[0]] = found
            for key in keys[1:]:
                del joined[key]
    return joined


def _read_group(found: Sequence[_Line]) -> CodingRegion:
    """Put the lines of one coding sequence into the order of reading."""
    backwards = {line.strand for line in found} == {"-"}
    mixed = len({line.strand for line in found}) > 1
    # Lines on both strands are trans-spliced, and only the file's order tells how.
    lines = list(found) if mixed else sorted(found, key=lambda line: line.start, reverse=backwards)
    first, said = lines[0], lines[0].said
    names = (said.get(key, "") for key in ("locus_tag", "protein_id", "ID", "Name", "gene"))
    low, high = _open_ends(said)
    trouble = ""
    if mixed:
        trouble = "its parts lie on both strands, and nothing tells their order"
    elif first.phase not in _SHIFTS:
        trouble = f"its phase is {first.phase!r}, not 0, 1 or 2"
    numbers = (
        {"trouble": trouble} if trouble else read_numbers(_SHIFTS[first.phase], said.get("transl_table", ""))
    )
    return CodingRegion(
        tuple(filter(None, (*names, said.get("Parent", "").split(",")[0]))),
        tuple((line.start - 1, line.end, line.strand) for line in lines),
        **numbers,
        open_start=high if backwards else low,
        open_end=low if backwards else high,
        exceptions=tuple(re.findall(r"\(pos:.*?,aa:\w+\)", said.get("transl_except", ""))),
        translation=remove_white_space(said.get("translation", "")).upper(),
        remarks=("marked as pseudo",) if said.get("pseudo") == "true" else (),
        line=first.number,
    )


def _open_ends(said: Mapping[str, str]) -> tuple[bool, bool]:
    """Tell whether a feature goes on before its start and after its end, as NCBI and Prodigal write it."""
    partial = said.get("partial", "")
    if re.fullmatch("[01][01]", partial):
        return partial[0] == "1", partial[1] == "1"
    return said.get("start_range", "").startswith("."), said.get("end_range", "").endswith(".")
