"""Fetching weights: from several places in turn, taken up where it stopped, whole and checked or not at all.

What has arrived lies in ``.NAME.pt.part`` beside the target until it is whole,
so that a killed download goes on with the next run; ``.NAME.pt.part.json``
notes the server's mark of that version (its ETag). No server is believed: what
it says of lengths and ranges only decides what is asked for next, and the
whole file is held against its sha256, or, where nobody knows that, against the
checksums of the archive it is.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from bioxfer.backbones.weights import (
    BLOCK,
    PUBLISHER,
    WeightsCheck,
    find_damage,
    hex_digest,
    is_offline,
    read_record,
    record_of,
    sha256_of,
    write_record,
)
from bioxfer.errors import OfflineError, OutputError, UsageError, WeightsError
from bioxfer.machine import expand_home

__all__ = [
    "ATTEMPTS",
    "PAUSE",
    "TEMPORARY",
    "TIMEOUT",
    "RefusedError",
    "fetch_weights",
    "mirrors",
    "opener",
    "part_of",
    "without_secrets",
]

ATTEMPTS = 3  # rounds over all places
PAUSE = 1.0  # seconds before the second round, twice as many before the third
TIMEOUT = 60.0  # seconds of silence on the connection
SLOWEST = 1024  # bytes a second, over a minute; 30 MB, the smallest model, would take eight hours
LARGEST = 64 << 30  # bytes; fair-esm's largest, of 15 billion float32 numbers, is smaller
TEMPORARY = (408, 425, 429)  # answers below 500 that another time may mend
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EISDIR: "move that folder away",
}

Progress = Callable[[int, int | None], None]

log = logging.getLogger("bioxfer")


def mirrors(given: Sequence[str] = (), *, publisher: str = PUBLISHER) -> list[str]:
    """List the folders that weights are fetched from, in the order in which they are tried.

    Parameters
    ----------
    given : sequence of str, optional
        Web addresses, or folders of this machine. If there are any, they are all.
    publisher : str, optional
        Where the model is published.

    Returns
    -------
    list of str
        What was given; else what ``BIOXFER_MIRRORS`` lists, separated by commas, and then the publisher.

    Raises
    ------
    UsageError
        If one is neither a plain http or https address nor a path.
    """
    listed = [part.strip() for part in os.environ.get("BIOXFER_MIRRORS", "").split(",")]
    found = list(given) or [*filter(None, listed), publisher]
    for place in found:
        _check_place(place)
    return list(dict.fromkeys(found))


def without_secrets(place: str) -> str:
    """Leave out of an address what may be a password or a key."""
    plain = re.sub(r"[?#].*", "?...", place, flags=re.DOTALL)
    return re.sub(r"://.*@", "://...@", plain, flags=re.DOTALL)


def part_of(target: Path) -> Path:
    """Name the file that holds what has arrived of an unfinished download."""
    return target.with_name(f".{target.name}.part")


def fetch_weights(
    places: str | Sequence[str],
    target: Path,
    *,
    sha256: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> WeightsCheck:
    """Fetch a torch checkpoint; it appears under its name whole and checked, or not at all.

    All places are tried in turn, three times at most. A connection that breaks
    is taken up where it broke, by the next place or the next run; what arrives
    damaged is fetched again from its start.

    Parameters
    ----------
    places : str or sequence of str
        Where the file lies: web addresses, or paths of this machine.
    target : Path
        Where it is to lie.
    sha256 : str, optional
        The hash it must have. If not given, the record beside ``target``
        counts, if there is one.
    offline : bool, optional
        Open no socket, and so leave out the web addresses; so does ``BIOXFER_OFFLINE=1``.
    progress : callable, optional
        Called with bytes so far and, where known, bytes in all.

    Raises
    ------
    UsageError
        If a place is neither a plain http or https address nor a path.
    OfflineError
        If the network is forbidden and no place is a path.
    WeightsError
        If the file cannot be fetched or is still damaged at the last attempt.
    OutputError
        If it cannot be written.
    """
    wanted = [places] if isinstance(places, str) else list(places)
    for place in wanted:
        _check_place(place)
    if is_offline(offline):
        wanted = [place for place in wanted if not _is_address(place)]
        if not wanted:
            raise OfflineError(
                f"{target.name} is not in {target.parent} and the network is forbidden; where it is allowed, "
                f"run: bioxfer models download {target.stem}"
            )
    expected = hex_digest(sha256) if sha256 is not None else read_record(record_of(target))
    try:
        with _open_part(target) as part:
            found = _fetch_checked(wanted, part, expected=expected, progress=progress)
            part.publish(target)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "name another folder (--into, TORCH_HOME)")
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); {remedy}") from error
    write_record(record_of(target), found, target.name)
    return WeightsCheck(path=target, sha256=found, known=expected is not None)


class _BrokenTransferError(Exception):
    """The connection failed; what has arrived is good as far as it goes."""


class RefusedError(Exception):
    """The place will not give the file, however often it is asked."""


class _NoRoomError(RefusedError):
    """What the place announces is more than the disk has room for."""


class _Part:
    """What has arrived, and what the server called that version.

    Parameters
    ----------
    file : BinaryIO
        Open for reading and writing.
    path : Path
        Its name.
    notes : Path or None
        Where the version is noted for the next run; None notes nothing.
    """

    def __init__(self, file: BinaryIO, path: Path, notes: Path | None) -> None:
        self.file = file
        self.path = path
        self.notes = notes
        self.place, self.etag = _read_notes(notes) if notes is not None else ("", "")
        self.patched = self.published = False

    def begin(self, place: str, etag: str) -> None:
        """Throw away what has arrived, and note which version comes next."""
        self.file.seek(0)
        self.file.truncate()
        self.patched = False
        self._note(place, etag)

    def patch(self) -> None:
        """Note that what comes next may be of another version."""
        self.patched = True
        self._note("", "")

    def is_version(self, place: str, etag: str) -> bool:
        """Tell whether what has arrived is, byte for byte, of the version that an answer is marked with."""
        return bool(etag) and (self.place, self.etag) == (place, etag)

    def _note(self, place: str, etag: str) -> None:
        self.place, self.etag = place, etag
        if self.notes is None:
            return
        text = json.dumps({"place": place, "etag": etag})
        # Not through a link that someone put there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        try:
            with os.fdopen(os.open(self.notes, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
        except OSError:  # old notes would be wrong ones
            with contextlib.suppress(OSError):
                self.notes.unlink(missing_ok=True)
            self.notes = None

    def publish(self, target: Path) -> None:
        """Give the file its name."""
        os.fsync(self.file.fileno())
        # It was made for the owner alone; a cache folder may be shared.
        self.path.chmod(0o644)
        if self.notes is not None:
            with contextlib.suppress(OSError):
                self.notes.unlink(missing_ok=True)
        self.path.replace(target)
        self.published = True

    def remove(self) -> None:
        """Leave nothing behind, if the file has no name of its own yet."""
        if not self.published:
            self.path.unlink(missing_ok=True)
            if self.notes is not None:
                self.notes.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_part(target: Path) -> Iterator[_Part]:
    """Open what an earlier run left of the target; or a file of our own, where another run is at it."""
    path = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
        kept = file is not None
        beside = path.with_name(f"{path.name}.json")
        notes = beside if kept and _is_ours(beside) else None
        if file is None:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
            file, path = os.fdopen(handle, "w+b"), Path(name)
    except OSError as error:
        raise OutputError(
            f"{target.parent}: weights cannot be stored there ({error.strerror}); set TORCH_HOME"
        ) from error
    part = _Part(file, path, notes)
    try:
        with file:
            try:
                yield part
            except OSError:  # most likely a full disk, which it should not go on filling
                part.remove()
                raise
            finally:
                if not kept or os.fstat(file.fileno()).st_size == 0:
                    part.remove()
    finally:
        file.close()


def _open_locked(path: Path) -> BinaryIO | None:
    """Open a file that no other process has open this way; None if it cannot be had for us alone.

    The name is the same in every run, and the folder may be a shared one: a link, or
    a file of another user's, is not touched.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            file = os.fdopen(os.open(path, flags, 0o600), "r+b")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine, there = os.fstat(file.fileno()), path.lstat()
        except FileNotFoundError:  # its owner finished between the two calls
            file.close()
            continue
        except OSError:
            log.info("%s: another download is at work; this one begins from the start", path)
            file.close()
            return None
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            file.close()
            continue
        if not _is_ours(path):
            file.close()
            return None
        return file


def _is_ours(path: Path) -> bool:
    """Tell whether a file that is there is a plain one of this user's, under this name alone."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(there.st_mode) and there.st_uid == os.geteuid() and there.st_nlink == 1


def _read_notes(notes: Path) -> tuple[str, str]:
    """Read place and mark of the version that has arrived in part; empty if that is not known."""
    try:
        with notes.open(encoding="utf-8") as file:
            read = json.loads(file.read(BLOCK))
        place, etag = read["place"], read["etag"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", ""
    return (place, etag) if isinstance(place, str) and isinstance(etag, str) else ("", "")


def _fetch_checked(
    places: Sequence[str], part: _Part, *, expected: str | None, progress: Progress | None
) -> str:
    """Fill the part with what lies at one of the places and return its sha256."""
    left, complaints = list(places), dict.fromkeys(places, "")
    too_large: set[str] = set()
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1 and left:
            time.sleep(PAUSE * (attempt - 1))
        for place in tuple(left):
            try:
                _transfer(place, part, progress=progress)
            except RefusedError as refusal:
                complaints[place] = str(refusal)
                left.remove(place)
                if isinstance(refusal, _NoRoomError):
                    too_large.add(place)
            except _BrokenTransferError as error:
                complaints[place] = str(error)
            else:
                part.file.flush()
                found = sha256_of(part.path)
                damage = find_damage(part.path, found=found, expected=expected, patched=part.patched)
                if not damage:
                    return found
                complaints[place] = damage
                part.begin("", "")
            _tell(place, complaints[place], left=left, attempt=attempt)
    if len(too_large) == len(complaints):
        raise OutputError(
            f"{part.path.parent}: {complaints[places[0]]}; free some space or name another folder "
            "(--into, TORCH_HOME)"
        )
    if len(places) == 1 and not left:
        raise WeightsError(f"{places[0]}: {complaints[places[0]]}; check the name and the address")
    what = (
        f"{places[0]}: could not be fetched, {complaints[places[0]]}"
        if len(places) == 1
        else f"{places[0].rpartition('/')[2]}: could not be fetched from any of {len(places)} places ("
        + "; ".join(f"{place}: {complaints[place]}" for place in places)
        + ")"
    )
    raise WeightsError(f"{what}; try later, or fetch the file elsewhere and give its path")


def _tell(place: str, complaint: str, *, left: Sequence[str], attempt: int) -> None:
    if any(other != place for other in left):
        log.warning("%s: %s; trying the next place", place, complaint)
    elif left and attempt < ATTEMPTS:
        log.warning("%s: %s; trying again (%d of %d)", place, complaint, attempt + 1, ATTEMPTS)


def _transfer(place: str, part: _Part, *, progress: Progress | None) -> None:
    """Append to the part what it lacks of what lies there."""
    if _is_address(place):
        _download(place, part, progress=progress)
        return
    try:
        source = expand_home(place).open("rb")
        total = os.fstat(source.fileno()).st_size
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RefusedError(f"the file cannot be read ({reason})") from error
    with source:
        part.begin(place, "")
        _append(source.read, part.file, total=total, progress=progress)


def _download(url: str, part: _Part, *, progress: Progress | None) -> None:
    have = part.file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if part.etag and part.place == url:
            headers["If-Range"] = part.etag  # the rest of that version, or all of the new one
    try:
        response = opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        told = f"the server answered {error.code} {error.reason}"
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            # Nothing is missing: an earlier run was stopped right before its end.
            if not part.is_version(url, error.headers.get("ETag", "")):
                part.patch()
            return
        if 300 <= error.code < 500 and error.code not in (*TEMPORARY, 416):
            raise RefusedError(told) from error
        if error.code == 416:  # the range lies beyond the file's end: this is another file
            part.begin("", "")
        raise _BrokenTransferError(told) from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"no connection ({getattr(error, 'reason', error)})") from error
    except ValueError as error:
        raise UsageError(
            f"{url!r} is no web address ({error}); give one that starts with https://"
        ) from error
    with response:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise RefusedError(f"the server sent it packed by {encoding}, which was not asked for")
        first, total = _read_extent(response)
        if response.status == 206 and first != have:
            part.begin("", "")
            raise _BrokenTransferError(f"the server sent bytes from {first} on instead of from {have} on")
        etag = response.headers.get("ETag", "")
        kept = have if response.status == 206 else 0
        _check_room(part, total, kept=kept)
        if not kept:
            part.begin(url, etag if etag.startswith('"') else "")  # weak ones do not tell bytes apart
        elif not part.is_version(url, etag):  # not every server heeds If-Range
            part.patch()
        _append(response.read1, part.file, total=total, progress=progress)


def _read_extent(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """Read from an answer where it begins, and how long the whole file is; None where it does not say."""
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if response.status != 206:
        return 0, size
    stated = re.fullmatch(
        r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", "")
    )
    if stated is None:
        return None, None
    total = int(stated[3]) if stated[3] != "*" else int(stated[2]) + 1
    return int(stated[1]), total


def _check_room(part: _Part, total: int | None, *, kept: int) -> None:
    """Refuse a file that is too large for a model, or for the disk, before it is fetched."""
    if total is None:
        return
    if total > LARGEST:
        raise RefusedError(f"the server announced {total} bytes, more than any model has")
    replaced = part.file.seek(0, os.SEEK_END) - kept
    free = shutil.disk_usage(part.path.parent).free + replaced
    if total - kept > free:
        raise _NoRoomError(f"{total - kept} bytes are to come and {free} are free")


def _append(
    read: Callable[[int], bytes], file: BinaryIO, *, total: int | None, progress: Progress | None
) -> None:
    """Copy to the file's end, and say by an exception where too little, too much or too slowly comes."""
    have = file.seek(0, os.SEEK_END)
    since, had = time.monotonic(), have
    while block := _read_block(read):
        file.write(block)
        have += len(block)
        if have > LARGEST:
            file.seek(0)
            file.truncate()
            raise RefusedError(f"more than {LARGEST} bytes came, more than any model has")
        if progress is not None:
            progress(have, total)
        waited = time.monotonic() - since
        if waited > TIMEOUT:
            if have - had < SLOWEST * waited:
                raise _BrokenTransferError(f"only {have - had} bytes came in {waited:.0f} seconds")
            since, had = time.monotonic(), have
    if total is not None and have != total:
        raise _BrokenTransferError(f"{have} of {total} bytes arrived")


def _read_block(read: Callable[[int], bytes]) -> bytes:
    # Kept apart from the writing, so that a full disk is not taken for a broken connection.
    try:
        return read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the connection broke ({error})") from error


def _is_address(place: str) -> bool:
    return "://" in place


def _check_place(place: str) -> None:
    if not _is_address(place):
        return
    try:
        address = urllib.parse.urlsplit(place)
        sound = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        address, sound = None, False
    if address is None or not sound or re.search(r"[\s\x00-\x20\x7f]", place):
        raise UsageError(
            f"{without_secrets(place)!r} is no web address to fetch from; give one that starts with https:// "
            "or http://, its blanks written as %20, or the plain path of a folder"
        )
    extra = "a query or fragment (? or #)" if re.search("[?#]", place) else ""
    if address.username is not None:
        extra = "a user name"
    if extra:
        raise UsageError(
            f"a mirror on {address.hostname} is given with {extra}, which messages would show; "
            "use an address without one, or a folder of this machine"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to other web addresses, never to another kind of place, nor from https back to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise RefusedError(
                f"the server points to {without_secrets(newurl)!r}, where this will not follow"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opener() -> urllib.request.OpenerDirector:
    """Open http and https, and nothing else that urllib could: no file, no ftp, no data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener
