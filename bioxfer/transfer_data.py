"""From source and target records to a transfer: vectors, relatives, sides, and the two kinds of trunk.

Source proteins that resemble a held-out protein of the target, or one that chooses, are left out before
anything is learnt, so that those proteins stay new for every way.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer import __version__
from bioxfer.backbones import Backbone
from bioxfer.backbones.adapters import Adapter
from bioxfer.clusters import cluster_records, homology_split
from bioxfer.curves import DRAWS, check_sizes
from bioxfer.errors import LabelError, UsageError
from bioxfer.homology import Method, find_links, normal_form
from bioxfer.lora import Part, adapt
from bioxfer.residue_labels import choose_residue_task
from bioxfer.selection import HeadChoice, check_classes, select
from bioxfer.sequences import SequenceRecord
from bioxfer.solvers import Form
from bioxfer.tasks import task_from_name
from bioxfer.transfer import SIZES, WAYS, Journal, Lam, check_lam, compare, fit
from bioxfer.trunks import Labelled, set_apart

__all__ = ["Moved", "Source", "TransferOptions", "keep_training_rows", "move"]

log = logging.getLogger("bioxfer")

Floats: TypeAlias = npt.NDArray[np.float32]
TrunkKind: TypeAlias = Literal["adapter", "lora"]

# Looser than those of clusters: a shared domain is enough to leave a source protein out.
_IDENTITY, _COVERAGE = 0.25, 0.3
_DEV_SHARE = (
    0.15  # of the target's training part, which chooses where low-rank changes were trained on the rest
)


class Vectors(Protocol):
    """What embedding gives: a vector for each record, NaN where there is none, and its cleaned residues."""

    @property
    def features(self) -> Floats: ...
    @property
    def residues(self) -> list[str]: ...


class Embed(Protocol):
    """Embeds records as the target is embedded, with its backbone or an adapted one."""

    def __call__(self, records: Sequence[SequenceRecord], backbone: Backbone | None = None, /) -> Vectors:
        """Return vectors and residues."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A source task.

    Attributes
    ----------
    name : str
        For messages and the card.
    records : sequence of SequenceRecord
        With labels of proteins.
    """

    name: str
    records: Sequence[SequenceRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """What to transfer from, and how.

    Attributes
    ----------
    sources : sequence of Source
        One or more.
    lam : float or "auto"
        Weight λ of the target's loss; ``auto`` compares three with an adapter, and is 1 with low-rank
        changes.
    trunk : {"adapter", "lora"}
        A layer on frozen vectors, or low-rank changes inside the backbone (Hu et al., ICLR 2022).
    sizes, draws
        Of the learning curve, see `bioxfer.transfer.fit`; with low-rank changes there is none.
    rank, epochs : int
        Of low-rank changes, see `bioxfer.lora.adapt`.
    checkpoint : path, optional
        What is finished is kept there, and taken from there.
    backbone : str
        Name or file of the backbone that low-rank changes are of.
    adapter : path, optional
        Where to write the changes of the chosen way, by which `load_backbone` finds the changed backbone;
        needed for low-rank changes.
    precision, device, offline
        For these, see `bioxfer.backbones.load_backbone`.
    """

    sources: Sequence[Source]
    lam: Lam = "auto"
    trunk: TrunkKind = "adapter"
    sizes: Sequence[int] = SIZES
    draws: int = DRAWS
    rank: int = 8
    epochs: int = 5
    checkpoint: str | os.PathLike[str] | None = None
    backbone: str = "compact"
    adapter: str | os.PathLike[str] | None = None
    precision: str = "fp32"
    device: str = "cpu"
    offline: bool = False

    def check(self) -> None:
        """Refuse what cannot be done, before anything is embedded.

        Raises
        ------
        UsageError, LabelError
            With what is wrong.
        """
        check_lam(self.lam)
        check_sizes(self.sizes, self.draws)
        if not self.sources:
            raise UsageError("there is nothing to transfer from; give --source")
        if self.trunk not in ("adapter", "lora"):
            raise UsageError(f"trunk {self.trunk!r} is not one of adapter, lora")
        if self.trunk == "lora" and self.adapter is None:
            raise UsageError("low-rank changes need a file to be written to; give adapter")
        names = [source.name for source in self.sources]
        for name in names:
            if name == "target" or names.count(name) > 1:
                raise UsageError(f"source {name!r}: each source needs a name of its own, and none is target")
        for source in self.sources:
            if choose_residue_task("auto", source.records):
                raise UsageError(
                    f"source {source.name}: its labels are of residues, and transfer is between labels of "
                    "proteins; give another source"
                )
            try:
                task_from_name("auto", [record.label or "" for record in source.records])
            except LabelError as error:
                raise LabelError(f"source {source.name}: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What a transfer hands to `bioxfer.head_training.train_head`.

    Attributes
    ----------
    features : ndarray (N, F)
        Vectors of the target's records, by the chosen way.
    sides : list of str
        Their sides.
    how : str
        How these were chosen.
    forms : sequence of Form or None
        Of the chosen way.
    adapted : tuple of Backbone and Adapter, or None
        The changed backbone and its changes, where low-rank ones were chosen.
    card : dict
        For the head's card, under ``transfer``.
    """

    features: Floats
    sides: list[str]
    how: str
    forms: Sequence[Form] | None
    adapted: tuple[Backbone, Adapter] | None
    card: dict[str, Any]


def move(
    records: Sequence[SequenceRecord],
    vectors: Vectors,
    groups: npt.NDArray[Any],
    options: TransferOptions,
    *,
    embed: Embed,
    task: str,
    head: HeadChoice,
    pool: str,
    sides: Sequence[str] | None,
    valid: float,
    identity: float,
    method: Method,
    threads: int | None,
    made_by: str,
    seed: int,
) -> Moved:
    """Compare the ways from sources to a target.

    Parameters
    ----------
    records : sequence of SequenceRecord
        The target's N, with labels.
    vectors : Vectors
        Of these records.
    groups : ndarray (N,)
        Their homology clusters.
    options : TransferOptions
        The sources and the rest.
    embed : callable
        For the sources, and for the target where the backbone was adapted.
    task, head, pool, valid, seed
        As in `bioxfer.head_training.train_head`.
    sides : sequence of str, optional
        ``"train"``, ``"dev"`` or ``"valid"`` for each record; whole clusters are held out if not given.
    identity, method, threads
        Of the homology search; source proteins are left out by a looser one.
    made_by : str
        What made the vectors, for the checkpoint's key.

    Raises
    ------
    LabelError
        A source has no protein left, its labels are of residues, or the target's classes cannot be held out.
    UsageError
        As in `bioxfer.transfer.fit`.
    """
    usable = np.flatnonzero(np.isfinite(vectors.features).all(axis=1))
    label = [records[place].label or "" for place in usable.tolist()]
    whole = task_from_name(task, label)
    how = "given with the data"
    if sides is None:
        codes = whole.encode(label)
        check_classes(whole, codes, groups[usable], least=2)
        side = homology_split(groups[usable], valid=valid, seed=seed, y=codes).astype("<U5")
        how = f"whole homology clusters held out, {valid:.0%} of the proteins, seed {seed}"
    else:
        side = np.array([sides[place] for place in usable.tolist()], dtype="<U5")
    if options.trunk == "lora" and not (side == "dev").any():
        train = np.flatnonzero(side == "train")
        part = homology_split(
            groups[usable][train], valid=_DEV_SHARE, seed=seed, y=whole.encode(label)[train]
        )
        side[train[part == "valid"]] = "dev"
        how += f"; {_DEV_SHARE:.0%} of the training part, in whole clusters, to choose by"
    known = np.flatnonzero(side != "valid")
    chosen_task = whole.restrict([label[place] for place in known.tolist()])
    y = chosen_task.encode(label)
    everything = Labelled(vectors.features[usable], y, chosen_task, groups[usable], "target")
    proteins = [vectors.residues[place] for place in usable.tolist()]
    sources, residues, told = _read_sources(
        options, proteins, side, embed, identity=identity, method=method, threads=threads
    )
    dealt = np.full(len(records), "train", dtype="<U5")
    dealt[usable] = side
    read = (side.tolist(), groups.tolist(), proteins, residues, [source.group.tolist() for source in sources])
    key = _key(records, options, made_by, task, head, seed, *read)
    if options.trunk == "adapter":
        features, adapted = everything.x, None
        forms, card = _compare_adapters(everything, side, sources, options, head=head, key=key, seed=seed)
    else:
        forms = None
        features, adapted, card = _compare_changes(
            everything, side, sources, options, proteins=proteins, residues=residues,
            records=[records[p] for p in usable.tolist()], embed=embed, head=head, pool=pool, seed=seed,
        )  # fmt: skip
    for own, extra in zip(card["sources"], told, strict=True):
        own |= extra
    table = np.full((len(records), features.shape[1]), np.nan, dtype=np.float32)
    table[usable] = features
    return Moved(table, dealt.tolist(), how, forms, adapted, card)


def keep_training_rows(name: str, records: Sequence[SequenceRecord]) -> list[SequenceRecord]:
    """Keep the rows of a source whose split begins with ``train``, where there are such; else all."""
    kept = [record for record in records if (record.split or "").startswith("train")]
    if not kept or len(kept) == len(records):
        return list(records)
    log.info(
        "source %s: %d of %d rows are of its split train; the others are left alone",
        name,
        len(kept),
        len(records),
    )
    return kept


def _read_sources(
    options: TransferOptions,
    proteins: Sequence[str],
    side: npt.NDArray[Any],
    embed: Embed,
    *,
    identity: float,
    method: Method,
    threads: int | None,
) -> tuple[list[Labelled], list[list[str]], list[dict[str, Any]]]:
    """Embed the sources and leave out what resembles proteins of the target that judge or choose."""
    found: list[Labelled] = []
    residues: list[list[str]] = []
    told: list[dict[str, Any]] = []
    for source in options.sources:
        vectors = embed(source.records)
        usable = np.isfinite(vectors.features).all(axis=1)
        near_held, near_train = _resembling(vectors.residues, proteins, side, method=method, threads=threads)
        # Without a dev part the training proteins are left out in turn to choose by, and must be as new.
        near = near_held if (side == "dev").any() else near_held | near_train
        kept = np.flatnonzero(usable & ~near)
        if not len(kept):
            raise LabelError(
                f"source {source.name}: no protein of {len(source.records)} is left, as {int(near.sum())} "
                "resemble proteins of the target that judge or choose; mark rows of the target's split as "
                "dev, so that its training proteins need not choose, or give another source"
            )
        records = [source.records[place] for place in kept.tolist()]
        own = [vectors.residues[place] for place in kept.tolist()]
        group, _ = cluster_records(records, own, identity=identity, method=method, threads=threads)
        label = [record.label or "" for record in records]
        try:
            task = task_from_name("auto", label)
        except LabelError as error:
            raise LabelError(f"source {source.name}: {error}") from error
        found.append(Labelled(vectors.features[kept], task.encode(label), task, group, source.name))
        residues.append(own)
        told.append(
            {
                "left_out_as_relatives": int(near.sum()),
                "left_out_without_vector": int((~usable & ~near).sum()),
                "with_relatives_in_target_training": int(near_train[kept].sum()),
            }
        )
        log.info(
            "source %s: %d proteins (%s), %d more left out as they resemble proteins of the target that "
            "judge or choose",
            source.name, len(kept), task.name, int(near.sum()),
        )  # fmt: skip
    return found, residues, told


def _resembling(
    source: Sequence[str],
    target: Sequence[str],
    side: npt.NDArray[Any],
    *,
    method: Method,
    threads: int | None,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell which source proteins resemble dev or held-out proteins of the target, and which training ones."""
    links = find_links(source, target, identity=_IDENTITY, coverage=_COVERAGE, method=method, threads=threads)
    of = side[links.reference] == "train"
    answers = []
    for mine, rows in ((side != "train", ~of), (side == "train", of)):
        equal = {normal_form(target[place]) for place in np.flatnonzero(mine).tolist()}
        near = np.array([normal_form(protein) in equal for protein in source], dtype=bool)
        near[links.query[rows]] = True
        answers.append(near)
    return answers[0], answers[1]


def _compare_adapters(
    target: Labelled,
    side: npt.NDArray[Any],
    sources: Sequence[Labelled],
    options: TransferOptions,
    *,
    head: HeadChoice,
    key: str,
    seed: int,
) -> tuple[Sequence[Form] | None, dict[str, Any]]:
    """Compare a layer on frozen vectors with the target alone; return the chosen way's forms and the card."""
    known, held = np.flatnonzero(side != "valid"), np.flatnonzero(side == "valid")
    dev = side[known] == "dev"
    transfer = fit(
        sources,
        _part(target, known),
        _part(target, held),
        lam=options.lam,
        head=head,
        dev=dev if dev.any() else None,
        sizes=options.sizes,
        draws=options.draws,
        seed=seed,
        report=log.info,
        journal=Journal(options.checkpoint, key),
    )
    return transfer.forms, transfer.card


def _compare_changes(
    target: Labelled,
    side: npt.NDArray[Any],
    sources: Sequence[Labelled],
    options: TransferOptions,
    *,
    proteins: Sequence[str],
    residues: Sequence[Sequence[str]],
    records: Sequence[SequenceRecord],
    embed: Embed,
    head: HeadChoice,
    pool: str,
    seed: int,
) -> tuple[Floats, tuple[Backbone, Adapter] | None, dict[str, Any]]:
    """Train low-rank changes of the backbone on the sources, and on sources and target, and compare."""
    lam = 1.0 if options.lam == "auto" else check_lam(options.lam)[0]
    known, held = np.flatnonzero(side != "valid"), np.flatnonzero(side == "valid")
    train, dev = np.flatnonzero(side == "train"), np.flatnonzero(side == "dev")
    parts: list[Part] = []
    stops: list[Part] = []
    for source, own in zip(sources, residues, strict=True):
        learnt, apart = set_apart(source, seed)
        if stops or not len(apart):  # one part alone says when to stop
            learnt, apart = np.arange(len(own)), apart[:0]
        for places, into in ((learnt, parts), (apart, stops)):
            if len(places):
                into.append(
                    Part([own[p] for p in places.tolist()], source.y[places], source.task, 1.0, source.name)
                )

    def mine(rows: npt.NDArray[np.intp]) -> Part:
        return Part([proteins[p] for p in rows.tolist()], target.y[rows], target.task, lam, "target")

    adapters: dict[str, Adapter] = {}
    for way, shown, judge in (
        ("sequential", parts, stops[0] if stops else None),
        ("joint", [*parts, mine(train)], mine(dev)),
    ):
        adapters[way] = adapt(
            options.backbone,
            shown,
            dev=judge,
            rank=options.rank,
            epochs=options.epochs,
            pool=pool,
            device=options.device,
            offline=options.offline,
            seed=seed,
            checkpoint=None if options.checkpoint is None else f"{os.fspath(options.checkpoint)}.{way}",
            progress=_teller(way),
        )
    for way, adapter in adapters.items():
        if adapter.card.get("best_epoch") == 0:
            log.info("%s: no epoch lowered the held-out loss, so the backbone stays as it is", way)
    features = {"target_only": target.x}
    backbones: dict[str, Backbone] = {}
    for way, adapter in adapters.items():
        backbones[way] = adapter.backbone(
            name=Path(options.adapter or "adapter").stem,
            precision=options.precision,
            device=options.device,
            offline=options.offline,
        )
        features[way] = embed(records, backbones[way]).features
    fits = {
        way: select(
            features[way][known],
            target.y[known],
            [str(place) for place in known.tolist()],
            target.group[known],
            target.task,
            head=head,
            dev=side[known] == "dev",
            seed=seed,
        )
        for way in WAYS
    }
    said = {way: target.task.predict(fits[way].outputs(features[way][held])) for way in WAYS}
    card: dict[str, Any] = {
        "trunk": {"kind": "lora", "rank": options.rank, "epochs": options.epochs},
        "sources": [
            {"name": source.name, "task": source.task.name, "proteins": len(source.x), "held_out_loss": None}
            for source in sources
        ],
        "lam": lam,
        **compare(fits, said, target.task, _part(target, held), seed=seed),
        "curve": [],
    }
    chosen = card["chosen"]
    if chosen == "target_only":
        return target.x, None, card
    return features[chosen], (backbones[chosen], adapters[chosen]), card


def _teller(way: str) -> Callable[[int, Any, float | None], None]:
    def tell(epoch: int, losses: Any, dev: float | None) -> None:
        said = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()) or "none yet"
        log.info(
            "%s, epoch %d: loss %s; held-out %s", way, epoch, said, "none" if dev is None else f"{dev:.4f}"
        )

    return tell


def _part(data: Labelled, places: npt.NDArray[np.intp]) -> Labelled:
    return Labelled(data.x[places], data.y[places], data.task, data.group[places], data.name)


def _key(records: Sequence[SequenceRecord], options: TransferOptions, *rest: object) -> str:
    """Hash all that a comparison depends on."""
    found = hashlib.sha256()
    for part in (("target", records), *((source.name, source.records) for source in options.sources)):
        found.update(f"{part[0]!r} {len(part[1])}\n".encode("utf-8", "surrogateescape"))
        for record in part[1]:
            told = (record.id, record.sequence, record.label, record.split, record.cluster)
            found.update(repr(told).encode("utf-8", "surrogateescape"))
    how = (options.lam, options.trunk, tuple(options.sizes), options.draws, options.rank, options.epochs)
    found.update(repr((__version__, *how, *rest)).encode("utf-8", "surrogateescape"))
    return found.hexdigest()
