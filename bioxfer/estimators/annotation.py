"""Annotation transfer: a protein gets the label of its nearest annotated relatives, and is told which.

By embedding this is what Littmann et al. (Sci Rep 11, 1160, 2021) and Heinzinger et al. (NAR Genom Bioinform
4, lqac043, 2022) do, which finds relatives too distant for an alignment; by alignment it is the homology
search that every annotation began with, and the baseline to hold any other against.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bioxfer.errors import UsageError
from bioxfer.estimators.predictors import check_space
from bioxfer.estimators.proteins import (
    OnBackbone,
    Proteins,
    cleaned_texts_of,
    describe_fit,
    embed_proteins,
    read_proteins,
)
from bioxfer.estimators.targets import order_of, read_classes, restore_classes
from bioxfer.heads import Neighbour, TrainedHead
from bioxfer.homology import Method, choose_method, find_links, normal_form
from bioxfer.sequences import SequenceRecord
from bioxfer.solvers import build_index
from bioxfer.tasks import Multiclass

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = ["AnnotationTransfer"]

By: TypeAlias = Literal["embedding", "alignment"]
Weights: TypeAlias = Literal["similarity", "uniform"]

_SHARPNESS = 10.0  # a neighbour whose cosine is 0.1 less weighs 1/e as much
_BITS = 2.0  # about what a residue aligned with itself scores under BLOSUM62


class AnnotationTransfer(ClassifierMixin, OnBackbone):  # type: ignore[misc]
    """Give a protein the label of the annotated proteins that it resembles most.

    Nothing is learnt, so nothing is chosen or calibrated; ``SequenceClassifier(head="nearest")`` votes in the
    same way, with the number of neighbours and the temperature chosen on held-out homology clusters.

    Parameters
    ----------
    model : str or Backbone
        Backbone, as in `bioxfer.embedding.embed`; not used by alignment.
    by : {"embedding", "alignment"}
        What makes proteins alike: the cosine of their vectors, standardised and projected on their principal
        components, or a significant local alignment (E-value at most 1e-3).
    neighbours : int
        Proteins that vote. Nearest annotation transfer proper has 1.
    weights : {"similarity", "uniform"}
        Whether a nearer one's vote weighs more: by the exponential of ten times the cosine, or by the bit
        score of its alignment.
    method : {"auto", "mmseqs", "kmer"}
        Search of the alignments, as in `bioxfer.homology.find_links`.
    layer, pool, first
        As in `bioxfer.estimators.SequenceClassifier`; not used by alignment.
    name : str
        Name of the head when saved.
    precision, device, threads, cache
        As in `bioxfer.embedding.embed`; by alignment ``threads`` are MMseqs2's.

    Attributes
    ----------
    classes_ : ndarray (C,)
        Class labels, sorted, of the type given to `fit`.
    head_ : TrainedHead
        By embedding: a head of the kind ``nearest``.
    sequences_ : list of str
        By alignment: the annotated proteins.
    ids_ : tuple of str
        Their names.

    Examples
    --------
    >>> from bioxfer import AnnotationTransfer
    >>> proteins = ["MKTAYIAKQRQI", "MKKTAIAIAVAL", "GGSWWPPEEDGG", "PPGSWWEEDDGS"]
    >>> transfer = AnnotationTransfer().fit(proteins, ["a", "a", "b", "b"])
    >>> transfer.nearest(["GGSWWPPEEDGG"])[0].id
    'seq3'
    """

    def __init__(
        self,
        model: str | Backbone = "compact",
        *,
        by: By = "embedding",
        neighbours: int = 1,
        weights: Weights = "similarity",
        method: Method = "auto",
        layer: int | None = None,
        pool: str = "mean",
        first: int | None = None,
        name: str = "label",
        precision: str = "fp32",
        device: str = "cpu",
        threads: int | None = None,
        cache: str | None = None,
    ) -> None:
        self.model = model
        self.by = by
        self.neighbours = neighbours
        self.weights = weights
        self.method = method
        self.layer = layer
        self.pool = pool
        self.first = first
        self.name = name
        self.precision = precision
        self.device = device
        self.threads = threads
        self.cache = cache

    def fit(self, X: Proteins, y: npt.ArrayLike) -> AnnotationTransfer:
        """Keep the annotated proteins.

        Parameters
        ----------
        X : sequence of str or SequenceRecord
            N proteins.
        y : array-like (N,)
            Class labels.

        Raises
        ------
        InputError, LabelError, UsageError
            As in `bioxfer.estimators.SequenceClassifier.fit`, and where an option is out of range.
        """
        self._check_options()
        records = read_proteins(X)
        labels = read_classes(y, records, reader=type(self).__name__)
        self.task_ = Multiclass.from_labels(labels.texts)
        self.targets_ = self.task_.encode(labels.texts)
        self.classes_, self.order_ = labels.classes, order_of(labels.classes, self.task_.classes)
        self.ids_ = tuple(record.id for record in records)
        for kept in ("head_", "sequences_", "n_features_in_"):  # of a fit the other way
            if hasattr(self, kept):
                delattr(self, kept)
        if self.by == "alignment":
            self.sequences_ = [normal_form(text) for text in cleaned_texts_of(records)]
            return self
        embedded = embed_proteins(self, records, pool=self.pool, first=self.first)
        setting = {
            "neighbours": self.neighbours,
            "sharpness": _SHARPNESS if self.weights == "similarity" else 0.0,
        }
        self.head_ = TrainedHead(
            name=self.name,
            task=self.task_,
            kind="nearest",
            pool=embedded.pool,
            layer=embedded.layer,
            backbone=embedded.model,
            fingerprint=embedded.fingerprint,
            tensors={
                "neighbours": np.array(setting["neighbours"], dtype=np.int32),
                "sharpness": np.array(setting["sharpness"], dtype=np.float32),
            },
            temperature=1.0,
            index=build_index(embedded.vectors, self.targets_, embedded.ids),
            card=describe_fit(
                self,
                self.task_.name,
                records,
                labels.texts,
                embedded,
                _Given("nearest", setting, [], 1.0),
                first=self.first,
                label_type=labels.kind,
                limits=["Scores are shares of votes; they are not calibrated."],
            ),
            first=self.first,
        )
        self.n_features_in_ = embedded.vectors.shape[1]
        return self

    def predict_proba(self, X: Proteins) -> npt.NDArray[np.float64]:
        """Return the share of the votes ``(N, C)`` of each class, columns in the order of ``classes_``.

        Every class has a hundredth of a vote for nothing, so the share of a single neighbour falls with its
        similarity. A protein to which no annotated one can be aligned gets the classes' frequencies.
        """
        check_is_fitted(self, "task_")
        records = read_proteins(X)
        if self.by == "embedding":
            return np.asarray(self._head().predict_proba(self._vectors(records))[:, self.order_])
        counts = np.bincount(self.targets_, minlength=self.task_.n_outputs)
        shares = np.tile(counts / counts.sum(), (len(records), 1))
        for row, found in enumerate(self._aligned(records)):
            if found:
                places = np.array([[hit.place for hit in found]])
                best = found[0].score
                votes = [1.0 if self.weights == "uniform" else hit.score / best for hit in found]
                outputs = self.task_.neighbour_outputs(self.targets_[places], np.array([votes]))
                shares[row] = self.task_.probabilities(outputs)[0]
        return np.asarray(shares[:, self.order_])

    def predict(self, X: Proteins) -> npt.NDArray[Any]:
        """Return the class ``(N,)`` with most votes; the most frequent one where nothing can be aligned."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    def nearest(self, X: Proteins) -> list[Neighbour]:
        """Return id, label and similarity of the annotated protein that each of N resembles most.

        Similarity is a cosine, or the share of identical residues in an alignment; where nothing can be
        aligned it is NaN, and id and label are empty.
        """
        return [found[0] if found else Neighbour("", "", math.nan) for found in self.hits(X)]

    def hits(self, X: Proteins) -> list[list[Neighbour]]:
        """Return, for each of N proteins, all that vote on it, the nearest first; see `nearest`."""
        check_is_fitted(self, "task_")
        records = read_proteins(X)
        if self.by == "alignment":
            return [
                [self._neighbour(hit.place, hit.similarity) for hit in found]
                for found in self._aligned(records)
            ]
        places, cosines = self._head().index.search(self._vectors(records), k=self.neighbours)
        return [
            [self._neighbour(place, cosine) for place, cosine in zip(*row, strict=True)]
            for row in zip(places.tolist(), cosines.tolist(), strict=True)
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted head to a safetensors file that ``bioxfer predict --head`` reads.

        Raises
        ------
        OutputError
            The file cannot be written.
        UsageError
            It goes by alignment, so there is no head.
        """
        check_is_fitted(self, "task_")
        self._head().save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: str | Backbone | None = None) -> AnnotationTransfer:
        """Read a saved head; ``model`` is needed where its backbone has no name of its own.

        Raises
        ------
        HeadFileError, InputError
            As in `TrainedHead.load`.
        UsageError
            The head is of another kind.
        """
        head = TrainedHead.load(path)
        if head.kind != "nearest" or not isinstance(head.task, Multiclass):
            raise UsageError(
                f"head {head.name!r} is a {head.kind} head for {head.task.name}, not one of annotation "
                "transfer; load it with the estimator that made it"
            )
        self = cls(
            model or head.backbone,
            neighbours=int(head.tensors["neighbours"]),
            weights="similarity" if head.tensors["sharpness"] else "uniform",
            layer=head.layer,
            pool=head.pool,
            first=head.first,
            name=head.name,
        )
        self.head_, self.task_, self.n_features_in_ = head, head.task, head.n_features
        self.targets_, self.ids_ = head.index.targets, head.index.ids
        self.classes_ = restore_classes(head.labels, head.card.get("label_type"))
        self.order_ = order_of(self.classes_, head.labels)
        return self

    def _check_options(self) -> None:
        for option, value, choices in (
            ("by", self.by, get_args(By)),
            ("weights", self.weights, get_args(Weights)),
        ):
            if value not in choices:
                raise UsageError(f"{option} {value!r} is not one of {', '.join(choices)}")
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, (int, np.integer)):
            raise UsageError(f"neighbours {self.neighbours!r} is no whole number; give 1 or more")
        if self.neighbours < 1:
            raise UsageError(f"neighbours {self.neighbours} cannot vote; give 1 or more")
        if self.by == "alignment":
            choose_method(self.method)

    def _head(self) -> TrainedHead:
        if self.by == "alignment" or not hasattr(self, "head_"):
            raise UsageError("a fit by='alignment' makes no head; fit with by='embedding'")
        return self.head_

    def _vectors(self, records: Sequence[SequenceRecord]) -> npt.NDArray[np.float32]:
        embedded = embed_proteins(self, records, pool=self.pool, first=self.first)
        check_space(self._head(), embedded, first=self.first)
        return embedded.vectors

    def _neighbour(self, place: int, similarity: float) -> Neighbour:
        return Neighbour(self.ids_[place], self.task_.label(self.targets_[place]), similarity)

    def _aligned(self, records: Sequence[SequenceRecord]) -> list[list[_Hit]]:
        """Return the best alignments of each protein, at most ``neighbours``, best first."""
        if not hasattr(self, "sequences_"):
            raise UsageError("a fit by='embedding' kept no sequences; fit with by='alignment'")
        queries = [normal_form(text) for text in cleaned_texts_of(records)]
        equal: dict[str, list[int]] = {}
        for place, text in enumerate(self.sequences_):
            equal.setdefault(text, []).append(place)
        # a protein too short to be significant is still itself
        found = [
            {place: _Hit(place, 1.0, _BITS * len(text)) for place in equal.get(text, []) if text}
            for text in queries
        ]
        links = find_links(
            queries, self.sequences_, identity=0.0, coverage=0.0, method=self.method, threads=self.threads
        )
        columns = (links.query, links.reference, links.identity, links.score)
        for query, place, identity, score in zip(*(column.tolist() for column in columns), strict=True):
            same = found[query].get(place)
            found[query][place] = _Hit(place, identity, score) if same is None else same.at_least(score)
        return [
            sorted(hits.values(), key=lambda hit: (-hit.score, hit.place))[: self.neighbours]
            for hits in found
        ]


class _Hit(NamedTuple):
    """An alignment with an annotated protein."""

    place: int
    similarity: float  # share of identical residues
    score: float  # bits

    def at_least(self, score: float) -> _Hit:
        return self._replace(score=max(self.score, score))


class _Given(NamedTuple):
    """The form of a head that nobody had to choose."""

    kind: str
    setting: dict[str, Any]
    candidates: list[dict[str, Any]]
    temperature: float
