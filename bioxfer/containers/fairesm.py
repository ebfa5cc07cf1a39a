"""Folders of fair-esm's ``extract.py``: one ``.pt`` file for each protein.

It holds ``{"label", "mean_representations": {layer: (D,)}, ...}``. A label is the whole header of a FASTA
record, and its id the first word, as everywhere. A label with slashes has made folders in the folder. The
files are read one at a time, sorted by label, and hold tensors and plain values or are refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bioxfer.backbones.fairesm import is_plain, read_restricted
from bioxfer.containers.stored import (
    MOST_DIMENSIONS,
    RESIDUES,
    UNKNOWN,
    Facts,
    Stored,
    make_row,
    no_more_than,
)
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import DuplicateIdError, FormatError, UsageError

__all__ = ["CUT_AT", "open_fairesm"]

logger = logging.getLogger(__name__)

CUT_AT = 1022
"""Residues after which extract.py cuts a protein, unless told otherwise."""

_PARTS = {"mean": "mean_representations", "cls": "bos_representations", RESIDUES: "representations"}
_REMEDY = "give the folder that fair-esm's extract.py wrote"


@contextlib.contextmanager
def open_fairesm(
    path: str | os.PathLike[str], *, layer: int | None = None, pool: str | None = None
) -> Iterator[Stored]:
    """Open a folder of extract.py's.

    Parameters
    ----------
    path : path
        The folder.
    layer : int, optional
        Which one, where the files hold several.
    pool : {"mean", "cls", "bos", "residues"}, optional
        What of it, where the files hold several; what fair-esm calls bos is ``cls`` everywhere else.
        Means are made of the residues where the files have no other.

    Raises
    ------
    FormatError
        If there is no such file, or one holds something else.
    UsageError
        If a layer or pooling is to be chosen, or the files have not what was.
    """
    source = os.fspath(path)
    names = _find_files(Path(path), source)
    first = _read(Path(path, f"{names[0]}.pt"))
    held = {name: first[key] for name, key in _PARTS.items() if _is_layers(first.get(key))}
    place = os.path.join(source, f"{names[0]}.pt")
    if not held:
        raise FormatError(f"{place}: holds no representations; {_REMEDY}")
    found = _choose_pool(held, "cls" if pool == "bos" else pool, place)
    number = _choose_layer(held[found], layer, place)
    tensor = _tensor(first, found, number, place)
    width = tensor.shape[-1]
    facts: Facts = {"layer": number, "pool": found}

    def read(name: str) -> EmbeddedRecord:
        return _read_row(Path(path, f"{name}.pt"), found, number, width)

    def rows() -> Iterator[EmbeddedRecord]:
        seen: dict[str, str] = {}
        for name in names:
            row = read(name)
            _note(row.record.id, name, seen, source)
            yield row

    def find() -> Mapping[str, str]:
        places: dict[str, str] = {}
        for name in names:
            file = Path(path, f"{name}.pt")
            _note(_read_label(_read(file), file), name, places, source)
        return places

    yield Stored(source, width, found, facts, rows, find=find, read=read)


def _find_files(folder: Path, source: str) -> list[str]:
    """Name the files as their labels, sorted."""
    names = []
    for root, _, files in os.walk(folder):  # links to folders are not followed
        for name in files:
            if name.endswith(".pt"):
                names.append(Path(root, name.removesuffix(".pt")).relative_to(folder).as_posix())
    if not names:
        raise FormatError(f"{source}: a folder without a .pt file; {_REMEDY}")
    return sorted(names)


def _note(identifier: str, name: str, seen: dict[str, str], source: str) -> None:
    first = seen.setdefault(identifier, name)
    if first != name:
        raise DuplicateIdError(
            f"{source}: {first!r} and {name!r} both have the id {identifier!r}, the first word of their "
            "labels; every protein needs one of its own"
        )


def _read(file: Path) -> dict[str, Any]:
    found = read_restricted(file, remedy=_REMEDY, error=FormatError)
    if not isinstance(found, dict):
        raise FormatError(f"{file}: holds no dictionary; {_REMEDY}")
    return found


def _is_layers(found: object) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(key, int) for key in found)


def _choose_pool(held: Mapping[str, Any], pool: str | None, place: str) -> str:
    told = " and ".join(held).replace("cls", "bos")
    if pool is None:
        if len(held) > 1:
            raise UsageError(f"{place}: holds {told}; choose one with --pool")
        return next(iter(held))
    if pool not in held and not (pool == "mean" and RESIDUES in held):
        raise UsageError(f"{place}: holds {told}, but no {pool}; choose another with --pool")
    return pool if pool in held else RESIDUES


def _choose_layer(held: Mapping[int, Any], layer: int | None, place: str) -> int:
    told = ", ".join(map(str, sorted(held)))
    if layer is None:
        if len(held) > 1:
            raise UsageError(f"{place}: holds layers {told}; choose one with --layer")
        (layer,) = held
    if layer not in held:
        raise UsageError(f"{place}: holds layer {told}, but no layer {layer}; choose another with --layer")
    return layer


def _tensor(found: Mapping[str, Any], pool: str, layer: int, place: str) -> torch.Tensor:
    layers = found.get(_PARTS[pool])
    if not _is_layers(layers) or layer not in layers:  # type: ignore[operator]
        raise FormatError(
            f"{place}: has no {_PARTS[pool]} of layer {layer}, which the first file has; run extract.py again"
        )
    tensor = layers[layer]  # type: ignore[index]
    dimensions = 2 if pool == RESIDUES else 1
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != dimensions or not _lies_there(tensor):
        raise FormatError(
            f"{place}: its {_PARTS[pool]} are no array of {dimensions} dimensions of its own; {_REMEDY}"
        )
    no_more_than(MOST_DIMENSIONS, tensor.shape[-1], "dimensions", place)
    return tensor


def _lies_there(tensor: torch.Tensor) -> bool:
    """Tell whether the numbers are in the file; a protein without residues has none."""
    return is_plain(tensor) or (tensor.layout == torch.strided and tensor.numel() == 0)


def _read_label(found: Mapping[str, Any], file: Path) -> str:
    label = found.get("label")
    if not isinstance(label, str):
        raise FormatError(f"{file}: has no label; {_REMEDY}")
    # As in a FASTA header; the description is not part of the id.
    return re.split(r"[ \t\v\f]", label, maxsplit=1)[0]


def _read_row(file: Path, pool: str, layer: int, width: int) -> EmbeddedRecord:
    place = str(file)
    found = _read(file)
    tensor = _tensor(found, pool, layer, place)
    contacts = found.get("contacts")
    square = isinstance(contacts, torch.Tensor) and contacts.ndim == 2
    return make_row(
        place,
        _read_label(found, file),
        tensor.detach().float().numpy() if tensor.numel() else None,
        pool,
        width=width,
        length=contacts.shape[0] if square else UNKNOWN,  # type: ignore[union-attr]
    )
