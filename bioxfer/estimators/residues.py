"""Proteins to a class or a number for each residue, as scikit-learn estimators."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from bioxfer.clusters import cluster_sequences
from bioxfer.errors import LabelError, UsageError
from bioxfer.estimators.proteins import (
    OnBackbone,
    Proteins,
    check_groups,
    describe_fit,
    embed_proteins,
    label_proteins,
    read_proteins,
    texts_of,
)
from bioxfer.residue_fitting import check_form, fit_residues, gather_residues
from bioxfer.residue_labels import encode_labels
from bioxfer.residue_training import check_sides, cut_dev
from bioxfer.residues import ResidueHead
from bioxfer.sequences import SequenceRecord

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = ["ResidueClassifier", "ResidueRegressor"]


class _ResiduePredictor(OnBackbone):
    """What classifier and regressor share: a head for residues on a backbone, fitted from sequences."""

    _task: Literal["residue-class", "residue-regression"]
    head_: ResidueHead

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        head: Literal["auto", "linear", "conv"] = "auto",
        layer: int | None = None,
        identity: float | None = 0.3,
        name: str = "label",
        seed: int = 0,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        cache: str | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.layer = layer
        self.identity = identity
        self.name = name
        self.seed = seed
        self.precision = precision
        self.device = device
        self.threads = threads
        self.cache = cache

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _fit(self, records: list[SequenceRecord], groups: npt.ArrayLike | None) -> None:
        check_form(self.head)
        check_groups(groups, len(records))
        texts = texts_of(records)
        task, codes = encode_labels(records, self._task)
        embedded = embed_proteins(self, records, per_residue=True)
        rows = zip(embedded.ids, texts, embedded.residues or [], strict=True)
        data, _ = gather_residues(rows, codes, width=embedded.vectors.shape[1])
        if groups is None and self.identity is not None:
            groups = cluster_sequences(texts, identity=self.identity, threads=self.threads)
        every = np.arange(len(data))
        clusters = every if groups is None else np.asarray(groups)
        train, dev = cut_dev(clusters, every, seed=self.seed)
        check_sides(task, data, {"training": train, "dev": dev})
        fitted = fit_residues(data, task, head=self.head, train=train, dev=dev, seed=self.seed)
        said = fitted.task.calibrate_width(
            fitted.run(data, dev), data.targets_of(dev), np.repeat(clusters[dev], data.lengths[dev])
        )
        tensors, index = fitted.refit(data, every, seed=self.seed)
        self.head_ = ResidueHead(
            name=self.name,
            task=said,
            kind=fitted.kind,
            layer=embedded.layer,
            backbone=embedded.model,
            fingerprint=embedded.fingerprint,
            tensors=tensors,
            temperature=fitted.temperature,
            index=index,
            card=describe_fit(
                self, task.name, records, [record.label for record in records], embedded, fitted
            ),
        )
        self.n_features_in_ = self.head_.n_features

    def _matrices(self, X: Proteins) -> list[npt.NDArray[np.float32]]:
        """Return the residues ``(L, D)`` of each protein."""
        check_is_fitted(self, "head_")
        embedded = embed_proteins(self, read_proteins(X), per_residue=True)
        given, fitted = (embedded.fingerprint, embedded.layer), (self.head_.fingerprint, self.head_.layer)
        if given != fitted:
            raise UsageError(
                f"model {embedded.model} ({embedded.fingerprint}), layer {embedded.layer} is not "
                f"{self.head_.backbone} ({self.head_.fingerprint}), layer {self.head_.layer}, which this "
                "estimator was fitted on; set it back or fit again"
            )
        return [each for each in embedded.residues or [] if each is not None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted head to a safetensors file that ``bioxfer predict --head`` reads.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        check_is_fitted(self, "head_")
        self.head_.save(path)

    def _take(self, head: ResidueHead) -> None:
        if head.task.name != self._task:
            raise UsageError(
                f"head {head.name!r} is a {head.task.name} head, not a {self._task} head; load it as one"
            )
        self.set_params(head=head.kind, layer=head.layer, name=head.name)
        self.head_, self.n_features_in_ = head, head.n_features


class ResidueClassifier(_ResiduePredictor):
    """Label every residue of proteins from their sequences.

    Parameters
    ----------
    model : str or Backbone
        Backbone, as in `bioxfer.embedding.embed`.
    head : {"auto", "linear", "conv"}
        Form of the head; ``auto`` takes the one with the least loss on proteins set apart.
    layer : int, optional
        Layer to read; the last if not given.
    identity : float, optional
        `fit` sets whole homology clusters apart at this identity; None takes every protein for unrelated to
        the others.
    name : str
        Name of the head when saved.
    seed : int
        Of the choice of those proteins, weights and order.
    precision, device, threads, cache
        As in `bioxfer.embedding.embed`.

    Attributes
    ----------
    classes_ : ndarray (C,)
        Class characters, sorted.
    head_ : ResidueHead
        The fitted head.

    Examples
    --------
    >>> from bioxfer import ResidueClassifier
    >>> proteins = ["MKTAYIAKQRQI", "MKKTAIAIAVAL", "GGSWWPPEEDGG", "PPGSWWEEDDGS"]
    >>> labels = ["".join("oi"[letter in "AILMVWY"] for letter in protein) for protein in proteins]
    >>> classifier = ResidueClassifier(identity=None, head="linear").fit(proteins, labels)
    >>> [len(label) for label in classifier.predict(proteins)]
    [12, 12, 12, 12]
    """

    _task = "residue-class"

    def fit(self, X: Proteins, y: Sequence[str], groups: npt.ArrayLike | None = None) -> ResidueClassifier:
        """Embed the sequences and fit the head.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.
        y : sequence of str
            N labels, each as long as its protein; ``?``, ``-`` and ``_`` are unresolved residues.
        groups : array-like (N,), optional
            Homology clusters; computed at ``identity`` if not given.

        Raises
        ------
        InputError, LabelError, UsageError
            As in `SequenceEmbedder.transform`, `bioxfer.residue_labels.encode_labels` and
            `bioxfer.residue_training.check_sides`, for the proteins that are learnt from and those set apart.
        """
        self._fit(label_proteins(read_proteins(X), y), groups)
        self.classes_ = np.array(self.head_.classes)
        return self

    def predict_proba(self, X: Proteins) -> list[npt.NDArray[np.float64]]:
        """Return calibrated probabilities ``(L, C)`` of each protein, columns as ``classes_``."""
        return [self.head_.predict_proba(each) for each in self._matrices(X)]

    def predict(self, X: Proteins) -> list[str]:
        """Return one label for each protein, as long as the protein."""
        return ["".join(self.classes_[chances.argmax(axis=1)]) for chances in self.predict_proba(X)]

    def score(self, X: Proteins, y: Sequence[str]) -> float:
        """Return the share of resolved residues whose label is predicted."""
        chances = self.predict_proba(X)
        _, codes = encode_labels(label_proteins(read_proteins(X), y), self.head_.task)
        said, true = np.concatenate([c.argmax(axis=1) for c in chances]), np.concatenate(codes)
        if not (true >= 0).any():
            raise LabelError("no residue has a resolved label; there is nothing to score")
        return float((said == true)[true >= 0].mean())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> ResidueClassifier:
        """Read a saved head; ``model`` is needed where its backbone has no name of its own.

        Raises
        ------
        HeadFileError, InputError
            As in `ResidueHead.load`.
        UsageError
            The head predicts numbers, not classes.
        """
        head = ResidueHead.load(path)
        self = cls(model or head.backbone)
        self._take(head)
        self.classes_ = np.array(head.classes)
        return self


class ResidueRegressor(_ResiduePredictor):
    """Predict a number for every residue of proteins from their sequences.

    Parameters and attributes as in `ResidueClassifier`, without ``classes_``.

    Examples
    --------
    >>> from bioxfer import ResidueRegressor
    >>> proteins = ["MKTAYIAKQRQI", "MKKTAIAIAVAL", "GGSWWPPEEDGG", "PPGSWWEEDDGS"]
    >>> numbers = [[1.5 if letter in "AILMVWY" else -0.5 for letter in protein] for protein in proteins]
    >>> regressor = ResidueRegressor(identity=None, head="linear").fit(proteins, numbers)
    >>> [len(each) for each in regressor.predict(proteins)]
    [12, 12, 12, 12]
    """

    _task = "residue-regression"

    def fit(
        self,
        X: Proteins,
        y: Sequence[str] | Sequence[npt.ArrayLike],
        groups: npt.ArrayLike | None = None,
    ) -> ResidueRegressor:
        """Embed the sequences and fit the head.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.
        y : sequence of array-like or str
            N lists of numbers, one for each residue, NaN where it is unresolved; or the same as text with
            white space between.
        groups : array-like (N,), optional
            Homology clusters; computed at ``identity`` if not given.

        Raises
        ------
        InputError, LabelError, UsageError
            As in `ResidueClassifier.fit`.
        """
        self._fit(label_proteins(read_proteins(X), _as_texts(y)), groups)
        return self

    def predict(self, X: Proteins) -> list[npt.NDArray[np.float64]]:
        """Return the numbers ``(L,)`` of each protein, in the unit of the labels."""
        return [self.head_.values(each) for each in self._matrices(X)]

    def score(self, X: Proteins, y: Sequence[str] | Sequence[npt.ArrayLike]) -> float:
        """Return the coefficient of determination over all resolved residues."""
        from sklearn.metrics import r2_score

        said = np.concatenate(self.predict(X))
        _, targets = encode_labels(label_proteins(read_proteins(X), _as_texts(y)), self._task)
        true = np.concatenate(targets)
        known = np.isfinite(true)
        return float(r2_score(true[known], said[known]))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> ResidueRegressor:
        """Read a saved head, as `ResidueClassifier.load`."""
        head = ResidueHead.load(path)
        self = cls(model or head.backbone)
        self._take(head)
        return self


def _as_texts(y: Sequence[str] | Sequence[npt.ArrayLike]) -> Sequence[str]:
    """Write lists of numbers as labels, so that no digit is lost."""
    if y is None or isinstance(y, str):
        return y
    return [
        label if isinstance(label, str) else " ".join(map(str, np.asarray(label, dtype=np.float64).tolist()))
        for label in y
    ]
