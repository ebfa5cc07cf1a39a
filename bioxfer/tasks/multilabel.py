"""Any number of several labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError
from bioxfer.quoting import name_labels, quote_label
from bioxfer.tasks.decisions import Decision, FloatArray
from bioxfer.tasks.label_sets import SEPARATOR, LabelSetMetrics, split_label, with_likeliest
from bioxfer.tasks.regions import fitting_labels, greatest_misfit

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Multilabel"]

_BINS = 15  # of equal width over probability 0 to 1, as of classes
_LEAST = 1e-7  # probability that a mixture keeps off 0 and 1 by, so that its logit stays a number


@dataclass(frozen=True, slots=True)
class Multilabel:
    """Any of C labels, at least one.

    Parameters
    ----------
    classes : tuple of str
        The labels, in the order of the outputs.
    threshold : float
        Uncalibrated probability (temperature 1) from which a label is said; see `calibrate_width`.
    """

    classes: tuple[str, ...]
    threshold: float = 0.5

    name = "multilabel"
    main_metric = "fmax"
    target_kind = "f"

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> Multilabel:
        """Take the distinct labels in all cells, sorted, as classes; see `split_label`.

        Raises
        ------
        LabelError
            Fewer than two labels, a cell without any, or a label in every cell.
        """
        sets = _split_all(labels)
        counts = Counter(name for names in sets for name in names)
        if len(counts) < 2:
            found = ", ".join(f"{quote_label(name)} ({n} proteins)" for name, n in counts.items()) or "none"
            raise LabelError(f"a multilabel head needs at least two labels, and the cells hold {found}")
        for name, count in sorted(counts.items()):
            if count == len(sets):
                raise LabelError(
                    f"label {quote_label(name)} is borne by all {count} proteins, so there is nothing to "
                    "learn about it; leave it out of the cells or add proteins without it"
                )
        return cls(tuple(sorted(counts)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels."""
        return self.classes

    @property
    def n_outputs(self) -> int:
        """Outputs of a head: C."""
        return len(self.classes)

    @property
    def metrics(self) -> LabelSetMetrics:
        """Scores targets ``(N, C)`` and probabilities ``(N, C)``: ``fmax``, ``micro_f1``, ``macro_f1``."""
        return LabelSetMetrics(self.threshold)

    def encode(self, labels: Sequence[str]) -> npt.NDArray[np.float32]:
        """Turn cells into ``(N, C)``: 1 where a cell names a label, else 0.

        Raises
        ------
        LabelError
            A cell names no label, or one that is none of the classes.
        """
        place = {name: i for i, name in enumerate(self.classes)}
        targets = np.zeros((len(labels), self.n_outputs), dtype=np.float32)
        for i, names in enumerate(_split_all(labels)):
            for name in names:
                if name not in place:
                    raise LabelError(
                        f"label {quote_label(name)} (row {i + 1}) is none of the classes "
                        f"{name_labels(self.classes)}"
                    )
                targets[i, place[name]] = 1
        return targets

    def restrict(self, labels: Sequence[str]) -> Multilabel:
        """Return the task for these training labels: itself, so that a label that they lack is told later."""
        return self

    def names(self, label: str) -> tuple[str, ...]:
        """Return the labels that a cell names."""
        return split_label(label)

    def members(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which proteins bear which label ``(N, C)``."""
        return np.asarray(targets > 0.5, dtype=bool)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross entropy, in nats, of ``outputs: (N, C)`` and ``targets: (N, C)``.

        It is summed over labels and averaged over proteins: then a penalty on weights counts for a label as
        much as if it were the only one, however many there are.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(outputs)

    def out_of_sample_loss(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return the loss, in nats, that rows not fitted on have at their own best temperature."""
        return _cross_entropy(outputs, targets, self.calibrate(outputs, targets))

    def calibrate(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return the one temperature, 0.05 to 20, that gives rows not fitted on the least loss."""
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(
            lambda log_t: _cross_entropy(outputs, targets, math.exp(log_t)),
            bounds=(math.log(0.05), math.log(20.0)),
            method="bounded",
        )
        return math.exp(found.x)

    def calibrate_width(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Multilabel:
        """Return the task with the threshold at which rows not fitted on reach their Fmax."""
        return replace(self, threshold=self.metrics.best_threshold(targets, self.predict(outputs)))

    def said_from(self, temperature: float) -> float:
        """Return the threshold as the calibrated probability that it is at this temperature."""
        odds = math.log(self.threshold / (1.0 - self.threshold))
        return float(_sigmoid(np.array(odds / temperature)))

    def calibration_error(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> float | None:
        """Return the expected calibration error over all pairs of protein and label."""
        chance = self.probabilities(outputs, temperature=temperature).ravel()
        place = np.minimum((chance * _BINS).astype(np.int64), _BINS - 1)
        gap = np.bincount(place, weights=np.ravel(targets) - chance, minlength=_BINS)
        return float(np.abs(gap).sum() / len(chance))

    def predict(self, outputs: npt.NDArray[Any]) -> FloatArray:
        """Return uncalibrated probabilities ``(N, C)``, which `metrics` and the threshold are made for."""
        return self.probabilities(outputs)

    def constant(self, targets: npt.NDArray[Any]) -> FloatArray:
        """Return the best prediction that ignores the protein: the frequency of each label ``(C,)``."""
        return np.asarray(targets.mean(axis=0, dtype=np.float64))

    def neighbour_outputs(
        self, targets: npt.NDArray[Any], weights: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Turn neighbours' targets ``(N, k, C)`` and weights ``(N, k)`` into outputs ``(N, C)``."""
        share = weights / weights.sum(axis=1, keepdims=True)
        votes = np.einsum("nk,nkc->nc", share, targets.astype(np.float32))
        # one hundredth of all votes for and against every label keeps each possible
        return _logit((votes + 0.01) / 1.02, (1.0 - votes + 0.01) / 1.02)

    def average_outputs(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Turn outputs of E members ``(E, N, C)`` into the logit of their mean probabilities ``(N, C)``."""
        return _logit(_sigmoid(outputs).mean(axis=0), _sigmoid(-outputs).mean(axis=0))

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
            Divides the network's outputs before the sigmoid.

        Returns
        -------
        ndarray (N, C)
            Logit of the mixed probabilities.
        """
        ours = np.asarray(network, dtype=np.float64) / temperature
        return _logit(
            share * _sigmoid(ours) + (1.0 - share) * _sigmoid(votes),
            share * _sigmoid(-ours) + (1.0 - share) * _sigmoid(-votes),
        )

    def probabilities(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> FloatArray:
        """Return the probability of each label ``(N, C)``; they are apart, and rows do not sum to 1."""
        return _sigmoid(np.asarray(outputs, dtype=np.float64) / temperature)

    def decode(
        self,
        outputs: npt.NDArray[Any],
        *,
        temperature: float = 1.0,
        refused: npt.NDArray[np.bool_] | None = None,
    ) -> list[Decision]:
        """Return the labels of each row, joined by ``;`` in the order of the classes.

        Those whose probability reaches the threshold are said, and the likeliest in any case. The score is
        the calibrated probability of the least likely one said. None is ever refused.
        """
        usable = np.isfinite(outputs).all(axis=1)
        safe = np.where(usable[:, None], outputs, 0.0)
        said, chance = (
            with_likeliest(self.predict(safe), self.threshold),
            self.probabilities(safe, temperature=temperature),
        )
        return [
            Decision(SEPARATOR.join(self.classes[c] for c in np.flatnonzero(mine)), float(row[mine].min()))
            if ok
            else Decision("", math.nan)
            for mine, row, ok in zip(said, chance, usable.tolist(), strict=True)
        ]

    def said(self, predicted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which labels `predict` gives to which protein ``(N, C)``, as in `decode`."""
        return with_likeliest(predicted, self.threshold)

    def confidences(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return the probability of each label ``(N, C)``, and whether it is borne ``(N, C)``."""
        return self.probabilities(outputs, temperature=temperature), self.members(targets)

    def nonconformity(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], *, temperature: float = 1.0
    ) -> FloatArray:
        """Say how little the least likely true label fits ``(N,)``; see `bioxfer.tasks.regions.misfits`."""
        return greatest_misfit(self.probabilities(outputs, temperature=temperature), self.members(targets))

    def sets(self, outputs: npt.NDArray[Any], *, level: float, temperature: float = 1.0) -> list[list[str]]:
        """Name the labels of each row whose misfit is at most the level, likeliest first."""
        chances = self.probabilities(outputs, temperature=temperature)
        return fitting_labels(chances, self.classes, level=level)

    def describe(self, parts: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Count the bearers of each label in each part, such as ``train`` and ``valid``."""
        return {
            name: {part: int((targets[:, number] > 0.5).sum()) for part, targets in parts.items()}
            for number, name in enumerate(self.classes)
        }

    def label(self, target: npt.NDArray[Any]) -> str:
        """Write an encoded target ``(C,)`` as its labels, joined by ``;``."""
        return SEPARATOR.join(self.classes[c] for c in np.flatnonzero(np.asarray(target) > 0.5))

    def to_dict(self) -> dict[str, Any]:
        """Return what `task_from_dict` needs."""
        return {"name": self.name, "classes": list(self.classes), "threshold": self.threshold}


def _split_all(labels: Sequence[str]) -> list[tuple[str, ...]]:
    found = []
    for i, label in enumerate(labels):
        try:
            found.append(split_label(label))
        except LabelError as error:
            raise LabelError(f"row {i + 1}: {error}") from error
    return found


def _sigmoid(outputs: npt.NDArray[Any]) -> FloatArray:
    # by tanh, which overflows nowhere
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * np.asarray(outputs, dtype=np.float64)), dtype=np.float64)


def _logit(yes: npt.NDArray[Any], no: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    logit = np.log(np.maximum(yes, _LEAST)) - np.log(np.maximum(no, _LEAST))
    return np.asarray(logit, dtype=np.float32)


def _cross_entropy(outputs: npt.NDArray[Any], targets: npt.NDArray[Any], temperature: float) -> float:
    scaled = np.asarray(outputs, dtype=np.float64) / temperature
    return float((np.logaddexp(0.0, scaled) - targets * scaled).sum(axis=1).mean())
