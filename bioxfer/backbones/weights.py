"""Weights files: where they lie, fetching them, and whether they are what they were.

The publisher of the ESM checkpoints states no checksums. So the sha256 of a
file is recorded when the file is first seen, in ``NAME.pt.sha256`` beside it
(the format of ``sha256sum``), and every later use is held against that record.
This notices damage and exchange after the first use. Of a first download it
can only be said that it is complete, that it is a torch checkpoint and that
the archive's own checksums hold; whoever knows the true sha256 may state it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bioxfer.errors import OfflineError, OutputError, UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PUBLISHER",
    "WeightsCheck",
    "check_weights",
    "fetch_weights",
    "fingerprint",
    "hub_folder",
    "is_offline",
    "sha256_of",
]

PUBLISHER = "https://dl.fbaipublicfiles.com/fair-esm/models"
"""Where fair-esm's own loader fetches its checkpoints."""

ATTEMPTS = 3
TIMEOUT = 60.0  # seconds of silence on the connection
BLOCK = 1 << 20  # bytes read at once
# A torch checkpoint is a zip archive, or, before torch 1.6, a pickle of protocol 2.
CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80\x02")

log = logging.getLogger("bioxfer")


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """What is known of a weights file.

    Attributes
    ----------
    path : Path
        The file.
    sha256 : str
        Its hash, 64 hex digits.
    known : bool
        True where the hash was held against a stated or recorded one, False
        where this is the first time that the file is seen.
    """

    path: Path
    sha256: str
    known: bool


def hub_folder() -> Path:
    """Folder in which torch.hub, and so fair-esm, keeps its checkpoints."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(home).expanduser() / "hub" / "checkpoints"


def is_offline(offline: bool = False) -> bool:
    """Tell whether the network is forbidden, by the caller or by ``BIOXFER_OFFLINE``."""
    return offline or os.environ.get("BIOXFER_OFFLINE", "0").lower() not in ("", "0", "false", "no")


def sha256_of(path: Path) -> str:
    """Hash a file, in 64 hex digits."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise WeightsError(f"{path}: weights cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()


def fingerprint(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """Name a backbone by what it computes with: its shape and its weights.

    Parameters
    ----------
    config : mapping
        Everything beside the weights that changes a result; JSON values.
    tensors : mapping of str to Tensor
        The weights by name. They are taken as float32, so the fingerprint does
        not depend on the type in which a file stores them.

    Returns
    -------
    str
        First 16 hex digits of a sha256.
    """
    import torch

    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"\n{name} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()[:16]


def check_weights(path: Path, *, sha256: str | None = None) -> WeightsCheck:
    """Hold a weights file against its stated or recorded sha256.

    A file without a record is looked over for damage and gets one, so that its
    next use can be checked.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str, optional
        The hash that the file must have; its record is not asked then.

    Raises
    ------
    WeightsError
        If the file cannot be read or its hash is another one.
    """
    record = _record_of(path)
    expected = _hex_digest(sha256) if sha256 is not None else _read_record(record)
    found = sha256_of(path)
    if expected is not None and found != expected:
        source = "was asked for" if sha256 is not None else f"is recorded in {record.name}"
        raise WeightsError(
            f"{path}: sha256 is {found}, but {expected} {source}; the file is damaged or was exchanged: "
            f"delete it and fetch it again, or delete the record if the change was meant"
        )
    if expected is None:
        damage = _find_damage(path, found=found, expected=None)
        if damage:
            raise WeightsError(f"{path}: {damage}; delete it and fetch it again")
        log.info(
            "%s: first use, sha256 %s; the publisher states no checksum, so later uses are checked "
            "against this one",
            path.name,
            found,
        )
    if sha256 is not None or expected is None:
        _write_record(record, found, path.name)
    return WeightsCheck(path=path, sha256=found, known=expected is not None)


def fetch_weights(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    offline: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> WeightsCheck:
    """Fetch a torch checkpoint; it appears under its name whole and checked, or not at all.

    A connection that breaks is taken up where it broke, if the server can; a
    file that arrives damaged is fetched once more from its start.

    Parameters
    ----------
    url : str
        Address of the file.
    target : Path
        Where it is to lie.
    sha256 : str, optional
        The hash it must have. If not given, the record beside ``target``
        counts, if there is one.
    offline : bool, optional
        Refuse before a socket is opened; so does ``BIOXFER_OFFLINE=1``.
    progress : callable, optional
        Called with bytes so far and, where known, bytes in all.

    Raises
    ------
    OfflineError
        If the network is forbidden.
    WeightsError
        If the file cannot be fetched or is still damaged at the last attempt.
    OutputError
        If it cannot be written.
    """
    if is_offline(offline):
        raise OfflineError(
            f"{target.name} is not in {target.parent} and the network is forbidden; where it is allowed, "
            f"run: bioxfer models download {target.stem}"
        )
    expected = _hex_digest(sha256) if sha256 is not None else _read_record(_record_of(target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise OutputError(
            f"{target.parent}: weights cannot be stored there ({error.strerror}); set TORCH_HOME"
        ) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            found = _fetch_checked(url, file, part, expected=expected, progress=progress)
            os.fsync(file.fileno())
        # mkstemp made it for the owner alone; a cache folder may be shared.
        part.chmod(0o644)
        part.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror}); free some space") from error
    finally:
        part.unlink(missing_ok=True)
    _write_record(_record_of(target), found, target.name)
    return WeightsCheck(path=target, sha256=found, known=expected is not None)


class _BrokenTransferError(Exception):
    """The connection failed; what has arrived is good as far as it goes."""


def _fetch_checked(
    url: str,
    file: BinaryIO,
    part: Path,
    *,
    expected: str | None,
    progress: Callable[[int, int | None], None] | None,
) -> str:
    """Fill ``file`` with what lies at ``url`` and return its sha256."""
    complaint = ""
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            log.warning("%s: %s; trying again (%d of %d)", url, complaint, attempt, ATTEMPTS)
        try:
            _transfer(url, file, progress=progress)
        except _BrokenTransferError as error:
            complaint = str(error)
            continue
        file.flush()
        found = sha256_of(part)
        complaint = _find_damage(part, found=found, expected=expected)
        if not complaint:
            return found
        file.seek(0)
        file.truncate()
    raise WeightsError(
        f"{url}: could not be fetched, {complaint}; try later, or fetch the file elsewhere and give its path"
    )


def _transfer(url: str, file: BinaryIO, *, progress: Callable[[int, int | None], None] | None) -> None:
    """Append to ``file`` what it lacks of ``url``."""
    have = file.seek(0, os.SEEK_END)
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code != 416:  # 416: the range lies beyond the file's end
            raise WeightsError(
                f"{url}: the server answered {error.code} {error.reason}; check the name and the address"
            ) from error
        file.seek(0)
        file.truncate()
        raise _BrokenTransferError(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _BrokenTransferError(f"no connection ({reason})") from error
    except ValueError as error:
        raise UsageError(f"{url!r} is no web address; give one that starts with https://") from error
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        while block := _read_block(response):
            file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, total)
    if total is not None and have != total:
        raise _BrokenTransferError(f"{have} of {total} bytes arrived")


def _read_block(response: http.client.HTTPResponse) -> bytes:
    # Kept apart from the writing, so that a full disk is not taken for a broken connection.
    try:
        return response.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the connection broke ({error})") from error


def _find_damage(path: Path, *, found: str, expected: str | None) -> str:
    """Say what is wrong with a fetched file, or nothing."""
    if expected is not None:
        return "" if found == expected else f"its sha256 is {found} instead of {expected}"
    with path.open("rb") as file:
        start = file.read(16)
    if not start.startswith(CHECKPOINT_STARTS):
        return f"it is no torch checkpoint (it starts with {start!r})"
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                member = archive.testzip()
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            return f"it is a damaged archive ({error})"
        if member is not None:
            return f"it is a damaged archive (checksum of {member})"
    return ""


def _hex_digest(text: str) -> str:
    digest = text.strip().lower()
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise UsageError(f"{text!r} is no sha256; it has 64 hex digits")
    return digest


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _read_record(record: Path) -> str | None:
    try:
        text = record.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise WeightsError(f"{record}: cannot be read ({error.strerror}); delete it") from error
    digest = text.split(maxsplit=1)[0].lower() if text.strip() else ""
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise WeightsError(f"{record}: holds no sha256; delete it to have the weights recorded anew")
    return digest


def _write_record(record: Path, digest: str, name: str) -> None:
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{record.name}.", dir=record.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(f"{digest}  {name}\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(record)
    except OSError as error:
        # A read-only folder of shared weights is a fine place to load from.
        log.info("%s: sha256 could not be recorded (%s)", record, error.strerror)
