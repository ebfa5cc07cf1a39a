"""The ``y`` of scikit-learn: checked, and turned into labels as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import column_or_1d

from bioxfer.errors import LabelError, UsageError
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import SEPARATORS, split_label

__all__ = [
    "ClassLabels",
    "is_matrix",
    "order_of",
    "read_classes",
    "read_label_sets",
    "read_numbers",
    "restore_classes",
]

Array: TypeAlias = npt.NDArray[Any]

_BOOLS = {"True": True, "False": False}
_TYPES = {"b": "bool", "i": "int", "u": "int", "f": "float"}


@dataclass(frozen=True, slots=True, eq=False)
class ClassLabels:
    """Class labels of N proteins.

    Attributes
    ----------
    texts : list of str
        N labels as a head knows them; of label sets, cells that name several.
    classes : ndarray (C,)
        The distinct ones, sorted, of the type given.
    kind : {"str", "int", "float", "bool"}
        That type, for a head that is loaded again.
    """

    texts: list[str]
    classes: Array
    kind: str


def read_classes(y: object, records: Sequence[SequenceRecord], *, reader: str) -> ClassLabels:
    """Read one class label for each protein.

    Parameters
    ----------
    y : array-like (N,)
        Texts, whole numbers or booleans; a column ``(N, 1)`` is taken with scikit-learn's warning.
    records : sequence of SequenceRecord
        The N proteins, to name the one whose label is wrong.
    reader : str
        Name of the estimator, for messages.

    Raises
    ------
    UsageError
        There is no ``y``, or not one label for each protein.
    LabelError
        A label is missing, is a number that names no class, or cannot be told from another.
    """
    values = _one_each(y, records, reader)
    if values.dtype.kind == "f":
        broken = np.flatnonzero(values != np.round(values))
        if len(broken):
            raise LabelError(
                f"Unknown label type: continuous, such as {values[broken[0]]!r} of "
                f"{_name(records, int(broken[0]))}; use SequenceRegressor for numbers"
            )
    try:
        classes = np.unique(values)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in values.tolist()})
        raise LabelError(f"labels of different types ({', '.join(kinds)}); make all of them text") from None
    names = [str(label) for label in classes.tolist()]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else None
    if twice:
        raise LabelError(f"two different labels are written {min(twice)!r}; make all labels text")
    return ClassLabels(
        [str(label) for label in values.tolist()], classes, _TYPES.get(classes.dtype.kind, _kind_of(classes))
    )


def is_matrix(y: object) -> bool:
    """Say whether ``y`` has several columns, one for each label."""
    if isinstance(y, (list, tuple)) and y and isinstance(y[0], (list, tuple, np.ndarray)):
        return len(y[0]) > 1 and np.asarray(y[0]).dtype.kind in "biuf"
    shape: tuple[int, ...] = getattr(y, "shape", ())
    return len(shape) == 2 and shape[-1] > 1


def read_label_sets(y: Any, records: Sequence[SequenceRecord], *, reader: str, least: int = 2) -> ClassLabels:
    """Read any number of labels, at least one, for each protein.

    Parameters
    ----------
    y : array-like (N, C), or (N,) of str or of sequences of str
        A matrix of 0 and 1, a column for each label, named as the columns of a pandas table or by their
        places; or labels joined by ``;`` or ``|``; or lists of labels.
    records, reader
        As in `read_classes`.
    least : int
        Proteins that there must be.

    Raises
    ------
    UsageError
        As in `read_classes`.
    LabelError
        A protein bears no label, or a matrix holds something other than 0 and 1.
    """
    if is_matrix(y):
        return _read_matrix(y, records, reader)
    if not isinstance(y, (str, bytes)) and y is not None:
        y = [_join(list(each)) if isinstance(each, (list, tuple, set, frozenset)) else each for each in y]
    cells = [str(cell) for cell in _one_each(y, records, reader, least=least).tolist()]
    names = sorted({name for cell in cells for name in split_label(cell)})
    return ClassLabels(cells, np.array(names), "str")


def _read_matrix(y: Any, records: Sequence[SequenceRecord], reader: str) -> ClassLabels:
    columns = getattr(y, "columns", None)
    table = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
    classes = np.arange(table.shape[1]) if columns is None else np.array([str(name) for name in columns])
    if len(table) != len(records):
        raise UsageError(f"{len(table)} rows of labels do not fit {len(records)} proteins; give one for each")
    if len(table) < 2:
        raise LabelError("1 sample is too few to learn from; give two proteins or more")
    strange = np.argwhere((table != 0) & (table != 1))
    if len(strange):
        row, column = strange[0].tolist()
        raise LabelError(
            f"{_name(records, row)} has {table[row, column]!r} for label {str(classes[column])!r}; {reader} "
            "takes a matrix of 0 and 1, or one class for each protein"
        )
    bare = np.flatnonzero(~(table != 0).any(axis=1))
    if len(bare):
        raise LabelError(
            f"{_name(records, int(bare[0]))} bears no label; drop it or add a column for those that bear none"
        )
    names = classes.astype(str)
    return ClassLabels(
        [_join(names[row != 0].tolist()) for row in table], classes, "str" if columns is not None else "int"
    )


def _join(names: Sequence[str]) -> str:
    for name in names:
        if any(separator in name for separator in SEPARATORS):
            raise LabelError(
                f"label {name!r} holds one of {' '.join(SEPARATORS)}, which part labels; rename it"
            )
    return SEPARATORS[0].join(names)


def read_numbers(y: object, records: Sequence[SequenceRecord], *, reader: str) -> list[str]:
    """Read one number for each protein, as text that loses no digit; see `read_classes`."""
    values = _one_each(y, records, reader)
    return [str(number) for number in values.tolist()]


def order_of(classes: Array, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the place ``(C,)`` of each class among a head's own names of them, -1 where it is none."""
    place = {name: number for number, name in enumerate(names)}
    return np.array([place.get(str(label), -1) for label in classes.tolist()], dtype=np.intp)


def restore_classes(names: Sequence[str], kind: object) -> Array:
    """Return a loaded head's classes, sorted, of the type that they were fitted on, text if unknown."""
    readers: dict[object, Callable[[str], Any]] = {"int": int, "float": float, "bool": _BOOLS.__getitem__}
    read = readers.get(kind, str) if isinstance(kind, str) else str
    try:
        return np.array(sorted(read(name) for name in names))
    except (ValueError, KeyError):  # a card that somebody wrote by hand
        return np.array(sorted(names))


def _one_each(y: object, records: Sequence[SequenceRecord], reader: str, *, least: int = 2) -> Array:
    if y is None:
        raise UsageError(
            f"{reader} requires y to be passed, but the target y is None; give a label for each protein"
        )
    if isinstance(y, (str, bytes)):
        raise UsageError(f"y is one string; give {reader} a list of labels, one for each protein")
    values = np.asarray(y) if hasattr(y, "__array__") else _array_of(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = column_or_1d(values, warn=True)
    if values.ndim != 1:
        raise UsageError(
            f"y of shape {values.shape} is no list of labels; give {reader} one label for each protein"
        )
    if len(values) != len(records):
        raise UsageError(f"{len(values)} labels do not fit {len(records)} proteins; give one for each")
    if len(values) < least:
        raise LabelError("1 sample is too few to learn from; give two proteins or more")
    for place, value in enumerate(values.tolist()):
        if _is_missing(value):
            raise LabelError(
                f"the label of {_name(records, place)} is {value}; drop the protein or give it a label"
            )
    return values


def _array_of(y: Any) -> Array:
    """Make an array of a list, whose items numpy would turn into text where any of them is text."""
    values = list(y)
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in values):
        try:
            return np.asarray(values)
        except ValueError:
            raise UsageError("y holds lists of different lengths; give one label for each protein") from None
    found = np.empty(len(values), dtype=object)
    found[:] = values
    types = {type(value) for value in values}
    return np.asarray(values) if types <= {str, np.str_} or not types & {str, np.str_, type(None)} else found


def _is_missing(value: object) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value) or value in (np.inf, -np.inf)
    except TypeError:  # pandas' NA is neither equal nor different
        return True


def _kind_of(classes: Array) -> str:
    """Tell the type of classes that came as objects."""
    kinds = {type(value) for value in classes.tolist()}
    return next(
        (name for type_, name in ((bool, "bool"), (int, "int"), (float, "float")) if kinds == {type_}), "str"
    )


def _name(records: Sequence[SequenceRecord], place: int) -> str:
    return f"protein {place + 1} of {len(records)} ({records[place].id!r})"
