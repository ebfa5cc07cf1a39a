"""Figures: what a card says, as a picture.

Each function draws into axes of the caller's, or into a figure of its own: ``plot_reliability(card).figure``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bioxfer.cards import plain_way, score_text, sort_baselines
from bioxfer.errors import BioxferError, UsageError
from bioxfer.output import publish
from bioxfer.report.drawing import (
    COLOURS,
    GREY,
    MARKS,
    SOFT,
    draw_points,
    hover,
    make_axes,
    need_matplotlib,
    plain,
    plain_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "PLOTS",
    "check_plot",
    "plot_baselines",
    "plot_confusion",
    "plot_identity",
    "plot_learning_curve",
    "plot_numbers",
    "plot_reliability",
    "save_plot",
]

Plot = Literal["reliability", "learning-curve", "baselines", "confusion", "numbers", "identity"]

_SUFFIXES = (".png", ".svg", ".pdf")
_MOST_CLASSES = 30  # on the side of a confusion matrix, where the rarest others become one
_MOST_COUNTS = 12  # classes whose counts still fit into their cells
_USUAL, _LARGE = (6, 5.5), (9.2, 8.4)  # inches; 30 names stand one under another in the larger


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
    ax = make_axes(ax)
    total = sum(each["count"] for each in bins)
    texts = [
        f"{each['count']} of {total} answers, of probability {each['confidence']:.3f} on average\n"
        f"right: {score_text({'value': each['accuracy'], 'ci95': each['ci95']})}"
        for each in bins
    ]
    bars = ax.bar(
        [each["low"] for each in bins],
        [each["count"] / total for each in bins],
        width=[each["high"] - each["low"] for each in bins],
        align="edge",
        color=SOFT,
        edgecolor="white",
        label="share of answers",
    )
    for bar, text in zip(bars, texts, strict=True):
        hover(bar, [text])
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="honest")
    draw_points(
        ax,
        [each["confidence"] for each in bins],
        [each["accuracy"] for each in bins],
        [each["ci95"] for each in bins],
        colour=COLOURS[0],
        mark=MARKS[0],
        label="head",
        texts=texts,
    )
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="probability given to the answer",
        ylabel="share of such answers that were right",
        title=f"{plain(card['name'])}: reliability on {card['split']['valid']} {_called(card)} proteins\n"
        f"calibration error {calibration['ece_after']:.3f}, chance alone {calibration['ece_if_honest']:.3f}",
    )
    ax.set_aspect("equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    return ax


@_of_known_layout
def plot_learning_curve(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how good the head, or each way of transfer, is with so many labelled proteins.

    Parameters
    ----------
    card : mapping
        Of a head that ``bioxfer transfer``, or ``train`` with sizes, has trained.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        The card holds no such numbers.
    MissingExtraError
        matplotlib is not installed.
    """
    curve = card.get("transfer", card).get("curve", ())
    if not curve:
        _check_held_out(card, "learning curve")
        reason = (
            "it was transferred with low-rank changes or without sizes; give --sizes and another --trunk"
            if "transfer" in card
            else "none was asked for; train it anew with --sizes, or use `bioxfer transfer` where there are "
            "other tasks to learn from"
        )
        raise UsageError(f"the card of head {card.get('name')!r} holds no learning curve: {reason}")
    ax = make_axes(ax)
    ways = list(dict.fromkeys(point["way"] for point in curve))
    sizes = sorted({point["size"] for point in curve})
    for number, way in enumerate(ways):
        points = sorted((point for point in curve if point["way"] == way), key=lambda point: point["size"])
        # side by side, so that whiskers of one size do not lie over each other
        shift = 1 + 0.05 * (number - (len(ways) - 1) / 2)
        draw_points(
            ax,
            [point["size"] * shift for point in points],
            [point["value"] for point in points],
            [point["ci95"] for point in points],
            colour=COLOURS[number % len(COLOURS)],
            mark=MARKS[number % len(MARKS)],
            label=plain(plain_way(way)),
            line="-",
            texts=[f"{plain_way(way)}, {point['size']} proteins: {score_text(point)}" for point in points],
        )
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xticks([], minor=True)
    ax.set(
        xlabel="labelled proteins in training",
        ylabel=f"{curve[0]['metric']} on held-out proteins",
        title=f"{plain(card['name'])}: learning curve",
    )
    ax.grid(axis="y", color=SOFT)
    ax.set_axisbelow(True)
    # below, as whiskers may reach into each corner
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
    return ax


@_of_known_layout
def plot_baselines(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw the main metric of the head and of its baselines on the held-out proteins, with their intervals.

    Parameters
    ----------
    card : mapping
        Of a head.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        The card holds no such numbers.
    MissingExtraError
        matplotlib is not installed.
    """
    baselines = card.get("baselines") or {}
    if not baselines:
        _check_held_out(card, "comparison")
        raise UsageError(
            f"the card of head {card.get('name')!r} holds no baselines to draw it beside; train it anew"
        )
    names = sort_baselines(baselines)
    metric = baselines[names[0]]["head_minus_baseline"]["metric"]
    scored = [(name, baselines[name]["metrics"]) for name in names] + [("this head", card["metrics"])]
    # a baseline may lack a metric that it cannot have, as one of a single answer has no order
    known = [
        (name, scores[metric]) for name, scores in scored if scores.get(metric, {}).get("value") is not None
    ]
    ax = make_axes(ax)
    for place, (name, score) in enumerate(known):
        own = name == "this head"
        draw_points(
            ax,
            [score["value"]],
            [place],
            [score["ci95"]],
            colour=COLOURS[0] if own else GREY,
            mark=MARKS[0] if own else MARKS[1],
            label=name,
            across=True,
        )
    ax.set_yticks(range(len(known)), [plain_name(name) for name, _ in known])
    ax.set(
        ylim=(-0.6, len(known) - 0.4),
        xlabel=f"{metric} on held-out proteins",
        title=f"{plain(card['name'])}: beside simple methods",
    )
    ax.grid(axis="x", color=SOFT)
    ax.set_axisbelow(True)
    return ax


@_of_known_layout
def plot_confusion(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw which class was taken for which, on the proteins (or their residues) that were held out.

    A cell is as dark as the share of its row, the proteins of that class. Of more than 30 classes the rarest
    become one.

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
    confusion = card.get("confusion")
    if not confusion:
        _check_held_out(card, "confusion matrix")
        raise UsageError(
            f"the card of head {card.get('name')!r} holds no confusion matrix: it predicts no single class, "
            "or was trained by an older version; train it anew, or choose another head"
        )
    labels, counts = _fold(confusion["labels"], confusion["cells"])
    ax = make_axes(ax, size=_LARGE if has_many_classes(card) else _USUAL)
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    total: dict[int, int] = {}
    for (row, _), count in counts.items():
        total[row] = total.get(row, 0) + count
    shares = {cell: count / total[cell[0]] for cell, count in counts.items()}
    cells = PatchCollection(
        [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in counts],
        facecolors=[(0, 0x72 / 255, 0xB2 / 255, 0.06 + 0.9 * share) for share in shares.values()],
        edgecolors="none",
    )
    hover(
        cells,
        [
            f"{labels[row]} taken for {labels[column]}: {count} of {total[row]}"
            if row != column
            else f"{labels[row]} seen as such: {count} of {total[row]}"
            for (row, column), count in counts.items()
        ],
    )
    ax.add_collection(cells)
    if len(labels) <= _MOST_COUNTS:
        for (row, column), count in counts.items():
            dark = shares[row, column] > 0.7
            ax.text(column, row, str(count), ha="center", va="center", color="white" if dark else None)
    names = [plain_name(label) for label in labels]
    ax.set_xticks(range(len(labels)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    ax.set_yticks(range(len(labels)), names)
    ax.tick_params(length=0)
    ax.set(
        xlim=(-0.5, len(labels) - 0.5),
        ylim=(len(labels) - 0.5, -0.5),
        xlabel="said",
        ylabel="true",
        title=f"{plain(card['name'])}: what was taken for what",
    )
    ax.set_aspect("equal")
    return ax


def has_many_classes(card: Mapping[str, Any]) -> bool:
    """Whether `plot_confusion` needs much room for the names of classes."""
    return len((card.get("confusion") or {}).get("labels", ())) > _MOST_COUNTS


def _fold(labels: list[str], cells: list[list[int]]) -> tuple[list[str], dict[tuple[int, int], int]]:
    """Make one of the rarest classes where there are too many, and count each cell."""
    count = [0] * len(labels)
    for true, _, n in cells:
        count[true] += n
    kept = list(range(len(labels)))
    if len(labels) > _MOST_CLASSES:
        kept = sorted(sorted(kept, key=lambda c: -count[c])[: _MOST_CLASSES - 1])
    place = {c: i for i, c in enumerate(kept)}
    found: dict[tuple[int, int], int] = {}
    for true, said, n in cells:
        cell = place.get(true, len(kept)), place.get(said, len(kept))
        found[cell] = found.get(cell, 0) + n
    names = [str(labels[c]) for c in kept]
    if len(kept) < len(labels):
        names.append(f"{len(labels) - len(kept)} others")
    return names, dict(sorted(found.items()))


@_of_known_layout
def plot_numbers(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw numbers that were said of held-out proteins (or their residues) against the true ones.

    Parameters
    ----------
    card : mapping
        Of a head of numbers, trained by this version.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        The card holds no such numbers.
    MissingExtraError
        matplotlib is not installed.
    """
    predicted = card.get("predicted")
    if not predicted:
        _check_held_out(card, "picture of its numbers")
        raise UsageError(
            f"the card of head {card.get('name')!r} holds no numbers beside the true ones: it predicts "
            "classes, or was trained by an older version; train it anew, or choose another head"
        )
    ax = make_axes(ax)
    true, said = zip(*predicted["pairs"], strict=True)
    ends = min(*true, *said), max(*true, *said)
    ax.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
    points = ax.scatter(true, said, s=12, color=COLOURS[0], alpha=0.6, linewidths=0)
    hover(points, [f"true {a:g}, said {b:g}" for a, b in predicted["pairs"]])
    few = f"{len(true)} of {predicted['of']}" if len(true) < predicted["of"] else f"{len(true)}"
    ax.set(xlabel="true", ylabel="said", title=f"{plain(card['name'])}: {few} {_called(card)} answers")
    ax.set_aspect("equal", adjustable="datalim")
    return ax


@_of_known_layout
def plot_identity(card: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how good the head is on held-out proteins near to and far from those it learnt from.

    Parameters
    ----------
    card : mapping
        Of a head for proteins, trained by this version.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        The card holds no such numbers.
    MissingExtraError
        matplotlib is not installed.
    """
    nearness = card.get("by_identity")
    if not nearness:
        _check_held_out(card, "picture by identity")
        raise UsageError(
            f"the card of head {card.get('name')!r} holds no numbers by identity: it labels residues, or was "
            "trained by an older version; train it anew, or choose another head"
        )
    bins = nearness["bins"]
    known = [place for place, part in enumerate(bins) if part["value"] is not None]
    ax = make_axes(ax)
    draw_points(
        ax,
        known,
        [bins[place]["value"] for place in known],
        [bins[place]["ci95"] for place in known],
        colour=COLOURS[0],
        mark=MARKS[0],
        label="head",
    )
    names = [f"{part['low']:.0%} to {part['high']:.0%}\n{part['valid']} proteins" for part in bins]
    ax.set_xticks(range(len(bins)), names)
    ax.set(
        xlim=(-0.5, len(bins) - 0.5),
        xlabel="identity to the nearest training protein",
        ylabel=f"{nearness['metric']} on held-out proteins",
        title=f"{plain(card['name'])}: by identity to training",
    )
    ax.grid(axis="y", color=SOFT)
    ax.set_axisbelow(True)
    return ax


PLOTS: dict[str, Plotter] = {
    "reliability": plot_reliability,
    "learning-curve": plot_learning_curve,
    "baselines": plot_baselines,
    "confusion": plot_confusion,
    "numbers": plot_numbers,
    "identity": plot_identity,
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
    need_matplotlib()


def save_plot(card: Mapping[str, Any], path: str | os.PathLike[str], *, what: Plot = "reliability") -> None:
    """Draw a card into a file that appears whole or not at all, the same bytes for the same card.

    Parameters
    ----------
    card : mapping
        Of a head.
    path : path
        A ``.png``, ``.svg`` or ``.pdf`` file.
    what : {"reliability", "learning-curve", "baselines", "confusion", "numbers", "identity"}, optional
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


def _called(card: Mapping[str, Any]) -> str:
    """Say what the judged proteins are: those of a card were held out, those of an evaluation not always."""
    return plain(card.get("split", {}).get("called", "held-out"))


def _check_held_out(card: Mapping[str, Any], what: str) -> None:
    if card.get("split", {}).get("how") == "nothing was held out":
        raise UsageError(
            f"head {card.get('name')!r} was fitted in Python with nothing held out, so there is no {what} to "
            "draw; train it with `bioxfer train`, or `train_on_records` in Python, which hold proteins out"
        )
