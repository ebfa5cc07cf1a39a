"""Families: what the words of a protein say about its label.

Relatives share words, and relatives mostly share a label. A head's network reads what a protein looks like
and works for proteins unlike all known ones; words recognise the families that training has shown, as
homology search does, without keeping a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import HeadFileError
from bioxfer.words import MOST_CLASSES, WordMemory

__all__ = ["FamilyMemory"]

_LEAST = 2  # proteins that share a word before it is kept: none is one protein's own
_PAIRS = 2_600_000  # of word and family: 5 MB


@dataclass(frozen=True, slots=True, eq=False)
class FamilyMemory:
    """Families of training proteins by their words, and the label of each.

    Attributes
    ----------
    words : WordMemory
        Of W families: homology clusters, cut by label.
    targets : ndarray (W,)
        Encoded label of each family.
    n_outputs : int
        C, outputs of the head.
    weight : float
        Logits for one standard deviation of votes above chance.
    """

    words: WordMemory
    targets: npt.NDArray[np.int64]
    n_outputs: int
    weight: float

    @classmethod
    def fit(
        cls,
        sequences: Sequence[str],
        targets: npt.NDArray[Any],
        groups: npt.ArrayLike,
        *,
        n_outputs: int,
        weight: float = 1.0,
        pairs: int = _PAIRS,
    ) -> FamilyMemory | None:
        """Learn the words of families of two proteins or more; of the 32,768 largest, if there are more.

        Parameters
        ----------
        sequences : sequence of str
            N proteins.
        targets : ndarray (N,)
            Encoded labels.
        groups : array-like (N,)
            Homology clusters.
        n_outputs, weight, pairs
            See `FamilyMemory`; `pairs` bounds the memory's size, 2 bytes each.

        Returns
        -------
        FamilyMemory or None
            None where no two proteins of a cluster share a label.
        """
        named = np.stack([np.asarray(groups, dtype=np.int64), np.asarray(targets, dtype=np.int64)], axis=1)
        families, member, size = np.unique(named, axis=0, return_inverse=True, return_counts=True)
        large = np.flatnonzero(size >= _LEAST)
        if not len(large):
            return None
        if len(large) > MOST_CLASSES:
            large = np.sort(large[np.argsort(-size[large], kind="stable")[:MOST_CLASSES]])
        number = np.full(len(families), -1, dtype=np.int64)
        number[large] = np.arange(len(large))
        mine = number[member]
        places = np.flatnonzero(mine >= 0)
        words = WordMemory.fit(
            [sequences[i] for i in places.tolist()],
            mine[places],
            n_classes=len(large),
            pairs=max(pairs, len(large)),
            least=_LEAST,
        )
        return cls(words, families[large, 1], n_outputs, weight)

    def evidence(self, sequences: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return logits to add to a head's ``(N, C)``: for each label that of its likeliest family.

        A family speaks for its label and never against it: votes below chance count as none.
        """
        table = np.zeros((len(sequences), self.n_outputs), dtype=np.float32)
        order = np.argsort(self.targets, kind="stable")
        starts = np.flatnonzero(np.diff(self.targets[order], prepend=-1))
        for first in range(0, len(sequences), 256):  # proteins at once: W votes each
            part = slice(first, first + 256)
            votes = self.words.votes_of_all(sequences[part])[:, order]
            best = np.maximum.reduceat(votes, starts, axis=1)
            table[part, self.targets[order][starts]] = self.weight * np.maximum(best, 0)
        return table

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return arrays that `from_tensors` reads back."""
        own = {"targets": self.targets, "weight": np.array(self.weight, dtype=np.float64)}
        return {f"words.{name}": value for name, value in self.words.to_tensors().items()} | own

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, npt.NDArray[Any]], *, n_outputs: int) -> FamilyMemory:
        """Read what `to_tensors` wrote.

        Raises
        ------
        HeadFileError
            An array is missing, or has the wrong type, shape or values.
        """
        words = WordMemory.from_tensors(
            {name.removeprefix("words."): t for name, t in tensors.items() if name.startswith("words.")}
        )
        if not {"targets", "weight"} <= set(tensors):
            raise HeadFileError("the family memory lacks its targets or its weight")
        targets, weight = tensors["targets"], tensors["weight"]
        if targets.dtype != np.int64 or targets.shape != (words.n_classes,):
            raise HeadFileError(
                f"{targets.dtype} {targets.shape} are no targets of {words.n_classes} families"
            )
        if targets.min() < 0 or targets.max() >= n_outputs:
            raise HeadFileError(f"a family's label lies outside the {n_outputs} classes")
        if weight.shape != () or weight.dtype.kind != "f" or not 0 <= float(weight) < np.inf:
            raise HeadFileError("the family memory's weight is no number of 0 or more")
        return cls(words, targets, n_outputs, float(weight))
