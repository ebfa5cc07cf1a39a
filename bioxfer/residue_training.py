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
from bioxfer.evaluate import audit_leakage, expected_calibration_error
from bioxfer.homology import Method, choose_method
from bioxfer.judgement import Judgement, judge_residues
from bioxfer.residue_fitting import ResidueSet, check_form, fit_residues, gather_residues
from bioxfer.residue_judging import (
    describe_calibration,
    describe_domain,
    describe_labels,
    describe_residue_misses,
    judge,
    score_baselines,
)
from bioxfer.residue_labels import encode_labels
from bioxfer.residue_tasks import ResidueClasses, ResidueTask, ResidueValues, is_resolved
from bioxfer.residues import ResidueHead
from bioxfer.sequences import OnInvalid, SequenceRecord

__all__ = [
    "check_sides",
    "cut_dev",
    "evaluate_residue_head",
    "keep_sides",
    "train_residue_head",
]

log = logging.getLogger("bioxfer")

Places = npt.NDArray[np.intp]
_LIMIT = "Every residue gets an answer of the trained kind, also one to which the question does not apply."
_LIMITS = {
    ResidueClasses.name: "Scores are calibrated",
    ResidueValues.name: "The interval around a number was measured",
}


def train_residue_head(
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    name: str,
    task: str = ResidueClasses.name,
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
        Each label has one character for each residue; ``?``, ``-`` and ``_`` are unresolved. Of numbers it
        has one for each residue, separated by white space, and ``?``, ``-``, ``_``, ``.``, ``nan`` and ``NA``
        are unresolved; in a table without any white space each character is a number of one digit.
    backbone : Backbone
        The frozen feature extractor.
    name : str
        Name of the head and stem of its output columns.
    task : {"residue-class", "residue-regression"}
        One of some classes for every residue, or a number, fitted by least squares.
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
        Labels and proteins do not fit, a side lacks proteins or a class, or the training proteins have one
        number alone.
    UsageError
        There is no such form, or a side holds no resolved residue.
    InputError
        No record has a vector.
    """
    import torch

    check_form(head)
    if split == "column":
        records = keep_sides(records)
    whole, codes = encode_labels(records, task, on_invalid=on_invalid, degap=degap)
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
    check_sides(whole, data, {"training": train, "dev": dev, "validation": held})
    fitted = fit_residues(data, whole, head=head, train=train, dev=dev, seed=seed)
    said = fitted.task.calibrate_width(
        fitted.run(data, dev), data.targets_of(dev), np.repeat(groups[dev], data.lengths[dev])
    )
    outputs = fitted.run(data, held)
    judged = judge(said, data, held, groups[held], outputs)
    similarity = fitted.index.search(data.means[held])[1][:, 0]
    told = describe_labels(said, judged, data, {"train": train, "dev": dev, "valid": held}, groups, seed=seed)
    for warning in told["warnings"]:
        log.warning("%s", warning)
    card: dict[str, Any] = {
        "name": name,
        "task": said.name,
        **told,
        "intended_use": intended_use or f"Predicting {name} of residues of proteins like the training data.",
        "limits": [
            _LIMIT,
            f"{_LIMITS[said.name]} on proteins like those of the training data; a protein flagged far is not "
            "one.",
            *limits,
        ],
        "data": {
            "source": data_source,
            "sha256": data_sha256,
            "licence": licence or "not stated",
            "proteins": len(records),
            "residues": len(data.targets),
            "unresolved_residues": int((~is_resolved(data.targets)).sum()),
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
        "baselines": score_baselines(said, data, train, held, groups[held], judged, seed=seed),
        "missed": describe_residue_misses(said, data, held, outputs, temperature=fitted.temperature),
        **describe_calibration(said, fitted.temperature, data, held, groups[held], outputs, seed=seed),
        "domain": describe_domain(
            said, data, held, groups[held], outputs, similarity=similarity, far_below=fitted.index.far
        ),
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
        tensors, index = fitted.refit(data, np.arange(len(data)), seed=seed)
    return ResidueHead(
        name=name,
        task=said,
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
    watch: Callable[[Judgement], object] | None = None,
) -> list[tuple[str, str, str, str]]:
    """Score a head for residues on labelled proteins; parameters, rows and errors as `evaluate_on_records`.

    Raises
    ------
    FingerprintError
        The backbone is not the head's.
    LabelError
        A label is not as long as its protein, or holds none of the head's classes or no number; some records
        have a cluster and others have none.
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
    known = is_resolved(data.targets)
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
    if unresolved := int((~known).sum()):
        rows.append(("unresolved_residues", str(unresolved), "", ""))
    if missing := len(records) - len(kept):
        rows.append(("left_out_without_vector", str(missing), "", ""))
    judged = judge(head.task, data, places, groups, outputs)
    scores = judged.score(seed=seed)
    for metric, score in scores.items():
        low, high = (f"{end:.4f}" for end in score["ci95"]) if score["ci95"] else ("", "")
        rows.append((metric, f"{score['value']:.4f}", low, high))
    if head.labels:
        chances = head.task.probabilities(outputs[known], temperature=head.temperature)
        error = expected_calibration_error(chances, data.targets[known])
        rows.append(("calibration_error", f"{error:.4f}", "", ""))
    if watch is not None:
        there = set(kept)
        watch(
            judge_residues(
                head, rows, scores, data, judged, groups, outputs,
                labels=[member.label or "" for member in members],
                left_out=[record.id for i, record in enumerate(records) if i not in there], seed=seed,
            )
        )  # fmt: skip
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
    codes: Sequence[npt.NDArray[Any]],
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


def check_sides(task: ResidueTask, data: ResidueSet, sides: Mapping[str, Places]) -> None:
    """Refuse sides on which a head cannot be trained or judged.

    Parameters
    ----------
    task : ResidueClasses or ResidueValues
        The classes, or numbers.
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
        targets = data.targets_of(places)
        found = np.unique(targets[is_resolved(targets)])
        if not len(found):
            raise UsageError(
                f"{len(places)} {word} proteins with a vector hold no resolved residue; mark some of each"
            )
        if word == "training" and len(found) < task.n_outputs:
            missing = task.classes[int(np.setdiff1d(np.arange(task.n_outputs), found)[0])]
            raise LabelError(
                f"class {missing!r} is that of no residue of the training part; add proteins, or make it ?"
            )
