"""Split: the conductor from records, labelled or not, to parts or folds that keep relatives together."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bioxfer.audits import part_of
from bioxfer.clusters import HomologyKFold, cluster_records, homology_split
from bioxfer.errors import InputError, LabelError, UsageError
from bioxfer.genes import Translation
from bioxfer.homology import Method
from bioxfer.io import OnDuplicate, iter_proteins, read_labels
from bioxfer.quoting import plain_label
from bioxfer.residue_tasks import look_like_residue_labels
from bioxfer.sequences import (
    SequenceRecord,
    clean_protein,
    looks_like_nucleotides,
    tell_nucleotides,
)
from bioxfer.tasks.label_sets import look_joined, split_label
from bioxfer.tasks.regression import find_gaps, look_continuous

__all__ = [
    "Partition",
    "describe_partition",
    "read_to_split",
    "split_records",
]

log = logging.getLogger("bioxfer")

_NAMED_AT_MOST = 5  # classes and ids in a message
_UNEVEN = 0.05  # of all proteins; a part further from its share is worth a word


@dataclass(frozen=True, slots=True)
class Partition:
    """Which part each protein is in.

    Attributes
    ----------
    column : {"split", "fold"}
        What `parts` are.
    parts : list of str
        N parts: ``train``, ``dev``, ``valid`` and ``test``, or the numbers of folds from 1.
    clusters : list of str
        N names of homology clusters.
    shares : dict of str to float
        Share of the proteins that each part should have, in order.
    clustered_by : str
        ``mmseqs``, ``kmer`` or ``given``.
    identity : float
        Threshold of the search.
    """

    column: Literal["split", "fold"]
    parts: list[str]
    clusters: list[str]
    shares: dict[str, float]
    clustered_by: str
    identity: float


def read_to_split(
    source: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    on_duplicate: OnDuplicate = "error",
    translation: Translation | None = None,
) -> list[SequenceRecord]:
    """Read all records, with labels or without.

    Parameters
    ----------
    source : path
        FASTA, or a table that may carry ``label`` and ``cluster`` columns itself.
    labels : path, optional
        Label file for `read_labels`; records without a row in it keep what `source` says, and are counted.
    on_duplicate, translation
        As in `bioxfer.training.read_labelled`.

    Raises
    ------
    InputError
        There is no record.
    LabelError
        No id is on both sides.
    UsageError
        Records are to be renamed and labels found by their ids.
    """
    if labels is not None and on_duplicate == "rename":
        raise UsageError("a label file tells records by their ids, so none may be renamed; make ids unique")
    records = list(iter_proteins(source, translation, on_duplicate=on_duplicate, tell=True))
    if not records:
        raise InputError(f"{source} holds no sequence, so there is nothing to split; give another file")
    if labels is not None:
        known = read_labels(labels)
        found = [known.get(record.id) for record in records]
        if not any(found):
            raise LabelError(
                f"none of {len(records)} records has a label in {labels} (the first is called "
                f"{records[0].id}); ids must be equal letter by letter"
            )
        records = [
            replace(record, label=label.label if label else record.label)
            for record, label in zip(records, found, strict=True)
        ]
        if unused := len(known.keys() - {record.id for record in records}):
            log.warning("%d labels of %s have no record", unused, labels)
    if (without := [record.id for record in records if not record.label]) and len(without) < len(records):
        log.warning("%d of %d records have no label (%s)", len(without), len(records), _some(without))
    return records


def split_records(
    records: Sequence[SequenceRecord],
    *,
    folds: int | None = None,
    valid: float = 0.15,
    test: float = 0.0,
    dev: float = 0.0,
    identity: float = 0.3,
    cluster_by: Method = "auto",
    degap: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> Partition:
    """Split records so that no homology cluster lies in two parts.

    Classes are balanced between the parts, as far as clusters allow: each of several joined labels
    (``a;b``) by itself. Numbers and labels of residues are not balanced.

    Parameters
    ----------
    records : sequence of SequenceRecord
        N records, with labels or without. A record with a cluster of its own keeps that.
    folds : int, optional
        Number of folds, 2 or more, in place of the shares below.
    valid, test, dev : float
        Shares to hold out, as in `bioxfer.clusters.homology_split`.
    identity, cluster_by, threads
        As in `bioxfer.clusters.cluster_sequences`.
    degap : bool
        Remove gaps before relatives are searched for.
    seed : int
        Order in which clusters of equal size are dealt.

    Raises
    ------
    LabelError
        Some records have a cluster and others have none.
    UsageError
        A number is out of range, or there are fewer clusters than parts.

    Examples
    --------
    >>> texts = ["MKTAYIAKQRQISFVK", "GGSWWPPEEDDKK", "MKTAYIAKQRQISFVK", "CCHHLLNNQQRRVVYY"]
    >>> records = [SequenceRecord(f"p{i}", text) for i, text in enumerate(texts)]
    >>> split_records(records, valid=0.5, cluster_by="kmer").parts
    ['train', 'valid', 'train', 'valid']
    """
    sequences = [clean_protein(record, degap=degap).residues for record in records]
    pairs = zip(records, sequences, strict=True)
    odd = [record for record, residues in pairs if looks_like_nucleotides(residues)]
    if odd:
        log.warning("%s (%d of %d records look so)", tell_nucleotides(odd[0]), len(odd), len(records))
    group, clustered_by = cluster_records(
        records, sequences, identity=identity, method=cluster_by, threads=threads
    )
    targets = _targets(records, sequences)
    if folds is None:
        parts = homology_split(group, valid=valid, test=test, dev=dev, seed=seed, y=targets).tolist()
        shares = {"train": 1 - dev - valid - test, "dev": dev, "valid": valid, "test": test}
        shares = {part: share for part, share in shares.items() if share}
    else:
        number = np.zeros(len(records), dtype=np.int64)
        rounds = HomologyKFold(folds, seed=seed).split(sequences, targets, group)
        for fold, (_, held) in enumerate(rounds, start=1):
            number[held] = fold
        parts = [str(fold) for fold in number]
        shares = {str(fold): 1 / folds for fold in range(1, folds + 1)}
    names = [record.cluster or "" for record in records]
    return Partition(
        column="split" if folds is None else "fold",
        parts=parts,
        clusters=names if clustered_by == "given" else [str(cluster + 1) for cluster in group],
        shares=shares,
        clustered_by=clustered_by,
        identity=identity,
    )


def describe_partition(partition: Partition, records: Sequence[SequenceRecord]) -> str:
    """Put sizes and class counts of the parts into a page of text, and warn of what is uneven.

    Parameters
    ----------
    partition : Partition
        What `split_records` made.
    records : sequence of SequenceRecord
        Its N records.
    """
    total = len(partition.parts)
    sizes = Counter(partition.clusters)
    how = "the table's own" if partition.clustered_by == "given" else (
        f"by {partition.clustered_by} at {partition.identity:.0%} identity"
    )  # fmt: skip
    lines = [
        f"{total} proteins in {len(sizes)} homology clusters ({how}); the largest holds "
        f"{part_of(max(sizes.values()), total)}"
    ]
    classes = _classes(records)
    for part, share in partition.shares.items():
        places = [place for place, name in enumerate(partition.parts) if name == part]
        clusters = len({partition.clusters[place] for place in places})
        line = f"{_title(partition, part)}: {part_of(len(places), total)} proteins in {clusters} clusters"
        if classes is not None:
            counts = Counter(name for place in places for name in classes[place])
            line += "; " + _count_classes(counts)
            every = {name for names in classes for name in names}
            if missing := sorted(every - set(counts)):
                log.warning(
                    "%s has no protein of %s: too few homology clusters hold it",
                    _title(partition, part),
                    _some(missing),
                )
        lines.append(line)
        if abs(len(places) / total - share) > _UNEVEN:
            log.warning(
                "%s holds %.0f%% of the proteins and not %.0f%%, since no cluster is cut",
                _title(partition, part),
                100 * len(places) / total,
                100 * share,
            )
    return "\n".join(lines)


def _targets(records: Sequence[SequenceRecord], sequences: Sequence[str]) -> npt.NDArray[Any] | None:
    """Return what is balanced: classes ``(N,)``, a matrix ``(N, C)`` of joined labels, or nothing."""
    labelled = [(r.label, len(s)) for r, s in zip(records, sequences, strict=True) if r.label]
    texts, lengths = [label for label, _ in labelled], [length for _, length in labelled]
    if not texts or look_like_residue_labels(texts, lengths):
        return None
    classes = _classes(records)
    if classes is None:
        return None
    if not look_joined(texts):
        return np.array([names[0] if names else "" for names in classes])
    order = {name: column for column, name in enumerate(sorted({n for names in classes for n in names}))}
    matrix = np.zeros((len(records), len(order)), dtype=np.uint8)
    for row, names in enumerate(classes):
        matrix[row, [order[name] for name in names]] = 1
    return matrix


def _classes(records: Sequence[SequenceRecord]) -> list[tuple[str, ...]] | None:
    """Return the classes of each record, none where it has no label; None if labels are no classes."""
    texts = [record.label for record in records if record.label]
    lengths = [len(record.sequence) for record in records if record.label]
    if not texts or look_continuous(texts) or find_gaps(texts) or look_like_residue_labels(texts, lengths):
        return None
    joined = look_joined(texts)
    return [
        () if not record.label else split_label(record.label) if joined else (record.label,)
        for record in records
    ]


def _title(partition: Partition, part: str) -> str:
    return part if partition.column == "split" else f"fold {part}"


def _count_classes(counts: Counter[str]) -> str:
    named = [
        f"{plain_label(name)} {count}"
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    shown = named[: 2 * _NAMED_AT_MOST]
    return ", ".join(shown) + f" and {len(named) - len(shown)} more" * (len(named) > len(shown))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(plain_label, names[:_NAMED_AT_MOST])) + ", ..." * (len(names) > _NAMED_AT_MOST)
