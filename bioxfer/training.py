"""Train and evaluate: the conductor from labelled records to a head and its card, or to metrics."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from bioxfer.attention_training import attend
from bioxfer.backbones import Backbone
from bioxfer.cache import EmbeddingCache
from bioxfer.clusters import cluster_records
from bioxfer.embedding import Long, resolve_layer
from bioxfer.errors import LabelError, UsageError
from bioxfer.evaluate import audit_leakage, score_answers, score_predictions
from bioxfer.genes import Translation
from bioxfer.head_training import HeadChoice, check_options, train_head
from bioxfer.heads import TrainedHead
from bioxfer.homology import Method, choose_method
from bioxfer.honesty import describe_sets
from bioxfer.io import OnDuplicate, iter_proteins, match_labels, read_labels
from bioxfer.judgement import Judgement, judge_proteins
from bioxfer.quoting import name_labels, quote_label
from bioxfer.represented import Represented, represent
from bioxfer.residue_labels import choose_residue_task
from bioxfer.residue_training import evaluate_residue_head, keep_sides, train_residue_head
from bioxfer.residues import ResidueHead
from bioxfer.sequences import OnInvalid, SequenceRecord
from bioxfer.tasks import SEPARATORS, Multilabel, Regression, Task, split_label, task_from_name
from bioxfer.transfer_data import TransferOptions, move

__all__ = ["evaluate_on_records", "read_labelled", "train_on_records"]

log = logging.getLogger("bioxfer")

SplitBy = Literal["homology", "random", "column"]


def read_labelled(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    *,
    on_duplicate: OnDuplicate = "error",
    translation: Translation | None = None,
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
    translation : Translation, optional
        How nucleotides become proteins; ids of labels are then those of the proteins.

    Raises
    ------
    LabelError
        If no record has a label.
    UsageError
        If records are to be renamed and labels found by their ids, or one record gives several
        proteins that its own label cannot be of.
    """
    if labels is not None and on_duplicate == "rename":
        raise UsageError(
            "a label file tells records by their ids, so none may be renamed; "
            "make ids unique, or put the labels into a label column of the sequences' table"
        )
    if labels is None and translation is not None and translation.several:
        raise UsageError(
            f"--translate {translation.how} makes several proteins of one record, and its label cannot be "
            "that of each; name them CONTIG_1, CONTIG_2, ... in a label file (--labels)"
        )
    records = list(iter_proteins(source, translation, on_duplicate=on_duplicate, tell=True))
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
    head: HeadChoice | Literal["light-attention", "conv"] = "auto",
    split: SplitBy = "homology",
    identity: float = 0.3,
    cluster_by: Method = "auto",
    valid: float = 0.15,
    refit: bool = True,
    abstain: float | None = None,
    families: bool = False,
    first: int | None = None,
    sizes: Sequence[int] = (),
    transfer: TransferOptions | None = None,
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
    """Train a head on labelled proteins; where each residue has a class or a number, a head for residues.

    Parameters
    ----------
    records : sequence of SequenceRecord
        With labels, as `read_labelled` gives them.
    backbone : Backbone
        The frozen feature extractor.
    head : {"auto", "linear", "mlp", "nearest", "blend", "light-attention", "conv"}, optional
        Form of the head. Light attention also reads each residue, see `bioxfer.attention`; it takes more
        time, and memory for all of them, and is no part of ``auto``. A convolution labels residues.
    name, data_source, task, valid, refit, abstain, families, licence, intended_use, limits, seed
        See `bioxfer.head_training.train_head`, and for the tasks ``residue-class`` and
        ``residue-regression`` `bioxfer.residue_training.train_residue_head`.
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
    sizes : sequence of int, optional
        Numbers of training proteins on a learning curve, see `bioxfer.head_training.train_head`; not for
        heads for residues or with light attention, and transfer has sizes of its own.
    transfer : TransferOptions, optional
        Source tasks; the head is then the best of those that learn from the target alone, from sources and
        then the target, and from both at once, and its card compares them. See `bioxfer.transfer.fit`.
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
    if residue_task := choose_residue_task(task, records, on_invalid=on_invalid, degap=degap):
        if abstain is not None:
            raise UsageError("a head for residues answers each of them; leave abstain out")
        if first is not None:
            raise UsageError("a head for residues reads whole proteins; leave first out")
        if families:
            raise UsageError("a head for residues has no families; leave families out")
        if sizes:
            raise UsageError("a learning curve is of heads for proteins; leave sizes out")
        if transfer is not None:
            raise UsageError("transfer is between labels of proteins, and these are of residues; use train")
        if split == "column":
            records = keep_sides(records)
        return train_residue_head(
            records,
            backbone,
            name=name,
            task=residue_task,
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
    _check_labels(records, task=task)
    # What can be refused is refused now: to embed the records takes long.
    chosen = task_from_name(task, [record.label or "" for record in records])
    if task == "auto":
        _tell_task(records, chosen)
    if head == "light-attention" and families:
        raise UsageError("a head with light attention knows no families; leave families out")
    if sizes and (head == "light-attention" or transfer is not None):
        raise UsageError("a learning curve is of heads on pooled vectors without transfer; leave sizes out")
    if head == "light-attention" and transfer is not None:
        raise UsageError("transfer compares networks on pooled vectors; leave light-attention out")
    choice: HeadChoice = "auto" if head == "light-attention" else head
    if transfer is not None:
        transfer.check()
    check_options(
        chosen,
        head=choice,
        abstain=abstain,
        families=families,
        dev=split == "column" and any((record.split or "").startswith("dev") for record in records),
        sizes=sizes,
    )
    finder = choose_method(cluster_by)
    number = resolve_layer(backbone, layer)
    if transfer is not None and transfer.trunk == "lora" and number != backbone.n_layers:
        raise UsageError(f"low-rank changes are trained for the last layer, not {layer}; leave layer out")
    read = partial(
        represent, layer=number, pool=pool, first=first, long=long, on_invalid=on_invalid, degap=degap,
        batch_tokens=batch_tokens, cache=cache, fp32=fp32, progress=progress,
    )  # fmt: skip
    embedded = read(records, backbone, keep=head == "light-attention")
    groups, grouped_by = cluster_records(
        records, embedded.residues, identity=identity, method=finder, threads=threads
    )
    sides: list[str] | None = None
    if split == "column":
        sides = [{"t": "train", "d": "dev", "v": "valid"}[(r.split or "")[0]] for r in records]
    elif split == "random":
        drawn = np.random.default_rng(seed).permutation(len(records)) < round(valid * len(records))
        sides = ["valid" if held_out else "train" for held_out in drawn]
    attended = None
    if embedded.matrices is not None:
        attended = attend(
            embedded.features, embedded.matrices, embedded.labels, groups,
            task=task, sides=sides, valid=valid, seed=seed,
        )  # fmt: skip
    moved = None
    if transfer is not None:

        def embed(rows: Sequence[SequenceRecord], other: Backbone | None = None) -> Represented:
            return read(rows, backbone) if other is None else read(rows, other, fp32=None)

        made_by = f"{backbone.fingerprint} {backbone.precision} {number} {pool} {first} {long}"
        moved = move(
            records, embedded, groups, transfer, embed=embed, task=task, head=choice, pool=pool, sides=sides,
            valid=valid, identity=identity, method=finder, threads=threads, made_by=made_by, seed=seed,
        )  # fmt: skip
        if moved.adapted is not None:
            backbone, _ = moved.adapted
    rework = attended or moved
    trained = train_head(
        embedded.features if rework is None else rework.features,
        embedded.labels,
        [record.id for record in records],
        sequences=embedded.residues,
        groups=groups,
        name=name,
        pool=pool,
        layer=number,
        backbone_name=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        head=choice,
        forms=None if rework is None else rework.forms,
        task=task,
        splits=sides if rework is None else rework.sides,
        valid=valid,
        refit=refit and attended is None,
        abstain=abstain,
        families=families,
        first=first,
        sizes=sizes,
        method=finder,
        threads=threads,
        seed=seed,
        data_sha256=_digest(records),
        data_source=data_source,
        licence=licence,
        intended_use=intended_use,
        limits=limits,
    )
    if attended is not None:
        attended.complete(trained, embedded.labels, [record.id for record in records], refit=refit, seed=seed)
    if moved is not None:
        trained.card["split"]["how"] = moved.how
        trained.card["transfer"] = moved.card
        if moved.adapted is not None and transfer is not None and transfer.adapter is not None:
            moved.adapted[1].save(transfer.adapter)
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
    watch: Callable[[Judgement], object] | None = None,
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
    watch : callable, optional
        Is given all else that was found, for a report.

    Returns
    -------
    list of tuple of str
        ``metric, value, low, high``; the interval is empty where there is none. Before the metrics
        stand the numbers of proteins, of homology clusters, and of proteins that the head was trained on;
        after them the calibration error and, for each of `bioxfer.conformal.COVERAGES`, how often the label
        sets hold the truth and how large they are. A head does not keep its training sequences, so accuracy
        by identity to them is in its card alone.

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
            watch=watch,
        )
    head.check_backbone(backbone)
    _check_labels(records, task=head.task.name, classes=head.labels)
    finder = choose_method(cluster_by)
    targets = head.task.encode([record.label or "" for record in records])
    embedded = represent(
        records,
        backbone,
        head=head,
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
    refused = head.refused(features, read) if head.threshold else None
    if refused is not None:
        scores |= score_answers(targets, predicted, ~refused, groups, seed=seed)
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
    if head.conformal is not None:
        options: dict[str, Any] = {"temperature": head.temperature, "fitted_on": "", "seed": seed}
        sets = describe_sets(head.task, head.conformal, outputs, targets, groups, **options)
        for level in sets["levels"]:
            for key in ("covered", "size"):
                if key in level:
                    low, high = level[key]["ci95"] or ("", "")
                    name = f"set_{key}_{level['coverage']}"
                    rows.append((name, _decimal(level[key]["value"]), _decimal(low), _decimal(high)))
    if watch is not None:
        left_out = [records[place].id for place in np.flatnonzero(~usable).tolist()]
        watch(
            judge_proteins(
                head, rows, scores,
                ids=[records[place].id for place in np.flatnonzero(usable).tolist()],
                targets=targets, outputs=outputs, vectors=features, groups=groups, refused=refused,
                left_out=left_out, seed=seed,
            )
        )  # fmt: skip
    return rows


def _decimal(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def _tell_task(records: Sequence[SequenceRecord], task: Task) -> None:
    """Say how cells with a separator of labels were taken."""
    joined = [record.label for record in records if any(sign in (record.label or "") for sign in SEPARATORS)]
    if joined and isinstance(task, Multilabel):
        log.info(
            "%d of %d cells join labels, such as %r: taken as a multilabel task of %d labels; "
            "--task multiclass takes each cell as one class",
            len(joined),
            len(records),
            joined[0],
            len(task.labels),
        )
    elif joined:
        log.warning(
            "%d of %d cells hold ';' or '|', such as %r, and are taken as one class each; "
            "--task multilabel splits them",
            len(joined),
            len(records),
            joined[0],
        )


def _check_labels(records: Sequence[SequenceRecord], *, task: str, classes: Sequence[str] = ()) -> None:
    """Refuse a label that the task cannot take, while its record's place in the file is known."""
    known = frozenset(classes)
    for record in records:
        if not record.label:
            raise LabelError(f"{record.place} has no label; give it one or drop it")
        try:
            names = split_label(record.label) if task == Multilabel.name else (record.label,)
        except LabelError as error:
            raise LabelError(f"{record.place}: {error}") from error
        for name in names:
            if known and name not in known:
                raise LabelError(
                    f"{record.place}: label {quote_label(name)} is none of the classes {name_labels(classes)}"
                )
        if task == Regression.name and not _is_number(record.label):
            raise LabelError(
                f"{record.place}: label {quote_label(record.label)} is not a finite number; mend or drop it"
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


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
