"""Output, whole or not at all.

A file is written under a temporary name in its target's folder, fsynced and
renamed, so that whatever interrupts the work leaves the old file as it was. What
a killed process leaves behind is removed when the same target is written again.
:class:`TableWriter` writes tables, :func:`publish` lends the same care to any
other writer, and :func:`check_output` refuses a hopeless target before work starts.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import lzma
import numbers
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, cast

from bioxfer.errors import MissingExtraError, OutputError, UsageError
from bioxfer.machine import find_obstacle

__all__ = [
    "TableFormat",
    "TableWriter",
    "check_output",
    "is_stream",
    "publish",
    "spell_id",
    "table_format",
    "write_lines",
]

TableFormat = Literal["csv", "tsv", "csv.gz", "tsv.gz", "csv.xz", "parquet"]

logger = logging.getLogger("bioxfer")

_FORMATS: tuple[TableFormat, ...] = ("csv", "tsv", "csv.gz", "tsv.gz", "csv.xz", "parquet")
_ROWS_OF_A_GROUP = 4096  # of a Parquet table that grows; each holds some MB of Python numbers
_FORMULA = re.compile(r"[=+\-@].", re.DOTALL)  # alone, as the sign of a strand, it is text
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BOUNDLESS = ("-inf", "+inf")  # a number that a spreadsheet cannot read, but no formula of a stranger's


def table_format(path: str | os.PathLike[str]) -> TableFormat:
    """Tell a table's format by its name.

    Parameters
    ----------
    path : path-like
        The target; ``-`` (standard output) is CSV, and so is a device without a suffix.

    Returns
    -------
    {"csv", "tsv", "csv.gz", "tsv.gz", "csv.xz", "parquet"}
        The format, compression included.

    Raises
    ------
    UsageError
        The suffix is none of these.

    Examples
    --------
    >>> table_format("predictions.csv.gz"), table_format("-")
    ('csv.gz', 'csv')
    """
    name = os.fspath(path)
    for known in _FORMATS:
        if name.lower().endswith(f".{known}"):
            return known
    if name == "-" or _is_special(name):
        return "csv"
    raise UsageError(f"cannot tell the table's format from {name!r}; end it in .{', .'.join(_FORMATS)}")


def check_output(
    path: str | os.PathLike[str], *, inputs: Iterable[str | os.PathLike[str]] = (), overwrite: bool = True
) -> None:
    """Refuse an output path that cannot work, before the work starts.

    Parameters
    ----------
    path : path-like
        The target; ``-`` is always fine.
    inputs : iterable of path-like
        Files the target must not be, whether by its name, a symbolic or a hard link.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        The target is an input, a folder, or exists against `overwrite`, or its
        folder is missing, a file or not writable.
    """
    name = os.fspath(path)
    if name == "-":
        return
    target = Path(os.path.realpath(name))
    for each in inputs:
        if os.fspath(each) == "-":
            continue
        source = Path(os.path.realpath(each))
        if source == target or (
            os.path.exists(source) and os.path.exists(target) and source.samefile(target)
        ):
            raise OutputError(f"output {name} is the input {os.fspath(each)}; choose another name")
    if os.path.isdir(target):  # unlike Path's, these take what may not be entered for absent
        raise OutputError(f"output {name} is a folder; name a file in it")
    if _is_special(name):
        if not os.access(target, os.W_OK):
            raise OutputError(f"output {name} is not writable; choose another one")
        return
    if os.path.exists(target) and not overwrite:
        raise OutputError(f"output {name} exists; choose another name or use --overwrite")
    folder = target.parent
    if (obstacle := find_obstacle(folder)) is not None:
        raise OutputError(
            f"output {name} cannot be written: {obstacle} is a file, not a folder; choose another name"
        )
    if any(os.path.isdir(each) and not os.access(each, os.X_OK) for each in target.parents):
        raise OutputError(f"output {name} cannot be written: the way to it is closed to you; choose another")
    if not os.path.isdir(folder):
        raise OutputError(f"output {name} cannot be written: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"output {name} cannot be written: folder {folder} is not writable; choose another")


@contextlib.contextmanager
def publish(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path that becomes the target when the block ends well.

    The temporary file lies in the target's folder and keeps its suffix. After
    the block it is fsynced and renamed; if the block raises, it is removed and
    the target stays as it was. A symbolic link is followed; a device or a pipe
    is written to directly.

    Parameters
    ----------
    path : path-like
        The target file.

    Yields
    ------
    pathlib.Path
        Where to write; an empty file, locked while the block runs.

    Raises
    ------
    OutputError
        The file system says no (disk full, folder missing or not writable).

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with publish(Path(folder, "vectors.bin")) as temporary:
    ...         size = temporary.write_bytes(b"whole")
    ...     sorted(entry.name for entry in Path(folder).iterdir())
    ['vectors.bin']
    """
    with _output_errors(path), _replacing(path) as temporary:
        yield temporary


class TableWriter:
    """Write a table row by row; a context manager.

    Text tables are UTF-8 with LF line ends and quotes after RFC 4180; bytes of
    the input that are not UTF-8 are written back as they were. The same rows
    give the same bytes, compressed or not. A Parquet table is written at the
    end, since the types of its columns need every row, unless `kinds` gives them.

    Parameters
    ----------
    path : path-like
        The target, its format told by the suffix (:func:`table_format`); ``-`` is
        standard output.
    columns : sequence of str
        The header.
    excel_safe : bool
        Put ``'`` before text that a spreadsheet would run as a formula (it starts
        with ``= + - @``). Without it such text is written verbatim, with one warning.
    overwrite : bool
        Whether an existing file may be replaced.
    kinds : sequence of {str, int, float}, optional
        Type of each column. A Parquet table then grows as rows come, and memory does not.

    Raises
    ------
    UsageError
        The suffix is unknown.
    MissingExtraError
        Parquet without its package.
    OutputError
        The target exists against `overwrite`, or the file system says no.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "lengths.csv")
    ...     with TableWriter(path, ["id", "length"]) as table:
    ...         table.write([("sp|P01542|CRAM_CRAAB", 46), ("one, two", None)])
    ...     print(path.read_text(), end="")
    id,length
    sp|P01542|CRAM_CRAAB,46
    "one, two",
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str],
        *,
        excel_safe: bool = False,
        overwrite: bool = True,
        kinds: Sequence[type[str] | type[int] | type[float]] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.columns = tuple(columns)
        self.kinds = kinds
        self.excel_safe = excel_safe
        self.format = table_format(path)
        self._delimiter = "\t" if self.format.startswith("tsv") else ","
        self._needs_quotes = re.compile(f'[{self._delimiter}"\r\n]')
        self._warned = False
        self._stack = contextlib.ExitStack()
        self._stream: IO[bytes] | None = None
        self._temporary: Path | None = None
        self._plain: dict[type, bool] = {}  # whether a kind of value is a number
        self._rows: list[Sequence[object]] = []  # of a Parquet table, those not yet written
        self._parquet: Any = None
        if self.format == "parquet":
            _import_pyarrow()
        check_output(path, overwrite=overwrite)

    def __enter__(self) -> TableWriter:
        """Open the temporary file and write the header."""
        with _output_errors(self.path), contextlib.ExitStack() as stack:
            if self.path == "-":
                if sys.stdout is None:
                    raise OutputError("cannot write standard output, which is closed; name a file")
                self._stream = sys.stdout.buffer
                stack.callback(self._stream.flush)
            else:
                self._temporary = stack.enter_context(_replacing(self.path))
                if self.format == "parquet":
                    stack.push(self._end_parquet)
                else:
                    self._stream = _open_stream(self._temporary, self.format, stack)
            if self.format != "parquet":
                self._append(self.columns)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Publish the table, or drop it if the block raised."""
        with _output_errors(self.path):
            self._stack.__exit__(kind, error, traceback)
        self._stream = None

    def write(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows.

        Parameters
        ----------
        rows : iterable of sequences
            One value a column; None is an empty cell.

        Raises
        ------
        ValueError
            A row is not as long as the header.
        OutputError
            The file system says no, or a text has no UTF-8 form.
        """
        for row in rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} values for {len(self.columns)} columns: {row!r}")
            with _output_errors(self.path):
                self._append(row)
        if self.path == "-":
            with _output_errors(self.path):
                sys.stdout.buffer.flush()

    def _append(self, row: Sequence[object]) -> None:
        if self.format == "parquet":
            self._rows.append(tuple(row))
            if self.kinds is not None and len(self._rows) >= _ROWS_OF_A_GROUP:
                self._write_group()
            return
        if self._stream is None:
            raise ValueError("the table is not open; write inside its with block")
        plain = self._plain
        cells = [
            # Most cells are numbers, which need none of the care for text.
            str(value) if plain.get(type(value)) else self._cell(name, value)
            for name, value in zip(self.columns, row, strict=True)
        ]
        line = self._delimiter.join(cells) + "\n"
        try:
            data = line.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise OutputError(f"cannot write {line!r} to {self.path}: it has no UTF-8 form") from error
        self._stream.write(data)

    def _cell(self, name: str, value: object) -> str:
        # str() and quotes of our own: the csv module's quoting of CR differs between Pythons 3.10 and 3.13.
        text = "" if value is None else str(value)
        if type(value) not in self._plain:
            self._plain[type(value)] = isinstance(value, numbers.Number)
        if isinstance(value, str) and _FORMULA.match(text) and (name == "id" or not _NUMBER.fullmatch(text)):
            if self.excel_safe:
                text = f"'{text}"
            elif not self._warned and (name == "id" or text not in _BOUNDLESS):
                self._warned = True
                logger.warning(
                    "%s: %s %r starts like a spreadsheet formula and is written verbatim; "
                    "use --excel-safe if a spreadsheet will open the table",
                    self.path,
                    name,
                    text,
                )
        # An empty cell alone on its line would read as a blank line.
        if self._needs_quotes.search(text) or (not text and len(self.columns) == 1):
            text = '"' + text.replace('"', '""') + '"'
        return text

    def _write_group(self) -> None:
        """Write the rows at hand, and begin the Parquet file if they are the first."""
        from pyarrow import parquet

        cells = zip(*self._rows, strict=True) if self._rows else ([] for _ in self.columns)
        kinds: Sequence[type | None] = self.kinds or [None] * len(self.columns)
        arrays = [_arrow_array(list(column), kind) for column, kind in zip(cells, kinds, strict=True)]
        self._rows.clear()
        table = _import_pyarrow().Table.from_arrays(arrays, names=list(self.columns))
        if self._parquet is None:
            self._parquet = parquet.ParquetWriter(self._temporary, table.schema)
        self._parquet.write_table(table)

    def _end_parquet(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None and (self._rows or self._parquet is None):
                self._write_group()
        finally:
            if self._parquet is not None:
                self._parquet.close()


def write_lines(path: str | os.PathLike[str], lines: Iterable[bytes]) -> None:
    """Write a text table whose lines, header first, are already as :class:`TableWriter` makes them.

    Raises
    ------
    OutputError
        The file system says no.
    """
    with _output_errors(path), _replacing(path) as temporary, contextlib.ExitStack() as stack:
        stream = _open_stream(temporary, table_format(path), stack)
        for line in lines:
            stream.write(line)


def spell_id(identifier: str, *, excel_safe: bool, parquet: bool) -> str:
    """Spell an id as a table holds it.

    >>> spell_id("=1+1", excel_safe=True, parquet=False)
    "'=1+1"
    """
    if excel_safe and not parquet and _FORMULA.match(identifier):
        identifier = f"'{identifier}"
    return _utf8(identifier) if parquet else identifier


# --- files -------------------------------------------------------------------------------------------


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Tell standard output, a pipe or a device, which may block for ever, from a file."""
    return os.fspath(path) == "-" or _is_special(path)


def _is_special(name: str | os.PathLike[str]) -> bool:
    """Tell a device or a pipe, which a rename would destroy, from a file."""
    try:
        mode = os.stat(name).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextlib.contextmanager
def _output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough; the command line ends quietly
        raise
    except OSError as error:
        name = "standard output" if os.fspath(path) == "-" else os.fspath(path)
        # In the system's own words: pyarrow adds some of its.
        reason = os.strerror(error.errno) if error.errno else error
        raise OutputError(f"cannot write {name}: {reason}; make room or choose another place") from error


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    if _is_special(path):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    prefix = f".bioxfer-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"
    _remove_abandoned(target.parent, prefix)
    # The suffix stays, since some writers (numpy.savez) append their own where it is missing.
    suffix = target.suffix if len(target.suffix) <= 16 else ""
    with _locked_file(target.parent, prefix, suffix) as temporary:
        yield temporary
        _sync(temporary)
        if target.exists():
            with contextlib.suppress(PermissionError):  # as on some network file systems
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        _sync(target.parent)


@contextlib.contextmanager
def _locked_file(folder: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """Make an empty file that is locked until the block ends, and then remove what is left of it."""
    while True:
        path = folder / f"{prefix}{secrets.token_hex(8)}{suffix}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _lock(descriptor, wait=True)
            # Another process may have taken it for abandoned before it was locked.
            if not path.exists():
                continue
            yield path
            return
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove temporary files whose process was killed: those that nobody holds a lock on."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(prefix)]
        for path in found:
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if _lock(descriptor, wait=False):
                        os.unlink(path)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock a file until its descriptor is closed, if only by the process's end; tell whether it is locked."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # another process has it, or this file system has no locks
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_stream(path: Path, format: TableFormat, stack: contextlib.ExitStack) -> IO[bytes]:
    stream = stack.enter_context(path.open("wb"))
    if format.endswith(".gz"):
        # No name and no time in the header: equal tables are equal bytes.
        packed = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0)
        return cast(IO[bytes], stack.enter_context(packed))
    if format.endswith(".xz"):
        return cast(IO[bytes], stack.enter_context(lzma.LZMAFile(stream, "wb")))
    return stream


# --- Parquet -----------------------------------------------------------------------------------------


def _import_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(
            "writing Parquet needs an extra package; pip install 'bioxfer[parquet]'"
        ) from error
    return pyarrow


def _arrow_array(values: list[object], kind: type | None = None) -> Any:
    """Make a column of one type: bool, int64, float64, or text for all else."""
    pyarrow = _import_pyarrow()
    if kind in (int, float):
        return pyarrow.array(values, type=pyarrow.int64() if kind is int else pyarrow.float64())
    if kind is str:
        return pyarrow.array([None if v is None else _utf8(str(v)) for v in values], pyarrow.large_string())
    present = [value for value in values if value is not None]
    kinds = ((bool, pyarrow.bool_()), (numbers.Integral, pyarrow.int64()), (numbers.Real, pyarrow.float64()))
    for each, arrow_type in kinds:
        if present and all(isinstance(value, each) for value in present):
            return pyarrow.array(values, type=arrow_type)
    # large_string: a column of plain strings ends at 2 GiB
    texts = [None if value is None else _utf8(str(value)) for value in values]
    return pyarrow.array(texts, type=pyarrow.large_string())


def _utf8(text: str) -> str:
    r"""Write bytes that are not UTF-8 as ``\xe9``; Parquet text cannot hold them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
