"""The file of a head: one safetensors container with a JSON header, whole or refused.

Every sort of head keeps its numbers, its training proteins and its card in the same layout, so all that can
be wrong with such a file is looked for here. A file holds numbers and text, never code; a sha256 covers every
byte of what it says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from bioxfer.errors import HeadFileError, InputError, UsageError
from bioxfer.metadata import parse_metadata
from bioxfer.neighbours import NeighbourIndex
from bioxfer.output import publish
from bioxfer.pooling import parse_pool

__all__ = [
    "DamageError",
    "Shapes",
    "Tensors",
    "check_number",
    "check_tensors",
    "digest",
    "load_head_file",
    "parse_parts",
    "read_container",
    "read_header",
    "save_head_file",
    "to_json",
]

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]
Shapes: TypeAlias = Mapping[str, tuple[str, ...]]
AnyHead = TypeVar("AnyHead")

METADATA_KEY = "bioxfer"
_FORMAT = 1
_HEADER_LIMIT = 8 * 2**20  # bytes; a card of a thousand classes needs about 100 kB
_INDEX = ("targets", "vectors", "projection", "offset")
_INDEX_SHAPES: Shapes = {
    "index.ids": ("B",),
    "index.targets": ("M",),
    "index.vectors": ("M", "D"),
    "index.projection": ("D", "F"),
    "index.offset": ("D",),
}


class DamageError(Exception):
    """What is wrong with a head file; `load_head_file` says it with the file's name."""


class _Described(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


class _Storable(Protocol):
    """What every sort of head has, and its file keeps."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> _Described: ...
    @property
    def kind(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def backbone(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tensors(self) -> Tensors: ...
    @property
    def temperature(self) -> float: ...
    @property
    def index(self) -> NeighbourIndex: ...
    @property
    def card(self) -> dict[str, Any]: ...


def save_head_file(
    head: _Storable,
    path: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    more: Tensors | None = None,
) -> None:
    """Write a head, the same bytes for the same head.

    Parameters
    ----------
    head : TrainedHead or ResidueHead
        What is written.
    path : path
        The file.
    extra : mapping, optional
        What this sort of head has beyond the others, for the header.
    more : mapping of str to ndarray, optional
        Further tensors, under their names in the file.

    Raises
    ------
    OutputError
        The file cannot be written; what was there before stays.
    """
    from safetensors.numpy import save

    tensors = {f"head.{name}": np.array(value, order="C") for name, value in head.tensors.items()}
    # JSON, as an id from a table may hold a line end; its ASCII escapes carry lone surrogates too.
    text = json.dumps(list(head.index.ids)).encode("ascii")
    tensors["index.ids"] = np.frombuffer(text, dtype=np.uint8).copy()
    for name in _INDEX:
        tensors[f"index.{name}"] = np.array(getattr(head.index, name), order="C")
    tensors |= {name: np.array(value, order="C") for name, value in (more or {}).items()}
    header: dict[str, Any] = {
        "format": _FORMAT,
        "name": head.name,
        "task": head.task.to_dict(),
        "kind": head.kind,
        "pool": head.pool,
        "layer": head.layer,
        "backbone": head.backbone,
        "fingerprint": head.fingerprint,
        "temperature": head.temperature,
        "far": head.index.far,
        "card": head.card,
        **(extra or {}),
    }
    header["sha256"] = digest(header, tensors)
    data = save(tensors, metadata={METADATA_KEY: to_json(header)})
    with publish(path) as temporary:
        temporary.write_bytes(data)


def load_head_file(
    path: str | os.PathLike[str], parse: Callable[[bytes], AnyHead], *, sort: str = "bioxfer head"
) -> AnyHead:
    """Read a file and make a head of it.

    Parameters
    ----------
    path : path
        The file.
    parse : callable
        Makes a head of its bytes, or raises `DamageError`.
    sort : str, optional
        What the file should hold, for the message if it does not.

    Raises
    ------
    HeadFileError
        The file is damaged or holds something else.
    InputError
        There is no such file, or it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"head file {path} cannot be read: {error.strerror}") from error
    try:
        return parse(data)
    except DamageError as damage:
        raise HeadFileError(
            f"head file {path} is damaged or no {sort} ({damage}); get or train it anew"
        ) from damage


def read_container(data: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the header and the tensors of safetensors bytes, unchecked.

    Raises
    ------
    DamageError
        These are no such bytes.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if len(data) < 8:
        raise DamageError(f"{len(data)} bytes are no safetensors file")
    (size,) = struct.unpack("<Q", data[:8])
    if size > min(_HEADER_LIMIT, len(data) - 8):
        raise DamageError(f"a header of {size} bytes is longer than the file or {_HEADER_LIMIT} bytes")
    try:
        outer = json.loads(data[8 : 8 + size])
        header = parse_metadata(outer["__metadata__"][METADATA_KEY])
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(f"{type(error).__name__}: {str(error)[:100]}") from error
    return header, tensors


def read_header(data: bytes, *, kinds: Collection[str]) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the header and the tensors, with all checked that every sort of head has in its header.

    Parameters
    ----------
    data : bytes
        The whole file.
    kinds : collection of str
        The forms that this sort of head comes in.

    Raises
    ------
    DamageError
        With what is wrong.
    """
    header, tensors = read_container(data)
    expected = header.pop("sha256", None)
    if expected != digest(header, tensors):
        raise DamageError("its content does not have the sha256 it states")
    if header.get("format") != _FORMAT:
        raise DamageError(f"format {header.get('format')!r} is not {_FORMAT}, the one this version reads")
    texts = dict.fromkeys(("name", "kind", "pool", "backbone", "fingerprint"), str)
    for key, form in {**texts, "layer": int, "card": dict}.items():
        if not isinstance(header.get(key), form):
            raise DamageError(f"{key} {header.get(key)!r} is not of type {form.__name__}")
    for key in ("temperature", "far"):
        check_number(header, key)
    if header["temperature"] <= 0:
        raise DamageError(f"temperature {header['temperature']} is not above 0")
    if header["kind"] not in kinds:
        raise DamageError(f"kind {header['kind']!r} is none of {', '.join(kinds)}")
    try:
        parse_pool(header["pool"])
    except UsageError as error:
        raise DamageError(str(error)) from error
    return header, tensors


def check_number(header: Mapping[str, Any], key: str) -> None:
    """Refuse what is no finite float.

    Raises
    ------
    DamageError
        With key and value.
    """
    if not isinstance(header.get(key), float) or not math.isfinite(header[key]):
        raise DamageError(f"{key} {header.get(key)!r} is not a finite number")


def check_tensors(
    tensors: Tensors,
    own: Shapes,
    *,
    outputs: int,
    types: Mapping[str, str],
    targets: tuple[str, ...] = ("M",),
) -> dict[str, int]:
    """Refuse tensors that are missing, foreign, not finite, or of shapes or types that do not fit.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        All of the file's.
    own : mapping of str to tuple of str
        Names of the head's own tensors and of their axes; an axis of one name has one size.
    outputs : int
        Size of the axis ``C``.
    types : mapping of str to str
        numpy's letter for the type of the file's tensors that hold no floats, beside the ids.
    targets : tuple of str, optional
        Axes of the training proteins' encoded labels.

    Returns
    -------
    dict of str to int
        The size of each axis.

    Raises
    ------
    DamageError
        With the tensor's name.
    """
    shapes = {f"head.{name}": axes for name, axes in own.items()} | dict(_INDEX_SHAPES)
    shapes["index.targets"] = targets
    if set(tensors) != set(shapes):
        wrong = ", ".join(sorted(set(tensors) ^ set(shapes)))
        raise DamageError(f"tensors are missing or foreign: {wrong}")
    size = {"C": outputs}
    letters = {"index.ids": "u", **types}
    for name, axes in sorted(shapes.items()):
        tensor = tensors[name]
        if tensor.ndim != len(axes) or any(
            n != size.setdefault(axis, n) or n == 0 for n, axis in zip(tensor.shape, axes, strict=True)
        ):
            raise DamageError(f"tensor {name} of shape {tensor.shape} is not {axes} with {size}")
        if tensor.dtype.kind != letters.get(name, "f"):
            raise DamageError(f"tensor {name} has the type {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise DamageError(f"tensor {name} holds NaN or infinity")
    return size


def parse_parts(header: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return what a head of any sort is made of, its task left out, from parts that were checked.

    Raises
    ------
    DamageError
        The training ids do not fit the training vectors.
    """
    keys = ("name", "kind", "pool", "layer", "backbone", "fingerprint", "temperature", "card")
    return {key: header[key] for key in keys} | {
        "tensors": {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")},
        "index": NeighbourIndex(
            ids=_parse_ids(tensors),
            targets=tensors["index.targets"],
            vectors=tensors["index.vectors"],
            projection=tensors["index.projection"],
            offset=tensors["index.offset"],
            far=header["far"],
        ),
    }


def _parse_ids(tensors: Tensors) -> tuple[str, ...]:
    try:
        ids = json.loads(tensors["index.ids"].tobytes())
    except (ValueError, RecursionError) as error:
        raise DamageError("the training ids are no JSON") from error
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise DamageError("the training ids are no list of texts")
    if len(ids) != len(tensors["index.vectors"]):
        raise DamageError(f"{len(ids)} ids for {len(tensors['index.vectors'])} training vectors")
    return tuple(ids)


def digest(header: Mapping[str, Any], tensors: Tensors) -> str:
    """Hash everything a head file says, however the container lays it out."""
    found = hashlib.sha256(to_json(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def to_json(data: Mapping[str, Any] | Sequence[Any]) -> str:
    """Write JSON in the one form that the hash is of."""
    return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))
