"""AnnData's file format: ``X (N, D)``, ``obs`` by id, ``var`` named ``mean_0, ...``, facts in ``uns``.

Written by h5py after the format's description (anndata.readthedocs.io, "On-disk format"), so that rows stream
and the package anndata is not needed. ``obs`` has ``length``, ``status``, ``message`` and the origin if it is
known; a length that nobody told is -1. A record without a vector is a row of NaN.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bioxfer.containers.hdf5 import Keeping, check_array, import_h5py, own_link
from bioxfer.containers.stored import (
    MOST_DIMENSIONS,
    Facts,
    Stored,
    as_origin,
    column_names,
    make_row,
    no_more_than,
    own_texts,
    pool_of_columns,
    reading,
    write_as_text,
)
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import FormatError
from bioxfer.sequences import ORIGIN_COLUMNS

__all__ = ["open_h5ad", "write_h5ad"]

_INDEX = "id"
_OBS: dict[str, type[str] | type[int]] = {"length": int, "status": str, "message": str}
_ROWS = 256  # that are written or read at once
_CHUNK = 2**16  # bytes of X that lie together, about; of a column a quarter


def write_h5ad(
    path: Path, rows: Iterable[EmbeddedRecord], *, pool: str, width: int, facts: Facts, origins: bool = False
) -> None:
    """Write rows as they come."""
    h5py = import_h5py()
    raw = Keeping(path, "w+")
    try:
        with raw, h5py.File(raw, "w", track_order=True) as file:
            _encode(file, "anndata", "0.1.0")
            names = column_names(pool, width)
            grown = {
                "X": _array(file, "X", np.dtype("<f4"), len(names)),
                **_frame(file, "obs", _INDEX, _OBS | (ORIGIN_COLUMNS if origins else {})),
            }
            found = iter(rows)
            while raw.error is None and (group := list(islice(found, _ROWS))):
                _append(grown, group, pool, len(names), origins)
            var = _frame(file, "var", "_index", {})["var/_index"]
            var.resize((len(names),))
            var[:] = names
            for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
                _encode(file.create_group(name), "dict", "0.1.0")
            for name, value in facts.items():
                is_text = isinstance(value, str)
                entry = file["uns"].create_dataset(name, data=value)
                _encode(entry, "string" if is_text else "numeric-scalar", "0.2.0")
    finally:
        if raw.error is not None:
            raise raw.error


def _encode(entry: Any, kind: str, version: str) -> None:
    entry.attrs["encoding-type"], entry.attrs["encoding-version"] = kind, version


def _array(group: Any, name: str, kind: Any, width: int | None = None) -> Any:
    """Make an empty array that grows by rows."""
    rest = () if width is None else (width,)
    each = kind.itemsize * (4 if width is None else max(1, width))
    entry = group.create_dataset(
        name, shape=(0, *rest), maxshape=(None, *rest), chunks=(max(1, _CHUNK // each), *rest), dtype=kind
    )
    _encode(entry, "string-array" if kind.kind == "O" else "array", "0.2.0")
    return entry


def _frame(file: Any, name: str, index: str, columns: dict[str, type[str] | type[int]]) -> dict[str, Any]:
    """Make an empty table; its arrays by their paths."""
    h5py = import_h5py()
    text = h5py.string_dtype()
    group = file.create_group(name)
    _encode(group, "dataframe", "0.2.0")
    group.attrs["_index"] = index
    group.attrs.create("column-order", list(columns), dtype=text, shape=(len(columns),))
    grown = {f"{name}/{index}": _array(group, index, text)}
    for column, kind in columns.items():
        if column in _OBS or kind is str:
            grown[f"{name}/{column}"] = _array(group, column, text if kind is str else np.dtype("<i8"))
            continue
        inner = group.create_group(column)  # numbers that some rows lack
        _encode(inner, "nullable-integer", "0.1.0")
        grown[f"{name}/{column}"] = _array(inner, "values", np.dtype("<i8"))
        grown[f"{name}/{column}/mask"] = _array(inner, "mask", np.dtype(bool))
    return grown


def _append(
    grown: dict[str, Any], group: Sequence[EmbeddedRecord], pool: str, width: int, origins: bool
) -> None:
    x = np.full((len(group), width), np.nan, dtype=np.float32)
    for place, each in enumerate(group):
        vector = each.vector(pool)
        if vector is not None:
            x[place] = vector
    columns: dict[str, Any] = {"X": x}
    names = [_INDEX, *_OBS, *(ORIGIN_COLUMNS if origins else ())]
    for name, cells in zip(names, zip(*(each.stem(origins) for each in group), strict=True), strict=True):
        path = f"obs/{name}"
        if f"{path}/mask" in grown:
            columns[f"{path}/mask"] = np.array([cell is None for cell in cells])
            columns[path] = np.array([0 if cell is None else cell for cell in cells], dtype=np.int64)
        elif name == "length":
            columns[path] = np.array(cells, dtype=np.int64)
        else:
            columns[path] = np.array([write_as_text(str(cell or "")) for cell in cells], dtype=object)
    for path, values in columns.items():
        entry = grown[path]
        begin = len(entry)
        entry.resize(begin + len(group), axis=0)
        entry[begin:] = values


# --- reading ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_h5ad(path: str | os.PathLike[str]) -> Iterator[Stored]:
    """Open what `write_h5ad` made, whether or not anndata has written it again since.

    Raises
    ------
    FormatError
        If ``X`` is no dense matrix of such columns, or rows do not fit together.
    """
    h5py = import_h5py()
    source = os.fspath(path)
    with contextlib.ExitStack() as stack:
        with reading(source):
            file = stack.enter_context(h5py.File(path, "r"))
            parts = {name: _part(file, name, source) for name in ("X", "obs", "var")}
            x, obs, var = parts.values()
            if not isinstance(x, h5py.Dataset) or x.ndim != 2:
                raise FormatError(f"{source}: X is no dense matrix; this is no file of embeddings")
            check_array(x, f"{source}, 'X'")
            no_more_than(MOST_DIMENSIONS, x.shape[1], "dimensions", source)
            uns = _part(file, "uns", source) if "uns" in file else {}
            facts = own_texts({name: _scalar(uns, name, source) for name in uns})
            index = _Column(var, str(var.attrs["_index"]), f"{source}, 'var'")
            if len(index) != x.shape[1]:
                raise FormatError(
                    f"{source}: {len(index)} names for {x.shape[1]} columns of X; it is damaged"
                )
            pool, width = pool_of_columns([str(name) for name in index.read(0, len(index))], source)
            origins = set(ORIGIN_COLUMNS) <= set(obs)
            names = [str(obs.attrs["_index"]), *(name for name in _OBS), *(ORIGIN_COLUMNS if origins else ())]
            columns = [
                _Column(obs, name, f"{source}, 'obs'") for name in names if name in obs or name == names[0]
            ]
            known = set(names[1:]) & set(obs)
            if missing := [name for name in _OBS if name not in known]:
                raise FormatError(
                    f"{source}: no column {missing[0]!r} in obs; this is no file that bioxfer embed wrote"
                )
            for column in columns:
                if len(column) != x.shape[0]:
                    raise FormatError(
                        f"{source}: {len(column)} of {column.name!r} for {x.shape[0]} rows of X; damaged"
                    )

        def rows() -> Iterator[EmbeddedRecord]:
            for begin in range(0, x.shape[0], _ROWS):
                with reading(source):
                    end = min(begin + _ROWS, x.shape[0])
                    cells = zip(*(column.read(begin, end) for column in columns), strict=True)
                    found = x[begin:end]
                for row, values in zip(cells, found, strict=True):
                    place = f"{source}, {str(row[0])!r}"
                    with reading(place):
                        made = make_row(
                            place,
                            str(row[0]),
                            values,
                            pool,
                            width=width,
                            length=int(row[1]),
                            status=str(row[2]),
                            message=str(row[3] or ""),
                            origin=as_origin(row[4:], place) if origins else None,
                        )
                    yield made

        yield Stored(source, width, pool, facts, rows, origins=origins)


def _part(group: Any, name: str, source: str) -> Any:
    if name not in group:
        raise FormatError(f"{source}: has no {name!r}; this is no AnnData file")
    return own_link(group, name, f"{source}, {name!r}")


def _scalar(uns: Any, name: str, source: str) -> object:
    entry = own_link(uns, name, f"{source}, 'uns/{name}'")
    if getattr(entry, "shape", None) != () or entry.is_virtual or entry.external:
        return None
    value = entry[()]
    return value.item() if isinstance(value, np.generic) else value


class _Column:
    """A column of a table in any of the ways that AnnData writes it."""

    def __init__(self, frame: Any, name: str, place: str) -> None:
        h5py = import_h5py()
        self.name = name
        self._place = f"{place}, {name!r}"
        entry = _part(frame, name, place)
        self._arrays = {"values": entry}
        if isinstance(entry, h5py.Group):
            self._arrays = {each: _part(entry, each, self._place) for each in entry}
        for array in self._arrays.values():
            if not isinstance(array, h5py.Dataset) or array.ndim != 1 or array.is_virtual or array.external:
                raise FormatError(f"{self._place}: is no column of numbers or texts of its own")
        if "categories" in self._arrays:
            self._kinds = self._read("categories", 0, len(self._arrays["categories"]))
        self._length = len(self._arrays["codes" if "codes" in self._arrays else "values"])

    def __len__(self) -> int:
        return self._length

    def read(self, begin: int, end: int) -> list[Any]:
        """Give some cells, None where they are empty."""
        if "codes" in self._arrays:
            codes = self._read("codes", begin, end)
            return [self._kinds[code] if code >= 0 else None for code in codes]
        values = self._read("values", begin, end)
        if "mask" not in self._arrays:
            return values
        mask = self._read("mask", begin, end)
        return [None if empty else value for value, empty in zip(values, mask, strict=True)]

    def _read(self, name: str, begin: int, end: int) -> list[Any]:
        array = self._arrays[name]
        found: list[Any] = array[begin:end].tolist()
        return [value.decode("utf-8") if isinstance(value, bytes) else value for value in found]
