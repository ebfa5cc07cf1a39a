"""Quoting: labels as they are written in messages and on pages, where a strange one must break no line."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

__all__ = ["name_labels", "plain_label", "printable", "quote_label", "to_html"]

_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_QUOTED_AT_MOST = 30  # characters of a label in a message; that of residues has hundreds
_NAMED_AT_MOST = 10  # labels in a message


def quote_label(label: object) -> str:
    """Write a label between quotes, shortened after 30 characters.

    Examples
    --------
    >>> print(quote_label("nucleus"), quote_label("H" * 200))
    'nucleus' 'HHHHHHHHHHHHHHHHHHHHHHHHHHH...'
    """
    text = str(label)
    return repr(text if len(text) <= _QUOTED_AT_MOST else text[: _QUOTED_AT_MOST - 3] + "...")


def plain_label(label: object) -> str:
    """Write a label as it is, or between quotes where it would be lost in a list on one line.

    Examples
    --------
    >>> print(plain_label("cell wall"), plain_label("wall, cell"))
    cell wall 'wall, cell'
    """
    text = str(label)
    return text if text.isprintable() and "," not in text and text == text.strip() else repr(text)


def name_labels(labels: Sequence[str]) -> str:
    """List the first ten labels, shortened, for a message."""
    named = [
        plain_label(label) if len(label) <= _QUOTED_AT_MOST else quote_label(label)
        for label in labels[:_NAMED_AT_MOST]
    ]
    return ", ".join(named) + ", ..." * (len(labels) > _NAMED_AT_MOST)


def to_html(text: object) -> str:
    r"""Write text that HTML takes for no mark-up, whatever it holds; a page is UTF-8 and has no commands.

    Examples
    --------
    >>> print(to_html("<script> & caf\udce9"))
    &lt;script&gt; &amp; caf\udce9
    """
    return html.escape(printable(str(text)))


def printable(page: str) -> str:
    r"""Escape, as JSON would, what commands a terminal and what UTF-8 cannot hold.

    Examples
    --------
    >>> print(printable("caf\udce9 \x1b[31m"))
    caf\udce9 \u001b[31m
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", page)
