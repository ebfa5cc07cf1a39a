"""Predict: the conductor that takes records through backbone and heads to rows.

``read_sequences`` → `embed_records` → `TrainedHead` or `ResidueHead` → rows →
`TableWriter`. The stages never call one another; they meet here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bioxfer.backbones import Backbone, is_backbone_name, load_backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import (
    EmbeddedRecord,
    Long,
    as_records,
    embed_first,
    embed_records,
    is_file,
    make_engine,
)
from bioxfer.errors import UnknownModelError, UsageError
from bioxfer.genes import Translation, find_origins
from bioxfer.io import OnDuplicate
from bioxfer.output import TableWriter, is_stream
from bioxfer.relay import behind, close
from bioxfer.residues import ResidueHead, read_head
from bioxfer.rows import (
    Batch,
    Head,
    Kind,
    check_sets,
    columns_of,
    first_of,
    kinds_of,
    long_rows,
    make_batch,
    reads_residues,
    wide_rows,
)
from bioxfer.sequences import ORIGIN_COLUMNS, OnInvalid, SequenceRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Shape",
    "find_head",
    "list_heads",
    "load_head",
    "load_heads",
    "name_backbone",
    "predict",
    "predict_rows",
    "write_predictions",
]

READY_HEADS = Path(__file__).parent / "weights" / "heads"
"""Heads inside the package, one ``NAME.safetensors`` each."""

_STEM = ("id", "length", "status", "message")  # first columns of every table
_NUMBERS: dict[str, Kind] = {
    **ORIGIN_COLUMNS,
    "length": int,
    "position": int,
    "rank": int,
    "score": float,  # of a long table
}
_CELLS_BEHIND = 2**18  # that wait for the writer at most; some 16 MB
_ROWS_AT_ONCE = 512  # proteins that a head sees together
_MATRICES_AT_ONCE = 32  # the same where each brings all its residues along

Shape = Literal["wide", "long"]


def list_heads() -> list[str]:
    """Name the ready heads of the embedded backbone, in alphabetical order."""
    return sorted(path.stem for path in READY_HEADS.glob("*.safetensors"))


def find_head(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the file of a ready head by its name, or that of any head by its path.

    Raises
    ------
    UnknownModelError
        If there is neither such a head nor such a file.
    """
    wanted = os.fspath(name_or_path)
    if wanted in list_heads():
        return READY_HEADS / f"{wanted}.safetensors"
    if Path(wanted).is_file():
        return Path(wanted)
    known = ", ".join(list_heads()) or "none in this installation"
    raise UnknownModelError(f"no head {wanted!r}: neither a file nor a ready head ({known})")


def load_head(name_or_path: str | os.PathLike[str]) -> Head:
    """Load a ready head by its name, or any head by its file.

    Parameters
    ----------
    name_or_path : str or path
        A name of `list_heads`, or a ``.safetensors`` file that `bioxfer train` wrote.

    Returns
    -------
    TrainedHead or ResidueHead
        As the file says: a head labels either proteins or residues.

    Raises
    ------
    UnknownModelError
        If there is neither such a head nor such a file.
    HeadFileError
        If the file is damaged or foreign.
    """
    return read_head(find_head(name_or_path))


def load_heads(
    heads: Sequence[str | os.PathLike[str] | Head] | None = None,
) -> list[Head]:
    """Load heads that can run together: one backbone, one layer, distinct names.

    Parameters
    ----------
    heads : sequence of str, path, TrainedHead or ResidueHead, optional
        All ready heads if not given.

    Raises
    ------
    UsageError
        If two heads need different backbones or layers, or carry one name.
    """
    wanted: Sequence[str | os.PathLike[str] | Head] = list_heads() if heads is None else heads
    if not wanted:
        raise UsageError("no head was given, and this installation has no ready ones; name a head file")
    loaded = [head if isinstance(head, Head) else load_head(head) for head in wanted]
    first = loaded[0]
    for head in loaded[1:]:
        if (head.fingerprint, head.layer) != (first.fingerprint, first.layer):
            raise UsageError(
                f"heads {first.name} ({first.backbone}, layer {first.layer}) and {head.name} "
                f"({head.backbone}, layer {head.layer}) read different embeddings; run them one at a time"
            )
    for name, count in Counter(head.name for head in loaded).items():
        if count > 1:
            raise UsageError(f"{count} heads are called {name!r}; give each head once")
    return loaded


def name_backbone(head: Head) -> str:
    """Give the name under which the backbone of a head can be loaded.

    Raises
    ------
    UnknownModelError
        If it has no such name, since the head was trained on weights of the user's own.
    """
    if not is_backbone_name(head.backbone):
        raise UnknownModelError(
            f"head {head.name!r} was trained on weights called {head.backbone!r}; "
            "give them with --model FILE (in Python, model=FILE)"
        )
    return head.backbone


def predict_rows(
    records: Iterable[SequenceRecord],
    heads: Sequence[Head],
    backbone: Backbone,
    *,
    shape: Shape = "wide",
    probabilities: bool = False,
    coverage: float | None = None,
    sets_where_possible: bool = False,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int | None = None,
    cache: EmbeddingCache | None = None,
    ahead: bool = False,
    fp32: Callable[[], Backbone] | None = None,
    progress: Callable[[int], object] | None = None,
    statuses: Counter[str] | None = None,
    origins: bool = False,
    watch: Callable[[Batch], object] | None = None,
) -> tuple[list[str], Iterator[list[object]]]:
    """Name the columns of a prediction table, and yield its rows.

    Parameters
    ----------
    records : iterable of SequenceRecord
        Read as they are needed.
    heads : sequence of TrainedHead or ResidueHead
        What `load_heads` returned.
    backbone : Backbone
        The heads' own; another one is refused.
    shape : {"wide", "long"}, optional
        One row per record, or one per record, head and class, likeliest first; heads
        for residues then have one row per residue. Where a head refuses to answer,
        a row of rank 0, label ``unknown`` and no score stands before its classes.
    probabilities : bool, optional
        Whether a wide table has one column per class, which an abstaining head fills
        even where it says ``unknown``. Heads for residues add none.
    coverage : float, optional
        Add to a wide table, for each head, the labels among which the true one is in
        this share of proteins like the training data, joined by ``;``, or of a number
        its least and largest value; see `bioxfer.conformal`.
    sets_where_possible : bool, optional
        Whether heads that cannot make label sets go without them, and are named in the log;
        else they are refused.
    long, on_invalid, degap, batch_tokens, cache, ahead, fp32, progress
        See `embed_records`.
    statuses : Counter, optional
        Counts the records by status as their rows are made.
    origins : bool, optional
        Add, after the message, ``source, strand, start, end, frame, genetic_code`` of proteins
        that were translated; see `bioxfer.sequences.Origin`.
    watch : callable, optional
        Is given the records with what was said of them, batch by batch, for a report.

    Returns
    -------
    columns : list of str
        The table's header.
    rows : iterator of list
        Cells: text, numbers, and None where a record was skipped or failed. Status
        and message are those of the longest reading: of the whole protein, unless
        every head reads only first residues. If a shorter one fails, the cells of
        its heads are None, and the message says so.

    Raises
    ------
    FingerprintError
        If a head was trained on another backbone.
    UsageError
        If the heads' names lead to two columns of one name, or a head cannot make label
        sets and a coverage is given.
    """
    if coverage is not None:
        if shape == "long":
            raise UsageError(
                "a long table has no column for label sets; leave coverage out, or ask for a wide one"
            )
        check_sets(heads, coverage, where_possible=sets_where_possible)
    for head in heads:
        head.check_backbone(backbone)
    by_residue = any(isinstance(head, ResidueHead) for head in heads)
    stem = [*_STEM, *(ORIGIN_COLUMNS if origins else ())]
    if shape == "wide":
        columns = [*stem, *(c for head in heads for c in columns_of(head, probabilities, coverage))]
    else:
        place = ["position", "residue"] if by_residue else []
        columns = [*stem, "head", *place, "rank", "label", "score"]
    for name, count in Counter(columns).items():
        if count > 1:
            names = ", ".join(repr(head.name) for head in heads)
            raise UsageError(
                f"{count} columns would be called {name!r} with the heads {names}; "
                "run them one at a time, or ask for the long format"
            )
    # The longest reading speaks for the record; the others are made of the rows it gives.
    wanted = {first_of(head) for head in heads}
    by_matrix = {first_of(head) for head in heads if reads_residues(head)}
    longest = None if None in wanted else max(n for n in wanted if n is not None)
    embedded = embed_records(
        records,
        backbone,
        layer=heads[0].layer,
        pools=_pools(heads, longest),
        per_residue=longest in by_matrix,  # costs memory, and room in the cache
        first=longest,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        ahead=ahead,
        fp32=fp32,
        progress=progress,
    )
    engines = {
        first: make_engine(
            backbone,
            layer=heads[0].layer,
            pools=_pools(heads, first),
            per_residue=first in by_matrix,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=fp32,
        )
        for first in sorted(n for n in wanted - {longest} if n is not None)
    }
    at_once = min(_ROWS_AT_ONCE, _MATRICES_AT_ONCE) if by_matrix else _ROWS_AT_ONCE

    def rows() -> Iterator[list[object]]:
        try:
            while some := list(islice(embedded, at_once)):
                if statuses is not None:
                    statuses.update(each.status for each in some)
                readings: dict[int | None, list[EmbeddedRecord]] = {longest: some}
                for first, engine in engines.items():
                    readings[first] = embed_first(some, engine, first=first, long=long)
                    _note_messages(some, readings[first], first)
                made: list[list[object]] = []
                if shape == "wide" or watch is not None:
                    made = list(wide_rows(some, heads, readings, probabilities, coverage, origins))
                if watch is not None:
                    watch(make_batch(some, heads, readings, made, probabilities, coverage, origins))
                if shape == "wide":
                    yield from made
                else:
                    yield from long_rows(some, heads, readings, by_residue, origins)
        finally:
            close(embedded)

    return columns, rows()


def _note_messages(some: Sequence[EmbeddedRecord], again: Sequence[EmbeddedRecord], first: int) -> None:
    """Put into the messages of records what there is to say of the reading of their first residues."""
    for e, short in zip(some, again, strict=True):
        if short.message:
            e.message = "; ".join(filter(None, (e.message, f"first {first} residues: {short.message}")))


def _pools(heads: Sequence[Head], first: int | None) -> list[str]:
    return [head.pool for head in heads if first_of(head) == first]


def predict(
    records: str | os.PathLike[str] | Iterable[str | SequenceRecord],
    *,
    heads: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Head] | None = None,
    model: str | os.PathLike[str] | Backbone | None = None,
    shape: Shape = "wide",
    probabilities: bool = False,
    coverage: float | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    batch_tokens: int | None = None,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    on_duplicate: OnDuplicate = "error",
    degap: bool = False,
    cache: EmbeddingCache | None = None,
    offline: bool = False,
    translation: Translation | None = None,
) -> pd.DataFrame:
    """Predict with ready or own heads, one row per protein.

    Parameters
    ----------
    records : path, or iterable of str or SequenceRecord
        A file that `read_sequences` reads, or sequences, which are named
        ``seq1``, ``seq2``, ... by their place.
    heads : str, path, or sequence of str, path, TrainedHead or ResidueHead, optional
        Names of ready heads, or files; every ready head if not given.
    model : str, path or Backbone, optional
        The heads' backbone, where it is not found by the name that they state.
    shape : {"wide", "long"}, optional
        One row per protein, or one per protein, head and class, likeliest first;
        heads for residues have one row per residue instead. Where a head refuses to
        answer, a row of rank 0, label ``unknown`` and no score stands before its classes.
    probabilities : bool, optional
        Whether to add one column per class to a wide table, except for heads for
        residues; an abstaining head fills them even where it says ``unknown``.
    coverage : float, optional
        Add ``<head>_set``, or ``<head>_low`` and ``<head>_high``, see `predict_rows`;
        ready heads that cannot make them go without where no head is named.
    precision, device, threads, offline
        How to load the backbone, see `load_backbone`.
    batch_tokens, long, on_invalid, degap, cache
        See `embed_records`.
    on_duplicate : {"error", "rename"}, optional
        What to do with equal ids of a file.
    translation : Translation, optional
        How nucleotides become proteins; the table then says where each is written, see
        `predict_rows`.

    Returns
    -------
    pandas.DataFrame
        ``N`` rows in input order: ``id, length, status, message`` and, for each
        head, its label, calibrated score, nearest training protein with its
        cosine similarity, and ``in-domain`` or ``far``. The label of a head for
        residues has one character per residue, ``?`` for those cut off by
        ``long="truncate"``, and its score is the mean over residues. Long tables
        have ``head, rank, label, score`` after the first four columns, and
        ``position, residue`` after ``head`` where there is a head for residues.

    Raises
    ------
    BioxferError
        As `load_heads`, `load_backbone` and `predict_rows` raise.

    Examples
    --------
    >>> import bioxfer as bx
    >>> table = bx.predict(["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"], heads=["structure_class"])
    >>> list(table.columns[:6])
    ['id', 'length', 'status', 'message', 'structure_class', 'structure_class_score']
    """
    import pandas as pd

    loaded = load_heads([heads] if isinstance(heads, (str, os.PathLike)) else heads)
    origins, read = find_origins(
        as_records(records, on_duplicate=on_duplicate, translation=translation, degap=degap), translation
    )
    wanted = name_backbone(loaded[0]) if model is None else model
    fp32: Callable[[], Backbone] | None = None
    if isinstance(wanted, (str, os.PathLike)):
        load = partial(load_backbone, os.fspath(wanted), device=device, threads=threads, offline=offline)
        backbone, fp32 = load(precision=precision), partial(load, precision="fp32")
    else:
        backbone = wanted
    columns, rows = predict_rows(
        read,
        loaded,
        backbone,
        shape=shape,
        probabilities=probabilities,
        coverage=coverage,
        sets_where_possible=heads is None,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        ahead=is_file(records),
        fp32=fp32,
        origins=origins,
    )
    return pd.DataFrame(rows, columns=columns)


def write_predictions(
    records: Iterable[SequenceRecord],
    out: str | os.PathLike[str],
    heads: Sequence[Head],
    backbone: Backbone,
    *,
    shape: Shape = "wide",
    probabilities: bool = False,
    coverage: float | None = None,
    sets_where_possible: bool = False,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int | None = None,
    cache: EmbeddingCache | None = None,
    ahead: bool = False,
    fp32: Callable[[], Backbone] | None = None,
    origins: bool = False,
    excel_safe: bool = False,
    overwrite: bool = True,
    progress: Callable[[int], object] | None = None,
    watch: Callable[[Batch], object] | None = None,
) -> Counter[str]:
    """Predict into a table that appears whole or not at all.

    Parameters
    ----------
    records : iterable of SequenceRecord
        What `iter_sequences` yields; read as they are needed.
    out : path
        The table, its format told by its suffix; ``-`` is standard output.
    heads, backbone, shape, probabilities, coverage, sets_where_possible
        See `predict_rows`.
    long, on_invalid, degap, batch_tokens, cache, ahead, fp32, progress, origins, watch
        See `predict_rows`.
    excel_safe, overwrite : bool, optional
        See `TableWriter`.

    Returns
    -------
    Counter
        Records by status.
    """
    statuses: Counter[str] = Counter()
    columns, rows = predict_rows(
        records,
        heads,
        backbone,
        shape=shape,
        probabilities=probabilities,
        coverage=coverage,
        sets_where_possible=sets_where_possible,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        ahead=ahead,
        fp32=fp32,
        progress=progress,
        statuses=statuses,
        origins=origins,
        watch=watch,
    )
    kinds: list[Kind] = [_NUMBERS.get(name, str) for name in columns]
    if shape == "wide":
        first = len(_STEM) + origins * len(ORIGIN_COLUMNS)
        kinds[first:] = [kind for head in heads for kind in kinds_of(head, probabilities, coverage)]
    with TableWriter(out, columns, excel_safe=excel_safe, overwrite=overwrite, kinds=kinds) as table:
        behind(rows, table.write, weigh=len, most=_CELLS_BEHIND, here=is_stream(out))
    return statuses
