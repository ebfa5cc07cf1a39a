"""Merge: join the parts of an output in the order of their input, as one process would have written it.

Nothing is taken on trust: the marks of all parts must tell of one request and one input, each part must be
what its mark says, and every record must be there once. Rows are passed on as they come, so memory does not
grow with their number.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import lzma
import math
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from bioxfer.containers.stored import FACTS, RESIDUES, as_origin, make_row
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import DuplicateIdError, FormatError, InputError, OutputError, UsageError
from bioxfer.exchange import open_embeddings
from bioxfer.genes import Translation
from bioxfer.ids import SeenIds
from bioxfer.io import iter_proteins
from bioxfer.output import TableWriter, check_output, is_stream, spell_id, write_lines
from bioxfer.sequences import SequenceRecord
from bioxfer.shards import Mark, Shard, Tally, find_parts, name_mark, name_part, read_mark, sum_file
from bioxfer.vectors import check_vector_format, write_vectors

__all__ = ["merge_parts"]

logger = logging.getLogger("bioxfer")

T = TypeVar("T")

_AT_ONCE = 512  # text parts that are read side by side; more are joined in two rounds
_GROUPS_AT_ONCE = 32  # parts of other formats; one of Parquet takes the memory of a row group, about 10 MB
_BATCH = 256  # rows of a Parquet table that are held as Python's numbers at once
_BINARY = ("npz", "h5", "h5ad", "parquet")
# What joining reads of a request.
_OF_INPUT = {"translate": str, "genetic_code": int, "min_orf": int, "degap": bool, "on_duplicate": str}
_OF_VECTORS = {**dict.fromkeys(FACTS, str), "layer": int, "width": int, "origins": bool}
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, KeyError)


class Unit(NamedTuple, Generic[T]):
    """One record of a part: its id as the part spells it, and what is to be passed on."""

    id: str
    held: T


@dataclass(slots=True)
class _Lane(Generic[T]):
    """Parts with consecutive numbers, whose records come one after the other in each round of all parts."""

    units: Iterator[Unit[T]]
    name: str
    first: int  # parts before them
    width: int = 1  # parts


def merge_parts(
    out: str | os.PathLike[str],
    parts: Sequence[str | os.PathLike[str]] | None = None,
    *,
    source: str | None = None,
    gff: str | None = None,
    overwrite: bool = True,
    delete_parts: bool = False,
) -> Counter[str]:
    """Join parts to the output that one process would have written.

    Parameters
    ----------
    out : path
        The output, of the parts' format; of text tables the compression may differ.
    parts : sequence of path, optional
        All parts, in any order; those beside `out` that bear its name if not given.
    source, gff : str, optional
        The input, and its GFF3 file if there was one, to compare the records with.
    overwrite : bool, optional
        Whether an existing output may be replaced.
    delete_parts : bool, optional
        Whether to remove parts and marks in the end.

    Returns
    -------
    Counter
        Records by status.

    Raises
    ------
    InputError
        A part is missing, unfinished, damaged or of another request or input.
    DuplicateIdError
        Two records have one id.
    UsageError
        The parts have another format, or too many would be open at once.
    OutputError
        The output cannot be written.
    """
    target = os.fspath(out)
    if is_stream(target):
        raise OutputError(f"merge writes a file, and {target} is none; name one with -o, such as out.csv")
    kind = _kind_of(target)
    named = [os.fspath(each) for each in parts] if parts is not None else find_parts(target)
    if not named:
        raise InputError(
            f"no parts of {target} lie beside it, such as {name_part(target, Shard(1, 8))}; "
            "make them with --shard, or name them"
        )
    for each in named:
        if _kind_of(each) != kind:
            raise UsageError(
                f"{each} is no part of a {kind} file, as {target} would be; give both one suffix"
            )
    check_output(
        target,
        inputs=[*named, *map(name_mark, named), *([] if source is None else [source])],
        overwrite=overwrite,
    )
    marks = _check_marks(named, target)
    first = next(iter(marks.values()))
    vectors = kind in _BINARY and first.request.get("command") == "embed"
    _check_request(
        next(iter(marks)), first, {**(_OF_VECTORS if vectors else {}), **(_OF_INPUT if source else {})}
    )
    for name, mark in marks.items():
        if sum_file(name) != mark.sha256:
            raise InputError(
                f"{name} has changed since it was finished; make it anew: {_command(mark, mark.shard.number)}"
            )
    shown = _Shown(first, kind, source, gff)
    if vectors:
        _merge_embeddings(target, marks, first, shown.check)
    elif kind == "parquet":
        _merge_parquet(target, marks, first, shown.check)
    else:
        _merge_text(target, marks, first, shown.check)
    if delete_parts:
        for name in marks:
            for path in (name_mark(name), name):  # without its mark a part is none
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    statuses: Counter[str] = Counter()
    for mark in marks.values():
        statuses.update(mark.statuses)
    return statuses


def _kind_of(path: str) -> str:
    """Tell formats apart whose parts cannot be joined to each other: csv, tsv, parquet, npz, h5, h5ad."""
    check_vector_format(path, per_residue=False)
    suffixes = [each.lower() for each in Path(path).suffixes]
    last = suffixes[-1] if suffixes else ""
    if last in (".gz", ".xz"):
        last = suffixes[-2]
    return "h5" if last == ".hdf5" else last[1:]


# --- marks -------------------------------------------------------------------------------------------


def _check_marks(parts: Sequence[str], out: str) -> dict[str, Mark]:
    """Read the marks, in the order of the parts' numbers, and see that they tell of one whole."""
    marks: dict[str, Mark] = {}
    unmarked = []
    for part in parts:
        if not os.path.exists(part):
            raise InputError(f"no such file: {part}; check the name and the folder")
        if os.path.exists(name_mark(part)):
            marks[part] = read_mark(part)
        else:
            unmarked.append(part)
    name, mark = next(iter(marks.items()), ("", None))
    if unmarked:
        number = re.search(r"-([0-9]{5,})-of-[0-9]{5,}\.", os.path.basename(unmarked[0]))
        command = "with its command and --shard I/N"
        if mark is not None and number is not None:
            command = _command(mark, int(number[1]))
        raise InputError(f"{unmarked[0]} is not finished, it has no mark beside it; make it: {command}")
    assert mark is not None
    numbers: dict[int, str] = {}
    for other, its in marks.items():
        if difference := mark.compare(its.request, its.shard):
            raise InputError(f"{name} was made with {difference} as {other}; name parts of one request")
        if difference := mark.input.differ(its.input):
            raise InputError(
                f"{name} was made from another input than {other} ({difference}); merge parts of one input"
            )
        if (twin := numbers.setdefault(its.shard.number, other)) != other:
            raise InputError(f"{twin} and {other} are both part {its.shard}; name each part once")
        expected = its.shard.count(its.input.records)
        if its.records != expected:
            raise InputError(
                f"{other} holds {its.records} records where {expected} of {its.input.records} fall to part "
                f"{its.shard}; make it anew: {_command(its, its.shard.number)}"
            )
    missing = [number for number in range(1, mark.shard.of + 1) if number not in numbers]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"part {missing[0]} of {mark.shard.of} is missing{more}; make it: {_command(mark, missing[0])}"
        )
    return {numbers[number]: marks[numbers[number]] for number in sorted(numbers)}


def _check_request(name: str, mark: Mark, wanted: dict[str, type]) -> None:
    """See that a mark tells what is needed of its request."""
    for key, kind in wanted.items():
        if type(mark.request.get(key)) is not kind:
            raise FormatError(
                f"{name_mark(name)} is not the mark of a part ({key} of its request is "
                f"{mark.request.get(key)!r}); make the part anew"
            )


def _command(mark: Mark, number: int) -> str:
    return (
        mark.command
        if " --distributed" in mark.command
        else f"{mark.command} --shard {number}/{mark.shard.of}"
    )


# --- records -----------------------------------------------------------------------------------------


class _Shown:
    """Sees every record that is passed on: its id is new, and that of the input in its place."""

    def __init__(self, mark: Mark, kind: str, source: str | None, gff: str | None) -> None:
        self._mark = mark
        self._kind = kind
        self._safe = bool(mark.request.get("excel_safe")) and kind not in _BINARY
        self._source = source
        self._gff = gff
        if source is not None and bool(mark.request.get("gff")) != (gff is not None):
            made = "with" if gff is None else "without"
            raise UsageError(f"the parts were made {made} --gff; compare them with their input likewise")

    def check(self, units: Iterable[Unit[T]]) -> Iterator[T]:
        """Pass on what the records hold."""
        tally = Tally()
        records = self._records()
        with SeenIds() as seen:
            for place, unit in enumerate(units, start=1):
                # What begins like a formula has lost its own spelling, which could tell it from another.
                if not (self._safe and unit.id.startswith("'")):
                    if (earlier := seen.line_of(unit.id)) is not None:
                        raise DuplicateIdError(
                            f"id {unit.id!r} is that of record {earlier} and of record {place}; make the "
                            "parts anew"
                        )
                    seen.add(unit.id, place)
                if records is not None:
                    record = next(records, None)
                    if record is not None:
                        tally.add(record)
                    expected = None if record is None else self._spell(record.id)
                    if expected != unit.id:
                        held = "none any more" if expected is None else repr(expected)
                        raise InputError(
                            f"record {place} is {unit.id!r} in the parts, and {held} in {self._source}; "
                            "name the input that they were made from"
                        )
                yield unit.held
        if records is not None:
            for record in records:
                tally.add(record)
            if tally.total != self._mark.input:
                raise InputError(
                    f"{self._source} is not the input that the parts were made from: {tally.total.records} "
                    f"records, {self._mark.input.records} then, or other residues; name that one"
                )

    def _spell(self, identifier: str) -> str:
        if self._kind in ("npz", "h5"):
            return identifier
        return spell_id(identifier, excel_safe=self._safe, parquet=self._kind in _BINARY)

    def _records(self) -> Iterator[SequenceRecord] | None:
        if self._source is None:
            return None
        asked = self._mark.request
        how = Translation(
            asked["translate"], asked["genetic_code"], asked["min_orf"], self._gff, asked["degap"]
        )
        return iter_proteins(self._source, how, on_duplicate=asked["on_duplicate"])


def _weave(lanes: Sequence[_Lane[T]], shard: Shard, total: int) -> Iterator[Unit[T]]:
    """Draw records from the lanes in the order of the input."""
    round_ = shard.of * shard.block
    rounds = max(1, -(-total // round_))
    for number in range(rounds):
        for lane in lanes:
            left = total - number * round_ - lane.first * shard.block
            wanted = min(max(left, 0), lane.width * shard.block)
            count = 0
            for unit in islice(lane.units, wanted):
                count += 1
                yield unit
            if count < wanted or (number == rounds - 1 and next(lane.units, None) is not None):
                raise FormatError(f"{lane.name} does not hold the records that its mark counts; make it anew")


def _lanes(marks: Iterable[str], read: Callable[[str], Iterator[Unit[T]]], first: int = 0) -> list[_Lane[T]]:
    return [_Lane(_guard(read, name), name, place) for place, name in enumerate(marks, start=first)]


@contextlib.contextmanager
def _dealt(
    names: Sequence[str],
    mark: Mark,
    read: Callable[[str], Iterator[Unit[T]]],
    keep: Callable[[IO[bytes], Iterator[Unit[T]]], Iterator[Unit[T]]],
    *,
    at_once: int,
    beside: str,
) -> Iterator[list[_Lane[T]]]:
    """Make a lane of each part, or, of more than can be read side by side, of so many joined beforehand.

    ``keep`` writes records to a file without a name, and gives what reads them from it.
    """
    total, shard = mark.input.records, mark.shard
    if len(names) <= at_once or total <= shard.of * shard.block:  # else one after the other
        yield _lanes(names, read)
        return
    with contextlib.ExitStack() as spools:
        lanes: list[_Lane[T]] = []
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            spool = spools.enter_context(tempfile.TemporaryFile(dir=Path(os.path.realpath(beside)).parent))
            units = keep(spool, _weave(_lanes(some, read, first), shard, total))
            lanes.append(_Lane(units, f"{some[0]} to {some[-1]}", first, len(some)))
        yield lanes


def _guard(read: Callable[[str], Iterator[T]], name: str) -> Iterator[T]:
    """Read a part, and put what a library says of a damaged one into a sentence."""
    try:
        yield from read(name)
    except _DAMAGE as error:
        if isinstance(error, (FormatError, InputError)):
            raise
        raise FormatError(f"{name} cannot be read ({error}); make it anew") from error


# --- text tables -------------------------------------------------------------------------------------

_Check = Callable[[Iterable[Unit[T]]], Iterator[T]]


def _merge_text(out: str, marks: dict[str, Mark], mark: Mark, check: _Check[bytes]) -> None:
    """Pass lines on as they are."""
    names = list(marks)
    header = _same(names, _read_header)
    several = mark.request.get("format") == "long"
    delimiter = b"\t" if _kind_of(out) == "tsv" else b","

    def read(name: str) -> Iterator[Unit[bytes]]:
        with _open_text(name) as stream:
            yield from _units(stream, delimiter, several)

    def keep(spool: IO[bytes], units: Iterator[Unit[bytes]]) -> Iterator[Unit[bytes]]:
        spool.write(header)
        spool.writelines(unit.held for unit in units)
        spool.seek(0)
        return _units(spool, delimiter, several)

    with _dealt(names, mark, read, keep, at_once=_AT_ONCE, beside=out) as lanes:
        write_lines(out, chain([header], check(_weave(lanes, mark.shard, mark.input.records))))


def _open_text(name: str) -> IO[bytes]:
    openers: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(Path(name).suffix.lower(), partial(open, mode="rb"))
    return cast("IO[bytes]", opener(name))


def _read_header(name: str) -> bytes:
    with _open_text(name) as stream:
        return next(_rows(stream), b"")


def _same(names: Sequence[str], read: Callable[[str], T]) -> T:
    """Read the header of each part, and give the one that all have."""

    def once(name: str) -> Iterator[T]:
        yield read(name)

    first = next(_guard(once, names[0]))
    for name in names[1:]:
        if next(_guard(once, name)) != first:
            raise FormatError(f"{name} has other columns than {names[0]}; make both anew, with one command")
    return first


def _rows(stream: IO[bytes]) -> Iterator[bytes]:
    """Give the rows of a table as they are, those whose cells hold line ends whole."""
    lines = iter(stream)
    for line in lines:
        while line.count(b'"') % 2:
            line += next(lines, b'"')  # a quote without its end is none of our tables
        yield line


def _units(stream: IO[bytes], delimiter: bytes, several: bool) -> Iterator[Unit[bytes]]:
    rows = islice(_rows(stream), 1, None)

    def id_of(row: bytes) -> str:
        quoted = _QUOTED.match(row)
        text = row.split(delimiter, 1)[0] if quoted is None else quoted[1].replace(b'""', b'"')
        return text.decode("utf-8", "surrogateescape")

    if several:
        return (Unit(name, b"".join(some)) for name, some in groupby(rows, id_of))
    return (Unit(id_of(row), row) for row in rows)


# --- Parquet -----------------------------------------------------------------------------------------


def _merge_parquet(out: str, marks: dict[str, Mark], mark: Mark, check: _Check[list[Any]]) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    names = list(marks)
    schema = _same(names, parquet.read_schema)
    several = mark.request.get("format") == "long"

    def units(batches: Iterable[Any]) -> Iterator[Unit[list[Any]]]:
        rows = chain.from_iterable(
            zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches
        )
        if several:
            return (Unit(each, list(some)) for each, some in groupby(rows, lambda row: str(row[0])))
        return (Unit(row[0], [row]) for row in rows)

    def read(name: str) -> Iterator[Unit[list[Any]]]:
        with parquet.ParquetFile(name, pre_buffer=False) as file:
            yield from units(file.iter_batches(_BATCH, use_threads=False))

    def keep(spool: IO[bytes], found: Iterator[Unit[list[Any]]]) -> Iterator[Unit[list[Any]]]:
        with ipc.new_stream(spool, schema) as stream:
            rows = chain.from_iterable(unit.held for unit in found)
            while some := list(islice(rows, _BATCH)):
                columns = zip(schema, zip(*some, strict=True), strict=True)
                stream.write_batch(
                    pyarrow.record_batch(
                        [pyarrow.array(values, type=each.type) for each, values in columns], schema=schema
                    )
                )
        spool.seek(0)
        return units(ipc.open_stream(spool))

    types: dict[str, type[int] | type[float]] = {"int64": int, "double": float}
    kinds = [types.get(str(each.type), str) for each in schema]
    with (
        _dealt(names, mark, read, keep, at_once=_GROUPS_AT_ONCE, beside=out) as lanes,
        TableWriter(out, schema.names, kinds=kinds) as table,
    ):
        for some in check(_weave(lanes, mark.shard, mark.input.records)):
            table.write(some)


# --- embeddings --------------------------------------------------------------------------------------


def _merge_embeddings(out: str, marks: dict[str, Mark], mark: Mark, check: _Check[EmbeddedRecord]) -> None:
    names, asked = list(marks), mark.request
    per_residue = asked["pool"] == RESIDUES
    pool = "mean" if per_residue else asked["pool"]

    def read(name: str) -> Iterator[Unit[EmbeddedRecord]]:
        with open_embeddings(name) as stored:
            for each in stored.rows():
                yield Unit(each.record.id, each)

    def keep(spool: IO[bytes], found: Iterator[Unit[EmbeddedRecord]]) -> Iterator[Unit[EmbeddedRecord]]:
        for unit in found:
            each = unit.held
            values = each.residues if per_residue else each.vector(pool)
            origin = each.record.origin
            cells = [] if origin is None else origin.cells
            shape = None if values is None else values.shape
            head = [unit.id, each.length, each.status, each.message, cells, shape]
            spool.write(json.dumps(head).encode() + b"\n")
            if values is not None:
                spool.write(np.ascontiguousarray(values, dtype=np.float32).data)
        spool.seek(0)
        return back(spool)

    def back(spool: IO[bytes]) -> Iterator[Unit[EmbeddedRecord]]:
        for line in iter(spool.readline, b""):
            identifier, length, status, message, cells, shape = json.loads(line)
            values = None
            if shape is not None:
                size = math.prod(shape) * np.dtype(np.float32).itemsize
                values = np.frombuffer(spool.read(size), dtype=np.float32).reshape(shape)
            row = make_row(
                "spool",
                identifier,
                values,
                asked["pool"],
                width=asked["width"],
                length=length,
                status=status,
                message=message,
                origin=as_origin(cells, "spool"),
            )
            yield Unit(identifier, row)

    with _dealt(names, mark, read, keep, at_once=_GROUPS_AT_ONCE, beside=out) as lanes:
        write_vectors(
            out,
            check(_weave(lanes, mark.shard, mark.input.records)),
            pool=pool,
            width=asked["width"],
            facts={name: asked[name] for name in FACTS},
            per_residue=per_residue,
            origins=asked["origins"],
        )
