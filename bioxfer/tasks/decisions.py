"""What every task says: a label and how sure it is."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST", "UNKNOWN", "Decision", "FloatArray"]

LEAST = 1e-30  # probability that a mean cannot fall below, so that its log stays a number
UNKNOWN = "unknown"  # label of a protein on which a head that may abstain is not sure enough

FloatArray: TypeAlias = npt.NDArray[np.float64]


class Decision(NamedTuple):
    """One prediction.

    Attributes
    ----------
    label : str
        The class, or the number written out; ``unknown`` where the head abstains; empty where there was
        nothing to predict from.
    score : float
        Calibrated probability of the class; NaN for a number.
    """

    label: str
    score: float
