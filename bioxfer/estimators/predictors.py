"""Proteins to classes or numbers, as scikit-learn's classifier and regressor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from bioxfer.clusters import cluster_sequences
from bioxfer.conformal import ConformalScores
from bioxfer.errors import UsageError
from bioxfer.estimators.attending import ATTENTION, fit_attentive
from bioxfer.estimators.proteins import (
    OnBackbone,
    Proteins,
    check_groups,
    cleaned_texts_of,
    describe_fit,
    embed_proteins,
    read_proteins,
    texts_of,
)
from bioxfer.estimators.targets import (
    is_matrix,
    order_of,
    read_classes,
    read_label_sets,
    read_numbers,
    restore_classes,
)
from bioxfer.head_training import HeadChoice, fit_head
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import Multilabel, Regression, split_label

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone
    from bioxfer.embedding import Embeddings

__all__ = ["SequenceClassifier", "SequenceRegressor", "check_space"]


HeadForm: TypeAlias = HeadChoice | Literal["light-attention"]


class _SequencePredictor(OnBackbone):
    """What classifier and regressor share: a head on a backbone, fitted from sequences."""

    head_: TrainedHead

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        head: HeadForm = "linear",
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

    def _fit(
        self,
        records: list[SequenceRecord],
        labels: list[str],
        groups: npt.ArrayLike | None,
        *,
        task: str,
        label_type: str,
    ) -> None:
        check_groups(groups, len(records))
        attentive = self.head == ATTENTION
        embedded = embed_proteins(self, records, pool=self.pool, first=self.first, per_residue=attentive)
        if groups is None and self.identity is not None:
            groups = cluster_sequences(texts_of(records), identity=self.identity, threads=self.threads)
        attended = None
        if attentive:
            fitted, attended = fit_attentive(embedded, labels, groups, task=task, seed=self.seed)
        else:
            fitted = fit_head(
                embedded.vectors,
                labels,
                ids=embedded.ids,
                groups=groups,
                head=cast(HeadChoice, self.head),
                task=task,
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
                self,
                fitted.task.name,
                records,
                labels,
                embedded,
                fitted,
                first=self.first,
                label_type=label_type,
            ),
            first=self.first,
            conformal=ConformalScores.fit(
                fitted.task.nonconformity(fitted.out_of_fold, fitted.targets, temperature=fitted.temperature)
            ),
        )
        if attended is not None:
            split = dict(self.head_.card["split"])
            attended.complete(self.head_, labels, embedded.ids, refit=True, seed=self.seed)
            self.head_.card["split"] = split | {"dev_how": attended.dev_how}
            self.head_.card["head"]["weights_fitted_on"] = "all proteins"
        self.n_features_in_ = embedded.vectors.shape[1]

    def _features(self, records: list[SequenceRecord]) -> npt.NDArray[np.float32]:
        attentive = self.head_.attention is not None
        embedded = embed_proteins(self, records, pool=self.pool, first=self.first, per_residue=attentive)
        check_space(self.head_, embedded, first=self.first)
        if not attentive:
            return embedded.vectors
        residues = embedded.residues or []
        return np.stack([self.head_.join(v, m) for v, m in zip(embedded.vectors, residues, strict=True)])

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
    head : {"linear", "mlp", "nearest", "blend", "auto", "light-attention"}
        Form of the head. Light attention reads residues, which `fit` then keeps in memory.
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
        Folds of that choice; light attention has one part set apart instead.
    name : str
        Name of the head when saved.
    seed : int
        Seed of folds and weights.
    precision, device, threads, cache
        As in `bioxfer.embedding.embed`.

    task : {"multiclass", "multilabel"}
        One class for each protein, or any number of labels, at least one. A ``y`` of several columns is
        always the latter.

    Attributes
    ----------
    classes_ : ndarray (C,)
        Class labels, sorted, of the type given to `fit`; of a matrix the names or places of its columns.
    order_ : ndarray (C,)
        Place of each class among the head's own; -1 for a column in which nobody had a 1.
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

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        head: HeadForm = "linear",
        layer: int | None = None,
        pool: str = "mean",
        first: int | None = None,
        task: Literal["multiclass", "multilabel"] = "multiclass",
        identity: float | None = 0.3,
        folds: int = 5,
        name: str = "label",
        seed: int = 0,
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(
            model,
            head=head,
            layer=layer,
            pool=pool,
            first=first,
            identity=identity,
            folds=folds,
            name=name,
            seed=seed,
            precision=precision,
            device=device,
            threads=threads,
            cache=cache,
        )
        self.task = task

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Proteins, y: Any, groups: npt.ArrayLike | None = None) -> SequenceClassifier:
        """Embed the sequences and fit the head.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.
        y : array-like (N,) or (N, C)
            Class labels. Sets of labels: a matrix of 0 and 1, or, with ``task="multilabel"``, texts that join
            labels by ``;`` or lists of labels.
        groups : array-like (N,), optional
            Homology clusters; computed at ``identity`` if not given.

        Raises
        ------
        InputError, LabelError, UsageError
            As in `SequenceEmbedder.transform` and `bioxfer.head_training.fit_head`; also labels that are
            missing, or that do not fit the proteins.
        """
        if self.task not in ("multiclass", "multilabel"):
            raise UsageError(f"task {self.task!r} is not one of multiclass, multilabel")
        records = read_proteins(X)
        several = self.task == "multilabel" or is_matrix(y)
        labels = (read_label_sets if several else read_classes)(y, records, reader=type(self).__name__)
        self._fit(
            records,
            labels.texts,
            groups,
            task="multilabel" if several else "multiclass",
            label_type=labels.kind,
        )
        if several:
            self.head_.card["columns"] = [str(name) for name in labels.classes.tolist()]
        # The head has its classes in the order of their texts, scikit-learn wants that of their values.
        self.classes_, self.order_ = labels.classes, order_of(labels.classes, self.head_.labels)
        return self

    def predict_proba(self, X: Proteins) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(N, C)``, columns in the order of ``classes_``.

        Those of sets of labels are apart and do not sum to 1. Those of a loaded head that abstains are the
        same as those of one that does not.
        """
        outputs = self._outputs(X)  # says so if there was no fit
        head = self.head_
        return self._in_order(head.task.probabilities(outputs, temperature=head.temperature))

    def predict(self, X: Proteins) -> npt.NDArray[Any]:
        """Return the likeliest class ``(N,)`` of each protein, or a matrix ``(N, C)`` of 0 and 1.

        A loaded head that abstains never says ``unknown`` here, which is none of ``classes_``; ask
        ``head_.refused``, or `bioxfer.prediction.predict`.
        """
        check_is_fitted(self, "head_")
        task = self.head_.task
        if isinstance(task, Multilabel):
            said = task.said(task.predict(self._outputs(X)))
            return self._in_order(said.astype(np.int64))
        likeliest = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    def score(self, X: Proteins, y: Any, sample_weight: npt.ArrayLike | None = None) -> float:
        """Return the accuracy: the share of proteins whose class, or whole set of labels, is predicted."""
        check_is_fitted(self, "head_")
        if isinstance(self.head_.task, Multilabel) and not is_matrix(y):
            records = read_proteins(X)
            cells = read_label_sets(y, records, reader=type(self).__name__, least=1).texts
            said = self.predict(X).astype(bool)
            right = np.array(
                [
                    set(self.classes_[row].tolist()) == set(split_label(cell))
                    for row, cell in zip(said, cells, strict=True)
                ]
            )
            return float(
                np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight))
            )
        return float(super().score(X, y, sample_weight=sample_weight))

    def _outputs(self, X: Proteins) -> npt.NDArray[np.float32]:
        check_is_fitted(self, "head_")
        records = read_proteins(X)
        features = self._features(records)
        return self.head_.logits(features, None if self.head_.families is None else cleaned_texts_of(records))

    def _in_order(self, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put a head's columns in the order of ``classes_``, with zeros for those that it does not know."""
        found = np.zeros((len(table), len(self.order_)), dtype=table.dtype)
        found[:, self.order_ >= 0] = table[:, self.order_[self.order_ >= 0]]
        return found

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
        _check_task(head, "multiclass", "multilabel")
        self = cls(
            model or head.backbone,
            head=ATTENTION if head.attention is not None else head.kind,
            layer=head.layer,
            pool=head.pool,
            first=head.first,
            task="multilabel" if isinstance(head.task, Multilabel) else "multiclass",
            name=head.name,
        )
        self.head_, self.n_features_in_ = head, _width(head)
        self.classes_ = restore_classes(head.card.get("columns", head.labels), head.card.get("label_type"))
        self.order_ = order_of(self.classes_, head.labels)
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

    def fit(self, X: Proteins, y: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> SequenceRegressor:
        """Embed the sequences and fit the head; parameters as in `SequenceClassifier.fit`."""
        records = read_proteins(X)
        numbers = read_numbers(y, records, reader=type(self).__name__)
        self._fit(records, numbers, groups, task="regression", label_type="float")
        return self

    def predict(self, X: Proteins) -> npt.NDArray[np.float64]:
        """Return a number ``(N,)`` for each protein, in the unit of the labels."""
        check_is_fitted(self, "head_")
        outputs = self.head_.logits(self._features(read_proteins(X)))
        return cast(Regression, self.head_.task).values(outputs)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> SequenceRegressor:
        """Read a saved head, as `SequenceClassifier.load`."""
        head = TrainedHead.load(path)
        _check_task(head, "regression")
        self = cls(
            model or head.backbone,
            head=ATTENTION if head.attention is not None else head.kind,
            layer=head.layer,
            pool=head.pool,
            first=head.first,
            name=head.name,
        )
        self.head_, self.n_features_in_ = head, _width(head)
        return self


def _check_task(head: TrainedHead, *tasks: str) -> None:
    if head.task.name not in tasks:
        raise UsageError(
            f"head {head.name!r} is a {head.task.name} head, not a {' or '.join(tasks)} head; load it as one"
        )


def check_space(head: TrainedHead, embedded: Embeddings, *, first: int | None) -> None:
    """Refuse vectors of another backbone, layer, pooling or part of the protein than the head's.

    Raises
    ------
    UsageError
        With both sides named.
    """
    given = (embedded.fingerprint, embedded.layer, embedded.pool, first)
    fitted = (head.fingerprint, head.layer, head.pool, head.first)
    if given != fitted:
        raise UsageError(
            f"model {_tell(embedded.model, *given)} is not {_tell(head.backbone, *fitted)}, which this "
            "estimator was fitted on; set it back or fit again"
        )


def _tell(model: str, fingerprint: str, layer: int, pool: str, first: int | None) -> str:
    part = "" if first is None else f", first {first} residues"
    return f"{model} ({fingerprint}), layer {layer}, {pool}{part}"


def _width(head: TrainedHead) -> int:
    """Return the width of a pooled vector, behind which light attention puts its own."""
    return head.n_features - (0 if head.attention is None else head.attention.n_features)
