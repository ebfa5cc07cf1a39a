"""scikit-learn's face of bioxfer: sequences in, vectors or predictions out.

The estimators keep scikit-learn's rules, so ``clone``, ``Pipeline``, ``GridSearchCV`` and ``cross_val_score``
work on them; ``X`` is a list of sequences or of `SequenceRecord`. Pass `bioxfer.clusters.HomologyKFold` as
``cv``: a random split puts relatives on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from bioxfer.clusters import cluster_sequences
from bioxfer.errors import LabelError, UsageError
from bioxfer.estimator_data import (
    Proteins,
    cleaned_texts_of,
    describe_fit,
    embed_proteins,
    label_proteins,
    texts_of,
)
from bioxfer.head_training import HeadChoice, fit_head
from bioxfer.heads import TrainedHead
from bioxfer.residue_fitting import check_form, fit_residues, gather_residues
from bioxfer.residue_training import check_sides, cut_dev, encode_labels
from bioxfer.residues import ResidueHead
from bioxfer.tasks import Regression

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = ["ResidueClassifier", "SequenceClassifier", "SequenceEmbedder", "SequenceRegressor"]


class SequenceEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn sequences into vectors.

    Parameters
    ----------
    model : str or Backbone
        Backbone, as in `bioxfer.embedding.embed`.
    layer : int, optional
        Layer to read; the last if not given.
    pool : str
        How residues are pooled, such as ``"mean"`` or ``"mean+max"``.
    first : int, optional
        Read only that many residues of each protein, from its start.
    precision, device, threads, cache
        As in `bioxfer.embedding.embed`.

    Examples
    --------
    >>> from bioxfer import SequenceEmbedder
    >>> vectors = SequenceEmbedder(pool="mean").fit_transform(["MKTAYIAKQR", "GGSWWPPEED"])
    >>> len(vectors)
    2
    """

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        layer: int | None = None,
        pool: str = "mean",
        first: int | None = None,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        cache: str | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.first = first
        self.precision = precision
        self.device = device
        self.threads = threads
        self.cache = cache

    def fit(self, X: Proteins, y: object = None) -> SequenceEmbedder:
        """Learn nothing; the backbone is trained already."""
        return self

    def transform(self, X: Proteins) -> npt.NDArray[np.float32]:
        """Embed sequences.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.

        Returns
        -------
        ndarray (N, F)
            One vector for each protein.

        Raises
        ------
        InputError
            A protein has no vector (an empty sequence, say), which scikit-learn could not carry.
        """
        return embed_proteins(self, X, pool=self.pool, first=self.first).vectors

    def __sklearn_is_fitted__(self) -> bool:
        """Say that no fit is needed."""
        return True


class _SequencePredictor(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: a head on a backbone, fitted from sequences."""

    _task: Literal["multiclass", "regression"]
    head_: TrainedHead

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        head: HeadChoice = "linear",
        layer: int | None = None,
        pool: str = "mean",
        first: int | None = None,
        identity: float | None = 0.3,
        folds: int = 5,
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
        self.pool = pool
        self.first = first
        self.identity = identity
        self.folds = folds
        self.name = name
        self.seed = seed
        self.precision = precision
        self.device = device
        self.threads = threads
        self.cache = cache

    def _fit(self, X: Proteins, y: npt.ArrayLike, groups: npt.ArrayLike | None) -> None:
        embedded = embed_proteins(self, X, pool=self.pool, first=self.first)
        if groups is None and self.identity is not None:
            groups = cluster_sequences(texts_of(X), identity=self.identity, threads=self.threads)
        fitted = fit_head(
            embedded.vectors,
            [str(label) for label in np.asarray(y).tolist()],
            ids=embedded.ids,
            groups=groups,
            head=self.head,
            task=self._task,
            folds=self.folds,
            seed=self.seed,
        )
        self.head_ = TrainedHead(
            name=self.name,
            task=fitted.task,
            kind=fitted.kind,
            pool=embedded.pool,
            layer=embedded.layer,
            backbone=embedded.model,
            fingerprint=embedded.fingerprint,
            tensors=fitted.tensors,
            temperature=fitted.temperature,
            index=fitted.index,
            card=describe_fit(
                self, fitted.task.name, X, np.asarray(y).tolist(), embedded, fitted, first=self.first
            ),
            first=self.first,
        )
        self.n_features_in_ = embedded.vectors.shape[1]

    def _features(self, X: Proteins) -> npt.NDArray[np.float32]:
        check_is_fitted(self, "head_")
        embedded = embed_proteins(self, X, pool=self.pool, first=self.first)
        head = self.head_
        given = (embedded.fingerprint, embedded.layer, embedded.pool, self.first)
        fitted = (head.fingerprint, head.layer, head.pool, head.first)
        if given != fitted:
            raise UsageError(
                f"model {_tell(embedded.model, *given)} is not {_tell(head.backbone, *fitted)}, which this "
                "estimator was fitted on; set it back or fit again"
            )
        return embedded.vectors

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted head to a safetensors file that ``bioxfer predict --head`` reads.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        check_is_fitted(self, "head_")
        self.head_.save(path)


class SequenceClassifier(ClassifierMixin, _SequencePredictor):  # type: ignore[misc]
    """Classify proteins from their sequences.

    Parameters
    ----------
    model : str or Backbone
        Backbone, as in `bioxfer.embedding.embed`.
    head : {"linear", "mlp", "nearest", "blend", "auto"}
        Form of the head.
    layer : int, optional
        Layer to read; the last if not given.
    pool : str
        How residues are pooled, such as ``"mean"`` or ``"mean+max"``.
    first : int, optional
        Read only that many residues of each protein, from its start; relatives are found by whole proteins.
    identity : float, optional
        `fit` chooses regularisation on held-out homology clusters at this identity; None takes every
        protein for unrelated to the others.
    folds : int
        Folds of that choice.
    name : str
        Name of the head when saved.
    seed : int
        Seed of folds and weights.
    precision, device, threads, cache
        As in `bioxfer.embedding.embed`.

    Attributes
    ----------
    classes_ : ndarray (C,)
        Class labels, sorted, of the type given to `fit`.
    order_ : ndarray (C,)
        Place of each class among the head's own.
    head_ : TrainedHead
        The fitted head.

    Examples
    --------
    >>> from bioxfer import SequenceClassifier
    >>> proteins = ["MKTAYIAKQRQI", "MKKTAIAIAVAL", "GGSWWPPEEDGG", "PPGSWWEEDDGS"]
    >>> classifier = SequenceClassifier(identity=None, folds=2).fit(proteins, ["a", "a", "b", "b"])
    >>> classifier.predict_proba(proteins).shape
    (4, 2)
    """

    _task = "multiclass"

    def fit(self, X: Proteins, y: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> SequenceClassifier:
        """Embed the sequences and fit the head.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.
        y : array-like (N,)
            Class labels.
        groups : array-like (N,), optional
            Homology clusters; computed at ``identity`` if not given.

        Raises
        ------
        InputError, LabelError, UsageError
            As in `SequenceEmbedder.transform` and `bioxfer.head_training.fit_head`.
        """
        self._fit(X, y, groups)
        # The head has its classes in the order of their texts, scikit-learn wants that of their values.
        by_text = {str(label): label for label in np.unique(np.asarray(y)).tolist()}
        classes = np.array([by_text[label] for label in self.head_.labels])
        self.order_ = np.argsort(classes)
        self.classes_ = classes[self.order_]
        return self

    def predict_proba(self, X: Proteins) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(N, C)``, columns in the order of ``classes_``.

        Those of a loaded head that abstains are the same as those of one that does not.
        """
        features = self._features(X)  # says so if there was no fit
        read = None if self.head_.families is None else cleaned_texts_of(X)
        return np.asarray(self.head_.predict_proba(features, read)[:, self.order_])

    def predict(self, X: Proteins) -> npt.NDArray[Any]:
        """Return the likeliest class ``(N,)`` of each protein.

        A loaded head that abstains never says ``unknown`` here, which is none of ``classes_``; ask
        ``head_.refused``, or `bioxfer.prediction.predict`.
        """
        likeliest = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> SequenceClassifier:
        """Read a saved head; ``model`` is needed where its backbone has no name of its own.

        Raises
        ------
        HeadFileError, InputError
            As in `TrainedHead.load`.
        UsageError
            The head predicts numbers, not classes.
        """
        head = TrainedHead.load(path)
        _check_task(head, cls._task)
        self = cls(
            model or head.backbone,
            head=head.kind,
            layer=head.layer,
            pool=head.pool,
            first=head.first,
            name=head.name,
        )
        self.head_, self.n_features_in_ = head, head.n_features
        self.classes_, self.order_ = np.array(head.labels), np.arange(len(head.labels))
        return self


class SequenceRegressor(RegressorMixin, _SequencePredictor):  # type: ignore[misc]
    """Predict a number from a sequence.

    Parameters and attributes as in `SequenceClassifier`, without ``classes_``.

    Examples
    --------
    >>> from bioxfer import SequenceRegressor
    >>> proteins = ["MKTAYIAKQRQI", "MKKTAIAIAVAL", "GGSWWPPEEDGG", "PPGSWWEEDDGS"]
    >>> regressor = SequenceRegressor(identity=None, folds=2).fit(proteins, [1.0, 1.5, 3.0, 3.5])
    >>> regressor.predict(proteins).shape
    (4,)
    """

    _task = "regression"

    def fit(self, X: Proteins, y: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> SequenceRegressor:
        """Embed the sequences and fit the head; parameters as in `SequenceClassifier.fit`."""
        self._fit(X, y, groups)
        return self

    def predict(self, X: Proteins) -> npt.NDArray[np.float64]:
        """Return a number ``(N,)`` for each protein, in the unit of the labels."""
        outputs = self.head_.logits(self._features(X))
        return cast(Regression, self.head_.task).values(outputs)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> SequenceRegressor:
        """Read a saved head, as `SequenceClassifier.load`."""
        head = TrainedHead.load(path)
        _check_task(head, cls._task)
        self = cls(
            model or head.backbone,
            head=head.kind,
            layer=head.layer,
            pool=head.pool,
            first=head.first,
            name=head.name,
        )
        self.head_, self.n_features_in_ = head, head.n_features
        return self


class ResidueClassifier(BaseEstimator):  # type: ignore[misc]
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
            As in `SequenceEmbedder.transform`, `bioxfer.residue_training.encode_labels` and
            `bioxfer.residue_training.check_sides`, for the proteins that are learnt from and those set apart.
        """
        check_form(self.head)
        records = label_proteins(X, y)
        task, codes = encode_labels(records)
        embedded = embed_proteins(self, X, per_residue=True)
        rows = zip(embedded.ids, texts_of(X), embedded.residues or [], strict=True)
        data, _ = gather_residues(rows, codes, width=embedded.vectors.shape[1])
        if groups is None and self.identity is not None:
            groups = cluster_sequences(texts_of(X), identity=self.identity, threads=self.threads)
        every = np.arange(len(data))
        train, dev = cut_dev(every if groups is None else np.asarray(groups), every, seed=self.seed)
        check_sides(task, data, {"training": train, "dev": dev})
        fitted = fit_residues(data, task, head=self.head, train=train, dev=dev, seed=self.seed)
        tensors, index = fitted.refit(data, task, every, seed=self.seed)
        self.head_ = ResidueHead(
            name=self.name,
            task=task,
            kind=fitted.kind,
            layer=embedded.layer,
            backbone=embedded.model,
            fingerprint=embedded.fingerprint,
            tensors=tensors,
            temperature=fitted.temperature,
            index=index,
            card=describe_fit(self, task.name, X, y, embedded, fitted),
        )
        self.classes_ = np.array(task.classes)
        self.n_features_in_ = self.head_.n_features
        return self

    def predict_proba(self, X: Proteins) -> list[npt.NDArray[np.float64]]:
        """Return calibrated probabilities ``(L, C)`` of each protein, columns as ``classes_``."""
        check_is_fitted(self, "head_")
        embedded = embed_proteins(self, X, per_residue=True)
        given, fitted = (embedded.fingerprint, embedded.layer), (self.head_.fingerprint, self.head_.layer)
        if given != fitted:
            raise UsageError(
                f"model {embedded.model} ({embedded.fingerprint}), layer {embedded.layer} is not "
                f"{self.head_.backbone} ({self.head_.fingerprint}), layer {self.head_.layer}, which this "
                "estimator was fitted on; set it back or fit again"
            )
        return [self.head_.predict_proba(each) for each in embedded.residues or [] if each is not None]

    def predict(self, X: Proteins) -> list[str]:
        """Return one label for each protein, as long as the protein."""
        return [self.head_.task.decode(chances.argmax(axis=1)) for chances in self.predict_proba(X)]

    def score(self, X: Proteins, y: Sequence[str]) -> float:
        """Return the share of resolved residues whose label is predicted."""
        chances = self.predict_proba(X)
        _, codes = encode_labels(label_proteins(X, y), self.head_.task)
        said, true = np.concatenate([c.argmax(axis=1) for c in chances]), np.concatenate(codes)
        if not (true >= 0).any():
            raise LabelError("no residue has a resolved label; there is nothing to score")
        return float((said == true)[true >= 0].mean())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted head to a safetensors file that ``bioxfer predict --head`` reads.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        check_is_fitted(self, "head_")
        self.head_.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> ResidueClassifier:
        """Read a saved head; ``model`` is needed where its backbone has no name of its own.

        Raises
        ------
        HeadFileError, InputError
            As in `ResidueHead.load`.
        """
        head = ResidueHead.load(path)
        self = cls(model or head.backbone, head=head.kind, layer=head.layer, name=head.name)
        self.head_, self.n_features_in_ = head, head.n_features
        self.classes_ = np.array(head.classes)
        return self


def _check_task(head: TrainedHead, task: str) -> None:
    if head.task.name != task:
        raise UsageError(f"head {head.name!r} is a {head.task.name} head, not a {task} head; load it as one")


def _tell(model: str, fingerprint: str, layer: int, pool: str, first: int | None) -> str:
    part = "" if first is None else f", first {first} residues"
    return f"{model} ({fingerprint}), layer {layer}, {pool}{part}"
