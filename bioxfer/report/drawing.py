"""Drawing: what all pictures share, from colours to points with whiskers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bioxfer.cards import score_text
from bioxfer.errors import MissingExtraError
from bioxfer.quoting import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "GREY", "MARKS", "SOFT", "hover", "hovers", "make_axes", "need_matplotlib", "plain"]

# Okabe and Ito's colours, which everyone tells apart; each way also has a mark of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#9a9a9a"
SOFT = "#e3e3e3"

_LONGEST = 24  # characters of a label in a picture

# What a page shows over the parts of an artist; a picture in a file has no use for it.
_HOVERS: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()


def need_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pictures need an extra package; pip install 'bioxfer[report]'") from error


def make_axes(ax: Axes | None, *, size: tuple[float, float] = (6, 5.5)) -> Axes:
    """Return the caller's axes, or those of a figure of their own."""
    if ax is not None:
        return ax
    need_matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and may want a screen

    return Figure(figsize=size, layout="constrained").add_subplot()


def plain(text: object, *, longest: int | None = None) -> str:
    """Keep matplotlib from reading formulas, line ends or commands in a text, and shorten it if asked."""
    one_line = printable(str(text)).replace("\n", " ")
    if longest is not None and len(one_line) > longest:
        one_line = one_line[: longest - 3] + "..."
    return one_line.replace("$", r"\$")


def plain_name(text: object) -> str:
    """Write a label in a picture, of more than 24 characters without those in its middle."""
    whole = printable(str(text))
    if len(whole) > _LONGEST:
        # labels of one kind often begin with the same words, and differ in the last
        whole = f"{whole[: _LONGEST // 2 - 1]}...{whole[2 - _LONGEST // 2 :]}"
    return plain(whole)


def hover(artist: Artist, texts: Sequence[str]) -> None:
    """Note what a page says where a reader points at a part of an artist, a text for each part."""
    _HOVERS[artist] = list(texts)


def hovers(artist: Any) -> list[str] | None:
    """Return what `hover` noted."""
    return _HOVERS.get(artist)


def draw_points(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    *,
    colour: str,
    mark: str,
    label: str,
    line: str = "",
    across: bool = False,
    texts: Sequence[str] | None = None,
) -> None:
    """Draw points with whiskers where there is an interval, of ``y`` or, ``across``, of ``x``.

    A page shows ``texts`` over the points, or else their label and what they say.
    """
    ends = [(math.nan, math.nan) if each is None else each for each in intervals]
    values = x if across else y
    # an interval of a percentile bootstrap may lie beside its value, and a whisker has no negative length
    below = [
        max(0.0, value - low) if low == low else low for value, (low, _) in zip(values, ends, strict=True)
    ]
    above = [
        max(0.0, high - value) if high == high else high
        for value, (_, high) in zip(values, ends, strict=True)
    ]
    whiskers = {"xerr" if across else "yerr": [below, above]}
    if line:  # a part of its own, so that the points are the only parts of theirs
        ax.plot(x, y, line, color=colour)
    drawn = ax.errorbar(x, y, fmt=mark, color=colour, capsize=3, markersize=5, label=label, **whiskers)  # type: ignore[arg-type]
    if texts is None:
        scores = zip(values, intervals, strict=True)
        texts = [f"{label}: {score_text({'value': value, 'ci95': each})}" for value, each in scores]
    hover(drawn.lines[0], texts)
