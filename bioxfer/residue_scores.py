"""How good classes or numbers of residues are: metrics, intervals over homology clusters, and baselines.

Residues of one protein are no independent witnesses, nor are relatives, so whole clusters are drawn. All that
a draw needs is counted once for each cluster; a thousand draws are then one product of matrices. For the
ranks of numbers these are counts in steps of equally many residues; the value itself has exact ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.breakdown import sample_pairs
from bioxfer.residue_tasks import ResidueClasses, ResidueTask, ResidueValues, is_resolved

__all__ = [
    "WINDOW",
    "ResidueClassScores",
    "ResidueScores",
    "ResidueValueScores",
    "fit_window_values",
    "fit_windows",
    "run_windows",
    "score_residue_gain",
    "window_codes",
]

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

WINDOW = 15  # residues that the window baseline sees
_ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
_BEYOND = len(_ALPHABET)  # code of what lies beyond the ends
_RANK_STEPS = 256  # of the expected value, whose ranks Spearman's coefficient compares
_VALUE_STEPS = 64  # of both numbers; ranks inside a step vary by 1/4096 of all ranks' variance
_LEAST_RANKED = 3  # residues of a protein whose ranks can be compared
_PENALTY = 10.0  # of the window baseline; so many residues halve a weight's way to 0
_CHUNK = 20_000  # windows that are written out together
_DRAWS = 1000


class ResidueScores(ABC):
    """What was said of residues, by homology cluster.

    Attributes
    ----------
    task : ResidueClasses or ResidueValues
        What was predicted.
    clusters : int
        How many.
    """

    task: ResidueTask
    clusters: int

    @abstractmethod
    def metrics(self, times: Floats) -> dict[str, Floats]:
        """Compute each metric for each of M draws ``(M, G)`` of the clusters; M values each."""

    def whole(self) -> dict[str, float]:
        """Compute each metric over all clusters."""
        return {name: float(value[0]) for name, value in self.metrics(np.ones((1, self.clusters))).items()}

    def draw(self, *, seed: int) -> Floats:
        """Return how often each cluster comes up in each of 1,000 draws, ``(1000, G)``."""
        rng = np.random.default_rng(seed)
        return rng.multinomial(self.clusters, np.full(self.clusters, 1 / self.clusters), size=_DRAWS).astype(
            np.float64
        )

    @abstractmethod
    def answers(self) -> dict[str, Any]:
        """Put what was said beside the truth, for a picture: see `bioxfer.honesty.describe_answers`."""

    def score(self, *, seed: int) -> dict[str, dict[str, Any]]:
        """Return ``{metric: {"value": float, "ci95": [low, high]}}``; ``ci95`` is None with one cluster."""
        drawn = self.metrics(self.draw(seed=seed)) if self.clusters > 1 else {}
        return {
            name: {"value": value, "ci95": _ends(drawn.get(name))} for name, value in self.whole().items()
        }


class ResidueClassScores(ResidueScores):
    """Counts of the classes that residues have and were said to have, by homology cluster.

    Parameters
    ----------
    task : ResidueClasses
        Its C classes.
    targets : ndarray (T,)
        Class numbers of the residues of N proteins, one protein after the other; -1 counts nowhere.
    predicted : ndarray (T,)
        Predicted class numbers.
    lengths : ndarray (N,)
        Residues of each protein.
    groups : ndarray (N,)
        Homology cluster of each.
    expected : ndarray (T,), optional
        Expected value of classes that are digits; asks for Spearman's coefficient.
    """

    def __init__(
        self,
        task: ResidueClasses,
        targets: npt.NDArray[Any],
        predicted: npt.NDArray[Any],
        lengths: npt.NDArray[Any],
        groups: npt.NDArray[Any],
        *,
        expected: npt.NDArray[Any] | None = None,
    ) -> None:
        classes = task.n_outputs
        self.task = task
        owner = np.repeat(np.arange(len(lengths)), lengths)
        seen = targets >= 0
        owner, true = owner[seen], targets[seen].astype(np.int64)
        said = predicted[seen].astype(np.int64)
        names, group = np.unique(groups, return_inverse=True)
        self.clusters = len(names)
        cluster = group[owner]
        self.confusion = _count(cluster, true * classes + said, len(names), classes**2)
        counted = np.bincount(owner, minlength=len(lengths))
        right = np.bincount(owner, weights=true == said, minlength=len(lengths))
        told = counted > 0
        # column 0: sum of the proteins' accuracies, column 1: proteins with a resolved residue
        self.by_protein = np.stack(
            [
                np.bincount(group[told], weights=right[told] / counted[told], minlength=len(names)),
                np.bincount(group[told], minlength=len(names)),
            ],
            axis=1,
        )
        self.ranked: Floats | None = None
        if expected is not None:
            values = expected[seen]
            edges = np.unique(np.quantile(values, np.linspace(0, 1, _RANK_STEPS + 1)[1:-1]))
            step = np.searchsorted(edges, values, side="right")
            self.steps = len(edges) + 1
            self.ranked = _count(cluster, true * self.steps + step, len(names), classes * self.steps)

    def metrics(self, times: Floats) -> dict[str, Floats]:
        """Compute each metric for each of M draws ``(M, G)`` of the clusters; M values each.

        ``accuracy`` (with three states of secondary structure, Q3), ``macro_f1`` (mean F1 of the classes
        present or predicted), ``protein_accuracy`` (mean of the proteins' accuracies), and ``spearman``
        between expected value and class where an expected value was given.
        """
        classes = self.task.n_outputs
        counts = (times @ self.confusion).reshape(-1, classes, classes)
        right = np.diagonal(counts, axis1=1, axis2=2)
        both = counts.sum(axis=2) + counts.sum(axis=1)
        named = both > 0
        f1 = np.where(named, 2 * right / np.where(named, both, 1), 0.0)
        sums = times @ self.by_protein
        found = {
            "accuracy": right.sum(axis=1) / np.maximum(counts.sum(axis=(1, 2)), 1),
            "macro_f1": f1.sum(axis=1) / np.maximum(named.sum(axis=1), 1),
            "protein_accuracy": sums[:, 0] / np.maximum(sums[:, 1], 1),
        }
        if self.ranked is not None:
            table = (times @ self.ranked).reshape(len(times), classes, self.steps)
            found["spearman"] = np.array([_spearman(each) for each in table])
        return found

    def answers(self) -> dict[str, Any]:
        """Count which class was taken for which, in residues."""
        table = self.confusion.sum(axis=0).reshape(self.task.n_outputs, -1).astype(np.int64)
        cells = [[*place, int(table[tuple(place)])] for place in np.argwhere(table).tolist()]
        return {"confusion": {"labels": list(self.task.labels), "cells": cells}}

    def by_class(self, *, seed: int) -> list[dict[str, Any]]:
        """Score each class by itself.

        Returns
        -------
        list of dict
            C times ``valid`` (residues of the class), ``precision``, ``recall`` and ``f1``, each None where
            it is a share of nothing, and ``f1_ci95`` over the draws in which the class is there or named;
            None with a single cluster.
        """
        classes = self.task.n_outputs
        times = np.concatenate([np.ones((1, self.clusters)), self.draw(seed=seed)])
        counts = (times @ self.confusion).reshape(-1, classes, classes)
        right = np.diagonal(counts, axis1=1, axis2=2)
        there, said = counts.sum(axis=2), counts.sum(axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, and so told
            drawn = 2 * right / (there + said)
            shares = {"precision": right[0] / said[0], "recall": right[0] / there[0], "f1": drawn[0]}
        found: list[dict[str, Any]] = []
        for place in range(classes):
            own = drawn[1:, place][np.isfinite(drawn[1:, place])]
            known = self.clusters > 1 and len(own) > 0
            found.append(
                {
                    "valid": int(there[0, place]),
                    **{
                        name: float(values[place]) if np.isfinite(values[place]) else None
                        for name, values in shares.items()
                    },
                    "f1_ci95": _ends(own if known else None),
                }
            )
        return found


class ResidueValueScores(ResidueScores):
    """Errors and ranks of the numbers that residues have and were said to have, by homology cluster.

    Parameters
    ----------
    task : ResidueValues
        What was predicted.
    targets : ndarray (T,)
        Numbers of the residues of N proteins, one protein after the other; NaN counts nowhere.
    predicted : ndarray (T,)
        Predicted numbers, in the same unit.
    lengths : ndarray (N,)
        Residues of each protein.
    groups : ndarray (N,)
        Homology cluster of each.
    """

    def __init__(
        self,
        task: ResidueValues,
        targets: npt.NDArray[Any],
        predicted: npt.NDArray[Any],
        lengths: npt.NDArray[Any],
        groups: npt.NDArray[Any],
    ) -> None:
        self.task = task
        seen = is_resolved(targets)
        owner = np.repeat(np.arange(len(lengths)), lengths)[seen]
        true, said = targets[seen].astype(np.float64), predicted[seen].astype(np.float64)
        names, group = np.unique(groups, return_inverse=True)
        self.clusters = len(names)
        cluster = group[owner]
        squares = np.bincount(cluster, weights=np.square(true - said), minlength=len(names))
        # column 0: sum of squared errors, column 1: resolved residues
        self.errors = np.stack([squares, np.bincount(cluster, minlength=len(names))], axis=1)
        coefficients = _rank_correlation(true, said, owner, len(lengths))
        counted = np.isfinite(coefficients)
        # column 0: sum of the proteins' coefficients, column 1: proteins that have one
        self.by_protein = np.stack(
            [
                np.bincount(group[counted], weights=coefficients[counted], minlength=len(names)),
                np.bincount(group[counted], minlength=len(names)),
            ],
            axis=1,
        )
        self.pairs = sample_pairs(true, said)
        exact = _rank_correlation(true, said, np.zeros(len(true), dtype=np.int64), 1)[0]
        self.spearman = float(exact) if np.isfinite(exact) else 0.0
        (a, self.rows), (b, self.columns) = _steps(true), _steps(said)
        cells = self.rows * self.columns
        self.ranked = _count(cluster, a * self.columns + b, len(names), cells).astype(np.float32)

    def metrics(self, times: Floats) -> dict[str, Floats]:
        """Compute each metric for each of M draws ``(M, G)`` of the clusters; M values each.

        ``spearman`` over all residues, by steps of their ranks; ``protein_spearman``, the mean of the
        proteins' own coefficients; and ``rmse`` in the labels' unit.
        """
        table = (times.astype(np.float32) @ self.ranked).reshape(len(times), self.rows, self.columns)
        errors, sums = times @ self.errors, times @ self.by_protein
        return {
            "spearman": np.array([_spearman(each.astype(np.float64)) for each in table]),
            "protein_spearman": sums[:, 0] / np.maximum(sums[:, 1], 1),
            "rmse": np.sqrt(errors[:, 0] / np.maximum(errors[:, 1], 1)),
        }

    def answers(self) -> dict[str, Any]:
        """Give some residues' numbers beside what was said of them."""
        return {"predicted": self.pairs}

    def whole(self) -> dict[str, float]:
        """Compute each metric over all clusters, of exact ranks."""
        return super().whole() | {"spearman": self.spearman}


def score_residue_gain(scores: ResidueScores, baseline: ResidueScores, *, seed: int) -> dict[str, Any]:
    """Compare the task's main metric with a baseline's on the same drawn clusters.

    Returns
    -------
    dict
        ``metric``, ``value`` (predictions' minus baseline's) and ``ci95``.
    """
    name = scores.task.main_metric
    gain = scores.whole()[name] - baseline.whole()[name]
    drawn = None
    if scores.clusters > 1:
        times = scores.draw(seed=seed)
        drawn = scores.metrics(times)[name] - baseline.metrics(times)[name]
    return {"metric": name, "value": gain, "ci95": _ends(drawn)}


def window_codes(sequences: Sequence[str]) -> npt.NDArray[np.int16]:
    """Return ``(T, 15)``: for each residue, the columns of a one-hot window that are 1.

    Parameters
    ----------
    sequences : sequence of str
        Proteins of T residues in all; what is none of the 20 amino acids counts as X.
    """
    table = np.full(256, _ALPHABET.index("X"), dtype=np.int16)
    for code, residue in enumerate(_ALPHABET):
        table[ord(residue)] = code
    half = WINDOW // 2
    rows = []
    for sequence in sequences:
        codes = table[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
        padded = np.pad(codes, half, constant_values=_BEYOND)
        rows.append(np.lib.stride_tricks.sliding_window_view(padded, WINDOW))
    start = np.arange(WINDOW, dtype=np.int16) * (_BEYOND + 1)
    return np.concatenate([np.empty((0, WINDOW), np.int16), *rows]) + start


def fit_windows(
    codes: npt.NDArray[np.int16], targets: npt.NDArray[Any], n_classes: int, *, seed: int
) -> npt.NDArray[np.float32]:
    """Fit a logistic model of one-hot windows.

    Parameters
    ----------
    codes : ndarray (T, 15)
        What `window_codes` returns.
    targets : ndarray (T,)
        Class numbers, all resolved.
    n_classes : int
        C.
    seed : int
        Of the order of residues.

    Returns
    -------
    ndarray (330, C)
        Weights; as every place of a window holds exactly one 1, there is no need of a bias.
    """
    import torch

    chance = torch.Generator().manual_seed(seed)
    weight = torch.zeros(WINDOW * (_BEYOND + 1), n_classes, requires_grad=True)
    inputs, wanted = torch.from_numpy(codes), torch.from_numpy(targets.astype(np.int64))
    batch = 2048
    steps = -(-len(inputs) // batch)
    epochs = min(max(2, -(-300 // steps)), 30)
    solver = torch.optim.AdamW([weight], lr=0.02, weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(solver, epochs * steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs), generator=chance), batch):
            outputs = torch.nn.functional.embedding_bag(inputs[rows].long(), weight, mode="sum")
            loss = torch.nn.functional.cross_entropy(outputs, wanted[rows])
            solver.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            solver.step()
            rate.step()
    return np.asarray(weight.detach().numpy(), dtype=np.float32)


def fit_window_values(codes: npt.NDArray[np.int16], targets: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Fit a ridge regression of one-hot windows.

    Parameters
    ----------
    codes : ndarray (T, 15)
        What `window_codes` returns.
    targets : ndarray (T,)
        Numbers, all resolved.

    Returns
    -------
    ndarray (330, 1)
        Weights; the mean is shared out among the places, each of which holds exactly one 1.
    """
    size = WINDOW * (_BEYOND + 1)
    gram, moment = np.zeros((size, size)), np.zeros(size)
    mean = float(targets.mean())
    for start in range(0, len(codes), _CHUNK):
        some = codes[start : start + _CHUNK]
        ones = np.zeros((len(some), size), dtype=np.float32)  # counts to 20,000 are exact
        np.put_along_axis(ones, some.astype(np.int64), 1, axis=1)
        gram += ones.T @ ones
        moment += (targets[start : start + _CHUNK] - mean) @ ones
    weight = np.linalg.solve(gram + _PENALTY * np.eye(size), moment)
    return np.asarray(weight[:, None] + mean / WINDOW, dtype=np.float32)


def run_windows(weights: npt.NDArray[np.float32], codes: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Compute outputs ``(T, C)`` of windows ``(T, 15)`` with the weights of `fit_windows`."""
    outputs = np.zeros((len(codes), weights.shape[1]), dtype=np.float32)
    for column in codes.T:
        outputs += weights[column]
    return outputs


def _count(cluster: Ints, cell: Ints, clusters: int, cells: int) -> Floats:
    flat = np.bincount(cluster * cells + cell, minlength=clusters * cells)
    return flat.reshape(clusters, cells).astype(np.float64)


def _rank_correlation(true: Floats, said: Floats, owner: Ints, proteins: int) -> Floats:
    """Return Spearman's coefficient of each protein's residues ``(N,)``.

    It is NaN where fewer than three residues are resolved or all have one number, and 0 where the prediction
    is the same for all.
    """
    counted = np.bincount(owner, minlength=proteins)
    half = (counted[owner] + 1) / 2
    a, b = _ranks(true, owner) - half, _ranks(said, owner) - half
    both, own, other = (
        np.bincount(owner, weights=each, minlength=proteins) for each in (a * b, a * a, b * b)
    )
    spread = np.sqrt(own * other)
    found = np.where(spread > 0, both / np.where(spread > 0, spread, 1), 0.0)
    return np.where((counted >= _LEAST_RANKED) & (own > 0), found, np.nan)


def _ranks(values: Floats, owner: Ints) -> Floats:
    """Return ranks from 1 within each owner, equals having their middle rank."""
    order = np.lexsort((values, owner))
    kept, whose = values[order], owner[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (kept[1:] != kept[:-1]) | (whose[1:] != whose[:-1])
    tie = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    sizes = np.diff(np.append(first, len(order)))
    start = np.searchsorted(whose, whose)  # of the owner's values, as owners are in order
    ranks = np.empty(len(order))
    ranks[order] = first[tie] + (sizes[tie] + 1) / 2 - start
    return ranks


def _steps(values: Floats) -> tuple[Ints, int]:
    """Return the step that each value is in, of 64 that hold equally many, and how many steps there are."""
    edges = np.unique(values)[1:]
    if len(edges) >= _VALUE_STEPS:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, _VALUE_STEPS + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right"), len(edges) + 1


def _spearman(table: Floats) -> float:
    """Return Spearman's coefficient of a table of counts, equals having their middle rank."""
    total = table.sum()
    a, b = table.sum(axis=1), table.sum(axis=0)
    x, y = np.cumsum(a) - a / 2 - total / 2, np.cumsum(b) - b / 2 - total / 2
    spread = np.sqrt((a * x**2).sum() * (b * y**2).sum())
    return float(x @ table @ y / spread) if spread > 0 else 0.0


def _ends(values: Floats | None) -> list[float] | None:
    if values is None:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return [float(low), float(high)]
