"""Maps and tracks: proteins in a head's space, what is said along a protein, and how often what is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import MissingExtraError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.neighbours import unit_rows
from bioxfer.report.drawing import COLOURS, GREY, MARKS, SOFT, hover, make_axes, plain, plain_name
from bioxfer.residues import ResidueHead

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Layout",
    "draw_map",
    "draw_track",
    "into_space",
    "plot_counts",
    "plot_histogram",
    "plot_map",
    "plot_track",
]

Layout: TypeAlias = Literal["pca", "umap"]
Floats: TypeAlias = npt.NDArray[Any]

# matplotlib's viridis, its yellow darker, so that it is seen on white
STEPS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#d8b500")
_MOST_STEPS = 2000  # along a protein; of a longer one neighbours are drawn as one
_MOST_LETTERS = 40  # of a stretch of residues
_MOST_BARS = 15
_FEW_POINTS = 200  # on a map that can be larger without hiding each other


def into_space(head: TrainedHead | ResidueHead, vectors: Floats) -> Floats:
    """Take vectors ``(N, F)`` into the space ``(N, d)`` in which the head looks up neighbours."""
    return np.asarray(unit_rows(np.asarray(vectors) @ head.index.projection.T + head.index.offset))


def plot_map(
    head: TrainedHead | ResidueHead,
    vectors: Floats | None = None,
    *,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    how: Layout = "pca",
    most: int = 1000,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw proteins on a plane: those that a head learnt from, or others among them.

    Parameters
    ----------
    head : TrainedHead or ResidueHead
        Its space is drawn, in which it looks up neighbours.
    vectors : ndarray (N, F), optional
        Proteins of your own as the head reads them, finite; its training proteins then lie behind them in
        grey. Its training proteins alone if not given.
    labels, names : sequence of str, optional
        N labels to colour by, and names.
    how : {"pca", "umap"}, optional
        The two directions in which the training proteins differ most; or UMAP, if umap-learn is installed.
    most : int, optional
        Proteins drawn at most, and as many training proteins behind them; the others are left to chance.
    seed : int, optional
        Of that chance.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    UsageError
        Labels, names and vectors do not fit each other.
    MissingExtraError
        matplotlib, or for that layout umap-learn, is not installed.
    """
    count = len(head.index.ids) if vectors is None else len(vectors)
    for word, column in (("labels", labels), ("names", names)):
        if column is not None and len(column) != count:
            raise UsageError(f"{len(column)} {word} do not fit {count} proteins; give one for each")
    space = None if vectors is None else into_space(head, vectors)
    return draw_map(head, space, labels=labels, names=names, how=how, most=most, seed=seed, ax=ax)


def draw_map(
    head: TrainedHead | ResidueHead,
    space: Floats | None,
    *,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    of: int | None = None,
    how: Layout = "pca",
    most: int = 1000,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw `plot_map` of proteins that lie in the head's space already.

    ``texts`` say more of each than its label, and ``of`` how many they were drawn from.
    """
    dice = np.random.default_rng(seed)
    index = head.index
    behind = _few(len(index.ids), most, dice)
    known = index.vectors.astype(np.float32)
    to_plane = _lay_out(known, behind, how, seed)
    ax = make_axes(ax)
    from matplotlib.collections import PathCollection
    from matplotlib.lines import Line2D

    if space is None:
        shown, total = to_plane(known[behind]), len(index.ids)
        titles = [index.ids[i] for i in behind]
        if labels is not None:
            said: list[str] | None = [labels[i] for i in behind]
        else:
            said = (
                [head.task.label(index.targets[i]) for i in behind] if isinstance(head, TrainedHead) else None
            )
        what, more = "training proteins", said
    else:
        few = _few(len(space), most, dice)
        grey = to_plane(known[behind])
        # one line of marks, as nobody asks for their names
        ax.plot(
            grey[:, 0],
            grey[:, 1],
            "o",
            color=GREY,
            alpha=0.5,
            markersize=2,
            markeredgewidth=0,
            label="training",
        )
        shown, total = to_plane(space[few]), len(space) if of is None else of
        titles = [names[i] if names is not None else str(i + 1) for i in few]
        said = None if labels is None else [labels[i] for i in few]
        more = said if texts is None else [texts[i] for i in few]
        what = "proteins"
    numbers = isinstance(head, TrainedHead) and not head.labels
    size = 28 if len(shown) <= _FEW_POINTS else 14
    for name, colour, mark, places in _group(said, len(shown), numbers=numbers):
        points = ax.scatter(
            shown[places, 0], shown[places, 1], s=size, c=colour, marker=mark, alpha=0.75, linewidths=0,
            label=plain_name(name),
        )  # fmt: skip
        hover(points, [titles[i] if more is None else f"{titles[i]}\n{more[i]}" for i in places.tolist()])
    drawn = f"{len(shown)} of {total}" if len(shown) < total else f"{total}"
    ax.set(title=f"{plain(head.name)}: {drawn} {what}", xticks=[], yticks=[])
    if isinstance(to_plane, _Plane):
        first, second = (f"principal component, {share:.0%} of the variance" for share in to_plane.shares)
    else:
        first = second = "UMAP dimension"
    ax.set(xlabel=f"first {first}", ylabel=f"second {second}")
    if said is not None or space is not None:
        legend = ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False, handletextpad=0.2
        )
        for handle in legend.legend_handles:  # as large as each other, however small the points are
            if isinstance(handle, Line2D):
                handle.set_markersize(5)
            elif isinstance(handle, PathCollection):
                handle.set_sizes([28])
    return ax


def _few(count: int, most: int, dice: np.random.Generator) -> list[int]:
    places = np.arange(count) if count <= most else np.sort(dice.choice(count, most, replace=False))
    return [int(place) for place in places]


class _Plane:
    """Takes vectors to a plane by the two directions in which some vary most."""

    def __init__(self, known: Floats) -> None:
        self.mean = known.mean(axis=0)
        centred = (known - self.mean).astype(np.float64)
        spread, axes = np.linalg.eigh(centred.T @ centred)
        best = axes[:, ::-1][:, :2]
        # of a single dimension, or of proteins that are all alike, there is nothing to share
        self.shares = np.pad(spread[::-1][:2].clip(min=0), (0, max(0, 2 - len(spread)))) / (spread.sum() or 1)
        best = np.pad(best, ((0, 0), (0, 2 - best.shape[1])))  # of a single dimension
        # a direction has no sign of its own
        self.axes = best * np.where(best[np.abs(best).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)

    def __call__(self, vectors: Floats) -> Floats:
        return np.asarray((vectors - self.mean) @ self.axes)


def _lay_out(known: Floats, few: list[int], how: Layout, seed: int) -> Any:
    if how == "pca":
        return _Plane(known)
    if how != "umap":
        raise UsageError(f"layout {how!r} is neither 'pca' nor 'umap'; name one of these")
    try:
        import umap
    except ImportError as error:
        raise MissingExtraError(
            "UMAP needs an extra package; pip install umap-learn, or use 'pca'"
        ) from error
    return umap.UMAP(random_state=seed, metric="cosine").fit(known[few]).transform


def _group(
    labels: Sequence[str] | None, count: int, *, numbers: bool
) -> list[tuple[str, str, str, npt.NDArray[np.intp]]]:
    """Give each group of points its name, colour, mark and places, the largest first."""
    if labels is None:
        return [("proteins", COLOURS[0], MARKS[0], np.arange(count))]
    if numbers:
        values = np.array([float(label) if label else math.nan for label in labels])
        edges = (
            np.unique(np.nanquantile(values, np.linspace(0, 1, len(STEPS) + 1))) if len(values) else values
        )
        if len(edges) > 1:
            step = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
            return [
                (f"{edges[i]:.3g} to {edges[i + 1]:.3g}", STEPS[i], MARKS[0], np.flatnonzero(step == i))
                for i in range(len(edges) - 1)
                if (step == i).any()
            ]
    column = np.array(labels, dtype=object)
    common = [name for name, _ in sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))]
    named = common if len(common) <= len(COLOURS) else common[: len(COLOURS) - 1]
    groups = [
        (name or "no answer", COLOURS[i], MARKS[i], np.flatnonzero(column == name))
        for i, name in enumerate(named)
    ]
    if len(named) < len(common):
        rest = np.flatnonzero(~np.isin(column, named))
        groups.append((f"{len(common) - len(named)} others", GREY, MARKS[-1], rest))
    return groups


def plot_track(
    head: ResidueHead, residues: Floats, *, sequence: str = "", name: str = "", ax: Axes | None = None
) -> Axes:
    """Draw what a head for residues says along one protein.

    Parameters
    ----------
    head : ResidueHead
        What answers.
    residues : ndarray (L, D)
        The protein's residues as the backbone made them.
    sequence, name : str, optional
        Of the protein.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.

    Raises
    ------
    FingerprintError
        The residues have another width than those the head was trained on.
    MissingExtraError
        matplotlib is not installed.
    """
    said, scores = head.answer(residues)
    return draw_track(head, said, scores, sequence=sequence, name=name, ax=ax)


def draw_track(
    head: ResidueHead,
    said: Sequence[str],
    scores: Floats,
    *,
    true: Sequence[str] | None = None,
    sequence: str = "",
    name: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw `plot_track` of answers that are there already: L texts, and how probable each is ``(L,)``.

    ``true`` are L texts to draw beside them; the probabilities may be missing.
    """
    ax = make_axes(ax, size=(9, 2.2))
    width = max(1, math.ceil(len(said) / _MOST_STEPS))
    starts = np.arange(0, len(said), width)
    digits = all(len(label) == 1 and label.isdigit() for label in head.labels)
    if digits:  # also true of a head of numbers, which has no labels
        line = _average(said, starts, width)
        told = "said" if true is not None else None
        ax.plot(
            starts + (width + 1) / 2, line, color=COLOURS[0], linewidth=1, drawstyle="steps-mid", label=told
        )
        if true is not None:
            ax.plot(
                starts + (width + 1) / 2, _average(true, starts, width), color=COLOURS[1], linewidth=1,
                linestyle="--", drawstyle="steps-mid", label="true",
            )  # fmt: skip
            ax.legend(loc="lower left", bbox_to_anchor=(1.0, 0.0), frameon=False)
        ax.fill_between(
            starts + (width + 1) / 2,
            line,
            min(0.0, np.nanmin(line)) if len(line) else 0,
            step="mid",
            color=COLOURS[0],
            alpha=0.25,
            linewidth=0,
        )
        ax.set_ylabel("digit" if head.labels else "number")
    else:
        ax.plot(
            starts[: len(scores)] + (width + 1) / 2,
            [float(np.mean(scores[s : s + width])) for s in starts if s < len(scores)],
            color=GREY,
            linewidth=0.8,
        )
        bands = {"said": said, **({} if true is None else {"true": true})}
        _draw_runs(ax, head.labels, bands, scores, sequence, width)
        middles = [-0.225 - 0.3 * place for place in range(len(bands))]
        if len(scores):
            ax.set_yticks([*middles, 0, 0.5, 1], [*bands, "0", "0.5", "1"])
            ax.set(ylim=(middles[-1] - 0.175, 1.02), ylabel="probability")
        else:
            ax.set_yticks(middles, list(bands))
            ax.set(ylim=(middles[-1] - 0.175, -0.05))
    ax.set(xlim=(0.5, max(len(said), 1) + 0.5), xlabel="residue")
    ax.set_title(f"{plain(head.name)} along {plain(name, longest=60)}" if name else plain(head.name))
    return ax


def _average(texts: Sequence[str], starts: npt.NDArray[np.intp], width: int) -> list[float]:
    values = np.array([_number(text) for text in texts])
    steps = [values[start : start + width] for start in starts]
    return [float(np.nanmean(step)) if np.isfinite(step).any() else math.nan for step in steps]


def _draw_runs(
    ax: Axes,
    labels: Sequence[str],
    bands: Mapping[str, Sequence[str]],
    scores: Floats,
    sequence: str,
    width: int,
) -> None:
    """Draw stretches of one class as boxes under the line, a band for each sort of answer."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    runs: dict[str, list[tuple[str, int, int]]] = {}
    for word, letters in bands.items():
        runs[word] = []
        for start in range(0, len(letters), width):
            label = Counter(letters[start : start + width]).most_common(1)[0][0]
            end = min(start + width, len(letters))
            if runs[word] and runs[word][-1][0] == label:
                start = runs[word].pop()[1]
            runs[word].append((label, start, end))
    for label in sorted({run[0] for band in runs.values() for run in band}):
        # of one colour on every track; what was cut off has none
        colour = COLOURS[labels.index(label) % len(COLOURS)] if label in labels else GREY
        boxes, texts = [], []
        for place, (word, band) in enumerate(runs.items()):
            for _, start, end in (run for run in band if run[0] == label):
                boxes.append(Rectangle((start + 0.5, -0.35 - 0.3 * place), end - start, 0.25))
                told = word == "said" and start < len(scores)
                sure = f", mean probability {np.mean(scores[start:end]):.2f}" if told else ""
                stretch = sequence[start:end]
                shown = stretch if len(stretch) <= _MOST_LETTERS else f"{stretch[: _MOST_LETTERS - 3]}..."
                whose = f"{word} {label}" if len(runs) > 1 else label
                texts.append(f"{whose}: residues {start + 1} to {end}{sure}\n{shown}".rstrip())
        drawn = PatchCollection(boxes, facecolor=colour, edgecolor="none")
        hover(drawn, texts)
        ax.add_collection(drawn)
        ax.plot([], [], "s", color=colour, label=plain_name(label))
    ax.legend(loc="lower left", bbox_to_anchor=(1.0, 0.0), frameon=False, handletextpad=0.2)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # a residue that was cut off
        return math.nan


def plot_counts(
    counts: Mapping[str, int], *, what: str = "proteins", title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw how often each label was said: a bar for each, the 15 most frequent and the others together.

    Parameters
    ----------
    counts : mapping of str to int
        By label.
    what : str, optional
        What was counted.
    title : str, optional
        Of the picture.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.
    """
    ax = make_axes(ax)
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = order if len(order) <= _MOST_BARS else order[: _MOST_BARS - 1]
    bars = [(str(name), count, COLOURS[0]) for name, count in shown]
    if len(shown) < len(order):
        rest = sum(count for _, count in order[len(shown) :])
        bars.append((f"{len(order) - len(shown)} others", rest, GREY))
    names, sizes, colours = zip(*bars, strict=True) if bars else ((), (), ())
    drawn = ax.barh(range(len(bars)), sizes, color=colours)
    for bar, name, size in zip(drawn, names, sizes, strict=True):
        hover(bar, [f"{name}: {size} {what}"])
    ax.set_yticks(range(len(bars)), [plain_name(name) for name in names])
    ax.invert_yaxis()
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel=what, title=plain(title))
    return ax


def plot_histogram(
    counts: Sequence[int], edges: Sequence[float], *, x: str, what: str = "proteins", title: str = "",
    mark: float | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw counts between edges, as `numpy.histogram` gives them.

    Parameters
    ----------
    counts, edges : sequence
        N counts and N + 1 edges.
    x, what, title : str
        What the numbers are, what was counted, and the picture's title.
    mark : float, optional
        A number to mark with a line.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if not given.
    """
    ax = make_axes(ax)
    widths = np.diff(np.asarray(edges, dtype=float))
    drawn = ax.bar(
        edges[:-1], counts, width=widths, align="edge", color=COLOURS[0], edgecolor=SOFT, linewidth=0.4
    )
    for bar, low, high, count in zip(drawn, edges[:-1], edges[1:], counts, strict=True):
        hover(bar, [f"{low:.3g} to {high:.3g}: {count} {what}"])
    if mark is not None:
        ax.axvline(mark, color=COLOURS[1], linestyle="--", linewidth=1)
    ax.locator_params(axis="y", integer=True)
    ax.set(xlabel=x, ylabel=what, title=plain(title))
    return ax
