"""What the estimators share: proteins as scikit-learn hands them over, their vectors, and a modest card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import InputError, UsageError
from bioxfer.sequences import SequenceRecord, clean_protein

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone
    from bioxfer.embedding import Embeddings
    from bioxfer.head_training import Fitted
    from bioxfer.residue_fitting import FittedResidues

__all__ = ["Proteins", "cleaned_texts_of", "describe_fit", "embed_proteins", "label_proteins", "texts_of"]

Proteins: TypeAlias = Sequence[str] | Sequence[SequenceRecord] | npt.NDArray[Any]


class _Reading(Protocol):
    """An estimator's way to a backbone."""

    model: str | Backbone
    layer: int | None
    precision: str
    device: str
    threads: int | None
    cache: str | None


class _Fitting(Protocol):
    """An estimator that makes a head."""

    name: str
    seed: int


def embed_proteins(
    estimator: _Reading,
    X: Proteins,
    *,
    pool: str = "mean",
    first: int | None = None,
    per_residue: bool = False,
) -> Embeddings:
    """Embed every protein, or name the first that cannot be.

    Parameters
    ----------
    estimator : SequenceEmbedder, SequenceClassifier, SequenceRegressor or ResidueClassifier
        Says which backbone and how to run it.
    X : sequence of str or SequenceRecord
        N proteins.
    pool, first, per_residue
        As in `bioxfer.embedding.embed`.

    Raises
    ------
    InputError
        A protein has no vector, which scikit-learn could not carry.
    UsageError
        ``X`` is one string.
    """
    from bioxfer.embedding import embed

    _refuse_one_string(X)
    embedded = embed(
        list(X),
        model=estimator.model,
        layer=estimator.layer,
        pool=pool,
        per_residue=per_residue,
        first=first,
        precision=estimator.precision,
        device=estimator.device,
        threads=estimator.threads,
        cache=estimator.cache,
    )
    missing = np.flatnonzero(~np.isfinite(embedded.vectors).all(axis=1))
    if len(missing):
        place = int(missing[0])
        reason = embedded.messages[place] or embedded.statuses[place]
        raise InputError(
            f"{len(missing)} of {len(embedded.ids)} proteins have no vector, first {embedded.ids[place]!r} "
            f"({reason}); drop them before scikit-learn sees them"
        )
    return embedded


def describe_fit(
    estimator: _Fitting,
    task: str,
    X: Proteins,
    y: Sequence[object],
    embedded: Embeddings,
    fitted: Fitted | FittedResidues,
    *,
    first: int | None = None,
) -> dict[str, Any]:
    """Say what is known of a head that was fitted without a held-out part: no metrics."""
    digest = hashlib.sha256()
    for text in (*texts_of(X), *map(str, y)):
        data = text.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return {
        "name": estimator.name,
        "task": task,
        "intended_use": "not stated",
        "limits": ["Fitted without held-out proteins: nothing is known of how good it is."],
        "data": {
            "source": "given in Python",
            "sha256": digest.hexdigest(),
            "licence": "not stated",
            "proteins": len(embedded),
        },
        "split": {
            "how": "nothing was held out",
            "train": len(embedded),
            "valid": 0,
            "valid_clusters": 0,
            "valid_with_relatives_in_train": 0,
        },
        "head": {"kind": fitted.kind, "setting": fitted.setting, "candidates": fitted.candidates},
        "backbone": {
            "name": embedded.model,
            "fingerprint": embedded.fingerprint,
            "layer": embedded.layer,
            "pool": embedded.pool,
            **({} if first is None else {"first": first}),
        },
        "metrics": {},
        "baselines": {},
        "calibration": {"temperature": fitted.temperature, "ece_before": None, "ece_after": None},
        "intervals": "none, as nothing was held out",
        "seed": estimator.seed,
    }


def texts_of(X: Proteins) -> list[str]:
    """Return the N sequences as text."""
    return [x.sequence if isinstance(x, SequenceRecord) else str(x) for x in X]


def cleaned_texts_of(X: Proteins) -> list[str]:
    """Return the N sequences as a backbone reads them."""
    return [clean_protein(SequenceRecord("", text)).residues for text in texts_of(X)]


def label_proteins(X: Proteins, y: Sequence[str]) -> list[SequenceRecord]:
    """Put labels to proteins, which are named by their place where they have no name.

    Raises
    ------
    UsageError
        There is not one label for each protein.
    """
    _refuse_one_string(X)
    if isinstance(y, str) or len(y) != len(X):
        raise UsageError(f"{len(y)} labels do not fit {len(X)} proteins; give one string for each")
    return [
        replace(x, label=str(label))
        if isinstance(x, SequenceRecord)
        else SequenceRecord(f"seq{number}", str(x), label=str(label))
        for number, (x, label) in enumerate(zip(X, y, strict=True), start=1)
    ]


def _refuse_one_string(X: Proteins) -> None:
    if isinstance(X, str):
        raise UsageError(
            "X is one string; give a list of sequences, or read a file with read_sequences first"
        )
