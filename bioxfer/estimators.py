"""scikit-learn's face of bioxfer: sequences in, vectors or predictions out.

The estimators keep scikit-learn's rules, so ``clone``, ``Pipeline``, ``GridSearchCV`` and ``cross_val_score``
work on them; ``X`` is a list of sequences or of `SequenceRecord`. Pass `bioxfer.clusters.HomologyKFold` as
``cv``: a random split puts relatives on both sides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from bioxfer.clusters import cluster_sequences
from bioxfer.errors import InputError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import Regression
from bioxfer.transfer import Fitted, HeadChoice, fit

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone
    from bioxfer.embedding import Embeddings

__all__ = ["SequenceClassifier", "SequenceEmbedder", "SequenceRegressor"]

Proteins: TypeAlias = Sequence[str] | Sequence[SequenceRecord] | npt.NDArray[Any]


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
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        cache: str | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
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
        return _embed(self, X).vectors

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
        self.identity = identity
        self.folds = folds
        self.name = name
        self.seed = seed
        self.precision = precision
        self.device = device
        self.threads = threads
        self.cache = cache

    def _fit(self, X: Proteins, y: npt.ArrayLike, groups: npt.ArrayLike | None) -> None:
        embedded = _embed(self, X)
        if groups is None and self.identity is not None:
            groups = cluster_sequences(_texts(X), identity=self.identity, threads=self.threads)
        fitted = fit(
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
            card=self._card(X, y, embedded, fitted),
        )
        self.n_features_in_ = embedded.vectors.shape[1]

    def _card(self, X: Proteins, y: npt.ArrayLike, embedded: Embeddings, fitted: Fitted) -> dict[str, Any]:
        """Say what is known of a head that was fitted without a held-out part: no metrics."""
        digest = hashlib.sha256()
        for text in (*_texts(X), *map(str, np.asarray(y).tolist())):
            data = text.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
        return {
            "name": self.name,
            "task": fitted.task.name,
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
            },
            "metrics": {},
            "baselines": {},
            "calibration": {"temperature": fitted.temperature, "ece_before": None, "ece_after": None},
            "intervals": "none, as nothing was held out",
            "seed": self.seed,
        }

    def _features(self, X: Proteins) -> npt.NDArray[np.float32]:
        check_is_fitted(self, "head_")
        embedded = _embed(self, X)
        given = (embedded.fingerprint, embedded.layer, embedded.pool)
        fitted = (self.head_.fingerprint, self.head_.layer, self.head_.pool)
        if given != fitted:
            raise UsageError(
                f"model {embedded.model} ({embedded.fingerprint}), layer {embedded.layer}, {embedded.pool} "
                f"is not {self.head_.backbone} ({self.head_.fingerprint}), layer {self.head_.layer}, "
                f"{self.head_.pool}, which this estimator was fitted on; set it back or fit again"
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
    head : {"linear", "mlp", "nearest", "auto"}
        Form of the head.
    layer : int, optional
        Layer to read; the last if not given.
    pool : str
        How residues are pooled, such as ``"mean"`` or ``"mean+max"``.
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
            As in `SequenceEmbedder.transform` and `bioxfer.transfer.fit`.
        """
        self._fit(X, y, groups)
        # The head has its classes in the order of their texts, scikit-learn wants that of their values.
        by_text = {str(label): label for label in np.unique(np.asarray(y)).tolist()}
        classes = np.array([by_text[label] for label in self.head_.labels])
        self.order_ = np.argsort(classes)
        self.classes_ = classes[self.order_]
        return self

    def predict_proba(self, X: Proteins) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(N, C)``, columns in the order of ``classes_``."""
        features = self._features(X)  # says so if there was no fit
        return np.asarray(self.head_.predict_proba(features)[:, self.order_])

    def predict(self, X: Proteins) -> npt.NDArray[Any]:
        """Return the likeliest class ``(N,)`` of each protein."""
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
        self = cls(model or head.backbone, head=head.kind, layer=head.layer, pool=head.pool, name=head.name)
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
        self = cls(model or head.backbone, head=head.kind, layer=head.layer, pool=head.pool, name=head.name)
        self.head_, self.n_features_in_ = head, head.n_features
        return self


def _embed(estimator: SequenceEmbedder | _SequencePredictor, X: Proteins) -> Embeddings:
    """Embed every protein, or name the first that cannot be."""
    from bioxfer.embedding import embed

    if isinstance(X, str):
        raise UsageError(
            "X is one string; give a list of sequences, or read a file with read_sequences first"
        )
    embedded = embed(
        list(X),
        model=estimator.model,
        layer=estimator.layer,
        pool=estimator.pool,
        precision=estimator.precision,
        device=estimator.device,
        threads=estimator.threads,
        cache=estimator.cache,
    )
    missing = np.flatnonzero(~np.isfinite(embedded.vectors).all(axis=1))
    if len(missing):
        first = int(missing[0])
        reason = embedded.messages[first] or embedded.statuses[first]
        raise InputError(
            f"{len(missing)} of {len(embedded.ids)} proteins have no vector, first {embedded.ids[first]!r} "
            f"({reason}); drop them before scikit-learn sees them"
        )
    return embedded


def _texts(X: Proteins) -> list[str]:
    return [x.sequence if isinstance(x, SequenceRecord) else str(x) for x in X]


def _check_task(head: TrainedHead, task: str) -> None:
    if head.task.name != task:
        raise UsageError(f"head {head.name!r} is a {head.task.name} head, not a {task} head; load it as one")
