"""Write embeddings to files: one entry for every record, whole or not at all.

============ =====================================================================
``.csv``     ``id, length, status, message`` (and the origin, if asked for) and
             one column per dimension; also ``.tsv``, ``.csv.gz`` and the like
``.parquet`` the same first columns and one column ``embedding`` of lists of
             fixed size; with per-residue output lists of these
``.npz``     arrays ``ids, lengths, statuses, messages, vectors: (N, D)``; with
             per-residue output ``residues: (T, D)`` and ``offsets: (N + 1,)``
``.h5``      one dataset per record under its accession or id, ``(D,)`` or
             ``(L, D)``, with the id verbatim as attribute ``original_id``, as
             UniProt does
``.h5ad``    AnnData: ``X (N, D)``, the first columns in ``obs``
============ =====================================================================
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from bioxfer.containers.h5ad import write_h5ad
from bioxfer.containers.hdf5 import import_h5py, write_hdf5
from bioxfer.containers.npz import write_npz
from bioxfer.containers.parquet import import_parquet, write_parquet
from bioxfer.containers.stored import STEM, UNKNOWN, Facts, column_names
from bioxfer.embedding import EmbeddedRecord, parse_pool
from bioxfer.errors import UsageError
from bioxfer.output import TableWriter, check_output, is_stream, publish, table_format
from bioxfer.relay import behind, close
from bioxfer.sequences import ORIGIN_COLUMNS

__all__ = ["check_vector_format", "write_vectors"]

_BEHIND = 2**26  # bytes of records that wait for the writer at most, 64 MiB
_RECORD = 1024  # bytes of a record besides its arrays and residues


def check_vector_format(path: str | os.PathLike[str], *, per_residue: bool) -> None:
    """Refuse a format that cannot hold what is asked for, before the work starts.

    Raises
    ------
    UsageError
        If the suffix is unknown, or a table is to hold matrices.
    MissingExtraError
        If HDF5 or Parquet is asked for without its package.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".h5", ".hdf5", ".h5ad"):
        import_h5py()
    elif suffix == ".parquet":
        import_parquet()
    elif suffix != ".npz":
        try:
            table_format(path)
        except UsageError as error:
            raise UsageError(f"{error}, or in .npz, .h5 or .h5ad for arrays") from error
    if per_residue and suffix not in (".h5", ".hdf5", ".npz", ".parquet"):
        held = "AnnData has one row" if suffix == ".h5ad" else "a table cannot hold one matrix"
        raise UsageError(f"{os.fspath(path)}: {held} per protein; write .npz, .h5 or .parquet")


def write_vectors(
    path: str | os.PathLike[str],
    embedded: Iterable[EmbeddedRecord],
    *,
    pool: str,
    width: int,
    facts: Facts,
    per_residue: bool = False,
    origins: bool = False,
    excel_safe: bool = False,
    overwrite: bool = True,
) -> Counter[str]:
    """Write a stream of embedded records.

    Parameters
    ----------
    path : path
        The suffix tells the format; ``-`` is a CSV to standard output.
    embedded : iterable of EmbeddedRecord
        Each gets its entry, in order; those without a vector get empty cells or NaN.
    pool : str
        Poolings to join, as in ``"mean+max"``.
    width : int
        Width ``D`` of the backbone.
    facts : dict
        What made the vectors (model, layer, ...); kept where it is no text table.
    per_residue : bool, optional
        Whether to write ``(L, D)`` matrices instead of pooled vectors.
    origins : bool, optional
        Whether tables and ``.h5ad`` say where translated proteins are written; in ``.npz`` and ``.h5``
        their messages do.
    excel_safe, overwrite : bool, optional
        See `TableWriter`.

    Returns
    -------
    Counter
        Records by status.
    """
    check_vector_format(path, per_residue=per_residue)
    statuses: Counter[str] = Counter()

    def counted() -> Iterator[EmbeddedRecord]:
        try:
            for each in embedded:
                statuses[each.status] += 1
                yield each
        finally:
            close(embedded)

    def hand(write: Callable[[Iterator[EmbeddedRecord]], object]) -> None:
        behind(counted(), write, weigh=_weigh, most=_BEHIND, here=is_stream(path))

    suffix = Path(path).suffix.lower()
    columns = width if per_residue else width * len(parse_pool(pool))
    joined = None if per_residue else pool
    writers: dict[str, Callable[..., None]] = {
        ".npz": partial(write_npz, pool=joined, width=columns, facts=facts),
        ".h5": partial(write_hdf5, pool=pool, facts=facts, per_residue=per_residue),
        ".h5ad": partial(write_h5ad, pool=pool, width=width, facts=facts, origins=origins),
        ".parquet": partial(write_parquet, pool=joined, width=columns, facts=facts, origins=origins),
    }
    writers[".hdf5"] = writers[".h5"]
    if suffix in writers:
        check_output(path, overwrite=overwrite)
        with publish(path) as temporary:
            hand(partial(writers[suffix], temporary))
    else:
        names = column_names(pool, width)
        extra = ORIGIN_COLUMNS if origins else {}
        with TableWriter(path, [*STEM, *extra, *names], excel_safe=excel_safe, overwrite=overwrite) as table:
            hand(lambda rows: table.write(_cells(each, pool, len(names), origins) for each in rows))
    return statuses


def _weigh(each: EmbeddedRecord) -> int:
    """Bytes that a record holds, about."""
    arrays = [*(each.pooled or {}).values(), *([] if each.residues is None else [each.residues])]
    return _RECORD + 2 * each.length + sum(held.nbytes for held in arrays)


def _cells(each: EmbeddedRecord, pool: str, count: int, origins: bool) -> Sequence[object]:
    vector = each.vector(pool)
    # As numpy scalars, whose str() is the shortest text that reads back to the same float32.
    values: Sequence[object] = [None] * count if vector is None else list(vector)
    stem = each.stem(origins)
    if each.length == UNKNOWN:
        stem[1] = None
    return [*stem, *values]
