"""Ids that were read: which, and in what line, in memory that does not grow with their number."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Literal

from bioxfer.errors import DuplicateIdError, InputError
from bioxfer.sequences import SequenceRecord

__all__ = ["OnDuplicate", "SeenIds", "make_unique"]

OnDuplicate = Literal["error", "rename"]

_RECENT = 1 << 16  # ids held in memory, about 10 MB; older ones lie in a file of SQLite's


class SeenIds:
    """The ids of a file, so far as it was read.

    Older ones are kept as 128-bit digests in a private file among the system's temporary ones, which
    disappears with the process. Among a billion ids the chance of two with one digest is 10^-21.

    Examples
    --------
    >>> with SeenIds() as seen:
    ...     seen.add("P01542", 1)
    ...     seen.line_of("P01542"), seen.line_of("P69905")
    (1, None)
    """

    def __init__(self) -> None:
        self._recent: dict[str, int] = {}
        self._older: sqlite3.Connection | None = None

    def line_of(self, identifier: str) -> int | None:
        """Return the line in which an id was read, None if it was not.

        Raises
        ------
        InputError
            The temporary file cannot be read.
        """
        line = self._recent.get(identifier)
        if line is not None or self._older is None:
            return line
        try:
            rows = self._older.execute("SELECT line FROM seen WHERE id = ?", (_digest(identifier),))
            found = rows.fetchone()
        except sqlite3.Error as error:
            raise _refusal(error) from error
        return None if found is None else int(found[0])

    def add(self, identifier: str, line: int) -> None:
        """Take down where an id was read that was not there before.

        Raises
        ------
        InputError
            The temporary file cannot be written.
        """
        self._recent[identifier] = line
        if len(self._recent) < _RECENT:
            return
        try:
            if self._older is None:
                # A reader may run in one thread and be closed in another.
                self._older = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                self._older.execute("PRAGMA synchronous = OFF")
                self._older.execute("PRAGMA journal_mode = OFF")
                self._older.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID")
            rows = sorted((_digest(each), number) for each, number in self._recent.items())
            self._older.execute("BEGIN")
            self._older.executemany("INSERT INTO seen VALUES (?, ?)", rows)
            self._older.execute("COMMIT")
        except sqlite3.Error as error:
            raise _refusal(error) from error
        self._recent.clear()

    def close(self) -> None:
        """Forget all of them."""
        self._recent.clear()
        if self._older is not None:
            self._older.close()

    def __enter__(self) -> SeenIds:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def make_unique(
    records: Iterable[SequenceRecord], on_duplicate: OnDuplicate
) -> Generator[SequenceRecord, None, None]:
    """Pass records on; a second one of the same id is refused, or called ``id_2``, ``id_3``, ...

    Raises
    ------
    DuplicateIdError
        Two records have one id, under ``on_duplicate="error"``.
    InputError
        The ids cannot be kept.
    """
    copies: dict[str, int] = {}
    with SeenIds() as seen:
        for record in records:
            identifier = record.id
            line = seen.line_of(identifier)
            if line is not None:
                if on_duplicate == "error":
                    raise DuplicateIdError(
                        f"{record.source}, line {record.line}: id {identifier!r} is already used in line "
                        f"{line}; make ids unique or use --on-duplicate rename"
                    )
                number = copies.get(identifier, 1)
                while seen.line_of(identifier) is not None:
                    number += 1
                    identifier = f"{record.id}_{number}"
                copies[record.id] = number
                record = replace(record, id=identifier, renamed_from=record.id)
            seen.add(identifier, record.line)
            yield record


def _digest(identifier: str) -> bytes:
    # Bytes of a header that are not UTF-8 are surrogates (PEP 383).
    return hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _refusal(error: sqlite3.Error) -> InputError:
    return InputError(
        f"the ids read so far cannot be kept in the folder of temporary files ({error}); make room there, "
        "or name another folder with SQLITE_TMPDIR"
    )
