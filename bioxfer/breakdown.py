"""Breakdown: where a head is right and where it is not, class by class, part by part, at each confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.evaluate import Metrics, draw_sums, interval, score_predictions

__all__ = ["count_confusions", "reliability", "sample_pairs", "score_classes", "score_parts", "score_sets"]

_MOST_PAIRS = 500  # of numbers in a card: a picture of more says no more
_HONEST_DRAWS = 200  # of the error that chance alone makes: its mean to within a tenth of its spread


def score_classes(
    members: npt.ArrayLike, said: npt.ArrayLike, groups: npt.ArrayLike, *, n: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Score each class by itself.

    Parameters
    ----------
    members, said : array-like (N, C) of bool
        Which protein is of which class, and which the head says so of.
    groups, n, seed
        As in `cluster_bootstrap`.

    Returns
    -------
    list of dict
        C times ``precision``, ``recall`` and ``f1``, each None where it is a share of nothing, and
        ``f1_ci95`` over the draws in which the class is there or named; None with a single cluster.
    """
    true, named = np.asarray(members, dtype=np.float64), np.asarray(said, dtype=np.float64)
    counts = np.concatenate([true * named, true, named], axis=1)
    hits, there, told = np.split(counts.sum(axis=0), 3)
    drawn_hits, drawn_there, drawn_told = np.split(draw_sums(counts, groups, n, seed), 3, axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, and so told
        drawn = 2 * drawn_hits / (drawn_there + drawn_told)
        shares = {"precision": hits / told, "recall": hits / there, "f1": 2 * hits / (there + told)}
    return [
        {
            **{name: _known(values[place]) for name, values in shares.items()},
            "f1_ci95": _ends(drawn[:, place]),
        }
        for place in range(true.shape[1])
    ]


def score_parts(
    metrics: Metrics,
    name: str,
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    groups: npt.ArrayLike,
    parts: Sequence[npt.NDArray[np.bool_]],
    *,
    n: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Score predictions on each of several parts by one metric.

    Parameters
    ----------
    metrics, name, y, p, groups, n, seed
        As in `score_gain`.
    parts : sequence of ndarray (N,) of bool
        The rows of each.

    Returns
    -------
    list of dict
        For each part ``value`` and ``ci95`` as from `score_predictions`; None with fewer than two rows.
    """
    true, said, group = np.asarray(y), np.asarray(p), np.asarray(groups)
    found: list[dict[str, Any]] = []
    for part in parts:
        if part.sum() < 2:
            found.append({"value": None, "ci95": None})
            continue
        found.append(score_predictions(metrics, true[part], said[part], group[part], n=n, seed=seed)[name])
    return found


def score_sets(
    covered: npt.ArrayLike, sizes: npt.ArrayLike, groups: npt.ArrayLike, *, n: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Score conformal sets.

    Parameters
    ----------
    covered : array-like (N,) of bool
        Whether each set holds the truth.
    sizes : array-like (N,)
        How many labels it has, or how wide a range of numbers is.
    groups, n, seed
        As in `cluster_bootstrap`.

    Returns
    -------
    dict
        ``covered`` and ``size``, means with ``value`` and ``ci95`` as from `score_predictions`.
    """
    table = np.stack([np.asarray(covered, dtype=np.float64), np.asarray(sizes, dtype=np.float64)], axis=1)
    sums = draw_sums(np.column_stack([table, np.ones(len(table))]), groups, n, seed)
    drawn = sums[:, :2] / sums[:, 2:]
    return {
        name: {"value": float(value), "ci95": interval(column)}
        for name, value, column in zip(("covered", "size"), table.mean(axis=0), drawn.T, strict=True)
    }


def count_confusions(
    true: npt.NDArray[Any], said: npt.NDArray[Any], labels: Sequence[str]
) -> dict[str, list[Any]]:
    """Count which class was taken for which.

    Parameters
    ----------
    true, said : ndarray (N,)
        Class numbers, of the truth and of the head.
    labels : sequence of str
        The C classes.

    Returns
    -------
    dict
        ``labels``, and ``cells``: place of the true class, place of the class that was said, and how often,
        for each pair that occurs.
    """
    pairs, counts = np.unique(np.stack([true, said]).astype(np.int64), axis=1, return_counts=True)
    return {"labels": list(labels), "cells": np.vstack([pairs, counts]).T.tolist()}


def sample_pairs(true: npt.NDArray[Any], said: npt.NDArray[Any], *, seed: int = 0) -> dict[str, Any]:
    """Draw at most 500 true numbers and what was said of each.

    Returns
    -------
    dict
        ``pairs``, and of how many (``of``) they were drawn.
    """
    few = np.arange(len(true))
    if len(few) > _MOST_PAIRS:
        few = np.sort(np.random.default_rng(seed).choice(len(true), _MOST_PAIRS, replace=False))
    pairs = [[float(f"{a:.6g}"), float(f"{b:.6g}")] for a, b in zip(true[few], said[few], strict=True)]
    return {"pairs": pairs, "of": len(true)}


def reliability(
    confidence: npt.ArrayLike,
    right: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    bins: int = 15,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Hold confidence against how often it was right, in the bins of `expected_calibration_error`.

    Parameters
    ----------
    confidence : array-like (N, K)
        Probability given to each of K answers on a protein.
    right : array-like (N, K) of bool
        Whether it holds.
    groups, n, seed
        As in `cluster_bootstrap`.
    bins : int
        Bins of equal width over confidence 0 to 1.

    Returns
    -------
    dict
        ``reliability``: for each bin that is not empty ``low``, ``high``, ``count``, mean ``confidence``,
        ``accuracy`` and its ``ci95``. ``ece_if_honest``: the mean calibration error that so many answers of
        these confidences would show by chance if each were right as often as it says.
    """
    sure, true = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.minimum((sure * bins).astype(np.int64), bins - 1)
    count = np.bincount(place.ravel(), minlength=bins)

    cell = np.arange(len(sure))[:, None] * bins + place
    told, hits, sums = (
        np.bincount(cell.ravel(), weights=values.ravel(), minlength=len(sure) * bins).reshape(-1, bins)
        for values in (np.ones_like(sure), true, sure)
    )
    drawn_told, drawn_hits = np.split(draw_sums(np.hstack([told, hits]), groups, n, seed), 2, axis=1)
    with np.errstate(invalid="ignore"):  # a draw may leave a bin empty
        drawn = drawn_hits / drawn_told
    table = [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "count": int(count[b]),
            "confidence": float(sums[:, b].sum() / count[b]),
            "accuracy": float(hits[:, b].sum() / count[b]),
            "ci95": _ends(drawn[:, b]),
        }
        for b in np.flatnonzero(count).tolist()
    ]
    rng = np.random.default_rng(seed)
    flat, where = sure.ravel(), place.ravel()
    chance = [
        np.abs(np.bincount(where, weights=(rng.random(len(flat)) < flat) - flat, minlength=bins)).sum()
        for _ in range(_HONEST_DRAWS)
    ]
    return {"reliability": table, "ece_if_honest": float(np.mean(chance) / len(flat))}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _ends(drawn: npt.NDArray[Any]) -> list[float] | None:
    """Return the interval of the draws that say something."""
    some = drawn[np.isfinite(drawn)]
    return interval(some) if len(some) else None
