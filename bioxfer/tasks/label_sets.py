"""Sets of labels: how a cell names several, and how sets that were predicted are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError
from bioxfer.quoting import quote_label
from bioxfer.tasks.decisions import FloatArray
from bioxfer.tasks.regression import is_number

__all__ = [
    "SEPARATOR",
    "SEPARATORS",
    "THRESHOLDS",
    "LabelSetMetrics",
    "look_joined",
    "split_label",
    "with_likeliest",
]

SEPARATOR = ";"  # of the labels that a head says
SEPARATORS = (SEPARATOR, "|")
THRESHOLDS: FloatArray = np.arange(1, 100) / 100  # of Fmax, as in CAFA


def split_label(label: str) -> tuple[str, ...]:
    """Split a cell into the labels that it names, in its order.

    Parameters
    ----------
    label : str
        Labels joined by ``;`` or by ``|``. Spaces around each are dropped, as are empty parts and repeats;
        all else, commas, quotes and line ends among it, belongs to a label.

    Raises
    ------
    LabelError
        The cell names no label, or holds both separators.

    Examples
    --------
    >>> split_label("nucleus; cytosol;; nucleus")
    ('nucleus', 'cytosol')
    """
    text = str(label)
    if all(separator in text for separator in SEPARATORS):
        raise LabelError(
            f"label {quote_label(text)} holds both {SEPARATORS[0]!r} and {SEPARATORS[1]!r}; join labels by "
            "one of them"
        )
    separator = SEPARATORS[1] if SEPARATORS[1] in text else SEPARATORS[0]
    names = dict.fromkeys(part.strip() for part in text.split(separator))
    names.pop("", None)
    if not names:
        raise LabelError(f"label {quote_label(text)} names no label; give it one or drop it")
    return tuple(names)


def look_joined(labels: Sequence[str]) -> bool:
    """Say whether cells look like several labels joined.

    They do where a separator occurs, splitting gives every cell at least one label, some label stands in two
    different cells, and not every label is a number.
    """
    cells = set(map(str, labels))
    if not any(separator in cell for cell in cells for separator in SEPARATORS):
        return False
    try:
        sets = [split_label(cell) for cell in cells]
    except LabelError:
        return False
    counts = Counter(name for names in sets for name in names)
    return max(counts.values()) > 1 and not all(map(is_number, counts))


def with_likeliest(
    probabilities: npt.NDArray[Any], threshold: float | npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Say which labels ``(N, C)`` reach a threshold; the likeliest of a protein always does."""
    said = probabilities >= threshold
    said[np.arange(len(said)), np.argmax(probabilities, axis=1)] = True
    return np.asarray(said, dtype=bool)


@dataclass(frozen=True, slots=True)
class LabelSetMetrics:
    """Score predicted sets of labels by sums over proteins, so that a bootstrap counts each protein once.

    Parameters
    ----------
    threshold : float
        Probability from which a label is said, for the F1 scores; the likeliest is always said.
    """

    threshold: float

    def __call__(self, y: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float]:
        """Score predictions.

        Parameters
        ----------
        y : array-like (N, C)
            1 where a protein bears a label, else 0.
        p : array-like (N, C)
            Probabilities.

        Returns
        -------
        dict
            ``fmax``, the protein-centric one of CAFA (Radivojac et al., Nat Methods 2013): the best harmonic
            mean, over thresholds from 0.01 to 0.99, of the precision averaged over the proteins with any
            prediction and the recall averaged over all; ``micro_f1``, over all pairs of protein and label;
            ``macro_f1``, the mean F1 of the labels that occur or are said.
        """
        sums = self.count(y, p).sum(axis=0, keepdims=True)
        return {name: float(values[0]) for name, values in self.score(sums).items()}

    def count(self, y: npt.ArrayLike, p: npt.ArrayLike) -> FloatArray:
        """Return what each protein adds to the sums that `score` takes, ``(N, K)``; parameters as above."""
        true, chance = np.asarray(y) > 0.5, np.asarray(p, dtype=np.float64)
        said_at, right_at = _count_reaching(chance), _count_reaching(chance, where=true)
        borne = true.sum(axis=1, keepdims=True)
        said = with_likeliest(chance, self.threshold)
        return np.concatenate(
            [
                borne > 0,
                right_at / np.maximum(said_at, 1),
                said_at > 0,
                right_at / np.maximum(borne, 1),
                true & said,
                true,
                said,
            ],
            axis=1,
            dtype=np.float64,
        )

    def score(self, sums: FloatArray) -> dict[str, FloatArray]:
        """Turn sums over proteins ``(B, K)`` into B values of each metric."""
        steps = len(THRESHOLDS)
        proteins, precision, answered, recall, rest = np.split(
            sums, np.cumsum([1, steps, steps, steps]), axis=1
        )
        right, true, said = np.split(rest, 3, axis=1)
        mean_precision = precision / np.maximum(answered, 1)
        mean_recall = recall / np.maximum(proteins, 1)
        named = true + said > 0
        f1 = 2 * right / np.maximum(true + said, 1)
        return {
            "fmax": _harmonic_mean(mean_precision, mean_recall).max(axis=1),
            "micro_f1": 2 * right.sum(axis=1) / np.maximum((true + said).sum(axis=1), 1),
            "macro_f1": f1.sum(axis=1) / np.maximum(named.sum(axis=1), 1),
        }

    def best_threshold(self, y: npt.ArrayLike, p: npt.ArrayLike) -> float:
        """Return the lowest threshold at which Fmax is reached; parameters as above."""
        sums, steps = self.count(y, p).sum(axis=0), len(THRESHOLDS)
        proteins, precision, answered, recall = np.split(sums, np.cumsum([1, steps, steps, steps]))[:4]
        found = _harmonic_mean(precision / np.maximum(answered, 1), recall / np.maximum(proteins, 1))
        return float(THRESHOLDS[np.argmax(found)])


def _count_reaching(
    chance: FloatArray, *, where: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Count per protein the labels that reach each of the T thresholds, ``(N, T)``."""
    steps = len(THRESHOLDS)
    passed = np.searchsorted(THRESHOLDS, chance, side="right") + np.arange(len(chance))[:, None] * (steps + 1)
    cells = passed.ravel() if where is None else passed[where]
    counts = np.bincount(cells, minlength=len(chance) * (steps + 1)).reshape(len(chance), steps + 1)
    return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, -2::-1], dtype=np.int64)


def _harmonic_mean(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(2 * a * b / np.maximum(a + b, 1e-12), dtype=np.float64)
