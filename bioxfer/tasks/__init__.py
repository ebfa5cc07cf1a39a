"""What a head predicts: how labels become targets, what its loss is, and how outputs become labels again.

The only place that branches on the kind of task. `Multiclass` picks one of several classes, `Multilabel` any
number of several labels, `Regression` a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from bioxfer.errors import LabelError, UsageError
from bioxfer.quoting import quote_label
from bioxfer.tasks.classes import Multiclass
from bioxfer.tasks.decisions import UNKNOWN, Decision
from bioxfer.tasks.label_sets import SEPARATORS, look_joined, split_label
from bioxfer.tasks.multilabel import Multilabel
from bioxfer.tasks.regression import Regression, find_gaps, look_continuous

__all__ = [
    "SEPARATORS",
    "UNKNOWN",
    "Decision",
    "Multiclass",
    "Multilabel",
    "Regression",
    "Task",
    "look_continuous",
    "split_label",
    "task_from_dict",
    "task_from_name",
]

Task: TypeAlias = Multiclass | Multilabel | Regression


def task_from_name(name: str, labels: Sequence[str]) -> Task:
    """Choose the task for these training labels.

    Parameters
    ----------
    name : {"auto", "multiclass", "multilabel", "regression"}
        ``"auto"`` tells by the labels. It is a regression where every label is a number and either some have
        a decimal point or more than 20 differ. Several labels for each protein are joined by ``;`` or ``|``:
        ``auto`` splits cells where one of these occurs, splitting leaves no cell without a label, some label
        stands in two different cells, and not every label is a number. Else each cell is one class. Numbers
        that would be a regression but for some ``nan``, ``NA``, ``inf`` or the like are refused.
    labels : sequence of str
        Labels as text.

    Raises
    ------
    UsageError
        No such task.
    LabelError
        The labels do not fit the task.
    """
    if name == "auto":
        if gaps := find_gaps(labels):
            raise LabelError(
                f"{len(gaps)} of {len(labels)} labels are no numbers, such as {quote_label(labels[gaps[0]])} "
                f"(row {gaps[0] + 1}), and the others are; mend or drop them, or use --task multiclass (in "
                "Python, task='multiclass') if they are classes"
            )
        name = (
            "regression" if look_continuous(labels) else "multilabel" if look_joined(labels) else "multiclass"
        )
    if name == "multiclass":
        return Multiclass.from_labels(labels)
    if name == "multilabel":
        return Multilabel.from_labels(labels)
    if name == "regression":
        return Regression.from_labels(labels)
    raise UsageError(f"task {name!r} is not one of auto, multiclass, multilabel, regression")


def task_from_dict(data: object) -> Task:
    """Rebuild a task from what its ``to_dict`` returned.

    Raises
    ------
    ValueError
        The data describes no task.
    """
    match data:
        case {"name": "multiclass", "classes": [str(), str(), *_] as classes}:
            if _are_names(classes):
                return Multiclass(tuple(classes))
        case {"name": "multilabel", "classes": [str(), str(), *_] as classes, "threshold": float(threshold)}:
            if (
                _are_names(classes)
                and 0 < threshold < 1
                and not any(s in c for c in classes for s in SEPARATORS)
            ):
                return Multilabel(tuple(classes), threshold)
        case {"name": "regression", "mean": float(mean), "scale": float(scale), **rest}:
            width = rest.get("halfwidth")
            sound = math.isfinite(mean) and math.isfinite(scale) and scale > 0
            if sound and (width is None or (isinstance(width, float) and 0 < width < math.inf)):
                return Regression(mean, scale, width)
    raise ValueError(f"no task is described by {str(data)[:80]}")


def _are_names(classes: Sequence[object]) -> bool:
    return all(isinstance(c, str) and c for c in classes) and len(set(classes)) == len(classes)
