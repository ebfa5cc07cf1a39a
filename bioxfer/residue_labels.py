"""Labels of residues: which kind they are, and whether each fits its protein."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError, UsageError
from bioxfer.residue_tasks import (
    RESIDUE_TASKS,
    ResidueClasses,
    ResidueTask,
    ResidueValues,
    look_like_residue_labels,
    look_like_residue_values,
)
from bioxfer.sequences import OnInvalid, SequenceRecord, clean_protein

__all__ = ["choose_residue_task", "encode_labels"]


def choose_residue_task(
    task: str, records: Sequence[SequenceRecord], *, on_invalid: OnInvalid = "x", degap: bool = False
) -> str:
    """Name the task of residues that is asked for or that the labels tell; empty if it is one of proteins.

    Parameters
    ----------
    task : str
        ``"residue-class"``, ``"residue-regression"``, ``"auto"``, or the name of a task of proteins. For
        ``auto`` see `look_like_residue_labels` and `look_like_residue_values`.
    records : sequence of SequenceRecord
        With labels.
    on_invalid, degap
        As the proteins will be cleaned, see `bioxfer.embedding.embed_records`.
    """
    if task != "auto":
        return task if task in RESIDUE_TASKS else ""
    labels = [record.label or "" for record in records]
    lengths = [len(clean_protein(r, on_invalid=on_invalid, degap=degap).residues) for r in records]
    if look_like_residue_labels(labels, lengths):
        return ResidueClasses.name
    return ResidueValues.name if look_like_residue_values(labels, lengths) else ""


def encode_labels(
    records: Sequence[SequenceRecord],
    task: ResidueTask | str = ResidueClasses.name,
    *,
    on_invalid: OnInvalid = "x",
    degap: bool = False,
) -> tuple[ResidueTask, list[npt.NDArray[Any]]]:
    """Turn labels into targets, and check that each is as long as its cleaned protein.

    Parameters
    ----------
    records : sequence of SequenceRecord
        With labels.
    task : ResidueClasses, ResidueValues or str, optional
        The task; or its name, and the labels tell its classes, or its mean and scale.
    on_invalid, degap
        As the proteins will be cleaned, see `bioxfer.embedding.embed_records`.

    Returns
    -------
    tuple of ResidueTask and list of ndarray
        The task, and the targets ``(L,)`` of each record: class numbers, -1 where unresolved, or numbers in
        the labels' unit, NaN where unresolved.

    Raises
    ------
    LabelError
        A label is missing or not as long as its protein, or holds what is no class or no number.
    UsageError
        There is no such task.
    """
    name = task if isinstance(task, str) else task.name
    if name not in RESIDUE_TASKS:
        raise UsageError(f"task {name!r} is not one of {', '.join(RESIDUE_TASKS)}")
    for record in records:
        if not record.label:
            raise LabelError(f"{record.place} has no label; give it one or drop it")
    labels: Sequence[Sequence[str]] = [record.label or "" for record in records]
    what = "characters"
    if name == ResidueValues.name:
        labels, what = ResidueValues.split([record.label or "" for record in records]), "numbers"
    for record, label in zip(records, labels, strict=True):
        clean = clean_protein(record, on_invalid=on_invalid, degap=degap)
        if not clean.skipped and len(label) != len(clean.residues):
            raise LabelError(
                f"{record.place}: a label of {len(label)} {what} does not fit a protein of "
                f"{len(clean.residues)} residues; give one {what[:-1]} for each, ? where it is unresolved"
            )
    encode: Callable[[Sequence[str]], npt.NDArray[Any]] = ResidueValues.encode
    if name == ResidueClasses.name:
        task = ResidueClasses.from_labels(labels) if isinstance(task, str) else task
        encode = task.encode
    codes: list[npt.NDArray[Any]] = []
    for record, label in zip(records, labels, strict=True):
        try:
            codes.append(encode(label))
        except LabelError as error:
            raise LabelError(f"{record.place}: {error}") from error
    if isinstance(task, str):
        task = ResidueValues.from_targets(np.concatenate(codes) if codes else np.empty(0))
    return task, codes
