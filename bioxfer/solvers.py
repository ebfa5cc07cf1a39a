"""Fit one form of head to one training set, at each of its settings.

No choice is made here: `bioxfer.transfer.fit` compares the results on proteins held out by cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bioxfer.clusters import homology_split
from bioxfer.heads import HeadKind, NeighbourIndex, run_mlp, unit_rows
from bioxfer.tasks import Task

__all__ = ["Setting", "build_index", "train_setting", "train_settings"]

Floats: TypeAlias = npt.NDArray[np.float32]
Setting: TypeAlias = dict[str, float]

# Weight of |W|^2/2 beside the mean loss, on standardised features; strong to weak, each start from the last.
PENALTIES = tuple(float(f"{10.0**-e:.2g}") for e in np.arange(0.0, 4.5, 0.5))
NEIGHBOURS = (1, 5, 25)
SHARPNESS = 10.0  # a neighbour 0.1 less similar weighs 1/e as much
HIDDEN, DROPOUT, WEIGHT_DECAY, RATE, BATCH = 128, 0.3, 0.01, 1e-3, 128
MAX_EPOCHS, PATIENCE = 60, 6
INDEX_DIMENSIONS = 64


def build_index(
    features: Floats, targets: npt.NDArray[Any], ids: Sequence[str], *, far: float = -1.0
) -> NeighbourIndex:
    """Build the neighbour index of a training set.

    Parameters
    ----------
    features : ndarray (M, F)
        Pooled vectors.
    targets : ndarray (M,)
        Encoded labels.
    ids : sequence of str
        M ids.
    far : float
        Similarity below which a query is far; -1 calls none far.
    """
    mean, scale = _moments(features)
    standard = (features - mean) / scale
    covariance = (standard.T @ standard).astype(np.float64) / len(standard)
    _, directions = np.linalg.eigh(covariance)
    kept = min(INDEX_DIMENSIONS, *features.shape)
    axes = directions[:, ::-1][:, :kept].T  # (d, F), largest variance first
    # an axis and its opposite are the same; the largest entry decides, so that files do not depend on chance
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.sign(largest)
    projection = (axes / scale).astype(np.float32)
    offset = (-(axes / scale) @ mean).astype(np.float32)
    return NeighbourIndex(
        ids=tuple(ids),
        targets=targets.astype(np.int32 if targets.dtype.kind == "i" else np.float32),
        vectors=unit_rows(features @ projection.T + offset).astype(np.float16),
        projection=projection,
        offset=offset,
        far=far,
    )


def train_settings(
    kind: HeadKind,
    x: Floats,
    y: npt.NDArray[Any],
    group: npt.NDArray[Any],
    task: Task,
    seed: int,
) -> Iterator[tuple[Setting, dict[str, npt.NDArray[Any]]]]:
    """Fit every setting of a form to a training set.

    Parameters
    ----------
    kind : {"linear", "mlp", "nearest"}
        The form.
    x : ndarray (N, F)
        Pooled vectors.
    y : ndarray (N,)
        Encoded labels.
    group : ndarray (N,)
        Homology clusters, for early stopping.
    task : Multiclass or Regression
        Whose loss is minimised.
    seed : int
        Seed of initial weights, order and dropout.

    Yields
    ------
    tuple
        The setting and the weights for raw features.
    """
    if kind == "linear":
        for penalty, tensors in _train_linear(x, y, task, PENALTIES):
            yield {"penalty": penalty}, tensors
    elif kind == "mlp":
        epochs = _count_epochs(x, y, group, task, seed)
        yield {"epochs": epochs}, train_setting("mlp", x, y, task, seed, {"epochs": epochs})
    else:
        for neighbours in NEIGHBOURS:
            yield {"neighbours": neighbours}, _nearest_tensors(neighbours)


def train_setting(
    kind: HeadKind, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting
) -> dict[str, npt.NDArray[Any]]:
    """Fit one setting of a form; parameters as in `train_settings`."""
    if kind == "linear":
        path = [p for p in PENALTIES if p >= setting["penalty"]]
        return list(_train_linear(x, y, task, path))[-1][1]
    if kind == "mlp":
        *_, (_, tensors) = _train_mlp(x, y, task, seed, int(setting["epochs"]))
        return tensors
    return _nearest_tensors(int(setting["neighbours"]))


def _nearest_tensors(neighbours: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "neighbours": np.array(neighbours, dtype=np.int32),
        "sharpness": np.array(SHARPNESS, dtype=np.float32),
    }


def _train_linear(
    x: Floats, y: npt.NDArray[Any], task: Task, penalties: Sequence[float]
) -> Iterator[tuple[float, dict[str, npt.NDArray[Any]]]]:
    """Fit a linear head at each penalty by full-batch L-BFGS."""
    mean, scale = _moments(x)
    inputs, targets = torch.from_numpy((x - mean) / scale), _as_tensor(y)
    weight = torch.zeros(task.n_outputs, x.shape[1], requires_grad=True)
    bias = torch.zeros(task.n_outputs, requires_grad=True)
    for penalty in penalties:
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7,
            history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(solver: torch.optim.LBFGS = solver, penalty: float = penalty) -> Tensor:
            solver.zero_grad()
            loss = task.loss(inputs @ weight.T + bias, targets)
            # a bias that is all but free still keeps a class without examples finite
            loss = loss + 0.5 * penalty * weight.square().sum() + 0.5e-6 * bias.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(closure)  # type: ignore[no-untyped-call]
        w, b = weight.detach().double().numpy() / scale, bias.detach().numpy()
        yield penalty, {"weight": w.astype(np.float32), "bias": (b - w @ mean).astype(np.float32)}


def _count_epochs(x: Floats, y: npt.NDArray[Any], group: npt.NDArray[Any], task: Task, seed: int) -> int:
    """Find when an MLP stops getting better on held-out clusters of the training set."""
    if len(np.unique(group)) < 2:
        return 1
    side = homology_split(group, valid=0.15, seed=seed, y=y if task.target_kind == "i" else None)
    inner, outer = side == "train", side == "valid"
    targets = _as_tensor(y[outer])
    best, best_epoch = np.inf, 1
    for epoch, tensors in _train_mlp(x[inner], y[inner], task, seed, MAX_EPOCHS):
        outputs = torch.from_numpy(run_mlp(tensors, x[outer]))
        loss = float(task.loss(outputs, targets))
        if loss < best:
            best, best_epoch = loss, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    return best_epoch


def _train_mlp(
    x: Floats, y: npt.NDArray[Any], task: Task, seed: int, epochs: int
) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Train one hidden layer with AdamW and dropout; yield ``(epoch, weights)`` after each epoch."""
    mean, scale = _moments(x)
    inputs, targets = torch.from_numpy((x - mean) / scale), _as_tensor(y)
    chance = torch.Generator().manual_seed(seed)  # own, so that nobody's global random state moves
    width = x.shape[1]
    weight_in = torch.randn(HIDDEN, width, generator=chance).mul_((2 / width) ** 0.5).requires_grad_()
    weight_out = torch.randn(task.n_outputs, HIDDEN, generator=chance).mul_(HIDDEN**-0.5).requires_grad_()
    bias_in, bias_out = (torch.zeros(n, requires_grad=True) for n in (HIDDEN, task.n_outputs))
    solver = torch.optim.AdamW([weight_in, bias_in, weight_out, bias_out], lr=RATE, weight_decay=WEIGHT_DECAY)

    def drop(values: Tensor) -> Tensor:
        return values * (torch.rand(values.shape, generator=chance) >= DROPOUT) / (1 - DROPOUT)

    for epoch in range(1, epochs + 1):
        for rows in torch.split(torch.randperm(len(inputs), generator=chance), BATCH):
            hidden = torch.relu(drop(inputs[rows]) @ weight_in.T + bias_in)
            loss = task.loss(drop(hidden) @ weight_out.T + bias_out, targets[rows])
            solver.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            solver.step()
        w = weight_in.detach().double().numpy() / scale
        yield (
            epoch,
            {
                "weight_in": w.astype(np.float32),
                "bias_in": (bias_in.detach().numpy() - w @ mean).astype(np.float32),
                "weight_out": weight_out.detach().numpy().copy(),
                "bias_out": bias_out.detach().numpy().copy(),
            },
        )


def _moments(x: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation ``(F,)``; a constant feature gets 1, so it stays constant."""
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _as_tensor(y: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(y if y.dtype.kind == "i" else y.astype(np.float32))
