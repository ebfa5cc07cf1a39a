"""Metrics of numbers, quick to draw again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioxfer.evaluate import regression_metrics
from bioxfer.tasks.decisions import FloatArray

__all__ = ["RegressionMetrics"]


@dataclass(frozen=True, slots=True)
class RegressionMetrics:
    """`regression_metrics` of numbers in another unit.

    Parameters
    ----------
    scale : float
        What they are multiplied by.
    """

    scale: float = 1.0

    def __call__(self, y: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float]:
        """Score predicted numbers ``(N,)``."""
        return regression_metrics(np.asarray(y) * self.scale, np.asarray(p) * self.scale)

    def weigh(
        self, y: npt.ArrayLike, p: npt.ArrayLike
    ) -> Callable[[npt.NDArray[np.int64]], dict[str, float]]:
        """Return what scores N numbers by how often each is there ``(N,)``, as if its row were repeated."""
        # scaled before ranks are taken, as in a call: rounding may make a tie
        true, said = np.asarray(y) * self.scale, np.asarray(p) * self.scale
        squares = np.square(true - said)
        places = [np.unique(side, return_inverse=True)[1] for side in (true, said)]

        def score(times: npt.NDArray[np.int64]) -> dict[str, float]:
            a, b = (_weighed_ranks(place, times) for place in places)
            spread = np.sqrt((times * a * a).sum() * (times * b * b).sum())
            return {
                "spearman": float((times * a * b).sum() / spread) if spread > 0 else 0.0,
                "rmse": float(np.sqrt((times * squares).sum() / times.sum())),
            }

        return score


def _weighed_ranks(place: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> FloatArray:
    """Return each row's mean rank less the mean of all ``(N,)``, where rows count several times.

    ``place`` is the row's place among the distinct values.
    """
    count = np.bincount(place, weights=times)
    middle = np.cumsum(count) - (count + 1) / 2 + 1
    return np.asarray(middle[place] - (times.sum() + 1) / 2)
