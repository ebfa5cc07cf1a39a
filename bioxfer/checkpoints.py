"""Checkpoints: what a training needs to go on where it was, in one file that is read whole or refused.

A file holds tensors and a JSON object, never code, and the sha256 of every byte of it: a state that was bent
on the disk would else be trained on without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bioxfer.errors import BioxferError, WeightsError
from bioxfer.output import publish

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_checkpoint", "restoring", "write_checkpoint"]

_STATE = "bioxfer-checkpoint"
_SUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_UNKNOWN = b'"sha256":"%s"' % (b"0" * 64)  # stands where the sum will, while it is taken


def write_checkpoint(
    path: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor], *, sort: str
) -> None:
    """Write a checkpoint; it appears whole or not at all.

    Parameters
    ----------
    path : Path
        The file.
    state : mapping of str
        JSON values.
    tensors : mapping of str to Tensor
        On any device.
    sort : str
        Of what it is a checkpoint, such as ``"a pretraining"``.

    Raises
    ------
    OutputError
        It cannot be written; what was there before stays.
    """
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"sort": sort, "state": state}, sort_keys=True)
    data = save(whole, metadata={_STATE: text, "sha256": "0" * 64})
    stated = b'"sha256":"%s"' % hashlib.sha256(data).hexdigest().encode()
    with publish(path) as temporary:
        temporary.write_bytes(data.replace(_UNKNOWN, stated, 1))


def read_checkpoint(path: Path, *, sort: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state and the tensors of a checkpoint.

    Parameters
    ----------
    path : Path
        A file that `write_checkpoint` wrote.
    sort : str
        Of what it should be a checkpoint.

    Raises
    ------
    WeightsError
        It cannot be read, is damaged, or is of another sort or version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: the checkpoint cannot be read ({error.strerror}); see to its file"
        ) from error
    try:
        size = int.from_bytes(data[:8], "little")
        found = _SUM.search(data, 8, 8 + size)
        blank = data if found is None else data[: found.start()] + _UNKNOWN + data[found.end() :]
        if found is None or hashlib.sha256(blank).hexdigest().encode() != found[1]:
            raise ValueError("its content does not have the sha256 it states")
        held = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_STATE])
        if held["sort"] != sort or not isinstance(held["state"], dict):
            raise ValueError(f"it is one of {held['sort']}")
        return held["state"], load(data)
    except (
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise WeightsError(
            f"{path}: not a checkpoint of {sort} by this version, or damaged ({error}); "
            "remove it or name another"
        ) from error


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Say of a state that does not fit what is restored from it which file it came from.

    Raises
    ------
    WeightsError
        In place of whatever was raised in the block, unless that was of ours.
    """
    try:
        yield
    except BioxferError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: what the checkpoint holds does not fit together ({error}); remove it or name another"
        ) from error
