"""What a backbone learns from: a corpus, labelled source tables, and batches of masked crops."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bioxfer.backbones.compact import BOS, EOS, MASK, tokenize
from bioxfer.backbones.packing import Pack, pack_tokens
from bioxfer.errors import InputError, LabelError, UsageError
from bioxfer.genes import Translation
from bioxfer.residue_tasks import UNRESOLVED, look_like_residue_labels
from bioxfer.sequences import SequenceRecord, clean_protein, looks_like_nucleotides, tell_nucleotides
from bioxfer.tasks import Regression, look_continuous, task_from_name

__all__ = [
    "IGNORED",
    "ORDINARY",
    "Batch",
    "Corpus",
    "Crop",
    "CropSampler",
    "SourceTable",
    "count_residues",
    "mask_all",
    "mask_and_pack",
    "name_source",
    "read_source",
    "read_test_proteins",
]

log = logging.getLogger("bioxfer")

IGNORED = -100  # cross_entropy's default ignore_index
QUANTUM = 32  # crops end on multiples of this, so that a batch has few groups of length
ORDINARY = 20  # the first residues of the alphabet are the twenty amino acids; only they are asked for
TESTING = ("test", "val", "dev")  # how splits of proteins begin that nothing may be learnt from


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised proteins in one run.

    Attributes
    ----------
    tokens : ndarray
        ``(T,)`` uint8, all sequences end to end.
    offsets : ndarray
        ``(N + 1,)`` int64; sequence ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    tokens: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def sha256(self) -> str:
        """Hash of all residues and of where each protein ends."""
        return _hash(self.tokens, self.offsets)

    @classmethod
    def from_sequences(cls, sequences: Sequence[str]) -> Corpus:
        """Tokenise clean sequences."""
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        return cls(tokenize("".join(sequences)), np.concatenate(([0], lengths.cumsum())))

    @classmethod
    def read(cls, paths: Sequence[str | Path], translation: Translation | None = None) -> Corpus:
        """Read what `iter_proteins` does, or ``.txt`` files with one sequence a line; may be compressed."""
        parts = [cls._read_one(Path(path), translation or Translation()) for path in paths]
        shifts = np.cumsum([0] + [len(part.tokens) for part in parts])
        offsets = [part.offsets[1:] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
        return cls(np.concatenate([p.tokens for p in parts]), np.concatenate([[0], *offsets]))

    @classmethod
    def _read_one(cls, path: Path, translation: Translation) -> Corpus:
        from bioxfer.io import iter_proteins
        from bioxfer.lines import open_lines

        if not path.exists():
            raise InputError(f"no such file: {path}; check the name and the folder")
        start, lines = open_lines(path)
        if ".txt" not in path.suffixes or start.startswith(b">"):
            cleaned = _clean(iter_proteins(path, translation, tell=True))
            return cls.from_sequences([residues for _, residues in cleaned if residues])
        if translation.traced:
            raise UsageError(f"{path} has one protein a line, and these are not translated; give a FASTA")
        sequences = [line.strip().upper() for _, line in lines]
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        bounds = np.concatenate(([0], lengths[lengths > 0].cumsum()))
        return cls(tokenize(b"".join(sequences)), bounds)


def _clean(
    records: Iterable[SequenceRecord], *, degap: bool = False, table: Path | None = None
) -> Iterator[tuple[SequenceRecord, str]]:
    """Give each record with its residues, and warn at the end if some look like nucleotides."""
    count = odd = 0
    first: SequenceRecord | None = None
    for record in records:
        count += 1
        residues = clean_protein(record, degap=degap).residues
        translated = record.origin is not None and record.origin.start is not None
        if not translated and looks_like_nucleotides(residues):
            odd += 1
            first = first or record
        yield record, residues
    if first is not None and table is None:
        log.warning("%s (%d of %d records look so)", tell_nucleotides(first), odd, count)
    elif first is not None:
        log.warning(
            "%s: %d of %d records look like nucleotides where proteins are expected; --translate is for the "
            "corpus and --valid, so give a table of the proteins",
            table,
            odd,
            count,
        )


def _hash(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class SourceTable:
    """Labelled proteins for one source task.

    Attributes
    ----------
    name : str
        Name of the task.
    proteins : Corpus
        ``N`` proteins.
    kind : {"residues", "classes", "number"}
        What a label is.
    targets : ndarray
        ``(T,)`` int64 class of each residue; or ``(N, K)`` int64 classes of each
        protein, ``K`` being the number of levels with two classes or more for EC
        numbers and 1 else; or ``(N, 1)`` float32 numbers in standard deviations
        from their mean.
        ``-100`` stands for an unknown class.
    classes : tuple of int
        Number of classes of each output; a number is one output of one.
    """

    name: str
    proteins: Corpus
    kind: Literal["residues", "classes", "number"]
    targets: NDArray[Any]
    classes: tuple[int, ...]

    @property
    def sha256(self) -> str:
        """Hash of the proteins and of all that is said of them."""
        return _hash(self.proteins.tokens, self.proteins.offsets, self.targets)

    def targets_of(self, index: int) -> NDArray[Any]:
        """Targets of one protein: ``(L,)`` classes of its residues, or ``(K,)`` of its own."""
        if self.kind == "residues":
            bounds = self.proteins.offsets[index : index + 2]
            return self.targets[bounds[0] : bounds[1]]
        return np.asarray(self.targets[index])


def name_source(path: str | Path) -> str:
    """Name a source table: its file's name up to the first dot."""
    return Path(path).name.split(".")[0]


def read_source(path: str | Path, *, unlike: Sequence[str] = ()) -> SourceTable:
    """Read a source table, and tell its kind from its labels.

    Labels as long as their cleaned sequences are a class per residue, but for ``?``,
    ``-`` and ``_``, which say nothing; EC numbers become three outputs, the second to
    the fourth level, each known up to the first ``-``; numbers are one to be regressed
    on where some have a decimal point or more than 20 differ; anything else is one
    class per protein. A class of proteins needs 10 of them, or 2 where none has 10;
    the others are unknown.

    Parameters
    ----------
    path : str or Path
        CSV or TSV with ``id,sequence,label``; gaps and a final ``*`` of a sequence are removed.
    unlike : sequence of str, optional
        Proteins of test sets; rows that resemble one of them are left out.

    Raises
    ------
    LabelError
        If a row has no label, or one that is not as long as its sequence where the others
        are, or if fewer than two classes remain.
    """
    from bioxfer.clusters import shares_homology
    from bioxfer.io import read_sequences

    path = Path(path)
    name = name_source(path)
    read = list(_clean(read_sequences(path), degap=True, table=path))
    records = [record for record, residues in read if residues]
    sequences = [residues for _, residues in read if residues]
    labels = _take_labels(path, records)
    by_residues = _label_residues(records, labels, sequences)
    if len(unlike):
        keep = ~shares_homology(sequences, list(unlike))
        log.info("%s: %d of %d rows resemble a test protein and are left out", name, (~keep).sum(), len(keep))
        labels = [label for label, kept in zip(labels, keep, strict=True) if kept]
        sequences = [sequence for sequence, kept in zip(sequences, keep, strict=True) if kept]
    if not sequences:
        raise LabelError(f"{path}: no row is left to learn from; give a table with other proteins")
    proteins = Corpus.from_sequences(sequences)
    if by_residues:
        letters, places = np.unique(list("".join(labels)), return_inverse=True)
        resolved = ~np.isin(letters, list(UNRESOLVED))
        numbers = np.where(resolved, np.cumsum(resolved) - 1, IGNORED).astype(np.int64)
        _check_classes(path, int(resolved.sum()))
        return SourceTable(name, proteins, "residues", numbers[places], (int(resolved.sum()),))
    if all(label.split(";")[0].count(".") == 3 for label in labels):
        levels = [label.split(";")[0].split(".") for label in labels]
        columns = [
            _encode(["" if "-" in level[:depth] else ".".join(level[:depth]) for level in levels])
            for depth in (2, 3, 4)
        ]
        # A level of one class has nothing to tell apart.
        columns = [column for column in columns if column.max() > 0]
    else:
        try:
            # several labels in a cell stay one class: a source task needs no more of them
            task = task_from_name("regression" if look_continuous(labels) else "multiclass", labels)
        except LabelError as error:
            raise LabelError(f"{path}: {error}") from error
        if isinstance(task, Regression):
            values = task.encode(labels).astype(np.float32)[:, None]
            return SourceTable(name, proteins, "number", values, (1,))
        columns = [_encode(labels)]
    classes = tuple(int(column.max()) + 1 for column in columns)
    _check_classes(path, max(classes, default=0))
    return SourceTable(name, proteins, "classes", np.stack(columns, axis=1), classes)


def _take_labels(path: Path, records: Sequence[SequenceRecord]) -> list[str]:
    if records and all(record.label is None for record in records):
        raise LabelError(f"{path}: the table needs the columns id, sequence and label")
    for record in records:
        if record.label is None:
            raise LabelError(f"{record.place}: the label is empty; fill it in or drop the row")
    return [record.label or "" for record in records]


def _label_residues(
    records: Sequence[SequenceRecord], labels: Sequence[str], sequences: Sequence[str]
) -> bool:
    """Tell whether labels are of residues; one of another length among them is then a mistake."""
    lengths = [len(sequence) for sequence in sequences]
    strange = [n for n, length in enumerate(lengths) if len(labels[n]) != length]
    if not strange:
        return True
    if not look_like_residue_labels(labels, lengths):
        return False
    first = strange[0]
    raise LabelError(
        f"{records[first].place}: the label has {len(labels[first])} characters for {lengths[first]} "
        "residues, and other labels have one for each; mend it or drop the row"
    )


def _check_classes(path: Path, found: int) -> None:
    if found < 2:
        raise LabelError(f"{path}: fewer than two classes with enough examples; a source task needs two")


def _encode(labels: Sequence[str], *, least: int = 10) -> NDArray[np.int64]:
    """Give numbers to the labels that occur `least` times, or twice if none does; ignore empty ones too."""
    values, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    numbers = np.full(len(values), IGNORED, dtype=np.int64)
    counts[values == ""] = 0
    frequent = np.flatnonzero(counts >= (least if counts.max() >= least else 2))
    numbers[frequent] = np.arange(len(frequent))
    return numbers[places]


def read_test_proteins(path: str | Path) -> list[str]:
    """Read the proteins of a test set, for `read_source` to leave out what resembles them.

    Parameters
    ----------
    path : str or Path
        FASTA, CSV or TSV. Of a table with splits, only rows count whose split begins with
        ``test``, ``val`` or ``dev`` in either case, or is empty.

    Raises
    ------
    LabelError
        If a table has splits, and none begins so.
    """
    from bioxfer.io import iter_sequences

    records = list(iter_sequences(path))
    splits = sorted({record.split for record in records if record.split is not None})
    testing = {split for split in splits if split.strip().lower().startswith(TESTING)}
    if splits and not testing:
        found = ", ".join(map(repr, splits[:5]))
        raise LabelError(
            f"{path}: no split begins with {', '.join(TESTING)} (found: {found}), so that nothing would be "
            "excluded; rename them, or drop the column to exclude all rows"
        )
    chosen = [record for record in records if record.split is None or record.split in testing]
    return [residues for _, residues in _clean(chosen, degap=True, table=Path(path)) if residues]


@dataclass(frozen=True, slots=True)
class Crop:
    """A stretch of one protein, with its labels if source tables have any.

    Attributes
    ----------
    tokens : ndarray
        ``(L,)`` uint8, ``BOS`` and ``EOS`` included where the stretch reaches an end.
    labelled : bool
        Whether it was drawn from a source table, and not from the corpus.
    residue_targets, protein_targets : dict of int to ndarray
        For each source that knows the protein, ``(L,)`` classes of its residues or ``(K,)`` of its own.
    """

    tokens: NDArray[np.uint8]
    labelled: bool = False
    residue_targets: dict[int, NDArray[Any]] = field(default_factory=dict)
    protein_targets: dict[int, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Masked crops, packed, with everything that is asked of them.

    Attributes
    ----------
    pack : Pack
        The masked tokens.
    asked, answers : Tensor
        ``(M,)`` places in the pack that were hidden or changed, and what stood there.
    residue_targets : dict of int to (Tensor, Tensor)
        For each source, places ``(R,)`` in the pack and their classes ``(R,)``.
    protein_targets : dict of int to (Tensor, Tensor)
        For each source, sequences ``(P,)`` in pack order and their classes or numbers ``(P, K)``.
    """

    pack: Pack
    asked: Tensor
    answers: Tensor
    residue_targets: dict[int, tuple[Tensor, Tensor]]
    protein_targets: dict[int, tuple[Tensor, Tensor]]


class CropSampler:
    """Crops from corpus and sources, each walked through in its own shuffled order.

    Whichever pool has had the fewest tokens for its share gives the next crop, so that shares hold within a
    few steps. A source whose next protein does not fit into what is left of a batch waits for the next one,
    and a crop of the corpus fills the gap: where a batch holds but a few proteins, the corpus gets more than
    its share. Among the sources, shares follow the square root of their residues, times their weight: a small
    table is not drowned, and not worn out either. Proteins of sources are seen whole up to ``long_crop``;
    longer ones are seen from their start or up to their end, half and half. They answer for every source that
    knows them. A protein that its table has twice answers there with the row that was drawn.
    """

    def __init__(
        self,
        corpus: Corpus,
        sources: Sequence[SourceTable],
        *,
        batch_tokens: int,
        crop: int,
        long_crop: int,
        long_share: float,
        source_share: float,
        mask_share: float,
        source_mask_share: float,
        seed: int,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.pools = [corpus, *(source.proteins for source in sources)]
        self.sources = sources
        self.batch_tokens = batch_tokens
        self.crop = crop
        self.long_crop = min(long_crop, batch_tokens)
        self.long_share = long_share
        self.mask_share = mask_share
        self.source_mask_share = source_mask_share
        self.seed = seed
        self.cursors = [0] * len(self.pools)
        self.given = [0] * len(self.pools)
        size = np.sqrt([len(source.proteins.tokens) for source in sources]) * (weights or 1.0)
        share = source_share if sources else 0.0
        self.shares = [1.0 - share, *(share * size / max(size.sum(), 1e-9)).tolist()]
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._known: dict[bytes, list[tuple[int, int]]] = {}
        for number, source in enumerate(sources):
            for index in range(len(source.proteins)):
                self._known.setdefault(source.proteins[index].tobytes(), []).append((number, index))

    def _peek(self, pool: int) -> int:
        epoch, place = divmod(self.cursors[pool], len(self.pools[pool]))
        if (pool, epoch) not in self._orders:
            self._orders.pop((pool, epoch - 1), None)
            rng = np.random.default_rng((self.seed, pool, epoch))
            self._orders[pool, epoch] = rng.permutation(len(self.pools[pool]))
        return int(self._orders[pool, epoch][place])

    def _next(self, pool: int) -> int:
        index = self._peek(pool)
        self.cursors[pool] += 1
        return index

    def draw(self, step: int) -> list[Crop]:
        """Draw crops for one step, ``batch_tokens`` in all."""
        rng = np.random.default_rng((self.seed, 1 << 20, step))
        crops: list[Crop] = []
        room = self.batch_tokens
        while room >= QUANTUM:
            debts = [
                given / share if share > 0 else math.inf
                for given, share in zip(self.given, self.shares, strict=True)
            ]
            pool = debts.index(min(debts))
            if pool and room < min(len(self.pools[pool][self._peek(pool)]) + 2, self.long_crop):
                pool = 0  # a crop of the corpus fits into any gap
            limit = self.long_crop if pool or rng.random() < self.long_share else self.crop
            crop = self._cut(pool, self._next(pool), min(limit, room), rng)
            crops.append(crop)
            self.given[pool] += len(crop.tokens)
            room -= len(crop.tokens)
        return crops

    def _cut(self, pool: int, index: int, limit: int, rng: np.random.Generator) -> Crop:
        residues = self.pools[pool][index]
        framed = np.concatenate(([BOS], residues, [EOS])).astype(np.uint8)
        size = min(len(framed), limit)
        if not pool:
            if size > QUANTUM:
                size -= size % QUANTUM
            start = int(rng.integers(len(framed) - size + 1))
            return Crop(framed[start : start + size])
        # What is said of a protein may sit at its ends, as sorting signals do, and heads read them.
        start = int(rng.integers(2)) * (len(framed) - size)
        window = slice(start, start + size)
        crop = Crop(framed[window], labelled=True)
        for number, place in self._known[residues.tobytes()]:
            if number == pool - 1 and place != index:
                continue
            found = self.sources[number].targets_of(place)
            if self.sources[number].kind == "residues":
                known, found = crop.residue_targets, np.concatenate(([IGNORED], found, [IGNORED]))[window]
            else:
                known = crop.protein_targets
            first = known.get(number, found)
            known[number] = np.where(first == IGNORED, found, first)
        return crop

    def batch(self, step: int) -> Batch:
        """Draw, mask and pack the crops of one step."""
        rng = np.random.default_rng((self.seed, 1 << 21, step))
        crops = self.draw(step)
        shares = [self.source_mask_share if crop.labelled else self.mask_share for crop in crops]
        return mask_and_pack(crops, rng, shares)


def mask_and_pack(
    crops: Sequence[Crop], rng: np.random.Generator, mask_share: Sequence[float], *, shown: float = 0.2
) -> Batch:
    """Hide residues of every crop and pack the crops with what is asked of them.

    Parameters
    ----------
    crops : sequence of Crop
        At least one.
    rng : numpy.random.Generator
        Chooses what is hidden.
    mask_share : sequence of float
        Share of residues asked for, of each crop.
    shown : float, optional
        Share of those that are not hidden: half is changed, half left as it is.
    """
    masked = [_mask(crop.tokens, rng, share, shown) for crop, share in zip(crops, mask_share, strict=True)]
    pack = pack_tokens([torch.from_numpy(hidden) for hidden, _ in masked])
    asked = torch.from_numpy(np.concatenate([masked[i][1] for i in pack.order])).nonzero().squeeze(1)
    clear = torch.from_numpy(np.concatenate([crops[i].tokens for i in pack.order]).astype(np.int64))
    packed = [crops[i] for i in pack.order]
    starts = np.cumsum([0, *pack.lengths])
    residue_targets = {}
    for source in sorted({source for crop in crops for source in crop.residue_targets}):
        mine = [(start, c.residue_targets.get(source)) for start, c in zip(starts, packed, strict=False)]
        parts = [
            (start + np.flatnonzero(t != IGNORED), t[t != IGNORED]) for start, t in mine if t is not None
        ]
        where, answers = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        residue_targets[source] = where, answers
    protein_targets = {}
    for source in sorted({source for crop in crops for source in crop.protein_targets}):
        members = [place for place, crop in enumerate(packed) if source in crop.protein_targets]
        table = np.stack([packed[place].protein_targets[source] for place in members])
        protein_targets[source] = torch.tensor(members), torch.from_numpy(table)
    return Batch(pack, asked, clear[asked], residue_targets, protein_targets)


def _mask(
    tokens: NDArray[np.uint8], rng: np.random.Generator, share: float, shown: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Hide residues as BERT does: of those asked for, half of `shown` changed and half left as they are."""
    asked = (rng.random(len(tokens)) < share) & (tokens < ORDINARY)
    fate = rng.random(len(tokens))
    hidden = tokens.copy()
    hidden[asked & (fate >= shown)] = MASK
    changed = asked & (fate < shown / 2)
    hidden[changed] = rng.integers(ORDINARY, size=int(changed.sum()))
    return hidden, asked


def mask_all(
    proteins: Corpus, *, limit: int, room: int = 16_384, share: float = 0.15, seed: int = 1
) -> Iterator[tuple[list[NDArray[np.uint8]], Batch]]:
    """Mask all proteins, shortest first, and leave nothing of what is asked for to copy.

    Parameters
    ----------
    proteins : Corpus
        What to mask.
    limit : int
        Tokens seen of each protein.
    room : int, optional
        Tokens of one batch.
    share : float, optional
        Share of residues asked for.
    seed : int, optional
        Of the mask; the same seed asks for the same residues.

    Yields
    ------
    list of ndarray, Batch
        The tokens ``(L,)`` of each protein, and the batch made of them.
    """
    order = np.argsort(np.diff(proteins.offsets), kind="stable")
    framed = (np.concatenate(([BOS], proteins[i], [EOS])).astype(np.uint8)[:limit] for i in order)
    for number, crops in enumerate(_fill(framed, room)):
        rng = np.random.default_rng((seed, number))
        yield crops, mask_and_pack([Crop(c) for c in crops], rng, [share] * len(crops), shown=0.0)


def _fill(items: Iterator[NDArray[np.uint8]], room: int) -> Iterator[list[NDArray[np.uint8]]]:
    held: list[NDArray[np.uint8]] = []
    for item in items:
        if held and sum(map(len, held)) + len(item) > room:
            yield held
            held = []
        held.append(item)
    if held:
        yield held


def count_residues(corpus: Corpus) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count residues and pairs of them, for models that know no context.

    Returns
    -------
    ndarray (20,), ndarray (27, 20)
        Log frequencies of residues, and of residues after each token, with one added to each count.
    """
    size = EOS + 1
    singles = np.bincount(corpus.tokens, minlength=size)[:ORDINARY] + 1.0
    before = np.concatenate(([BOS], corpus.tokens[:-1]))
    before[corpus.offsets[:-1][np.diff(corpus.offsets) > 0]] = BOS
    pairs = np.bincount(before.astype(np.int64) * size + corpus.tokens, minlength=size * size)
    doubles = pairs.reshape(size, size)[:, :ORDINARY] + 1.0
    return np.log(singles / singles.sum()), np.log(doubles / doubles.sum(1, keepdims=True))
