"""Judgement: all that an evaluation found, for who wants more of it than the table of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.breakdown import score_classes
from bioxfer.heads import TrainedHead
from bioxfer.honesty import describe_answers, describe_calibration, describe_sets, score_misses
from bioxfer.residue_fitting import ResidueSet
from bioxfer.residue_judging import describe_calibration as describe_residue_calibration
from bioxfer.residue_judging import describe_residue_misses, score_residue_misses
from bioxfer.residue_scores import ResidueClassScores, ResidueScores
from bioxfer.residues import ResidueHead
from bioxfer.tasks import UNKNOWN

__all__ = ["Answer", "Judgement", "MetricRow", "judge_proteins", "judge_residues"]

MetricRow: TypeAlias = tuple[str, str, str, str]


class Answer(NamedTuple):
    """What was said of one labelled protein.

    Attributes
    ----------
    id : str
        Of the protein.
    true, said : str
        Its label, and the head's.
    miss : float
        How wrong that is, 0 if it is right; see `Judgement.miss_is`.
    similarity : float
        Cosine to the nearest training protein.
    """

    id: str
    true: str
    said: str
    miss: float
    similarity: float


@dataclass(slots=True, eq=False)
class Judgement:
    """What `bioxfer.training.evaluate_on_records` found.

    Attributes
    ----------
    rows : list of tuple of str
        ``metric, value, low, high``.
    card : dict
        Metrics, calibration, answers and classes, laid out as in the card of a head.
    answers : list of Answer
        N proteins with a vector.
    vectors : ndarray (N, F)
        As the head reads them.
    left_out : list of str
        Ids of the proteins without a vector.
    by_label : bool
        Whether a label is of a protein, and not of its residues.
    miss_is : str
        What `Answer.miss` says.
    """

    rows: list[MetricRow]
    card: dict[str, Any]
    answers: list[Answer]
    vectors: npt.NDArray[np.float32]
    left_out: list[str] = field(default_factory=list)
    by_label: bool = True
    miss_is: str = ""


def judge_proteins(
    head: TrainedHead,
    rows: list[MetricRow],
    scores: dict[str, Any],
    *,
    ids: Sequence[str],
    targets: npt.NDArray[Any],
    outputs: npt.NDArray[Any],
    vectors: npt.NDArray[np.float32],
    groups: npt.NDArray[Any],
    refused: npt.NDArray[np.bool_] | None,
    left_out: list[str],
    seed: int,
) -> Judgement:
    """Lay out what was found of a head for proteins as its card would say it.

    Parameters
    ----------
    head : TrainedHead
        What was judged.
    rows, scores
        The table of metrics, and the metrics with their intervals.
    ids, targets, outputs, vectors, groups
        Of N proteins: names, encoded labels, the head's outputs, what it reads, homology clusters.
    refused : ndarray (N,) of bool, optional
        Those of which an abstaining head says ``unknown``.
    left_out : list of str
        Ids of the proteins without a vector.
    seed : int
        Of the bootstrap.
    """
    task = head.task
    options: dict[str, Any] = {"temperature": head.temperature, "seed": seed}
    predicted = task.predict(outputs)
    card: dict[str, Any] = {
        "name": head.name,
        "split": {"called": "labelled", "valid": len(ids)},
        "metrics": scores,
        "calibration": describe_calibration(
            task, outputs, targets, groups, fitted_on="its training", **options
        ),
        **describe_answers(task, targets, predicted, seed=seed),
    }
    if task.labels:
        members = task.members(targets)
        card["classes"] = [
            {"label": label, "valid": int(mine.sum()), **score}
            for label, mine, score in zip(
                task.labels,
                members.T,
                score_classes(members, task.said(predicted), groups, seed=seed),
                strict=True,
            )
        ]
    if head.conformal is not None:
        card["conformal"] = describe_sets(
            task, head.conformal, outputs, targets, groups, fitted_on="its training", **options
        )
    misses, miss_is = score_misses(task, targets, predicted, outputs, temperature=head.temperature)
    said = [task.label(each) for each in predicted]
    for place in np.flatnonzero(refused) if refused is not None else ():
        said[place] = UNKNOWN
    answers = [
        Answer(name, task.label(target), text, float(miss), neighbour.similarity)
        for name, target, text, miss, neighbour in zip(
            ids, targets, said, misses, head.nearest(vectors), strict=True
        )
    ]
    return Judgement(rows, card, answers, vectors, left_out, miss_is=miss_is)


def judge_residues(
    head: ResidueHead,
    rows: list[MetricRow],
    scores: dict[str, Any],
    data: ResidueSet,
    judged: ResidueScores,
    groups: npt.NDArray[Any],
    outputs: npt.NDArray[Any],
    *,
    labels: Sequence[str],
    left_out: list[str],
    seed: int,
) -> Judgement:
    """Lay out what was found of a head for residues as its card would say it; see `judge_proteins`."""
    task, places = head.task, np.arange(len(data))
    card: dict[str, Any] = {
        "name": head.name,
        "split": {"called": "labelled", "valid": len(data)},
        "metrics": scores,
        **describe_residue_calibration(task, head.temperature, data, places, groups, outputs, seed=seed),
        **judged.answers(),
        "missed": describe_residue_misses(task, data, places, outputs, temperature=head.temperature),
    }
    if isinstance(judged, ResidueClassScores):
        named = zip(task.labels, judged.by_class(seed=seed), strict=True)
        card["classes"] = [{"label": label, **score} for label, score in named]
    misses, miss_is = score_residue_misses(task, data, places, outputs)
    answers = []
    for place, neighbour in enumerate(head.nearest(data.means)):
        part = slice(data.offsets[place], data.offsets[place + 1])
        said = task.joint.join(task.answer(outputs[part], temperature=head.temperature)[0])
        answers.append(
            Answer(data.ids[place], labels[place], said, float(misses[place]), neighbour.similarity)
        )
    return Judgement(rows, card, answers, data.means, left_out, by_label=False, miss_is=miss_is)
