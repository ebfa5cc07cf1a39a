"""Read back what `bioxfer.vectors` wrote as arrays, record by record, in memory that does not grow."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from bioxfer.embedding import EmbeddedRecord
from bioxfer.engine import Vector
from bioxfer.errors import FormatError
from bioxfer.pooling import parse_pool
from bioxfer.sequences import SequenceRecord

__all__ = ["read_arrays"]


def read_arrays(path: str | os.PathLike[str], pool: str | None) -> Iterator[EmbeddedRecord]:
    """Read an ``.npz`` or ``.h5`` file of `write_vectors`.

    Parameters
    ----------
    path : path
        The file.
    pool : str or None
        Poolings whose vectors it holds; None if it holds the residues' matrices.

    Yields
    ------
    EmbeddedRecord
        With id, length, status and message, and with its vector or matrix if it has one.

    Raises
    ------
    FormatError
        It is not such a file.
    """
    rows = _read_npz(path, pool) if Path(path).suffix.lower() == ".npz" else _read_hdf5(path)
    for name, length, status, message, data in rows:
        each = EmbeddedRecord(SequenceRecord(name, ""), length, cast("Any", status), message)
        if data is not None and pool is None:
            each.pooled, each.residues = {}, data
        elif data is not None and pool is not None:
            names = parse_pool(pool)
            each.pooled = dict(zip(names, np.split(data, len(names)), strict=True))
        yield each


_Row = tuple[str, int, str, str, Vector | None]


def _read_npz(path: str | os.PathLike[str], pool: str | None) -> Iterator[_Row]:
    with zipfile.ZipFile(path) as archive:
        texts = [_Member(archive, name) for name in ("ids", "statuses", "messages")]
        lengths = _Member(archive, "lengths")
        numbers = _Member(archive, "residues" if pool is None else "vectors")
        offsets = _Member(archive, "offsets") if pool is None else None
        end = 0 if offsets is None else int(offsets.take(1)[0])
        for _ in range(len(lengths)):
            name, status, message = (str(each.take(1)[0]) for each in texts)
            length = int(lengths.take(1)[0])
            start, end = end, end + 1 if offsets is None else int(offsets.take(1)[0])
            data: Vector | None = numbers.take(end - start)
            if status in ("skipped", "failed"):
                data = None
            elif offsets is None and data is not None:
                data = data[0]
            yield name, length, status, message, data


class _Member:
    """An array of an ``.npz`` file, read from its beginning to its end."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._stream: IO[bytes] = archive.open(f"{name}.npy")
        if np.lib.format.read_magic(self._stream) != (1, 0):
            raise FormatError(f"{archive.filename}: {name} is not laid out as bioxfer does; make it anew")
        shape, _, self._kind = np.lib.format.read_array_header_1_0(self._stream)
        if self._kind.hasobject:
            raise FormatError(f"{archive.filename}: {name} holds objects, not numbers or text; make it anew")
        self._shape = shape
        self._size = self._kind.itemsize * int(np.prod(shape[1:], dtype=int))

    def __len__(self) -> int:
        return int(self._shape[0])

    def take(self, count: int) -> Any:
        """Read the next entries."""
        data = self._stream.read(count * self._size)
        return np.frombuffer(data, dtype=self._kind).reshape(count, *self._shape[1:])


def _read_hdf5(path: str | os.PathLike[str]) -> Iterator[_Row]:
    from bioxfer.vectors import import_h5py

    with import_h5py().File(path, "r") as file:
        for key in file:  # in the order in which they were written
            entry = file[key]
            name = entry.attrs["original_id"]
            if isinstance(name, bytes):
                name = name.decode("utf-8", "surrogateescape")
            status = str(entry.attrs["status"])
            data = None if status in ("skipped", "failed") else entry[()]
            yield str(name), int(entry.attrs["length"]), status, str(entry.attrs["message"]), data
