"""Trained heads: from a protein's vector to a label, a calibrated score and its nearest training protein.

A head is small, runs on numpy alone and lives in one safetensors file with a JSON card. The file holds
numbers and text, never code; every byte of it is covered by a sha256 that is checked on loading.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import FingerprintError, HeadFileError, InputError
from bioxfer.output import publish
from bioxfer.tasks import Decision, Task, task_from_dict

if TYPE_CHECKING:
    from bioxfer.backbones import Backbone

__all__ = ["HeadKind", "Neighbour", "NeighbourIndex", "TrainedHead", "forward", "run_mlp", "unit_rows"]

HeadKind: TypeAlias = Literal["linear", "mlp", "nearest"]
Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]
Vectors: TypeAlias = npt.NDArray[np.float32]

_FORMAT = 1
_METADATA_KEY = "bioxfer"
_HEADER_LIMIT = 8 * 2**20  # bytes; a card of a thousand classes needs about 100 kB
_ROWS_AT_ONCE = 1024  # queries against all training vectors: 50 MB of similarities for 12,000
_SHAPES: dict[HeadKind, dict[str, tuple[str, ...]]] = {
    "linear": {"weight": ("C", "F"), "bias": ("C",)},
    "mlp": {
        "weight_in": ("H", "F"),
        "bias_in": ("H",),
        "weight_out": ("C", "H"),
        "bias_out": ("C",),
    },
    "nearest": {"neighbours": (), "sharpness": ()},
}


class Neighbour(NamedTuple):
    """The training protein that a protein resembles most.

    Attributes
    ----------
    id : str
        Its id in the training data; empty where the query had no vector.
    label : str
        Its label.
    similarity : float
        Cosine in the index's space, -1 to 1; NaN where the query had no vector.
    """

    id: str
    label: str
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class NeighbourIndex:
    """Training proteins to look up relatives of a query in.

    Vectors are standardised, projected on their first d principal components and scaled to length 1, so that
    no single large dimension of the backbone decides what is similar.

    Attributes
    ----------
    ids : tuple of str
        M training ids.
    targets : ndarray (M,)
        Encoded labels.
    vectors : ndarray (M, d)
        Unit vectors, float16.
    projection, offset : ndarray (d, F), (d,)
        ``features @ projection.T + offset`` is the space of the vectors before scaling.
    far : float
        Similarity below which a query is called far.
    """

    ids: tuple[str, ...]
    targets: npt.NDArray[Any]
    vectors: npt.NDArray[np.float16]
    projection: Vectors
    offset: Vectors
    far: float

    def search(self, features: Vectors, k: int = 1) -> tuple[npt.NDArray[np.int64], Vectors]:
        """Find the k most similar training proteins.

        Parameters
        ----------
        features : ndarray (N, F)
            Vectors as the backbone made them.
        k : int
            Neighbours per query, at most M.

        Returns
        -------
        tuple of ndarray
            Places ``(N, k)`` in the index and cosines ``(N, k)``, most similar first, equals by place. A row
            with NaN finds nothing: its cosines are NaN.
        """
        k = min(k, len(self.ids))
        known = self.vectors.astype(np.float32)
        places = np.zeros((len(features), k), dtype=np.int64)
        cosines = np.full((len(features), k), np.nan, dtype=np.float32)
        query = unit_rows(features @ self.projection.T + self.offset)
        usable = np.flatnonzero(np.isfinite(query).all(axis=1))
        for start in range(0, len(usable), _ROWS_AT_ONCE):
            rows = usable[start : start + _ROWS_AT_ONCE]
            # rounded, so that the last bits of a matrix product decide no tie between copies
            similarity = np.round(query[rows] @ known.T, 5)
            found = _largest(similarity, k)
            places[rows] = found
            cosines[rows] = np.clip(np.take_along_axis(similarity, found, axis=1), -1.0, 1.0)
        return places, cosines


@dataclass(slots=True, eq=False)
class TrainedHead:
    """A head with all that is needed to use it and to judge it.

    Attributes
    ----------
    name : str
        Stem of the output's column names.
    task : Multiclass or Regression
        What it predicts.
    kind : {"linear", "mlp", "nearest"}
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
        Data, split, metrics, baselines, limits: see `bioxfer.transfer.train_head`.
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

    def __repr__(self) -> str:
        return (
            f"<TrainedHead {self.name}: {self.task.name}, {self.kind} on {self.backbone} "
            f"layer {self.layer} {self.pool}, {len(self.index.ids)} training proteins>"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty for a regression."""
        return self.task.labels

    @property
    def n_features(self) -> int:
        """Width F of the vectors it reads."""
        return int(self.index.projection.shape[1])

    def logits(self, features: npt.NDArray[Any]) -> Vectors:
        """Run the head.

        Parameters
        ----------
        features : ndarray (N, F)
            Pooled vectors; rows with NaN give rows of NaN.

        Returns
        -------
        ndarray (N, C)
            Outputs before temperature and softmax.

        Raises
        ------
        FingerprintError
            The vectors have another width than those it was trained on.
        """
        return forward(self.kind, self.tensors, self.index, self.task, self._checked(features))

    def predict_proba(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities ``(N, C)`` of features ``(N, F)``."""
        return self.task.probabilities(self.logits(features), temperature=self.temperature)

    def predict(self, features: npt.NDArray[Any]) -> list[Decision]:
        """Return the label and score of each row of features ``(N, F)``; empty and NaN for rows of NaN."""
        return self.task.decode(self.logits(features), temperature=self.temperature)

    def nearest(self, features: npt.NDArray[Any]) -> list[Neighbour]:
        """Return the most similar training protein of each row of features ``(N, F)``."""
        places, cosines = self.index.search(self._checked(features))
        return [
            Neighbour("", "", math.nan)
            if math.isnan(cosine)
            else Neighbour(self.index.ids[place], self.task.label(self.index.targets[place]), cosine)
            for place, cosine in zip(places[:, 0].tolist(), cosines[:, 0].tolist(), strict=True)
        ]

    def flag(self, similarity: float) -> Literal["in-domain", "far", ""]:
        """Say whether a similarity from `nearest` is one that the head was tested at.

        ``far`` is less similar to every training protein than 95% of held-out proteins without relatives
        in training were.
        """
        if math.isnan(similarity):
            return ""
        return "far" if similarity < self.index.far else "in-domain"

    def check_backbone(
        self, backbone: Backbone, *, layer: int | None = None, pool: str | None = None
    ) -> None:
        """Refuse a backbone, layer or pooling that the head was not trained on.

        Raises
        ------
        FingerprintError
            With both sides named.
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the head to a safetensors file, the same bytes for the same head.

        Raises
        ------
        OutputError
            The file cannot be written; what was there before stays.
        """
        data = _dump(self)
        with publish(path) as temporary:
            temporary.write_bytes(data)

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
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"head file {path} cannot be read: {error.strerror}") from error
        try:
            return _parse(data)
        except _Damage as damage:
            raise HeadFileError(
                f"head file {path} is damaged or no bioxfer head ({damage}); get or train it anew"
            ) from damage

    def _checked(self, features: npt.NDArray[Any]) -> Vectors:
        vectors = np.asarray(features, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.n_features:
            raise FingerprintError(
                f"head {self.name!r} reads vectors of width {self.n_features} ({self.backbone}, layer "
                f"{self.layer}, {self.pool}) and cannot read an array of shape {vectors.shape}"
            )
        return vectors


def forward(
    kind: HeadKind, tensors: Tensors, index: NeighbourIndex, task: Task, features: Vectors
) -> Vectors:
    """Compute outputs ``(N, C)`` of features ``(N, F)`` with a head's parts."""
    if kind == "linear":
        return np.asarray(features @ tensors["weight"].T + tensors["bias"], dtype=np.float32)
    if kind == "mlp":
        return run_mlp(tensors, features)
    places, cosines = index.search(features, k=int(tensors["neighbours"]))
    weights = np.exp(float(tensors["sharpness"]) * (cosines - 1.0))
    return task.neighbour_outputs(index.targets[places], weights)


def run_mlp(tensors: Tensors, features: Vectors) -> Vectors:
    """Compute outputs ``(N, C)`` of features ``(N, F)`` through one hidden layer of rectified units."""
    hidden = np.maximum(features @ tensors["weight_in"].T + tensors["bias_in"], 0)
    return np.asarray(hidden @ tensors["weight_out"].T + tensors["bias_out"], dtype=np.float32)


def unit_rows(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scale each row to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length == 0, 1, length))


def _largest(values: Vectors, k: int) -> npt.NDArray[np.int64]:
    """Return the places ``(N, k)`` of each row's k largest values, largest first, equals by place."""
    if k == 1:
        return np.asarray(np.argmax(values, axis=1)[:, None], dtype=np.int64)
    places = np.sort(np.argpartition(-values, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(values, places, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(places, order, axis=1), dtype=np.int64)


# --- the file -------------------------------------------------------------------------------------------


class _Damage(Exception):
    """What is wrong with a head file."""


def _dump(head: TrainedHead) -> bytes:
    from safetensors.numpy import save

    tensors = {f"head.{name}": np.array(value, order="C") for name, value in head.tensors.items()}
    # JSON, as an id from a table may hold a line end; its ASCII escapes carry lone surrogates too.
    text = json.dumps(list(head.index.ids)).encode("ascii")
    tensors["index.ids"] = np.frombuffer(text, dtype=np.uint8).copy()
    for name in ("targets", "vectors", "projection", "offset"):
        tensors[f"index.{name}"] = np.array(getattr(head.index, name), order="C")
    meta: dict[str, Any] = {
        "format": _FORMAT,
        "name": head.name,
        "task": head.task.to_dict(),
        "kind": head.kind,
        "pool": head.pool,
        "layer": head.layer,
        "backbone": head.backbone,
        "fingerprint": head.fingerprint,
        "temperature": head.temperature,
        "far": head.index.far,
        "card": head.card,
    }
    meta["sha256"] = _digest(meta, tensors)
    return save(tensors, metadata={_METADATA_KEY: _to_json(meta)})


def _parse(data: bytes) -> TrainedHead:
    meta, tensors = _read_container(data)
    expected = meta.pop("sha256", None)
    if expected != _digest(meta, tensors):
        raise _Damage("its content does not have the sha256 it states")
    if meta.get("format") != _FORMAT:
        raise _Damage(f"format {meta.get('format')!r} is not {_FORMAT}, the one this version reads")
    texts = dict.fromkeys(("name", "kind", "pool", "backbone", "fingerprint"), str)
    for key, form in {**texts, "layer": int, "card": dict}.items():
        if not isinstance(meta.get(key), form):
            raise _Damage(f"{key} {meta.get(key)!r} is not of type {form.__name__}")
    for key in ("temperature", "far"):
        if not isinstance(meta.get(key), float) or not math.isfinite(meta[key]):
            raise _Damage(f"{key} {meta.get(key)!r} is not a finite number")
    if meta["temperature"] <= 0:
        raise _Damage(f"temperature {meta['temperature']} is not above 0")
    if meta["kind"] not in _SHAPES:
        raise _Damage(f"kind {meta['kind']!r} is none of {', '.join(_SHAPES)}")
    try:
        task = task_from_dict(meta.get("task"))
    except ValueError as error:
        raise _Damage(str(error)) from error
    _check_tensors(meta["kind"], task, tensors)
    try:
        ids = json.loads(tensors["index.ids"].tobytes())
    except ValueError as error:
        raise _Damage("the training ids are no JSON") from error
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise _Damage("the training ids are no list of texts")
    if len(ids) != len(tensors["index.vectors"]):
        raise _Damage(f"{len(ids)} ids for {len(tensors['index.vectors'])} training vectors")
    return TrainedHead(
        name=meta["name"],
        task=task,
        kind=meta["kind"],
        pool=meta["pool"],
        layer=meta["layer"],
        backbone=meta["backbone"],
        fingerprint=meta["fingerprint"],
        tensors={n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")},
        temperature=meta["temperature"],
        index=NeighbourIndex(
            ids=tuple(ids),
            targets=tensors["index.targets"],
            vectors=tensors["index.vectors"],
            projection=tensors["index.projection"],
            offset=tensors["index.offset"],
            far=meta["far"],
        ),
        card=meta["card"],
    )


def _read_container(data: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the metadata and the tensors of safetensors bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if len(data) < 8:
        raise _Damage(f"{len(data)} bytes are no safetensors file")
    (size,) = struct.unpack("<Q", data[:8])
    if size > min(_HEADER_LIMIT, len(data) - 8):
        raise _Damage(f"a header of {size} bytes is longer than the file or {_HEADER_LIMIT} bytes")
    try:
        header = json.loads(data[8 : 8 + size])
        meta = json.loads(header["__metadata__"][_METADATA_KEY])
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Damage(f"{type(error).__name__}: {str(error)[:100]}") from error
    if not isinstance(meta, dict):
        raise _Damage("its metadata are no JSON object")
    return meta, tensors


def _check_tensors(kind: HeadKind, task: Task, tensors: Tensors) -> None:
    shapes = {f"head.{name}": axes for name, axes in _SHAPES[kind].items()}
    shapes |= {"index.ids": ("B",), "index.targets": ("M",), "index.vectors": ("M", "D")}
    shapes |= {"index.projection": ("D", "F"), "index.offset": ("D",)}
    if set(tensors) != set(shapes):
        wrong = ", ".join(sorted(set(tensors) ^ set(shapes)))
        raise _Damage(f"tensors are missing or foreign: {wrong}")
    size = {"C": task.n_outputs}
    for name, axes in sorted(shapes.items()):
        tensor = tensors[name]
        if tensor.ndim != len(axes) or any(
            n != size.setdefault(axis, n) or n == 0 for n, axis in zip(tensor.shape, axes, strict=True)
        ):
            raise _Damage(f"tensor {name} of shape {tensor.shape} is not {axes} with {size}")
        kinds = {"index.ids": "u", "head.neighbours": "i", "index.targets": task.target_kind}
        if tensor.dtype.kind != kinds.get(name, "f"):
            raise _Damage(f"tensor {name} has the type {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise _Damage(f"tensor {name} holds NaN or infinity")
    targets = tensors["index.targets"]
    if task.target_kind == "i" and not (targets.min() >= 0 and targets.max() < task.n_outputs):
        raise _Damage(f"training labels lie outside the {task.n_outputs} classes")
    if kind == "nearest" and tensors["head.neighbours"] < 1:
        raise _Damage(f"{tensors['head.neighbours']} neighbours are none")


def _digest(meta: Mapping[str, Any], tensors: Tensors) -> str:
    """Hash everything a head file says, however the container lays it out."""
    digest = hashlib.sha256(_to_json(meta).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _to_json(data: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))
