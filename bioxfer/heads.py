"""Trained heads: from a protein's vector to a label, a calibrated score and its nearest training protein.

A head is small, runs on numpy alone and lives in one safetensors file with a JSON card. The file holds
numbers and text, never code; every byte of it is covered by a sha256 that is checked on loading.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.attention import AttentionPool
from bioxfer.conformal import ConformalScores
from bioxfer.errors import FingerprintError, HeadFileError, UsageError
from bioxfer.families import FamilyMemory
from bioxfer.headfile import (
    DamageError,
    Tensors,
    check_number,
    check_tensors,
    load_head_file,
    parse_parts,
    read_header,
    save_head_file,
)
from bioxfer.neighbours import Neighbour, NeighbourIndex, unit_rows
from bioxfer.pooling import parse_pool
from bioxfer.tasks import Decision, Multilabel, Task, task_from_dict

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = [
    "HeadKind",
    "Neighbour",
    "NeighbourIndex",
    "TrainedHead",
    "check_reading",
    "confidence",
    "forward",
    "run_mlp",
    "unit_rows",
]

HeadKind: TypeAlias = Literal["linear", "mlp", "nearest", "blend"]
Vectors: TypeAlias = npt.NDArray[np.float32]

_LINEAR = {"weight": ("C", "F"), "bias": ("C",)}
_MLP = {
    "weight_in": ("E", "H", "F"),
    "bias_in": ("E", "H"),
    "weight_out": ("E", "C", "H"),
    "bias_out": ("E", "C"),
}
_NEAREST: dict[str, tuple[str, ...]] = {"neighbours": (), "sharpness": ()}
_BLEND = _NEAREST | {"share": (), "network_temperature": ()}
_KINDS: dict[HeadKind, tuple[dict[str, tuple[str, ...]], ...]] = {
    "linear": (_LINEAR,),
    "mlp": (_MLP,),
    "nearest": (_NEAREST,),
    "blend": (_LINEAR | _BLEND, _MLP | _BLEND),
}
"""Names and shapes of each kind's tensors; a blend holds one network or the other."""


@dataclass(slots=True, eq=False)
class TrainedHead:
    """A head with all that is needed to use it and to judge it.

    Attributes
    ----------
    name : str
        Stem of the output's column names.
    task : Multiclass, Multilabel or Regression
        What it predicts.
    kind : {"linear", "mlp", "nearest", "blend"}
        Its form.
    pool : str
        How residues were pooled, such as ``"mean+max"``.
    layer : int
        Which layer of the backbone it reads.
    backbone, fingerprint : str
        Name and fingerprint of the backbone it was trained on.
    tensors : mapping of str to ndarray
        Its weights, for raw features: standardisation is folded in.
    temperature : float
        Divides logits before softmax.
    index : NeighbourIndex
        Its training proteins.
    card : dict
        Data, split, metrics, baselines, limits: see `bioxfer.head_training.train_head`.
    threshold : float
        `confidence` below which the head says ``unknown``; 0 answers every protein.
    first : int, optional
        The head reads that many residues of each protein, from its start; the whole protein if not given.
    families : FamilyMemory, optional
        What the words of a protein say about its label; its evidence is added to the logits.
    conformal : ConformalScores, optional
        How little true labels fitted proteins that the head was not fitted on; `predict_sets` needs them.
    attention : AttentionPool, optional
        Makes, of a protein's residues, what the head reads behind the pooled vector; see `join`.
    """

    name: str
    task: Task
    kind: HeadKind
    pool: str
    layer: int
    backbone: str
    fingerprint: str
    tensors: Tensors
    temperature: float
    index: NeighbourIndex
    card: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.0
    first: int | None = None
    families: FamilyMemory | None = None
    conformal: ConformalScores | None = None
    attention: AttentionPool | None = None

    def __repr__(self) -> str:
        part = "" if self.attention is None else " and light attention"
        part += "" if self.first is None else f", first {self.first} residues"
        return (
            f"<TrainedHead {self.name}: {self.task.name}, {self.kind} on {self.backbone} "
            f"layer {self.layer} {self.pool}{part}, {len(self.index.ids)} training proteins>"
        )

    def _repr_html_(self) -> str:
        from bioxfer.cardtables import card_to_html

        return card_to_html(self.card)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty for a regression."""
        return self.task.labels

    @property
    def n_features(self) -> int:
        """Width F of the vectors it reads."""
        return int(self.index.projection.shape[1])

    def join(self, vector: npt.NDArray[Any], residues: npt.NDArray[Any] | None = None) -> Vectors:
        """Make what the head reads of one protein: of most heads the pooled vector as it is.

        Parameters
        ----------
        vector : ndarray (D,)
            As `pool` says.
        residues : ndarray (L, D), optional
            Those that were pooled, which a head with light attention reads too.

        Returns
        -------
        ndarray (F,)

        Raises
        ------
        UsageError
            The head has light attention, and no residues were given.
        FingerprintError
            The residues have another width than those it was trained on.
        """
        if self.attention is None:
            return np.asarray(vector, dtype=np.float32)
        return self.attention.extend(vector, residues)

    def logits(self, features: npt.NDArray[Any], sequences: Sequence[str] | None = None) -> Vectors:
        """Run the head.

        Parameters
        ----------
        features : ndarray (N, F)
            Pooled vectors; rows with NaN give rows of NaN.
        sequences : sequence of str, optional
            The N proteins' residues, which a head with families reads too: of each the `first`, if it has
            such a limit.

        Returns
        -------
        ndarray (N, C)
            Outputs before temperature and softmax.

        Raises
        ------
        FingerprintError
            The vectors have another width than those it was trained on.
        UsageError
            The head has families, and no sequences were given.
        """
        outputs = forward(self.kind, self.tensors, self.index, self.task, self._checked(features))
        if self.families is None:
            return outputs
        if sequences is None or len(sequences) != len(outputs):
            raise UsageError(
                f"head {self.name!r} reads the residues of each protein beside its vector; give sequences, "
                f"{len(outputs)} of them"
            )
        read = [sequence[: self.first] for sequence in sequences]
        return np.asarray(outputs + self.families.evidence(read), dtype=np.float32)

    def predict_proba(
        self, features: npt.NDArray[Any], sequences: Sequence[str] | None = None
    ) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(N, C)``; see `logits`."""
        return self.task.probabilities(self.logits(features, sequences), temperature=self.temperature)

    def predict(self, features: npt.NDArray[Any], sequences: Sequence[str] | None = None) -> list[Decision]:
        """Return the label and score of each protein; empty and NaN for rows of NaN. See `logits`."""
        outputs = self.logits(features, sequences)
        return self.task.decode(
            outputs, temperature=self.temperature, refused=self._refuses(outputs, features)
        )

    def predict_sets(
        self,
        features: npt.NDArray[Any],
        sequences: Sequence[str] | None = None,
        *,
        coverage: float = 0.9,
    ) -> list[list[str]]:
        """Return for each protein the labels among which the true one is, as often as asked.

        Parameters
        ----------
        features, sequences
            See `logits`.
        coverage : float, optional
            Share of proteins like the training data whose set shall hold the truth; see `bioxfer.conformal`.

        Returns
        -------
        list of list of str
            Labels, likeliest first; of a number its least and largest value; nothing for rows of NaN. With
            too few proteins to tell from, all labels, or ``-inf`` to ``inf``.

        Raises
        ------
        UsageError
            The head has no conformal scores, or the coverage is not between 0 and 1.
        """
        if self.conformal is None:
            raise UsageError(
                f"head {self.name!r} keeps no conformal scores to make label sets from; train it anew with "
                "this version, or leave coverage out"
            )
        level = self.conformal.level(coverage)
        outputs = self.logits(features, sequences)
        return self.task.sets(outputs, level=level, temperature=self.temperature)

    def refused(
        self, features: npt.NDArray[Any], sequences: Sequence[str] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Say for each protein whether the head is too unsure of it to name a class; see `logits`."""
        return self._refuses(self.logits(features, sequences), features)

    def _refuses(self, outputs: Vectors, features: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        if not self.threshold:
            return np.zeros(len(outputs), dtype=bool)
        chances = self.task.probabilities(outputs, temperature=self.temperature)
        _, cosines = self.index.search(self._checked(features))
        return np.asarray(confidence(chances, cosines[:, 0]) < self.threshold)

    def nearest(self, features: npt.NDArray[Any]) -> list[Neighbour]:
        """Return the most similar training protein of each row of features ``(N, F)``."""
        return self.index.nearest(self._checked(features), label=self.task.label)

    def flag(self, similarity: float) -> Literal["in-domain", "far", ""]:
        """Say whether the head was tested at this similarity, see `NeighbourIndex.flag`."""
        return self.index.flag(similarity)

    def check_backbone(
        self, backbone: Backbone, *, layer: int | None = None, pool: str | None = None
    ) -> None:
        """Refuse a backbone, layer or pooling that the head was not trained on.

        Raises
        ------
        FingerprintError
            With both sides named.
        HeadFileError
            If its own backbone does not give what its file says that it reads.
        """
        mine = [f"{self.backbone} ({self.fingerprint})"]
        theirs = [f"{backbone.name} ({backbone.fingerprint})"]
        same = self.fingerprint == backbone.fingerprint
        for word, own, given in (("layer", self.layer, layer), ("pooling", self.pool, pool)):
            if given is not None:
                same &= own == given
                mine.append(f"{word} {own}")
                theirs.append(f"{word} {given}")
        if not same:
            raise FingerprintError(
                f"head {self.name!r} was trained on {', '.join(mine)} and cannot read {', '.join(theirs)}; "
                "use the former or train the head anew"
            )
        check_reading(self, backbone, more=0 if self.attention is None else self.attention.n_features)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the head to a safetensors file, the same bytes for the same head.

        Raises
        ------
        OutputError
            The file cannot be written; what was there before stays.
        """
        extra: dict[str, Any] = {}  # what was not always there is written only where it says something
        if self.threshold:
            extra["threshold"] = self.threshold
        if self.first is not None:
            extra["first"] = self.first
        more: dict[str, npt.NDArray[Any]] = {}
        if self.families is not None:
            more |= {f"families.{n}": t for n, t in self.families.to_tensors().items()}
        if self.conformal is not None:
            more |= {f"conformal.{n}": t for n, t in self.conformal.to_tensors().items()}
        if self.attention is not None:
            more |= {f"attention.{n}": t for n, t in self.attention.to_tensors().items()}
        save_head_file(self, path, extra=extra, more=more)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainedHead:
        """Read a head and check all of it.

        Raises
        ------
        HeadFileError
            The file is damaged or no head of bioxfer.
        InputError
            There is no such file, or it cannot be read.
        """
        return load_head_file(path, cls.parse)

    @classmethod
    def parse(cls, data: bytes) -> TrainedHead:
        """Make a head of the bytes of its file.

        Raises
        ------
        DamageError
            With what is wrong with them.
        """
        return _parse(data)

    def _checked(self, features: npt.NDArray[Any]) -> Vectors:
        vectors = np.asarray(features, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.n_features:
            raise FingerprintError(
                f"head {self.name!r} reads vectors of width {self.n_features} ({self.backbone}, layer "
                f"{self.layer}, {self.pool}{'' if self.attention is None else ' and light attention'}) and "
                f"cannot read an array of shape {vectors.shape}"
            )
        return vectors


class _Reading(Protocol):
    """What every sort of head says of the vectors it reads."""

    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def pool(self) -> str: ...
    @property
    def n_features(self) -> int: ...


def check_reading(head: _Reading, backbone: Backbone, *, more: int = 0) -> None:
    """Refuse a head whose backbone does not give the vectors that its file says it reads.

    Parameters
    ----------
    head : TrainedHead or ResidueHead
        Whose fingerprint is the backbone's.
    backbone : Backbone
        The head's own.
    more : int, optional
        Numbers that the head makes of residues itself, beside the pooled vector.

    Raises
    ------
    HeadFileError
        With both sides named.
    """
    width = backbone.dim * len(parse_pool(head.pool)) + more
    if not 0 <= head.layer <= backbone.n_layers or head.n_features != width:
        raise HeadFileError(
            f"head {head.name!r} reads vectors of width {head.n_features} from layer {head.layer}, but its "
            f"backbone {backbone.name} gives width {width} by pooling {head.pool} and has layers 0 to "
            f"{backbone.n_layers}; get or train the head anew"
        )


def forward(
    kind: HeadKind, tensors: Tensors, index: NeighbourIndex, task: Task, features: Vectors
) -> Vectors:
    """Compute outputs ``(N, C)`` of features ``(N, F)`` with a head's parts."""
    if kind == "linear":
        return np.asarray(features @ tensors["weight"].T + tensors["bias"], dtype=np.float32)
    if kind == "mlp":
        return run_mlp(tensors, task, features)
    if kind == "blend":
        network: HeadKind = "linear" if "weight" in tensors else "mlp"
        return task.mix_outputs(
            forward(network, tensors, index, task, features),
            forward("nearest", tensors, index, task, features),
            share=float(tensors["share"]),
            temperature=float(tensors["network_temperature"]),
        )
    places, cosines = index.search(features, k=int(tensors["neighbours"]))
    weights = np.exp(float(tensors["sharpness"]) * (cosines - 1.0))
    return task.neighbour_outputs(index.targets[places], weights)


def run_mlp(tensors: Tensors, task: Task, features: Vectors) -> Vectors:
    """Compute outputs ``(N, C)`` of features ``(N, F)``: the average of networks of one hidden layer."""
    members = []
    for w_in, b_in, w_out, b_out in zip(*(tensors[name] for name in _MLP), strict=True):
        hidden = np.maximum(features @ w_in.T + b_in, 0)
        members.append(np.asarray(hidden @ w_out.T + b_out, dtype=np.float32))
    return task.average_outputs(np.stack(members))


def confidence(probabilities: npt.NDArray[Any], similarity: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Say how sure a head may be that its question applies to a protein and its answer is right.

    The calibrated probability of the likeliest class holds only among proteins to which the question
    applies; how much a protein is like one of those, the cosine to the nearest training protein tells. Both
    are at most 1, and their product is high only where both are.

    Parameters
    ----------
    probabilities : ndarray (N, C)
        Calibrated, of each class.
    similarity : ndarray (N,)
        Cosine to the nearest training protein; below 0 counts as 0.

    Returns
    -------
    ndarray (N,)
        0 to 1; NaN where there was no vector.
    """
    top = np.asarray(probabilities, dtype=np.float64).max(axis=1, initial=0.0)
    return np.asarray(top * np.clip(similarity, 0.0, 1.0), dtype=np.float64)


# --- the file -------------------------------------------------------------------------------------------


def _parse(data: bytes) -> TrainedHead:
    header, tensors = read_header(data, kinds=_KINDS)
    kind: HeadKind = header["kind"]
    threshold, first = header.setdefault("threshold", 0.0), header.get("first")
    check_number(header, "threshold")
    if not 0 <= threshold <= 1:
        raise DamageError(f"threshold {threshold} is not between 0 and 1")
    if "first" in header and (type(first) is not int or first < 1):
        raise DamageError(f"first {first!r} is no number of residues")
    try:
        task = task_from_dict(header.get("task"))
    except ValueError as error:
        raise DamageError(str(error)) from error
    if kind == "mlp" and all(t.ndim < 3 for t in tensors.values()):
        # bioxfer 0.1.0 wrote a single member without its axis
        tensors |= {f"head.{n}": tensors[f"head.{n}"][None] for n in _MLP if f"head.{n}" in tensors}
    tensors, memory = _take(tensors, "families.")
    tensors, scores = _take(tensors, "conformal.")
    tensors, pooling = _take(tensors, "attention.")
    _check_tensors(kind, task, tensors)
    try:
        families = FamilyMemory.from_tensors(memory, n_outputs=task.n_outputs) if memory else None
        conformal = ConformalScores.from_tensors(scores) if scores else None
        attention = AttentionPool.from_tensors(pooling) if pooling else None
    except HeadFileError as error:
        raise DamageError(str(error)) from error
    width = tensors["index.projection"].shape[1]
    if attention is not None and attention.n_features >= width:
        raise DamageError(f"{attention.n_features} numbers of light attention do not fit vectors of {width}")
    if families is not None and not task.labels:
        raise DamageError("families have labels, and this head predicts a number")
    if families is not None and isinstance(task, Multilabel):
        raise DamageError("families have one label each, and this head predicts several")
    return TrainedHead(
        task=task,
        threshold=threshold,
        first=first,
        families=families,
        conformal=conformal,
        attention=attention,
        **parse_parts(header, tensors),
    )


def _take(tensors: Tensors, prefix: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """Part tensors from those whose names begin with a prefix, which these lose."""
    taken = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return {name: t for name, t in tensors.items() if not name.startswith(prefix)}, taken


def _check_tensors(kind: HeadKind, task: Task, tensors: Tensors) -> None:
    own = _KINDS[kind][-1 if "head.weight_in" in tensors else 0]
    types = {"head.neighbours": "i", "index.targets": task.target_kind}
    axes = ("M", "C") if isinstance(task, Multilabel) else ("M",)
    check_tensors(tensors, own, outputs=task.n_outputs, types=types, targets=axes)
    targets = tensors["index.targets"]
    if isinstance(task, Multilabel) and not np.isin(targets, (0, 1)).all():
        raise DamageError("training labels are neither there nor not there")
    if task.target_kind == "i" and not (targets.min() >= 0 and targets.max() < task.n_outputs):
        raise DamageError(f"training labels lie outside the {task.n_outputs} classes")
    if "neighbours" in own and tensors["head.neighbours"] < 1:
        raise DamageError(f"{tensors['head.neighbours']} neighbours are none")
    if kind == "blend":
        if not 0 < tensors["head.share"] < 1:
            raise DamageError(f"share {tensors['head.share']} of the network is not between 0 and 1")
        if tensors["head.network_temperature"] <= 0:
            raise DamageError(f"network temperature {tensors['head.network_temperature']} is not above 0")
