"""Fit a head to vectors and labels, and measure it honestly.

`fit_head` chooses the form of the head, its regularisation and its temperature on proteins that it had not
seen. `train_head` also holds clusters out, scores the head and its baselines on them, and returns the head
with its card.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bioxfer import __version__
from bioxfer.alignment import align_to_training
from bioxfer.clusters import homology_split
from bioxfer.conformal import ConformalScores
from bioxfer.curves import DRAWS, HEAD, check_sizes, draw_curve
from bioxfer.errors import LabelError, UsageError
from bioxfer.evaluate import composition, dipeptides, score_answers, score_beside, score_gain
from bioxfer.families import FamilyMemory
from bioxfer.heads import TrainedHead, confidence
from bioxfer.homology import Method, choose_method
from bioxfer.honesty import (
    describe_answers,
    describe_calibration,
    describe_classes,
    describe_domain,
    describe_misses,
    describe_nearness,
    describe_sets,
    find_warnings,
    label_by_alignment,
)
from bioxfer.selection import LEANING, Fitted, HeadChoice, check_choice, check_classes, select
from bioxfer.solvers import Form, build_index
from bioxfer.tasks import UNKNOWN, Multilabel, Regression, Task, task_from_name
from bioxfer.trunks import Labelled

__all__ = ["Fitted", "HeadChoice", "check_options", "fit_head", "train_head"]

log = logging.getLogger("bioxfer")

_WARNINGS_TOLD = 5  # in the log; the card has all

FAMILY_WEIGHTS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Logits for one standard deviation of votes; 0.6 suited the unscaled enzymes it was first tried on."""

Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.intp]

_ANSWERS_ALL = (
    "Every protein gets an answer of the trained kind, also one to which the question does not apply."
)
_ABSTAINS = "A protein to which the question does not apply may still get an answer; not each is told {}."
_CALIBRATED = (
    "Scores are calibrated on proteins like those of the training data; a protein flagged far is not one."
)


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
    forms: Sequence[Form] | None = None,
    task: str = "auto",
    splits: Sequence[str] | None = None,
    valid: float = 0.15,
    refit: bool = True,
    abstain: float | None = None,
    families: bool = False,
    first: int | None = None,
    sizes: Sequence[int] = (),
    folds: int = 5,
    method: Method = "auto",
    threads: int | None = None,
    seed: int = 0,
    data_sha256: str = "",
    data_source: str = "",
    licence: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
    date: str = "",
) -> TrainedHead:
    """Train a head, score it on held-out clusters beside its baselines, and return it with its card.

    The form, its regularisation, its temperature, the similarity below which a protein is called far and the
    confidence below which a head abstains are chosen on the rows of the split ``dev`` by a fit on ``train``;
    without such rows, by cross-validation inside the training part. A selection part is needed where the
    backbone was trained on the training rows themselves: it is surer of those than of any new protein. The
    validation part is used once: to score what was chosen, and the baselines (majority, composition,
    dipeptides, nearest neighbour by embedding and by alignment).

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
        As in `fit_head`.
    forms : sequence of Form, optional
        What takes the place of the linear and the mlp form, see `bioxfer.selection.select`; the composition
        baselines stay linear.
    splits : sequence of str, optional
        ``"train"``, ``"dev"`` or ``"valid"`` for each protein; whole clusters are held out if not given.
    valid : float
        Share of proteins to hold out where ``splits`` is not given.
    refit : bool
        Fit the shipped weights on all proteins, selection and validation part included, at the chosen
        setting; the card's numbers are always those of the fit on the training part.
    abstain : float, optional
        Share of the proteins that the head gets right which it may refuse to answer, so as to refuse those
        to which its question does not apply; it answers every protein if not given. See
        `bioxfer.heads.confidence`.
    families : bool
        Let the head also recognise the families of its training proteins by their words; see
        `bioxfer.families`. How much they count is chosen on ``dev``, which must be there.
    first : int, optional
        Residues, from the start of each protein, that the vectors represent; the composition baselines then
        see no others. All if not given.
    sizes : sequence of int
        Numbers of training proteins at which heads are fitted as well, three times each, for a learning
        curve on the same validation part; see `bioxfer.curves.draw_curve`.
    method, threads
        Of the search for the training proteins that held-out ones align with, see
        `bioxfer.homology.find_links`.
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
        As in `fit_head` and `check_options`; also a split that is none of these, an empty side, or a share to
        abstain by which the head would still answer every protein.
    """
    vectors = np.ascontiguousarray(features, dtype=np.float32)
    _check_lengths(
        vectors, {"labels": labels, "ids": ids, "sequences": sequences, "groups": np.asarray(groups)}
    )
    if splits is not None:
        _check_lengths(vectors, {"splits": splits})
    usable = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    x, group = vectors[usable], np.asarray(groups)[usable]
    label, names, proteins = ([column[i] for i in usable.tolist()] for column in (labels, ids, sequences))
    whole = task_from_name(task, label)
    named = () if splits is None else [splits[i] for i in usable.tolist()]
    check_options(whole, head=head, abstain=abstain, families=families, dev="dev" in named, sizes=sizes)
    finder = choose_method(method)
    if splits is None:
        codes = whole.encode(label)
        check_classes(whole, codes, group, least=2)
        side = homology_split(group, valid=valid, seed=seed, y=codes)  # leaves numbers unbalanced
        how = f"whole homology clusters held out, {valid:.0%} of the proteins, seed {seed}"
    else:
        side = np.array([str(word) for word in named])
        how = "given with the data"
    train, dev, held = _sides(side)
    known = np.sort(np.concatenate([train, dev]))
    # a mean that knew the validation part would be a small leak
    chosen_task = whole.restrict([label[i] for i in known.tolist()])
    y = chosen_task.encode(label)

    def fit_part(
        values: Floats,
        choice: HeadChoice,
        n_folds: int,
        forms: Sequence[Form] | None = None,
        part: Places = known,
    ) -> Fitted:
        return select(
            values[part],
            y[part],
            [names[i] for i in part.tolist()],
            group[part],
            chosen_task,
            head=choice,
            forms=forms,
            dev=side[part] == "dev",
            folds=n_folds,
            seed=seed,
        )

    fitted = fit_part(x, head, folds, forms)
    chosen_task = fitted.task  # which knows what was chosen out of fold, such as a threshold
    outputs = fitted.outputs(x[held])
    seen = [protein[:first] for protein in proteins]
    memory: FamilyMemory | None = None
    described: dict[str, Any] = {}
    if families:
        memory, fitted = _remember(
            fitted, [seen[i] for i in train.tolist()], y[train], group[train], [seen[i] for i in dev.tolist()]
        )
        alone = chosen_task.predict(outputs)
        outputs = outputs + memory.evidence([seen[i] for i in held.tolist()])
        described = {
            "count": len(memory.targets),
            "weight": memory.weight,
            "chosen_by": "least loss on dev",
            "gain": score_gain(
                chosen_task.metrics, chosen_task.main_metric, y[held], chosen_task.predict(outputs), alone,
                group[held], seed=seed,
            ),
        }  # fmt: skip
    threshold = 0.0 if abstain is None else _find_threshold(fitted, abstain)
    predicted = chosen_task.predict(outputs)
    neighbour, similarity = fitted.index.search(x[held])
    learnt = [proteins[i] for i in train.tolist()]
    aligned = align_to_training([proteins[i] for i in held.tolist()], learnt, method=finder, threads=threads)
    read = aligned  # as the baselines do: of first residues alone, if the head sees no others
    if first is not None:
        part = [seen[i] for i in held.tolist()], [seen[i] for i in train.tolist()]
        read = align_to_training(*part, method=finder, threads=threads)
    others = {
        "majority": np.repeat(np.asarray(chosen_task.constant(y[train]))[None], len(held), axis=0),
        "nearest": y[train][neighbour[:, 0]],
        "alignment": label_by_alignment(chosen_task, read, y[train]),
    }
    judges: dict[str, Task] = {}
    for baseline, table in (("composition", composition(seen)), ("dipeptides", dipeptides(seen))):
        linear = fit_part(table, "linear", min(folds, 3))
        others[baseline] = chosen_task.predict(linear.outputs(table[held]))
        judges[baseline] = linear.task
    metrics, baselines = score_beside(
        chosen_task.metrics,
        chosen_task.main_metric,
        y[held],
        predicted,
        {name: (judges.get(name, chosen_task).metrics, said) for name, said in others.items()},
        group[held],
        seed=seed,
    )
    out_of_fold = (
        f"least out-of-fold loss, {min(folds, len(np.unique(group[train])))} folds over homology clusters of "
        "the training part"
    )
    leaning = f"; {LEANING}" if head in ("auto", "blend") else ""
    judge = "dev, by the fit on train" if len(dev) else "out-of-fold outputs of the training part"
    parts = {"train": train, **({"dev": dev} if len(dev) else {}), "valid": held}
    told: dict[str, Any] = {"temperature": fitted.temperature, "fitted_on": judge, "seed": seed}
    classes = describe_classes(chosen_task, y, predicted, group, train=train, held=held, seed=seed)
    warnings = find_warnings(classes, valid_clusters=len(np.unique(group[held])))
    for warning in warnings[:_WARNINGS_TOLD]:
        log.warning("%s", warning)
    if len(warnings) > _WARNINGS_TOLD:
        log.warning("%d more warnings are in the card", len(warnings) - _WARNINGS_TOLD)
    conformal = ConformalScores.fit(
        fitted.task.nonconformity(fitted.out_of_fold, fitted.targets, temperature=fitted.temperature)
    )
    card = {
        "name": name,
        "task": chosen_task.name,
        "labels": chosen_task.describe({part: y[rows] for part, rows in parts.items()}),
        "intended_use": intended_use or f"Predicting {name} of proteins like those of its training data.",
        "limits": [_ANSWERS_ALL if abstain is None else _ABSTAINS.format(UNKNOWN), _CALIBRATED, *limits],
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
            "dev": len(dev),
            "valid": len(held),
            "train_clusters": len(np.unique(group[train])),
            "dev_clusters": len(np.unique(group[dev])),
            "valid_clusters": len(np.unique(group[held])),
            "valid_with_relatives_in_train": int(np.isin(group[held], group[train]).sum()),
            "dev_with_relatives_in_train": int(np.isin(group[dev], group[train]).sum()),
            "valid_with_relatives_in_dev": int(np.isin(group[held], group[dev]).sum()),
        },
        "head": {
            "kind": fitted.kind,
            "setting": fitted.setting,
            "chosen_by": ("least loss on dev, by the fit on train" if len(dev) else out_of_fold) + leaning,
            "candidates": fitted.candidates,
            "weights_fitted_on": ", ".join(parts) if refit else "train",
            "metrics_measured_on": "valid, by the fit on train alone",
        },
        "backbone": {
            "name": backbone_name,
            "fingerprint": backbone_fingerprint,
            "layer": layer,
            "pool": pool,
            **({} if first is None else {"first": first}),
        },
        "metrics": metrics,
        "baselines": baselines,
        "by_identity": describe_nearness(
            chosen_task, aligned, y[held], predicted, group[held], method=finder, seed=seed
        ),
        "classes": classes,
        **describe_answers(chosen_task, y[held], predicted, seed=seed),
        "missed": describe_misses(
            chosen_task,
            [names[i] for i in held.tolist()],
            y[held],
            predicted,
            outputs,
            temperature=fitted.temperature,
        ),
        "warnings": warnings,
        "calibration": describe_calibration(fitted.task, outputs, y[held], group[held], **told),
        "conformal": describe_sets(fitted.task, conformal, outputs, y[held], group[held], **told),
        "domain": describe_domain(fitted, similarity[:, 0], y[held], predicted),
        "intervals": "95%, 1000 bootstrap draws of whole homology clusters",
        "versions": {"bioxfer": __version__, "numpy": np.__version__, "torch": torch.__version__},
        "seed": seed,
        "date": date,
    }
    if abstain is not None:
        chances = chosen_task.probabilities(outputs, temperature=fitted.temperature)
        answered = confidence(chances, similarity[:, 0]) >= threshold
        card["abstention"] = {
            "threshold": threshold,
            "share_of_right_refused": abstain,
            "chosen_on": judge,
            "confidence": "calibrated probability times cosine to the nearest training protein",
            **score_answers(y[held], predicted, answered, group[held], seed=seed),
        }
    if described:
        card["families"] = described
    if sizes:

        def fit_few(way: str, rows: Places, key: str) -> npt.NDArray[Any]:
            few = fit_part(x, head, folds, forms, np.sort(np.concatenate([rows, dev])))
            return chosen_task.predict(few.outputs(x[held]))

        target, judged = (
            Labelled(x, y, chosen_task, group),
            Labelled(x[held], y[held], chosen_task, group[held]),
        )
        card["curve"], card["left_out_sizes"] = draw_curve(
            target, train, judged, fit_few, {HEAD: predicted}, sizes=sizes, seed=seed, tell=log.info
        )
    if isinstance(fitted.task, Multilabel):
        card["decision"] = {
            "said_from": fitted.task.said_from(fitted.temperature),
            "rule": "labels whose calibrated probability is at least this, and the likeliest in any case",
            "chosen_by": f"Fmax on {judge}",
        }
    if isinstance(fitted.task, Regression):
        card["uncertainty"] = _describe_uncertainty(fitted, fitted.task, outputs, y[held], judge)
    tensors, index = fitted.tensors, fitted.index
    if refit:
        tensors = fitted.refit(x, y, seed=seed)
        index = build_index(x, y, names, far=index.far)
        if memory is not None:
            memory = FamilyMemory.fit(seen, y, group, n_outputs=memory.n_outputs, weight=memory.weight)
    return TrainedHead(
        name=name,
        task=fitted.task,
        kind=fitted.kind,
        pool=pool,
        layer=layer,
        backbone=backbone_name,
        fingerprint=backbone_fingerprint,
        tensors=tensors,
        temperature=fitted.temperature,
        index=index,
        card=card,
        threshold=threshold,
        first=first,
        families=memory,
        conformal=conformal,
    )


def _remember(
    fitted: Fitted,
    sequences: Sequence[str],
    targets: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    dev: Sequence[str],
) -> tuple[FamilyMemory, Fitted]:
    """Learn the families of training proteins, and weigh them by the loss on the selection part."""
    memory = FamilyMemory.fit(sequences, targets, groups, n_outputs=fitted.task.n_outputs)
    if memory is None:
        raise LabelError(
            "no two training proteins of one label are relatives, so there is no family; leave families out"
        )
    evidence = memory.evidence(dev)

    def add(weight: float) -> Floats:
        return np.asarray(fitted.out_of_fold + weight * evidence, dtype=np.float32)

    weight = min(FAMILY_WEIGHTS, key=lambda w: fitted.task.out_of_sample_loss(add(w), fitted.targets))
    judged = replace(
        fitted, out_of_fold=add(weight), temperature=fitted.task.calibrate(add(weight), fitted.targets)
    )
    return replace(memory, weight=weight), judged


def fit_head(
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
    head : {"auto", "linear", "mlp", "nearest", "blend"}
        Form of the head: linear; the average of a few networks with one hidden layer; the votes of the
        nearest training proteins; a mixture of the better network and these votes. ``auto`` takes the one
        with the least out-of-fold loss.
    task : {"auto", "multiclass", "multilabel", "regression"}
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
    return select(x, y, names, group, chosen_task, head=head, folds=folds, seed=seed)


def _sides(side: npt.NDArray[np.str_]) -> tuple[Places, Places, Places]:
    """Return the places of the training, the selection and the validation proteins."""
    strange = sorted(set(side.tolist()) - {"train", "dev", "valid"})
    if strange:
        raise UsageError(
            f"split {strange[0]!r} is neither 'train' nor 'dev' nor 'valid'; rename it or drop its rows"
        )
    train, dev, held = (np.flatnonzero(side == part) for part in ("train", "dev", "valid"))
    if not len(train) or not len(held):
        raise UsageError(
            f"{len(train)} training and {len(held)} validation proteins with a vector leave one side empty; "
            "mark some rows of each"
        )
    return train, dev, held


def _describe_uncertainty(
    fitted: Fitted, task: Regression, outputs: Floats, y: npt.NDArray[Any], judge: str
) -> dict[str, Any]:
    """Say how far a number may be off, and whether that held on the validation part."""
    residuals = (task.predict(fitted.out_of_fold) - fitted.targets) * task.scale
    width = task.halfwidth
    missed = np.abs(task.predict(outputs) - y) * task.scale
    return {
        "residual_sd": float(residuals.std()),
        "halfwidth90": width,
        "held_on_valid": None if width is None else float((missed <= width).mean()),
        "fitted_on": judge,
    }


def check_options(
    task: Task,
    *,
    head: HeadChoice,
    abstain: float | None,
    families: bool,
    dev: bool,
    sizes: Sequence[int] = (),
) -> None:
    """Refuse what `train_head` cannot do for a task.

    Parameters
    ----------
    task : Multiclass, Multilabel or Regression
        What is to be predicted.
    head, abstain, families, sizes
        As in `train_head`.
    dev : bool
        Whether there are rows of the split ``dev``.

    Raises
    ------
    UsageError
        There is no such form; the share to abstain is out of range or asked of a regression; families are
        asked of a regression, without rows to weigh them on or beside a learning curve; or a size is below 2.
    LabelError
        A class has the name of an abstaining head's answer.
    """
    check_choice(head)
    check_sizes(sizes, DRAWS)
    if sizes and families:
        raise UsageError("the fits of a learning curve know no families; leave families or sizes out")
    if abstain is not None:
        _check_abstain(abstain, task)
    if families and isinstance(task, Regression):
        raise UsageError("families have labels, and a regression has none; leave families out")
    if families and isinstance(task, Multilabel):
        raise UsageError("a family has one label, and a multilabel head says several; leave families out")
    if families and not dev:
        raise UsageError("how much families count is chosen on rows of the split dev, and there are none")


def _find_threshold(fitted: Fitted, share: float) -> float:
    """Find the confidence below which a head abstains, and refuse one that no protein falls below."""
    threshold = fitted.find_threshold(share)
    if not threshold > 0:
        raise UsageError(
            f"abstain {share} refuses nothing: more than that share of the proteins that the head gets right "
            "resemble no training protein at all; give a larger share, or leave abstain out"
        )
    return threshold


def _check_abstain(share: float, task: Task) -> None:
    if not 0 < share < 1:
        raise UsageError(f"abstain {share} is not between 0 and 1; give a small share such as 0.05")
    if not task.labels:
        raise UsageError(f"a {task.name} has no classes to abstain from; leave abstain out")
    if isinstance(task, Multilabel):
        raise UsageError("a multilabel head is unsure of each label apart; leave abstain out")
    if UNKNOWN in task.labels:
        raise LabelError(
            f"a class is called {UNKNOWN!r}, as an abstaining head's answer is; rename the class"
        )


def _check_lengths(x: Floats, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
    if x.ndim != 2:
        raise UsageError(f"features of shape {x.shape} are not (proteins, dimensions)")
    for name, column in columns.items():
        if len(column) != len(x):
            raise UsageError(f"{len(column)} {name} do not fit {len(x)} vectors; give one for each")
