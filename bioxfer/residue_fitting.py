"""Fit heads for residues: matrices in half precision, minibatches, and a choice on proteins set apart.

A few million residues have to fit into memory, so that they are kept as float16 and become float32 batch by
batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError, UsageError
from bioxfer.heads import NeighbourIndex
from bioxfer.residue_tasks import ResidueTask, is_resolved
from bioxfer.residues import ResidueKind, Tensors, run_residues

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAR_SHARE", "FittedResidues", "ResidueSet", "check_form", "fit_residues", "gather_residues"]

Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.intp]
Setting: TypeAlias = dict[str, int]

FAR_SHARE = 0.05  # of dev proteins that may be called far
WIDTHS = (1, 9, 15)  # of a convolution, in residues
HIDDEN = 64
RATE: dict[ResidueKind, float] = {"linear": 2e-3, "conv": 1e-3}
WEIGHT_DECAY, DROPOUT = 0.01, 0.3
BATCH, SMALL_BATCH = 2048, 512  # residues a step; the small one below 20 large steps an epoch
STEPS = 1200  # that a fit takes at least, within the epochs below
EPOCHS = (4, 100)  # fewest and most
PATIENCE = 5  # epochs, or an eighth of all
PROBE, PROBE_DEV = 300_000, 100_000  # residues on which forms are compared
_LARGEST = 65504.0  # of float16


@dataclass(slots=True, eq=False)
class ResidueSet:
    """N proteins with vectors, T residues in all.

    Attributes
    ----------
    ids, sequences : list of str
        N names, and their represented residues.
    values : ndarray (T, D)
        Residues as the backbone made them, float16.
    targets : ndarray (T,)
        Class numbers, -1 where unresolved; or numbers, NaN where unresolved.
    offsets : ndarray (N + 1,)
        Where each protein begins.
    means : ndarray (N, D)
        Mean vectors.
    """

    ids: list[str]
    sequences: list[str]
    values: npt.NDArray[np.float16]
    targets: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    means: Floats

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Represented residues of each protein, ``(N,)``."""
        return np.diff(self.offsets)

    def rows(self, places: Places) -> npt.NDArray[np.int64]:
        """Return the rows of the residues of some proteins, protein by protein."""
        lengths = self.lengths[places]
        start = np.repeat(self.offsets[places] - np.cumsum(lengths) + lengths, lengths)
        return np.asarray(start + np.arange(lengths.sum()), dtype=np.int64)

    def targets_of(self, places: Places) -> npt.NDArray[Any]:
        """Return the targets of some proteins' residues, protein by protein."""
        return self.targets[self.rows(places)]

    def sequences_of(self, places: Places) -> list[str]:
        """Return the represented residues of some proteins."""
        return [self.sequences[place] for place in places.tolist()]

    def run(self, kind: ResidueKind, tensors: Tensors, places: Places) -> Floats:
        """Compute a head's outputs for the residues of some proteins, protein by protein."""
        parts = [
            run_residues(kind, tensors, self.values[self.offsets[p] : self.offsets[p + 1]])
            for p in places.tolist()
        ]
        return np.concatenate(parts)

    def resolved(self, places: Places) -> Places:
        """Return those of some proteins that hold a resolved residue, in their order."""
        owner = np.repeat(places, self.lengths[places])
        return places[np.isin(places, owner[is_resolved(self.targets_of(places))])]

    def holding(self, places: Places, target: int) -> Places:
        """Return those of some proteins that have a residue of this class, in their order."""
        owner = np.repeat(places, self.lengths[places])
        return places[np.isin(places, owner[self.targets_of(places) == target])]

    def draw(self, places: Places, residues: int, *, seed: int) -> Places:
        """Draw whole proteins of about so many residues in all; all of them if they have fewer."""
        if self.lengths[places].sum() <= residues:
            return places
        order = np.random.default_rng(seed).permutation(len(places))
        enough = int(np.searchsorted(np.cumsum(self.lengths[places][order]), residues)) + 1
        return np.sort(places[order[:enough]])


@dataclass(frozen=True, slots=True, eq=False)
class FittedResidues:
    """What `fit_residues` found.

    Attributes
    ----------
    task : ResidueClasses or ResidueValues
        What was fitted: of numbers, in the units of the training proteins.
    kind : {"linear", "conv"}
        The chosen form.
    setting : dict
        ``width`` and ``hidden`` of a convolution, and how it was trained: residues in a ``batch``, ``epochs``
        and the ``steps`` they took, and the epochs of the whole ``schedule``, of which these are the first.
    tensors : mapping of str to ndarray
        Weights fitted on the training proteins.
    index : NeighbourIndex
        The training proteins' mean vectors.
    temperature : float
        Fitted on the dev proteins.
    candidates : list of dict
        Every ``kind`` and ``setting`` tried, with its dev ``loss``.
    """

    task: ResidueTask
    kind: ResidueKind
    setting: Setting
    tensors: Tensors
    index: NeighbourIndex
    temperature: float
    candidates: list[dict[str, Any]]

    def run(self, data: ResidueSet, places: Places) -> Floats:
        """Compute outputs ``(T, C)`` for the residues of some proteins."""
        return data.run(self.kind, self.tensors, places)

    def refit(self, data: ResidueSet, places: Places, *, seed: int) -> tuple[Tensors, NeighbourIndex]:
        """Fit the chosen form once more, on these proteins, by as many steps at the same rates."""
        trained = _train(self.kind, self.setting, data, self.task, places, None, seed=seed)
        return trained.tensors, _index(data, places, far=self.index.far)


@dataclass(slots=True, eq=False)
class _Trained:
    kind: ResidueKind
    setting: Setting
    tensors: Tensors
    loss: float


def gather_residues(
    rows: Iterable[tuple[str, str, npt.NDArray[Any] | None]],
    codes: Sequence[npt.NDArray[Any]],
    *,
    width: int,
) -> tuple[ResidueSet, list[int]]:
    """Collect proteins as they are embedded.

    Parameters
    ----------
    rows : iterable of (id, sequence, matrix)
        N proteins and their residues ``(L, D)``; None if there are none. A truncated protein has fewer rows
        than residues.
    codes : sequence of ndarray
        Targets ``(L,)`` of each, as `ResidueSet` has them.
    width : int
        D.

    Returns
    -------
    tuple of ResidueSet and list of int
        The proteins with a matrix, and their places among the N.
    """
    values = np.empty((sum(map(len, codes)), width), dtype=np.float16)
    targets = np.empty(len(values), dtype=codes[0].dtype if len(codes) else np.int8)
    ids, sequences, offsets, means, kept = [], [], [0], [], []
    for place, (identifier, sequence, matrix) in enumerate(rows):
        if matrix is None or not len(matrix):
            continue
        start, end = offsets[-1], offsets[-1] + len(matrix)
        values[start:end] = np.clip(matrix, -_LARGEST, _LARGEST)
        targets[start:end] = codes[place][: len(matrix)]
        ids.append(identifier)
        sequences.append(sequence[: len(matrix)])
        offsets.append(end)
        means.append(matrix.mean(axis=0, dtype=np.float64).astype(np.float32))
        kept.append(place)
    total = offsets[-1]
    table = np.array(means, dtype=np.float32).reshape(-1, width)
    return ResidueSet(ids, sequences, values[:total], targets[:total], np.array(offsets), table), kept


def fit_residues(
    data: ResidueSet, task: ResidueTask, *, head: str = "auto", train: Places, dev: Places, seed: int
) -> FittedResidues:
    """Fit a head for residues on the training proteins, and choose its form on the dev proteins.

    Where there is more than about 300,000 residues, forms are compared on part of them, and the best is
    fitted anew on all.

    Parameters
    ----------
    data : ResidueSet
        All proteins.
    task : ResidueClasses or ResidueValues
        The classes; or numbers, whose units the training proteins tell anew.
    head : {"auto", "linear", "conv"}
        Form of the head.
    train, dev : ndarray
        Places of the training and the dev proteins.
    seed : int
        Of initial weights, order and dropout.

    Returns
    -------
    FittedResidues
        The best, its temperature and its index.

    Raises
    ------
    UsageError
        There is no such form.
    LabelError
        The training or the dev proteins hold no resolved residue, or the training proteins one number alone.
    """
    told, told_dev = data.resolved(train), data.resolved(dev)
    for word, places, some in (("training", train, told), ("dev", dev, told_dev)):
        if not len(some):
            raise LabelError(f"{len(places)} {word} proteins hold no resolved residue; mark some of each")
    task = task.restrict(data.targets_of(train))
    few, few_dev = data.draw(told, PROBE, seed=seed), data.draw(told_dev, PROBE_DEV, seed=seed)
    tried = [_train(kind, setting, data, task, few, few_dev, seed=seed) for kind, setting in _forms(head)]
    best = min(tried, key=lambda each: each.loss)
    candidates = [{"kind": t.kind, "setting": t.setting, "loss": t.loss} for t in tried]
    if len(few) < len(told):
        form = {name: value for name, value in best.setting.items() if name in ("width", "hidden")}
        best = _train(best.kind, form, data, task, train, dev, seed=seed)
    outputs, targets = data.run(best.kind, best.tensors, dev), data.targets_of(dev)
    known = is_resolved(targets)
    similarity = _index(data, train).search(data.means[dev])[1][:, 0]
    return FittedResidues(
        task=task,
        kind=best.kind,
        setting=best.setting,
        tensors=best.tensors,
        index=_index(data, train, far=float(np.quantile(similarity, FAR_SHARE))),
        temperature=task.calibrate(outputs[known], targets[known]),
        candidates=candidates,
    )


def check_form(head: str) -> None:
    """Refuse a form that no head for residues has.

    Raises
    ------
    UsageError
        There is no such form.
    """
    _forms(head)


def _forms(head: str) -> list[tuple[ResidueKind, Setting]]:
    linear: list[tuple[ResidueKind, Setting]] = [("linear", {})]
    conv: list[tuple[ResidueKind, Setting]] = [("conv", {"width": w, "hidden": HIDDEN}) for w in WIDTHS]
    forms = {"auto": linear + conv, "linear": linear, "conv": conv}
    if head not in forms:
        raise UsageError(f"head {head!r} cannot label residues; choose {', '.join(forms)}")
    return forms[head]


def _index(data: ResidueSet, places: Places, *, far: float = -1.0) -> NeighbourIndex:
    from bioxfer.solvers import build_index

    none = np.zeros(len(places), dtype=np.int64)
    return build_index(data.means[places], none, [data.ids[i] for i in places.tolist()], far=far)


def _train(
    kind: ResidueKind,
    form: Setting,
    data: ResidueSet,
    task: ResidueTask,
    train: Places,
    dev: Places | None,
    *,
    seed: int,
) -> _Trained:
    """Train one form by AdamW; stop where the dev proteins say so, or after ``steps`` of the form."""
    import torch

    resolved = int(is_resolved(data.targets_of(train)).sum())
    chance = torch.Generator().manual_seed(seed)  # own, so that nobody's global random state moves
    mean, scale = _moments(data, train)
    net = _Net(kind, form, task.n_outputs, mean, scale, chance)
    solver = torch.optim.AdamW(net.weights, lr=RATE[kind], weight_decay=WEIGHT_DECAY)

    def step(inputs: tuple[Tensor, Tensor], wanted: Tensor, done: float) -> None:
        for group in solver.param_groups:
            group["lr"] = RATE[kind] * 0.5 * (1 + np.cos(np.pi * done))
        loss = task.loss(net(inputs), wanted)
        solver.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        solver.step()

    if dev is None:
        # Steps and rates are those that were chosen: more proteins make other epochs, not a longer training.
        endless = (each for _ in count() for each in _batches(kind, form, data, train, form["batch"], chance))
        for number, (inputs, wanted) in enumerate(islice(endless, form["steps"])):
            step(inputs, wanted, number / form["steps"] * form["epochs"] / form["schedule"])
        return _Trained(kind, form, net.tensors(), np.nan)
    batch = BATCH if resolved >= 20 * BATCH else SMALL_BATCH
    steps = -(-resolved // batch)
    epochs = min(max(EPOCHS[0], -(-STEPS // steps)), EPOCHS[1])
    best, kept, taken = np.inf, net.tensors(), 0
    chosen = {"batch": batch, "epochs": 0, "steps": 0, "schedule": epochs}
    targets = data.targets_of(dev)
    known = is_resolved(targets)
    for epoch in range(1, epochs + 1):
        for number, (inputs, wanted) in enumerate(_batches(kind, form, data, train, batch, chance)):
            step(inputs, wanted, (epoch - 1 + min(number / steps, 1.0)) / epochs)
            taken += 1
        found = net.tensors()
        told = task.out_of_sample_loss(data.run(kind, found, dev)[known], targets[known])
        if told < best:
            best, kept = told, found
            chosen |= {"epochs": epoch, "steps": taken}
        elif epoch - chosen["epochs"] >= max(PATIENCE, epochs // 8):
            break
    return _Trained(kind, {**form, **chosen}, kept, float(best))


class _Net:
    """A head for residues while it is trained, on standardised residues."""

    def __init__(
        self,
        kind: ResidueKind,
        form: Setting,
        n_outputs: int,
        mean: Floats,
        scale: Floats,
        chance: Any,
    ) -> None:
        import torch

        self.kind, self.mean, self.scale, self.chance = kind, mean, scale, chance
        self.centre, self.unit = torch.from_numpy(mean), torch.from_numpy(scale)
        width = len(mean)
        if kind == "linear":
            self.weights = [torch.zeros(width, n_outputs), torch.zeros(n_outputs)]
        else:
            hidden, self.span = form["hidden"], form["width"]
            first = torch.randn(width, self.span * hidden, generator=chance)
            last = torch.randn(hidden, n_outputs, generator=chance)
            self.weights = [
                first * (2 / (width * self.span)) ** 0.5,
                torch.zeros(hidden),
                last * hidden**-0.5,
                torch.zeros(n_outputs),
            ]
        for weight in self.weights:
            weight.requires_grad_()

    def __call__(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Compute outputs ``(T, C)``; a row that is marked as empty counts as a mean residue."""
        import torch

        values, filled = inputs
        x = (values.float() - self.centre) / self.unit
        if self.kind == "linear":
            return x @ self.weights[0] + self.weights[1]
        x = x * filled[:, None]
        # One product of all offsets and then shifts: the residues are read once, whatever the width.
        parts = (x @ self.weights[0]).view(len(x), self.span, -1).unbind(1)
        half, total = self.span // 2, len(x)
        hidden = self.weights[1]
        for place, part in enumerate(parts):
            shift = place - half
            cut = part[max(0, shift) : total + min(0, shift)]
            before, after = max(0, -shift), max(0, shift)
            hidden = hidden + torch.nn.functional.pad(cut, (0, 0, before, after))
        hidden = torch.relu(hidden)
        kept = torch.rand(hidden.shape, generator=self.chance) >= DROPOUT
        return hidden * kept / (1 - DROPOUT) @ self.weights[2] + self.weights[3]

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the weights as a head holds them, the scale folded in."""
        arrays = [weight.detach().numpy().copy() for weight in self.weights]
        first = arrays[0] / self.scale[:, None]
        if self.kind == "linear":
            return {"mean": self.mean, "weight": np.ascontiguousarray(first.T), "bias": arrays[1]}
        folded = first.reshape(len(first), self.span, -1).transpose(2, 1, 0)
        return {
            "mean": self.mean,
            "weight_in": np.ascontiguousarray(folded),
            "bias_in": arrays[1],
            "weight_out": np.ascontiguousarray(arrays[2].T),
            "bias_out": arrays[3],
        }


def _batches(
    kind: ResidueKind, form: Setting, data: ResidueSet, train: Places, batch: int, chance: Any
) -> Iterable[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Yield residues, marks of those that are real, and targets: single residues, or whole proteins."""
    import torch

    if kind == "linear":
        rows = data.rows(train)
        rows = rows[is_resolved(data.targets[rows])]
        for some in torch.split(torch.randperm(len(rows), generator=chance), batch):
            chosen = np.sort(rows[some.numpy()])  # in order, for the memory's sake
            wanted = torch.from_numpy(data.targets[chosen])
            yield (torch.from_numpy(data.values[chosen]), torch.ones(len(chosen))), wanted
        return
    nothing = np.nan if data.targets.dtype.kind == "f" else -1  # what an empty row is asked for
    gap = form["width"] // 2  # empty rows between proteins, so that none sees another
    order = train[torch.randperm(len(train), generator=chance).numpy()]
    lengths = data.lengths[order]
    bounds = np.searchsorted(np.cumsum(lengths), np.arange(batch, lengths.sum(), batch)) + 1
    for places in np.split(order, np.unique(bounds)):
        if not len(places):
            continue
        sizes = data.lengths[places] + gap
        values = np.zeros((int(sizes.sum()), data.values.shape[1]), dtype=np.float16)
        asked = np.full(len(values), nothing, dtype=data.targets.dtype)
        filled = np.zeros(len(values), dtype=np.float32)
        start = 0
        for place, size in zip(places.tolist(), sizes.tolist(), strict=True):
            here = slice(start, start + size - gap)
            there = slice(data.offsets[place], data.offsets[place + 1])
            values[here], asked[here], filled[here] = data.values[there], data.targets[there], 1
            start += size
        if is_resolved(asked).any():
            yield (torch.from_numpy(values), torch.from_numpy(filled)), torch.from_numpy(asked)


def _moments(data: ResidueSet, places: Places) -> tuple[Floats, Floats]:
    """Return mean and standard deviation ``(D,)`` of residues; a constant feature keeps the scale 1."""
    rows = data.rows(places)
    some = data.values[rows[:: 1 + len(rows) // 200_000]].astype(np.float32)
    mean, scale = some.mean(axis=0, dtype=np.float64), some.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)
