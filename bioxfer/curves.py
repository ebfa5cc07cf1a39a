"""Learning curves: how good a head would be that learnt from fewer proteins.

At each size several small training sets are drawn, heads are fitted to them, and all are judged on the same
held-out proteins as the head itself. Intervals are of those proteins' clusters, not of the draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError, UsageError
from bioxfer.evaluate import draw_metric, interval
from bioxfer.selection import check_classes
from bioxfer.tasks import Task
from bioxfer.trunks import Labelled

__all__ = [
    "CURVE_COLUMNS",
    "DRAWS",
    "HEAD",
    "TARGET_ONLY",
    "check_sizes",
    "curve_rows",
    "draw_curve",
    "draw_proteins",
]

DRAWS = 3
"""Training sets drawn at each size, if nothing else is asked for."""

HEAD = "head"
"""Name of the one way to a head that there is without transfer."""

TARGET_ONLY = "target_only"
"""Name of the way that the gains of others are over."""

Predict: TypeAlias = Callable[[str, npt.NDArray[np.intp], str], npt.NDArray[Any]]
Report: TypeAlias = Callable[[str], object]


def check_sizes(sizes: Sequence[int], draws: int) -> None:
    """Refuse what makes no learning curve.

    Raises
    ------
    UsageError
        A size is below 2, or there are no draws.
    """
    if draws < 1 or any(size < 2 for size in sizes):
        told = ", ".join(map(str, sizes))
        raise UsageError(f"sizes {told} with {draws} draws make no learning curve; give sizes of 2 or more")


def draw_curve(
    target: Labelled,
    learnt: npt.NDArray[np.intp],
    held: Labelled,
    predict: Predict,
    whole: Mapping[str, npt.NDArray[Any]],
    *,
    sizes: Sequence[int],
    draws: int = DRAWS,
    seed: int,
    tell: Report,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Judge each way at each size.

    Parameters
    ----------
    target : Labelled
        Proteins to learn from, N of them.
    learnt : ndarray (L,)
        Those among them that may be drawn.
    held : Labelled
        M held-out proteins.
    predict : callable
        Given a way, the places of a training set in `target`, and the draw's name, fits a head and
        predicts the held-out proteins ``(M, ...)``.
    whole : mapping of str to ndarray (M, ...)
        By way, what the head that learnt from all L predicts; the last point.
    sizes : sequence of int
        Proteins of a training set.
    draws : int, optional
        Training sets of each size.
    seed : int
        Of draws and bootstrap.
    tell : callable
        Is told a line at a time how far it is.

    Returns
    -------
    points : list of dict
        ``way, size, metric, value, ci95, draws``, and where one way is `TARGET_ONLY`, of each other the gain
        over it (``minus_target_only``).
    left : dict of str to str
        Sizes that were left out, and why.
    """
    task, left = target.task, {}
    points: list[dict[str, Any]] = []
    for size in sorted(set(sizes)):
        said: dict[str, list[npt.NDArray[Any]]] = {way: [] for way in whole}
        for number in range(draws):
            try:
                rows = draw_proteins(target, learnt, size, seed=seed + number)
                check_classes(task, target.y[rows], target.group[rows], least=2)
            except LabelError as error:
                left[str(size)] = str(error)
                tell(f"{size} proteins: left out of the learning curve, as {error}")
                break
            for way, mine in said.items():
                mine.append(predict(way, rows, f"curve/{size}/{number}/{way}"))
                value = task.metrics(held.y, mine[-1])[task.main_metric]
                which = f"{size} proteins, draw {number + 1} of {draws}, {way.replace('_', ' ')}"
                tell(f"{which}: {task.main_metric} {value:.3f}")
        if str(size) not in left:
            points += _score_size(task, held, size, {way: np.stack(mine) for way, mine in said.items()}, seed)
    points += _score_size(task, held, len(learnt), {way: mine[None] for way, mine in whole.items()}, seed)
    return points, left


def draw_proteins(
    target: Labelled, places: npt.NDArray[np.intp], size: int, *, seed: int
) -> npt.NDArray[np.intp]:
    """Draw a small training set in which every class can be held out.

    Each class gets two proteins of different clusters, the rarest class first; the others are drawn from all.

    Parameters
    ----------
    target : Labelled
        To draw from.
    places : ndarray (M,)
        Proteins that may be drawn.
    size : int
        How many.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray (size,)
        Places, ascending.

    Raises
    ------
    LabelError
        So many proteins are all or more than all, or cannot hold two of each class.
    """
    if size >= len(places):
        raise LabelError(f"{size} proteins are no part of the {len(places)} for training")
    order = np.random.default_rng(seed).permutation(places)
    members = target.task.members(target.y)
    taken: dict[int, None] = {}
    for column in np.argsort(members[order].sum(axis=0), kind="stable").tolist():
        mine = [place for place in order.tolist() if members[place, column]]
        clusters = {int(target.group[place]) for place in taken if members[place, column]}
        for place in mine:
            if len(clusters) >= 2:
                break
            if int(target.group[place]) not in clusters:
                taken[place] = None
                clusters.add(int(target.group[place]))
    if len(taken) > size:
        raise LabelError(
            f"{size} proteins cannot hold two of each of {members.shape[1]} classes, which take {len(taken)}"
        )
    for place in order.tolist():
        if len(taken) == size:
            break
        taken[place] = None
    return np.sort(np.array(list(taken), dtype=np.intp))


def _score_size(
    task: Task, held: Labelled, size: int, said: Mapping[str, npt.NDArray[Any]], seed: int
) -> list[dict[str, Any]]:
    """Return one point for each way: the mean over draws, and over the same drawn clusters its interval."""
    name = task.main_metric
    values = {
        way: float(np.mean([task.metrics(held.y, one)[name] for one in each])) for way, each in said.items()
    }
    drawn = {
        way: np.mean(
            [draw_metric(task.metrics, name, held.y, one, held.group, n=1000, seed=seed) for one in each],
            axis=0,
        )
        for way, each in said.items()
    }
    points: list[dict[str, Any]] = []
    for way in said:
        point = {
            "way": way,
            "size": size,
            "metric": name,
            "value": values[way],
            "ci95": interval(drawn[way]),
            "draws": len(said[way]),
        }
        if TARGET_ONLY in said and way != TARGET_ONLY:
            point["minus_target_only"] = {
                "value": values[way] - values[TARGET_ONLY],
                "ci95": interval(drawn[way] - drawn[TARGET_ONLY]),
            }
        points.append(point)
    return points


CURVE_COLUMNS = ["size", "way", "draws", "metric", "value", "low", "high", "gain", "gain_low", "gain_high"]
"""Of the learning curve's table; the gain is over the target alone."""


def curve_rows(points: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """Yield the rows of a learning curve, as a card holds it; see `CURVE_COLUMNS`."""
    for point in points:
        cells = [point["size"], point["way"], point["draws"], point["metric"]]
        gain = point.get("minus_target_only")
        for score in (point, gain):
            ends = (score or {}).get("ci95") or (None, None)
            numbers = (None if score is None else score["value"], *ends)
            cells += [None if number is None else round(number, 4) for number in numbers]
        yield cells
