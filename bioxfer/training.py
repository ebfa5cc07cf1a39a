"""Train and evaluate: the conductor from labelled records to a head and its card, or to metrics."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioxfer.backbones import Backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.clusters import cluster_records
from bioxfer.embedding import Long, embed_records, resolve_layer
from bioxfer.errors import InputError, LabelError, UsageError
from bioxfer.evaluate import audit_leakage, score_answers, score_predictions
from bioxfer.head_training import HeadChoice, check_options, train_head
from bioxfer.heads import TrainedHead
from bioxfer.homology import Method, choose_method
from bioxfer.io import OnDuplicate, match_labels, read_labels, read_sequences
from bioxfer.residue_training import (
    are_residue_labels,
    evaluate_residue_head,
    keep_sides,
    train_residue_head,
)
from bioxfer.residues import ResidueClasses, ResidueHead
from bioxfer.sequences import OnInvalid, SequenceRecord, translate_cds
from bioxfer.tasks import Regression, task_from_name

__all__ = ["describe_card", "evaluate_on_records", "read_labelled", "train_on_records"]

log = logging.getLogger("bioxfer")

SplitBy = Literal["homology", "random", "column"]

_CLASSES_NAMED = 10  # in a message before it says "..."


@dataclass(frozen=True, slots=True)
class _Embedded:
    records: list[SequenceRecord]
    residues: list[str]
    features: npt.NDArray[np.float32]  # (N, F), NaN where a record has no vector

    @property
    def labels(self) -> list[str]:
        return [record.label or "" for record in self.records]


def read_labelled(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    *,
    on_duplicate: OnDuplicate = "error",
    genetic_code: int | None = None,
) -> list[SequenceRecord]:
    """Read records with their labels, from one table or from sequences and a label file.

    Parameters
    ----------
    source : path
        FASTA, or a table that may carry ``label`` and ``split`` columns itself.
    labels : path or None
        Label file for `read_labels`.
    on_duplicate : {"error", "rename"}, optional
        See `read_sequences`; a label file cannot tell renamed records apart.
    genetic_code : int, optional
        The records are coding sequences, to be translated after this table of NCBI's.

    Raises
    ------
    LabelError
        If no record has a label.
    UsageError
        If records are to be renamed and labels found by their ids, or there is no such genetic code.
    """
    if labels is not None and on_duplicate == "rename":
        raise UsageError(
            "a label file tells records by their ids, so none may be renamed; "
            "make ids unique, or put the labels into a label column of the sequences' table"
        )
    records = read_sequences(source, on_duplicate=on_duplicate)
    if genetic_code is not None:
        records = [translate_cds(record, table=genetic_code) for record in records]
    if labels is not None:
        records, report = match_labels(records, read_labels(labels), source=str(labels))
        (log.warning if "without" in report else log.info)("%s", report)
        return records
    labelled = [record for record in records if record.label]
    if not labelled:
        raise LabelError(f"{source}: no record has a label; give --labels, or a table with a label column")
    if len(labelled) < len(records):
        without = [record.id for record in records if not record.label]
        log.warning("%d of %d records have no label (%s)", len(without), len(records), ", ".join(without[:3]))
    return labelled


def train_on_records(
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    name: str,
    data_source: str = "",
    task: str = "auto",
    head: HeadChoice | Literal["conv"] = "auto",
    split: SplitBy = "homology",
    identity: float = 0.3,
    cluster_by: Method = "auto",
    valid: float = 0.15,
    refit: bool = True,
    abstain: float | None = None,
    families: bool = False,
    first: int | None = None,
    layer: int | None = None,
    pool: str = "mean+max",
    licence: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int | None = None,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> TrainedHead | ResidueHead:
    """Train a head on labelled proteins; where labels have one character per residue, a head for residues.

    Parameters
    ----------
    records : sequence of SequenceRecord
        With labels, as `read_labelled` gives them.
    backbone : Backbone
        The frozen feature extractor.
    name, data_source, task, head, valid, refit, abstain, families, licence, intended_use, limits, seed
        See `bioxfer.head_training.train_head`, and for the task ``residue-class``
        `bioxfer.residue_training.train_residue_head`.
    split : {"homology", "random", "column"}, optional
        Hold out whole homology clusters, random proteins, or the rows whose
        ``split`` begins with ``val``; with ``column``, rows that begin with
        ``dev`` choose the head in place of cross-validation, and rows that
        begin with none of the three are left out and counted.
    identity : float, optional
        Share of identical residues from which proteins are relatives.
    cluster_by : {"auto", "mmseqs", "kmer"}, optional
        What finds relatives, see `bioxfer.clusters.cluster_sequences`; the card says which it was. Records
        with a cluster of their own keep that.
    first : int, optional
        Let the head read only that many residues of each protein, from its start, as the baselines then do;
        relatives are found by the whole proteins all the same. Not for heads for residues.
    layer, pool, long, on_invalid, degap, batch_tokens, cache, fp32, progress
        See `embed_records`; heads for residues read each residue, whatever the pool.
    threads : int, optional
        Of the homology search.

    Returns
    -------
    TrainedHead or ResidueHead
        With its card.

    Raises
    ------
    LabelError
        If labels and records do not fit, or the split column is not there or names no row for a side.
    UsageError
        If an option does not fit the labels or another option.
    InputError
        If no record has a vector.
    """
    if task == ResidueClasses.name or (
        task == "auto" and are_residue_labels(records, on_invalid=on_invalid, degap=degap)
    ):
        if abstain is not None:
            raise UsageError("a head for residues answers each of them; leave abstain out")
        if first is not None:
            raise UsageError("a head for residues reads whole proteins; leave first out")
        if families:
            raise UsageError("a head for residues has no families; leave families out")
        if split == "column":
            records = keep_sides(records)
        return train_residue_head(
            records,
            backbone,
            name=name,
            head=head,
            split=split,
            identity=identity,
            cluster_by=cluster_by,
            valid=valid,
            refit=refit,
            layer=layer,
            data_source=data_source,
            data_sha256=_digest(records),
            licence=licence,
            intended_use=intended_use,
            limits=limits,
            long=long,
            on_invalid=on_invalid,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=fp32,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if head == "conv":
        raise UsageError("head 'conv' labels residues, and these labels are of proteins; choose another form")
    if split == "column":
        records = keep_sides(records)
    _check_labels(records, numbers=task == "regression")
    # What can be refused is refused now: to embed the records takes long.
    check_options(
        task_from_name(task, [record.label or "" for record in records]),
        head=head,
        abstain=abstain,
        families=families,
        dev=split == "column" and any((record.split or "").startswith("dev") for record in records),
    )
    finder = choose_method(cluster_by)
    number = resolve_layer(backbone, layer)
    embedded = _embed(
        records,
        backbone,
        layer=number,
        pool=pool,
        first=first,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
    )
    groups, grouped_by = cluster_records(
        records, embedded.residues, identity=identity, method=finder, threads=threads
    )
    sides: list[str] | None = None
    if split == "column":
        sides = [{"t": "train", "d": "dev", "v": "valid"}[(r.split or "")[0]] for r in records]
    elif split == "random":
        drawn = np.random.default_rng(seed).permutation(len(records)) < round(valid * len(records))
        sides = ["valid" if held_out else "train" for held_out in drawn]
    trained = train_head(
        embedded.features,
        embedded.labels,
        [record.id for record in records],
        sequences=embedded.residues,
        groups=groups,
        name=name,
        pool=pool,
        layer=number,
        backbone_name=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        head=head,
        task=task,
        splits=sides,
        valid=valid,
        refit=refit,
        abstain=abstain,
        families=families,
        first=first,
        seed=seed,
        data_sha256=_digest(records),
        data_source=data_source,
        licence=licence,
        intended_use=intended_use,
        limits=limits,
    )
    trained.card["backbone"]["precision"] = backbone.precision
    if grouped_by != "given":
        trained.card["split"]["identity"] = identity
    trained.card["split"]["clustered_by"] = grouped_by
    if kin := trained.card["split"].get("dev_with_relatives_in_train"):
        log.warning(
            "%d of %d proteins of the split 'dev' have relatives in training; "
            "the head was chosen and calibrated for such, and will be too sure of others",
            kin,
            trained.card["split"]["dev"],
        )
    if sides is not None and grouped_by != "given":  # who brings clusters has told what relatives are
        parts: dict[str, list[str]] = {"train": [], "dev": [], "valid": []}
        for side, residues in zip(sides, embedded.residues, strict=True):
            parts[side].append(residues)
        for key, part in (("leakage", parts["train"]), ("leakage_from_dev", parts["dev"])):
            if part:
                audit = audit_leakage(part, parts["valid"], identity=identity, method=finder, threads=threads)
                trained.card["split"][key] = audit.to_dict()
    if split == "random":
        trained.card["split"]["how"] = f"random proteins, seed {seed}; relatives may be on both sides"
    return trained


def evaluate_on_records(
    head: TrainedHead | ResidueHead,
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
    """Score a head on labelled proteins.

    Parameters
    ----------
    head : TrainedHead or ResidueHead
        What is judged.
    records : sequence of SequenceRecord
        With labels, as `read_labelled` gives them.
    backbone : Backbone
        The head's own.
    identity, cluster_by, threads
        See `train_on_records`; records with a cluster of their own keep that.
    long, on_invalid, degap, batch_tokens, cache, fp32, progress
        See `embed_records`.
    seed : int, optional
        Of the bootstrap.

    Returns
    -------
    list of tuple of str
        ``metric, value, low, high``; the interval is empty where there is none. Before the metrics
        stand the numbers of proteins, of homology clusters, and of proteins that the head was trained on.

    Raises
    ------
    FingerprintError
        If the backbone is not the head's.
    LabelError
        If a label is none of the head's classes, or some records have a cluster and others have none.
    InputError
        If no record has a vector.
    """
    if isinstance(head, ResidueHead):
        return evaluate_residue_head(
            head,
            records,
            backbone,
            identity=identity,
            cluster_by=cluster_by,
            long=long,
            on_invalid=on_invalid,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=fp32,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    head.check_backbone(backbone)
    _check_labels(records, classes=head.labels, numbers=not head.labels)
    finder = choose_method(cluster_by)
    targets = head.task.encode([record.label or "" for record in records])
    embedded = _embed(
        records,
        backbone,
        layer=head.layer,
        pool=head.pool,
        first=head.first,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
    )
    usable = np.isfinite(embedded.features).all(axis=1)
    groups, _ = cluster_records(records, embedded.residues, identity=identity, method=finder, threads=threads)
    groups, features, targets = groups[usable], embedded.features[usable], targets[usable]
    read = [embedded.residues[place] for place in np.flatnonzero(usable).tolist()]
    outputs = head.logits(features, read)
    predicted = head.task.predict(outputs)
    scores = score_predictions(head.task.metrics, targets, predicted, groups, seed=seed)
    if head.threshold:
        scores |= score_answers(targets, predicted, ~head.refused(features, read), groups, seed=seed)
    trained_on = len({record.id for record in records} & set(head.index.ids))
    if trained_on:
        log.warning(
            "%d of %d proteins bear ids that head %r was trained on; what it says of those is memory",
            trained_on,
            len(records),
            head.name,
        )
    rows = [
        ("proteins", str(int(usable.sum())), "", ""),
        ("clusters", str(len(set(groups.tolist()))), "", ""),
        ("trained_on", str(trained_on), "", ""),
    ]
    if missing := int((~usable).sum()):
        rows.append(("left_out_without_vector", str(missing), "", ""))
    for metric, score in scores.items():
        low, high = score["ci95"] or ("", "")
        value = "" if score["value"] is None else score["value"]
        rows.append((metric, _decimal(value), _decimal(low), _decimal(high)))
    error = head.task.calibration_error(outputs, targets, temperature=head.temperature)
    if error is not None:
        rows.append(("calibration_error", _decimal(error), "", ""))
    return rows


def describe_card(card: dict[str, Any]) -> str:
    """Put a head's card into a page of text."""
    backbone, split, calibration = card["backbone"], card["split"], card["calibration"]
    classes = [] if card["task"] == Regression.name else sorted(card.get("labels", ()))
    lines = [
        f"{card['name']}: {card['task']}, {card['head']['kind']} head on {backbone['name']} "
        f"({backbone['fingerprint']}), layer {backbone['layer']}, {backbone['pool']}"
        + (f", first {backbone['first']} residues" if "first" in backbone else ""),
        *([f"classes  {len(classes)}: {_name_some(classes)}"] if classes else []),
        f"use      {card['intended_use']}",
        f"data     {card['data']['source']}, {card['data']['proteins']} proteins, "
        f"licence: {card['data']['licence']}",
        f"split    {split['train']} for training, "
        + (f"{split['dev']} to choose by, " if split.get("dev") else "")
        + f"{split['valid']} held out in {split['valid_clusters']} "
        f"homology clusters; {split['how']}",
        f"         {split['valid_with_relatives_in_train']} of the held-out have relatives in training"
        + _describe_clusters(split),
        "",
        f"{'held-out proteins':<20}" + "".join(f"{metric:>26}" for metric in sorted(card["metrics"])),
        _describe_scores(card["name"], card["metrics"]),
    ]
    # In an order of our own: a card that was read from a file has its keys sorted.
    baselines = sorted(card["baselines"], key=lambda name: (name != "majority", name))
    lines += [_describe_scores(name, card["baselines"][name]["metrics"]) for name in baselines]
    lines.append("")
    if calibration["ece_after"] is not None:
        lines.append(
            f"calibration error {calibration['ece_before']:.3f}, "
            f"{calibration['ece_after']:.3f} after temperature {calibration['temperature']:.2f}"
        )
    if families := card.get("families"):
        gain = families["gain"]
        low, high = gain["ci95"] or (math.nan, math.nan)
        lines.append(
            f"knows {families['count']} families by their words: {gain['value']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] {gain['metric']} on the held-out proteins"
        )
    if abstention := card.get("abstention"):
        share, right = abstention["answered"], abstention["accuracy_answered"]
        lines.append(
            f"answers {_describe_score(share)} of the held-out proteins (confidence from "
            f"{abstention['threshold']:.3f}), with an accuracy of {_describe_score(right)}"
        )
    width = card.get("uncertainty", {}).get("halfwidth90")
    if width is not None:
        lines.append(
            f"a number is ±{width:.3g} (90%); {card['uncertainty']['held_on_valid']:.1%} of the held-out were"
        )
    lines.append(f"intervals: {card['intervals']}")
    lines += [f"limit: {limit}" for limit in card["limits"]]
    return "\n".join(lines)


def _describe_clusters(split: dict[str, Any]) -> str:
    if split.get("clustered_by") == "given":
        return " (by the table's own clusters)"
    return f" (by {split['clustered_by']}, identity {split['identity']})" if "identity" in split else ""


def _describe_scores(name: str, scores: dict[str, Any]) -> str:
    cells = [_describe_score(score) for _, score in sorted(scores.items())]
    return f"{name:<20}" + "".join(f"{cell:>26}" for cell in cells)


def _describe_score(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "nothing known"
    interval = " [{:.3f}, {:.3f}]".format(*score["ci95"]) if score["ci95"] else ""
    return f"{score['value']:.3f}{interval}"


def _decimal(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def _check_labels(
    records: Sequence[SequenceRecord], *, classes: Sequence[str] = (), numbers: bool = False
) -> None:
    """Refuse a label that the task cannot take, while its record's place in the file is known."""
    for record in records:
        if not record.label:
            raise LabelError(f"{record.place} has no label; give it one or drop it")
        if classes and record.label not in classes:
            raise LabelError(
                f"{record.place}: label {record.label!r} is none of the classes {_name_some(classes)}"
            )
        if numbers and not _is_number(record.label):
            raise LabelError(
                f"{record.place}: label {record.label!r} is not a finite number; mend or drop it"
            )


def _name_some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:_CLASSES_NAMED]) + ", ..." * (len(classes) > _CLASSES_NAMED)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _embed(
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    layer: int,
    pool: str,
    first: int | None,
    long: Long,
    on_invalid: OnInvalid,
    degap: bool,
    batch_tokens: int | None,
    cache: EmbeddingCache | None,
    fp32: Callable[[], Backbone] | None,
    progress: Callable[[int], object] | None,
) -> _Embedded:
    rows = list(
        embed_records(
            records,
            backbone,
            layer=layer,
            pools=(pool,),
            first=first,
            long=long,
            on_invalid=on_invalid,
            degap=degap,
            batch_tokens=batch_tokens,
            cache=cache,
            fp32=fp32,
            progress=progress,
        )
    )
    vectors = [row.vector(pool) for row in rows]
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    if not width:
        raise InputError(f"none of {len(rows)} records could be embedded; look at them with `bioxfer embed`")
    features = np.full((len(rows), width), np.nan, dtype=np.float32)
    for place, vector in enumerate(vectors):
        if vector is not None:
            features[place] = vector
    return _Embedded(list(records), [row.sequence for row in rows], features)


def _digest(records: Sequence[SequenceRecord]) -> str:
    """Hash ids, sequences, labels, splits and, where the table tells them, clusters, in order."""
    digest = hashlib.sha256()
    clustered = any(record.cluster for record in records)
    for record in records:
        texts = [record.id, record.sequence, record.label or "", record.split or ""]
        if clustered:  # a table without them keeps the hash that it had before there were any
            texts.append(record.cluster or "")
        for text in texts:
            data = text.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
