"""A number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError
from bioxfer.quoting import quote_label
from bioxfer.tasks.decisions import Decision, FloatArray
from bioxfer.tasks.number_metrics import RegressionMetrics

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Regression", "find_gaps", "is_number", "look_continuous"]

# What tables write where a number is missing, beside what Python reads as a number that is not finite.
_GAPS = frozenset(
    {
        "", "-", "--", ".", "?", "na", "n/a", "<na>", "#n/a", "#na", "n.a.", "nd", "n.d.", "nil", "none",
        "null", "missing", "#null!", "#num!", "#value!", "#div/0!", "#ref!", "#name?",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Regression:
    """A number; a head predicts it in units of the training labels' standard deviation from their mean.

    Parameters
    ----------
    mean, scale : float
        Mean and standard deviation of the training labels, in the labels' unit.
    halfwidth : float, optional
        Half the width of the 90% interval around a prediction, in the labels' unit; see `calibrate_width`.
    """

    mean: float
    scale: float
    halfwidth: float | None = None

    name = "regression"
    main_metric = "spearman"
    target_kind = "f"

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> Regression:
        """Take mean and standard deviation from the labels.

        Raises
        ------
        LabelError
            A label is not a finite number, or all are the same.
        """
        values = _numbers(labels)
        if len(values) < 2 or np.ptp(values) == 0:
            raise LabelError(f"a regression needs labels that differ, and all {len(values)} are the same")
        return cls(float(values.mean()), float(values.std()))

    @property
    def labels(self) -> tuple[str, ...]:
        """None: a number has no classes."""
        return ()

    @property
    def n_outputs(self) -> int:
        """Outputs of a head: 1."""
        return 1

    def encode(self, labels: Sequence[str]) -> FloatArray:
        """Turn labels into standardised numbers ``(N,)``.

        Raises
        ------
        LabelError
            A label is not a finite number.
        """
        return (_numbers(labels) - self.mean) / self.scale

    def restrict(self, labels: Sequence[str]) -> Regression:
        """Return the task for these training labels: with their mean and scale."""
        return self.from_labels(labels)

    def names(self, label: str) -> tuple[str, ...]:
        """Return the classes that a label names: none."""
        return ()

    def members(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return ``(N, 0)``: a number has no classes."""
        return np.empty((len(targets), 0), dtype=bool)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return half the mean squared error of ``outputs: (N, 1)`` and ``targets: (N,)``."""
        return 0.5 * (outputs[:, 0] - targets).square().mean()

    def out_of_sample_loss(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return half the mean squared error, in standard units, of rows not fitted on."""
        return float(0.5 * np.square(outputs[:, 0] - targets).mean())

    def calibrate(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return 1: a number has no temperature."""
        return 1.0

    def calibration_error(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> float | None:
        """Return None: a number has no confidence."""
        return None

    def predict(self, outputs: npt.NDArray[Any]) -> FloatArray:
        """Return the numbers ``(N,)`` in standard units."""
        return np.asarray(outputs[:, 0], dtype=np.float64)

    @property
    def metrics(self) -> RegressionMetrics:
        """Scores standardised numbers: ``spearman``, and ``rmse`` in the labels' unit."""
        return RegressionMetrics(self.scale)

    def constant(self, targets: npt.NDArray[Any]) -> float:
        """Return the best prediction that ignores the protein: the mean."""
        return float(targets.mean())

    def neighbour_outputs(
        self, targets: npt.NDArray[Any], weights: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Turn neighbours' targets ``(N, k)`` and weights ``(N, k)`` into their weighted mean ``(N, 1)``."""
        mean = (targets * weights).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(mean[:, None], dtype=np.float32)

    def average_outputs(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the mean ``(N, 1)`` of E members' outputs ``(E, N, 1)``."""
        return np.asarray(np.mean(outputs, axis=0), dtype=np.float32)

    def mix_outputs(
        self, network: npt.NDArray[Any], votes: npt.NDArray[Any], *, share: float, temperature: float
    ) -> npt.NDArray[np.float32]:
        """Return ``share`` of the network's numbers ``(N, 1)`` and the rest of the neighbours'."""
        return np.asarray(share * network + (1.0 - share) * votes, dtype=np.float32)

    def calibrate_width(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, share: float = 0.9
    ) -> Regression:
        """Return the task with a half-width that holds this share of rows not fitted on.

        The half-width is the split-conformal one (Lei et al., J Am Stat Assoc 2018): the residual of rank
        ``ceil((N + 1) * share)``. With too few rows for that rank there is none.

        Parameters
        ----------
        outputs : ndarray (N, 1)
            For rows that their head was not fitted on.
        targets : ndarray (N,)
            Their encoded labels.
        share : float
            To be held.
        """
        residuals = np.sort(np.abs(self.predict(outputs) - targets)) * self.scale
        rank = math.ceil((len(residuals) + 1) * share)
        known = rank <= len(residuals) and residuals[rank - 1] > 0
        return replace(self, halfwidth=float(residuals[rank - 1]) if known else None)

    def probabilities(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> FloatArray:
        """Return ``(N, 0)``: a number has no classes."""
        return np.empty((len(outputs), 0))

    def decode(
        self,
        outputs: npt.NDArray[Any],
        *,
        temperature: float = 1.0,
        refused: npt.NDArray[np.bool_] | None = None,
    ) -> list[Decision]:
        """Return each row's number in the labels' unit, six significant digits; none is ever refused."""
        values = self.values(outputs).tolist()
        return [Decision(f"{v:.6g}" if math.isfinite(v) else "", math.nan) for v in values]

    def values(self, outputs: npt.NDArray[Any]) -> FloatArray:
        """Return the numbers ``(N,)`` in the labels' unit."""
        return np.asarray(self.predict(outputs) * self.scale + self.mean, dtype=np.float64)

    def said(self, predicted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return ``(N, 0)``: a number has no classes."""
        return self.members(predicted)

    def confidences(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return ``(N, 0)`` twice: a number has no confidence."""
        return np.empty((len(outputs), 0)), np.empty((len(outputs), 0), dtype=bool)

    def nonconformity(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> FloatArray:
        """Say how far off each number is ``(N,)``, in standard units."""
        return np.asarray(np.abs(self.predict(outputs) - targets), dtype=np.float64)

    def sets(self, outputs: npt.NDArray[Any], *, level: float, temperature: float = 1.0) -> list[list[str]]:
        """Write, in the labels' unit, the least and the largest number that is off by the level at most."""
        reach = level * self.scale
        # six digits, or as many as tell the ends of the range apart to a thousandth of its width
        largest = abs(self.mean) + 10 * self.scale
        # and no more than a float has
        digits = max(6, math.ceil(min(math.log10(largest / reach), 13)) + 4) if 0 < reach < math.inf else 6
        return [
            [f"{value - reach:.{digits}g}", f"{value + reach:.{digits}g}"] if math.isfinite(value) else []
            for value in self.values(outputs).tolist()
        ]

    def describe(self, parts: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Give count, mean, least and largest of the encoded targets of each part, in the labels' unit."""
        values = {name: targets * self.scale + self.mean for name, targets in parts.items()}
        return {
            name: {
                "count": len(numbers),
                "mean": float(numbers.mean()),
                "min": float(numbers.min()),
                "max": float(numbers.max()),
            }
            for name, numbers in values.items()
        }

    def label(self, target: float) -> str:
        """Write an encoded target in the labels' unit."""
        return f"{target * self.scale + self.mean:.6g}"

    def to_dict(self) -> dict[str, Any]:
        """Return what `task_from_dict` needs."""
        width = {} if self.halfwidth is None else {"halfwidth": self.halfwidth}
        return {"name": self.name, "mean": self.mean, "scale": self.scale, **width}


def is_number(label: str) -> bool:
    """Say whether a label is a finite number."""
    return _number(label) is not None


def look_continuous(labels: Sequence[str]) -> bool:
    """Say whether every label is a number, and some have a decimal point or more than 20 differ."""
    texts = set(map(str, labels))
    if not texts or any(_number(text) is None for text in texts):
        return False
    return len(texts) > 20 or any("." in text for text in texts)


def find_gaps(labels: Sequence[str]) -> list[int]:
    """Find what keeps labels from looking like a regression although it is no class.

    Returns
    -------
    list of int
        Places of labels such as ``nan``, ``NA`` and ``inf``; none unless more than half of the labels are
        numbers that look like a regression, and all others are of this kind.
    """
    texts = list(map(str, labels))
    gaps = [place for place, text in enumerate(texts) if _number(text) is None]
    if not gaps or 2 * len(gaps) >= len(texts) or not all(_is_gap(texts[place]) for place in gaps):
        return []
    return gaps if look_continuous([text for text in texts if _number(text) is not None]) else []


def _is_gap(text: str) -> bool:
    if text.strip().casefold() in _GAPS:
        return True
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _numbers(labels: Sequence[str]) -> FloatArray:
    values = np.empty(len(labels))
    for i, label in enumerate(labels):
        value = _number(label)
        if value is None:
            raise LabelError(
                f"label {quote_label(label)} (row {i + 1}) is not a finite number; mend or drop it"
            )
        values[i] = value
    return values


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
