"""Report: what a card says, as a picture.

Each function draws into axes of the caller's, or into a figure of its own: ``plot_reliability(card).figure``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bioxfer.errors import BioxferError, MissingExtraError, UsageError
from bioxfer.output import publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PLOTS", "check_plot", "plot_learning_curve", "plot_reliability", "save_plot"]

Plot = Literal["reliability", "learning-curve"]

_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which everyone tells apart; each way also has a mark of its own.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#9a9a9a"


class Plotter(Protocol):
    """Draws a card into axes."""

    def __call__(self, card: Mapping[str, Any], ax: Axes | None = None) -> Axes: ...


def _of_known_layout(draw: Plotter) -> Plotter:
    """Let a picture refuse a card that is laid out otherwise, as one from a stranger may be."""

    @functools.wraps(draw)
    def careful(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
        try:
            return draw(card, ax)
        except BioxferError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(
                "the card is not laid out as this version of bioxfer does it, so it cannot be drawn; "
                "train the head anew"
            ) from error

    return careful


@_of_known_layout
def plot_reliability(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how often answers of each confidence were right, on the proteins that were held out.

    Points on the diagonal are honest, below it too sure. Bars at the foot are shares of all answers, whiskers
    95% intervals over homology clusters.

    Parameters
    ----------
    card : mapping
        Of a head of classes, trained by this version.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        The card holds no such numbers.
    MissingExtraError
        matplotlib is not installed.
    """
    calibration = card.get("calibration", {})
    bins = calibration.get("reliability", ())
    if not bins:
        _check_held_out(card, "reliability")
        raise UsageError(
            f"the card of head {card.get('name')!r} holds no reliability bins: it predicts a number, or was "
            "trained by an older version; train it anew, or choose another head"
        )
    ax = _axes(ax)
    total = sum(each["count"] for each in bins)
    ax.bar(
        [each["low"] for each in bins],
        [each["count"] / total for each in bins],
        width=[each["high"] - each["low"] for each in bins],
        align="edge",
        color="#e3e3e3",
        edgecolor="white",
        label="share of answers",
    )
    ax.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="honest")
    _points(
        ax,
        [each["confidence"] for each in bins],
        [each["accuracy"] for each in bins],
        [each["ci95"] for each in bins],
        colour=_COLOURS[0],
        mark=_MARKS[0],
        label="head",
    )
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="probability given to the answer",
        ylabel="share of such answers that were right",
        title=f"{_plain(card['name'])}: reliability on {card['split']['valid']} held-out proteins\n"
        f"calibration error {calibration['ece_after']:.3f}, chance alone {calibration['ece_if_honest']:.3f}",
    )
    ax.set_aspect("equal")
    ax.legend(loc="upper left", frameon=False)
    return ax


@_of_known_layout
def plot_learning_curve(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how good each way of transfer is with so many labelled target proteins.

    Parameters
    ----------
    card : mapping
        Of a head that ``bioxfer transfer`` trained.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        The card holds no such numbers.
    MissingExtraError
        matplotlib is not installed.
    """
    curve = card.get("transfer", {}).get("curve", ())
    if not curve:
        _check_held_out(card, "learning curve")
        reason = (
            "it was transferred with low-rank changes or without sizes; give --sizes and another --trunk"
            if "transfer" in card
            else "it learnt from one task alone; use `bioxfer transfer` where there are others to learn from"
        )
        raise UsageError(f"the card of head {card.get('name')!r} holds no learning curve: {reason}")
    ax = _axes(ax)
    ways = list(dict.fromkeys(point["way"] for point in curve))
    sizes = sorted({point["size"] for point in curve})
    for number, way in enumerate(ways):
        points = sorted((point for point in curve if point["way"] == way), key=lambda point: point["size"])
        # side by side, so that whiskers of one size do not lie over each other
        shift = 1 + 0.05 * (number - (len(ways) - 1) / 2)
        _points(
            ax,
            [point["size"] * shift for point in points],
            [point["value"] for point in points],
            [point["ci95"] for point in points],
            colour=_COLOURS[number % len(_COLOURS)],
            mark=_MARKS[number % len(_MARKS)],
            label=way.replace("_", " "),
            line="-",
        )
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xticks([], minor=True)
    ax.set(
        xlabel="labelled target proteins",
        ylabel=f"{curve[0]['metric']} on held-out target proteins",
        title=f"{_plain(card['name'])}: learning curve",
    )
    ax.grid(axis="y", color="#e3e3e3")
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return ax


PLOTS: dict[str, Plotter] = {
    "reliability": plot_reliability,
    "learning-curve": plot_learning_curve,
}
"""The pictures by name."""


def check_plot(path: str | os.PathLike[str]) -> None:
    """Refuse a file that no picture can be written to, before anything is drawn.

    Raises
    ------
    UsageError
        The suffix is none of a picture's.
    MissingExtraError
        matplotlib is not installed.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"a picture is a {', '.join(_SUFFIXES)} file, not {str(path)!r}; change the suffix")
    _matplotlib()


def save_plot(card: Mapping[str, Any], path: str | os.PathLike[str], *, what: Plot = "reliability") -> None:
    """Draw a card into a file that appears whole or not at all, the same bytes for the same card.

    Parameters
    ----------
    card : mapping
        Of a head.
    path : path
        A ``.png``, ``.svg`` or ``.pdf`` file.
    what : {"reliability", "learning-curve"}, optional
        The picture.

    Raises
    ------
    UsageError
        There is no such picture, the card has no numbers for it, or the suffix is none of these.
    MissingExtraError
        matplotlib is not installed.
    OutputError
        The file cannot be written.
    """
    if what not in PLOTS:
        raise UsageError(f"plot {what!r} is not one of {', '.join(PLOTS)}")
    check_plot(path)
    from matplotlib import rc_context

    suffix = PurePath(path).suffix.lower()
    # no time of day in the file, and the same names inside it
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
    with rc_context({"svg.hashsalt": "bioxfer", "font.family": "DejaVu Sans"}):
        figure = PLOTS[what](card).get_figure(root=True)
        assert figure is not None  # it was made with one
        with publish(path) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=150, metadata=undated)


def _check_held_out(card: Mapping[str, Any], what: str) -> None:
    if card.get("split", {}).get("how") == "nothing was held out":
        raise UsageError(
            f"head {card.get('name')!r} was fitted in Python with nothing held out, so there is no {what} to "
            "draw; train it with `bioxfer train`, or `train_on_records` in Python, which hold proteins out"
        )


def _plain(name: str) -> str:
    """Keep matplotlib from reading formulas in a name."""
    return name.replace("$", r"\$")


def _matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pictures need an extra package; pip install 'bioxfer[report]'") from error


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    _matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and may want a screen

    return Figure(figsize=(6, 5.5), layout="constrained").add_subplot()


def _points(
    ax: Axes,
    x: Sequence[float],
    y: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    *,
    colour: str,
    mark: str,
    label: str,
    line: str = "",
) -> None:
    """Draw points with whiskers where there is an interval."""
    ends = [(math.nan, math.nan) if each is None else each for each in intervals]
    # an interval of a percentile bootstrap may lie beside its value, and a whisker has no negative length
    below = [max(0.0, value - low) if low == low else low for value, (low, _) in zip(y, ends, strict=True)]
    above = [
        max(0.0, high - value) if high == high else high for value, (_, high) in zip(y, ends, strict=True)
    ]
    ax.errorbar(
        x, y, yerr=[below, above], fmt=mark + line, color=colour, capsize=3, markersize=5, label=label
    )
