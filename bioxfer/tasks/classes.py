"""One of several classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError
from bioxfer.evaluate import (
    classification_metrics,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    log_softmax,
)
from bioxfer.quoting import name_labels, quote_label
from bioxfer.tasks.decisions import LEAST, UNKNOWN, Decision, FloatArray
from bioxfer.tasks.regions import fitting_labels, greatest_misfit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Multiclass"]


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
            told = [f"{quote_label(name)} ({n} proteins)" for name, n in counts.items()]
            found = ", ".join(told) or "no labels"
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
                raise LabelError(
                    f"label {quote_label(label)} (row {i + 1}) is none of the classes "
                    f"{name_labels(self.classes)}"
                )
            targets[i] = place[str(label)]
        return targets

    def restrict(self, labels: Sequence[str]) -> Multiclass:
        """Return the task for these training labels: itself, so that a class that they lack is told later."""
        return self

    def names(self, label: str) -> tuple[str, ...]:
        """Return the classes that a label names: itself."""
        return (label,)

    def members(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which proteins are of which class ``(N, C)``."""
        return np.asarray(targets[:, None] == np.arange(self.n_outputs))

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
        return np.asarray(np.log(np.maximum(mean, LEAST)), dtype=np.float32)

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
        return np.asarray(np.log(np.maximum(mixed, LEAST)), dtype=np.float32)

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

    def said(self, predicted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which class `predict` names for which protein ``(N, C)``."""
        return self.members(predicted)

    def confidences(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return how sure each answer is ``(N, 1)``, and whether it is right ``(N, 1)``."""
        table = self.probabilities(outputs, temperature=temperature)
        return table.max(axis=1, keepdims=True), (table.argmax(axis=1) == targets)[:, None]

    def nonconformity(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> FloatArray:
        """Say how little the true class fits ``(N,)``: 0 where it is the likeliest, else 1 - probability."""
        return greatest_misfit(self.probabilities(outputs, temperature=temperature), self.members(targets))

    def sets(self, outputs: npt.NDArray[Any], *, level: float, temperature: float = 1.0) -> list[list[str]]:
        """Name the classes of each row whose nonconformity is at most the level, likeliest first."""
        chances = self.probabilities(outputs, temperature=temperature)
        return fitting_labels(chances, self.classes, level=level)

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
