"""Parquet: ``id, length, status, message``, the origin if it is known, and one column ``embedding``.

A vector is a ``fixed_size_list<float>[D]``, null where there is none; with per-residue output it is a list of
these, one for each residue. What made the vectors stands in the schema's metadata. Groups of rows are written
and read one after the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bioxfer.containers.stored import (
    MOST_DIMENSIONS,
    RESIDUES,
    STEM,
    UNKNOWN,
    Facts,
    Stored,
    as_origin,
    make_row,
    no_more_than,
    own_texts,
    pool_of_columns,
    reading,
    write_as_text,
)
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import FormatError, MissingExtraError, UsageError
from bioxfer.pooling import parse_pool
from bioxfer.sequences import ORIGIN_COLUMNS

__all__ = ["import_parquet", "open_parquet", "write_parquet"]

COLUMN = "embedding"

_ROWS = 4096  # of a group, at most
_BYTES = 2**24  # of the numbers of a group, beyond which it ends
_AT_ONCE = 16  # rows that are read together; a row may be a matrix


def write_parquet(
    path: Path,
    rows: Iterable[EmbeddedRecord],
    *,
    pool: str | None,
    width: int,
    facts: Facts,
    origins: bool = False,
) -> None:
    """Write groups of rows as they come; without a `pool` the residues'."""
    pyarrow, parquet = import_parquet()
    text, whole = pyarrow.large_string(), pyarrow.int64()
    vector = pyarrow.list_(pyarrow.float32(), width)
    kinds = [text, whole, text, text]
    names = list(STEM)
    if origins:
        names += ORIGIN_COLUMNS
        kinds += [whole if kind is int else text for kind in ORIGIN_COLUMNS.values()]
    schema = pyarrow.schema(
        [
            *map(pyarrow.field, names, kinds),
            pyarrow.field(COLUMN, vector if pool else pyarrow.large_list(vector)),
        ],
        metadata={name: str(value) for name, value in facts.items()},
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows, pool):
            columns = zip(*(_cells(each, origins) for each, _ in group), strict=True)
            arrays = [pyarrow.array(cells, type=kind) for cells, kind in zip(columns, kinds, strict=True)]
            numbers = _numbers(pyarrow, [values for _, values in group], width, per_residue=pool is None)
            writer.write_table(pyarrow.Table.from_arrays([*arrays, numbers], schema=schema))


def _groups(rows: Iterable[EmbeddedRecord], pool: str | None) -> Iterator[list[tuple[EmbeddedRecord, Any]]]:
    group: list[tuple[EmbeddedRecord, Any]] = []
    size = 0
    for each in rows:
        values = each.residues if pool is None else each.vector(pool)
        group.append((each, values))
        size += 0 if values is None else values.nbytes
        if len(group) >= _ROWS or size >= _BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _cells(each: EmbeddedRecord, origins: bool) -> list[object]:
    cells = [write_as_text(cell) if isinstance(cell, str) else cell for cell in each.stem(origins)]
    cells[1] = None if each.length == UNKNOWN else each.length
    return cells


def _numbers(pyarrow: Any, found: list[Any], width: int, *, per_residue: bool) -> Any:
    """Make the column of vectors, or of matrices, of what there is."""
    absent = pyarrow.array([values is None for values in found])
    blank = np.zeros((0, width) if per_residue else width, dtype=np.float32)
    joined = np.concatenate([blank if values is None else values for values in found], dtype=np.float32)
    flat = pyarrow.array(joined.reshape(-1))
    if not per_residue:
        return pyarrow.FixedSizeListArray.from_arrays(flat, width, mask=absent)
    vectors = pyarrow.FixedSizeListArray.from_arrays(flat, width)
    ends = np.cumsum([0, *(0 if values is None else len(values) for values in found)])
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(ends, pyarrow.int64()), vectors, mask=absent)


def import_parquet() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet, or say how to install them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs a package of its own: pip install 'bioxfer[parquet]'"
        ) from error
    return pyarrow, parquet


# --- reading ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_parquet(path: str | os.PathLike[str]) -> Iterator[Stored]:
    """Open what `write_parquet` made, or a table of 0.5.0 and earlier with a column for each dimension.

    Raises
    ------
    FormatError
        If columns are missing or of other types, or the file is damaged.
    """
    pyarrow, parquet = import_parquet()
    source = os.fspath(path)
    with contextlib.ExitStack() as stack:
        with reading(source):
            file = stack.enter_context(parquet.ParquetFile(path, pre_buffer=False))
            schema = file.schema_arrow
            pairs = {k.decode("utf-8", "replace"): v for k, v in (schema.metadata or {}).items()}
            facts = own_texts(pairs)
            pool, width, wide = _layout(pyarrow, schema, facts, source)
            origins = set(ORIGIN_COLUMNS) <= set(schema.names)
            columns = [*STEM, *(ORIGIN_COLUMNS if origins else ()), *(wide or [COLUMN])]

        def batches() -> Iterator[Any]:
            for group in range(file.metadata.num_row_groups):  # else it reads far ahead
                pieces = file.iter_batches(batch_size=_AT_ONCE, row_groups=[group], columns=columns)
                while True:
                    with reading(source):
                        batch = next(pieces, None)
                    if batch is None:
                        break
                    yield batch

        def rows() -> Iterator[EmbeddedRecord]:
            for batch in batches():
                with reading(source):
                    texts = [batch.column(name).to_pylist() for name in STEM]
                    if origins:
                        texts += [batch.column(name).to_pylist() for name in ORIGIN_COLUMNS]
                    found = list(_vectors(batch, wide, width))
                for cells, values in zip(zip(*texts, strict=True), found, strict=True):
                    place = f"{source}, {str(cells[0])!r}"
                    yield make_row(
                        place,
                        "" if cells[0] is None else str(cells[0]),
                        values,
                        pool,
                        width=width,
                        length=UNKNOWN if cells[1] is None else int(cells[1]),
                        status=str(cells[2]),
                        message=str(cells[3] or ""),
                        origin=as_origin(cells[4:], place) if origins else None,
                    )

        yield Stored(source, width, pool, facts, rows, origins=origins)


def _layout(pyarrow: Any, schema: Any, facts: Facts, source: str) -> tuple[str, int, list[str] | None]:
    """Tell pooling, width, and the columns of dimensions where each has one."""
    types = pyarrow.types
    for name in STEM:
        count = schema.names.count(name)
        if count != 1:
            raise FormatError(
                f"{source}: {'more than one' if count else 'no'} column {name!r} (columns found: "
                f"{', '.join(map(repr, schema.names[:8]))}); this is no table that bioxfer embed wrote"
            )
        kind = schema.field(name).type
        texts = types.is_large_string(kind) or types.is_string(kind)
        if not (types.is_integer(kind) if name == "length" else texts):
            raise FormatError(
                f"{source}: column {name!r} is {kind}; this is no table that bioxfer embed wrote"
            )
    if schema.names.count(COLUMN) != 1:
        wide = [name for name in schema.names if name not in STEM and name not in ORIGIN_COLUMNS]
        pool, width = pool_of_columns(wide, source)
        for name in wide:
            if not types.is_floating(schema.field(name).type):
                raise FormatError(f"{source}: column {name!r} holds no numbers; it is no dimension")
        return pool, width, wide
    kind = schema.field(COLUMN).type
    per_residue = types.is_list(kind) or types.is_large_list(kind)
    inner = kind.value_type if per_residue else kind
    if not types.is_fixed_size_list(inner) or not types.is_floating(inner.value_type):
        raise FormatError(
            f"{source}: column {COLUMN!r} is {kind}, where fixed_size_list<float> should be; pyarrow and "
            "polars write that again, pandas does not"
        )
    no_more_than(MOST_DIMENSIONS, inner.list_size, "dimensions", source)
    if per_residue:
        return RESIDUES, inner.list_size, None
    pool = str(facts.get("pool", "mean"))
    try:
        parts = len(parse_pool(pool))
    except UsageError as error:
        raise FormatError(f"{source}: {error}") from error
    if inner.list_size % parts or not inner.list_size:
        raise FormatError(f"{source}: {inner.list_size} dimensions are no {pool}; the file is damaged")
    return pool, inner.list_size // parts, None


def _vectors(batch: Any, wide: list[str] | None, width: int) -> Iterator[Any]:
    """Give the numbers of each row, None where there are none."""
    if wide:
        numbers = [batch.column(name).to_numpy(zero_copy_only=False) for name in wide]
        for row in np.stack(numbers, axis=1) if numbers else ():
            yield None if np.isnan(row).all() else row
        return
    for cell in batch.column(COLUMN):
        if not cell.is_valid:
            yield None
        elif hasattr(cell.type, "list_size"):
            yield cell.values.to_numpy(zero_copy_only=False)
        else:
            flat = cell.values.flatten().to_numpy(zero_copy_only=False)
            if len(flat) != len(cell.values) * width:
                raise FormatError(f"a residue of {width} dimensions is null")
            yield flat.reshape(len(cell.values), width) if len(flat) else None
