"""Write embeddings to files: one entry for every record, whole or not at all.

========== =====================================================================
``.csv``   ``id, length, status, message`` and one column per dimension; also
           ``.tsv``, ``.csv.gz`` and the like
``.parquet`` the same columns
``.npz``   arrays ``ids, lengths, statuses, messages, vectors: (N, D)``; with
           per-residue output ``residues: (T, D)`` and ``offsets: (N + 1,)``
``.h5``    one dataset per record under its id, ``(D,)`` or ``(L, D)``, with
           the id verbatim as attribute ``original_id``, as UniProt does
========== =====================================================================
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bioxfer.embedding import EmbeddedRecord, parse_pool
from bioxfer.engine import Vector
from bioxfer.errors import MissingExtraError, UsageError
from bioxfer.output import TableWriter, publish, table_format

__all__ = ["check_vector_format", "write_vectors"]

Facts = dict[str, str | int]


def check_vector_format(path: str | os.PathLike[str], *, per_residue: bool) -> None:
    """Refuse a format that cannot hold what is asked for, before the work starts.

    Raises
    ------
    UsageError
        If the suffix is unknown, or a table is to hold matrices.
    MissingExtraError
        If HDF5 is asked for without its package.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".h5", ".hdf5"):
        _import_h5py()
    elif suffix != ".npz":
        try:
            table_format(path)
        except UsageError as error:
            raise UsageError(f"{error}, or in .npz or .h5 for arrays") from error
        if per_residue:
            raise UsageError(
                f"{os.fspath(path)}: a table cannot hold one matrix per protein; write .npz or .h5"
            )


def write_vectors(
    path: str | os.PathLike[str],
    embedded: Iterable[EmbeddedRecord],
    *,
    pool: str,
    width: int,
    facts: Facts,
    per_residue: bool = False,
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
        What made the vectors (model, layer, ...); kept in ``.npz`` and ``.h5``.
    per_residue : bool, optional
        Whether to write ``(L, D)`` matrices instead of pooled vectors.
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
        for each in embedded:
            statuses[each.status] += 1
            yield each

    suffix = Path(path).suffix.lower()
    if suffix in (".h5", ".hdf5"):
        with publish(path) as temporary:
            _write_hdf5(temporary, counted(), pool=pool, facts=facts, per_residue=per_residue)
    elif suffix == ".npz":
        rows = list(counted())
        with publish(path) as temporary:
            _write_npz(temporary, rows, pool=pool, width=width, facts=facts, per_residue=per_residue)
    else:
        names = [f"{part}_{number}" for part in parse_pool(pool) for number in range(width)]
        columns = ["id", "length", "status", "message", *names]
        with TableWriter(path, columns, excel_safe=excel_safe, overwrite=overwrite) as table:
            table.write(_cells(each, pool, len(names)) for each in counted())
    return statuses


def _cells(each: EmbeddedRecord, pool: str, count: int) -> Sequence[object]:
    vector = each.vector(pool)
    # As numpy scalars, whose str() is the shortest text that reads back to the same float32.
    values: Sequence[object] = [None] * count if vector is None else list(vector)
    return [each.record.id, each.length, each.status, each.message, *values]


def _write_npz(
    path: Path, rows: Sequence[EmbeddedRecord], *, pool: str, width: int, facts: Facts, per_residue: bool
) -> None:
    arrays: dict[str, Any] = {
        "ids": np.array([each.record.id for each in rows], dtype=np.str_),
        "lengths": np.array([each.length for each in rows], dtype=np.int64),
        "statuses": np.array([each.status for each in rows], dtype=np.str_),
        "messages": np.array([each.message for each in rows], dtype=np.str_),
    }
    if per_residue:
        matrices = [np.empty((0, width), np.float32) if e.residues is None else e.residues for e in rows]
        arrays["residues"] = np.concatenate([np.empty((0, width), np.float32), *matrices])
        arrays["offsets"] = np.cumsum([0] + [len(matrix) for matrix in matrices])
    else:
        vectors = np.full((len(rows), width * len(parse_pool(pool))), np.nan, dtype=np.float32)
        for place, each in enumerate(rows):
            vector = each.vector(pool)
            if vector is not None:
                vectors[place] = vector
        arrays["vectors"] = vectors
    arrays |= {name: np.array(value) for name, value in facts.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_hdf5(
    path: Path, rows: Iterable[EmbeddedRecord], *, pool: str, facts: Facts, per_residue: bool
) -> None:
    h5py = _import_h5py()
    taken: set[str] = set()
    raw = _Keeping(path, "w+")
    try:
        # Where the order is tracked, a reader meets the records in input order.
        with raw, h5py.File(raw, "w", track_order=True) as file:
            for name, value in facts.items():
                file.attrs[name] = value
            for number, each in enumerate(rows):
                if raw.error is not None:
                    break
                key = _safe_key(each.record.id, number, taken)
                found = each.residues if per_residue else each.vector(pool)
                data: Vector = np.empty(0, dtype=np.float32) if found is None else found
                entry = file.create_dataset(key, data=data)
                entry.attrs["original_id"] = _hdf5_text(each.record.id)
                entry.attrs["number"] = number
                entry.attrs["length"] = each.length
                entry.attrs["status"] = each.status
                entry.attrs["message"] = each.message
    finally:
        if raw.error is not None:
            raise raw.error


class _Keeping(io.FileIO):
    """A file that keeps its first error instead of raising it.

    The HDF5 library does not survive an error that a Python file raises while it flushes: it ends in a
    segmentation fault. So it is told that all is well, and the error is raised when it has let go.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        view[count:] = bytes(len(view) - count)  # what was never written reads as zeros
        return len(view)


def _hdf5_text(text: str) -> str | bytes:
    """Keep text as text, and bytes that are not UTF-8 as bytes."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _safe_key(identifier: str, number: int, taken: set[str]) -> str:
    """Name a dataset by its id, or by its number where HDF5 would make something else of the id."""
    unsafe = not identifier or identifier in taken or set(identifier) <= {"."} or not identifier.isprintable()
    key = f"record_{number}" if unsafe or "/" in identifier else identifier
    while key in taken:
        key += "_"
    taken.add(key)
    return key


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("HDF5 needs a package of its own: pip install 'bioxfer[hdf5]'") from error
    return h5py
