"""Honesty: what a card says beside its metrics, so that nobody takes them for more than they are.

Class by class, by identity to the nearest training protein, at each confidence, and as conformal sets; and
warnings where so few proteins speak that a number means little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.alignment import Alignment
from bioxfer.breakdown import (
    count_confusions,
    reliability,
    sample_pairs,
    score_classes,
    score_parts,
    score_sets,
)
from bioxfer.conformal import COVERAGES, ConformalScores
from bioxfer.selection import FAR_SHARE, Fitted
from bioxfer.tasks import Multiclass, Regression, Task

__all__ = [
    "LEAST_CLUSTERS",
    "LEAST_TRAIN",
    "LEAST_VALID",
    "describe_answers",
    "describe_calibration",
    "describe_classes",
    "describe_domain",
    "describe_misses",
    "describe_nearness",
    "describe_sets",
    "find_warnings",
    "label_by_alignment",
    "pick_worst",
    "score_misses",
]

LEAST_TRAIN = 10
"""Training proteins of a class: with fewer, what the head learns of it hangs on single proteins."""

LEAST_VALID = 5
"""Held-out proteins of a class: with fewer, one of them moves its recall by more than 20 points."""

LEAST_CLUSTERS = 3
"""Training clusters of a class: with fewer, it is learnt from one family while another is left out."""

_MOST_MISSES = 25  # that a card names
_LEAST_HELD_CLUSTERS = 10  # from fewer, percentiles of a bootstrap are too narrow
_IDENTITIES = (0.0, 0.3, 0.5, 1.0)  # below 0.3, alignments alone no longer tell relatives (Rost 1999)

Array: TypeAlias = npt.NDArray[Any]


def label_by_alignment(task: Task, alignment: Alignment, targets: Array) -> Array:
    """Predict what annotation transfer would: the label of the best-aligned training protein.

    Parameters
    ----------
    task : Multiclass, Multilabel or Regression
        Its best constant answer stands where nothing aligns.
    alignment : Alignment
        Of N held-out proteins.
    targets : ndarray (M,) or (M, C)
        Of the training proteins.

    Returns
    -------
    ndarray (N,) or (N, C)
        In the form of what the task predicts.
    """
    said = np.repeat(np.asarray(task.constant(targets))[None], len(alignment.nearest), axis=0)
    said[alignment.found] = targets[alignment.nearest[alignment.found]]
    return said


def describe_classes(
    task: Task,
    y: Array,
    predicted: Array,
    groups: Array,
    *,
    train: npt.NDArray[np.intp],
    held: npt.NDArray[np.intp],
    seed: int,
) -> list[dict[str, Any]]:
    """Count and score each class.

    Parameters
    ----------
    task : Multiclass, Multilabel or Regression
        A regression has no classes, and gets an empty list.
    y, groups : ndarray (N, ...)
        Targets and homology clusters of all proteins.
    predicted : ndarray (M, ...)
        What the task predicts of the held-out ones.
    train, held : ndarray
        Places of the training and of the M held-out proteins.
    seed : int
        Of the bootstrap.

    Returns
    -------
    list of dict
        ``label``, numbers ``train``, ``train_clusters`` and ``valid``, and what `score_classes` gives.
    """
    if not task.labels:
        return []
    members = task.members(y)
    scores = score_classes(members[held], task.said(predicted), groups[held], seed=seed)
    return [
        {
            "label": label,
            "train": int(mine[train].sum()),
            "train_clusters": len(np.unique(groups[train][mine[train]])),
            "valid": int(mine[held].sum()),
            **score,
        }
        for label, mine, score in zip(task.labels, members.T, scores, strict=True)
    ]


def describe_answers(task: Task, y: Array, predicted: Array, *, seed: int) -> dict[str, Any]:
    """Put what was said of held-out proteins beside the truth, for a picture.

    Returns
    -------
    dict
        Of classes ``confusion``, see `count_confusions`; of numbers ``predicted``, see `sample_pairs`, in the
        labels' unit; of sets of labels nothing, as no label of theirs is taken for another.
    """
    if isinstance(task, Multiclass):
        return {"confusion": count_confusions(y, predicted, task.labels)}
    if isinstance(task, Regression):
        true, said = (values * task.scale + task.mean for values in (y, predicted))
        return {"predicted": sample_pairs(true, said, seed=seed)}
    return {}


def find_warnings(classes: Sequence[Mapping[str, Any]], *, valid_clusters: int) -> list[str]:
    """Say where so few proteins speak that a number means little, a sentence for each class."""
    found = []
    if valid_clusters == 1:
        found.append(
            "all held-out proteins are one homology cluster, so there are no intervals; let variants of one "
            "protein count as unrelated (--identity 1)"
        )
    elif valid_clusters < _LEAST_HELD_CLUSTERS:
        found.append(
            f"the held-out proteins make {valid_clusters} homology clusters; intervals drawn from fewer than "
            f"{_LEAST_HELD_CLUSTERS} are too narrow"
        )
    for each in classes:
        few = [
            f"{each[key]} {name} (fewer than {least})"
            for key, name, least in (
                ("train", "training proteins", LEAST_TRAIN),
                ("train_clusters", "training clusters", LEAST_CLUSTERS),
                ("valid", "held-out proteins", LEAST_VALID),
            )
            if each[key] < least
        ]
        if few:
            found.append(f"class {each['label']!r} has {' and '.join(few)}; its numbers mean little")
    return found


def score_misses(
    task: Task, y: Array, predicted: Array, outputs: Array, *, temperature: float
) -> tuple[Array, str]:
    """Say how wrong each of N answers is, 0 if it is right, and what that number is."""
    if isinstance(task, Regression):
        return np.abs(predicted - y) * task.scale, "error"
    true, said = task.members(y), task.said(predicted)
    if isinstance(task, Multiclass):
        sure = np.array([decision.score for decision in task.decode(outputs, temperature=temperature)])
        return np.where((true == said).all(axis=1), 0.0, sure), "probability given to it"
    both, either = (true & said).sum(axis=1), (true | said).sum(axis=1)
    return 1.0 - both / np.maximum(either, 1), "labels that differ, share"


def describe_misses(
    task: Task, ids: Sequence[str], y: Array, predicted: Array, outputs: Array, *, temperature: float
) -> dict[str, Any]:
    """Name the held-out proteins of which the head was most wrong, for a second look at head and labels.

    Returns
    -------
    dict
        ``rows``: at most 25 times ``id``, ``true``, ``said`` and ``miss``, the worst first; ``is``, what a
        miss is; and how many answers are wrong (``of``).
    """
    misses, what = score_misses(task, y, predicted, outputs, temperature=temperature)
    rows = [
        {
            "id": ids[i],
            "true": task.label(y[i]),
            "said": task.label(predicted[i]),
            "miss": round(float(misses[i]), 6),
        }
        for i in pick_worst(misses)
    ]
    return {"rows": rows, "is": what, "of": int((misses > 0).sum())}


def pick_worst(misses: Array) -> list[int]:
    """Return the places of at most 25 misses that are none, the largest first."""
    worst = np.argsort(-misses, kind="stable")[:_MOST_MISSES]
    return [int(place) for place in worst if misses[place] > 0]


def describe_nearness(
    task: Task, alignment: Alignment, y: Array, predicted: Array, groups: Array, *, method: str, seed: int
) -> dict[str, Any]:
    """Score held-out proteins apart by identity to the nearest training protein.

    Parameters
    ----------
    task : Multiclass, Multilabel or Regression
        Its main metric is used.
    alignment : Alignment
        Of N held-out proteins.
    y, predicted, groups : ndarray (N, ...)
        Their targets, predictions and clusters.
    method : str
        What searched.
    seed : int
        Of the bootstrap.
    """
    edges = list(itertools.pairwise(_IDENTITIES))
    parts = [
        (alignment.identity >= low) & ((alignment.identity < high) | (high == _IDENTITIES[-1]))
        for low, high in edges
    ]
    scores = score_parts(task.metrics, task.main_metric, y, predicted, groups, parts, seed=seed)
    return {
        "meaning": "identity to the most identical training protein that aligns over half of the shorter one",
        "method": method,
        "aligned": int(alignment.found.sum()),
        "metric": task.main_metric,
        "bins": [
            {"low": low, "high": high, "valid": int(part.sum()), **score}
            for (low, high), part, score in zip(edges, parts, scores, strict=True)
        ],
    }


def describe_domain(fitted: Fitted, similarity: Array, y: Array, predicted: Array) -> dict[str, Any]:
    """Say where the head was tested, and how it fares on the proteins it would call far."""
    far = similarity < fitted.index.far
    parts: dict[str, Any] = {
        "far_below": fitted.index.far,
        "meaning": f"{1 - FAR_SHARE:.0%} of training proteins, held out by cluster, were at least as similar "
        "to a neighbour",
    }
    for part, rows in (("in_domain", ~far), ("far", far)):
        parts[part] = {"valid": int(rows.sum())}
        if rows.sum() > 1:
            metrics = fitted.task.metrics(y[rows], predicted[rows])
            parts[part][fitted.task.main_metric] = metrics[fitted.task.main_metric]
    return parts


def describe_calibration(
    task: Task, outputs: Array, y: Array, groups: Array, *, temperature: float, fitted_on: str, seed: int
) -> dict[str, Any]:
    """Hold the probabilities of N held-out proteins against how often they were right."""
    sure, right = task.confidences(outputs, y, temperature=temperature)
    return {
        "temperature": temperature,
        "fitted_on": fitted_on,
        "ece_before": task.calibration_error(outputs, y),
        "ece_after": task.calibration_error(outputs, y, temperature=temperature),
        **(reliability(sure, right, groups, seed=seed) if sure.size else {}),
    }


def describe_sets(
    task: Task,
    conformal: ConformalScores,
    outputs: Array,
    y: Array,
    groups: Array,
    *,
    temperature: float,
    fitted_on: str,
    seed: int,
) -> dict[str, Any]:
    """Say how often the conformal sets of N held-out proteins held the truth, and how large they were."""
    misfit = task.nonconformity(outputs, y, temperature=temperature)
    levels = []
    for coverage in COVERAGES:
        level = conformal.level(coverage)
        known = math.isfinite(level)
        told: dict[str, Any] = {"coverage": coverage, "level": level if known else None}
        if known or task.labels:
            sets = task.sets(outputs, level=level, temperature=temperature)
            sizes = [len(s) if task.labels else float(s[1]) - float(s[0]) for s in sets]
            told |= score_sets(misfit <= level, sizes, groups, seed=seed)
            if not task.labels:
                told["size"]["ci95"] = None  # every range is as wide, so a draw says nothing
        levels.append(told)
    return {
        "proteins": conformal.count,
        "fitted_on": fitted_on,
        "size_is": "labels in a set" if task.labels else "width of the range, in the labels' unit",
        "levels": levels,
    }
