"""Shards: one output in parts, which machines that know nothing of each other can make.

Of n parts in blocks of b records, record r of the input (from 0, after translation and the check of ids)
belongs to part ``(r // b) % n``. A part is a file like any other output. Beside it lies its mark,
``PART.json``, which is written after it: a part without one is not finished. The mark says what was asked, of
what input, and what the part holds, so that a finished part is known again and parts of different requests
are never joined.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bioxfer.errors import FormatError, InputError, OutputError, UsageError
from bioxfer.metadata import parse_metadata
from bioxfer.output import check_output, is_stream, publish
from bioxfer.sequences import SequenceRecord

__all__ = [
    "Input",
    "Mark",
    "Shard",
    "Tally",
    "check_parts",
    "find_finished",
    "find_parts",
    "finish_part",
    "name_mark",
    "name_part",
    "parse_shard",
    "read_mark",
    "sum_file",
    "take",
]

_LAYOUT = 1  # of a mark
_SUFFIXES = re.compile(r"(\.(csv|tsv)\.(gz|xz)|\.[^./]*)$", re.IGNORECASE)
_PIECE = 2**20  # bytes of a file that are read at once
_LARGEST_MARK = 2**20  # bytes; a mark is about a thousand


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of several.

    Attributes
    ----------
    number : int
        Which, from 1.
    of : int
        How many there are.
    block : int
        Consecutive records that belong together.

    Examples
    --------
    >>> [r for r in range(8) if Shard(2, 3).keeps(r)], Shard(2, 3).count(8)
    ([1, 4, 7], 3)
    """

    number: int
    of: int
    block: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def keeps(self, place: int) -> bool:
        """Tell whether the record of this place, from 0, belongs to the part."""
        return place // self.block % self.of == self.number - 1

    def count(self, records: int) -> int:
        """Count the records of the part where there are so many in all."""
        rounds, rest = divmod(records, self.of * self.block)
        return rounds * self.block + min(max(rest - (self.number - 1) * self.block, 0), self.block)


def parse_shard(text: str) -> Shard:
    """Read ``3/8``, the third of eight parts.

    Raises
    ------
    UsageError
        It is none of 1/N to N/N.

    Examples
    --------
    >>> parse_shard("3/8")
    Shard(number=3, of=8, block=1)
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if of < 1:
        raise UsageError(f"shard {text!r} is not one of so many, such as 3/8; give I/N")
    if not 1 <= number <= of:
        raise UsageError(f"there is no shard {text}; shards are counted from 1/{of} to {of}/{of}")
    return Shard(number, of)


def name_part(out: str | os.PathLike[str], shard: Shard) -> str:
    """Name the file of a part.

    Examples
    --------
    >>> name_part("out.csv.gz", Shard(3, 8))
    'out-00003-of-00008.csv.gz'
    """
    start, suffix = _split_suffix(os.fspath(out))
    return f"{start}-{shard.number:05d}-of-{shard.of:05d}{suffix}"


def name_mark(part: str | os.PathLike[str]) -> str:
    """Name the file of a part's mark."""
    return f"{os.fspath(part)}.json"


def find_parts(out: str | os.PathLike[str]) -> list[str]:
    """Find the parts that lie beside an output of this name, finished or not, in the order of their names."""
    start, suffix = _split_suffix(os.path.basename(out))
    folder = os.path.dirname(out)
    name = re.compile(rf"{re.escape(start)}-[0-9]{{5,}}-of-[0-9]{{5,}}{re.escape(suffix)}")
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        found = sorted(entry.name for entry in entries if name.fullmatch(entry.name))
        return [os.path.join(folder, each) for each in found]
    return []


def _split_suffix(path: str) -> tuple[str, str]:
    found = _SUFFIXES.search(path)
    return (path[: found.start()], found[0]) if found else (path, "")


# --- records -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Input:
    """What was read: how many records there were, and a digest of all that their rows are made of."""

    records: int
    sha256: str

    def differ(self, other: Input) -> str:
        """Word how it differs from another input, whose numbers follow this one's; empty if it does not."""
        if self.records != other.records:
            return f"{self.records} records, not {other.records}"
        return "" if self == other else f"as many records, {self.records}, but other ids or residues"


class Tally:
    """Counts and digests the records that pass.

    Examples
    --------
    >>> tally = Tally()
    >>> tally.add(SequenceRecord("a", "MKV"))
    >>> tally.total.records
    1
    """

    def __init__(self) -> None:
        self._records = 0
        self._digest = hashlib.sha256()

    def add(self, record: SequenceRecord) -> None:
        """Take a record down."""
        self._records += 1
        fields = [record.id, record.sequence, record.renamed_from or "", record.note]
        if record.origin is not None:
            fields.append(repr(record.origin.cells))
        # With their lengths, so that no two lists of fields run together into one text.
        fields.insert(0, ",".join(str(len(each)) for each in fields))
        self._digest.update("".join(fields).encode("utf-8", "surrogatepass"))

    @property
    def total(self) -> Input:
        """What has passed so far."""
        return Input(self._records, self._digest.hexdigest())


def take(records: Iterable[SequenceRecord], shard: Shard | None, tally: Tally) -> Iterator[SequenceRecord]:
    """Yield the records of a part, none without one, and read all of them: all are checked and counted.

    Parameters
    ----------
    records : iterable of SequenceRecord
        All records of the input.
    shard : Shard or None
        The part.
    tally : Tally
        Takes all of them down; complete when this generator ends.
    """
    for place, record in enumerate(records):
        tally.add(record)
        if shard is not None and shard.keeps(place):
            yield record


# --- parts and marks ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a finished part.

    Attributes
    ----------
    shard : Shard
        Which part it is.
    request : dict
        What decides the values: command, version, options, fingerprints.
    command : str
        The command line that makes the parts, as a shell reads it, without the choice of one.
    input : Input
        All records of the input.
    records : int
        Those of the part.
    statuses : dict of str to int
        The same by status.
    sha256 : str
        Of the part's bytes.
    """

    shard: Shard
    request: dict[str, Any]
    command: str
    input: Input
    records: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    sha256: str = ""

    def compare(self, request: dict[str, Any], shard: Shard) -> str:
        """Word the first difference to another request; empty if there is none."""
        for name, was, now in (
            *((name, self.request.get(name), request.get(name)) for name in {**request, **self.request}),
            ("number of parts", self.shard.of, shard.of),
            ("records of a block", self.shard.block, shard.block),
        ):
            if was != now:
                return f"{name} {_show(was)}, not {_show(now)}"
        return ""

    def check_input(self, part: str, given: Input) -> None:
        """Refuse a finished part that was made from another input.

        Raises
        ------
        OutputError
            It was.
        """
        if difference := self.input.differ(given):
            raise OutputError(
                f"{part} was made from another input ({difference}); use --overwrite to make it anew, or "
                "name another output"
            )


def check_parts(
    out: str | os.PathLike[str],
    *,
    shard: Shard | None = None,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse an output that cannot be made in parts, before the work starts.

    Parameters
    ----------
    out : path
        The output that the parts are of.
    shard : Shard, optional
        The part that is to be made, if it is known by now.
    inputs : iterable of path
        Files that must not be replaced.

    Raises
    ------
    OutputError
        It is a stream, or one of its parts could not be written; see `check_output`.
    """
    if is_stream(out):
        raise OutputError(f"parts are files, and {os.fspath(out)} is none; name one with -o, such as out.csv")
    given = list(inputs)
    part = name_part(out, shard or Shard(1, 1))
    for path in (out, part, name_mark(part)):
        check_output(path, inputs=given)


def find_finished(part: str, request: dict[str, Any], shard: Shard, *, overwrite: bool) -> Mark | None:
    """Find the mark of a part that was finished for the same request.

    Parameters
    ----------
    part : str
        The part's file.
    request : dict
        What is asked now.
    shard : Shard
        Which part it is.
    overwrite : bool
        Whether whatever is there may be replaced.

    Returns
    -------
    Mark or None
        None if the part is to be made: it is not there, not finished or damaged.

    Raises
    ------
    OutputError
        It was made for another request, or its mark cannot be read, and `overwrite` is false.
    """
    if overwrite or not (os.path.exists(part) and os.path.exists(name_mark(part))):
        return None
    try:
        mark = read_mark(part)
    except InputError as error:
        raise OutputError(f"{error}, or use --overwrite") from error
    if difference := mark.compare(request, shard):
        raise OutputError(
            f"{part} was made with {difference}; use --overwrite to make it anew, or name another output"
        )
    return mark if sum_file(part) == mark.sha256 else None


def finish_part(part: str, mark: Mark, write: Callable[[], Counter[str]], total: Callable[[], Input]) -> Mark:
    """Have a part written, and put its mark beside it.

    Parameters
    ----------
    part : str
        The part's file.
    mark : Mark
        What is known of it beforehand.
    write : callable
        Writes the file, whole or not at all, and counts its records by status.
    total : callable
        Gives all records of the input when the file is written.

    Returns
    -------
    Mark
        The whole mark.

    Raises
    ------
    OutputError
        The file system says no.
    """
    # An old mark stays until it is replaced: of a new part it tells another digest, of an old one the truth.
    statuses = write()
    done = replace(
        mark,
        input=total(),
        records=sum(statuses.values()),
        statuses=dict(sorted(statuses.items())),
        sha256=sum_file(part),
    )
    text = json.dumps({"bioxfer_part": _LAYOUT, **asdict(done)}, indent=1) + "\n"
    with publish(name_mark(part)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return done


def read_mark(part: str) -> Mark:
    """Read the mark of a part.

    Raises
    ------
    InputError
        It cannot be read.
    FormatError
        It is not a mark.
    """
    path = name_mark(part)
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_MARK + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; make the part anew") from error
    try:
        if len(data) > _LARGEST_MARK:
            raise ValueError("it is too large")
        return _as_mark(parse_metadata(data.decode()))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is not the mark of a part ({error}); make the part anew") from error


def _as_mark(found: dict[str, Any]) -> Mark:
    if found["bioxfer_part"] != _LAYOUT:
        raise ValueError(f"its layout is {found['bioxfer_part']!r}, not {_LAYOUT}")
    shard = Shard(**found["shard"])
    given = Input(**found["input"])
    for name, value, kind in (
        *((name, getattr(shard, name), int) for name in ("number", "of", "block")),
        ("records", given.records, int),
        ("sha256", given.sha256, str),
        *((name, found[name], kind) for name, kind in _KINDS.items()),
        *((f"status {name}", count, int) for name, count in found["statuses"].items()),
    ):
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} is {value!r}")
    if not 1 <= shard.number <= shard.of or shard.block < 1:
        raise ValueError(f"there is no shard {shard} of blocks of {shard.block}")
    return Mark(shard=shard, input=given, **{name: found[name] for name in _KINDS})


_KINDS = {"request": dict, "command": str, "records": int, "statuses": dict, "sha256": str}


def sum_file(path: str) -> str:
    """Give the SHA-256 of a file.

    Raises
    ------
    InputError
        It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; make it anew") from error
    return digest.hexdigest()


def _show(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
