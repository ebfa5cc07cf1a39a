"""Rows: what a head's answers look like as the cells of a table.

A wide table has one row per protein, a long one a row per protein, head and class, or per residue.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.conformal import check_coverage
from bioxfer.embedding import EmbeddedRecord
from bioxfer.engine import Vector
from bioxfer.errors import UsageError
from bioxfer.heads import TrainedHead
from bioxfer.residues import ResidueHead, label_residues
from bioxfer.sequences import ORIGIN_COLUMNS
from bioxfer.tasks import UNKNOWN

__all__ = [
    "Batch",
    "Head",
    "Kind",
    "check_sets",
    "columns_of",
    "features_of",
    "first_of",
    "kinds_of",
    "long_rows",
    "make_batch",
    "reads_residues",
    "wide_rows",
]

Head: TypeAlias = TrainedHead | ResidueHead
Kind: TypeAlias = type[str] | type[int] | type[float]

log = logging.getLogger("bioxfer")

_STEM_CELLS = 4  # of a row: id, length, status and message
_HEAD_CELLS = 4  # of each head: label, score, nearest and flag, before those that are asked for
_SEPARATORS = (";", "|", "; ", " || ")  # between the labels of a set


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some records, and what was said of them, for who watches.

    Attributes
    ----------
    records : sequence of EmbeddedRecord
        N of them.
    cells : dict of str to list of list
        By the head's name N times label, score, nearest and flag.
    features : dict of str to tuple
        By the head's name the places of the records that have a vector, and what the head reads of each.
    """

    records: Sequence[EmbeddedRecord]
    cells: dict[str, list[list[object]]]
    features: dict[str, tuple[list[int], Vector]]


def first_of(head: Head) -> int | None:
    """Say how many residues a head reads; None is all."""
    return head.first if isinstance(head, TrainedHead) else None


def makes_sets(head: Head) -> bool:
    """Say whether a head can make label sets: it labels proteins, and keeps conformal scores."""
    return isinstance(head, TrainedHead) and head.conformal is not None


def check_sets(heads: Sequence[Head], coverage: float, *, where_possible: bool = False) -> None:
    """Refuse to make label sets of heads that cannot, and warn of sets that leave out nothing.

    Parameters
    ----------
    heads : sequence of TrainedHead or ResidueHead
        All that are asked.
    coverage : float
        Share of the proteins whose set shall hold the truth.
    where_possible : bool
        Whether to name heads that cannot in the log, and refuse only where none can.

    Raises
    ------
    UsageError
        A head, or each, has no conformal scores, or the coverage is not between 0 and 1.
    """
    check_coverage(coverage)
    without = [head for head in heads if not makes_sets(head)]
    if where_possible and without:
        if len(without) == len(heads):
            raise UsageError(
                f"none of {len(heads)} heads can make label sets: each labels residues or keeps no conformal "
                "scores; leave coverage out, or name a head that was trained with this version"
            )
        log.info(
            "no label sets of %s, which %s residues or %s no conformal scores",
            ", ".join(head.name for head in without),
            *(("labels", "keeps") if len(without) == 1 else ("label", "keep")),
        )
        without = []
    for head in without:
        if not isinstance(head, TrainedHead):
            raise UsageError(
                f"head {head.name!r} labels residues, and label sets are of proteins; leave coverage out, or "
                "name other heads"
            )
        raise UsageError(
            f"head {head.name!r} keeps no conformal scores to make label sets from; train it anew with "
            "this version, leave coverage out, or name other heads"
        )
    for head in heads:
        scores = head.conformal if isinstance(head, TrainedHead) else None
        if scores is not None and scores.level(coverage) == math.inf:
            log.warning(
                "head %r: %d proteins are too few for a coverage of %s: the %s",
                head.name,
                scores.count,
                coverage,
                "set is all labels" if head.labels else "range is everything",
            )


def reads_residues(head: Head) -> bool:
    """Say whether a head needs the matrix of each protein's residues."""
    return isinstance(head, ResidueHead) or head.attention is not None


def columns_of(head: Head, probabilities: bool, coverage: float | None = None) -> list[str]:
    """Name the columns that a head adds to a wide table; none of sets where it cannot make any."""
    return [name for name, _ in _columns(head, probabilities, coverage)]


def kinds_of(head: Head, probabilities: bool, coverage: float | None = None) -> list[Kind]:
    """Tell the types of `columns_of`, whose cells are also empty."""
    return [kind for _, kind in _columns(head, probabilities, coverage)]


def _columns(head: Head, probabilities: bool, coverage: float | None) -> list[tuple[str, Kind]]:
    by_class = probabilities and isinstance(head, TrainedHead)
    classes: list[tuple[str, Kind]] = []
    if by_class:
        classes = [(f"{head.name}_p_{label}", float) for label in head.labels]
    parts = ["set"] if head.labels else ["low", "high"]
    asked = coverage is not None and makes_sets(head)
    return [
        (head.name, str),
        (f"{head.name}_score", float),
        (f"{head.name}_nearest", str),
        (f"{head.name}_flag", str),
        *((f"{head.name}_{part}", str) for part in parts if asked),
        *classes,
    ]


def wide_rows(
    some: Sequence[EmbeddedRecord],
    heads: Sequence[Head],
    readings: Mapping[int | None, Sequence[EmbeddedRecord]],
    probabilities: bool,
    coverage: float | None = None,
    origins: bool = False,
) -> Iterator[list[object]]:
    """Yield a row per record.

    Parameters
    ----------
    some : sequence of EmbeddedRecord
        The records, read as the longest-reading head does.
    heads : sequence of TrainedHead or ResidueHead
        Each adds the columns of `columns_of`.
    readings : mapping
        By how many first residues were read (None is all): the same records so read.
    probabilities : bool
        Whether there is one column per class.
    coverage : float, optional
        Share of the proteins whose set of labels, or range of numbers, shall hold the truth.
    origins : bool, optional
        Whether a row says where the protein is written, after the message.
    """
    table = [e.stem(origins) for e in some]
    for head in heads:
        blank: list[object] = [None] * len(columns_of(head, probabilities, coverage))
        places, features = features_of(readings[first_of(head)], head)
        if isinstance(head, ResidueHead):
            judged = _judge_residues(head, [some[place] for place in places], features)
        else:
            sequences = [some[place].sequence for place in places]
            judged = _judge(head, features, sequences, probabilities, coverage)
        cells = dict(zip(places, judged, strict=True))
        for place, row in enumerate(table):
            row.extend(cells.get(place, blank))
    yield from table


def make_batch(
    some: Sequence[EmbeddedRecord],
    heads: Sequence[Head],
    readings: Mapping[int | None, Sequence[EmbeddedRecord]],
    rows: Sequence[Sequence[object]],
    probabilities: bool,
    coverage: float | None = None,
    origins: bool = False,
) -> Batch:
    """Take apart the rows that `wide_rows` made of the same."""
    cells, first = {}, _STEM_CELLS + origins * len(ORIGIN_COLUMNS)
    for head in heads:
        cells[head.name] = [list(row[first : first + _HEAD_CELLS]) for row in rows]
        first += len(columns_of(head, probabilities, coverage))
    return Batch(some, cells, {head.name: features_of(readings[first_of(head)], head) for head in heads})


def _judge(
    head: TrainedHead,
    features: Vector,
    sequences: list[str],
    probabilities: bool,
    coverage: float | None,
) -> Iterator[list[object]]:
    if not len(features):  # no row has a vector, and their width is not known
        return
    chances = head.predict_proba(features, sequences) if probabilities else np.empty((len(features), 0))
    sets: list[list[object]] = [[] for _ in features]
    if coverage is not None and makes_sets(head):
        sets = [_set_cells(head, each) for each in head.predict_sets(features, sequences, coverage=coverage)]
    decisions, nearest = head.predict(features, sequences), head.nearest(features)
    for decision, neighbour, fitting, row in zip(decisions, nearest, sets, chances, strict=True):
        yield [
            decision.label,
            _number(decision.score),
            f"{neighbour.id} {neighbour.similarity:.3f}",
            head.flag(neighbour.similarity),
            *fitting,
            *map(_number, row),
        ]


def _set_cells(head: TrainedHead, fitting: Sequence[str]) -> list[object]:
    """Put labels into one cell, joined by a sign that is in none of them, or a range into two."""
    if not head.labels:
        return [*fitting] or [None, None]
    text = "".join(head.labels)
    separator = next((sign for sign in _SEPARATORS if sign not in text), _SEPARATORS[-1])
    return [separator.join(fitting)]


def _judge_residues(
    head: ResidueHead, some: Sequence[EmbeddedRecord], features: Vector
) -> Iterator[list[object]]:
    if not len(features):
        return
    for e, neighbour in zip(some, head.nearest(features), strict=True):
        said, chances = _label(e, head)
        yield [
            head.task.joint.join(said),
            _number(float(chances.mean())),
            f"{neighbour.id} {neighbour.similarity:.3f}",
            head.flag(neighbour.similarity),
        ]


def _label(e: EmbeddedRecord, head: ResidueHead) -> tuple[list[str], npt.NDArray[np.float64]]:
    if e.residues is None:
        raise ValueError(f"record {e.record.id!r} was embedded without its residues")
    return label_residues(head, e.residues, e.length)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def long_rows(
    some: Sequence[EmbeddedRecord],
    heads: Sequence[Head],
    readings: Mapping[int | None, Sequence[EmbeddedRecord]],
    by_residue: bool,
    origins: bool = False,
) -> Iterator[list[object]]:
    """Yield a row per record, head and class, likeliest first, or per residue; see `wide_rows`.

    ``by_residue`` says whether the table has columns for position and residue.
    """
    ranked = [_ranked(some, readings, head) if isinstance(head, TrainedHead) else {} for head in heads]
    nowhere: list[object] = [None, None] if by_residue else []
    for place, e in enumerate(some):
        stem = e.stem(origins)
        for head, answer in zip(heads, ranked, strict=True):
            if isinstance(head, ResidueHead) and e.residues is not None:
                cells, chances = _label(e, head)
                scores = [*map(_number, chances.tolist()), *[None] * (len(cells) - len(chances))]
                for position, row in enumerate(zip(e.sequence, cells, scores, strict=True), start=1):
                    residue, text, score = row
                    yield [*stem, head.name, position, residue, None, text, score]
                continue
            for rank, said, score in answer.get(place, [(None, None, None)]):
                yield [*stem, head.name, *nowhere, rank, said, score]


def _ranked(
    some: Sequence[EmbeddedRecord],
    readings: Mapping[int | None, Sequence[EmbeddedRecord]],
    head: TrainedHead,
) -> dict[int, list[tuple[int | None, str | None, float | None]]]:
    """Give each record that has a vector its classes, likeliest first, or its one number.

    Where the head refuses to answer, ``unknown`` stands before them, at rank 0 and without a score, as it is
    no class and has no probability.
    """
    places, features = features_of(readings[head.first], head)
    if not places:
        return {}
    sequences = [some[place].sequence for place in places]
    if not head.labels:
        return {p: [(1, d.label, None)] for p, d in zip(places, head.predict(features), strict=True)}
    refused = head.refused(features, sequences).tolist()
    return {
        place: [
            *([(0, UNKNOWN, None)] if no else []),
            *(
                (rank, head.labels[number], _number(chances[number]))
                for rank, number in enumerate(np.argsort(-chances, kind="stable").tolist(), start=1)
            ),
        ]
        for place, chances, no in zip(places, head.predict_proba(features, sequences), refused, strict=True)
    }


def _join(e: EmbeddedRecord, vector: Vector, head: Head) -> Vector:
    return vector if isinstance(head, ResidueHead) else head.join(vector, e.residues)


def features_of(some: Sequence[EmbeddedRecord], head: Head) -> tuple[list[int], Vector]:
    """Return the places of the records that have a vector, and what the head reads of each ``(M, F)``."""
    vectors = [(place, e, e.vector(head.pool)) for place, e in enumerate(some)]
    there = [(place, _join(e, vector, head)) for place, e, vector in vectors if vector is not None]
    return [place for place, _ in there], np.array([vector for _, vector in there], dtype=np.float32)
