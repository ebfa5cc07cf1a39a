"""Train and evaluate: the conductor from labelled records to a head and its card, or to metrics."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioxfer.backbones import Backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.clusters import cluster_sequences
from bioxfer.embedding import Long, embed_records, resolve_layer
from bioxfer.engine import BATCH_TOKENS
from bioxfer.errors import InputError, LabelError, UsageError
from bioxfer.evaluate import audit_leakage, score_predictions
from bioxfer.heads import TrainedHead
from bioxfer.homology import Method, choose_method
from bioxfer.io import OnDuplicate, match_labels, read_labels, read_sequences
from bioxfer.sequences import OnInvalid, SequenceRecord, translate_cds
from bioxfer.transfer import HeadChoice, train_head

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
    head: HeadChoice = "auto",
    split: SplitBy = "homology",
    identity: float = 0.3,
    cluster_by: Method = "auto",
    valid: float = 0.15,
    refit: bool = True,
    layer: int | None = None,
    pool: str = "mean+max",
    licence: str = "",
    intended_use: str = "",
    limits: Sequence[str] = (),
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> TrainedHead:
    """Train a head on labelled proteins.

    Parameters
    ----------
    records : sequence of SequenceRecord
        With labels, as `read_labelled` gives them.
    backbone : Backbone
        The frozen feature extractor.
    name, data_source, task, head, valid, refit, licence, intended_use, limits, seed
        See `bioxfer.transfer.train_head`.
    split : {"homology", "random", "column"}, optional
        Hold out whole homology clusters, random proteins, or the rows whose
        ``split`` begins with ``val``; with ``column``, rows that begin neither
        with ``val`` nor with ``train`` are left out and counted.
    identity : float, optional
        Share of identical residues from which proteins are relatives.
    cluster_by : {"auto", "mmseqs", "kmer"}, optional
        What finds relatives, see `bioxfer.clusters.cluster_sequences`; the card says which it was.
    layer, pool, long, on_invalid, degap, batch_tokens, cache, fp32, progress
        See `embed_records`.
    threads : int, optional
        Of the homology search.

    Returns
    -------
    TrainedHead
        With its card.

    Raises
    ------
    LabelError
        If labels and records do not fit, or the split column is not there.
    InputError
        If no record has a vector.
    """
    if split == "column":
        records = _keep_split_rows(records)
    _check_labels(records, numbers=task == "regression")
    finder = choose_method(cluster_by)
    number = resolve_layer(backbone, layer)
    embedded = _embed(
        records,
        backbone,
        layer=number,
        pool=pool,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
    )
    groups = cluster_sequences(embedded.residues, identity=identity, method=finder, threads=threads)
    sides: list[str] | None = None
    if split == "column":
        sides = ["train" if (r.split or "").startswith("train") else "valid" for r in records]
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
        seed=seed,
        data_sha256=_digest(records),
        data_source=data_source,
        licence=licence,
        intended_use=intended_use,
        limits=limits,
    )
    trained.card["split"]["identity"] = identity
    trained.card["split"]["clustered_by"] = finder
    if sides is not None:
        held = np.array(sides) == "valid"
        chosen = np.array(embedded.residues, dtype=object)
        audit = audit_leakage(
            list(chosen[~held]), list(chosen[held]), identity=identity, method=finder, threads=threads
        )
        trained.card["split"]["leakage"] = audit.to_dict()
        if split == "random":
            trained.card["split"]["how"] = f"random proteins, seed {seed}; relatives may be on both sides"
    return trained


def evaluate_on_records(
    head: TrainedHead,
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    identity: float = 0.3,
    cluster_by: Method = "auto",
    long: Long = "window",
    on_invalid: OnInvalid = "x",
    degap: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    cache: EmbeddingCache | None = None,
    fp32: Callable[[], Backbone] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[str, str, str, str]]:
    """Score a head on labelled proteins.

    Parameters
    ----------
    head : TrainedHead
        What is judged.
    records : sequence of SequenceRecord
        With labels, as `read_labelled` gives them.
    backbone : Backbone
        The head's own.
    identity, cluster_by, threads
        See `train_on_records`.
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
        If a label is none of the head's classes.
    InputError
        If no record has a vector.
    """
    head.check_backbone(backbone)
    _check_labels(records, classes=head.labels, numbers=not head.labels)
    finder = choose_method(cluster_by)
    targets = head.task.encode([record.label or "" for record in records])
    embedded = _embed(
        records,
        backbone,
        layer=head.layer,
        pool=head.pool,
        long=long,
        on_invalid=on_invalid,
        degap=degap,
        batch_tokens=batch_tokens,
        cache=cache,
        fp32=fp32,
        progress=progress,
    )
    usable = np.isfinite(embedded.features).all(axis=1)
    groups = cluster_sequences(embedded.residues, identity=identity, method=finder, threads=threads)[usable]
    outputs, targets = head.logits(embedded.features[usable]), targets[usable]
    scores = score_predictions(head.task.metrics, targets, head.task.predict(outputs), groups, seed=seed)
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
        rows.append((metric, _decimal(score["value"]), _decimal(low), _decimal(high)))
    error = head.task.calibration_error(outputs, targets, temperature=head.temperature)
    if error is not None:
        rows.append(("calibration_error", _decimal(error), "", ""))
    return rows


def describe_card(card: dict[str, Any]) -> str:
    """Put a head's card into a page of text."""
    backbone, split, calibration = card["backbone"], card["split"], card["calibration"]
    lines = [
        f"{card['name']}: {card['task']}, {card['head']['kind']} head on {backbone['name']} "
        f"({backbone['fingerprint']}), layer {backbone['layer']}, {backbone['pool']}",
        f"use      {card['intended_use']}",
        f"data     {card['data']['source']}, {card['data']['proteins']} proteins, "
        f"licence: {card['data']['licence']}",
        f"split    {split['train']} for training, {split['valid']} held out in {split['valid_clusters']} "
        f"homology clusters; {split['how']}",
        f"         {split['valid_with_relatives_in_train']} of the held-out have relatives in training"
        + (f" (by {split['clustered_by']}, identity {split['identity']})" if "identity" in split else ""),
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
    lines.append(f"intervals: {card['intervals']}")
    lines += [f"limit: {limit}" for limit in card["limits"]]
    return "\n".join(lines)


def _describe_scores(name: str, scores: dict[str, Any]) -> str:
    cells = []
    for _, score in sorted(scores.items()):
        interval = " [{:.3f}, {:.3f}]".format(*score["ci95"]) if score["ci95"] else ""
        cells.append(f"{score['value']:.3f}{interval}")
    return f"{name:<20}" + "".join(f"{cell:>26}" for cell in cells)


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
            known = ", ".join(classes[:_CLASSES_NAMED]) + ", ..." * (len(classes) > _CLASSES_NAMED)
            raise LabelError(f"{record.place}: label {record.label!r} is none of the classes {known}")
        if numbers and not _is_number(record.label):
            raise LabelError(
                f"{record.place}: label {record.label!r} is not a finite number; mend or drop it"
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _keep_split_rows(records: Sequence[SequenceRecord]) -> list[SequenceRecord]:
    kept = [record for record in records if (record.split or "").startswith(("train", "val"))]
    if not any((record.split or "").startswith("val") for record in kept):
        found = ", ".join(sorted({record.split or "(empty)" for record in records})[:5])
        raise LabelError(f"no record's split begins with 'val' (found: {found}); name held-out rows 'valid'")
    if left := Counter(r.split or "(empty)" for r in records) - Counter(r.split or "" for r in kept):
        log.warning(
            "left out by their split: %s", ", ".join(f"{n} of {split!r}" for split, n in left.items())
        )
    return kept


def _embed(
    records: Sequence[SequenceRecord],
    backbone: Backbone,
    *,
    layer: int,
    pool: str,
    long: Long,
    on_invalid: OnInvalid,
    degap: bool,
    batch_tokens: int,
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
    """Hash ids, sequences, labels and splits, in order."""
    digest = hashlib.sha256()
    for record in records:
        for text in (record.id, record.sequence, record.label or "", record.split or ""):
            data = text.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
