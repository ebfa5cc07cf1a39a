"""Fit a head to vectors and labels, and measure it honestly.

`fit` chooses the form of the head and its regularisation by cross-validation over homology clusters, and its
temperature on predictions for proteins it had not seen. `train_head` also holds clusters out, scores the head
and its baselines on them, and returns the head with its card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bioxfer import __version__
from bioxfer.clusters import HomologyKFold, homology_split
from bioxfer.errors import LabelError, UsageError
from bioxfer.evaluate import composition, dipeptides, score_gain, score_predictions
from bioxfer.heads import HeadKind, NeighbourIndex, TrainedHead, forward
from bioxfer.solvers import Setting, build_index, train_setting, train_settings
from bioxfer.tasks import Task, task_from_name

__all__ = ["Fitted", "fit", "train_head"]

HeadChoice: TypeAlias = Literal["auto", "linear", "mlp", "nearest"]
Floats: TypeAlias = npt.NDArray[np.float32]

KINDS: tuple[HeadKind, ...] = ("linear", "mlp", "nearest")
FAR_SHARE = 0.05  # of proteins held out by cluster that may be called far
_GENERAL_LIMITS = (
    "Every protein gets an answer of the trained kind, also one to which the question does not apply.",
    "Scores are calibrated on proteins like those of the training data; a protein flagged far is not one.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What `fit` found.

    Attributes
    ----------
    task : Multiclass or Regression
        What is predicted.
    kind : {"linear", "mlp", "nearest"}
        The chosen form.
    setting : dict
        The chosen regularisation.
    tensors : mapping of str to ndarray
        Weights for raw features, fitted on all rows.
    index : NeighbourIndex
        All rows, to find neighbours in.
    temperature : float
        Fitted on ``out_of_fold``.
    out_of_fold : ndarray (N, C)
        Outputs for each row by a head that saw no member of its cluster.
    candidates : list of dict
        Every ``kind`` and ``setting`` tried, with its out-of-fold ``loss``.
    """

    task: Task
    kind: HeadKind
    setting: Setting
    tensors: Mapping[str, npt.NDArray[Any]]
    index: NeighbourIndex
    temperature: float
    out_of_fold: Floats
    candidates: list[dict[str, Any]]

    def outputs(self, features: Floats) -> Floats:
        """Return outputs ``(N, C)`` of features ``(N, F)``."""
        return forward(self.kind, self.tensors, self.index, self.task, features)


def train_head(
    features: npt.NDArray[Any],
    labels: Sequence[str],
    ids: Sequence[str],
    *,
    sequences: Sequence[str],
    groups: npt.ArrayLike,
    name: str,
    pool: str,
    layer: int,
    backbone_name: str,
    backbone_fingerprint: str,
    head: HeadChoice = "auto",
    task: str = "auto",
    splits: Sequence[str] | None = None,
    valid: float = 0.15,
    refit: bool = True,
    folds: int = 5,
    seed: int = 0,
    data_sha256: str = "",
    data_source: str = "",
    licence: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
    date: str = "",
) -> TrainedHead:
    """Train a head, score it on held-out clusters beside its baselines, and return it with its card.

    The form and its regularisation are chosen by cross-validation inside the training part, and so are the
    temperature and the similarity below which a protein is called far. The validation part is used once: to
    score what was chosen, and the baselines (majority, composition, dipeptides, nearest neighbour).

    Parameters
    ----------
    features : ndarray (N, F)
        Pooled vectors; proteins whose row holds NaN (skipped or failed) are left out and counted in the card.
    labels, ids, sequences : sequence of str
        N labels, ids and proteins; sequences serve the baselines.
    groups : array-like (N,)
        Homology clusters, from `bioxfer.clusters.cluster_sequences`.
    name : str
        Name of the head and stem of its output columns.
    pool, layer, backbone_name, backbone_fingerprint
        What made the vectors.
    head, task, folds, seed
        As in `fit`.
    splits : sequence of str, optional
        ``"train"`` or ``"valid"`` for each protein; whole clusters are held out if not given.
    valid : float
        Share of proteins to hold out where ``splits`` is not given.
    refit : bool
        Fit the shipped weights on all proteins, validation part included, at the chosen setting; the card's
        numbers are always those of the fit on the training part.
    data_sha256, data_source, licence, intended_use, date : str
        Stated in the card as given; nothing here reads a clock.
    limits : sequence of str
        Known limits, stated in the card beside the general ones.

    Returns
    -------
    TrainedHead
        Ready to save.

    Raises
    ------
    LabelError, UsageError
        As in `fit`; also a split that is neither ``train`` nor ``valid``, or an empty side.
    """
    vectors = np.ascontiguousarray(features, dtype=np.float32)
    _check_lengths(
        vectors, {"labels": labels, "ids": ids, "sequences": sequences, "groups": np.asarray(groups)}
    )
    usable = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    x, group = vectors[usable], np.asarray(groups)[usable]
    label, names, proteins = ([column[i] for i in usable.tolist()] for column in (labels, ids, sequences))
    chosen_task = task_from_name(task, label)
    y = chosen_task.encode(label)
    _check_classes(chosen_task, y, group)
    balance = y if chosen_task.target_kind == "i" else None
    if splits is None:
        side = homology_split(group, valid=valid, seed=seed, y=balance)
        how = f"whole homology clusters held out, {valid:.0%} of the proteins, seed {seed}"
    else:
        _check_lengths(vectors, {"splits": splits})
        side = np.array([str(splits[i]) for i in usable.tolist()])
        how = "given with the data"
    train, held = _sides(side)

    def fit_part(values: Floats, choice: HeadChoice, n_folds: int) -> Fitted:
        part = [names[i] for i in train.tolist()]
        return _fit(values[train], y[train], part, group[train], chosen_task, _kinds(choice), n_folds, seed)

    fitted = fit_part(x, head, folds)
    outputs = fitted.outputs(x[held])
    predicted = chosen_task.predict(outputs)
    neighbour, similarity = fitted.index.search(x[held])
    others = {
        "majority": np.full(len(held), chosen_task.constant(y[train])),
        "nearest": y[train][neighbour[:, 0]],
    }
    for baseline, table in (("composition", composition(proteins)), ("dipeptides", dipeptides(proteins))):
        linear = fit_part(table, "linear", min(folds, 3))
        others[baseline] = chosen_task.predict(linear.outputs(table[held]))
    card = {
        "name": name,
        "task": chosen_task.name,
        "labels": chosen_task.describe(y[train], y[held]),
        "intended_use": intended_use or f"Predicting {name} of proteins like those of its training data.",
        "limits": [*_GENERAL_LIMITS, *limits],
        "data": {
            "source": data_source,
            "sha256": data_sha256,
            "licence": licence or "not stated",
            "proteins": len(vectors),
            "left_out_without_vector": len(vectors) - len(usable),
        },
        "split": {
            "how": how,
            "train": len(train),
            "valid": len(held),
            "train_clusters": len(np.unique(group[train])),
            "valid_clusters": len(np.unique(group[held])),
            "valid_with_relatives_in_train": int(np.isin(group[held], group[train]).sum()),
        },
        "head": {
            "kind": fitted.kind,
            "setting": fitted.setting,
            "chosen_by": f"least out-of-fold loss, {folds} folds over homology clusters of the training part",
            "candidates": fitted.candidates,
            "weights_fitted_on": "train and valid" if refit else "train",
            "metrics_measured_on": "valid, by the fit on train alone",
        },
        "backbone": {
            "name": backbone_name,
            "fingerprint": backbone_fingerprint,
            "layer": layer,
            "pool": pool,
        },
        "metrics": score_predictions(chosen_task.metrics, y[held], predicted, group[held], seed=seed),
        "baselines": _score_baselines(chosen_task, y[held], predicted, others, group[held], seed),
        "calibration": {
            "temperature": fitted.temperature,
            "fitted_on": "out-of-fold outputs of the training part",
            "ece_before": chosen_task.calibration_error(outputs, y[held]),
            "ece_after": chosen_task.calibration_error(outputs, y[held], temperature=fitted.temperature),
        },
        "domain": _describe_domain(fitted, similarity[:, 0], y[held], predicted),
        "intervals": "95%, 1000 bootstrap draws of whole homology clusters",
        "versions": {"bioxfer": __version__, "numpy": np.__version__, "torch": torch.__version__},
        "seed": seed,
        "date": date,
    }
    tensors, index = fitted.tensors, fitted.index
    if refit:
        tensors = train_setting(fitted.kind, x, y, chosen_task, seed, fitted.setting)
        index = build_index(x, y, names, far=index.far)
    return TrainedHead(
        name=name,
        task=chosen_task,
        kind=fitted.kind,
        pool=pool,
        layer=layer,
        backbone=backbone_name,
        fingerprint=backbone_fingerprint,
        tensors=tensors,
        temperature=fitted.temperature,
        index=index,
        card=card,
    )


def fit(
    features: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    groups: npt.ArrayLike | None = None,
    head: HeadChoice = "auto",
    task: str = "auto",
    folds: int = 5,
    seed: int = 0,
) -> Fitted:
    """Fit a head by cross-validation over homology clusters.

    Parameters
    ----------
    features : ndarray (N, F)
        Pooled vectors, finite.
    labels : sequence of str
        N labels.
    ids : sequence of str, optional
        N names for the neighbour index; ``1`` to ``N`` if not given.
    groups : array-like (N,), optional
        Homology clusters, from `bioxfer.clusters.cluster_sequences`. Without them every protein counts as
        unrelated to all others, which makes every estimate of this fit too good where relatives exist.
    head : {"auto", "linear", "mlp", "nearest"}
        Form of the head; ``auto`` takes the one with the least out-of-fold loss.
    task : {"auto", "multiclass", "regression"}
        See `bioxfer.tasks.task_from_name`.
    folds : int
        Folds of the cross-validation, fewer where there are fewer clusters.
    seed : int
        Seed of folds, initial weights and dropout.

    Returns
    -------
    Fitted
        Refitted on all rows with what the cross-validation chose.

    Raises
    ------
    LabelError
        Labels do not fit the task, or a class lies in a single cluster and cannot be held out.
    UsageError
        Lengths differ, vectors are not finite, or an option is out of range.
    """
    x = np.ascontiguousarray(features, dtype=np.float32)
    names = [str(i + 1) for i in range(len(x))] if ids is None else list(ids)
    group = np.arange(len(x)) if groups is None else np.asarray(groups)
    _check_lengths(x, {"labels": labels, "ids": names, "groups": group})
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        raise UsageError(f"{bad} of {len(x)} vectors hold NaN or infinity; drop those proteins first")
    chosen_task = task_from_name(task, labels)
    y = chosen_task.encode(labels)
    return _fit(x, y, names, group, chosen_task, _kinds(head), folds, seed)


def _fit(
    x: Floats,
    y: npt.NDArray[Any],
    ids: Sequence[str],
    group: npt.NDArray[Any],
    task: Task,
    kinds: Sequence[HeadKind],
    folds: int,
    seed: int,
) -> Fitted:
    _check_classes(task, y, group)
    balance = y if task.target_kind == "i" else None
    n_folds = min(folds, len(np.unique(group)))
    outputs: dict[tuple[HeadKind, int], Floats] = {}
    settings: dict[tuple[HeadKind, int], list[Setting]] = {}
    similarity = np.zeros(len(x), dtype=np.float32)
    for train, test in HomologyKFold(n_folds, seed=seed).split(ids, balance, group):
        index = build_index(x[train], y[train], [ids[i] for i in train.tolist()])
        similarity[test] = index.search(x[test])[1][:, 0]
        for kind in kinds:
            for place, (setting, tensors) in enumerate(
                train_settings(kind, x[train], y[train], group[train], task, seed)
            ):
                key = (kind, place)
                table = outputs.setdefault(key, np.zeros((len(x), task.n_outputs), dtype=np.float32))
                table[test] = forward(kind, tensors, index, task, x[test])
                settings.setdefault(key, []).append(setting)
    summary = {key: _median(found) for key, found in settings.items()}
    loss = {key: task.out_of_sample_loss(table, y) for key, table in outputs.items()}
    best = min(loss, key=lambda key: loss[key])
    kind, place = best
    index = build_index(x, y, ids, far=float(np.quantile(similarity, FAR_SHARE)))
    return Fitted(
        task=task,
        kind=kind,
        setting=summary[best],
        tensors=train_setting(kind, x, y, task, seed, summary[best]),
        index=index,
        temperature=task.calibrate(outputs[best], y),
        out_of_fold=outputs[best],
        candidates=[
            {"kind": k, "setting": summary[k, i], "loss": value} for (k, i), value in sorted(loss.items())
        ],
    )


def _score_baselines(
    task: Task,
    y: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    others: Mapping[str, npt.NDArray[Any]],
    group: npt.NDArray[Any],
    seed: int,
) -> dict[str, Any]:
    """Score each baseline as the head is scored, and the head's gain over it."""
    return {
        name: {
            "metrics": score_predictions(task.metrics, y, said, group, seed=seed),
            "head_minus_baseline": score_gain(
                task.metrics, task.main_metric, y, predicted, said, group, seed=seed
            ),
        }
        for name, said in others.items()
    }


def _kinds(choice: HeadChoice) -> tuple[HeadKind, ...]:
    if choice == "auto":
        return KINDS
    if choice not in KINDS:
        raise UsageError(f"head {choice!r} is not one of auto, {', '.join(KINDS)}")
    return (choice,)


def _sides(side: npt.NDArray[np.str_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the places of the training and of the validation proteins."""
    strange = sorted(set(side.tolist()) - {"train", "valid"})
    if strange:
        raise UsageError(f"split {strange[0]!r} is neither 'train' nor 'valid'; rename it or drop its rows")
    train, held = np.flatnonzero(side == "train"), np.flatnonzero(side == "valid")
    if not len(train) or not len(held):
        raise UsageError(
            f"{len(train)} training and {len(held)} validation proteins with a vector leave one side empty; "
            "mark some rows of each"
        )
    return train, held


def _describe_domain(
    fitted: Fitted, similarity: Floats, y: npt.NDArray[Any], predicted: npt.NDArray[Any]
) -> dict[str, Any]:
    """Say where the head was tested, and how it fares on the proteins it would call far."""
    far = similarity < fitted.index.far
    parts: dict[str, Any] = {
        "far_below": fitted.index.far,
        "meaning": f"{1 - FAR_SHARE:.0%} of training proteins, held out by cluster, were at least as similar "
        "to a neighbour",
    }
    for part, rows in (("in_domain", ~far), ("far", far)):
        parts[part] = {"valid": int(rows.sum())}
        if rows.sum() > 1:
            metrics = fitted.task.metrics(y[rows], predicted[rows])
            parts[part][fitted.task.main_metric] = metrics[fitted.task.main_metric]
    return parts


def _median(settings: list[Setting]) -> Setting:
    """Sum up a setting that each fold found for itself."""
    return {name: sorted(s[name] for s in settings)[len(settings) // 2] for name in settings[0]}


def _check_lengths(x: Floats, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
    if x.ndim != 2:
        raise UsageError(f"features of shape {x.shape} are not (proteins, dimensions)")
    for name, column in columns.items():
        if len(column) != len(x):
            raise UsageError(f"{len(column)} {name} do not fit {len(x)} vectors; give one for each")


def _check_classes(task: Task, y: npt.NDArray[Any], group: npt.NDArray[Any]) -> None:
    if len(np.unique(group)) < 2:
        raise LabelError(
            f"all {len(y)} proteins are relatives of each other, so none can be held out; add diverse ones"
        )
    for number, label in enumerate(task.labels):
        mine = group[y == number]
        clusters = len(np.unique(mine))
        if clusters < 2:
            raise LabelError(
                f"class {label!r} has {len(mine)} training proteins in {clusters} homology clusters and "
                "needs at least 2 clusters; add proteins, merge or drop the class"
            )
