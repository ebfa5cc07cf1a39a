"""Conformal sets: labels, or a range of numbers, that hold the truth as often as was asked for.

Every label has a score of how little it fits a protein (see ``nonconformity`` of `bioxfer.tasks`). A set is
all labels whose score is no higher than that of the ``ceil((N + 1) * coverage)``-th of N proteins that the
head was not fitted on, so that of new proteins like those at least this share gets a set that holds the truth
(split conformal prediction: Vovk et al., Algorithmic Learning in a Random World 2005; for classes the least
ambiguous sets of Sadinle, Lei and Wasserman, J Am Stat Assoc 2019; for numbers Lei et al., ibid. 2018). The
promise is one on average over proteins: not within each class, and not for proteins unlike the training data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import HeadFileError, UsageError

__all__ = ["COVERAGES", "MOST_SCORES", "ConformalScores", "check_coverage"]

COVERAGES = (0.8, 0.9, 0.95)
"""What a card tells of."""

MOST_SCORES = 1000
"""That a head keeps; of more proteins it keeps every so many-th, which costs a set a thousandth at most."""


@dataclass(frozen=True, slots=True, eq=False)
class ConformalScores:
    """How little the true labels fitted proteins that the head was not fitted on.

    Attributes
    ----------
    scores : ndarray (K,)
        Ascending, float32. Where K < ``count``, score j is the one of rank ``ceil((j + 1) * count / K)``.
    count : int
        Proteins that they were taken from.
    """

    scores: npt.NDArray[np.float32]
    count: int

    @classmethod
    def fit(cls, scores: npt.ArrayLike) -> ConformalScores:
        """Keep scores ``(N,)``, or as many of them as `MOST_SCORES`."""
        exact = np.sort(np.asarray(scores, dtype=np.float64))
        kept = exact[_ranks(len(exact), min(len(exact), MOST_SCORES)) - 1]
        short = kept.astype(np.float32)
        # rounded up, as a score rounded down would shut out the very protein that it is of
        up = np.nextafter(short, np.float32(np.inf))
        return cls(np.where(short < kept, up, short).astype(np.float32), len(exact))

    def level(self, coverage: float) -> float:
        """Return the score up to which a label belongs to a set; infinity where N is too small to tell.

        Raises
        ------
        UsageError
            The coverage is not between 0 and 1.
        """
        check_coverage(coverage)
        # 1e-9 keeps 0.9 * 10 from being more than 9
        rank = max(1, math.ceil((self.count + 1) * coverage - 1e-9))
        if rank > self.count:
            return math.inf
        place = int(np.searchsorted(_ranks(self.count, len(self.scores)), rank))
        return float(self.scores[place])

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return what `from_tensors` needs."""
        return {"scores": self.scores, "count": np.array(self.count, dtype=np.int64)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]]) -> ConformalScores:
        """Check tensors of a file and take them.

        Raises
        ------
        HeadFileError
            With what is wrong with them.
        """
        if set(tensors) != {"scores", "count"}:
            raise HeadFileError(f"conformal scores consist of scores and count, not {', '.join(tensors)}")
        scores, count = tensors["scores"], tensors["count"]
        if count.shape != () or count.dtype.kind != "i":
            raise HeadFileError(f"the conformal count has shape {count.shape} and type {count.dtype}")
        if scores.ndim != 1 or scores.dtype != np.float32 or not 0 < len(scores) <= int(count):
            raise HeadFileError(f"conformal scores of shape {scores.shape} are not of {int(count)} proteins")
        if not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
            raise HeadFileError("conformal scores do not ascend or are not finite")
        return cls(scores, int(count))


def check_coverage(coverage: float) -> None:
    """Refuse what is no share to be covered.

    Raises
    ------
    UsageError
        With the value.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"coverage {coverage} is not between 0 and 1; give a share such as 0.9")


def _ranks(count: int, kept: int) -> npt.NDArray[np.int64]:
    """Return the ranks ``(kept,)``, from 1, of the scores that are kept of ``count``; the last is one."""
    return -(-np.arange(1, kept + 1, dtype=np.int64) * count // kept)
