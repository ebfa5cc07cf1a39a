"""A shared trunk: a layer on frozen vectors, trained on source tasks, on which the head of a target stands.

Two ways lead from a source to a target. *Sequential*: trunk and classifier are trained on the source, the
trunk is moved and held still, and only a new classifier is fitted to the target. *Joint*: both tasks are
trained at once, with the loss ``L = L_src + λ·L_tar``. Here both are forms of a head as `bioxfer.selection`
compares them; what they learn is kept as an ordinary network of one hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bioxfer.clusters import homology_split
from bioxfer.heads import HeadKind
from bioxfer.solvers import (
    PENALTIES,
    Setting,
    Tensors,
    as_tensor,
    draw_dropout,
    linear_path,
    moments,
)
from bioxfer.tasks import Task

__all__ = ["JOINT_STOPS", "LAMBDAS", "Joint", "Labelled", "Sequential", "Trunk", "set_apart", "train_trunk"]

Floats: TypeAlias = npt.NDArray[np.float32]

LAMBDAS = (0.3, 1.0, 3.0)
"""Weights of the target's loss that are compared where none is given: a decade around that of the source."""
JOINT_STOPS = (25, 50, 100, 200)  # steps after which a joint training is looked at
FIRST_PENALTY = 0.1  # of the classifier that a joint training starts from
MEMBERS, HIDDEN, DROPOUT = 3, 128, 0.3
RATE, JOINT_RATE, WEIGHT_DECAY = 1e-3, 5e-4, 0.01
BATCH, LEAST_BATCH, TARGET_BATCH = 128, 32, 64  # of all sources together, of each at least, of the target
STEPS, EVERY, PATIENCE = (
    (200, 2000),
    100,
    4,
)  # of a trunk: fewest and most, looked at after, looks without gain
EPOCHS = 60  # of the largest source, within these steps
_GAIN = 0.002  # share of the loss that counts as one
DEV_SHARE = 0.1  # of each source's proteins that say when to stop
_LEAST_DEV = 10  # proteins of a source below which none is set apart, and all steps are taken

Report: TypeAlias = Callable[[str], object]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Vectors with encoded labels.

    Attributes
    ----------
    x : ndarray (N, F)
        Pooled vectors, finite.
    y : ndarray (N, ...)
        Encoded labels.
    task : Task
        What they are labels of.
    group : ndarray (N,)
        Homology clusters.
    name : str
        For messages and cards.
    """

    x: Floats
    y: npt.NDArray[Any]
    task: Task
    group: npt.NDArray[Any]
    name: str = "source"


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """E members of one hidden layer, with the source tasks' heads on them.

    Attributes
    ----------
    mean, scale : ndarray (F,)
        Vectors are standardised by these first.
    weight, bias : ndarray (E, H, F), (E, H)
        The layer, on standardised vectors.
    heads : list of tuple of ndarray (E, C, H), (E, C)
        One for each source.
    steps : int
        Taken in training.
    losses : list of float
        Of each source on its held-out clusters, at the best temperature; NaN where none was held out.
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    heads: list[tuple[Floats, Floats]]
    steps: int = 0
    losses: list[float] = field(default_factory=list)

    def folded(self) -> tuple[Floats, Floats]:
        """Return weight ``(E, H, F)`` and bias ``(E, H)`` of the layer for raw vectors."""
        weight = self.weight.astype(np.float64) / self.scale
        bias = self.bias - weight @ self.mean.astype(np.float64)
        return weight.astype(np.float32), bias.astype(np.float32)

    def hidden(self, x: Floats) -> Floats:
        """Compute what the layer says of vectors ``(N, F)``: ``(N, E * H)``, the members side by side."""
        weight, bias = self.folded()
        outputs = x @ weight.reshape(-1, x.shape[1]).T + bias.ravel()
        return np.asarray(np.maximum(outputs, 0), dtype=np.float32)

    def read_out(self) -> Floats:
        """Return the sources' classifiers, members averaged: ``(C of all sources, E * H)``, without bias."""
        members = len(self.weight)
        heads = [np.concatenate(list(weight), axis=1) / members for weight, _ in self.heads]
        return np.concatenate(heads).astype(np.float32)


def train_trunk(sources: Sequence[Labelled], *, seed: int = 0, report: Report | None = None) -> Trunk:
    """Train a trunk and a classifier for each source; the losses of the sources are added up.

    A tenth of each source's proteins, in whole clusters, says when to stop.

    Parameters
    ----------
    sources : sequence of Labelled
        One or more source tasks on vectors of one width.
    seed : int
        Of the proteins set apart, initial weights, order and dropout.
    report : callable, optional
        Is told a line at each look at the held-out proteins.

    Returns
    -------
    Trunk
        As it was at its least held-out loss.
    """
    mean, scale = moments(np.concatenate([source.x for source in sources]))
    learnt, held = zip(*(set_apart(source, seed) for source in sources), strict=True)
    net = _Net.fresh(mean, scale, [source.task.n_outputs for source in sources], seed)
    batch = max(LEAST_BATCH, BATCH // len(sources))
    feeds = [_Feed(source, rows, net, batch) for source, rows in zip(sources, learnt, strict=True)]
    solver = torch.optim.AdamW(net.weights, lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)
    judged = [place for place, rows in enumerate(held) if len(rows)]
    best, kept, mark, since = np.inf, net.trunk(), np.inf, 0
    last = min(max(STEPS[0], -(-EPOCHS * max(map(len, learnt)) // batch)), STEPS[1])
    for step in range(1, last + 1):
        for group in solver.param_groups:
            group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * (step - 1) / last))
        total = sum((net.loss(feed, place) for place, feed in enumerate(feeds)), start=torch.zeros(()))
        solver.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        solver.step()
        if step % EVERY and step < last:
            continue
        found = net.trunk()
        losses = [np.nan] * len(sources)
        for place in judged:
            source, rows = sources[place], held[place]
            losses[place] = source.task.out_of_sample_loss(
                _run(found, place, source.task, source.x[rows]), source.y[rows]
            )
        told = float(np.nansum(losses))
        if report is not None:
            said = ", ".join(f"{s.name} {loss:.3f}" for s, loss in zip(sources, losses, strict=True))
            report(f"sources, step {step}: held-out loss {said}")
        if not judged or told < best:
            best, kept = told, Trunk(mean, scale, found.weight, found.bias, found.heads, step, losses)
        mark, since = (told, 0) if not told > mark * (1 - _GAIN) else (mark, since + 1)
        if judged and since >= PATIENCE:
            break
    return kept


@dataclass(frozen=True, slots=True, eq=False)
class Sequential:
    """The form of a head whose hidden layer comes from the sources and is held still.

    The classifier sees the trunk's hidden layer, what the sources' own classifiers say, and the vectors
    themselves, so that what the sources had no use for is not lost. Each of the three has the same variance
    in all: what few numbers say is penalised less than what hundreds do.

    Parameters
    ----------
    trunk : Trunk
        From the sources.
    """

    trunk: Trunk
    kind: HeadKind = "mlp"

    def settings(
        self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
    ) -> Iterator[tuple[Setting, Tensors]]:
        """Fit the classifier at each penalty; see `bioxfer.solvers.train_settings`."""
        yield from self._path(x, y, task, PENALTIES)

    def refit(self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting) -> Tensors:
        """Fit the classifier at one penalty."""
        ((_, tensors),) = self._path(x, y, task, (setting["penalty"],))
        return tensors

    def _path(
        self, x: Floats, y: npt.NDArray[Any], task: Task, penalties: Sequence[float]
    ) -> Iterator[tuple[Setting, Tensors]]:
        weight, bias = self.trunk.folded()
        read_out = self.trunk.read_out()
        hidden = self.trunk.hidden(x)
        parts = [x, hidden, hidden @ read_out.T]
        widths = np.array([part.shape[1] for part in parts])
        gains = np.repeat((widths[0] / widths) ** 0.5, widths)
        features = np.concatenate(parts, axis=1)
        for penalty, tensors in linear_path(features, y, task, penalties, gains=gains):
            plain, moved, told = np.split(tensors["weight"], np.cumsum(widths)[:-1], axis=1)
            yield (
                {"penalty": penalty},
                _with_skip(
                    weight.reshape(-1, x.shape[1]),
                    bias.ravel(),
                    moved + told @ read_out,
                    plain,
                    tensors["bias"],
                ),
            )


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """The form of a head whose hidden layer goes on learning, with ``L = L_src + λ·L_tar``.

    It starts from the trunk that the sources alone have trained.

    Parameters
    ----------
    trunk : Trunk
        From the sources.
    sources : sequence of Labelled
        Whose losses are added up.
    lam : float
        Weight λ of the target's loss.
    """

    trunk: Trunk
    sources: Sequence[Labelled]
    lam: float
    kind: HeadKind = "mlp"

    def settings(
        self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
    ) -> Iterator[tuple[Setting, Tensors]]:
        """Train jointly, and look after 25 to 200 steps; see `bioxfer.solvers.train_settings`."""
        for steps, tensors in self._train(x, y, task, seed, JOINT_STOPS):
            yield {"lam": self.lam, "steps": steps}, tensors

    def refit(self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting) -> Tensors:
        """Train jointly for so many steps."""
        ((_, tensors),) = self._train(x, y, task, seed, (int(setting["steps"]),))
        return tensors

    def _first_head(self, x: Floats, y: npt.NDArray[Any], task: Task) -> tuple[Floats, Floats]:
        """Fit a cautious classifier to each member of the trunk; a fresh one would learn too slowly."""
        hidden = self.trunk.hidden(x).reshape(len(x), *self.trunk.bias.shape)
        weights, biases = [], []
        for member in range(len(self.trunk.weight)):
            told = np.concatenate([weight[member] for weight, _ in self.trunk.heads])
            features = np.concatenate([hidden[:, member], hidden[:, member] @ told.T], axis=1)
            gains = np.repeat([1.0, (told.shape[1] / len(told)) ** 0.5], [told.shape[1], len(told)])
            ((_, tensors),) = linear_path(features, y, task, (FIRST_PENALTY,), gains=gains)
            own, through = np.split(tensors["weight"], [told.shape[1]], axis=1)
            weights.append(own + through @ told)
            biases.append(tensors["bias"])
        return np.stack(weights), np.stack(biases)

    def _train(
        self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, stops: Sequence[int]
    ) -> Iterator[tuple[int, Tensors]]:
        target = Labelled(x, y, task, np.arange(len(x)))
        net = _Net.resume(self.trunk, self._first_head(x, y, task), seed)
        batch = max(LEAST_BATCH, BATCH // len(self.sources))
        feeds = [_Feed(each, np.arange(len(each.x)), net, batch) for each in self.sources]
        feed = _Feed(target, np.arange(len(x)), net, TARGET_BATCH)
        solver = torch.optim.AdamW(net.weights, lr=JOINT_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        last = len(self.sources)
        for step in range(1, max(stops) + 1):
            total = self.lam * net.loss(feed, last)
            for place, each in enumerate(feeds):
                total = total + net.loss(each, place)
            solver.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            solver.step()
            if step in stops:
                found = net.trunk()
                weight, bias = found.folded()
                yield (
                    step,
                    {
                        "weight_in": weight,
                        "bias_in": bias,
                        "weight_out": found.heads[last][0],
                        "bias_out": found.heads[last][1],
                    },
                )


def _with_skip(weight: Floats, bias: Floats, moved: Floats, plain: Floats, last: Floats) -> Tensors:
    """Write a linear model of hidden units and of the vectors themselves as a network of one hidden layer.

    A vector's entry is the difference of two hidden units, one for each sign; entries that weigh nothing have
    none.
    """
    width = weight.shape[1]
    both = np.concatenate([np.eye(width, dtype=np.float32), -np.eye(width, dtype=np.float32), weight])
    return {
        "weight_in": both[None],
        "bias_in": np.concatenate([np.zeros(2 * width, dtype=np.float32), bias])[None],
        "weight_out": np.concatenate([plain, -plain, moved], axis=1)[None],
        "bias_out": last[None],
    }


class _Net:
    """A trunk and its heads while they are trained."""

    def __init__(self, mean: Floats, scale: Floats, tensors: Sequence[Tensor], seed: int) -> None:
        self.mean, self.scale = mean, scale
        self.weights = [tensor.clone().requires_grad_() for tensor in tensors]
        self.chance = torch.Generator().manual_seed(seed)  # own, so that nobody's global random state moves

    @classmethod
    def fresh(cls, mean: Floats, scale: Floats, outputs: Sequence[int], seed: int) -> _Net:
        chance = torch.Generator().manual_seed(seed)
        width = len(mean)
        first = torch.randn(MEMBERS, HIDDEN, width, generator=chance).mul_((2 / width) ** 0.5)
        tensors = [first, torch.zeros(MEMBERS, HIDDEN)]
        for count in outputs:
            weight = torch.randn(MEMBERS, count, HIDDEN, generator=chance).mul_(HIDDEN**-0.5)
            tensors += [weight, torch.zeros(MEMBERS, count)]
        return cls(mean, scale, tensors, seed)

    @classmethod
    def resume(cls, trunk: Trunk, head: tuple[Floats, Floats], seed: int) -> _Net:
        arrays = [trunk.weight, trunk.bias, *(array for pair in (*trunk.heads, head) for array in pair)]
        return cls(trunk.mean, trunk.scale, [torch.from_numpy(array) for array in arrays], seed)

    def loss(self, feed: _Feed, place: int) -> Tensor:
        """Return the mean loss of one batch, over all members."""
        inputs, targets = feed.draw()
        hidden = torch.relu(torch.baddbmm(self.weights[1][:, None], inputs, self.weights[0].mT))
        hidden = draw_dropout(hidden, DROPOUT, self.chance) / (1 - DROPOUT)
        weight, bias = self.weights[2 + 2 * place : 4 + 2 * place]
        outputs = torch.baddbmm(bias[:, None], hidden, weight.mT)
        return MEMBERS * feed.task.loss(outputs.flatten(0, 1), targets.flatten(0, 1))  # each its own mean

    def trunk(self) -> Trunk:
        """Return the weights as they are."""
        arrays = [weight.detach().numpy().copy() for weight in self.weights]
        heads = list(zip(arrays[2::2], arrays[3::2], strict=True))
        return Trunk(self.mean, self.scale, arrays[0], arrays[1], heads)


class _Feed:
    """Batches of one set, drawn apart for each member; all proteins are seen before one is seen twice."""

    def __init__(self, data: Labelled, rows: npt.NDArray[np.intp], net: _Net, batch: int) -> None:
        # what dropout leaves is to weigh as much as all: here once, and not at every step
        standard = (data.x[rows] - net.mean) / (net.scale * np.float32(1 - DROPOUT))
        self.inputs, self.targets = torch.from_numpy(standard), as_tensor(data.y[rows])
        self.task, self.chance, self.batch = data.task, net.chance, min(batch, len(rows))
        self.order = torch.empty(MEMBERS, 0, dtype=torch.long)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return inputs ``(E, B, F)``, some of them dropped, and targets ``(E, B, ...)``."""
        if self.order.shape[1] < self.batch:
            n = len(self.inputs)
            self.order = torch.stack([torch.randperm(n, generator=self.chance) for _ in range(MEMBERS)])
        rows, self.order = self.order[:, : self.batch], self.order[:, self.batch :]
        return draw_dropout(self.inputs[rows], DROPOUT, self.chance), self.targets[rows]


def _run(trunk: Trunk, place: int, task: Task, x: Floats) -> Floats:
    """Compute a source's outputs ``(N, C)``, averaged over members."""
    weight, bias = trunk.folded()
    w_out, b_out = trunk.heads[place]
    members = [
        np.maximum(x @ w.T + b, 0) @ v.T + c for w, b, v, c in zip(weight, bias, w_out, b_out, strict=True)
    ]
    return task.average_outputs(np.stack(members))


def set_apart(source: Labelled, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the places of a source's proteins to learn from, and of those that say when to stop."""
    everything = np.arange(len(source.x))
    clusters = len(np.unique(source.group))
    if DEV_SHARE * len(everything) < _LEAST_DEV or clusters < 2:
        return everything, everything[:0]
    side = homology_split(source.group, valid=DEV_SHARE, seed=seed, y=source.y)
    return np.flatnonzero(side == "train"), np.flatnonzero(side == "valid")
