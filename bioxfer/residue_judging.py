"""Judge heads for residues: what a card says of their metrics, baselines, calibration and domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.breakdown import reliability
from bioxfer.evaluate import expected_calibration_error, log_softmax
from bioxfer.honesty import find_warnings, pick_worst
from bioxfer.residue_fitting import FAR_SHARE, ResidueSet
from bioxfer.residue_scores import (
    ResidueClassScores,
    ResidueScores,
    ResidueValueScores,
    fit_window_values,
    fit_windows,
    run_windows,
    score_residue_gain,
    window_codes,
)
from bioxfer.residue_tasks import ResidueClasses, ResidueTask, ResidueValues, is_resolved

__all__ = [
    "describe_calibration",
    "describe_domain",
    "describe_labels",
    "describe_residue_misses",
    "judge",
    "score_baselines",
    "score_residue_misses",
]

Places = npt.NDArray[np.intp]
_WRITTEN_OUT = 3  # of the worst proteins, residue by residue
_MOST_RESIDUES = 2000  # of a protein that is written out
_WINDOW_RESIDUES = 500_000  # that the window baseline is fitted on at most; its 330 weights need no more


def judge(
    task: ResidueTask,
    data: ResidueSet,
    places: Places,
    groups: npt.NDArray[Any],
    outputs: npt.NDArray[Any],
    *,
    predicted: npt.NDArray[Any] | None = None,
) -> ResidueScores:
    """Count what was said of the residues of M proteins, T residues in all.

    Parameters
    ----------
    task : ResidueClasses or ResidueValues
        What was predicted.
    data : ResidueSet
        All proteins.
    places, groups : ndarray (M,)
        Which of them, and the homology cluster of each.
    outputs : ndarray (T, C)
        Of a head.
    predicted : ndarray (T,), optional
        Class numbers, or numbers in the labels' unit, in place of outputs.
    """
    targets, lengths = data.targets_of(places), data.lengths[places]
    if isinstance(task, ResidueValues):
        said = task.values(outputs) if predicted is None else predicted
        return ResidueValueScores(task, targets, said, lengths, groups)
    digits, expected = task.digits, None
    if predicted is None:
        predicted = np.argmax(outputs, axis=1)
        if digits is not None:
            expected = np.exp(log_softmax(outputs)) @ digits
    elif digits is not None:
        expected = digits[predicted]
    return ResidueClassScores(task, targets, predicted, lengths, groups, expected=expected)


def score_baselines(
    task: ResidueTask,
    data: ResidueSet,
    train: Places,
    held: Places,
    groups: npt.NDArray[Any],
    judged: ResidueScores,
    *,
    seed: int,
) -> dict[str, Any]:
    """Score what needs no backbone: one answer for all, the residue's own answer, a window of residues.

    Parameters
    ----------
    task : ResidueClasses or ResidueValues
        What is predicted. The one answer is called ``majority`` or ``mean``; of classes the window is read by
        a logistic model, of numbers by a ridge regression.
    data : ResidueSet
        All proteins.
    train, held : ndarray
        Places of those to fit on, and of those to score.
    groups : ndarray (M,)
        Homology clusters of the latter.
    judged : ResidueScores
        The head's, to compare with.
    seed : int
        Of the window baseline and of the intervals.
    """
    few = data.draw(train, _WINDOW_RESIDUES, seed=seed)
    codes, wanted = window_codes(data.sequences_of(few)), data.targets_of(few)
    known = is_resolved(wanted)
    codes, wanted = codes[known], wanted[known]
    asked = window_codes(data.sequences_of(held))
    middle = codes.shape[1] // 2
    own, own_asked = codes[:, middle].astype(np.int64), asked[:, middle].astype(np.int64)
    said: dict[str, npt.NDArray[Any]]
    if isinstance(task, ResidueValues):
        size, mean = max(int(codes.max()), int(asked.max())) + 1, float(wanted.mean())
        count, total = np.bincount(own, minlength=size), np.bincount(own, weights=wanted, minlength=size)
        by_residue = np.where(count > 0, total / np.maximum(count, 1), mean)
        said = {
            "mean": np.full(len(asked), mean),
            "residue": by_residue[own_asked],
            "window15": run_windows(fit_window_values(codes, wanted), asked)[:, 0].astype(np.float64),
        }
    else:
        counts = np.zeros((max(int(codes.max()), int(asked.max())) + 1, task.n_outputs), dtype=np.int64)
        np.add.at(counts, (own, wanted.astype(np.int64)), 1)
        common = int(np.bincount(wanted).argmax())
        counts[:, common] += counts.sum(axis=1) == 0  # a residue that training lacks
        said = {"majority": np.full(len(asked), common), "residue": counts.argmax(axis=1)[own_asked]}
    nothing = np.empty((0, task.n_outputs))
    scores = {name: judge(task, data, held, groups, nothing, predicted=each) for name, each in said.items()}
    if isinstance(task, ResidueClasses):
        window = run_windows(fit_windows(codes, wanted, task.n_outputs, seed=seed), asked)
        scores["window15"] = judge(task, data, held, groups, window)
    return {
        name: {
            "metrics": each.score(seed=seed),
            "head_minus_baseline": score_residue_gain(judged, each, seed=seed),
        }
        for name, each in scores.items()
    }


def describe_labels(
    task: ResidueTask,
    judged: ResidueScores,
    data: ResidueSet,
    sides: Mapping[str, Places],
    groups: npt.NDArray[Any],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the card's ``labels``, ``warnings``, answers and, of classes, ``classes`` with their scores.

    Parameters
    ----------
    task : ResidueClasses or ResidueValues
        What is predicted.
    judged : ResidueScores
        Of the side ``valid``.
    data : ResidueSet
        All N proteins.
    sides : mapping of str to ndarray
        Places on each side, ``train`` and ``valid`` among them.
    groups : ndarray (N,)
        Homology clusters.
    seed : int
        Of the intervals.
    """
    told: dict[str, Any] = {
        "labels": task.describe({side: data.targets_of(places) for side, places in sides.items()}),
        **judged.answers(),
    }
    few: list[dict[str, Any]] = []
    if isinstance(judged, ResidueClassScores):
        told["classes"] = []
        for number, scores in enumerate(judged.by_class(seed=seed)):
            # A residue is counted, but it is proteins and their clusters that are independent.
            proteins = {side: data.holding(places, number) for side, places in sides.items()}
            clusters = len(np.unique(groups[proteins["train"]]))
            label = task.labels[number]
            counted = {"label": label, "train_clusters": clusters}
            told["classes"].append({**counted, "train": told["labels"][label]["train"], **scores})
            few.append(counted | {side: len(places) for side, places in proteins.items()})
    told["warnings"] = find_warnings(few, valid_clusters=judged.clusters)
    return told


def score_residue_misses(
    task: ResidueTask, data: ResidueSet, places: Places, outputs: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], str]:
    """Say how wrong the answers on each of M proteins are, 0 if none is wrong, and what that number is.

    Parameters
    ----------
    task, data, places, outputs
        As in `judge`.
    """
    targets, lengths = data.targets_of(places), data.lengths[places]
    known = is_resolved(targets)
    if isinstance(task, ResidueValues):
        missed, what = np.square(task.values(outputs) - targets), "error (rmse)"
    else:
        missed, what = (outputs.argmax(axis=1) != targets).astype(float), "residues that are wrong, share"
    owner = np.repeat(np.arange(len(places)), lengths)[known]
    totals, counts = (
        np.bincount(owner, weights=weights, minlength=len(places)) for weights in (missed[known], None)
    )
    means = totals / np.maximum(counts, 1)
    return (np.sqrt(means) if isinstance(task, ResidueValues) else means), what


def describe_residue_misses(
    task: ResidueTask, data: ResidueSet, places: Places, outputs: npt.NDArray[Any], *, temperature: float
) -> dict[str, Any]:
    """Name the proteins on which a head was most wrong, and write out what it said along the worst.

    Parameters
    ----------
    task, data, places, outputs
        As in `judge`.
    temperature : float
        Of the head.

    Returns
    -------
    dict
        As from `bioxfer.honesty.describe_misses`; only the first three rows have ``true`` and
        ``said``, if they have at most 2,000 residues.
    """
    misses, what = score_residue_misses(task, data, places, outputs)
    ends = np.cumsum(data.lengths[places])
    rows: list[dict[str, Any]] = []
    for number, worst in enumerate(pick_worst(misses)):
        place = int(places[worst])
        row = {"id": data.ids[place], "miss": round(float(misses[worst]), 6)}
        if number < _WRITTEN_OUT and data.lengths[place] <= _MOST_RESIDUES:
            part = outputs[ends[worst] - data.lengths[place] : ends[worst]]
            true = _write(task, data.targets_of(np.array([place])))
            said = task.answer(part, temperature=temperature)[0]
            row |= {"true": task.joint.join(true), "said": task.joint.join(said)}
        rows.append(row)
    return {"rows": rows, "is": what, "of": int((misses > 0).sum())}


def _write(task: ResidueTask, targets: npt.NDArray[Any]) -> list[str]:
    if isinstance(task, ResidueValues):
        return [
            f"{value:.4g}" if known else "?"
            for value, known in zip(targets, is_resolved(targets), strict=True)
        ]
    return [task.classes[number] if number >= 0 else "?" for number in targets.tolist()]


def describe_calibration(
    task: ResidueTask,
    temperature: float,
    data: ResidueSet,
    held: Places,
    groups: npt.NDArray[Any],
    outputs: npt.NDArray[Any],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the card's ``calibration``, and of numbers its ``uncertainty`` if they have a width.

    Parameters
    ----------
    task : ResidueClasses or ResidueValues
        What is predicted.
    temperature : float
        Of the head.
    data : ResidueSet
        All proteins.
    held, groups : ndarray (M,)
        Places of the held-out proteins, and their homology clusters.
    outputs : ndarray (T, C)
        For their residues.
    seed : int
        Of the intervals.
    """
    targets = data.targets_of(held)
    known = is_resolved(targets)
    told: dict[str, Any] = {"temperature": temperature, "fitted_on": "residues of the dev proteins"}
    if isinstance(task, ResidueValues):
        found: dict[str, Any] = {"calibration": told | {"ece_before": None, "ece_after": None}}
        if task.halfwidth is not None:
            errors = np.abs(task.values(outputs)[known] - targets[known])
            found["uncertainty"] = {
                "halfwidth90": task.halfwidth,
                "held_on_valid": float((errors <= task.halfwidth).mean()),
            }
        return found
    before, after = (
        task.probabilities(outputs[known], temperature=degrees) for degrees in (1.0, temperature)
    )
    right = after.argmax(axis=1) == targets[known]
    cluster = np.repeat(groups, data.lengths[held])[known]
    told |= {
        "ece_before": expected_calibration_error(before, targets[known]),
        "ece_after": expected_calibration_error(after, targets[known]),
        **reliability(after.max(axis=1)[:, None], right[:, None], cluster, seed=seed),
    }
    return {"calibration": told}


def describe_domain(
    task: ResidueTask,
    data: ResidueSet,
    held: Places,
    groups: npt.NDArray[Any],
    outputs: npt.NDArray[Any],
    *,
    similarity: npt.NDArray[Any],
    far_below: float,
) -> dict[str, Any]:
    """Say where a head was tested, and how it fares on the proteins it would call far.

    Parameters
    ----------
    task, data, held, groups, outputs
        As in `describe_calibration`.
    similarity : ndarray (M,)
        Of each held-out protein to its nearest training protein.
    far_below : float
        Where a protein is far.
    """
    owner = np.repeat(np.arange(len(held)), data.lengths[held])
    parts: dict[str, Any] = {
        "far_below": far_below,
        "meaning": f"{1 - FAR_SHARE:.0%} of the dev proteins were at least as similar to a training protein",
    }
    for part, chosen in (("in_domain", similarity >= far_below), ("far", similarity < far_below)):
        parts[part] = {"valid": int(chosen.sum())}
        if is_resolved(data.targets_of(held[chosen])).any():
            scores = judge(task, data, held[chosen], groups[chosen], outputs[chosen[owner]])
            parts[part][task.main_metric] = scores.whole()[task.main_metric]
    return parts
