"""Weights files: where they lie, and whether they are what they were.

The publisher of the ESM checkpoints states no checksums. So the sha256 of a
file is recorded when the file is first seen, in ``NAME.pt.sha256`` beside it
(the format of ``sha256sum``), and every later use is held against that record.
This notices damage and exchange after the first use. Of a first download it
can only be said that it is complete, that it is a torch checkpoint and that
the archive's own checksums hold; whoever knows the true sha256 may state it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bioxfer.errors import UsageError, WeightsError
from bioxfer.machine import expand_home

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PUBLISHER",
    "WeightsCheck",
    "check_weights",
    "find_damage",
    "fingerprint",
    "hex_digest",
    "hub_folder",
    "is_offline",
    "read_record",
    "record_of",
    "sha256_of",
    "sort_metadata",
    "write_record",
]

PUBLISHER = "https://dl.fbaipublicfiles.com/fair-esm/models"
"""Where fair-esm's own loader fetches its checkpoints."""

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
    return expand_home(home) / "hub" / "checkpoints"


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
    record = record_of(path)
    expected = hex_digest(sha256) if sha256 is not None else read_record(record)
    found = sha256_of(path)
    if expected is not None and found != expected:
        source = "was asked for" if sha256 is not None else f"is recorded in {record.name}"
        raise WeightsError(
            f"{path}: sha256 is {found}, but {expected} {source}; the file is damaged or was exchanged: "
            f"delete it and fetch it again, or delete the record if the change was meant"
        )
    if expected is None:
        damage = find_damage(path, found=found, expected=None)
        if damage:
            raise WeightsError(f"{path}: {damage}; delete it and fetch it again")
        log.info(
            "%s: first use, sha256 %s; the publisher states no checksum, so later uses are checked "
            "against this one",
            path.name,
            found,
        )
    if sha256 is not None or expected is None:
        write_record(record, found, path.name)
    return WeightsCheck(path=path, sha256=found, known=expected is not None)


def find_damage(path: Path, *, found: str, expected: str | None, patched: bool = False) -> str:
    """Say what is wrong with a fetched file, or nothing.

    Parameters
    ----------
    path : Path
        The file.
    found : str
        Its sha256.
    expected : str or None
        The sha256 that it must have, where that is known.
    patched : bool, optional
        Whether it was put together of parts that may be of different files.
    """
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
    elif patched:
        return "it came in several parts and has no checksums of its own"
    return ""


def hex_digest(text: str) -> str:
    """Read a sha256 that a user gave."""
    digest = text.strip().lower()
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise UsageError(f"{text!r} is no sha256; it has 64 hex digits")
    return digest


def sort_metadata(data: bytes) -> bytes:
    """Sort the texts in the header of a safetensors file, which its own writer puts in any order.

    Parameters
    ----------
    data : bytes
        The whole file, as safetensors wrote it.

    Returns
    -------
    bytes
        The same file, and the same bytes in every process.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers after it stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def record_of(path: Path) -> Path:
    """Name the file beside weights that holds their sha256."""
    return path.with_name(path.name + ".sha256")


def read_record(record: Path) -> str | None:
    """Read a recorded sha256; None if there is no record."""
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


def write_record(record: Path, digest: str, name: str) -> None:
    """Record a sha256, where the folder takes it."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{record.name}.", dir=record.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(f"{digest}  {name}\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(record)
    except OSError as error:
        # A read-only folder of shared weights is a fine place to load from.
        log.info("%s: sha256 could not be recorded (%s)", record, error.strerror)
