"""Audits: which held-out proteins of a split have copies or relatives in its training part."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from bioxfer.errors import LabelError
from bioxfer.homology import Method, choose_method, find_links, normal_form
from bioxfer.lines import delimiters_for, input_name, open_lines, read_rows
from bioxfer.sequences import SequenceRecord, clean_protein

__all__ = ["Audit", "Kind", "Offender", "audit_split", "part_of", "read_parts"]

log = logging.getLogger("bioxfer")

Kind: TypeAlias = Literal["identical", "near-identical", "relative"]

_NEAR = 0.9  # identity and coverage of near-identical proteins, as in bioxfer.evaluate.audit_leakage
_NAMED_AT_MOST = 5  # offenders in a message


@dataclass(frozen=True, slots=True)
class Offender:
    """A held-out protein that training gives away, and its nearest relative there.

    Attributes
    ----------
    id, split : str
        The protein and its part.
    nearest_id, nearest_split : str
        The relative: an equal protein if there is one, else the most similar.
    identity, coverage : float
        Of their alignment, as in `bioxfer.homology.Links`.
    kind : {"identical", "near-identical", "relative"}
        Equal; at least 90% identical over 90% of the shorter; or above the audit's threshold.
    """

    id: str
    split: str
    nearest_id: str
    nearest_split: str
    identity: float
    coverage: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class Audit:
    """What a split leaks.

    Attributes
    ----------
    sizes : dict of str to int
        Proteins of each held-out part.
    against : dict of str to tuple of str
        Parts that each was compared with.
    offenders : list of Offender
        In the order of the records.
    searched_by : str
        ``mmseqs`` or ``kmer``.
    identity : float
        Threshold of the search.
    """

    sizes: dict[str, int]
    against: dict[str, tuple[str, ...]]
    offenders: list[Offender]
    searched_by: str
    identity: float

    def counts(self, part: str) -> dict[Kind, int]:
        """Count a part's offenders by kind; each count holds the ones before it."""
        found = Counter(offender.kind for offender in self.offenders if offender.split == part)
        total, counts = 0, {}
        for kind in get_args(Kind):
            total += found[kind]
            counts[kind] = total
        return counts

    def describe(self) -> str:
        """Put the audit into a page of text, which ends with whether the split leaks."""
        lines = []
        for part, size in self.sizes.items():
            counts = self.counts(part)
            lines.append(
                f"{part} ({size} proteins) against {' and '.join(self.against[part])}: "
                f"{part_of(counts['identical'], size)} identical, "
                f"{part_of(counts['near-identical'], size)} near-identical or more, "
                f"{part_of(counts['relative'], size)} with a relative at {self.identity:.0%} identity"
            )
        worst = sorted(
            self.offenders, key=lambda o: (get_args(Kind).index(o.kind), -o.identity, -o.coverage)
        )[:_NAMED_AT_MOST]
        lines += [
            f"  {o.id} ({o.split}) and {o.nearest_id} ({o.nearest_split}): {o.kind}, "
            f"{o.identity:.1%} identity over {o.coverage:.0%}"
            for o in worst
        ]
        threshold = f"{self.identity:.0%} identity (searched by {self.searched_by})"
        if not self.offenders:
            lines.append(f"this split does not leak: no held-out protein has a relative at {threshold}")
        else:
            lines.append(
                f"this split leaks: {part_of(len(self.offenders), sum(self.sizes.values()))} held-out "
                f"proteins have a relative at {threshold}; results on them flatter"
            )
        return "\n".join(lines)

    def rows(self) -> Iterator[tuple[str | float, ...]]:
        """Give id, split, nearest_id, nearest_split, identity, coverage and kind of each offender."""
        for o in self.offenders:
            alignment = round(o.identity, 4), round(o.coverage, 4)
            yield (o.id, o.split, o.nearest_id, o.nearest_split, *alignment, o.kind)


def read_parts(
    path: str | os.PathLike[str], column: str, records: Sequence[SequenceRecord]
) -> list[str | None]:
    """Read the part of each record from a column of a table with ids.

    Parameters
    ----------
    path : path
        CSV or TSV with the columns ``id`` and `column`.
    column : str
        Column of the parts.
    records : sequence of SequenceRecord
        N records.

    Returns
    -------
    list of str or None
        N parts; None where the table says nothing of a record.

    Raises
    ------
    LabelError
        A column is missing, an id has two parts, or no record has a part.
    """
    source = input_name(path)
    _, lines = open_lines(path)
    parts: dict[str, str] = {}
    rows = read_rows(
        lines, source, delimiters_for(path), required=("id", column), optional=(), header_error=LabelError
    )
    for line, row in rows:
        if not row[column]:
            continue
        first = parts.setdefault(row["id"], row[column])
        if first != row[column]:
            raise LabelError(
                f"{source}, line {line}: id {row['id']!r} is in {row[column]!r} here and in {first!r} "
                "before; keep one of the rows"
            )
    found = [parts.get(record.id) for record in records]
    if not any(found):
        raise LabelError(f"{source}: column {column!r} names no part for any of {len(records)} records")
    return found


def audit_split(
    records: Sequence[SequenceRecord],
    parts: Sequence[str | None],
    *,
    identity: float = 0.3,
    coverage: float = 0.5,
    cluster_by: Method = "auto",
    degap: bool = False,
    threads: int | None = None,
) -> Audit:
    """Search training for relatives of every held-out protein.

    Parts that begin with ``train`` are training, and all others are held out. Those that begin with ``dev``
    are known too when others are judged, since a head is chosen on them. Where no part begins with
    ``train``, parts are folds, and each is held out from all others.

    Parameters
    ----------
    records : sequence of SequenceRecord
        N records.
    parts : sequence of str or None
        N parts; records without one are left out and counted.
    identity, coverage, cluster_by, threads
        As in `bioxfer.clusters.cluster_sequences`.
    degap : bool
        Remove gaps before relatives are searched for.

    Raises
    ------
    LabelError
        There is nothing to compare: fewer than two parts.
    UsageError
        A threshold is out of range, or MMseqs2 is asked for and not there.

    Examples
    --------
    >>> records = [SequenceRecord("a", "MKTAYIAKQRQISFVK"), SequenceRecord("b", "MKTAYIAKQRQISFVK")]
    >>> audit = audit_split(records, ["train", "test"], cluster_by="kmer")
    >>> [(o.id, o.nearest_id, o.kind) for o in audit.offenders]
    [('b', 'a', 'identical')]
    """
    if left := sum(not part for part in parts):
        log.warning("%d of %d records have no part and are left out", left, len(records))
    names = sorted({part for part in parts if part}, key=_part_order)
    known: dict[str, tuple[str, ...]] = {}
    for name in names:
        if not any(other.startswith("train") for other in names):
            known[name] = tuple(other for other in names if other != name)
        elif not name.startswith("train"):
            seen = ("train",) if name.startswith("dev") else ("train", "dev")
            known[name] = tuple(other for other in names if other.startswith(seen))
    if not any(known.values()):
        raise LabelError(
            f"a split of {len(names)} part{'s' * (len(names) != 1)} ({', '.join(names) or 'none'}) holds "
            "nothing out; name some rows train and others valid or test, or number two folds or more"
        )
    finder = choose_method(cluster_by)
    sequences = [clean_protein(record, degap=degap).residues for record in records]
    place_of: dict[str, list[int]] = {name: [] for name in names}
    for place, part in enumerate(parts):
        if part:
            place_of[part].append(place)
    found: dict[int, Offender] = {}
    for name, others in known.items():
        held, seen_places = place_of[name], sorted(place for other in others for place in place_of[other])
        for place, nearest, alike, covered, kind in _find_offenders(
            sequences, held, seen_places, identity=identity, coverage=coverage, method=finder, threads=threads
        ):
            found[place] = Offender(
                records[place].id, name, records[nearest].id, parts[nearest] or "", alike, covered, kind
            )
    return Audit(
        sizes={name: len(place_of[name]) for name in known},
        against=known,
        offenders=[found[place] for place in sorted(found)],
        searched_by=finder,
        identity=identity,
    )


def _find_offenders(
    sequences: Sequence[str],
    held: Sequence[int],
    known: Sequence[int],
    *,
    identity: float,
    coverage: float,
    method: Method,
    threads: int | None,
) -> Iterator[tuple[int, int, float, float, Kind]]:
    """Give place, nearest place, identity, coverage and kind for the held-out that have a relative."""
    same: dict[str, int] = {}
    for place in known:
        same.setdefault(normal_form(sequences[place]), place)
    links = find_links(
        [sequences[place] for place in held],
        [sequences[place] for place in known],
        identity=identity,
        coverage=coverage,
        method=method,
        threads=threads,
    )
    near = (links.identity >= _NEAR) & (links.coverage >= _NEAR)
    order = np.lexsort((-links.score, -links.identity, ~near, links.query))
    _, first = np.unique(links.query[order], return_index=True)
    best = dict(zip(links.query[order][first].tolist(), order[first].tolist(), strict=True))
    for number, place in enumerate(held):
        text = normal_form(sequences[place])
        if text and text in same:
            yield place, same[text], 1.0, 1.0, "identical"
        elif (link := best.get(number)) is not None:
            yield (
                place,
                known[int(links.reference[link])],
                float(links.identity[link]),
                float(links.coverage[link]),
                "near-identical" if near[link] else "relative",
            )


def _part_order(part: str) -> tuple[int, str]:
    """Sort numbers by their value, then the parts of a split in the order of their use."""
    if part.isdecimal() and part.isascii():
        return (int(part), part)
    used = [place for place, word in enumerate(("train", "dev", "val")) if part.startswith(word)]
    return (sys.maxsize - 3 + (used[0] if used else 3), part)


def part_of(count: int, total: int) -> str:
    """Write a count and its share."""
    return f"{count} ({count / total:.1%})" if total else str(count)
