"""Make heads with light attention: choose sides, fit the pooling, compare heads on it, fit the best anew.

`bioxfer.attention_fitting` trains the pooling with a small network behind it. Here that network is compared
with heads that are fitted to the pooled vectors afterwards, on proteins that neither has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.attention import AttentionPool
from bioxfer.attention_fitting import FittedAttention, Matrices, fit_attention
from bioxfer.clusters import homology_split
from bioxfer.heads import HeadKind, NeighbourIndex, TrainedHead
from bioxfer.selection import check_classes
from bioxfer.solvers import Form, Plain, Setting, Tensors, blend_tensors, build_index, train_setting
from bioxfer.tasks import Task, task_from_name

__all__ = ["Attended", "AttentionForm", "attend"]

Floats: TypeAlias = npt.NDArray[np.float32]
Places: TypeAlias = npt.NDArray[np.intp]

DEV_SHARE = 0.15  # of the training proteins, where none are given to choose by


@dataclass(frozen=True, slots=True, eq=False)
class AttentionForm:
    """Light attention as `bioxfer.selection` compares forms, on ordinary vectors with its own behind.

    Parameters
    ----------
    fitted : FittedAttention
        Trained on the proteins that the form is to be fitted to.
    before : int
        Numbers of the ordinary vector, which its network does not read; neighbours are found by all.
    """

    fitted: FittedAttention
    before: int

    @property
    def kind(self) -> HeadKind:
        """An mlp."""
        return "mlp"

    def settings(
        self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int
    ) -> Iterator[tuple[Setting, Tensors]]:
        """Give what was fitted."""
        yield dict(self.fitted.setting), self.tensors()

    def refit(self, x: Floats, y: npt.NDArray[Any], task: Task, seed: int, setting: Setting) -> Tensors:
        """Give what was fitted; it is `fit_attention` that fits anew."""
        return self.tensors()

    def tensors(self) -> Tensors:
        """Return the network's weights for the joined vector."""
        own = self.fitted.tensors["weight_in"]
        none = np.zeros((*own.shape[:2], self.before), dtype=np.float32)
        return self.fitted.tensors | {"weight_in": np.concatenate([none, own], axis=2)}


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """N proteins with sides and a light attention fitted on one of them: what `train_head` needs, and after.

    Attributes
    ----------
    features : ndarray (N, F + 2H)
        The ordinary vectors with those of light attention behind; NaN where a protein has none.
    sides : list of str
        ``"train"``, ``"dev"`` or ``"valid"`` for each.
    how, dev_how : str
        How the sides were chosen.
    forms : list of Form
        What is to be compared: the network that was trained with the pooling, and heads fitted to the joined
        vectors afterwards.
    fitted : FittedAttention
        On the side ``train``.
    """

    features: Floats
    sides: list[str]
    how: str
    dev_how: str
    forms: list[Form]
    fitted: FittedAttention
    data: Matrices
    before: int

    def complete(
        self, head: TrainedHead, labels: Sequence[str], ids: Sequence[str], *, refit: bool, seed: int
    ) -> None:
        """Give a head that was trained on the features its light attention, and its card what it says of it.

        Parameters
        ----------
        head : TrainedHead
            Fitted on the side ``train``; changed in place.
        labels, ids : sequence of str
            N of them.
        refit : bool
            Fit all weights once more, on all proteins, with what was chosen.
        seed : int
            As of the fit before.
        """
        head.attention = self.fitted.pool
        setting = head.card["head"]["setting"]
        head.card["head"]["attention"] = {
            "channels": len(self.fitted.pool.bias),
            "setting": self.fitted.setting,
            "dev_loss": self.fitted.loss,
            "candidates": self.fitted.candidates,
        }
        head.card["split"] |= {"how": self.how, "dev_how": self.dev_how}
        head.card["backbone"]["pool"] = f"{head.pool} and light attention"
        if not refit:
            return
        head.attention, head.tensors, head.index = self._refit(
            head.task, head.kind, setting, labels, ids, far=head.index.far, seed=seed
        )
        head.card["head"]["weights_fitted_on"] = "train, dev, valid"

    def _refit(
        self,
        task: Task,
        kind: HeadKind,
        setting: Setting,
        labels: Sequence[str],
        ids: Sequence[str],
        *,
        far: float,
        seed: int,
    ) -> tuple[AttentionPool, Tensors, NeighbourIndex]:
        """Fit pooling, head and index once more, on all proteins, with what was chosen."""
        usable = np.flatnonzero(np.isfinite(self.features).all(axis=1))
        y = task.encode([labels[place] for place in usable.tolist()])
        targets = np.zeros((len(self.features), *y.shape[1:]), dtype=y.dtype)
        targets[usable] = y
        again = fit_attention(
            self.data, targets, task, train=usable, dev=None, setting=self.fitted.setting, seed=seed
        )
        x = _join(self.features[usable, : self.before], self.data, usable, again.pool)
        network: HeadKind = kind
        if kind == "blend":
            network = "linear" if "penalty" in setting else "mlp"
        if "schedule" in setting:  # of a network that was trained with its pooling
            tensors = AttentionForm(again, self.before).tensors()
        else:
            tensors = train_setting(network, x, y, task, seed, setting)
        if kind == "blend":
            tensors = blend_tensors(tensors, setting)
        return again.pool, tensors, build_index(x, y, [ids[place] for place in usable.tolist()], far=far)


def attend(
    features: Floats,
    data: Matrices,
    labels: Sequence[str],
    groups: npt.NDArray[Any],
    *,
    task: str = "auto",
    sides: Sequence[str] | None = None,
    valid: float = 0.15,
    seed: int = 0,
) -> Attended:
    """Choose the sides of proteins, and fit light attention on one of them.

    Parameters
    ----------
    features : ndarray (N, F)
        Pooled vectors; NaN where a protein has none.
    data : Matrices
        The N proteins' residues.
    labels : sequence of str
        N labels.
    groups : ndarray (N,)
        Homology clusters.
    task : str
        See `bioxfer.tasks.task_from_name`.
    sides : sequence of str, optional
        ``"train"``, ``"dev"`` or ``"valid"`` for each; whole clusters are held out if not given, the same as
        for any other head. Where no protein is ``"dev"``, whole clusters are cut off the training part.
    valid : float
        Share of proteins to hold out where ``sides`` is not given.
    seed : int
        Of splits, weights and order.

    Raises
    ------
    LabelError
        Too few clusters, or a class that would be missing in training.
    """
    usable = np.flatnonzero(np.isfinite(features).all(axis=1))
    group, label = groups[usable], [labels[place] for place in usable.tolist()]
    whole = task_from_name(task, label)
    codes = whole.encode(label)
    how, dev_how = "given with the data", "given with the data"
    if sides is None:
        check_classes(whole, codes, group, least=2)
        side = homology_split(group, valid=valid, seed=seed, y=codes).astype("<U5")
        how = f"whole homology clusters held out, {valid:.0%} of the proteins, seed {seed}"
    else:
        side = np.array([sides[place] for place in usable.tolist()], dtype="<U5")
    train = np.flatnonzero(side == "train")
    if not (side == "dev").any():
        part = homology_split(group[train], valid=DEV_SHARE, seed=seed, y=codes[train])
        side[train[part == "valid"]] = "dev"
        train = np.flatnonzero(side == "train")
        dev_how = f"whole homology clusters, {DEV_SHARE:.0%} of the training part"
    check_classes(whole, codes[train], group[train], least=1)
    known = np.flatnonzero(side != "valid")
    restricted = whole.restrict([label[place] for place in known.tolist()])
    y = restricted.encode([label[place] for place in known.tolist()])
    targets = np.zeros((len(features), *y.shape[1:]), dtype=y.dtype)
    targets[usable[known]] = y
    dev = np.flatnonzero(side == "dev")
    fitted = fit_attention(data, targets, restricted, train=usable[train], dev=usable[dev], seed=seed)
    before = features.shape[1]
    joined = np.full((len(features), before + fitted.pool.n_features), np.nan, dtype=np.float32)
    joined[usable] = _join(features[usable], data, usable, fitted.pool)
    dealt = np.full(len(features), "train", dtype="<U5")
    dealt[usable] = side
    forms: list[Form] = [AttentionForm(fitted, before), Plain("linear"), Plain("mlp")]
    return Attended(joined, dealt.tolist(), how, dev_how, forms, fitted, data, before)


def _join(features: Floats, data: Matrices, places: Places, pool: AttentionPool) -> Floats:
    """Put what light attention makes of some proteins behind their ordinary vectors."""
    return np.stack(
        [pool.extend(vector, data[place]) for vector, place in zip(features, places.tolist(), strict=True)]
    )
