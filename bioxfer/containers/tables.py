"""Text tables of embeddings, plain or compressed: ``id, length, status, message, mean_0, mean_1, ...``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import chain

import numpy as np

from bioxfer.containers.stored import (
    STEM,
    UNKNOWN,
    Stored,
    as_origin,
    make_row,
    pool_of_columns,
)
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import FormatError
from bioxfer.lines import delimiters_for, input_name, open_lines, read_rows
from bioxfer.sequences import ORIGIN_COLUMNS

__all__ = ["open_table"]


@contextlib.contextmanager
def open_table(path: str | os.PathLike[str]) -> Iterator[Stored]:
    """Open a table that `bioxfer embed` wrote; what made the vectors is not in it.

    Raises
    ------
    FormatError
        If a column is missing, or a cell is no number.
    """
    source = input_name(path)
    _, lines = open_lines(path)
    found = read_rows(lines, source, delimiters_for(path), required=STEM, optional=tuple(ORIGIN_COLUMNS))
    # A table without rows has no dictionary that would name its columns.
    first = next(found, None)
    names = [] if first is None else [name for name in first[1] if name not in (*STEM, *ORIGIN_COLUMNS)]
    pool, width = ("mean", 0) if first is None else pool_of_columns(names, source)
    origins = first is not None and set(ORIGIN_COLUMNS) <= first[1].keys()

    def rows() -> Iterator[EmbeddedRecord]:
        for line, row in chain([] if first is None else [first], found):
            place = f"{source}, line {line}"
            cells = [row[name] for name in names]
            try:
                with np.errstate(over="ignore"):
                    values = np.array(cells, dtype=np.float32) if any(cells) else None
                length = int(row["length"]) if row["length"] else UNKNOWN
            except (ValueError, OverflowError) as error:
                raise FormatError(
                    f"{place}: {error}; a vector is numbers and a length a whole one"
                ) from error
            yield make_row(
                place,
                row["id"],
                values,
                pool,
                width=width,
                length=length,
                status=row["status"],
                message=row["message"],
                origin=as_origin([row[name] for name in ORIGIN_COLUMNS], place) if origins else None,
            )

    yield Stored(source, width, pool, {"pool": pool}, rows, origins=origins)
