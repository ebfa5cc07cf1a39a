"""Predict: the conductor that takes records through backbone and heads to rows.

``read_sequences`` → `embed_records` → `TrainedHead` → rows → `TableWriter`. The
stages never call one another; they meet here.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from bioxfer.backbones import Backbone, list_backbones, load_backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import EmbeddedRecord, Long, as_records, embed_records
from bioxfer.engine import BATCH_TOKENS, Vector
from bioxfer.errors import UnknownModelError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.io import OnDuplicate
from bioxfer.output import TableWriter
from bioxfer.sequences import OnInvalid, SequenceRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
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
_ROWS_AT_ONCE = 512  # proteins that a head sees together

Shape = Literal["wide", "long"]


def list_heads() -> list[str]:
    """Name the ready heads of the embedded backbone, in alphabetical order."""
    return sorted(path.stem for path in READY_HEADS.glob("*.safetensors"))


def load_head(name_or_path: str | os.PathLike[str]) -> TrainedHead:
    """Load a ready head by its name, or any head by its file.

    Parameters
    ----------
    name_or_path : str or path
        A name of `list_heads`, or a ``.safetensors`` file that `bioxfer train` wrote.

    Raises
    ------
    UnknownModelError
        If there is neither such a head nor such a file.
    HeadFileError
        If the file is damaged or foreign.
    """
    wanted = os.fspath(name_or_path)
    if wanted in list_heads():
        return TrainedHead.load(READY_HEADS / f"{wanted}.safetensors")
    if Path(wanted).is_file():
        return TrainedHead.load(wanted)
    known = ", ".join(list_heads()) or "none in this installation"
    raise UnknownModelError(f"no head {wanted!r}: neither a file nor a ready head ({known})")


def load_heads(
    heads: Sequence[str | os.PathLike[str] | TrainedHead] | None = None,
) -> list[TrainedHead]:
    """Load heads that can run together: one backbone, one layer, distinct names.

    Parameters
    ----------
    heads : sequence of str, path or TrainedHead, optional
        All ready heads if not given.

    Raises
    ------
    UsageError
        If two heads need different backbones or layers, or carry one name.
    """
    wanted: Sequence[str | os.PathLike[str] | TrainedHead] = list_heads() if heads is None else heads
    if not wanted:
        raise UsageError("no head was given, and this installation has no ready ones; name a head file")
    loaded = [head if isinstance(head, TrainedHead) else load_head(head) for head in wanted]
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


def name_backbone(head: TrainedHead) -> str:
    """Give the name under which the backbone of a head can be loaded.

    Raises
    ------
    UnknownModelError
        If it has no such name, since the head was trained on weights of the user's own.
    """
    if head.backbone not in {info.name for info in list_backbones()}:
        raise UnknownModelError(
            f"head {head.name!r} was trained on weights called {head.backbone!r}; "
            "give them with --model FILE (in Python, model=FILE)"
        )
    return head.backbone


def predict_rows(
    records: Iterable[SequenceRecord],
    heads: Sequence[TrainedHead],
    backbone: Backbone,
    *,
    shape: Shape = "wide",
    probabilities: bool = False,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    progress: Callable[[int], object] | None = None,
    statuses: Counter[str] | None = None,
) -> tuple[list[str], Iterator[list[object]]]:
    """Name the columns of a prediction table, and yield its rows.

    Parameters
    ----------
    records : iterable of SequenceRecord
        Read as they are needed.
    heads : sequence of TrainedHead
        What `load_heads` returned.
    backbone : Backbone
        The heads' own; another one is refused.
    shape : {"wide", "long"}, optional
        One row per record, or one per record, head and class.
    probabilities : bool, optional
        Whether a wide table has one column per class.
    long, on_invalid, degap, batch_tokens, cache, fp32, progress
        See `embed_records`.
    statuses : Counter, optional
        Counts the records by status as their rows are made.

    Returns
    -------
    columns : list of str
        The table's header.
    rows : iterator of list
        Cells: text, numbers, and None where a record was skipped or failed.

    Raises
    ------
    FingerprintError
        If a head was trained on another backbone.
    UsageError
        If the heads' names lead to two columns of one name.
    """
    for head in heads:
        head.check_backbone(backbone)
    columns = (
        [*_STEM, *(c for head in heads for c in _columns(head, probabilities))]
        if shape == "wide"
        else [*_STEM, "head", "rank", "label", "score"]
    )
    for name, count in Counter(columns).items():
        if count > 1:
            names = ", ".join(repr(head.name) for head in heads)
            raise UsageError(
                f"{count} columns would be called {name!r} with the heads {names}; "
                "run them one at a time, or ask for the long format"
            )
    embedded = embed_records(
        records,
        backbone,
        layer=heads[0].layer,
        pools=[head.pool for head in heads],
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
    )
    make_rows = _wide_rows if shape == "wide" else _long_rows

    def rows() -> Iterator[list[object]]:
        while some := list(islice(embedded, _ROWS_AT_ONCE)):
            if statuses is not None:
                statuses.update(each.status for each in some)
            yield from make_rows(some, heads, probabilities)

    return columns, rows()


def _columns(head: TrainedHead, probabilities: bool) -> list[str]:
    classes = [f"{head.name}_p_{label}" for label in head.labels] if probabilities else []
    return [head.name, f"{head.name}_score", f"{head.name}_nearest", f"{head.name}_flag", *classes]


def _wide_rows(
    some: Sequence[EmbeddedRecord], heads: Sequence[TrainedHead], probabilities: bool
) -> Iterator[list[object]]:
    table: list[list[object]] = [[e.record.id, e.length, e.status, e.message] for e in some]
    for head in heads:
        blank: list[object] = [None] * len(_columns(head, probabilities))
        places, features = _features(some, head)
        cells = dict(zip(places, _judge(head, features, probabilities), strict=True))
        for place, row in enumerate(table):
            row.extend(cells.get(place, blank))
    yield from table


def _judge(head: TrainedHead, features: Vector, probabilities: bool) -> Iterator[list[object]]:
    if not len(features):  # no row has a vector, and their width is not known
        return
    chances = head.predict_proba(features) if probabilities else np.empty((len(features), 0))
    for decision, neighbour, row in zip(head.predict(features), head.nearest(features), chances, strict=True):
        yield [
            decision.label,
            _number(decision.score),
            f"{neighbour.id} {neighbour.similarity:.3f}",
            head.flag(neighbour.similarity),
            *map(_number, row),
        ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _long_rows(
    some: Sequence[EmbeddedRecord], heads: Sequence[TrainedHead], probabilities: bool
) -> Iterator[list[object]]:
    answers = [_ranked(some, head) for head in heads]
    for place, e in enumerate(some):
        stem: list[object] = [e.record.id, e.length, e.status, e.message]
        for head, answer in zip(heads, answers, strict=True):
            for rank, label, score in answer.get(place, [(None, None, None)]):
                yield [*stem, head.name, rank, label, score]


def _ranked(
    some: Sequence[EmbeddedRecord], head: TrainedHead
) -> dict[int, list[tuple[int | None, str | None, float | None]]]:
    """Give each record that has a vector its classes, likeliest first, or its one number."""
    places, features = _features(some, head)
    if not places:
        return {}
    if not head.labels:
        return {p: [(1, d.label, None)] for p, d in zip(places, head.predict(features), strict=True)}
    return {
        place: [
            (rank, head.labels[number], _number(chances[number]))
            for rank, number in enumerate(np.argsort(-chances, kind="stable").tolist(), start=1)
        ]
        for place, chances in zip(places, head.predict_proba(features), strict=True)
    }


def _features(some: Sequence[EmbeddedRecord], head: TrainedHead) -> tuple[list[int], Vector]:
    vectors = [(place, e.vector(head.pool)) for place, e in enumerate(some)]
    there = [(place, vector) for place, vector in vectors if vector is not None]
    return [place for place, _ in there], np.array([vector for _, vector in there], dtype=np.float32)


def predict(
    records: str | os.PathLike[str] | Iterable[str | SequenceRecord],
    *,
    heads: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | TrainedHead] | None = None,
    model: str | os.PathLike[str] | Backbone | None = None,
    shape: Shape = "wide",
    probabilities: bool = False,
    precision: str = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    on_duplicate: OnDuplicate = "error",
    degap: bool = False,
    cache: EmbeddingCache | None = None,
    offline: bool = False,
) -> pd.DataFrame:
    """Predict with ready or own heads, one row per protein.

    Parameters
    ----------
    records : path, or iterable of str or SequenceRecord
        A file that `read_sequences` reads, or sequences, which are named
        ``seq1``, ``seq2``, ... by their place.
    heads : str, path, or sequence of str, path or TrainedHead, optional
        Names of ready heads, or files; every ready head if not given.
    model : str, path or Backbone, optional
        The heads' backbone, where it is not found by the name that they state.
    shape : {"wide", "long"}, optional
        One row per protein, or one per protein, head and class, likeliest first.
    probabilities : bool, optional
        Whether to add one column per class to a wide table.
    precision, device, threads, offline
        How to load the backbone, see `load_backbone`.
    batch_tokens, long, on_invalid, degap, cache
        See `embed_records`.
    on_duplicate : {"error", "rename"}, optional
        What to do with equal ids of a file.

    Returns
    -------
    pandas.DataFrame
        ``N`` rows in input order: ``id, length, status, message`` and, for each
        head, its label, calibrated score, nearest training protein with its
        cosine similarity, and ``in-domain`` or ``far``. Long tables have
        ``head, rank, label, score`` after the first four columns.

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
    read = as_records(records, on_duplicate=on_duplicate)
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
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
    )
    return pd.DataFrame(rows, columns=columns)


def write_predictions(
    records: Iterable[SequenceRecord],
    out: str | os.PathLike[str],
    heads: Sequence[TrainedHead],
    backbone: Backbone,
    *,
    shape: Shape = "wide",
    probabilities: bool = False,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    excel_safe: bool = False,
    overwrite: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Counter[str]:
    """Predict into a table that appears whole or not at all.

    Parameters
    ----------
    records : iterable of SequenceRecord
        What `iter_sequences` yields; read as they are needed.
    out : path
        The table, its format told by its suffix; ``-`` is standard output.
    heads, backbone, shape, probabilities, long, on_invalid, degap, batch_tokens, cache, fp32, progress
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
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
        statuses=statuses,
    )
    with TableWriter(out, columns, excel_safe=excel_safe, overwrite=overwrite) as table:
        table.write(rows)
    return statuses
