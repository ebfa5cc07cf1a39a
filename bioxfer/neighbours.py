"""Neighbours: the training proteins that a protein resembles most, looked up in a backbone's space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Neighbour", "NeighbourIndex", "unit_rows"]

Vectors: TypeAlias = npt.NDArray[np.float32]

_ROWS_AT_ONCE = 1024  # queries against all training vectors: 50 MB of similarities for 12,000


class Neighbour(NamedTuple):
    """The training protein that a protein resembles most.

    Attributes
    ----------
    id : str
        Its id in the training data; empty where the query had no vector.
    label : str
        Its label.
    similarity : float
        Cosine in the index's space, -1 to 1; NaN where the query had no vector.
    """

    id: str
    label: str
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class NeighbourIndex:
    """Training proteins to look up relatives of a query in.

    Vectors are standardised, projected on their first d principal components and scaled to length 1, so that
    no single large dimension of the backbone decides what is similar.

    Attributes
    ----------
    ids : tuple of str
        M training ids.
    targets : ndarray (M,) or (M, C)
        Encoded labels.
    vectors : ndarray (M, d)
        Unit vectors, float16.
    projection, offset : ndarray (d, F), (d,)
        ``features @ projection.T + offset`` is the space of the vectors before scaling.
    far : float
        Similarity below which a query is called far.
    """

    ids: tuple[str, ...]
    targets: npt.NDArray[Any]
    vectors: npt.NDArray[np.float16]
    projection: Vectors
    offset: Vectors
    far: float

    def search(self, features: Vectors, k: int = 1) -> tuple[npt.NDArray[np.int64], Vectors]:
        """Find the k most similar training proteins.

        Parameters
        ----------
        features : ndarray (N, F)
            Vectors as the backbone made them.
        k : int
            Neighbours per query, at most M.

        Returns
        -------
        tuple of ndarray
            Places ``(N, k)`` in the index and cosines ``(N, k)``, most similar first, equals by place. A row
            with NaN finds nothing: its cosines are NaN.
        """
        k = min(k, len(self.ids))
        known = self.vectors.astype(np.float32)
        places = np.zeros((len(features), k), dtype=np.int64)
        cosines = np.full((len(features), k), np.nan, dtype=np.float32)
        query = unit_rows(features @ self.projection.T + self.offset)
        usable = np.flatnonzero(np.isfinite(query).all(axis=1))
        for start in range(0, len(usable), _ROWS_AT_ONCE):
            rows = usable[start : start + _ROWS_AT_ONCE]
            # rounded, so that the last bits of a matrix product decide no tie between copies
            similarity = np.round(query[rows] @ known.T, 5)
            found = _largest(similarity, k)
            places[rows] = found
            cosines[rows] = np.clip(np.take_along_axis(similarity, found, axis=1), -1.0, 1.0)
        return places, cosines

    def nearest(self, features: Vectors, *, label: Callable[[Any], str]) -> list[Neighbour]:
        """Name the most similar training protein of each query.

        Parameters
        ----------
        features : ndarray (N, F)
            Vectors as the backbone made them.
        label : callable
            Writes an encoded target as the neighbour's label.
        """
        places, cosines = self.search(features)
        return [
            Neighbour("", "", math.nan)
            if math.isnan(cosine)
            else Neighbour(self.ids[place], label(self.targets[place]), cosine)
            for place, cosine in zip(places[:, 0].tolist(), cosines[:, 0].tolist(), strict=True)
        ]

    def flag(self, similarity: float) -> Literal["in-domain", "far", ""]:
        """Say whether a similarity from `nearest` is one that the head was tested at.

        ``far`` is less similar to every training protein than 95% of held-out proteins without relatives
        in training were.
        """
        if math.isnan(similarity):
            return ""
        return "far" if similarity < self.far else "in-domain"


def unit_rows(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scale each row to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length == 0, 1, length))


def _largest(values: Vectors, k: int) -> npt.NDArray[np.int64]:
    """Return the places ``(N, k)`` of each row's k largest values, largest first, equals by place."""
    if k == 1:
        return np.asarray(np.argmax(values, axis=1)[:, None], dtype=np.int64)
    places = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(places, order, axis=1), dtype=np.int64)
