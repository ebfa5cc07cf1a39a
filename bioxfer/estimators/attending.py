"""Heads with light attention, as the estimators fit them: on all proteins, with whole clusters set apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from bioxfer.attention_fitting import gather_matrices
from bioxfer.attention_training import Attended, attend
from bioxfer.selection import Fitted, select
from bioxfer.tasks import task_from_name

if TYPE_CHECKING:
    from bioxfer.embedding import Embeddings

__all__ = ["ATTENTION", "fit_attentive"]

ATTENTION: Final = "light-attention"


def fit_attentive(
    embedded: Embeddings,
    labels: Sequence[str],
    groups: npt.ArrayLike | None,
    *,
    task: str,
    seed: int,
) -> tuple[Fitted, Attended]:
    """Fit light attention, and the best head on what it makes, on part of the proteins.

    Parameters
    ----------
    embedded : Embeddings
        N proteins with their residues.
    labels : sequence of str
        N labels.
    groups : array-like (N,), optional
        Homology clusters, some of which are set apart to choose by; every protein is one if not given.
    task : str
        See `bioxfer.tasks.task_from_name`.
    seed : int
        Of the choice of those clusters, weights and order.

    Returns
    -------
    tuple of Fitted and Attended
        What a head is made of, and what completes it by a fit on all proteins.

    Raises
    ------
    LabelError
        Too few clusters, or a class that would be missing on a side.
    """
    cluster = np.arange(len(embedded)) if groups is None else np.asarray(groups)
    residues = embedded.residues or []
    data = gather_matrices(residues, most=sum(len(matrix) for matrix in residues if matrix is not None))
    every = ["train"] * len(embedded)
    attended = attend(embedded.vectors, data, labels, cluster, task=task, sides=every, seed=seed)
    whole = task_from_name(task, labels)
    fitted = select(
        attended.features,
        whole.encode(labels),
        embedded.ids,
        cluster,
        whole,
        head="auto",
        forms=attended.forms,
        dev=np.array(attended.sides) == "dev",
        seed=seed,
    )
    return fitted, attended
