"""Fit one form of head to one training set, at each of its settings.

No choice is made here: `bioxfer.selection` compares the results on proteins that were held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bioxfer.heads import HeadKind, NeighbourIndex, unit_rows
from bioxfer.tasks import Task

__all__ = [
    "Form",
    "Plain",
    "Setting",
    "Tensors",
    "as_tensor",
    "blend_tensors",
    "build_index",
    "draw_dropout",
    "linear_path",
    "moments",
    "train_setting",
    "train_settings",
]

Floats: TypeAlias = npt.NDArray[np.float32]
Tensors: TypeAlias = dict[str, npt.NDArray[Any]]
Setting: TypeAlias = dict[str, float]

# Weight of |W|^2/2 beside the mean loss, on standardised features; strong to weak, each start from the last.
PENALTIES = tuple(float(f"{10.0**-e:.2g}") for e in np.arange(-1.0, 4.5, 0.5))
NEIGHBOURS = (1, 5, 25)
SHARPNESS = (10.0, 30.0)  # at 10 a neighbour 0.1 less similar weighs 1/e as much
STEPS = (50, 100, 200, 350, 550, 800, 1200, 1700)  # of an MLP; it is looked at after each of these
MEMBERS, HIDDEN, DROPOUT, WEIGHT_DECAY, RATE, BATCH = 3, 128, 0.3, 0.01, 1e-3, 128
INDEX_DIMENSIONS = 64
_CURVATURE = 0.1  # of the cross entropy, about 1/C; a guess that costs steps where wrong, never truth


def build_index(
    features: Floats, targets: npt.NDArray[Any], ids: Sequence[str], *, far: float = -1.0
) -> NeighbourIndex:
    """Build the neighbour index of a training set.

    Parameters
    ----------
    features : ndarray (M, F)
        Pooled vectors.
    targets : ndarray (M,) or (M, C)
        Encoded labels.
    ids : sequence of str
        M ids.
    far : float
        Similarity below which a query is far; -1 calls none far.
    """
    mean, scale = moments(features)
    standard = (features - mean) / scale
    covariance = (standard.T @ standard).astype(np.float64) / len(standard)
    _, directions = np.linalg.eigh(covariance)
    kept = min(INDEX_DIMENSIONS, *features.shape)
    axes = directions[:, ::-1][:, :kept].T  # (d, F), largest variance first
    # an axis and its opposite are the same; the largest entry decides, so that files do not depend on chance
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.sign(largest)
    # in the order of memory that a file has, in which a product has the same last bits after loading
    projection = np.ascontiguousarray(axes / scale, dtype=np.float32)
    offset = (-(axes / scale) @ mean).astype(np.float32)
    return NeighbourIndex(
        ids=tuple(ids),
        targets=_as_stored(targets),
        vectors=unit_rows(features @ projection.T + offset).astype(np.float16),
        projection=projection,
        offset=offset,
        far=far,
    )


class Form(Protocol):
    """A way to fit a head, as `bioxfer.selection.select` compares them."""

    @property
    def kind(self) -> HeadKind:
        """Which head its tensors make."""
        ...

    def settings(
        self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
    ) -> Iterator[tuple[Setting, Tensors]]:
        """Fit its settings, the most cautious first, each when it is asked for; see `train_settings`."""
        ...

    def refit(self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting) -> Tensors:
        """Fit one of its settings."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """The form of a head that sees nothing but the rows it is fitted to.

    Parameters
    ----------
    kind : {"linear", "mlp", "nearest"}
        Which.
    """

    kind: HeadKind

    def settings(
        self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
    ) -> Iterator[tuple[Setting, Tensors]]:
        """Fit its settings as `train_settings` does."""
        return train_settings(self.kind, x, y, task, seed)

    def refit(self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting) -> Tensors:
        """Fit one of its settings as `train_setting` does."""
        return train_setting(self.kind, x, y, task, seed, setting)


def train_settings(
    kind: HeadKind, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
) -> Iterator[tuple[Setting, Tensors]]:
    """Fit the settings of a form to a training set, the most cautious first, each when it is asked for.

    Parameters
    ----------
    kind : {"linear", "mlp", "nearest"}
        The form.
    x : ndarray (N, F)
        Pooled vectors.
    y : ndarray (N,)
        Encoded labels.
    task : Multiclass, Multilabel or Regression
        Whose loss is minimised.
    seed : int
        Seed of initial weights, order and dropout.

    Yields
    ------
    tuple
        The setting and the weights for raw features.
    """
    if kind == "linear":
        for penalty, tensors in linear_path(x, y, task, PENALTIES):
            yield {"penalty": penalty}, tensors
    elif kind == "mlp":
        for steps, tensors in _train_mlp(x, y, task, seed, STEPS):
            yield {"steps": steps}, tensors
    else:
        for setting in ({"neighbours": k, "sharpness": s} for k in NEIGHBOURS for s in SHARPNESS):
            yield setting, _nearest_tensors(setting)


def train_setting(
    kind: HeadKind, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting
) -> Tensors:
    """Fit one setting of a form; parameters as in `train_settings`."""
    if kind == "nearest":
        return _nearest_tensors(setting)
    if kind == "linear":
        ((_, tensors),) = linear_path(x, y, task, (setting["penalty"],))
        return tensors
    ((_, tensors),) = _train_mlp(x, y, task, seed, (int(setting["steps"]),))
    return tensors


def blend_tensors(network: Tensors, setting: Setting) -> Tensors:
    """Put a fitted network and the setting of a blend together."""
    own = {name: np.array(setting[name], dtype=np.float32) for name in ("share", "network_temperature")}
    return network | _nearest_tensors(setting) | own


def _nearest_tensors(setting: Setting) -> Tensors:
    return {
        "neighbours": np.array(setting["neighbours"], dtype=np.int32),
        "sharpness": np.array(setting["sharpness"], dtype=np.float32),
    }


def linear_path(
    x: Floats,
    y: npt.NDArray[Any],
    task: Task,
    penalties: Sequence[float],
    *,
    gains: npt.NDArray[np.floating[Any]] | None = None,
) -> Iterator[tuple[float, Tensors]]:
    """Fit a linear head at each penalty by full-batch L-BFGS, each start from the last.

    Features are standardised, and then multiplied by their `gains` ``(F,)``, if there are any: what is large
    is penalised less.

    It runs along the principal components, each scaled by about the root of the loss's curvature along it,
    so that a step goes as far as it should in every direction; the least of the loss is where it was.
    """
    mean, scale = moments(x)
    if gains is not None:
        scale = (scale / gains).astype(np.float32)
    standard = (x - mean) / scale
    variance, axes = np.linalg.eigh((standard.T @ standard / np.float32(len(x))).astype(np.float64))
    inputs, targets = torch.from_numpy(standard @ axes.astype(np.float32)), as_tensor(y)
    weight = torch.zeros(task.n_outputs, x.shape[1])
    bias = torch.zeros(task.n_outputs, requires_grad=True)
    for penalty in penalties:
        curvature = _CURVATURE * np.maximum(variance, 0) + penalty
        step = torch.from_numpy((curvature**-0.5).astype(np.float32))
        scaled = (weight / step).requires_grad_()
        solver = torch.optim.LBFGS(
            [scaled, bias], max_iter=100, tolerance_grad=1e-5, tolerance_change=1e-7,
            history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(
            solver: torch.optim.LBFGS = solver,
            penalty: float = penalty,
            scaled: Tensor = scaled,
            step: Tensor = step,
        ) -> Tensor:
            solver.zero_grad()
            weight = scaled * step
            loss = task.loss(inputs @ weight.T + bias, targets)
            # a bias that is all but free still keeps a class without examples finite
            loss = loss + 0.5 * penalty * weight.square().sum() + 0.5e-6 * bias.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(closure)  # type: ignore[no-untyped-call]
        weight = scaled.detach() * step
        w, b = (weight.double().numpy() @ axes.T) / scale, bias.detach().numpy()
        yield penalty, {"weight": w.astype(np.float32), "bias": (b - w @ mean).astype(np.float32)}


def _train_mlp(
    x: Floats, y: npt.NDArray[Any], task: Task, seed: int, stops: Sequence[int]
) -> Iterator[tuple[int, Tensors]]:
    """Train members of one hidden layer with AdamW and dropout; yield ``(steps, weights)`` at each stop.

    Members start, drop and draw their batches apart; they are trained side by side only to be quick.
    """
    mean, scale = moments(x)
    # what dropout leaves is to weigh as much as all: here once, and not at every step
    inputs, targets = torch.from_numpy((x - mean) / (scale * np.float32(1 - DROPOUT))), as_tensor(y)
    chance = torch.Generator().manual_seed(seed)  # own, so that nobody's global random state moves
    n, width = x.shape
    weight_in = torch.randn(MEMBERS, HIDDEN, width, generator=chance).mul_((2 / width) ** 0.5)
    weight_out = torch.randn(MEMBERS, task.n_outputs, HIDDEN, generator=chance).mul_(HIDDEN**-0.5)
    bias_in, bias_out = torch.zeros(MEMBERS, HIDDEN), torch.zeros(MEMBERS, task.n_outputs)
    weights = [w.requires_grad_() for w in (weight_in, bias_in, weight_out, bias_out)]
    solver = torch.optim.AdamW(weights, lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)

    batch = min(BATCH, n)
    order = torch.empty(MEMBERS, 0, dtype=torch.long)
    for step in range(1, max(stops) + 1):
        if order.shape[1] < batch:  # every protein is seen once before one is seen twice
            order = torch.stack([torch.randperm(n, generator=chance) for _ in range(MEMBERS)])
        rows, order = order[:, :batch], order[:, batch:]
        seen = draw_dropout(inputs[rows], DROPOUT, chance)
        hidden = torch.relu(torch.baddbmm(bias_in[:, None], seen, weight_in.mT))
        hidden = draw_dropout(hidden, DROPOUT, chance) / (1 - DROPOUT)
        outputs = torch.baddbmm(bias_out[:, None], hidden, weight_out.mT)
        loss = MEMBERS * task.loss(outputs.flatten(0, 1), targets[rows].flatten(0, 1))  # each its own mean
        solver.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        solver.step()
        if step in stops:
            w = weight_in.detach().double().numpy() / scale
            yield (
                step,
                {
                    "weight_in": w.astype(np.float32),
                    "bias_in": (bias_in.detach().numpy() - w @ mean).astype(np.float32),
                    "weight_out": weight_out.detach().numpy().copy(),
                    "bias_out": bias_out.detach().numpy().copy(),
                },
            )


def draw_dropout(values: Tensor, share: float, chance: torch.Generator) -> Tensor:
    """Set a share of values to 0, drawn one by one; what is left is not scaled up."""
    # eight random bytes at a draw: drawing is most of what dropout costs
    draw = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=chance)
    gone = draw.view(torch.uint8)[: values.numel()].view(values.shape) < round(256 * share)
    return values.masked_fill(gone, 0)


def moments(x: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation ``(F,)``; a constant feature gets 1, so it stays constant."""
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _as_stored(targets: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if targets.ndim > 1:  # of several labels each is there or not, for which half precision is enough
        return targets.astype(np.float16)
    return targets.astype(np.int32 if targets.dtype.kind == "i" else np.float32)


def as_tensor(y: npt.NDArray[Any]) -> Tensor:
    """Return encoded labels as losses take them: class numbers as they are, all else as float32."""
    return torch.from_numpy(y if y.dtype.kind == "i" else y.astype(np.float32))
