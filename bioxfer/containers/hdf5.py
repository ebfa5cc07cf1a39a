"""HDF5 as UniProt lays it out: one dataset for each protein, ``(D,)`` or ``(L, D)``, under its accession.

The key of ``sp|P01308|INS_HUMAN`` or ``tr|...`` is its accession, ``P01308``; that of any other id is the id.
Where such a key is taken already the whole id takes its place; and an id that HDF5 would make something else
of (it holds ``/`` or a character that does not print, is empty or nothing but dots), or that holds ``%``, is
written with these as ``%2F``, as in addresses. A key that is taken even then gets ``%%2``, ``%%3``, ...
behind it. No two ids get one key, and the attribute ``original_id`` holds every id verbatim.

What biotrainer (keys are hashes of sequences) and bio_embeddings (keys are numbers) write is read as well.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bioxfer.containers.stored import (
    FACTS,
    MOST_DIMENSIONS,
    RESIDUES,
    UNKNOWN,
    Facts,
    Stored,
    make_row,
    no_more_than,
    own_texts,
    reading,
)
from bioxfer.embedding import EmbeddedRecord
from bioxfer.engine import Vector
from bioxfer.errors import DuplicateIdError, FormatError, MissingExtraError, UsageError
from bioxfer.pooling import parse_pool

__all__ = ["Keeping", "accession_of", "check_array", "import_h5py", "open_hdf5", "own_link", "write_hdf5"]

logger = logging.getLogger(__name__)

_UNIPROT = ("sp", "tr")  # Swiss-Prot and TrEMBL; other databases' second parts need not name one protein
_TIMES = 2000  # deflate packs zeros a thousandfold
_LARGE = 2**26  # bytes that are read without a question
_DEEPEST = 64  # groups in groups, as slashes in the keys of other tools make them


def write_hdf5(
    path: Path, rows: Iterable[EmbeddedRecord], *, pool: str, facts: Facts, per_residue: bool
) -> None:
    """Write one dataset for each record, in order; empty where there is no vector."""
    h5py = import_h5py()
    keys = _Keys()
    raw = Keeping(path, "w+")
    try:
        # Where the order is tracked, a reader meets the records in input order.
        with raw, h5py.File(raw, "w", track_order=True) as file:
            for name, value in facts.items():
                file.attrs[name] = value
            for number, each in enumerate(rows):
                if raw.error is not None:
                    break
                found = each.residues if per_residue else each.vector(pool)
                data: Vector = np.empty(0, dtype=np.float32) if found is None else found
                entry = file.create_dataset(keys.name(each.record.id), data=data)
                entry.attrs["original_id"] = _as_text(each.record.id)
                entry.attrs["number"] = number
                if each.length != UNKNOWN:
                    entry.attrs["length"] = each.length
                entry.attrs["status"] = each.status
                entry.attrs["message"] = _as_text(each.message)
    finally:
        if raw.error is not None:
            raise raw.error
    if keys.respelled:
        identifier, key = keys.first
        logger.info(
            "%d %s no plain or free key of HDF5 and spelled otherwise (%r as %r); the attribute original_id "
            "holds every id",
            keys.respelled,
            "id is" if keys.respelled == 1 else "ids are",
            identifier,
            key,
        )


class Keeping(io.FileIO):
    """A file that keeps its first error instead of raising it.

    The HDF5 library does not survive an error that a Python file raises while it flushes: it ends in a
    segmentation fault. So it is told that all is well, and the error is raised when it has let go.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it, or take down why that failed."""
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Change the size, or take down why that failed."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def readinto(self, buffer: Any, /) -> int:
        """Read as much as there is room for."""
        view = memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        view[count:] = bytes(len(view) - count)  # what was never written reads as zeros
        return len(view)


def accession_of(identifier: str) -> str:
    """Give the accession of an id of UniProt's, and any other id as it is.

    Examples
    --------
    >>> accession_of("sp|P01308|INS_HUMAN"), accession_of("pdb|4INS|A")
    ('P01308', 'pdb|4INS|A')
    """
    parts = identifier.split("|")
    return parts[1] if len(parts) == 3 and parts[0] in _UNIPROT else identifier


class _Keys:
    """Names datasets; no two ids get one key."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self.respelled = 0
        self.first = ("", "")

    def name(self, identifier: str) -> str:
        for key in (accession_of(identifier), identifier):
            if key not in self._taken and _spell(key) == key:
                self._taken.add(key)
                return key
        key = spelled = _spell(identifier)
        number = 1
        while key in self._taken:
            number += 1
            key = f"{spelled}%%{number}"
        self._taken.add(key)
        if not self.respelled:
            self.first = (identifier, key)
        self.respelled += 1
        return key


def _spell(identifier: str) -> str:
    """Write what HDF5 does not take for a plain name as ``%2F``; an empty name as ``%``."""
    if identifier and set(identifier) <= {"."}:
        return "%2E" * len(identifier)
    return "".join(_spell_character(each) for each in identifier) or "%"


def _spell_character(character: str) -> str:
    if character in "/%" or not character.isprintable():
        return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))
    return character


def _as_text(text: str) -> str | bytes:
    """Keep text as text, and bytes that are not UTF-8 as bytes."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def import_h5py() -> Any:
    """Import h5py, or say how to install it."""
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("HDF5 needs a package of its own: pip install 'bioxfer[hdf5]'") from error
    return h5py


# --- reading ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_hdf5(path: str | os.PathLike[str]) -> Iterator[Stored]:
    """Open a file of one dataset for each protein, ours, UniProt's, biotrainer's or bio_embeddings'.

    Records come in the file's order: as they were written where it knows that, else by key, numbers as
    numbers. Keys within groups, which slashes make, are joined by them.

    Raises
    ------
    FormatError
        If the file is none, its datasets are not of one kind, or something in it lies in another file.
    """
    h5py = import_h5py()
    source = os.fspath(path)
    with contextlib.ExitStack() as stack:
        with reading(source):
            file = stack.enter_context(h5py.File(path, "r"))
            facts = own_texts({name: file.attrs[name] for name in FACTS if name in file.attrs})
            pool, width = _survey(file, facts, source)

        def read(key: str) -> EmbeddedRecord:
            with reading(f"{source}, {key!r}"):
                return _read_entry(file, key, pool, width, source)

        def rows() -> Iterator[EmbeddedRecord]:
            seen: dict[str, str] = {}
            for key in _keys(file, source):
                row = read(key)
                _note(row.record.id, key, seen, source)
                yield row

        def find() -> Mapping[str, str]:
            found: dict[str, str] = {}
            for key in _keys(file, source):
                with reading(f"{source}, {key!r}"):
                    _note(_id_of(file[key], key), key, found, source)
            return found

        yield Stored(source, width, pool, facts, rows, find=find, read=read)


def _note(identifier: str, key: str, seen: dict[str, str], source: str) -> None:
    first = seen.setdefault(identifier, key)
    if first != key:
        raise DuplicateIdError(
            f"{source}: {first!r} and {key!r} both have the id {identifier!r}; every protein needs its own"
        )


def _keys(
    group: Any, source: str, prefix: str = "", met: set[tuple[int, int]] | None = None
) -> Iterator[str]:
    """Give the keys of all datasets, each after its links were looked at; no group is met twice."""
    h5py = import_h5py()
    met = {_place_of(group)} if met is None else met
    with reading(source):
        names = list(group)
        # Numbers as numbers, unless the file itself knows the order in which they were written.
        tracked = group["."].id.get_create_plist().get_link_creation_order() if names else 0
        if not tracked and all(name.isdecimal() for name in names):
            names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    for name in names:
        key = f"{prefix}{name}"
        with reading(f"{source}, {key!r}"):
            entry = own_link(group, name, f"{source}, {key!r}")
            inner = isinstance(entry, h5py.Group)
            if inner and (_place_of(entry) in met or key.count("/") > _DEEPEST):
                raise FormatError(
                    f"{source}, {key!r}: a group that the file holds twice, or too deep; it is damaged"
                )
        if inner:
            met.add(_place_of(entry))
            yield from _keys(entry, source, f"{key}/", met)
        else:
            yield key


def _place_of(group: Any) -> tuple[int, int]:
    found = import_h5py().h5o.get_info(group.id)
    return found.fileno, found.addr


def own_link(group: Any, name: str, place: str) -> Any:
    """Get what a group holds under a name; what a link would fetch from elsewhere is refused.

    Raises
    ------
    FormatError
        For a soft or external link, and what is neither a group nor a dataset.
    """
    h5py = import_h5py()
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        target = getattr(link, "filename", None)
        told = f"a link to another file, {target!r}" if target is not None else "a link to another name"
        raise FormatError(f"{place}: {told}, which is not followed; give a file that holds its data itself")
    entry = group[name]
    if not isinstance(entry, (h5py.Group, h5py.Dataset)):
        raise FormatError(f"{place}: is neither a group nor a dataset; this is no file of embeddings")
    return entry


def check_array(entry: Any, place: str) -> None:
    """Hold a dataset to be floating-point numbers that lie in the file itself.

    Raises
    ------
    FormatError
        If they do not, are of another type, were never written, or far more than the file has bytes for.
    """
    if entry.is_virtual or entry.external:
        raise FormatError(
            f"{place}: its numbers lie in other files, which are not opened; copy them into one"
        )
    if entry.dtype.kind != "f":
        raise FormatError(
            f"{place}: holds {entry.dtype}, where floating-point numbers should be; it is no embedding"
        )
    if entry.shape is None:
        raise FormatError(f"{place}: has no shape; it is no embedding")
    there = entry.id.get_storage_size()
    if entry.size and (not there or (entry.nbytes > _LARGE and entry.nbytes > _TIMES * there)):
        raise FormatError(
            f"{place}: states {entry.size} numbers but has {there} bytes of them; the file is damaged"
        )


def _survey(file: Any, facts: Facts, source: str) -> tuple[str, int]:
    """Tell pooling and width by the facts and the first dataset that is not empty."""
    pool = facts.get("pool")
    for key in _keys(file, source):
        place = f"{source}, {key!r}"
        entry = file[key]
        check_array(entry, place)
        if entry.size == 0:
            continue
        if entry.ndim not in (1, 2):
            raise FormatError(
                f"{place}: has {entry.ndim} dimensions, where (D,) or (L, D) should be; choose a layer"
            )
        no_more_than(MOST_DIMENSIONS, entry.shape[-1], "dimensions", place)
        if entry.ndim == 2:
            return RESIDUES, int(entry.shape[1])
        # UniProt, biotrainer and bio_embeddings average, and say nothing of it.
        pool = "mean" if pool in (None, RESIDUES) else str(pool)
        try:
            parts = len(parse_pool(pool))
        except UsageError as error:
            raise FormatError(f"{source}: {error}") from error
        if entry.size % parts:
            raise FormatError(f"{place}: {entry.size} dimensions are no {pool}; the file is damaged")
        return pool, int(entry.size) // parts
    return str(pool or "mean"), 0


def _read_entry(file: Any, key: str, pool: str, width: int, source: str) -> EmbeddedRecord:
    entry = file[key]
    identifier = _id_of(entry, key)
    place = f"{source}, {key!r}"
    check_array(entry, place)
    length = entry.attrs.get("length", UNKNOWN)
    status = entry.attrs.get("status")
    return make_row(
        place,
        identifier,
        entry[()] if entry.size else None,
        pool,
        width=width,
        length=int(length),
        status=None if status is None else _read_text(status),
        message=_read_text(entry.attrs.get("message", "")),
    )


def _id_of(entry: Any, key: str) -> str:
    found = entry.attrs.get("original_id")
    return key if found is None else _read_text(found)


def _read_text(value: object) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)
