"""Move what is learnt on a source task to a target task, and tell whether that helped.

Three ways to a head for the target are compared on the same held-out proteins: the target alone;
*sequential*, where a trunk is trained on the sources, moved and held still, and a classifier is fitted to the
target; and *joint*, where both are trained at once with ``L = L_src + λ·L_tar``. The way is chosen, as is λ,
on the training part of the target; the held-out proteins only judge.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.checkpoints import read_checkpoint, restoring, write_checkpoint
from bioxfer.curves import DRAWS, TARGET_ONLY, check_sizes, draw_curve
from bioxfer.errors import UsageError
from bioxfer.evaluate import score_gain, score_predictions
from bioxfer.selection import LEANING, Fitted, HeadChoice, select
from bioxfer.solvers import Form
from bioxfer.tasks import Task
from bioxfer.trunks import LAMBDAS, Joint, Labelled, Sequential, Trunk, train_trunk

__all__ = [
    "SIZES",
    "WAYS",
    "Journal",
    "Transfer",
    "check_lam",
    "compare",
    "fit",
    "judge_gain",
]

WAYS = (TARGET_ONLY, "sequential", "joint")
SIZES = (16, 64, 256)
"""Sizes of the target's training part on the learning curve, beside all of it."""
_SORT = "a transfer"  # of checkpoint

Report: TypeAlias = Callable[[str], object]
Lam: TypeAlias = float | str


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """What `fit` found.

    Attributes
    ----------
    trunk : Trunk
        Trained on the sources alone.
    chosen : {"target_only", "sequential", "joint"}
        The way with the least loss on target proteins that it was not fitted on.
    forms : sequence of Form or None
        Of the chosen way, for `bioxfer.selection.select`; None for the target alone.
    fits : dict of str to Fitted
        By each way.
    card : dict
        What a head's card says under ``transfer``: sources, ways with their scores, verdict, learning curve.
    """

    trunk: Trunk
    chosen: str
    forms: Sequence[Form] | None
    fits: dict[str, Fitted]
    card: dict[str, Any]


def fit(
    sources: Sequence[Labelled],
    target: Labelled,
    held: Labelled,
    *,
    lam: Lam = "auto",
    head: HeadChoice = "auto",
    dev: npt.NDArray[np.bool_] | None = None,
    folds: int = 5,
    sizes: Sequence[int] = SIZES,
    draws: int = DRAWS,
    seed: int = 0,
    report: Report | None = None,
    journal: Journal | None = None,
) -> Transfer:
    """Fit a head for the target in three ways and compare them.

    Parameters
    ----------
    sources : sequence of Labelled
        One or more source tasks, free of relatives of the held-out proteins.
    target : Labelled
        Training part of the target, N proteins.
    held : Labelled
        Its held-out part; only judged.
    lam : float or "auto"
        Weight λ of the target's loss in the joint training; ``auto`` compares 0.3, 1 and 3.
    head : {"auto", "linear", "mlp", "nearest", "blend"}
        Form of the head of the target alone; those of the other ways are a network on the trunk, which
        ``auto`` may mix with the votes of neighbours, as it does for the target alone.
    dev : ndarray (N,) of bool, optional
        Target proteins that choose; whole clusters are left out in turn if not given.
    folds : int
        Of that cross-validation.
    sizes : sequence of int
        Numbers of target proteins on the learning curve; all of them is always the last.
    draws : int
        Training sets drawn at each of these sizes.
    seed : int
        Of everything random.
    report : callable, optional
        Is told a line at a time how far it is.
    journal : Journal, optional
        Keeps what is finished, and is asked for it first.

    Returns
    -------
    Transfer
        The chosen way, and the comparison.

    Raises
    ------
    UsageError
        λ or a size is out of range, there is no source, or widths differ.
    LabelError
        As in `bioxfer.selection.select`.

    References
    ----------
    The objective is that of multi-task learning with hard parameter sharing (Caruana, Machine Learning 1997).
    """
    lambdas = check_lam(lam)
    _check_sets(sources, target, held, sizes, draws)
    tell: Report = report or (lambda line: None)
    notes = journal or Journal(None, "")
    trunk = _learn_trunk(sources, seed, tell, notes)
    forms: dict[str, Sequence[Form] | None] = {
        "target_only": None,
        "sequential": [Sequential(trunk)],
        "joint": [Joint(trunk, tuple(sources), value) for value in lambdas],
    }

    def run(way: str, data: Labelled, chosen_by: npt.NDArray[np.bool_] | None) -> Fitted:
        return select(
            data.x,
            data.y,
            [str(number) for number in range(len(data.x))],
            data.group,
            data.task,
            head=head,
            forms=forms[way],
            dev=chosen_by,
            folds=folds,
            seed=seed,
        )

    fits: dict[str, Fitted] = {}
    said: dict[str, npt.NDArray[Any]] = {}
    for way in WAYS:
        fits[way] = run(way, target, dev)
        said[way] = target.task.predict(fits[way].outputs(held.x))
        tell(f"{_name(way)}: loss {fits[way].loss:.4f} on target proteins left out ({fits[way].kind})")
    card: dict[str, Any] = {
        "trunk": {
            "kind": "adapter",
            "steps": trunk.steps,
            "members": trunk.weight.shape[0],
            "hidden": trunk.weight.shape[1],
        },
        "sources": [
            {
                "name": source.name,
                "task": source.task.name,
                "proteins": len(source.x),
                "held_out_loss": None if math.isnan(loss) else loss,
            }
            for source, loss in zip(sources, trunk.losses, strict=True)
        ],
        "lam": "compared: " + ", ".join(f"{value:g}" for value in lambdas) if lam == "auto" else lambdas[0],
        **compare(fits, said, target.task, held, seed=seed),
    }

    def predict(way: str, rows: npt.NDArray[np.intp], key: str) -> npt.NDArray[Any]:
        kept = notes.get(key)
        if kept is None:
            few = Labelled(target.x[rows], target.y[rows], target.task, target.group[rows], target.name)
            kept = {"said": np.asarray(target.task.predict(run(way, few, None).outputs(held.x)))}
            notes.put(key, kept)
        return kept["said"]

    learnt = np.arange(len(target.x)) if dev is None else np.flatnonzero(~dev)
    card["curve"], card["left_out_sizes"] = draw_curve(
        target, learnt, held, predict, said, sizes=sizes, draws=draws, seed=seed, tell=tell
    )
    chosen = card["chosen"]
    return Transfer(trunk, chosen, forms[chosen], fits, card)


def check_lam(lam: Lam) -> tuple[float, ...]:
    """Return the weights λ to compare.

    Raises
    ------
    UsageError
        λ is no number above 0 and at most 1000, nor ``auto``.
    """
    if lam == "auto":
        return LAMBDAS
    try:
        value = float(lam)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise UsageError(
            f"lam {lam} is no weight of the target's loss; give a number above 0, 1000 at most, or auto"
        )
    return (value,)


def judge_gain(gain: Mapping[str, Any]) -> str:
    """Say what a paired difference means: ``helped``, ``no difference`` or ``hurt``.

    Parameters
    ----------
    gain : mapping
        What `bioxfer.evaluate.score_gain` returned; without an interval nothing is proved.
    """
    low, high = gain["ci95"] or (-math.inf, math.inf)
    return "helped" if low > 0 else "hurt" if high < 0 else "no difference"


def _check_sets(
    sources: Sequence[Labelled], target: Labelled, held: Labelled, sizes: Sequence[int], draws: int
) -> None:
    if not sources:
        raise UsageError("there is nothing to transfer from; give a source table")
    if not len(held.x):
        raise UsageError(
            "no target protein is held out, so nobody could tell whether transfer helps; hold some out"
        )
    for part in (*sources, held):
        if not len(part.x):
            raise UsageError(f"source {part.name} has no protein left; give another source")
        if part.x.shape[1] != target.x.shape[1]:
            raise UsageError(
                f"vectors of {part.name} are {part.x.shape[1]} wide and the target's {target.x.shape[1]}; "
                "embed both with one backbone, layer and pooling"
            )
    check_sizes(sizes, draws)


def _learn_trunk(sources: Sequence[Labelled], seed: int, tell: Report, notes: Journal) -> Trunk:
    if (kept := notes.get("trunk")) is not None:
        tell("sources: taken from the checkpoint")
        pairs = [(kept[f"weight_{i}"], kept[f"bias_{i}"]) for i in range(len(sources))]
        return Trunk(
            kept["mean"],
            kept["scale"],
            kept["weight"],
            kept["bias"],
            pairs,
            int(kept["steps"]),
            kept["losses"].tolist(),
        )
    trunk = train_trunk(sources, seed=seed, report=tell)
    heads = {
        f"{name}_{i}": a
        for i, pair in enumerate(trunk.heads)
        for name, a in zip(("weight", "bias"), pair, strict=True)
    }
    notes.put(
        "trunk",
        {
            "mean": trunk.mean, "scale": trunk.scale, "weight": trunk.weight, "bias": trunk.bias,
            "steps": np.array(trunk.steps), "losses": np.array(trunk.losses), **heads,
        },
    )  # fmt: skip
    return trunk


def _name(way: str) -> str:
    return way.replace("_", " ")


def compare(
    fits: Mapping[str, Fitted],
    said: Mapping[str, npt.NDArray[Any]],
    task: Task,
    held: Labelled,
    *,
    seed: int,
) -> dict[str, Any]:
    """Choose a way, and say by the held-out proteins what transfer did.

    Parameters
    ----------
    fits : mapping of str to Fitted
        One for each of `WAYS`, judged on the same target proteins.
    said : mapping of str to ndarray (M, ...)
        What each predicts for the held-out proteins.
    task : Task
        Of the target.
    held : Labelled
        The held-out part.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``ways`` with scores and paired gains over the target alone, ``chosen`` (least loss on proteins of
        the training part that the fit had not seen) and ``verdict``, on the better of the two transfers.
    """
    ways: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        ways[way] = {
            "kind": fits[way].kind,
            "setting": fits[way].setting,
            "loss": fits[way].loss,
            # each with the threshold of its own, where it has one
            "metrics": score_predictions(fits[way].task.metrics, held.y, said[way], held.group, seed=seed),
        }
        if way != "target_only":
            ways[way]["minus_target_only"] = score_gain(
                task.metrics, task.main_metric, held.y, said[way], said["target_only"], held.group, seed=seed
            )
    moved = min(WAYS[1:], key=lambda way: fits[way].loss)
    gain = ways[moved]["minus_target_only"]
    return {
        "ways": ways,
        "chosen": min(WAYS, key=lambda way: fits[way].loss),
        "chosen_by": "least loss on target proteins of the training part that the fit had not seen; "
        + LEANING,
        "verdict": {"word": judge_gain(gain), "way": moved, "gain": gain},
    }


# --- the checkpoint -------------------------------------------------------------------------------------


class Journal:
    """What of a comparison is finished, kept in a file so that a killed run goes on where it was.

    Parameters
    ----------
    path : path or None
        A safetensors file, made when there is something to keep; None keeps nothing.
    key : str
        Hash of all that the results depend on.

    Raises
    ------
    UsageError
        The file was written for other data or options.
    WeightsError
        The file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self._path = None if path is None else Path(path)
        self._key = key
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        if self._path is not None and self._path.exists():
            self._arrays = _read_journal(self._path, key)

    def get(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return what was put under a name, or None."""
        head = f"{name}:"
        found = {key.removeprefix(head): array for key, array in self._arrays.items() if key.startswith(head)}
        return found or None

    def put(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep arrays under a name, in the file before this returns."""
        if self._path is None:
            return
        import torch

        self._arrays |= {f"{name}:{key}": np.array(array, order="C") for key, array in arrays.items()}
        tensors = {key: torch.from_numpy(array) for key, array in self._arrays.items()}
        write_checkpoint(self._path, {"key": self._key}, tensors, sort=_SORT)


def _read_journal(path: Path, key: str) -> dict[str, npt.NDArray[Any]]:
    state, tensors = read_checkpoint(path, sort=_SORT)
    if state.get("key") != key:
        raise UsageError(
            f"checkpoint {path} belongs to other data or options; remove it, or name another file"
        )
    with restoring(path):  # numpy has no bfloat16
        return {name: tensor.numpy() for name, tensor in tensors.items()}
