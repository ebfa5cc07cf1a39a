"""Fit light attention: the pooling of `bioxfer.attention` and the network behind it, trained as one.

Residues stay in half precision until their batch; proteins of about one length go together, so that little is
computed for padding. How wide and which epoch, proteins say that were not trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bioxfer.attention import AttentionPool
from bioxfer.errors import LabelError
from bioxfer.solvers import Setting, Tensors, as_tensor, draw_dropout
from bioxfer.tasks import Task

__all__ = ["FittedAttention", "Matrices", "fit_attention", "gather_matrices"]

log = logging.getLogger("bioxfer")

Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.intp]

CHANNELS = 64
WIDTHS = (1, 9)  # residues that a convolution sees: what it is told of is often there, and the paper's
HIDDEN = 64
DROPOUT = 0.25
RATE, WEIGHT_DECAY = 2e-3, 0.01
PROBE, PROBE_DEV = 300_000, 100_000  # residues on which widths are compared
BATCH = 8192  # residues a step, fewer where there are few
STEPS = 600  # that a fit takes at least, within the epochs below
EPOCHS = (6, 60)  # fewest and most
PATIENCE = 3  # epochs without a gain, or an eighth of all
_NEIGHBOURHOOD = 2048  # proteins among which those of one length are looked for
_SAMPLE = 200_000  # residues that tell mean and scale
_LARGEST = 65504.0  # of float16
_LARGE = 4 * 2**30  # bytes of residues from which the user is told of them


@dataclass(slots=True, eq=False)
class Matrices:
    """The residues of N proteins, T in all.

    Attributes
    ----------
    values : ndarray (T, D)
        As the backbone made them, float16.
    offsets : ndarray (N + 1,)
        Where each protein begins; one without a vector is empty.
    """

    values: npt.NDArray[np.float16]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> npt.NDArray[np.float16]:
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Residues of each protein, ``(N,)``."""
        return np.diff(self.offsets)

    def draw(self, places: Places, residues: int, *, seed: int) -> Places:
        """Draw proteins of about so many residues in all; all of them if they have fewer."""
        if self.lengths[places].sum() <= residues:
            return places
        order = np.random.default_rng(seed).permutation(len(places))
        enough = int(np.searchsorted(np.cumsum(self.lengths[places][order]), residues)) + 1
        return np.sort(places[order[:enough]])


def gather_matrices(rows: Iterable[npt.NDArray[Any] | None], *, most: int) -> Matrices:
    """Collect proteins as they are embedded.

    Parameters
    ----------
    rows : iterable of ndarray (L, D) or None
        N proteins; None is one without a vector.
    most : int
        Residues that they have at most, all together.
    """
    values: npt.NDArray[np.float16] | None = None
    offsets = [0]
    for matrix in rows:
        length = 0 if matrix is None else len(matrix)
        if matrix is not None and values is None:
            values = np.empty((most, matrix.shape[1]), dtype=np.float16)
            if values.nbytes > _LARGE:
                log.warning(
                    "light attention keeps %d residues, %.1f GB, in memory; fewer proteins, or only the "
                    "first residues of each (--first), need less",
                    most,
                    values.nbytes / 1e9,
                )
        if matrix is not None and values is not None:
            values[offsets[-1] : offsets[-1] + length] = np.clip(matrix, -_LARGEST, _LARGEST)
        offsets.append(offsets[-1] + length)
    if values is None:
        values = np.empty((0, 0), dtype=np.float16)
    return Matrices(values[: offsets[-1]], np.array(offsets, dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class FittedAttention:
    """What `fit_attention` found.

    Attributes
    ----------
    pool : AttentionPool
        The learned pooling.
    tensors : mapping of str to ndarray
        The network behind it, as of an mlp head of one member that reads ``(2H,)``.
    setting : dict
        The ``width`` of its convolutions, and how it was trained: residues in a ``batch``, ``epochs`` and the
        ``steps`` they took, and the epochs of the whole ``schedule``, of which these are the first.
    loss : float
        On the dev proteins, at the best temperature; NaN without any.
    candidates : list of dict
        Every ``width`` tried, with its dev ``loss``.
    """

    pool: AttentionPool
    tensors: Tensors
    setting: Setting
    loss: float
    candidates: list[dict[str, float]] = field(default_factory=list)


def fit_attention(
    data: Matrices,
    targets: npt.NDArray[Any],
    task: Task,
    *,
    train: Places,
    dev: Places | None,
    setting: Setting | None = None,
    seed: int = 0,
) -> FittedAttention:
    """Train light attention, as wide and as long as the dev proteins say.

    Where there are more than about 300,000 residues, widths are compared on part of them, and the best is
    trained anew on all.

    Parameters
    ----------
    data : Matrices
        All N proteins.
    targets : ndarray (N,) or (N, C)
        Encoded labels; those of other proteins than the ones below are not looked at.
    task : Task
        Whose loss is minimised.
    train, dev : ndarray
        Places of the training and of the dev proteins, none of them empty; without the latter, training takes
        as many steps as ``setting`` says.
    setting : dict, optional
        That of an earlier fit, to be repeated on other proteins.
    seed : int
        Of initial weights, order and dropout.

    Raises
    ------
    LabelError
        There is no training protein, or neither a dev protein nor a setting.
    """
    if not len(train) or (setting is None and (dev is None or not len(dev))):
        raise LabelError(
            f"{len(train)} training and {0 if dev is None else len(dev)} dev proteins cannot train light "
            "attention; add proteins to both"
        )
    if setting is not None:
        return _train(data, targets, task, setting, train=train, dev=None, seed=seed)
    assert dev is not None
    few, few_dev = data.draw(train, PROBE, seed=seed), data.draw(dev, PROBE_DEV, seed=seed)
    tried = [
        _train(data, targets, task, {"width": width}, train=few, dev=few_dev, seed=seed) for width in WIDTHS
    ]
    best = min(tried, key=lambda each: each.loss)
    candidates = [{"width": each.setting["width"], "loss": each.loss} for each in tried]
    if len(few) < len(train) or len(few_dev) < len(dev):
        form = {"width": best.setting["width"]}
        best = _train(data, targets, task, form, train=train, dev=dev, seed=seed)
    return replace(best, candidates=candidates)


def _train(
    data: Matrices,
    targets: npt.NDArray[Any],
    task: Task,
    form: Setting,
    *,
    train: Places,
    dev: Places | None,
    seed: int,
) -> FittedAttention:
    """Train one width; stop where the dev proteins say so, or after ``steps`` of the form."""
    chance = torch.Generator().manual_seed(seed)  # own, so that nobody's global random state moves
    net = _Net(*_moments(data, train), int(form["width"]), task.n_outputs, chance)
    solver = torch.optim.AdamW(net.weights, lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step(places: Places, done: float) -> None:
        for group in solver.param_groups:
            group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * done))
        loss = task.loss(net(_pad(data, places, net.mean, net.scale)), as_tensor(targets[places]))
        solver.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        solver.step()

    if dev is None:
        # Steps and rates are those that were chosen: more proteins make other epochs, not a longer training.
        batch, steps = int(form["batch"]), int(form["steps"])
        share = form["epochs"] / form["schedule"]
        taken = 0
        while taken < steps:
            for places in _batches(data.lengths, train, batch, chance)[: steps - taken]:
                step(places, taken / steps * share)
                taken += 1
        return FittedAttention(*net.tensors(), dict(form), np.nan)
    total = int(data.lengths[train].sum())
    batch = min(BATCH, max(total // 30, 8 * total // len(train)))
    steps = len(_batches(data.lengths, train, batch, chance))
    epochs = min(max(EPOCHS[0], -(-STEPS // steps)), EPOCHS[1])
    chosen: Setting = {**form, "batch": batch, "epochs": 0, "steps": 0, "schedule": epochs}
    best, kept, taken = np.inf, net.tensors(), 0
    for epoch in range(1, epochs + 1):
        parts = _batches(data.lengths, train, batch, chance)
        for number, places in enumerate(parts):
            step(places, (epoch - 1 + number / len(parts)) / epochs)
        taken += len(parts)
        told = task.out_of_sample_loss(net.run(data, dev), targets[dev])
        log.info(
            "light attention of width %d, epoch %d of %d at most: dev loss %.4f",
            form["width"],
            epoch,
            epochs,
            told,
        )
        if told < best:
            best, kept = told, net.tensors()
            chosen |= {"epochs": epoch, "steps": taken}
        elif epoch - chosen["epochs"] >= max(PATIENCE, epochs // 8):
            break
    return FittedAttention(*kept, chosen, float(best))


class _Net:
    """Light attention while it is trained, on standardised residues."""

    def __init__(
        self, mean: Floats, scale: Floats, width: int, n_outputs: int, chance: torch.Generator
    ) -> None:
        self.mean, self.scale, self.chance = mean, scale, chance
        deep = len(mean)

        def draw(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=chance).mul_(scale).requires_grad_()

        self.weights = [
            draw(2 * CHANNELS, deep, width, scale=(deep * width) ** -0.5),
            torch.zeros(CHANNELS, requires_grad=True),
            draw(HIDDEN, 2 * CHANNELS, scale=CHANNELS**-0.5),
            torch.zeros(HIDDEN, requires_grad=True),
            draw(n_outputs, HIDDEN, scale=HIDDEN**-0.5),
            torch.zeros(n_outputs, requires_grad=True),
        ]

    def __call__(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Compute outputs ``(B, C)`` in training: with dropout."""
        return self._classify(self.pool(inputs, dropout=True), dropout=True)

    def pool(self, inputs: tuple[Tensor, Tensor], *, dropout: bool = False) -> Tensor:
        """Compute vectors ``(B, 2H)`` of residues ``(B, D, L)``, of which some are marked as padding."""
        x, empty = inputs
        seen = torch.nn.functional.conv1d(x, self.weights[0], padding=self.weights[0].shape[2] // 2)
        values = seen[:, :CHANNELS] + self.weights[1][:, None]
        if dropout:
            values = draw_dropout(values, DROPOUT, self.chance) / (1 - DROPOUT)
        weights = seen[:, CHANNELS:].masked_fill(empty[:, None], -torch.inf).softmax(2)
        most = values.masked_fill(empty[:, None], -torch.inf).amax(2)
        return torch.cat([(values * weights).sum(2), most], dim=1)

    def run(self, data: Matrices, places: Places) -> Floats:
        """Compute outputs ``(N, C)`` for some proteins."""
        outputs = np.empty((len(places), len(self.weights[-1])), dtype=np.float32)
        with torch.no_grad():
            for rows in _batches(data.lengths[places], np.arange(len(places)), 2 * BATCH, None):
                inputs = _pad(data, places[rows], self.mean, self.scale)
                outputs[rows] = self._classify(self.pool(inputs)).numpy()
        return outputs

    def _classify(self, pooled: Tensor, *, dropout: bool = False) -> Tensor:
        def drop(values: Tensor) -> Tensor:
            return draw_dropout(values, DROPOUT, self.chance) / (1 - DROPOUT) if dropout else values

        hidden = torch.relu(drop(pooled) @ self.weights[2].T + self.weights[3])
        return drop(hidden) @ self.weights[4].T + self.weights[5]

    def tensors(self) -> tuple[AttentionPool, Tensors]:
        """Return copies of the weights as a head holds them, the scale folded in."""
        convolution, bias, weight_in, bias_in, weight_out, bias_out = (
            weight.detach().numpy().copy() for weight in self.weights
        )
        folded = (convolution / self.scale[:, None]).transpose(0, 2, 1).astype(np.float32, order="C")
        pool = AttentionPool(self.mean, folded[:CHANNELS].copy(), folded[CHANNELS:].copy(), bias)
        network = {"weight_in": weight_in, "bias_in": bias_in, "weight_out": weight_out, "bias_out": bias_out}
        return pool, {name: weight[None] for name, weight in network.items()}


def _batches(
    lengths: npt.NDArray[np.int64], places: Places, batch: int, chance: torch.Generator | None
) -> list[Places]:
    """Deal proteins of about one length into batches of so many residues at most, padding counted, or of one.

    With ``chance``, who goes with whom and in which order is drawn anew.
    """
    order = places if chance is None else places[torch.randperm(len(places), generator=chance).numpy()]
    found: list[Places] = []
    for some in np.array_split(order, -(-len(order) // _NEIGHBOURHOOD)):
        alike = some[np.argsort(lengths[some], kind="stable")]
        begin = 0
        for end in range(1, len(alike) + 1):
            if end == len(alike) or lengths[alike[end]] * (end - begin + 1) > batch:
                found.append(alike[begin:end])
                begin = end
    if chance is None:
        return found
    return [found[number] for number in torch.randperm(len(found), generator=chance).tolist()]


def _pad(data: Matrices, places: Places, mean: Floats, scale: Floats) -> tuple[Tensor, Tensor]:
    """Return standardised residues ``(B, D, L)``, and marks ``(B, L)`` of what is padding."""
    lengths = data.lengths[places]
    table = np.zeros((len(places), int(lengths.max()), len(mean)), dtype=np.float32)
    for row, place in zip(table, places.tolist(), strict=True):
        own = data[place]
        row[: len(own)] = (own.astype(np.float32) - mean) / scale
    empty = np.arange(table.shape[1]) >= lengths[:, None]
    return torch.from_numpy(table).transpose(1, 2), torch.from_numpy(empty)


def _moments(data: Matrices, places: Sequence[int] | Places) -> tuple[Floats, Floats]:
    """Return mean and standard deviation ``(D,)`` of residues; a constant feature keeps the scale 1."""
    every = 1 + int(data.lengths[places].sum()) // _SAMPLE
    some = np.concatenate([data[place][::every] for place in np.asarray(places).tolist()]).astype(np.float32)
    mean, scale = some.mean(axis=0, dtype=np.float64), some.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)
