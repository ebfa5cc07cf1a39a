"""Write embeddings to files: one entry for every record, whole or not at all.

========== =====================================================================
``.csv``   ``id, length, status, message`` (and the origin, if asked for) and
           one column per dimension; also ``.tsv``, ``.csv.gz`` and the like
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
import tempfile
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bioxfer.embedding import EmbeddedRecord, parse_pool
from bioxfer.engine import Vector
from bioxfer.errors import MissingExtraError, UsageError
from bioxfer.output import TableWriter, is_stream, publish, table_format
from bioxfer.relay import behind, close
from bioxfer.sequences import ORIGIN_COLUMNS

__all__ = ["check_vector_format", "import_h5py", "write_vectors"]

Facts = dict[str, str | int]

_STEM = ("id", "length", "status", "message")  # first columns of a table
_BEHIND = 2**26  # bytes of records that wait for the writer at most, 64 MiB
_RECORD = 1024  # bytes of a record besides its arrays and residues
_PIECE = 2**20  # bytes of an array that are written at once


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
        import_h5py()
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
        What made the vectors (model, layer, ...); kept in ``.npz`` and ``.h5``.
    per_residue : bool, optional
        Whether to write ``(L, D)`` matrices instead of pooled vectors.
    origins : bool, optional
        Whether a table says where translated proteins are written; in ``.npz`` and ``.h5`` their
        messages do.
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
    if suffix in (".h5", ".hdf5"):
        with publish(path) as temporary:
            hand(partial(_write_hdf5, temporary, pool=pool, facts=facts, per_residue=per_residue))
    elif suffix == ".npz":
        with publish(path) as temporary:
            hand(
                partial(_write_npz, temporary, pool=None if per_residue else pool, width=columns, facts=facts)
            )
    else:
        names = [f"{part}_{number}" for part in parse_pool(pool) for number in range(width)]
        extra = ORIGIN_COLUMNS if origins else {}
        with TableWriter(
            path,
            [*_STEM, *extra, *names],
            excel_safe=excel_safe,
            overwrite=overwrite,
            kinds=[str, int, str, str, *extra.values(), *[float] * len(names)],
        ) as table:
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
    return [*each.stem(origins), *values]


def _write_npz(
    path: Path, rows: Iterable[EmbeddedRecord], *, pool: str | None, width: int, facts: Facts
) -> None:
    """Write what `numpy.savez` would, without holding more than ids, messages and lengths.

    Numbers go to a file of their own first, as the head of an array tells how many there are. Without a
    `pool`, they are the residues'.
    """
    ids: list[str] = []
    statuses: list[str] = []
    messages: list[str] = []
    lengths, offsets = array("q"), array("q", [0])
    blank = np.full((1, width), np.nan, dtype="<f4")
    # Unnamed, so that nothing of it is left whatever happens.
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        for each in rows:
            if pool is None:
                data = blank[:0] if each.residues is None else each.residues
            else:
                vector = each.vector(pool)
                data = blank if vector is None else vector.reshape(1, width)
            spool.write(np.ascontiguousarray(data, dtype="<f4").data)
            ids.append(each.record.id)
            statuses.append(each.status)
            messages.append(each.message)
            lengths.append(each.length)
            offsets.append(offsets[-1] + len(data))
        spool.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            _add_texts(archive, "ids", ids)
            _add_array(archive, "lengths", np.asarray(lengths, dtype=np.int64))
            _add_texts(archive, "statuses", statuses)
            _add_texts(archive, "messages", messages)
            pieces = iter(partial(spool.read, _PIECE), b"")
            _add_member(archive, "vectors" if pool else "residues", "<f4", (offsets[-1], width), pieces)
            if pool is None:
                _add_array(archive, "offsets", np.asarray(offsets, dtype=np.int64))
            for name, value in facts.items():
                _add_array(archive, name, np.array(value))


def _add_texts(archive: zipfile.ZipFile, name: str, texts: Sequence[str]) -> None:
    """Add texts as numpy keeps them, each as wide as the widest, a piece at a time."""
    kind = np.dtype(f"<U{max(map(len, texts), default=0) or 1}")
    step = max(1, _PIECE // kind.itemsize)
    pieces = (np.array(texts[n : n + step], dtype=kind).tobytes() for n in range(0, len(texts), step))
    _add_member(archive, name, kind.str, (len(texts),), pieces)


def _add_array(archive: zipfile.ZipFile, name: str, values: npt.NDArray[Any]) -> None:
    _add_member(archive, name, values.dtype.str, values.shape, [values.tobytes()])


def _add_member(
    archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...], pieces: Iterable[bytes]
) -> None:
    # As numpy.savez: no time of day, so that equal arrays are equal bytes, and room for more than 4 GiB.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        head = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(cast("io.BytesIO", member), head)
        for piece in pieces:
            member.write(piece)


def _write_hdf5(
    path: Path, rows: Iterable[EmbeddedRecord], *, pool: str, facts: Facts, per_residue: bool
) -> None:
    h5py = import_h5py()
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


def import_h5py() -> Any:
    """Import the package that HDF5 needs.

    Raises
    ------
    MissingExtraError
        It is not here.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("HDF5 needs a package of its own: pip install 'bioxfer[hdf5]'") from error
    return h5py
