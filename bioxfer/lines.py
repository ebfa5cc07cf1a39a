"""From any file to numbered lines, and from lines to the rows of a table.

The layer under :mod:`bioxfer.io`: compression is told by the first bytes, lines
end in LF, CRLF or CR, a byte-order mark is dropped, and whatever goes wrong
has a file and a line.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import itertools
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Protocol

from bioxfer.errors import FormatError, InputError, MissingExtraError
from bioxfer.quoting import name_labels

__all__ = [
    "BYTE_ORDER_MARK",
    "decode",
    "delimiters_for",
    "input_name",
    "open_lines",
    "read_rows",
    "split_header",
    "table_suffix",
]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CHUNK = 1 << 16
_HEAD = 4096  # bytes that tell what a file is
_PIECE = 1 << 20  # bytes decompressed at once
_SLICE = 1 << 8  # compressed bytes that zstandard gets at once
_HEADER_LINES = 100  # of a table whose column names hold line ends
_BLANK = 1 << 24  # bytes of white space that a text may begin with
_LONGEST_CELL = 2**31 - 1  # the most that the csv module can be told on every system


class _Decoder(Protocol):
    """Reads one member of a compressed file, in pieces of a few megabytes however well it is compressed."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def pieces(self, data: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        # 16 + MAX_WBITS: zlib then reads a gzip header and checks the CRC at the end
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            yield self._decoder.decompress(data, _PIECE)
            data = self._decoder.unconsumed_tail


class _Blocks:
    """What bz2 and lzma agree on."""

    def __init__(self, decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._decoder = decoder

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield self._decoder.decompress(data, _PIECE)
        while not (self._decoder.eof or self._decoder.needs_input):
            yield self._decoder.decompress(b"", _PIECE)


class _Zstandard:
    """zstandard knows no bound, but 4 bytes hold 128 KiB at most."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.unused_data = b""

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _SLICE):
            yield self._decoder.decompress(data[start : start + _SLICE])
            if self._decoder.eof:
                self.unused_data = self._decoder.unused_data + data[start + _SLICE :]
                return


def _zstandard_decoder() -> _Decoder:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            "reading a Zstandard file needs an extra package; pip install 'bioxfer[zstd]'"
        ) from error
    # 2 GiB: what `zstd --long=31` writes; the library's own limit is 128 MiB.
    return _Zstandard(zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[], _Decoder]], ...] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"BZh", "bzip2", lambda: _Blocks(bz2.BZ2Decompressor())),
    (b"\xfd7zXZ\0", "xz", lambda: _Blocks(lzma.LZMADecompressor())),
    (b"\x28\xb5\x2f\xfd", "Zstandard", _zstandard_decoder),
)


def input_name(path: str | os.PathLike[str]) -> str:
    """Return the file's name for messages."""
    return "<stdin>" if _is_stdin(path) else os.fspath(path)


def _is_stdin(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path) == "-"


def _read_bytes(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the file's content, decompressed, in pieces."""
    source = input_name(path)
    with contextlib.ExitStack() as stack:
        try:
            stream: IO[bytes]
            if _is_stdin(path) and sys.stdin is None:
                raise InputError("cannot read standard input, which is closed; name a file")
            stream = sys.stdin.buffer if _is_stdin(path) else stack.enter_context(open(path, "rb"))
            first = stream.read(_CHUNK)
        except OSError as error:
            raise InputError(f"cannot read {source}: {error.strerror or error}") from error

        def raw() -> Iterator[bytes]:
            chunk = first
            while chunk:
                yield chunk
                try:
                    chunk = stream.read(_CHUNK)
                except OSError as error:
                    raise InputError(f"cannot read on in {source}: {error.strerror or error}") from error

        for magic, compression, new_decoder in _COMPRESSIONS:
            if first.startswith(magic):
                yield from _decompress(raw(), new_decoder, compression, source)
                return
        yield from raw()


def _decompress(
    chunks: Iterator[bytes], new_decoder: Callable[[], _Decoder], compression: str, source: str
) -> Iterator[bytes]:
    """Read every member of a compressed file (bgzf has many); a cut or damaged one is an error."""
    decoder: _Decoder | None = None
    for chunk in chunks:
        while chunk:
            if decoder is None:
                chunk = chunk.lstrip(b"\0")  # members may be padded with zeros
                if not chunk:
                    break
                decoder = new_decoder()
            try:
                yield from filter(None, decoder.pieces(chunk))
            except MemoryError:
                raise
            except Exception as error:  # zlib, lzma and zstandard each have a class of their own
                raise FormatError(
                    f"{source} is damaged: {compression} says {error}; fetch it again"
                ) from error
            chunk = b""
            if decoder.eof:
                chunk, decoder = decoder.unused_data, None
    if decoder is not None:
        raise FormatError(f"{source} is cut off: its {compression} data end too early; fetch it again")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at LF, CRLF or CR; the ends stay on the lines."""
    pending: list[bytes] = []
    for chunk in chunks:
        pending.append(chunk)
        # A chromosome on one line is joined once, not once a chunk.
        if b"\n" in chunk or b"\r" in chunk:
            lines = b"".join(pending).splitlines(keepends=True)
            # The last line may go on in the next chunk, and its CR may be half of a CRLF.
            pending = [lines.pop()]
            yield from lines
    yield from b"".join(pending).splitlines(keepends=True)


def _numbered_lines(chunks: Iterable[bytes], source: str) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(_lines(chunks), start=1):
        if b"\0" in line:
            raise FormatError(f"{source}, line {number}: a NUL byte; this is no text file, or a damaged one")
        yield number, line


def open_lines(path: str | os.PathLike[str]) -> tuple[bytes, Iterator[tuple[int, bytes]]]:
    """Return how the text begins, leading blanks aside, and all its lines with their numbers."""
    chunks = _read_bytes(path)
    head, blank = b"", 0
    while len(head) < len(BYTE_ORDER_MARK) and (chunk := next(chunks, b"")):
        head += chunk
    heads = [head.removeprefix(BYTE_ORDER_MARK)]
    start = heads[0].lstrip()
    while len(start) < _HEAD and (chunk := next(chunks, b"")):
        heads.append(chunk)
        blank += 0 if start else len(chunk)
        if blank > _BLANK:
            raise FormatError(f"{input_name(path)} begins with {blank} blanks and more; remove them")
        start = (start + chunk).lstrip()
    return start, _numbered_lines(itertools.chain(heads, chunks), input_name(path))


def decode(data: bytes) -> str:
    """Decode UTF-8; bytes that are not UTF-8 become lone surrogates, which encode back to them."""
    return data.decode("utf-8", "surrogateescape")


# --- delimited tables --------------------------------------------------------------------------------


def table_suffix(path: str | os.PathLike[str]) -> str:
    """Return ".csv", ".tsv" or "" by the name, compression aside."""
    stem = re.sub(r"\.(gz|bgz|bz2|xz|zst)$", "", os.fspath(path).lower())
    return {".csv": ".csv", ".tsv": ".tsv", ".tab": ".tsv"}.get(os.path.splitext(stem)[1], "")


def delimiters_for(path: str | os.PathLike[str]) -> str:
    """Return the delimiters to try, the likeliest by the name first."""
    return "\t,;" if table_suffix(path) == ".tsv" else ",\t;"


def split_header(line: str, delimiter: str) -> list[str]:
    """Return the column names of a header line."""
    try:
        cells = next(csv.reader([line.strip("\r\n")], delimiter=delimiter), [])
    except csv.Error:  # a line too long to be a header
        return []
    return [name.strip() for name in cells]


def read_rows(
    lines: Iterable[tuple[int, bytes]],
    source: str,
    delimiters: str,
    *,
    required: Sequence[str],
    optional: Sequence[str],
    header_error: type[InputError] = FormatError,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a delimited table after RFC 4180.

    Parameters
    ----------
    lines : iterable of (int, bytes)
        What :func:`open_lines` returns.
    source : str
        The file's name for messages.
    delimiters : str
        Candidates; the first under which the header has the required columns is taken.
    required, optional : sequence of str
        Columns that must be there once, and that may be there once.
    header_error : type of InputError
        What to raise if they are not.

    Yields
    ------
    line : int
        The first line of the row.
    row : dict of str to str
        Its cells by column, verbatim.
    """
    numbered = iter(lines)
    header_line, header = next(((n, line) for n, line in numbered if not line.isspace()), (1, b""))
    begun = [decode(header)]
    begun += [
        decode(line) for _, line in itertools.islice(numbered, _HEADER_LINES - 1 if b'"' in header else 0)
    ]
    choices = [(delimiter, *_read_header(begun, delimiter)) for delimiter in delimiters]
    delimiter, columns, taken = next((c for c in choices if set(required) <= set(c[1])), choices[0])
    for name in (*required, *optional):
        count = columns.count(name)
        if count > 1 or (count == 0 and name in required):
            raise header_error(
                f"{source}, line {header_line}: {'more than one' if count else 'no'} column {name!r} "
                f"(columns found: {name_labels(columns) or 'none'}); rename the columns"
            )
    if not taken:
        raise FormatError(f"{source}, line {header_line}: a header without an end; is a quote left open?")
    following = itertools.chain(begun[taken:], (decode(line) for _, line in numbered))
    reader = csv.reader(following, delimiter=delimiter, strict=True)
    line = header_line + taken
    while True:
        try:
            row = _next_row(reader)
        except csv.Error as error:
            raise FormatError(f"{source}, line {line}: {error}; is a quote left open?") from error
        if row is None:
            return
        if len(row) > 1 or "".join(row).strip():  # a blank line is no row
            if len(row) != len(columns):
                raise FormatError(
                    f"{source}, line {line}: {len(row)} cells where the header has {len(columns)}; "
                    "quote cells that hold the delimiter"
                )
            yield line, dict(zip(columns, row, strict=True))
        line = header_line + taken + reader.line_num


def _read_header(lines: Sequence[str], delimiter: str) -> tuple[list[str], int]:
    """Return the column names, and how many lines they take: a quoted one may hold line ends; 0: no end."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return [name.strip() for name in _next_row(reader) or []], reader.line_num
    except csv.Error:
        # Either a quote is left open, or there is more behind one that was closed, which does no harm.
        return split_header(lines[0], delimiter), 1 - lines[0].count('"') % 2


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """Read a row, or None at the end, whatever the length of its cells."""
    # The limit is one for the whole process, and its default is below the length of the longest proteins.
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)
