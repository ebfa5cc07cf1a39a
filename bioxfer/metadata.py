"""Metadata: the JSON in the header of a safetensors file, which a stranger may have written."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

__all__ = ["parse_metadata"]

_DEEPEST = 50  # lists in lists; a card has six


def parse_metadata(text: str) -> dict[str, Any]:
    """Read a JSON object that can be written again: finite numbers, and nothing nested deeply.

    Raises
    ------
    ValueError
        It is something else.

    Examples
    --------
    >>> parse_metadata('{"format": 1}')
    {'format': 1}
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("its metadata are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("its metadata are no JSON object")
    _check(found, _DEEPEST)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"its metadata hold {name}, which is no number")


def _check(value: object, levels: int) -> None:
    if isinstance(value, (dict, list)):
        if not levels:
            raise ValueError("its metadata are nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            _check(each, levels - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("its metadata hold a number beyond the largest")
