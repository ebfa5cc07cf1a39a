"""What can be said of every residue: one of some classes, or a number.

A task turns labels into targets, knows its loss and its calibration, and turns a head's outputs into cells,
one for each residue. Residues that a label leaves open count in no loss and no metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError
from bioxfer.evaluate import fit_temperature, log_loss, log_softmax

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MOST_CLASSES",
    "RESIDUE_TASKS",
    "UNRESOLVED",
    "ResidueClasses",
    "ResidueTask",
    "ResidueValues",
    "is_resolved",
    "look_like_residue_labels",
    "look_like_residue_values",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]

UNRESOLVED = "?-_"
"""Characters of a label that say nothing of their residue; they count in no loss and no metric."""

MOST_CLASSES = 64  # more characters than that are no classes of residues
_MEAN_LENGTH = 20  # labels shorter than that on average may be as long as their protein by chance
_SHARE_FITTING = 0.9  # of labels; the others are then wrong rather than of another kind
_NO_NUMBER = frozenset({*UNRESOLVED, ".", "nan", "na"})  # in lower case
_DIGITS = 4  # significant ones of a number, where numbers vary as much as they are large


@dataclass(frozen=True, slots=True)
class ResidueClasses:
    """One of C classes for every residue.

    Parameters
    ----------
    classes : tuple of str
        Single characters, in the order of the outputs.
    """

    classes: tuple[str, ...]

    name = "residue-class"
    main_metric = "accuracy"
    joint = ""  # between the cells of a label

    @classmethod
    def from_labels(cls, labels: Sequence[Sequence[str]]) -> ResidueClasses:
        """Take the distinct resolved characters, sorted, as classes.

        Raises
        ------
        LabelError
            Fewer than two classes, too many, or a character that no table could show.
        """
        found = sorted(set().union(*map(set, labels)) - set(UNRESOLVED))
        if strange := [c for c in found if c.isspace() or not c.isprintable()]:
            raise LabelError(
                f"the character {strange[0]!r} cannot stand for a class; use a letter or a digit"
            )
        if len(found) < 2:
            told = repr(found[0]) if found else "no resolved residue"
            raise LabelError(
                f"a classifier of residues needs at least two classes, and the labels hold {told}"
            )
        if len(found) > MOST_CLASSES:
            raise LabelError(
                f"the labels hold {len(found)} different characters and a residue can be one of "
                f"{MOST_CLASSES} classes at most; look whether they are labels of residues"
            )
        return cls(tuple(found))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def n_outputs(self) -> int:
        """Outputs of a head for each residue: C."""
        return len(self.classes)

    @property
    def digits(self) -> FloatArray | None:
        """The classes as numbers ``(C,)`` where each is a digit, else None."""
        ordinal = all(c in "0123456789" for c in self.classes)
        return np.array([int(c) for c in self.classes], dtype=np.float64) if ordinal else None

    def encode(self, label: Sequence[str]) -> npt.NDArray[np.int8]:
        """Turn a label into class numbers ``(L,)``, -1 where it is unresolved.

        Raises
        ------
        LabelError
            A character is none of the classes.
        """
        place = {c: number for number, c in enumerate(self.classes)} | dict.fromkeys(UNRESOLVED, -1)
        if strange := sorted(set(label) - set(place)):
            at = label.index(strange[0]) + 1
            known = "".join(self.classes)
            raise LabelError(f"label character {strange[0]!r} at residue {at} is none of the classes {known}")
        return np.array([place[c] for c in label], dtype=np.int8)

    def decode(self, numbers: npt.NDArray[Any]) -> str:
        """Write class numbers ``(L,)`` as a label."""
        return "".join(self.classes[number] for number in numbers.tolist())

    def restrict(self, targets: npt.NDArray[Any]) -> ResidueClasses:
        """Return the task for these training targets: itself, as every class has an output."""
        return self

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of ``outputs: (T, C)`` over the resolved of ``targets: (T,)``."""
        import torch

        return torch.nn.functional.cross_entropy(outputs, targets.long(), ignore_index=-1)

    def out_of_sample_loss(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return the log-loss of residues not fitted on, all resolved."""
        return log_loss(outputs, targets)

    def calibrate(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return the temperature that suits residues not fitted on, all resolved."""
        return fit_temperature(outputs, targets)

    def calibrate_width(
        self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], groups: npt.NDArray[Any]
    ) -> ResidueClasses:
        """Return the task itself: a class has no width."""
        return self

    def probabilities(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> FloatArray:
        """Return softmax probabilities ``(T, C)``."""
        return np.exp(log_softmax(outputs, temperature=temperature))

    def answer(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> tuple[list[str], FloatArray]:
        """Return the likeliest class of each of L residues, and its probability ``(L,)``."""
        chances = self.probabilities(outputs, temperature=temperature)
        return [self.classes[c] for c in np.argmax(chances, axis=1).tolist()], chances.max(axis=1)

    def describe(self, parts: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Count each class in the targets of each part, such as ``train`` and ``valid``."""
        return {
            label: {part: int((targets == number).sum()) for part, targets in parts.items()}
            for number, label in enumerate(self.classes)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what a head file says of the task."""
        return {"name": self.name, "classes": list(self.classes)}


@dataclass(frozen=True, slots=True)
class ResidueValues:
    """A number for every residue; a head predicts it in standard units of the training labels.

    Parameters
    ----------
    mean, scale : float
        Mean and standard deviation of the resolved training residues, in the labels' unit.
    halfwidth : float, optional
        Half the width of the 90% interval around a prediction, in the labels' unit; see `calibrate_width`.
    """

    mean: float
    scale: float
    halfwidth: float | None = None

    name = "residue-regression"
    main_metric = "spearman"
    joint = " "  # between the cells of a label

    @classmethod
    def from_targets(cls, targets: npt.NDArray[Any]) -> ResidueValues:
        """Take mean and standard deviation from targets ``(T,)``, NaN where unresolved.

        Raises
        ------
        LabelError
            No number is there, all are the same, or they are too large to be squared.
        """
        found = np.asarray(targets, dtype=np.float64)
        found = found[is_resolved(found)]
        if not len(found):
            raise LabelError("no residue has a number, all are unresolved; give some of each protein")
        if np.ptp(found) == 0:
            raise LabelError(
                f"a regression of residues needs numbers that differ, and all {len(found)} are {found[0]:g}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(found.mean()), float(found.std())
        if not (math.isfinite(mean) and math.isfinite(scale) and scale > 0):
            raise LabelError(
                f"numbers between {found.min():g} and {found.max():g} have no standard deviation in double "
                "precision; give them in another unit"
            )
        return cls(mean, scale)

    @staticmethod
    def split(labels: Sequence[str]) -> list[list[str]]:
        """Cut N labels into cells, one for each residue.

        Cells are separated by white space; where no label of the table has any, they are the label's
        characters, so that ``"3519"`` is four numbers of one digit.
        """
        spaced = any(character.isspace() for label in labels for character in label.strip())
        return [label.split() if spaced else list(label.strip()) for label in labels]

    @property
    def labels(self) -> tuple[str, ...]:
        """None: a number has no classes."""
        return ()

    @property
    def classes(self) -> tuple[str, ...]:
        """None: a number has no classes."""
        return ()

    @property
    def n_outputs(self) -> int:
        """Outputs of a head for each residue: 1."""
        return 1

    @staticmethod
    def encode(cells: Sequence[str]) -> FloatArray:
        """Turn cells into numbers ``(L,)`` in their own unit, NaN where they are unresolved.

        ``?``, ``-``, ``_``, ``.``, ``nan`` and ``NA`` are unresolved.

        Raises
        ------
        LabelError
            A cell is neither that nor a finite number.
        """
        values = np.empty(len(cells))
        for place, cell in enumerate(cells):
            try:
                values[place] = math.nan if cell.lower() in _NO_NUMBER else float(cell)
            except ValueError:
                values[place] = math.inf
            if math.isinf(values[place]):
                raise LabelError(
                    f"label {cell!r} at residue {place + 1} is not a finite number; give ? if there is none"
                )
        return values

    def restrict(self, targets: npt.NDArray[Any]) -> ResidueValues:
        """Return the task for these training targets: with their mean and scale."""
        return self.from_targets(targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return half the mean squared error of ``outputs: (T, 1)`` over resolved ``targets: (T,)``."""
        import torch

        known = torch.isfinite(targets)
        wanted = ((targets[known] - self.mean) / self.scale).float()
        return 0.5 * (outputs[known, 0] - wanted).square().mean()

    def out_of_sample_loss(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return half the mean squared error, in standard units, of residues not fitted on, all resolved."""
        return float(0.5 * np.square(outputs[:, 0] - (targets - self.mean) / self.scale).mean())

    def calibrate(self, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Return 1: a number has no temperature."""
        return 1.0

    def calibrate_width(
        self,
        outputs: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        groups: npt.NDArray[Any],
        *,
        share: float = 0.9,
    ) -> ResidueValues:
        """Return the task with a half-width that holds this share of the residues of new proteins.

        Residues of one cluster are no independent witnesses: each cluster weighs as much as another, and the
        cluster to come as much as each, with residuals of which nothing is known (hierarchical conformal
        prediction; Lee, Barber and Willett, 2023). With too few clusters for the share there is no width.

        Parameters
        ----------
        outputs : ndarray (T, 1)
            For residues that their head was not fitted on.
        targets : ndarray (T,)
            Their numbers, NaN where unresolved.
        groups : ndarray (T,)
            Homology cluster of each.
        share : float
            To be held.
        """
        known = is_resolved(targets)
        residuals = np.abs(self.values(outputs)[known] - targets[known])
        _, member, sizes = np.unique(groups[known], return_inverse=True, return_counts=True)
        weight = 1 / (sizes[member] * (len(sizes) + 1))
        order = np.argsort(residuals, kind="stable")
        # a sum of shares may miss the last bit of its bound
        rank = int(np.searchsorted(np.cumsum(weight[order]), share - 1e-12))
        held = rank < len(order) and residuals[order[rank]] > 0
        return replace(self, halfwidth=float(residuals[order[rank]]) if held else None)

    def probabilities(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> FloatArray:
        """Return ``(T, 0)``: a number has no classes."""
        return np.empty((len(outputs), 0))

    def values(self, outputs: npt.NDArray[Any]) -> FloatArray:
        """Return the numbers ``(T,)`` that outputs ``(T, 1)`` stand for, in the labels' unit."""
        return np.asarray(outputs, dtype=np.float64)[:, 0] * self.scale + self.mean

    def answer(self, outputs: npt.NDArray[Any], *, temperature: float = 1.0) -> tuple[list[str], FloatArray]:
        """Return the number of each of L residues as text, and scores of NaN: a number has no confidence.

        Four significant digits are written, and more where the numbers vary by less than their size.
        """
        size = abs(self.mean) / self.scale
        digits = _DIGITS + (int(min(math.log10(size), 12)) if size > 1 else 0)
        values = self.values(outputs) + 0.0  # which makes a zero of the negative one
        cells = [f"{v:.{digits}g}" if math.isfinite(v) else UNRESOLVED[0] for v in values.tolist()]
        return cells, np.full(len(cells), np.nan)

    def describe(self, parts: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Give count, mean, least and largest of the resolved targets of each part."""
        found = {part: targets[is_resolved(targets)] for part, targets in parts.items()}
        return {
            part: {
                "count": len(values),
                "mean": float(values.mean()),
                "min": float(values.min()),
                "max": float(values.max()),
            }
            for part, values in found.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what a head file says of the task."""
        width = {} if self.halfwidth is None else {"halfwidth": self.halfwidth}
        return {"name": self.name, "mean": self.mean, "scale": self.scale, **width}


ResidueTask: TypeAlias = ResidueClasses | ResidueValues

RESIDUE_TASKS = (ResidueClasses.name, ResidueValues.name)
"""Names of the tasks of residues."""


def is_resolved(targets: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Say which targets are there: class numbers that are not -1, or numbers that are not NaN."""
    return np.asarray(np.isfinite(targets) if targets.dtype.kind == "f" else targets >= 0)


def look_like_residue_labels(labels: Sequence[str], lengths: Sequence[int]) -> bool:
    """Tell labels of residues from labels of proteins by their lengths.

    Parameters
    ----------
    labels : sequence of str
        N labels.
    lengths : sequence of int
        Residues of their N proteins.

    Returns
    -------
    bool
        Whether the labels are 20 characters or more on average and nine of ten are as long as their protein;
        those that are not are then mistakes to be named.
    """
    if not labels or sum(map(len, labels)) < _MEAN_LENGTH * len(labels):
        return False
    fitting = sum(len(label) == length for label, length in zip(labels, lengths, strict=True))
    return fitting >= _SHARE_FITTING * len(labels)


def look_like_residue_values(labels: Sequence[str], lengths: Sequence[int]) -> bool:
    """Tell labels that hold a number for each residue from others.

    Parameters
    ----------
    labels : sequence of str
        N labels.
    lengths : sequence of int
        Residues of their N proteins.

    Returns
    -------
    bool
        Whether nine of ten labels are two or more numbers, separated by white space, as many as residues;
        those that are not are then mistakes to be named.
    """
    fitting = 0
    for label, length in zip(labels, lengths, strict=True):
        cells = label.split()
        fitting += len(cells) == length > 1 and all(map(_is_cell, cells))
    return 0 < fitting >= _SHARE_FITTING * len(labels)


def _is_cell(text: str) -> bool:
    try:
        return text.lower() in _NO_NUMBER or math.isfinite(float(text))
    except ValueError:
        return False
