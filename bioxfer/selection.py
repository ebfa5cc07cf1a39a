"""Choose the form of a head, its settings and its temperature on proteins that it was not fitted on.

Those are the members of each homology cluster in turn, or, where the backbone itself may have seen the
training proteins, a selection part that it has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.clusters import HomologyKFold
from bioxfer.errors import LabelError, UsageError
from bioxfer.heads import HeadKind, NeighbourIndex, confidence, forward
from bioxfer.solvers import Form, Plain, Setting, Tensors, blend_tensors, build_index
from bioxfer.tasks import Task

__all__ = ["FAR_SHARE", "LEANING", "Fitted", "HeadChoice", "check_choice", "check_classes", "select"]

HeadChoice: TypeAlias = Literal["auto", "linear", "mlp", "nearest", "blend"]
Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.intp]

KINDS: tuple[HeadKind, ...] = ("linear", "mlp", "nearest")
SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))  # at 0 and 1 a blend is one of its parts
FAR_SHARE = 0.05  # of proteins held out by cluster that may be called far
# A few proteins cannot tell a good share from a lucky one. So a share is believed to be near this one, as a
# Gaussian prior of variance 1/80 has it, until enough proteins say otherwise; both numbers come from draws
# of 16 from six tables (benchmarks/README.md).
_USUAL_SHARE, _BELIEF = 0.7, 40.0
LEANING = (
    f"blends count {_BELIEF:g} (share of the network - {_USUAL_SHARE:g})^2 more, over all proteins that judge"
)
"""What `select` adds to the loss of ``auto`` and ``blend``, for cards."""
_WORSE = 2  # settings in a row, each worse than the best before, after which a path is left


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What `select` found.

    Attributes
    ----------
    task : Multiclass, Multilabel or Regression
        What is predicted; a regression knows its half-width.
    kind : {"linear", "mlp", "nearest", "blend"}
        The chosen form.
    form : Form
        How it is fitted; of a blend, how its network is.
    setting : dict
        The chosen regularisation; of a blend also the share of its network, and whether that has a
        ``penalty`` (linear) or ``steps`` (mlp).
    tensors : mapping of str to ndarray
        Weights for raw features, fitted on all rows but those of a selection part.
    index : NeighbourIndex
        The same rows, to find neighbours in.
    temperature : float
        Fitted on ``out_of_fold``.
    judged : ndarray (M,)
        Places of the rows that the choice was made on: all N, or the selection part.
    out_of_fold : ndarray (M, C)
        Outputs for each of them by a head that did not see it, nor any member of its cluster.
    similarity : ndarray (M,)
        Cosine of each to the nearest protein that this head did see.
    targets : ndarray (M,)
        Their encoded labels.
    candidates : list of dict
        Every ``kind`` and ``setting`` compared, with its ``loss`` on these rows.
    """

    task: Task
    kind: HeadKind
    form: Form
    setting: Setting
    tensors: Mapping[str, npt.NDArray[Any]]
    index: NeighbourIndex
    temperature: float
    judged: Places
    out_of_fold: Floats
    similarity: Floats
    targets: npt.NDArray[Any]
    candidates: list[dict[str, Any]]

    @property
    def loss(self) -> float:
        """Loss of ``out_of_fold``, at its best temperature."""
        return self.task.out_of_sample_loss(self.out_of_fold, self.targets)

    def outputs(self, features: Floats) -> Floats:
        """Return outputs ``(N, C)`` of features ``(N, F)``."""
        return forward(self.kind, self.tensors, self.index, self.task, features)

    def refit(self, x: Floats, y: npt.NDArray[Any], *, seed: int) -> Tensors:
        """Fit the chosen setting once more, to these vectors ``(N, F)`` and encoded labels ``(N,)``."""
        return _refit(self.kind, self.form, self.setting, x, y, self.task, seed)

    def find_threshold(self, share: float) -> float:
        """Find the confidence below which this share of the rows that the head gets right would be refused.

        Raises
        ------
        UsageError
            The head got no row right.
        """
        right = self.task.predict(self.out_of_fold) == self.targets
        if not right.any():
            raise UsageError(
                f"the head gets none of {len(right)} proteins right that it was judged on, so it cannot "
                "learn when to abstain; leave abstain out"
            )
        chances = self.task.probabilities(self.out_of_fold, temperature=self.temperature)
        sure = np.sort(confidence(chances, self.similarity)[right])
        return float(sure[int(share * len(sure))])


@dataclass(slots=True)
class _Candidate:
    kind: HeadKind
    form: Form  # of a blend: of its network
    setting: Setting
    outputs: Floats  # (M, C)
    loss: float = np.inf
    tensors: Tensors | None = None  # where there was a single round, whose fit is the head

    @property
    def share(self) -> float:
        """What part of an answer is the network's."""
        return self.setting.get("share", 0.0 if self.kind == "nearest" else 1.0)


def check_choice(choice: HeadChoice) -> None:
    """Refuse a form that there is none of."""
    if choice not in ("auto", *KINDS, "blend"):
        raise UsageError(f"head {choice!r} is not one of auto, {', '.join(KINDS)}, blend")


def select(
    x: Floats,
    y: npt.NDArray[Any],
    ids: Sequence[str],
    group: npt.NDArray[Any],
    task: Task,
    *,
    head: HeadChoice = "auto",
    forms: Sequence[Form] | None = None,
    dev: npt.NDArray[np.bool_] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Fitted:
    """Fit a head, choosing all that is not a weight on rows that the weights have not seen.

    Parameters
    ----------
    x : ndarray (N, F)
        Pooled vectors, finite.
    y : ndarray (N,)
        Encoded labels.
    ids : sequence of str
        N names.
    group : ndarray (N,)
        Homology clusters.
    task : Multiclass, Multilabel or Regression
        What is predicted.
    head : {"auto", "linear", "mlp", "nearest", "blend"}
        Form of the head; ``auto`` takes the one with the least loss, to which `LEANING` is added.
    forms : sequence of Form, optional
        What takes the place of the linear and the mlp form, such as those of `bioxfer.trunks`. Neighbours
        then only vote in blends, which ``auto`` and ``blend`` try.
    dev : ndarray (N,) of bool, optional
        The selection part; whole clusters are left out in turn where there is none.
    folds : int
        Into how many parts clusters are dealt where there is no selection part.
    seed : int
        Seed of folds, initial weights and dropout.

    Raises
    ------
    LabelError
        Too few clusters, or a class that would be missing in training.
    UsageError
        ``head`` is none of these.
    """
    check_choice(head)
    chosen = np.zeros(len(x), dtype=bool) if dev is None else dev
    learnt, judged = np.flatnonzero(~chosen), np.flatnonzero(chosen if chosen.any() else ~chosen)
    rounds: list[tuple[Places, Places]]
    if chosen.any():
        check_classes(task, y[learnt], group[learnt], least=1)
        rounds = [(learnt, judged)]
    else:
        check_classes(task, y, group, least=2)
        cut = HomologyKFold(min(folds, len(np.unique(group))), seed=seed)
        rounds = list(cut.split(ids, y if task.labels else None, group))
    tried = _choose_forms(head, forms)
    similarity, found = _run_rounds(x, y, ids, task, tried, rounds, seed)
    similarity, targets = similarity[judged], y[judged]
    for candidate in found:
        candidate.outputs = candidate.outputs[judged]
        candidate.loss = task.out_of_sample_loss(candidate.outputs, targets)
    blends = [_blend(found, task, targets)] if head in ("auto", "blend") else []
    found += blends
    rivals = found if forms is None else [c for c in found if c.kind != "nearest"]
    best = min(blends if head == "blend" else rivals, key=lambda c: c.loss + _mistrust(c.share, len(judged)))
    temperature = task.calibrate(best.outputs, targets)
    far = float(np.quantile(similarity, FAR_SHARE))
    return Fitted(
        task=task.calibrate_width(best.outputs, targets),
        kind=best.kind,
        form=best.form,
        setting=best.setting,
        tensors=best.tensors or _refit(best.kind, best.form, best.setting, x[learnt], y[learnt], task, seed),
        index=build_index(x[learnt], y[learnt], [ids[i] for i in learnt.tolist()], far=far),
        temperature=temperature,
        judged=judged,
        out_of_fold=best.outputs,
        similarity=similarity,
        targets=targets,
        candidates=[{"kind": c.kind, "setting": c.setting, "loss": c.loss} for c in found],
    )


def _run_rounds(
    x: Floats,
    y: npt.NDArray[Any],
    ids: Sequence[str],
    task: Task,
    forms: Sequence[Form],
    rounds: Sequence[tuple[Places, Places]],
    seed: int,
) -> tuple[Floats, list[_Candidate]]:
    """Fit every form in each round; return similarities ``(N,)`` and candidates with outputs ``(N, C)``."""
    similarity = np.zeros(len(x), dtype=np.float32)
    limits: dict[int, int] = {}  # how many settings of a form are worth a try, found in the first round
    found: dict[tuple[int, int], _Candidate] = {}
    for train, test in rounds:
        index = build_index(x[train], y[train], [ids[i] for i in train.tolist()])
        similarity[test] = index.search(x[test])[1][:, 0]
        for number, form in enumerate(forms):
            losses: list[float] = []
            settings = islice(form.settings(x[train], y[train], task, seed), limits.get(number))
            for place, (setting, tensors) in enumerate(settings):
                blank = np.zeros((len(x), task.n_outputs), dtype=np.float32)
                candidate = found.setdefault((number, place), _Candidate(form.kind, form, setting, blank))
                candidate.tensors = tensors if len(rounds) == 1 else None
                outputs = candidate.outputs[test] = forward(form.kind, tensors, index, task, x[test])
                if number in limits or form.kind == "nearest":
                    continue  # neighbours are no path from cautious to bold, and cost little
                losses.append(task.out_of_sample_loss(outputs, y[test]))
                if len(losses) - int(np.argmin(losses)) > _WORSE:
                    break
            if losses:
                limits[number] = int(np.argmin(losses)) + 2
    return similarity, [c for (form, place), c in found.items() if place < limits.get(form, place + 1)]


def _mistrust(share: float, rows: int) -> float:
    """Return what a share of the network's has to gain, as loss of each of the rows that it was judged on."""
    return _BELIEF * (share - _USUAL_SHARE) ** 2 / rows


def _choose_forms(head: HeadChoice, forms: Sequence[Form] | None) -> list[Form]:
    """Return what to compare."""
    nearest = Plain("nearest")
    if forms is not None:
        return [*forms, nearest] if head in ("auto", "blend") else [*forms]
    return [Plain(kind) for kind in KINDS if head in ("auto", "blend", kind)]


def _refit(
    kind: HeadKind, form: Form, setting: Setting, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
) -> Tensors:
    tensors = form.refit(x, y, task, seed, setting)
    return blend_tensors(tensors, setting) if kind == "blend" else tensors


def _blend(found: Sequence[_Candidate], task: Task, targets: npt.NDArray[Any]) -> _Candidate:
    """Return the best mixture of the best network with any of the neighbours' votes."""
    network = min((c for c in found if c.kind != "nearest"), key=lambda candidate: candidate.loss)
    temperature = task.calibrate(network.outputs, targets)
    votes = [c for c in found if c.kind == "nearest"]

    def mix(place: int, share: float) -> Floats:
        others = votes[place].outputs
        return task.mix_outputs(network.outputs, others, share=share, temperature=temperature)

    tried = product(range(len(votes)), SHARES)
    scored = [(task.out_of_sample_loss(mix(*each), targets), *each) for each in tried]
    loss, place, share = min(scored, key=lambda one: one[0] + _mistrust(one[2], len(targets)))
    own = {"share": share, "network_temperature": temperature}
    setting = network.setting | votes[place].setting | own
    tensors = None if network.tensors is None else blend_tensors(network.tensors, setting)
    return _Candidate("blend", network.form, setting, mix(place, share), loss, tensors)


def check_classes(task: Task, y: npt.NDArray[Any], group: npt.NDArray[Any], *, least: int) -> None:
    """Refuse training data from which no protein, or a whole class with it, could be held out."""
    if len(np.unique(group)) < least:
        raise LabelError(
            f"all {len(y)} proteins are relatives of each other, so none can be held out; add diverse ones, "
            "or let variants of one protein count as unrelated (--identity 1)"
        )
    for label, bearers in zip(task.labels, task.members(y).T, strict=True):
        mine = group[bearers]
        clusters = len(np.unique(mine))
        if clusters < least:
            raise LabelError(
                f"class {label!r} has {len(mine)} training proteins in {clusters} homology clusters and "
                f"needs at least {least} clusters; add proteins, merge or drop the class"
            )
