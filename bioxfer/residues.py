"""Heads that label every residue: from a protein's matrix to one class or one number for each residue.

`ResidueHead` is to residues what `bioxfer.heads.TrainedHead` is to proteins: small, run by numpy alone, kept
in one safetensors file with a JSON card and a sha256 over all of it. `read_head` reads either. Fitting lives
in `bioxfer.residue_training`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import FingerprintError, UsageError
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
from bioxfer.heads import TrainedHead, check_reading
from bioxfer.neighbours import Neighbour, NeighbourIndex
from bioxfer.residue_tasks import (
    MOST_CLASSES,
    RESIDUE_TASKS,
    UNRESOLVED,
    ResidueClasses,
    ResidueTask,
    ResidueValues,
)

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = [
    "UNRESOLVED",
    "ResidueClasses",
    "ResidueHead",
    "ResidueKind",
    "ResidueTask",
    "ResidueValues",
    "Tensors",
    "label_residues",
    "read_head",
    "run_residues",
]

ResidueKind: TypeAlias = Literal["linear", "conv"]
Floats: TypeAlias = npt.NDArray[np.float32]

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


@dataclass(slots=True, eq=False)
class ResidueHead:
    """A head for residues with all that is needed to use it and to judge it.

    Attributes
    ----------
    name : str
        Stem of the output's column names.
    task : ResidueClasses or ResidueValues
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
    task: ResidueTask
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
        told = "".join(self.labels) or "numbers"
        return (
            f"<ResidueHead {self.name}: {told}, {self.kind} on {self.backbone} "
            f"layer {self.layer}, {len(self.index.ids)} training proteins>"
        )

    def _repr_html_(self) -> str:
        from bioxfer.cardtables import card_to_html

        return card_to_html(self.card)

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes in the order of the outputs; none for numbers."""
        return self.task.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes in the order of the outputs; none for numbers."""
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
            Outputs before temperature and softmax, or ``(L, 1)`` numbers in standard units.

        Raises
        ------
        FingerprintError
            The residues have another width than those it was trained on.
        """
        return run_residues(self.kind, self.tensors, self._checked(residues))

    def predict_proba(self, residues: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(L, C)`` of residues ``(L, D)``; ``(L, 0)`` for numbers."""
        return self.task.probabilities(self.logits(residues), temperature=self.temperature)

    def predict(self, residues: npt.NDArray[Any]) -> str:
        """Return what is said of each of the residues ``(L, D)``, as one text.

        The likeliest classes are a string of length L; numbers are separated by a space.
        """
        return self.task.joint.join(self.answer(residues)[0])

    def answer(self, residues: npt.NDArray[Any]) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Return L texts for residues ``(L, D)``, and how probable each is ``(L,)``; NaN for numbers."""
        return self.task.answer(self.logits(residues), temperature=self.temperature)

    def values(self, residues: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the number ``(L,)`` of each of the residues ``(L, D)``.

        Raises
        ------
        UsageError
            The head predicts classes.
        """
        if not isinstance(self.task, ResidueValues):
            raise UsageError(f"head {self.name!r} predicts classes, not numbers; ask for predict_proba")
        return self.task.values(self.logits(residues))

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
        HeadFileError
            If its own backbone does not give what its file says that it reads.
        """
        if self.fingerprint != backbone.fingerprint or layer not in (None, self.layer):
            theirs = f"{backbone.name} ({backbone.fingerprint})"
            raise FingerprintError(
                f"head {self.name!r} was trained on {self.backbone} ({self.fingerprint}), layer "
                f"{self.layer}, and cannot read {theirs if layer is None else f'{theirs}, layer {layer}'}; "
                "use the former or train the head anew"
            )
        check_reading(self, backbone)

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
) -> tuple[list[str], npt.NDArray[np.float64]]:
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
    tuple of list of str and ndarray
        ``length`` texts, ``?`` beyond L, and the calibrated probabilities ``(L,)`` of the classes they name;
        NaN for numbers.
    """
    cells, scores = head.answer(residues)
    return cells + [UNRESOLVED[0]] * (length - len(cells)), scores


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
    if isinstance(task, dict) and task.get("name") in RESIDUE_TASKS:
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


def _parse_task(data: object) -> ResidueTask:
    match data:
        case {"name": "residue-class", "classes": [str(), str(), *_] as classes}:
            single = all(isinstance(c, str) and len(c) == 1 and c not in UNRESOLVED for c in classes)
            if single and len(classes) <= MOST_CLASSES and sorted(set(classes)) == classes:
                return ResidueClasses(tuple(classes))
        case {"name": "residue-regression", "mean": float(mean), "scale": float(scale), **rest}:
            width = rest.get("halfwidth")
            sound = math.isfinite(mean) and math.isfinite(scale) and scale > 0
            if sound and (width is None or (isinstance(width, float) and 0 < width < math.inf)):
                return ResidueValues(mean, scale, width)
    raise DamageError(f"no task of residues is described by {str(data)[:80]}")
