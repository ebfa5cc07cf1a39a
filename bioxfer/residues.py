"""Heads that label every residue: from a protein's matrix to a string as long as the protein.

`ResidueHead` is to residues what `bioxfer.heads.TrainedHead` is to proteins: small, run by numpy alone, kept
in one safetensors file with a JSON card and a sha256 over all of it. `read_head` reads either. Fitting lives
in `bioxfer.residue_training`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import FingerprintError, LabelError
from bioxfer.evaluate import log_softmax
from bioxfer.headfile import (
    DamageError,
    Tensors,
    check_tensors,
    load_head_file,
    parse_parts,
    read_container,
    read_header,
    save_head_file,
)
from bioxfer.heads import TrainedHead
from bioxfer.neighbours import Neighbour, NeighbourIndex

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = [
    "UNRESOLVED",
    "ResidueClasses",
    "ResidueHead",
    "ResidueKind",
    "Tensors",
    "label_residues",
    "look_like_residue_labels",
    "read_head",
    "run_residues",
]

ResidueKind: TypeAlias = Literal["linear", "conv"]
Floats: TypeAlias = npt.NDArray[np.float32]

UNRESOLVED = "?-_"
"""Characters of a label that say nothing of their residue; they count in no loss and no metric."""

_MOST_CLASSES = 64  # more characters than that are no classes of residues
_MEAN_LENGTH = 20  # labels shorter than that on average may be as long as their protein by chance
_SHARE_FITTING = 0.9  # of labels; the others are then wrong rather than of another kind
_SHAPES: dict[ResidueKind, dict[str, tuple[str, ...]]] = {
    "linear": {"mean": ("F",), "weight": ("C", "F"), "bias": ("C",)},
    "conv": {
        "mean": ("F",),
        "weight_in": ("H", "K", "F"),
        "bias_in": ("H",),
        "weight_out": ("C", "H"),
        "bias_out": ("C",),
    },
}


@dataclass(frozen=True, slots=True)
class ResidueClasses:
    """One of C classes for every residue.

    Parameters
    ----------
    classes : tuple of str
        Single characters, in the order of the outputs.
    """

    classes: tuple[str, ...]

    name = "residue-class"
    main_metric = "accuracy"

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> ResidueClasses:
        """Take the distinct resolved characters, sorted, as classes.

        Raises
        ------
        LabelError
            Fewer than two classes, too many, or a character that no table could show.
        """
        found = sorted(set().union(*map(set, labels)) - set(UNRESOLVED))
        if strange := [c for c in found if c.isspace() or not c.isprintable()]:
            raise LabelError(
                f"the character {strange[0]!r} cannot stand for a class; use a letter or a digit"
            )
        if len(found) < 2:
            told = repr(found[0]) if found else "no resolved residue"
            raise LabelError(
                f"a classifier of residues needs at least two classes, and the labels hold {told}"
            )
        if len(found) > _MOST_CLASSES:
            raise LabelError(
                f"the labels hold {len(found)} different characters and a residue can be one of "
                f"{_MOST_CLASSES} classes at most; look whether they are labels of residues"
            )
        return cls(tuple(found))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def n_outputs(self) -> int:
        """Outputs of a head for each residue: C."""
        return len(self.classes)

    @property
    def digits(self) -> npt.NDArray[np.float64] | None:
        """The classes as numbers ``(C,)`` where each is a digit, else None."""
        ordinal = all(c in "0123456789" for c in self.classes)
        return np.array([int(c) for c in self.classes], dtype=np.float64) if ordinal else None

    def encode(self, label: str) -> npt.NDArray[np.int8]:
        """Turn a label into class numbers ``(L,)``, -1 where it is unresolved.

        Raises
        ------
        LabelError
            A character is none of the classes.
        """
        place = {c: number for number, c in enumerate(self.classes)} | dict.fromkeys(UNRESOLVED, -1)
        if strange := sorted(set(label) - set(place)):
            at = label.index(strange[0]) + 1
            known = "".join(self.classes)
            raise LabelError(f"label character {strange[0]!r} at residue {at} is none of the classes {known}")
        return np.array([place[c] for c in label], dtype=np.int8)

    def decode(self, numbers: npt.NDArray[Any]) -> str:
        """Write class numbers ``(L,)`` as a label."""
        return "".join(self.classes[number] for number in numbers.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return what a head file says of the task."""
        return {"name": self.name, "classes": list(self.classes)}


@dataclass(slots=True, eq=False)
class ResidueHead:
    """A head for residues with all that is needed to use it and to judge it.

    Attributes
    ----------
    name : str
        Stem of the output's column names.
    task : ResidueClasses
        What it predicts.
    kind : {"linear", "conv"}
        A linear model of each residue, or one hidden convolution over residues.
    layer : int
        Which layer of the backbone it reads.
    backbone, fingerprint : str
        Name and fingerprint of the backbone it was trained on.
    tensors : mapping of str to ndarray
        Its weights; the scale of features is folded in, and ``mean`` is subtracted first.
    temperature : float
        Divides logits before softmax.
    index : NeighbourIndex
        Mean vectors of its training proteins; its targets are all 0, as a protein has no one label.
    card : dict
        Data, split, metrics, baselines, limits: see `bioxfer.residue_training.train_residue_head`.
    pool : str
        Pooling that the index reads: ``"mean"``.
    """

    name: str
    task: ResidueClasses
    kind: ResidueKind
    layer: int
    backbone: str
    fingerprint: str
    tensors: Tensors
    temperature: float
    index: NeighbourIndex
    card: dict[str, Any] = field(default_factory=dict)
    pool: str = "mean"

    def __repr__(self) -> str:
        return (
            f"<ResidueHead {self.name}: {''.join(self.labels)}, {self.kind} on {self.backbone} "
            f"layer {self.layer}, {len(self.index.ids)} training proteins>"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes in the order of the outputs."""
        return self.task.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes in the order of the outputs."""
        return self.task.classes

    @property
    def n_features(self) -> int:
        """Width D of the matrices it reads."""
        return len(self.tensors["mean"])

    def logits(self, residues: npt.NDArray[Any]) -> Floats:
        """Run the head on one protein.

        Parameters
        ----------
        residues : ndarray (L, D)
            Its residues as the backbone made them.

        Returns
        -------
        ndarray (L, C)
            Outputs before temperature and softmax.

        Raises
        ------
        FingerprintError
            The residues have another width than those it was trained on.
        """
        return run_residues(self.kind, self.tensors, self._checked(residues))

    def predict_proba(self, residues: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(L, C)`` of residues ``(L, D)``."""
        outputs = self.logits(residues)
        return np.exp(log_softmax(outputs, temperature=self.temperature))

    def predict(self, residues: npt.NDArray[Any]) -> str:
        """Return the likeliest class of each of the residues ``(L, D)``, as a string of length L."""
        return self.task.decode(np.argmax(self.logits(residues), axis=1))

    def nearest(self, features: npt.NDArray[Any]) -> list[Neighbour]:
        """Return the most similar training protein of each mean vector ``(N, D)``; its label is empty."""
        return self.index.nearest(self._checked(features), label=lambda target: "")

    def flag(self, similarity: float) -> Literal["in-domain", "far", ""]:
        """Say whether the head was tested at this similarity, see `NeighbourIndex.flag`."""
        return self.index.flag(similarity)

    def check_backbone(self, backbone: Backbone, *, layer: int | None = None) -> None:
        """Refuse a backbone or layer that the head was not trained on.

        Raises
        ------
        FingerprintError
            With both sides named.
        """
        if self.fingerprint != backbone.fingerprint or layer not in (None, self.layer):
            theirs = f"{backbone.name} ({backbone.fingerprint})"
            raise FingerprintError(
                f"head {self.name!r} was trained on {self.backbone} ({self.fingerprint}), layer "
                f"{self.layer}, and cannot read {theirs if layer is None else f'{theirs}, layer {layer}'}; "
                "use the former or train the head anew"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the head to a safetensors file, the same bytes for the same head.

        Raises
        ------
        OutputError
            The file cannot be written; what was there before stays.
        """
        save_head_file(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ResidueHead:
        """Read a head and check all of it.

        Raises
        ------
        HeadFileError
            The file is damaged or no head for residues.
        InputError
            There is no such file, or it cannot be read.
        """
        return load_head_file(path, _parse, sort="bioxfer head for residues")

    def _checked(self, values: npt.NDArray[Any]) -> Floats:
        found = np.asarray(values, dtype=np.float32)
        if found.ndim != 2 or found.shape[1] != self.n_features:
            raise FingerprintError(
                f"head {self.name!r} reads residues of width {self.n_features} ({self.backbone}, layer "
                f"{self.layer}) and cannot read an array of shape {found.shape}"
            )
        return found


def run_residues(kind: ResidueKind, tensors: Tensors, residues: npt.NDArray[Any]) -> Floats:
    """Compute outputs ``(L, C)`` of one protein's residues ``(L, D)`` with a head's weights.

    Parameters
    ----------
    kind : {"linear", "conv"}
        Form of the head.
    tensors : mapping of str to ndarray
        Its weights.
    residues : ndarray (L, D)
        One protein; beyond its ends a convolution sees the mean residue.
    """
    centred = np.asarray(residues, dtype=np.float32) - tensors["mean"]
    if kind == "linear":
        return np.asarray(centred @ tensors["weight"].T + tensors["bias"], dtype=np.float32)
    hidden = np.tile(tensors["bias_in"].astype(np.float32), (len(centred), 1))
    width = tensors["weight_in"].shape[1]
    for place in range(width):
        shift = place - width // 2  # of the residue that is read, against the one that is labelled
        first, last = max(0, -shift), min(len(centred), len(centred) - shift)
        if first < last:
            seen = centred[first + shift : last + shift]
            hidden[first:last] += seen @ tensors["weight_in"][:, place].T
    out = np.maximum(hidden, 0) @ tensors["weight_out"].T + tensors["bias_out"]
    return np.asarray(out, dtype=np.float32)


def label_residues(
    head: ResidueHead, residues: npt.NDArray[Any], length: int
) -> tuple[str, npt.NDArray[np.float64]]:
    """Label a protein of which perhaps only the first residues are represented.

    Parameters
    ----------
    head : ResidueHead
        What labels.
    residues : ndarray (L, D)
        The represented residues.
    length : int
        Residues of the protein, L or more.

    Returns
    -------
    tuple of str and ndarray
        A label of ``length`` characters, ``?`` beyond L, and the calibrated probabilities ``(L,)`` of the
        classes it names.
    """
    chances = head.predict_proba(residues)
    label = head.task.decode(np.argmax(chances, axis=1))
    return label + UNRESOLVED[0] * (length - len(label)), chances.max(axis=1)


def look_like_residue_labels(labels: Sequence[str], lengths: Sequence[int]) -> bool:
    """Tell labels of residues from labels of proteins by their lengths.

    Parameters
    ----------
    labels : sequence of str
        N labels.
    lengths : sequence of int
        Residues of their N proteins.

    Returns
    -------
    bool
        Whether the labels are 20 characters or more on average and nine of ten are as long as their protein;
        those that are not are then mistakes to be named.
    """
    if not labels or sum(map(len, labels)) < _MEAN_LENGTH * len(labels):
        return False
    fitting = sum(len(label) == length for label, length in zip(labels, lengths, strict=True))
    return fitting >= _SHARE_FITTING * len(labels)


# --- the file -------------------------------------------------------------------------------------------


def read_head(path: str | os.PathLike[str]) -> TrainedHead | ResidueHead:
    """Read whichever head a file holds.

    Raises
    ------
    HeadFileError, InputError
        As `TrainedHead.load` and `ResidueHead.load`.
    """
    return load_head_file(path, _parse_either)


def _parse_either(data: bytes) -> TrainedHead | ResidueHead:
    task = read_container(data)[0].get("task")
    if isinstance(task, dict) and task.get("name") == ResidueClasses.name:
        return _parse(data)
    return TrainedHead.parse(data)


def _parse(data: bytes) -> ResidueHead:
    header, tensors = read_header(data, kinds=_SHAPES)
    if header["pool"] != "mean":
        raise DamageError(f"pool {header['pool']!r} is not 'mean'")
    task = _parse_task(header.get("task"))
    own = _SHAPES[header["kind"]]
    size = check_tensors(tensors, own, outputs=task.n_outputs, types={"index.targets": "i"})
    if size.get("K", 1) % 2 == 0:
        raise DamageError(f"a convolution of even width {size['K']} has no middle")
    if tensors["index.targets"].any():
        raise DamageError("the training proteins of a head for residues have labels")
    return ResidueHead(task=task, **parse_parts(header, tensors))


def _parse_task(data: object) -> ResidueClasses:
    match data:
        case {"name": "residue-class", "classes": [str(), str(), *_] as classes}:
            single = all(isinstance(c, str) and len(c) == 1 and c not in UNRESOLVED for c in classes)
            if single and len(classes) <= _MOST_CLASSES and sorted(set(classes)) == classes:
                return ResidueClasses(tuple(classes))
    raise DamageError(f"no task of residues is described by {str(data)[:80]}")
