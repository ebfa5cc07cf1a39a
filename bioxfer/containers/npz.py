"""NumPy archives: ``ids, lengths, statuses, messages`` and ``vectors: (N, D)``.

With per-residue output ``residues: (T, D)`` and ``offsets: (N + 1,)`` stand in place of the vectors. What
made them are arrays of one value. Both ways the rows stream, and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from bioxfer.containers.stored import (
    FACTS,
    MOST_DIMENSIONS,
    RESIDUES,
    Facts,
    Stored,
    make_row,
    no_more_than,
    own_texts,
    reading,
)
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import FormatError, UsageError
from bioxfer.pooling import parse_pool

__all__ = ["open_npz", "write_npz"]

_PIECE = 2**20  # bytes of an array that are written or read at once
_STEM = ("ids", "lengths", "statuses", "messages")
_KINDS = {"ids": "U", "lengths": "iu", "statuses": "U", "messages": "U", "offsets": "iu"}
_MOST_TEXT = 2**26  # bytes of one text; each is as wide as the widest
_TIMES = 200  # as small as zeros get; embeddings are packed to a half at best
_LARGE = 2**30  # bytes that are unpacked without a question


def write_npz(
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


# --- reading ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[Stored]:
    """Open an archive that `write_npz` made; its records are read as a stream.

    Raises
    ------
    FormatError
        If an array is missing, of another kind or shape, holds objects, or unpacks to far more than is there.
    """
    source = os.fspath(path)
    with contextlib.ExitStack() as stack:
        with reading(source):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = _check_members(archive, source, os.path.getsize(path))
            per_residue = "residues" in members
            wanted = (*_STEM, *((RESIDUES, "offsets") if per_residue else ("vectors",)))
            if missing := [name for name in wanted if name not in members]:
                raise FormatError(
                    f"{source}: no array {missing[0]!r} (found: {', '.join(sorted(members)) or 'none'}); "
                    "this is no archive that bioxfer embed wrote"
                )
            arrays = {name: _Member(archive, members[name], name, source) for name in wanted}
            facts = own_texts({name: _fact(archive, members, name, source) for name in FACTS
                               if name in members})  # fmt: skip
            pool, width = _read_shapes(arrays, facts, source)

        def rows() -> Iterator[EmbeddedRecord]:
            streams = {name: _Stream(archive, each, source) for name, each in arrays.items()}
            count, end = arrays["ids"].shape[0], 0
            with contextlib.ExitStack() as opened:
                for stream in streams.values():
                    opened.callback(stream.close)
                with reading(source):
                    if per_residue and int(streams["offsets"].take(1)[0]) != 0:
                        raise FormatError(f"{source}: its offsets do not begin with 0; it is damaged")
                for number in range(count):
                    with reading(source):
                        identifier, length, status, message = (streams[n].take(1)[0] for n in _STEM)
                        place = f"{source}, record {number + 1} ({str(identifier)!r})"
                        if per_residue:
                            begin, end = end, int(streams["offsets"].take(1)[0])
                            if not begin <= end <= arrays[RESIDUES].shape[0]:
                                raise FormatError(
                                    f"{place}: offsets from {begin} to {end} of {arrays[RESIDUES].shape[0]} "
                                    "residues; the file is damaged"
                                )
                            values = streams[RESIDUES].take(end - begin) if end > begin else None
                        else:
                            values = streams["vectors"].take(1)[0]
                        row = make_row(
                            place,
                            str(identifier),
                            values,
                            pool,
                            width=width,
                            length=int(length),
                            status=str(status),
                            message=str(message),
                        )
                    yield row
                with reading(source):
                    if per_residue and end != arrays[RESIDUES].shape[0]:
                        raise FormatError(
                            f"{source}: {arrays[RESIDUES].shape[0] - end} residues are no record's"
                        )
                    for stream in streams.values():
                        stream.finish()  # where the checksums are seen

        yield Stored(source, width, pool, facts, rows)


class _Member:
    """An array in an archive: its type, shape, and where its numbers begin."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, source: str) -> None:
        self.info, self.name = info, name
        with archive.open(info) as file:
            version = np.lib.format.read_magic(cast("io.BytesIO", file))
            if version not in ((1, 0), (2, 0)):
                raise FormatError(
                    f"{source}: array {name!r} is of version {version}; save it again with numpy"
                )
            read = np.lib.format.read_array_header_1_0
            if version == (2, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, self.kind = read(cast("io.BytesIO", file))
            self.start = file.tell()
        self.shape = tuple(int(size) for size in shape)
        if self.kind.hasobject:
            raise FormatError(
                f"{source}: array {name!r} holds Python objects, which are never unpickled; save plain arrays"
            )
        numbers = 1
        for size in self.shape:
            numbers *= size
        if numbers < 0 or numbers * self.kind.itemsize != info.file_size - self.start:
            stated = " x ".join(map(str, self.shape)) or "one value"
            raise FormatError(
                f"{source}: array {name!r} states {stated} of {self.kind}, but has "
                f"{info.file_size - self.start} bytes; it is damaged"
            )
        if fortran and len(self.shape) > 1:
            raise FormatError(
                f"{source}: array {name!r} lies in columns; save it with numpy.ascontiguousarray"
            )
        if name in _KINDS and (self.kind.kind not in _KINDS[name] or len(self.shape) != 1):
            raise FormatError(
                f"{source}: array {name!r} is {len(self.shape)}-dimensional of {self.kind}, where a list of "
                f"{'texts' if _KINDS[name] == 'U' else 'whole numbers'} should be; it is none of bioxfer's"
            )
        no_more_than(_MOST_TEXT, self.kind.itemsize, f"bytes for each of {name!r}", source)


def _check_members(archive: zipfile.ZipFile, source: str, size: int) -> dict[str, zipfile.ZipInfo]:
    """Name the arrays of an archive; those that are no arrays' names are refused, and so is what swells."""
    names = Counter(info.filename for info in archive.infolist())
    for name, count in names.items():
        if "/" in name or "\\" in name or not name.endswith(".npy"):
            raise FormatError(f"{source}: holds {name!r}, which names no array; it was not made by numpy")
        if count > 1:
            raise FormatError(f"{source}: holds {name!r} {count} times; it was not made by numpy")
    total = sum(info.file_size for info in archive.infolist())
    if total > _LARGE and total > _TIMES * size:
        raise FormatError(
            f"{source}: {size} bytes would unpack to {total}; no embeddings do, so it is not opened"
        )
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _fact(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, source: str) -> object:
    member = _Member(archive, members[name], name, source)
    if member.shape not in ((), (1,)) or member.kind.kind not in "Uiu":
        return None
    with contextlib.closing(_Stream(archive, member, source)) as stream:
        return stream.take(1)[0].item()


def _read_shapes(arrays: dict[str, _Member], facts: Facts, source: str) -> tuple[str, int]:
    """Tell pooling and width, and that all arrays are of one length."""
    name = RESIDUES if RESIDUES in arrays else "vectors"
    numbers = arrays[name]
    if len(numbers.shape) != 2 or numbers.kind.kind != "f":
        raise FormatError(
            f"{source}: array {name!r} is {len(numbers.shape)}-dimensional of {numbers.kind}, where rows of "
            "floating-point numbers should be; it is no archive of bioxfer's"
        )
    no_more_than(MOST_DIMENSIONS, numbers.shape[1], "dimensions", source)
    count = arrays["ids"].shape[0]
    for each in arrays.values():
        long = count + (each.name == "offsets")
        if each.name != RESIDUES and each.shape[0] != long:
            raise FormatError(
                f"{source}: {each.shape[0]} {each.name} for {count} ids; the arrays do not belong together"
            )
    if name == RESIDUES:
        return RESIDUES, numbers.shape[1]
    pool = str(facts.get("pool", "mean"))
    try:
        parts = len(parse_pool(pool))
    except UsageError as error:
        raise FormatError(f"{source}: {error}") from error
    if numbers.shape[1] % parts:
        raise FormatError(f"{source}: {numbers.shape[1]} dimensions are no {pool}; it is damaged")
    return pool, numbers.shape[1] // parts


class _Stream:
    """Items of an array in an archive, read as they are asked for."""

    def __init__(self, archive: zipfile.ZipFile, member: _Member, source: str) -> None:
        self._file: IO[bytes] = archive.open(member.info)
        self._member, self._source = member, source
        self._each = member.kind.itemsize
        for size in member.shape[1:]:
            self._each *= size
        self._left = member.shape[0] if member.shape else 1
        self._held = b""
        self._at = 0
        self._skip(member.start)

    def _skip(self, count: int) -> None:
        if len(self._file.read(count)) != count:
            raise FormatError(f"{self._source}: array {self._member.name!r} is cut off; fetch the file again")

    def take(self, count: int) -> npt.NDArray[Any]:
        """Read the next items; an array, whatever their number."""
        wanted = count * self._each
        if len(self._held) - self._at < wanted:
            rest = self._held[self._at :]
            more = max(wanted - len(rest), min(_PIECE, self._each * self._left - len(rest)))
            self._held, self._at = rest + self._file.read(more), 0
        piece = self._held[self._at : self._at + wanted]
        if len(piece) < wanted:
            raise FormatError(f"{self._source}: array {self._member.name!r} is cut off; fetch the file again")
        self._at += wanted
        self._left -= count
        return np.frombuffer(piece, self._member.kind).reshape(count, *self._member.shape[1:])

    def finish(self) -> None:
        """Read to the end, where the archive's checksum is compared."""
        while self._file.read(_PIECE):
            pass

    def close(self) -> None:
        self._file.close()
