"""How little each label fits a protein, and the sets of labels that fit it well enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.tasks.decisions import FloatArray

__all__ = ["fitting_labels", "greatest_misfit", "misfits"]


def misfits(probabilities: npt.NDArray[Any]) -> FloatArray:
    """Say how little each label fits: 1 less its probability, and 0 for the likeliest.

    So the likeliest is in every set, none is empty, and where the head is right often enough without more, a
    set is its one answer.

    Parameters
    ----------
    probabilities : ndarray (N, C)
        Of each label.

    Returns
    -------
    ndarray (N, C)
        0 to 1; NaN in rows of NaN.
    """
    found = np.asarray(1.0 - probabilities, dtype=np.float64)
    found[np.arange(len(found)), np.argmin(found, axis=1)] *= 0.0  # NaN stays
    return found


def greatest_misfit(probabilities: npt.NDArray[Any], members: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the greatest of `misfits` ``(N,)`` among the labels that each protein bears ``(N, C)``."""
    return np.asarray(np.where(members, misfits(probabilities), 0.0).max(axis=1, initial=0.0))


def fitting_labels(
    probabilities: npt.NDArray[Any], classes: Sequence[str], *, level: float
) -> list[list[str]]:
    """Name the labels of each row whose misfit is at most the level, likeliest first; none of rows of NaN."""
    fit = misfits(probabilities)
    order = np.argsort(fit, axis=1, kind="stable")
    return [
        [classes[c] for c in places if row[c] <= level]
        for places, row in zip(order.tolist(), fit, strict=True)
    ]
