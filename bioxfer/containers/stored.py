"""Stored embeddings, opened: what a reader knows before the first row, and how a row is checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from bioxfer.embedding import EmbeddedRecord
from bioxfer.embeddings import Status
from bioxfer.engine import Vector
from bioxfer.errors import BioxferError, FormatError, UsageError
from bioxfer.pooling import parse_pool
from bioxfer.sequences import Origin, SequenceRecord

__all__ = [
    "FACTS",
    "MOST_DIMENSIONS",
    "RESIDUES",
    "STEM",
    "UNKNOWN",
    "Facts",
    "Stored",
    "as_origin",
    "column_names",
    "make_row",
    "no_more_than",
    "own_texts",
    "pool_of_columns",
    "reading",
    "to_means",
    "write_as_text",
]

Facts = dict[str, str | int]

RESIDUES = "residues"
"""In place of a pooling: one vector for each residue."""

STEM = ("id", "length", "status", "message")
"""First columns of a table."""

UNKNOWN = -1
"""In place of a length, where a file does not tell it."""

MOST_DIMENSIONS = 2**20
"""Of one vector; those of known models have some thousands, and a larger number is a damaged file's."""

_MOST = 2**63 - 1  # what every format holds as a whole number
_STATUSES = get_args(Status)
_EMPTY = ("skipped", "failed")  # statuses of records without a vector

FACTS = ("model", "fingerprint", "layer", "pool", "precision")
"""What a file says of what made its vectors, where it knows."""


@dataclass(slots=True)
class Stored:
    """Embeddings in a file or folder that is open.

    Attributes
    ----------
    source : str
        Its name, for messages.
    width : int
        Dimensions of one pooling, ``D``; 0 where there is no vector at all.
    pool : str
        Poolings that are joined, as in ``"mean+max"``, or `RESIDUES`.
    facts : dict
        What made the vectors, so far as the file tells.
    rows : callable
        Reads the records in order, once.
    origins : bool
        Whether records tell where their protein is written on a nucleotide sequence.
    find : callable, optional
        Returns the place of every id, where the records can be read in any order.
    read : callable, optional
        Reads the record at such a place.
    """

    source: str
    width: int
    pool: str
    facts: Facts
    rows: Callable[[], Iterator[EmbeddedRecord]]
    origins: bool = False
    find: Callable[[], Mapping[str, str]] | None = None
    read: Callable[[str], EmbeddedRecord] | None = None


def make_row(
    place: str,
    identifier: str,
    values: npt.NDArray[Any] | None,
    pool: str,
    *,
    width: int,
    length: int = UNKNOWN,
    status: str | None = None,
    message: str = "",
    origin: Origin | None = None,
) -> EmbeddedRecord:
    """Make a record of what a file says, if it does not contradict itself.

    Parameters
    ----------
    place : str
        File and record, for messages.
    identifier : str
        Of the record.
    values : ndarray or None
        ``(n_pools * D,)``, or ``(L, D)`` of residues; None if there are none.
    pool : str
        Poolings that are joined, or `RESIDUES`.
    width : int
        ``D``.
    length : int, optional
        Residues, if they are told; of a matrix they are counted.
    status : str, optional
        If the file knows any. A record without numbers, or with some that are not finite, is ``skipped`` or
        ``failed`` where it does not, and its message says so.
    message : str, optional
        Of the record.
    origin : Origin, optional
        Where the protein is written.

    Raises
    ------
    FormatError
        If there is no id, status, length and numbers do not fit together, or something in it cannot be kept.
    """
    if not identifier:
        raise FormatError(f"{place}: a record without an id; give every record one")
    texts = (identifier, message, *(() if origin is None else (origin.source, origin.strand)))
    if not all(map(_can_be_kept, texts)):
        raise FormatError(f"{place}: holds a NUL or half a character, which no text may; take it out")
    if values is not None:
        joined = 1 if pool == RESIDUES else len(parse_pool(pool))
        shape = (len(values), width) if pool == RESIDUES else (joined * width,)
        if values.shape != shape:
            told = " x ".join(map(str, values.shape))
            raise FormatError(
                f"{place}: {told} numbers where the first record has {width * joined} for each "
                f"{'residue' if pool == RESIDUES else 'protein'}; its vectors are not of one kind"
            )
        with np.errstate(over="ignore"):
            values = np.array(values, dtype=np.float32)
    finite = values is not None and bool(np.isfinite(values).all())
    if status is None:
        status = "ok" if finite else "skipped" if values is None else "failed"
        message = "; ".join(filter(None, (message, {"skipped": "no numbers", "failed": "numbers that are not "
                                                    "finite"}.get(status))))  # fmt: skip
    elif status not in _STATUSES:
        raise FormatError(f"{place}: the status {status!r} is none of {', '.join(_STATUSES)}; mend the file")
    elif finite == (status in _EMPTY):
        told = "a vector" if finite else "no vector of finite numbers"
        raise FormatError(f"{place}: has status {status} and {told}; the file is damaged, make it again")
    if not finite:
        values = None
    if not UNKNOWN <= length <= _MOST:
        raise FormatError(f"{place}: a length of {length}; the file is damaged, make it again")
    if pool == RESIDUES and values is not None:
        if length not in (UNKNOWN, len(values)) and status != "truncated":
            raise FormatError(
                f"{place}: {len(values)} residues where the length is {length}; the file is damaged"
            )
        length = max(length, len(values))
    record = SequenceRecord(identifier, "", origin=origin)
    found: Status = status  # type: ignore[assignment]
    row = EmbeddedRecord(record, length, found, message)
    if pool == RESIDUES:
        row.residues = values
    elif values is not None:
        parts = parse_pool(pool)
        row.pooled = dict(zip(parts, np.split(values, len(parts)), strict=True))
    return row


def _can_be_kept(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def to_means(stored: Stored) -> Stored:
    """Make one vector of each protein's residues, their mean."""

    def reduce(row: EmbeddedRecord) -> EmbeddedRecord:
        if row.residues is not None:
            row.pooled = {"mean": mean_of(row.residues)}
            row.residues = None
        return row

    read = stored.read
    return replace(
        stored,
        pool="mean",
        facts=stored.facts | {"pool": "mean"},
        rows=lambda: map(reduce, stored.rows()),
        read=None if read is None else lambda place: reduce(read(place)),
    )


def mean_of(residues: Vector) -> Vector:
    """Average the residues of a protein, ``(L, D)`` to ``(D,)``."""
    mean: Vector = residues.mean(0, dtype=np.float64).astype(np.float32)
    return mean


def column_names(pool: str, width: int) -> list[str]:
    """Name the dimensions of vectors, ``mean_0, mean_1, ...``."""
    return [f"{part}_{number}" for part in parse_pool(pool) for number in range(width)]


def pool_of_columns(names: Sequence[str], place: str) -> tuple[str, int]:
    """Tell pooling and width by what `column_names` made.

    Raises
    ------
    FormatError
        If the names are not such ones.
    """
    parts = list(dict.fromkeys(name.rpartition("_")[0] for name in names))
    with contextlib.suppress(UsageError):
        width = len(names) // max(1, len(parts))
        if parts and column_names("+".join(parts), width) == list(names):
            return "+".join(parts), width
    shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    raise FormatError(
        f"{place}: {shown or 'no columns'} where mean_0, mean_1, ... should stand; it holds no embeddings"
    )


def own_texts(found: Mapping[str, object]) -> Facts:
    """Keep of the texts and numbers of a file those that say what made the vectors."""
    facts: Facts = {}
    for name in FACTS:
        value = found.get(name)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if name == "layer":
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                facts[name] = int(value)  # type: ignore[call-overload]
        elif isinstance(value, str):
            facts[name] = value
    return facts


def as_origin(cells: Sequence[object], place: str) -> Origin | None:
    """Make an origin of the cells of `ORIGIN_COLUMNS`; None if all are empty.

    Raises
    ------
    FormatError
        If a number is none, or larger than any place.
    """
    values = [None if cell is None or cell == "" else str(cell) for cell in cells]
    if not any(values):
        return None
    source, strand, *numbers = values
    try:
        start, end, frame, code = found = [None if number is None else int(number) for number in numbers]
    except ValueError as error:
        raise FormatError(f"{place}: {error}, in the columns of the origin; the table is damaged") from error
    if large := [number for number in found if number is not None and abs(number) > _MOST]:
        raise FormatError(f"{place}: {large[0]}, in the columns of the origin; the table is damaged")
    return Origin(source or "", strand or "", start, end, frame, code)


@contextlib.contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged or hostile file into one sentence.

    Raises
    ------
    FormatError
        In place of any error that is not bioxfer's own.
    """
    try:
        yield
    except (BioxferError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        told = reason[0] if reason else type(error).__name__
        raise FormatError(f"{source}: cannot be read ({told}); it is damaged, or of another kind") from error


def no_more_than(most: int, found: int, what: str, place: str) -> None:
    """Refuse a number that no sound file states, before memory is taken for it.

    Raises
    ------
    FormatError
        If it is exceeded.
    """
    if found > most:
        raise FormatError(f"{place}: {found} {what}, more than the {most} of any sound file; it is damaged")


def write_as_text(text: str) -> str:
    r"""Write bytes that are not UTF-8 as ``\xe9``; some formats cannot hold them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
