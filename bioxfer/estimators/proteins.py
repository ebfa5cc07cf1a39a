"""What the estimators share: proteins as scikit-learn hands them over, their vectors, and a modest card."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from bioxfer.errors import InputError, SequenceError, UsageError
from bioxfer.sequences import SequenceRecord, clean_protein

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone
    from bioxfer.embedding import Embeddings

__all__ = [
    "OnBackbone",
    "Proteins",
    "check_groups",
    "cleaned_texts_of",
    "describe_fit",
    "embed_proteins",
    "label_proteins",
    "read_proteins",
    "texts_of",
]

Proteins: TypeAlias = Sequence[str] | Sequence[SequenceRecord] | npt.NDArray[Any]


class OnBackbone(BaseEstimator):  # type: ignore[misc]
    """An estimator that reads sequences through a backbone."""

    model: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        if isinstance(self.model, (str, os.PathLike)):
            return str(super().__repr__(N_CHAR_MAX))
        shown = copy(self)
        shown.model = _Named(getattr(self.model, "name", type(self.model).__name__))
        return str(super(OnBackbone, shown).__repr__(N_CHAR_MAX))

    def __sklearn_clone__(self) -> Any:
        # A loaded backbone never changes: folds share it, where scikit-learn would copy its weights for each.
        blank = copy(self)
        blank.model = "compact"
        twin = super(OnBackbone, blank).__sklearn_clone__()
        twin.model = self.model
        return twin


class _Named:
    """A loaded backbone as an estimator shows it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<backbone {self.name}>"


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


class _Chosen(Protocol):
    """The form of a head and how it was found."""

    @property
    def kind(self) -> str: ...
    @property
    def setting(self) -> dict[str, Any]: ...
    @property
    def candidates(self) -> list[dict[str, Any]]: ...
    @property
    def temperature(self) -> float: ...


def read_proteins(X: Proteins) -> list[SequenceRecord]:
    """Take proteins as scikit-learn hands them over.

    Parameters
    ----------
    X : sequence of str or SequenceRecord, array (N,) or (N, 1), or pandas Series
        N proteins. Bare sequences are named by the text of a Series' index, else ``seq1``, ``seq2``, ... by
        their place.

    Returns
    -------
    list of SequenceRecord
        N records.

    Raises
    ------
    UsageError
        ``X`` is one string, or a table of several columns.
    InputError
        ``X`` is empty, or something in it is no sequence.
    """
    if isinstance(X, (str, bytes)):
        raise UsageError(
            "X is one string; give a list of sequences, or read a file with read_sequences first"
        )
    shape: tuple[int, ...] = getattr(X, "shape", (0,))
    if shape[1:] not in ((), (1,)) or not isinstance(X, Iterable):
        raise UsageError(
            f"X is a {type(X).__name__} of shape {shape} and no list of sequences; give one for each protein"
        )
    index = getattr(X, "index", None)
    names = list(index) if isinstance(index, Iterable) else None  # a list has a method of this name
    values = np.asarray(X).ravel().tolist() if shape[1:] else list(X)
    if not values:
        raise InputError("X holds 0 samples; give at least one protein")
    found = []
    for place, value in enumerate(values):
        if isinstance(value, SequenceRecord):
            found.append(value)
        elif isinstance(value, str):
            name = names[place] if names is not None else None
            found.append(SequenceRecord(name if isinstance(name, str) else f"seq{place + 1}", str(value)))
        else:
            raise SequenceError(
                f"protein {place + 1} of {len(values)} is {value!r:.50} ({type(value).__name__}) and no "
                "sequence; drop it or give its residues as text"
            )
    return found


def embed_proteins(
    estimator: _Reading,
    records: Sequence[SequenceRecord],
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
    records : sequence of SequenceRecord
        N proteins, from `read_proteins`.
    pool, first, per_residue
        As in `bioxfer.embedding.embed`.

    Raises
    ------
    InputError
        A protein has no vector, which scikit-learn could not carry.
    """
    from bioxfer.embedding import embed

    embedded = embed(
        list(records),
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
    records: Sequence[SequenceRecord],
    y: Sequence[object],
    embedded: Embeddings,
    fitted: _Chosen,
    *,
    first: int | None = None,
    label_type: str = "str",
    limits: Sequence[str] = (),
) -> dict[str, Any]:
    """Say what is known of a head that was fitted without a held-out part: no metrics."""
    digest = hashlib.sha256()
    for text in (*texts_of(records), *map(str, y)):
        data = text.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return {
        "name": estimator.name,
        "task": task,
        "label_type": label_type,
        "intended_use": "not stated",
        "limits": ["Fitted without held-out proteins: nothing is known of how good it is.", *limits],
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
        "seed": getattr(estimator, "seed", 0),
    }


def check_groups(groups: npt.ArrayLike | None, count: int) -> None:
    """Refuse homology clusters that are not one for each of so many proteins.

    Raises
    ------
    UsageError
        With both numbers.
    """
    shape = (count,) if groups is None else np.shape(groups)
    if shape != (count,):
        given = f"{shape[0]} groups" if len(shape) == 1 else f"groups of shape {shape}"
        raise UsageError(f"{given} do not fit {count} proteins; give one cluster each")


def texts_of(records: Sequence[SequenceRecord]) -> list[str]:
    """Return the N sequences as text."""
    return [record.sequence for record in records]


def cleaned_texts_of(records: Sequence[SequenceRecord]) -> list[str]:
    """Return the N sequences as a backbone reads them."""
    return [clean_protein(SequenceRecord("", record.sequence)).residues for record in records]


def label_proteins(records: Sequence[SequenceRecord], y: Sequence[str]) -> list[SequenceRecord]:
    """Put labels to proteins.

    Raises
    ------
    UsageError
        There is not one label for each protein.
    """
    if y is None:
        raise UsageError(
            "the fit requires y to be passed, but the target y is None; give one string for each"
        )
    if isinstance(y, str) or len(y) != len(records):
        raise UsageError(f"{len(y)} labels do not fit {len(records)} proteins; give one string for each")
    return [replace(record, label=str(label)) for record, label in zip(records, y, strict=True)]
