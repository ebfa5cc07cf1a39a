"""Embed proteins: every record in, one vector (or one matrix) out, in order.

Records come as a stream, are cleaned and worked off in chunks: the engine
(`bioxfer.engine`) turns the distinct sequences of a chunk into vectors, and
each record gets the one of its sequence, in input order. Nothing that can be
wrong with a single protein stops the others; its row says what happened.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from bioxfer.backbones import Backbone, load_backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.embeddings import Embeddings, Status
from bioxfer.engine import BATCH_TOKENS, GPU_BATCH_TOKENS, Engine, Vector, on_gpu
from bioxfer.errors import SequenceError, UsageError
from bioxfer.genes import Translation, translate
from bioxfer.io import OnDuplicate, iter_proteins
from bioxfer.pooling import POOLS, parse_pool
from bioxfer.relay import ahead as read_ahead
from bioxfer.sequences import (
    ORIGIN_COLUMNS,
    OnInvalid,
    SequenceRecord,
    clean_protein,
    looks_like_nucleotides,
    tell_nucleotides,
)

__all__ = [
    "POOLS",
    "EmbeddedRecord",
    "Embeddings",
    "as_records",
    "embed",
    "embed_first",
    "embed_records",
    "is_file",
    "make_engine",
    "parse_pool",
    "resolve_layer",
]

logger = logging.getLogger(__name__)

Long = Literal["window", "truncate", "skip", "error"]

_AHEAD = 2**25  # residues that lie ready at most, 32 MiB
_MATRIX_VALUES = 2**26  # floats of per-residue output held at once, 256 MiB


@dataclass(slots=True)
class EmbeddedRecord:
    """One input record and what became of it.

    Attributes
    ----------
    record : SequenceRecord
        As it was given.
    length : int
        Residues after cleaning.
    status : {"ok", "windowed", "truncated", "skipped", "failed"}
        What became of it.
    message : str
        Everything that was changed or went wrong; empty if nothing.
    pooled : dict of str to ndarray, or None
        ``(D,)`` float32 for each pooling; None if skipped or failed.
    residues : ndarray or None
        ``(L, D)`` float32, where it was asked for.
    sequence : str
        The residues after cleaning, ``length`` of them.
    """

    record: SequenceRecord
    length: int
    status: Status
    message: str = ""
    pooled: dict[str, Vector] | None = None
    residues: Vector | None = None
    sequence: str = ""

    def stem(self, origins: bool = False) -> list[object]:
        """Give the first cells of the record's row in a table, with those of its origin if asked for."""
        found: list[object] = [self.record.id, self.length, self.status, self.message]
        if origins:
            origin = self.record.origin
            found += [None] * len(ORIGIN_COLUMNS) if origin is None else origin.cells
        return found

    def vector(self, pool: str) -> Vector | None:
        """Join pooled vectors as ``"mean+max"`` says, ``(n_pools * D,)``; None if there are none."""
        if self.pooled is None:
            return None
        return np.concatenate([self.pooled[name] for name in parse_pool(pool)])


def resolve_layer(backbone: Backbone, layer: int | None) -> int:
    """Count a layer from 0, the embedding, to ``backbone.n_layers``.

    Parameters
    ----------
    backbone : Backbone
        Whose layers are meant.
    layer : int or None
        Negative numbers count from the last, -1; None is the last.

    Raises
    ------
    UsageError
        If the backbone has no such layer.
    """
    last = backbone.n_layers
    if layer is None:
        return last
    if not -last - 1 <= layer <= last:
        raise UsageError(
            f"{backbone.name} has no layer {layer}; choose 0 (the embedding) to {last}, or -1 for the last"
        )
    return layer % (last + 1)


def embed_records(
    records: Iterable[SequenceRecord],
    backbone: Backbone,
    *,
    layer: int | None = None,
    pools: Sequence[str] = ("mean",),
    per_residue: bool = False,
    first: int | None = None,
    long: Long = "window",
    overlap: int | None = None,
    batch_tokens: int | None = None,
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    cache: EmbeddingCache | None = None,
    chunk: int = 4096,
    ahead: bool = False,
    fp32: Callable[[], Backbone] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[EmbeddedRecord]:
    """Embed a stream of records, one out for each one in, in input order.

    A record's result does not depend on the others: relative to its largest
    number, to 1e-5 in fp32 and 2e-2 in bf16 (measured: 8e-7 and 5e-3, on six
    layers of random weights). Equal sequences of a chunk are computed once;
    with a cache, those of all chunks and of earlier runs too.

    Parameters
    ----------
    records : iterable of SequenceRecord
        Read as they are needed.
    backbone : Backbone
        Put into evaluation mode if it is a torch module.
    layer : int, optional
        From 0, the embedding, or from -1, the last, downwards; the last if not given.
    pools : sequence of str, optional
        Each of `POOLS` or several joined by ``+``; the parts are returned singly.
    per_residue : bool, optional
        Whether to return the ``(L, D)`` matrices as well.
    first : int, optional
        Represent only that many residues of each clean sequence, from its start; all if not given.
    long : {"window", "truncate", "skip", "error"}, optional
        What to do with proteins longer than ``backbone.window``; whether one is to
        be skipped or an error goes by the whole protein, whatever ``first`` is.
    overlap : int, optional
        Residues that neighbouring windows share at least, up to half a window;
        a quarter of a window if not given.
    batch_tokens : int, optional
        Tokens run at once, more of which need more memory; `BATCH_TOKENS` on a processor,
        `GPU_BATCH_TOKENS` on a GPU if not given.
    on_invalid : {"x", "error", "skip"}, optional
        What to do with records whose sequence holds something that is no amino acid.
    degap : bool, optional
        Whether to remove the gaps of an alignment.
    cache : EmbeddingCache, optional
        Where to look first, and to keep each batch as soon as it is done.
    chunk : int, optional
        Records worked off together, at most.
    ahead : bool, optional
        Whether to read and clean records in a thread of its own while others are computed,
        up to a chunk or 32 MiB of residues ahead. ``records`` then must suit such a thread; what
        reads a file does, what waits for a terminal or a pipe cannot be stopped while it waits.
    fp32 : callable, optional
        Gives the same backbone in float32, for records whose result in another
        precision is not finite. Without it those fail.
    progress : callable, optional
        Called with the number of records that were just finished, after each batch.

    Yields
    ------
    EmbeddedRecord
        Status ``failed`` marks a result that is not finite, in float32 and on
        its own either, or a protein that alone exceeds the memory.

    Raises
    ------
    UsageError
        If an option is out of range.
    SequenceError
        If a sequence holds gaps, or something invalid under ``on_invalid="error"``,
        or is too long under ``long="error"``.
    OutputError
        If the cache cannot be written.
    """
    if long not in get_args(Long):
        raise UsageError(f"long is {long!r}; choose {', '.join(get_args(Long))}")
    if (batch_tokens is not None and batch_tokens < 1) or chunk < 1:
        raise UsageError(f"batch_tokens is {batch_tokens} and chunk {chunk}; both must be 1 or more")
    if first is not None and first < 1:
        raise UsageError(f"first is {first} residues; choose 1 or more, or leave it out to read all")
    engine = make_engine(
        backbone,
        layer=layer,
        pools=pools,
        per_residue=per_residue,
        overlap=overlap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
    )
    prepared = _prepare(records, engine, first=first, long=long, on_invalid=on_invalid, degap=degap)
    if ahead:
        heap = -(-_AHEAD // chunk)  # what a record weighs besides its residues: a chunk of them is all
        prepared = read_ahead(prepared, weigh=lambda pair: heap + len(pair[1]), most=_AHEAD)
    rows = _stream(prepared, engine, chunk=chunk, progress=progress or (lambda count: None))
    return _closing(prepared, rows)


def make_engine(
    backbone: Backbone,
    *,
    layer: int | None = None,
    pools: Sequence[str] = ("mean",),
    per_residue: bool = False,
    overlap: int | None = None,
    batch_tokens: int | None = None,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
) -> Engine:
    """Make what turns sequences into vectors; parameters and errors as `embed_records`."""
    if not pools and not per_residue:
        raise UsageError(f"nothing is asked for; choose poolings from {', '.join(POOLS)}, or per_residue")
    if overlap is None:
        overlap = backbone.window // 4
    elif not 0 <= overlap <= backbone.window // 2:
        raise UsageError(
            f"an overlap of {overlap} does not suit windows of {backbone.window} residues; "
            f"choose 0 to {backbone.window // 2}"
        )
    parts = tuple(dict.fromkeys(part for pool in pools for part in parse_pool(pool)))
    if "cls" in parts and not getattr(backbone, "has_start", True):
        raise UsageError(
            f"{backbone.name} has no token before the first residue that the pooling cls could read; choose "
            "mean, max, start or end"
        )
    return Engine(
        backbone=backbone,
        layer=resolve_layer(backbone, layer),
        pools=parts,
        per_residue=per_residue,
        overlap=overlap,
        batch_tokens=batch_tokens or (GPU_BATCH_TOKENS if on_gpu(backbone) else BATCH_TOKENS),
        cache=cache,
        fp32=fp32,
    )


def embed_first(
    rows: Sequence[EmbeddedRecord], engine: Engine, *, first: int, long: Long = "window"
) -> list[EmbeddedRecord]:
    """Represent the first residues of proteins that `embed_records` has represented otherwise.

    Parameters
    ----------
    rows : sequence of EmbeddedRecord
        N proteins, worked off together.
    engine : Engine
        What `make_engine` gave.
    first, long
        As in `embed_records`; ``long`` as it was for the rows.

    Returns
    -------
    list of EmbeddedRecord
        N, in order, without the messages of the given ones; a skipped record stays skipped.
    """
    most = min(first, engine.backbone.window) if long == "truncate" else first
    again = []
    for row in rows:
        used = "" if row.status == "skipped" else row.sequence[:most]
        status: Status = "ok" if used else "skipped"
        again.append((EmbeddedRecord(row.record, row.length, status, sequence=row.sequence), used))
    return list(_stream(again, engine, chunk=len(again) + 1, progress=lambda count: None))


def embed(
    records: str | os.PathLike[str] | Iterable[str | SequenceRecord],
    *,
    model: str | os.PathLike[str] | Backbone = "compact",
    layer: int | None = None,
    pool: str = "mean",
    per_residue: bool = False,
    first: int | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    batch_tokens: int | None = None,
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    translation: Translation | None = None,
) -> Embeddings:
    """Embed proteins, one vector each.

    Parameters
    ----------
    records : path, or iterable of str or SequenceRecord
        A file that `read_sequences` reads, or records, or bare sequences, which
        are named ``seq1``, ``seq2``, ... by their place.
    model : str, path or Backbone, optional
        A name of `list_backbones`, a weights file, or a loaded backbone.
    layer : int, optional
        From 0, the embedding, or from -1, the last, downwards; the last if not given.
    pool : str, optional
        One of ``mean``, ``max``, ``cls`` (the token before the first residue; of
        a windowed protein the mean over its windows), ``start`` and ``end``
        (means over the first and the last 32 residues), or several joined by ``+``.
    per_residue : bool, optional
        Whether to keep the ``(L, D)`` matrices as well.
    first : int, optional
        Represent only that many residues of each protein, from its start.
    precision, device, threads, offline
        How to load a backbone that is given by name or path, see `load_backbone`.
    batch_tokens : int, optional
        Tokens run at once; more need more memory.
    long, on_invalid, degap
        See `embed_records`.
    cache : EmbeddingCache or path, optional
        Where to keep what was computed; nowhere if not given.
    translation : Translation, optional
        How nucleotides become proteins; messages then say where each is written.

    Returns
    -------
    Embeddings
        One row for each record, in order.

    Raises
    ------
    BioxferError
        As `load_backbone`, `iter_sequences` and `embed_records` raise.

    Examples
    --------
    >>> import bioxfer as bx
    >>> found = bx.embed(["MKTAYIAKQRQISFVKSHFSRQ", "GAVLI*"], model="compact")
    >>> found.ids, found.lengths, found.statuses
    (['seq1', 'seq2'], [22, 5], ['ok', 'ok'])
    >>> len(found) == len(found.vectors)
    True
    """
    width = len(parse_pool(pool))
    fp32: Callable[[], Backbone] | None = None
    if isinstance(model, (str, os.PathLike)):
        load = partial(load_backbone, os.fspath(model), device=device, offline=bool(offline))
        backbone = load(precision=precision, threads=threads)
        if backbone.precision != "fp32":
            fp32 = partial(load, precision="fp32")
    else:
        backbone = model
    opened = EmbeddingCache(cache) if isinstance(cache, (str, os.PathLike)) else None
    try:
        rows = list(
            embed_records(
                as_records(records, translation=translation, degap=degap),
                backbone,
                layer=layer,
                pools=(pool,),
                per_residue=per_residue,
                first=first,
                long=long,
                batch_tokens=batch_tokens,
                on_invalid=on_invalid,
                degap=degap,
                cache=cache if isinstance(cache, EmbeddingCache) else opened,
                ahead=is_file(records),
                fp32=fp32,
            )
        )
    finally:
        if opened is not None:
            opened.close()
    vectors = np.full((len(rows), width * backbone.dim), np.nan, dtype=np.float32)
    for place, row in enumerate(rows):
        vector = row.vector(pool)
        if vector is not None:
            vectors[place] = vector
    return Embeddings(
        ids=[row.record.id for row in rows],
        lengths=[row.length for row in rows],
        statuses=[row.status for row in rows],
        messages=[row.message for row in rows],
        vectors=vectors,
        model=backbone.name,
        layer=resolve_layer(backbone, layer),
        pool=pool,
        fingerprint=backbone.fingerprint,
        residues=[row.residues for row in rows] if per_residue else None,
    )


def is_file(records: object) -> bool:
    """Tell a file, which a thread may read ahead, from standard input and from what is no path."""
    return isinstance(records, (str, os.PathLike)) and os.path.isfile(records)


def as_records(
    records: str | os.PathLike[str] | Iterable[str | SequenceRecord],
    *,
    on_duplicate: OnDuplicate = "error",
    translation: Translation | None = None,
    degap: bool = False,
) -> Iterator[SequenceRecord]:
    """Read a file, or name bare sequences ``seq1``, ``seq2``, ... by their place.

    Parameters
    ----------
    records : path, or iterable of str or SequenceRecord
        What a user may hand in.
    on_duplicate : {"error", "rename"}, optional
        What to do with equal ids of a file.
    translation : Translation, optional
        How nucleotides become proteins.
    degap : bool, optional
        Remove gaps before that, as `translation` may ask itself.

    Yields
    ------
    SequenceRecord
        In order.
    """
    wanted = translation or Translation()
    wanted = replace(wanted, degap=wanted.degap or degap)
    if isinstance(records, (str, os.PathLike)):
        yield from iter_proteins(records, wanted, on_duplicate=on_duplicate)
        return
    named = (
        SequenceRecord(f"seq{number}", record) if isinstance(record, str) else record
        for number, record in enumerate(records, start=1)
    )
    if wanted.gff is not None:
        raise UsageError("a GFF3 file goes with a file of sequences; give its path")
    yield from translate(
        named, wanted.how, table=wanted.genetic_code, min_orf=wanted.min_orf, degap=wanted.degap
    )


def _prepare(
    records: Iterable[SequenceRecord],
    engine: Engine,
    *,
    first: int | None,
    long: Long,
    on_invalid: OnInvalid,
    degap: bool,
) -> Generator[tuple[EmbeddedRecord, str], None, None]:
    """Clean each record; beside its row stand the residues to represent, or nothing if it is skipped."""
    window = engine.backbone.window
    as_x = getattr(engine.backbone, "reads_as_x", "")
    warned = False
    for record in records:
        clean = clean_protein(record, on_invalid=on_invalid, degap=degap)
        used, length = clean.residues, len(clean.residues)
        status: Status = "ok"
        notes = [clean.message] if clean.message else []
        translated = record.origin is not None and record.origin.start is not None
        if not translated and looks_like_nucleotides(used):
            notes.append("looks like nucleotides where a protein is expected, see --translate cds")
            if not warned:
                warned = True
                told = tell_nucleotides(record)
                logger.warning("%s (of further such records only their rows tell)", told)
        if clean.skipped or not used:
            status, used = "skipped", ""
        elif length > window and long == "error":
            raise SequenceError(
                f"{record.place}: {length} residues exceed the window of {window}; "
                "use --long window, truncate or skip"
            )
        elif length > window and long == "skip":
            status, used = "skipped", ""
            notes.append(f"skipped: {length} residues exceed the window of {window}")
        else:
            used = used[:first]
        if len(used) > window and long == "truncate":
            status, used = "truncated", used[:window]
            notes.append(f"truncated: the first {window} of {length} residues are represented")
        elif len(used) > window:
            status = "windowed"
            starts = engine.starts(used)
            shared = min(before + window - after for before, after in pairwise(starts))
            notes.append(f"windowed: {len(starts)} windows of {window}, overlap {shared}")
        if rare := sum(map(used.count, as_x)):
            notes.append(f"{rare} of {' '.join(as_x)} read as X by the model")
        yield EmbeddedRecord(record, length, status, "; ".join(notes), sequence=clean.residues), used


def _closing(
    prepared: Generator[tuple[EmbeddedRecord, str], None, None], rows: Iterator[EmbeddedRecord]
) -> Iterator[EmbeddedRecord]:
    """End the reading with the work, whatever ends it, rather than when its memory is collected."""
    try:
        yield from rows
    finally:
        prepared.close()


def _stream(
    prepared: Iterable[tuple[EmbeddedRecord, str]],
    engine: Engine,
    *,
    chunk: int,
    progress: Callable[[int], object],
) -> Iterator[EmbeddedRecord]:
    """Work off chunk by chunk, and give each row what became of its residues."""
    most_residues = _MATRIX_VALUES // engine.backbone.dim if engine.per_residue else None
    for rows in _chunks(prepared, chunk, most_residues):
        copies = Counter(used for _, used in rows)
        if skipped := copies.pop("", 0):
            progress(skipped)

        def done(finished: Iterable[str], copies: Counter[str] = copies) -> None:
            if count := sum(copies[residues] for residues in finished):
                progress(count)

        outcomes = engine.solve(copies, done=done)
        left = copies.copy()
        rows.reverse()
        while rows:  # what was yielded is not kept while the next chunk is computed
            row, used = rows.pop()
            if used:
                left[used] -= 1
                last = not left[used]
                outcome = outcomes.pop(used) if last else outcomes[used]
                row.message = "; ".join(filter(None, (row.message, outcome.message)))
                if outcome.pooled is None:
                    row.status = "failed"
                else:
                    # Copies, so that rows of one sequence do not share arrays.
                    row.pooled = {n: v if last else v.copy() for n, v in outcome.pooled.items()}
                    matrix = outcome.residues
                    row.residues = matrix if last or matrix is None else matrix.copy()
            yield row


def _chunks(
    prepared: Iterable[tuple[EmbeddedRecord, str]], most: int, most_residues: int | None
) -> Iterator[list[tuple[EmbeddedRecord, str]]]:
    rows: list[tuple[EmbeddedRecord, str]] = []
    residues = 0
    for row, used in prepared:
        rows.append((row, used))
        residues += len(used)
        if len(rows) >= most or (most_residues is not None and residues >= most_residues):
            yield rows
            rows, residues = [], 0
    if rows:
        yield rows
