"""A finding, and the words that findings share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Finding", "Value", "Verdict", "count", "hide_home"]

Value: TypeAlias = str | int | float | bool | None
Verdict: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    check : str
        What it is, such as ``memory`` or ``backbone compact``; names stay the same.
    verdict : {"ok", "note", "problem"}
        Whether it is as it should be, worth knowing, or in the way.
    fact : str
        What was found, in words.
    remedy : str
        What to do; empty where nothing needs doing.
    values : mapping
        The same for machines: numbers and names.
    """

    check: str
    verdict: Verdict
    fact: str
    remedy: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)


def hide_home(text: str | os.PathLike[str]) -> str:
    """Write the home folder as ``~`` wherever it stands in a text."""
    told = os.fspath(text)
    try:
        home = str(Path.home())
    except RuntimeError:
        return told
    return told if home in ("/", "") else re.sub(rf"{re.escape(home)}(?![\w.-])", "~", told)


def count(number: int, noun: str) -> str:
    """Put a number of things into words."""
    return f"{number} {noun}{'s' * (number != 1)}"
