"""Alignment: the training protein that resembles each held-out protein most, residue by residue.

What homology search gives away is the baseline to beat, and how near the nearest training protein is says
what an accuracy is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bioxfer.homology import Method, find_links, normal_form

__all__ = ["Alignment", "align_to_training"]

_MOST = 25  # alignments for each protein: the nearest is wanted, and variants of one protein are all alike
_COVERED = 0.5  # of the shorter protein, as among relatives: a shared motif is not 60% identity


@dataclass(frozen=True, slots=True)
class Alignment:
    """What the search found for each of N proteins.

    Attributes
    ----------
    nearest : ndarray (N,)
        Place of the training protein with the best alignment; -1 where none aligns.
    identity : ndarray (N,)
        Highest identity, 0 to 1, to a training protein over at least half of the shorter of the two;
        0 where none aligns so far.
    """

    nearest: npt.NDArray[np.int64]
    identity: npt.NDArray[np.float64]

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Whether any training protein aligns ``(N,)``."""
        return np.asarray(self.nearest >= 0)


def align_to_training(
    held: Sequence[str],
    train: Sequence[str],
    *,
    evalue: float = 1e-3,
    method: Method = "auto",
    threads: int | None = None,
) -> Alignment:
    """Search held-out proteins in the training proteins, however low the identity of what is found.

    Parameters
    ----------
    held, train : sequence of str
        N held-out and M training proteins.
    evalue : float
        Chance hits expected per protein at most.
    method, threads
        See `bioxfer.homology.find_links`.

    Examples
    --------
    >>> found = align_to_training(
    ...     ["MKTAYIAKQRQISFVKSHFSRQ", "GGSWWPPEEDDKK"], ["MKTAYIAKQRQISFVKSHFSRQ"], method="kmer"
    ... )
    >>> found.nearest.tolist(), found.identity.tolist()
    ([0, -1], [1.0, 0.0])
    """
    links = find_links(
        held, train, identity=0.0, coverage=0.0, evalue=evalue, most=_MOST, method=method, threads=threads
    )
    nearest = np.full(len(held), -1, dtype=np.int64)
    identity = np.zeros(len(held))
    order = np.lexsort((links.reference, -links.score, links.query))  # equal scores: by place
    query, first = np.unique(links.query[order], return_index=True)
    nearest[query] = links.reference[order][first]
    near = links.coverage >= _COVERED
    np.maximum.at(identity, links.query[near], links.identity[near])
    # Searches pass over short and monotonous proteins; an equal one is the nearest all the same.
    known: dict[str, int] = {}
    for place, protein in enumerate(train):
        known.setdefault(normal_form(protein), place)
    for place, protein in enumerate(held):
        if protein and (same := known.get(normal_form(protein))) is not None:
            identity[place] = 1.0
            nearest[place] = same if nearest[place] < 0 else nearest[place]
    return Alignment(nearest, identity)
