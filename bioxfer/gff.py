"""GFF3: where the coding sequences of a FASTA file are, told by a file beside it."""

from __future__ import annotations

import os
import re
from collections import Counter
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

_TELLING = ("locus_tag", "protein_id", "Name")  # names of a coding sequence, not of a line

# All that is read of the attributes; those of a large genome would fill the memory.
_READ = {
    *("ID", "Parent", "Is_circular", "gene", "part", "partial", "start_range", "end_range", "pseudo"),
    *("exception", "transl_table", "transl_except", "translation", *_TELLING),
}

_MODEL_CODE = re.compile(r"\btransl_table=(\d+)")

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
    an ID of its own, if one transcript is the Parent of all, they do not overlap, and no name (locus_tag,
    protein_id, Name) tells them apart. They are read in the order of their places, unless ``part=`` tells
    another, or the sequence is circular and they lie on both sides of its first letter. Their genetic code is
    that of ``transl_table=``, or of the comment ``# Model Data:`` that Prodigal writes above them.

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
    found: list[tuple[str, _Line]] = []
    transcripts: set[str] = set()
    circles: dict[str, int] = {}  # letters of circular sequences
    code = ""  # that Prodigal states above the genes of each sequence
    for number, raw in open_lines(path)[1]:
        text = decode(raw).strip("\r\n")
        if text.startswith("##FASTA") or text.startswith(">"):
            break
        if text.startswith("# Model Data:"):
            stated = _MODEL_CODE.search(text)
            code = stated[1] if stated else ""
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
        name = _unescape(cells[0])
        if said.get("Is_circular") == "true" and cells[4].isascii() and cells[4].isdigit():
            circles[name] = int(cells[4])
        if cells[2] == "CDS":
            if code:
                said.setdefault("transl_table", code)
            found.append((name, _Line(number, *_span(cells, source, number), cells[6], cells[7], said)))
    if not found:
        raise FormatError(f"{source} holds no line of type CDS; give the GFF3 file with the coding sequences")
    regions: dict[str, list[CodingRegion]] = {}
    for (name, kind, key), lines in _group(found, transcripts).items():
        parent = key if kind == "Parent" else ""
        regions.setdefault(name, []).append(_read_group(lines, parent, circles.get(name, 0)))
    return regions


_Key = tuple[str, str, str]  # the sequence, what joins the lines, and its value


def _group(found: Sequence[tuple[str, _Line]], transcripts: set[str]) -> dict[_Key, list[_Line]]:
    """Put lines together, in the order of the first of each group."""
    count = Counter((name, line.said["ID"]) for name, line in found if "ID" in line.said)
    groups: dict[_Key, list[_Line]] = {}
    alone: dict[_Key, list[_Line]] = {}
    for name, line in found:
        parents = [_unescape(each) for each in line.said.get("Parent", "").split(",") if each]
        # A feature of the protein may be a parent beside its transcript.
        parents = [each for each in parents if each in transcripts] or parents
        own = line.said.get("ID")
        if own is not None and count[name, own] == 1 and any(each in transcripts for each in parents):
            for parent in parents:
                alone.setdefault((name, "Parent", parent), []).append(line)
            groups[name, "ID", own] = [line]
        elif own is not None:
            groups.setdefault((name, "ID", own), []).append(line)
        elif parents:
            for parent in parents:
                groups.setdefault((name, "Parent", parent), []).append(line)
        else:
            groups[name, "line", str(line.number)] = [line]
    joined = {key: lines for key, lines in alone.items() if _is_one(lines)}
    inside = {(key[0], "ID", line.said["ID"]) for key, lines in joined.items() for line in lines}
    groups = {key: lines for key, lines in groups.items() if key not in inside} | joined
    return dict(sorted(groups.items(), key=lambda item: item[1][0].number))


def _is_one(lines: Sequence[_Line]) -> bool:
    """Tell whether lines of one transcript that have ids of their own are one coding sequence."""
    ordered = sorted(lines, key=lambda line: line.start)
    return (
        len(lines) > 1
        and len({line.strand for line in lines}) == 1
        and all(a.end < b.start for a, b in pairwise(ordered))
        and all(len({line.said.get(name) for line in lines}) == 1 for name in _TELLING)
    )


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
        if name in _READ:
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


def _read_group(found: Sequence[_Line], parent: str, circle: int) -> CodingRegion:
    """Put the lines of one coding sequence into the order of reading.

    Parameters
    ----------
    found : sequence of _Line
        In the file's order.
    parent : str
        What they have in common, if that is no ID.
    circle : int
        Letters of the sequence if it is circular, else 0.
    """
    lines, trouble = _order(found, circle)
    first, said = lines[0], lines[0].said
    # The id of one line is not that of all that were joined by their parent.
    own = ("locus_tag", "protein_id", *(() if parent else ("ID",)), "Name", "gene")
    names = [said.get(key, "") for key in own]
    above = [parent] if parent else [_unescape(each) for each in said.get("Parent", "").split(",")]
    low, high = _open_ends(said)
    if not trouble and first.phase not in _SHIFTS:
        trouble = f"its phase is {first.phase!r}, not 0, 1 or 2"
    numbers = (
        {"trouble": trouble} if trouble else read_numbers(_SHIFTS[first.phase], said.get("transl_table", ""))
    )
    remarks = [] if said.get("pseudo") != "true" else ["marked as pseudo"]
    if said.get("exception"):
        remarks.append(f"exception: {said['exception']}")
    if parent and "ID" in said and len(lines) > 1:
        remarks.append("its lines have ids of their own")
    backwards = first.strand == "-"
    return CodingRegion(
        tuple(filter(None, (*names, above[0]))),
        tuple(part for line in lines for part in _parts(line, circle)),
        **numbers,
        open_start=high if backwards else low,
        open_end=low if backwards else high,
        exceptions=tuple(re.findall(r"\(pos:.*?,aa:\w+\)", said.get("transl_except", ""))),
        translation=remove_white_space(said.get("translation", "")).upper(),
        remarks=(*remarks, *_off_frame(lines)),
        line=min(line.number for line in lines),
    )


def _order(found: Sequence[_Line], circle: int) -> tuple[list[_Line], str]:
    """Order lines as they are read, and say what is in the way."""
    numbered = [re.fullmatch(r"([0-9]{1,4})(/[0-9]{1,4})?", line.said.get("part", "")) for line in found]
    places = [int(each[1]) for each in numbered if each is not None]
    if len(set(places)) == len(found):
        return [line for _, line in sorted(zip(places, found, strict=True), key=lambda each: each[0])], ""
    strands = {line.strand for line in found}
    if len(strands) > 1:
        return list(found), "its parts lie on both strands, and nothing tells their order"
    lines = sorted(found, key=lambda line: line.start)
    if circle and len(lines) > 1 and lines[0].start == 1 and lines[-1].end == circle:
        # It crosses the first letter, and so what it leaves out is the widest gap.
        gaps = [b.start - a.end for a, b in pairwise(lines)]
        after = gaps.index(max(gaps)) + 1
        lines = lines[after:] + lines[:after]
    return lines[::-1] if strands == {"-"} else lines, ""


def _parts(line: _Line, circle: int) -> list[tuple[int, int, str]]:
    """Cut a line in two that goes on beyond the end of a circular sequence."""
    if not circle or not line.start <= circle < line.end <= 2 * circle:
        return [(line.start - 1, line.end, line.strand)]
    parts = [(line.start - 1, circle, line.strand), (0, line.end - circle, line.strand)]
    return parts[::-1] if line.strand == "-" else parts


def _off_frame(lines: Sequence[_Line]) -> list[str]:
    """Name the lines whose phase is not that of the frame that the first line begins."""
    shift = int(_SHIFTS.get(lines[0].phase, "1")) - 1
    read = lines[0].end - lines[0].start + 1 - shift
    found = []
    for line in lines[1:]:
        if line.phase in ("0", "1", "2") and int(line.phase) != -read % 3:
            found.append(f"phase {line.phase} of line {line.number} is not that of the frame")
        read += line.end - line.start + 1
    return found


def _open_ends(said: Mapping[str, str]) -> tuple[bool, bool]:
    """Tell whether a feature goes on before its start and after its end, as NCBI and Prodigal write it."""
    partial = said.get("partial", "")
    if re.fullmatch("[01][01]", partial):
        return partial[0] == "1", partial[1] == "1"
    return said.get("start_range", "").startswith("."), said.get("end_range", "").endswith(".")
