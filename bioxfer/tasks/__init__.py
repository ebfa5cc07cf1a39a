"""What a head predicts: how labels become targets, what its loss is, and how outputs become labels again.

The only place that branches on the kind of task. `Multiclass` picks one of several classes, `Regression`
a number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError, UsageError
from bioxfer.evaluate import (
    classification_metrics,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    log_softmax,
    regression_metrics,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UNKNOWN", "Decision", "Multiclass", "Regression", "Task", "task_from_dict", "task_from_name"]

_LEAST = 1e-30  # probability that a mean cannot fall below, so that its log stays a number
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


@dataclass(frozen=True, slots=True)
class Multiclass:
    """One of C classes.

    Parameters
    ----------
    classes : tuple of str
        Their names, in the order of the outputs.
    """

    classes: tuple[str, ...]

    name = "multiclass"
    main_metric = "accuracy"
    target_kind = "i"  # numpy's letter for the type of encoded targets

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> Multiclass:
        """Take the distinct labels, sorted, as classes.

        Raises
        ------
        LabelError
            Fewer than two classes, or an empty label.
        """
        counts = Counter(map(str, labels))
        if "" in counts:
            raise LabelError(f"{counts['']} of {len(labels)} labels are empty; drop or fill those rows")
        if len(counts) < 2:
            found = ", ".join(f"{name!r} ({n} proteins)" for name, n in counts.items()) or "no labels"
            raise LabelError(f"a classifier needs at least two classes, and the labels hold {found}")
        return cls(tuple(sorted(counts)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def n_outputs(self) -> int:
        """Outputs of a head: C."""
        return len(self.classes)

    def encode(self, labels: Sequence[str]) -> npt.NDArray[np.int64]:
        """Turn labels into class numbers ``(N,)``.

        Raises
        ------
        LabelError
            A label is none of the classes.
        """
        place = {name: i for i, name in enumerate(self.classes)}
        targets = np.empty(len(labels), dtype=np.int64)
        for i, label in enumerate(labels):
            if str(label) not in place:
                known = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
                raise LabelError(f"label {str(label)!r} (row {i + 1}) is none of the classes {known}")
            targets[i] = place[str(label)]
        return targets

    def restrict(self, labels: Sequence[str]) -> Multiclass:
        """Return the task for these training labels: itself, so that a class that they lack is told later."""
        return self

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy, in nats, of ``outputs: (N, C)`` and ``targets: (N,)``."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def out_of_sample_loss(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return the log-loss, in nats, that rows not fitted on have at their own best temperature."""
        return log_loss(outputs, targets, temperature=self.calibrate(outputs, targets))

    def calibrate(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return the temperature that makes outputs of rows not fitted on into honest probabilities."""
        return fit_temperature(outputs, targets)

    def calibrate_width(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Multiclass:
        """Return the task itself: a class has no width."""
        return self

    def calibration_error(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> float | None:
        """Return the expected calibration error at this temperature."""
        return expected_calibration_error(self.probabilities(outputs, temperature=temperature), targets)

    def predict(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the likeliest class numbers ``(N,)``."""
        return np.asarray(np.argmax(outputs, axis=1), dtype=np.int64)

    def metrics(self, targets: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> dict[str, float]:
        """Score predicted class numbers; see `bioxfer.evaluate.classification_metrics`."""
        return classification_metrics(targets, predicted, self.n_outputs)

    def constant(self, targets: npt.NDArray[Any]) -> float:
        """Return the best prediction that ignores the protein: the most frequent class."""
        return float(np.argmax(np.bincount(targets)))

    def neighbour_outputs(
        self, targets: npt.NDArray[Any], weights: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Turn neighbours' targets ``(N, k)`` and weights ``(N, k)`` into outputs ``(N, C)``."""
        votes = np.zeros((len(targets), self.n_outputs), dtype=np.float32)
        np.add.at(votes, (np.arange(len(targets))[:, None], targets.astype(np.int64)), weights)
        # one hundredth of a vote for every class keeps a class without neighbours possible
        votes += 0.01
        return np.asarray(np.log(votes / votes.sum(axis=1, keepdims=True)), dtype=np.float32)

    def average_outputs(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Turn outputs of E members ``(E, N, C)`` into the log of their mean probabilities ``(N, C)``."""
        mean = np.mean([np.exp(log_softmax(member)) for member in outputs], axis=0)
        return np.asarray(np.log(np.maximum(mean, _LEAST)), dtype=np.float32)

    def mix_outputs(
        self, network: npt.NDArray[Any], votes: npt.NDArray[Any], *, share: float, temperature: float
    ) -> npt.NDArray[np.float32]:
        """Mix a network's probabilities with those of the neighbours' votes.

        Parameters
        ----------
        network, votes : ndarray (N, C)
            Outputs of both.
        share : float
            Of the network, 0 to 1; the rest is the votes'.
        temperature : float
            Divides the network's outputs before softmax.

        Returns
        -------
        ndarray (N, C)
            Log of the mixed probabilities.
        """
        ours = np.exp(log_softmax(network, temperature=temperature))
        mixed = share * ours + (1.0 - share) * np.exp(log_softmax(votes))
        return np.asarray(np.log(np.maximum(mixed, _LEAST)), dtype=np.float32)

    def probabilities(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> FloatArray:
        """Return softmax probabilities ``(N, C)`` of ``outputs: (N, C)``."""
        return np.exp(log_softmax(outputs, temperature=temperature))

    def decode(
        self,
        outputs: npt.NDArray[Any],
        *,
        temperature: float = 1.0,
        refused: npt.NDArray[np.bool_] | None = None,
    ) -> list[Decision]:
        """Return the likeliest class of each row and its probability.

        Parameters
        ----------
        outputs : ndarray (N, C)
            Of a head.
        temperature : float
            Divides them before softmax.
        refused : ndarray (N,) of bool, optional
            Rows whose label shall be ``unknown``; they keep their score.
        """
        table = self.probabilities(outputs, temperature=temperature)
        usable = np.isfinite(table.sum(axis=1))
        best = np.where(usable, np.argmax(table, axis=1), 0)
        mute = np.zeros(len(table), dtype=bool) if refused is None else refused
        return [
            Decision(UNKNOWN if no else self.classes[c], float(row[c])) if ok else Decision("", math.nan)
            for c, row, ok, no in zip(best.tolist(), table, usable.tolist(), mute.tolist(), strict=True)
        ]

    def describe(self, parts: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Count each class in the encoded targets of each part, such as ``train`` and ``valid``."""
        return {
            name: {part: int((targets == number).sum()) for part, targets in parts.items()}
            for number, name in enumerate(self.classes)
        }

    def label(self, target: float) -> str:
        """Write an encoded target as its label."""
        return self.classes[int(target)]

    def to_dict(self) -> dict[str, Any]:
        """Return what `task_from_dict` needs."""
        return {"name": self.name, "classes": list(self.classes)}


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

    def metrics(self, targets: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> dict[str, float]:
        """Score standardised numbers: ``spearman``, and ``rmse`` in the labels' unit."""
        return regression_metrics(targets * self.scale, predicted * self.scale)

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


Task: TypeAlias = Multiclass | Regression


def task_from_name(name: str, labels: Sequence[str]) -> Task:
    """Choose the task for these training labels.

    Parameters
    ----------
    name : {"auto", "multiclass", "regression"}
        ``"multiclass"``, ``"regression"``, or ``"auto"``: a regression where every label is a number and
        either some have a decimal point or more than 20 differ; else classes.
    labels : sequence of str
        Labels as text.

    Raises
    ------
    UsageError
        No such task.
    LabelError
        The labels do not fit the task.
    """
    if name == "auto":
        name = "regression" if _look_continuous(labels) else "multiclass"
    if name == "multiclass":
        return Multiclass.from_labels(labels)
    if name == "regression":
        return Regression.from_labels(labels)
    raise UsageError(f"task {name!r} is not one of auto, multiclass, regression")


def task_from_dict(data: object) -> Task:
    """Rebuild a task from `Multiclass.to_dict` or `Regression.to_dict`.

    Raises
    ------
    ValueError
        The data describes no task.
    """
    match data:
        case {"name": "multiclass", "classes": [str(), str(), *_] as classes}:
            if all(isinstance(c, str) and c for c in classes) and len(set(classes)) == len(classes):
                return Multiclass(tuple(classes))
        case {"name": "regression", "mean": float(mean), "scale": float(scale), **rest}:
            width = rest.get("halfwidth")
            sound = math.isfinite(mean) and math.isfinite(scale) and scale > 0
            if sound and (width is None or (isinstance(width, float) and 0 < width < math.inf)):
                return Regression(mean, scale, width)
    raise ValueError(f"no task is described by {str(data)[:80]}")


def _numbers(labels: Sequence[str]) -> FloatArray:
    values = np.empty(len(labels))
    for i, label in enumerate(labels):
        value = _number(label)
        if value is None:
            raise LabelError(f"label {str(label)!r} (row {i + 1}) is not a finite number; mend or drop it")
        values[i] = value
    return values


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _look_continuous(labels: Sequence[str]) -> bool:
    texts = set(map(str, labels))
    if not texts or any(_number(text) is None for text in texts):
        return False
    return len(texts) > 20 or any("." in text for text in texts)
