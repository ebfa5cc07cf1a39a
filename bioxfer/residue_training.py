"""Train and judge heads for residues: from labelled records to a `ResidueHead` and its card, or to metrics.

Proteins have three sides. Weights are fitted on train, the form of the head, its epochs, its temperature and
the similarity below which a protein is far are chosen on dev, and valid is used once, to score what was
chosen beside its baselines.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioxfer import __version__
from bioxfer.backbones import Backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.clusters import cluster_records, homology_split
from bioxfer.embedding import Long, embed_records, resolve_layer
from bioxfer.errors import InputError, LabelError, UsageError
from bioxfer.evaluate import audit_leakage, expected_calibration_error, log_softmax
from bioxfer.homology import Method, choose_method
from bioxfer.residue_fitting import FAR_SHARE, ResidueSet, check_form, fit_residues, gather_residues
from bioxfer.residue_scores import ResidueScores, fit_windows, run_windows, score_residue_gain, window_codes
from bioxfer.residues import ResidueClasses, ResidueHead, look_like_residue_labels
from bioxfer.sequences import OnInvalid, SequenceRecord, clean_protein

__all__ = [
    "are_residue_labels",
    "check_sides",
    "cut_dev",
    "encode_labels",
    "evaluate_residue_head",
    "keep_sides",
    "train_residue_head",
]

log = logging.getLogger("bioxfer")

Places = npt.NDArray[np.intp]
_WINDOW_RESIDUES = 500_000  # that the window baseline is fitted on at most; its 330 weights need no more
_LIMITS = (
    "Every residue gets an answer of the trained kind, also one to which the question does not apply.",
    "Scores are calibrated on proteins like those of the training data; a protein flagged far is not one.",
)


def are_residue_labels(
    records: Sequence[SequenceRecord], *, on_invalid: OnInvalid = "x", degap: bool = False
) -> bool:
    """Tell whether records carry one label character for each residue; see `look_like_residue_labels`."""
    labels = [record.label or "" for record in records]
    lengths = [len(clean_protein(r, on_invalid=on_invalid, degap=degap).residues) for r in records]
    return look_like_residue_labels(labels, lengths)


def encode_labels(
    records: Sequence[SequenceRecord],
    task: ResidueClasses | None = None,
    *,
    on_invalid: OnInvalid = "x",
    degap: bool = False,
) -> tuple[ResidueClasses, list[npt.NDArray[np.int8]]]:
    """Turn labels into class numbers, and check that each is as long as its cleaned protein.

    Parameters
    ----------
    records : sequence of SequenceRecord
        With labels.
    task : ResidueClasses, optional
        The classes; those that the labels hold if not given.
    on_invalid, degap
        As the proteins will be cleaned, see `bioxfer.embedding.embed_records`.

    Returns
    -------
    tuple of ResidueClasses and list of ndarray
        The task, and ``(L,)`` class numbers for each record, -1 where unresolved.

    Raises
    ------
    LabelError
        A label is missing or not as long as its protein, or holds what is no class.
    """
    for record in records:
        if not record.label:
            raise LabelError(f"{record.place} has no label; give it one or drop it")
        clean = clean_protein(record, on_invalid=on_invalid, degap=degap)
        if not clean.skipped and len(record.label) != len(clean.residues):
            raise LabelError(
                f"{record.place}: a label of {len(record.label)} characters does not fit a protein of "
                f"{len(clean.residues)} residues; give one character for each, ? where it is unresolved"
            )
    if task is None:
        task = ResidueClasses.from_labels([record.label or "" for record in records])
    codes = []
    for record in records:
        try:
            codes.append(task.encode(record.label or ""))
        except LabelError as error:
            raise LabelError(f"{record.place}: {error}") from error
    return task, codes


def train_residue_head(
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    name: str,
    head: str = "auto",
    split: Literal["homology", "random", "column"] = "homology",
    identity: float = 0.3,
    cluster_by: Method = "auto",
    valid: float = 0.15,
    refit: bool = True,
    layer: int | None = None,
    data_source: str = "",
    data_sha256: str = "",
    licence: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
    date: str = "",
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int | None = None,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ResidueHead:
    """Train a head that labels every residue, score it on held-out proteins, and return it with its card.

    Parameters
    ----------
    records : sequence of SequenceRecord
        Each label has one character for each residue; ``?``, ``-`` and ``_`` are unresolved.
    backbone : Backbone
        The frozen feature extractor.
    name : str
        Name of the head and stem of its output columns.
    head : {"auto", "linear", "conv"}
        Form of the head; ``auto`` takes the one with the least loss on the dev proteins.
    split : {"homology", "random", "column"}
        Hold out whole homology clusters, random proteins, or go by the ``split`` column: rows that begin
        with ``train``, ``dev`` or ``val``. Without dev rows, whole clusters of a tenth of the training part
        are the dev side.
    identity, cluster_by, threads
        See `bioxfer.clusters.cluster_sequences`.
    valid : float
        Share of proteins to hold out where the column does not tell.
    refit : bool
        Fit the shipped weights on all proteins with what was chosen; the card's numbers are always those of
        the fit on the training part.
    layer, long, on_invalid, degap, batch_tokens, cache, fp32, progress
        See `bioxfer.embedding.embed_records`.
    data_source, data_sha256, licence, intended_use, limits, date
        Stated in the card as given.
    seed : int
        Of splits, weights and order.

    Returns
    -------
    ResidueHead
        Ready to save.

    Raises
    ------
    LabelError
        Labels and proteins do not fit, or a side lacks proteins or a class.
    UsageError
        There is no such form, or a side holds no resolved residue.
    InputError
        No record has a vector.
    """
    import torch

    check_form(head)
    if split == "column":
        records = keep_sides(records)
    task, codes = encode_labels(records, on_invalid=on_invalid, degap=degap)
    finder = choose_method(cluster_by)
    number = resolve_layer(backbone, layer)
    data, kept = _embed(
        records, codes, backbone, layer=number, long=long, on_invalid=on_invalid, degap=degap,
        batch_tokens=batch_tokens, cache=cache, fp32=fp32, progress=progress,
    )  # fmt: skip
    members = [records[i] for i in kept]
    groups, grouped_by = cluster_records(
        members, data.sequences, identity=identity, method=finder, threads=threads
    )
    side, how = _deal_sides(members, groups, split=split, valid=valid, seed=seed)
    train, dev, held = (np.flatnonzero(side == part) for part in ("train", "dev", "valid"))
    dev_how = "given with the data"
    if not len(dev):
        train, dev = cut_dev(groups, train, seed=seed)
        dev_how = "whole homology clusters, a tenth of the training part"
    check_sides(task, data, {"training": train, "dev": dev, "validation": held})
    fitted = fit_residues(data, task, head=head, train=train, dev=dev, seed=seed)
    outputs = fitted.run(data, held)
    judged = _judge(task, data, held, groups[held], outputs, seed=seed)
    similarity = fitted.index.search(data.means[held])[1][:, 0]
    card: dict[str, Any] = {
        "name": name,
        "task": task.name,
        "labels": {
            label: {
                part: int((data.targets_of(places) == place).sum())
                for part, places in (("train", train), ("dev", dev), ("valid", held))
            }
            for place, label in enumerate(task.classes)
        },
        "intended_use": intended_use or f"Predicting {name} of residues of proteins like the training data.",
        "limits": [*_LIMITS, *limits],
        "data": {
            "source": data_source,
            "sha256": data_sha256,
            "licence": licence or "not stated",
            "proteins": len(records),
            "residues": len(data.targets),
            "left_out_without_vector": len(records) - len(kept),
        },
        "split": {
            "how": how,
            "dev_how": dev_how,
            "train": len(train),
            "dev": len(dev),
            "valid": len(held),
            "train_clusters": len(np.unique(groups[train])),
            "dev_clusters": len(np.unique(groups[dev])),
            "valid_clusters": len(np.unique(groups[held])),
            "valid_with_relatives_in_train": int(np.isin(groups[held], groups[train]).sum()),
            **({} if grouped_by == "given" else {"identity": identity}),
            "clustered_by": grouped_by,
        },
        "head": {
            "kind": fitted.kind,
            "setting": fitted.setting,
            "chosen_by": "least loss on the dev proteins",
            "candidates": fitted.candidates,
            "weights_fitted_on": "train, dev and valid" if refit else "train",
            "metrics_measured_on": "valid, by the fit on train alone",
        },
        "backbone": {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "layer": number,
            "pool": "mean",
        },
        "metrics": judged.score(seed=seed),
        "baselines": _score_baselines(task, data, train, held, groups[held], judged, seed),
        "calibration": _describe_calibration(fitted.temperature, outputs, data.targets_of(held)),
        "domain": _describe_domain(fitted.index.far, outputs, data, held, similarity),
        "intervals": "95%, 1000 bootstrap draws of whole homology clusters",
        "versions": {"bioxfer": __version__, "numpy": np.__version__, "torch": torch.__version__},
        "seed": seed,
        "date": date,
    }
    if split != "homology" and grouped_by != "given":
        card["split"]["leakage"] = audit_leakage(
            [data.sequences[i] for i in (*train, *dev)],
            [data.sequences[i] for i in held],
            identity=identity,
            method=finder,
            threads=threads,
        ).to_dict()
    tensors, index = fitted.tensors, fitted.index
    if refit:
        tensors, index = fitted.refit(data, task, np.arange(len(data)), seed=seed)
    return ResidueHead(
        name=name,
        task=task,
        kind=fitted.kind,
        layer=number,
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        tensors=tensors,
        temperature=fitted.temperature,
        index=index,
        card=card,
    )


def evaluate_residue_head(
    head: ResidueHead,
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    identity: float = 0.3,
    cluster_by: Method = "auto",
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int | None = None,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[str, str, str, str]]:
    """Score a head for residues on labelled proteins; parameters, rows and errors as `evaluate_on_records`.

    Raises
    ------
    FingerprintError
        The backbone is not the head's.
    LabelError
        A label is not as long as its protein or holds none of the head's classes; some records have a
        cluster and others have none.
    InputError
        No record has a vector.
    """
    head.check_backbone(backbone)
    _, codes = encode_labels(records, head.task, on_invalid=on_invalid, degap=degap)
    finder = choose_method(cluster_by)
    data, kept = _embed(
        records, codes, backbone, layer=head.layer, long=long, on_invalid=on_invalid, degap=degap,
        batch_tokens=batch_tokens, cache=cache, fp32=fp32, progress=progress,
    )  # fmt: skip
    members = [records[i] for i in kept]
    groups, _ = cluster_records(members, data.sequences, identity=identity, method=finder, threads=threads)
    places = np.arange(len(data))
    outputs = data.run(head.kind, head.tensors, places)
    known = data.targets >= 0
    if not known.any():
        raise LabelError("no residue of these proteins has a resolved label; there is nothing to score")
    trained_on = len({record.id for record in records} & set(head.index.ids))
    if trained_on:
        log.warning(
            "%d of %d proteins bear ids that head %r was trained on; what it says of those is memory",
            trained_on,
            len(records),
            head.name,
        )
    rows = [
        ("proteins", str(len(data)), "", ""),
        ("clusters", str(len(set(groups.tolist()))), "", ""),
        ("trained_on", str(trained_on), "", ""),
        ("residues", str(int(known.sum())), "", ""),
    ]
    if missing := len(records) - len(kept):
        rows.append(("left_out_without_vector", str(missing), "", ""))
    scores = _judge(head.task, data, places, groups, outputs, seed=seed).score(seed=seed)
    for metric, score in scores.items():
        low, high = (f"{end:.4f}" for end in score["ci95"]) if score["ci95"] else ("", "")
        rows.append((metric, f"{score['value']:.4f}", low, high))
    chances = np.exp(log_softmax(outputs[known], temperature=head.temperature))
    error = expected_calibration_error(chances, data.targets[known])
    rows.append(("calibration_error", f"{error:.4f}", "", ""))
    return rows


def keep_sides(records: Sequence[SequenceRecord]) -> list[SequenceRecord]:
    """Keep the rows whose split begins with ``train``, ``dev`` or ``val``; count the others in a warning.

    Raises
    ------
    LabelError
        There is no training or no validation row.
    """
    kept = [record for record in records if (record.split or "").startswith(("train", "dev", "val"))]
    if left := Counter(r.split or "(empty)" for r in records) - Counter(r.split or "" for r in kept):
        log.warning(
            "left out by their split: %s", ", ".join(f"{n} of {split!r}" for split, n in left.items())
        )
    for word in ("train", "val"):
        if not any((record.split or "").startswith(word) for record in kept):
            found = ", ".join(sorted({record.split or "(empty)" for record in records})[:5])
            raise LabelError(f"no record's split begins with {word!r} (found: {found}); name some rows so")
    return kept


def cut_dev(
    groups: npt.NDArray[Any], train: Places, *, share: float = 0.1, seed: int
) -> tuple[Places, Places]:
    """Cut whole clusters off the training places ``(M,)``; return what is left, and the dev places.

    Raises
    ------
    LabelError
        All training proteins are relatives of each other.
    """
    if len(np.unique(groups[train])) < 2:
        raise LabelError(
            f"all {len(train)} training proteins are relatives of each other, so none can choose the head; "
            "add diverse ones"
        )
    part = homology_split(groups[train], valid=share, seed=seed)
    return train[part == "train"], train[part == "valid"]


def _embed(
    records: Sequence[SequenceRecord],
    codes: Sequence[npt.NDArray[np.int8]],
    backbone: Backbone,
    *,
    layer: int,
    long: Long,
    on_invalid: OnInvalid,
    degap: bool,
    batch_tokens: int | None,
    cache: EmbeddingCache | None,
    fp32: Callable[[], Backbone] | None,
    progress: Callable[[int], object] | None,
) -> tuple[ResidueSet, list[int]]:
    """Embed records and keep those with a vector; return them and their places."""
    embedded = embed_records(
        records,
        backbone,
        layer=layer,
        pools=("mean",),
        per_residue=True,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
    )
    rows = ((row.record.id, row.sequence, row.residues) for row in embedded)
    data, kept = gather_residues(rows, codes, width=backbone.dim)
    if not kept:
        raise InputError(
            f"none of {len(records)} records could be embedded; look at them with `bioxfer embed`"
        )
    return data, kept


def _deal_sides(
    records: Sequence[SequenceRecord], groups: npt.NDArray[Any], *, split: str, valid: float, seed: int
) -> tuple[npt.NDArray[np.str_], str]:
    """Return the side of each protein, and how it was chosen."""
    if split == "column":
        words = [r.split or "" for r in records]
        sides = ["valid" if w.startswith("val") else "dev" if w.startswith("dev") else "train" for w in words]
        return np.array(sides), "given with the data"
    if split == "random":
        drawn = np.random.default_rng(seed).permutation(len(records)) < round(valid * len(records))
        return np.where(drawn, "valid", "train"), (
            f"random proteins, seed {seed}; relatives may be on both sides"
        )
    if len(np.unique(groups)) < 3:
        raise LabelError(
            f"{len(groups)} proteins make {len(np.unique(groups))} homology clusters, and the sides need at "
            "least 3; add diverse ones"
        )
    how = f"whole homology clusters held out, {valid:.0%} of the proteins, seed {seed}"
    return homology_split(groups, valid=valid, seed=seed), how


def check_sides(task: ResidueClasses, data: ResidueSet, sides: Mapping[str, Places]) -> None:
    """Refuse sides on which a head cannot be trained or judged.

    Parameters
    ----------
    task : ResidueClasses
        The classes.
    data : ResidueSet
        All proteins.
    sides : mapping of str to ndarray
        Name and places of each side; ``training`` needs every class.

    Raises
    ------
    UsageError
        A side holds no resolved residue.
    LabelError
        The training side lacks a class.
    """
    for word, places in sides.items():
        found = set(data.targets_of(places).tolist()) - {-1}
        if not found:
            raise UsageError(
                f"{len(places)} {word} proteins with a vector hold no resolved residue; mark some of each"
            )
        if word == "training" and len(found) < task.n_outputs:
            missing = next(c for number, c in enumerate(task.classes) if number not in found)
            raise LabelError(
                f"class {missing!r} is that of no residue of the training part; add proteins, or make it ?"
            )


def _judge(
    task: ResidueClasses,
    data: ResidueSet,
    places: Places,
    groups: npt.NDArray[Any],
    outputs: npt.NDArray[Any],
    *,
    seed: int,
    predicted: npt.NDArray[Any] | None = None,
) -> ResidueScores:
    """Count what outputs ``(T, C)``, or predicted classes ``(T,)``, say of the residues of some proteins."""
    digits, expected = task.digits, None
    if predicted is None:
        predicted = np.argmax(outputs, axis=1)
        if digits is not None:
            expected = np.exp(log_softmax(outputs)) @ digits
    elif digits is not None:
        expected = digits[predicted]
    lengths = data.lengths[places]
    return ResidueScores(task, data.targets_of(places), predicted, lengths, groups, expected=expected)


def _score_baselines(
    task: ResidueClasses,
    data: ResidueSet,
    train: Places,
    held: Places,
    groups: npt.NDArray[Any],
    judged: ResidueScores,
    seed: int,
) -> dict[str, Any]:
    """Score what needs no backbone: the majority, the residue's own commonest class, a window of residues."""
    few = data.draw(train, _WINDOW_RESIDUES, seed=seed)
    codes, wanted = window_codes(data.sequences_of(few)), data.targets_of(few)
    codes, wanted = codes[wanted >= 0], wanted[wanted >= 0]
    asked = window_codes(data.sequences_of(held))
    middle = codes.shape[1] // 2
    counts = np.zeros((max(int(codes.max()), int(asked.max())) + 1, task.n_outputs), dtype=np.int64)
    np.add.at(counts, (codes[:, middle].astype(np.int64), wanted.astype(np.int64)), 1)
    common = int(np.bincount(wanted).argmax())
    counts[:, common] += counts.sum(axis=1) == 0  # a residue that training lacks
    nothing = np.empty((0, task.n_outputs))
    window = run_windows(fit_windows(codes, wanted, task.n_outputs, seed=seed), asked)
    said = {
        "majority": _judge(
            task, data, held, groups, nothing, seed=seed, predicted=np.full(len(asked), common)
        ),
        "residue": _judge(
            task, data, held, groups, nothing, seed=seed, predicted=counts.argmax(axis=1)[asked[:, middle]]
        ),
        "window15": _judge(task, data, held, groups, window, seed=seed),
    }
    return {
        name: {
            "metrics": scores.score(seed=seed),
            "head_minus_baseline": score_residue_gain(judged, scores, seed=seed),
        }
        for name, scores in said.items()
    }


def _describe_calibration(
    temperature: float, outputs: npt.NDArray[Any], targets: npt.NDArray[Any]
) -> dict[str, Any]:
    known = targets >= 0

    def error(temperature: float) -> float:
        chances = np.exp(log_softmax(outputs[known], temperature=temperature))
        return expected_calibration_error(chances, targets[known])

    return {
        "temperature": temperature,
        "fitted_on": "residues of the dev proteins",
        "ece_before": error(1.0),
        "ece_after": error(temperature),
    }


def _describe_domain(
    far_below: float,
    outputs: npt.NDArray[Any],
    data: ResidueSet,
    held: Places,
    similarity: npt.NDArray[Any],
) -> dict[str, Any]:
    """Say where the head was tested, and how it fares on the proteins it would call far."""
    targets = data.targets_of(held)
    right = np.argmax(outputs, axis=1) == targets
    far = similarity < far_below
    parts: dict[str, Any] = {
        "far_below": far_below,
        "meaning": f"{1 - FAR_SHARE:.0%} of the dev proteins were at least as similar to a training protein",
    }
    for part, proteins in (("in_domain", ~far), ("far", far)):
        parts[part] = {"valid": int(proteins.sum())}
        counted = np.repeat(proteins, data.lengths[held]) & (targets >= 0)
        if counted.any():
            parts[part]["accuracy"] = float(right[counted].mean())
    return parts
