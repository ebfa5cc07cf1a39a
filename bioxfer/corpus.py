"""What a backbone learns from: a corpus, labelled source tables, and batches of masked crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bioxfer.backbones.compact import BOS, EOS, MASK, tokenize
from bioxfer.backbones.packing import Pack, pack_tokens
from bioxfer.errors import InputError, LabelError

__all__ = [
    "IGNORED",
    "ORDINARY",
    "Batch",
    "Corpus",
    "Crop",
    "CropSampler",
    "SourceTable",
    "mask_and_pack",
    "read_source",
]

log = logging.getLogger("bioxfer")

IGNORED = -100  # cross_entropy's default ignore_index
QUANTUM = 32  # crops end on multiples of this, so that a batch has few groups of length
ORDINARY = 20  # the first residues of the alphabet are the twenty amino acids; only they are asked for


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

    @classmethod
    def from_sequences(cls, sequences: Sequence[str]) -> Corpus:
        """Tokenise clean sequences."""
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        return cls(tokenize("".join(sequences)), np.concatenate(([0], lengths.cumsum())))

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> Corpus:
        """Read FASTA files and tables, or ``.txt`` files with one sequence a line; all may be compressed."""
        parts = [cls._read_one(Path(path)) for path in paths]
        shifts = np.cumsum([0] + [len(part.tokens) for part in parts])
        offsets = [part.offsets[1:] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
        return cls(np.concatenate([p.tokens for p in parts]), np.concatenate([[0], *offsets]))

    @classmethod
    def _read_one(cls, path: Path) -> Corpus:
        from bioxfer.io import iter_sequences
        from bioxfer.lines import open_lines
        from bioxfer.sequences import clean_protein

        if not path.exists():
            raise InputError(f"no such file: {path}; check the name and the folder")
        start, lines = open_lines(path)
        if ".txt" not in path.suffixes or start.startswith(b">"):
            cleaned = (clean_protein(record).residues for record in iter_sequences(path))
            return cls.from_sequences([residues for residues in cleaned if residues])
        sequences = [line.strip().upper() for _, line in lines]
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        bounds = np.concatenate(([0], lengths[lengths > 0].cumsum()))
        return cls(tokenize(b"".join(sequences)), bounds)


@dataclass(frozen=True, slots=True)
class SourceTable:
    """Labelled proteins for one source task.

    Attributes
    ----------
    name : str
        Name of the task.
    proteins : Corpus
        ``N`` proteins.
    residue_targets : ndarray or None
        ``(T,)`` int64 class of each residue, or ``-100``.
    protein_targets : ndarray
        ``(N, K)`` int64 classes of each protein, ``-100`` where unknown; ``K``
        is 0 for a per-residue task and the number of levels for EC numbers.
    classes : tuple of int
        Number of classes of each output.
    """

    name: str
    proteins: Corpus
    residue_targets: NDArray[np.int64] | None
    protein_targets: NDArray[np.int64]
    classes: tuple[int, ...]


def read_source(path: str | Path, *, unlike: Sequence[str] = ()) -> SourceTable:
    """Read a source table, and tell its kind from its labels.

    A label as long as its sequence is a class per residue; EC numbers become
    three outputs, the second to the fourth level; anything else is one class
    per protein.

    Parameters
    ----------
    path : str or Path
        CSV or TSV with ``id,sequence,label``.
    unlike : sequence of str, optional
        Proteins of test sets; rows that resemble one of them are left out.

    Raises
    ------
    LabelError
        If a row has no label or fewer than two classes remain.
    """
    from bioxfer.clusters import shares_homology
    from bioxfer.io import read_sequences

    path = Path(path)
    name = path.name.split(".")[0]
    records = [record for record in read_sequences(path) if record.sequence]
    if any(record.label is None for record in records):
        raise LabelError(f"{path}: the table needs the columns id, sequence and label")
    labels = [record.label or "" for record in records]
    sequences = [record.sequence.upper() for record in records]
    if len(unlike):
        keep = ~shares_homology(sequences, list(unlike))
        log.info("%s: %d of %d rows resemble a test protein and are left out", name, (~keep).sum(), len(keep))
        labels = [label for label, kept in zip(labels, keep, strict=True) if kept]
        sequences = [sequence for sequence, kept in zip(sequences, keep, strict=True) if kept]
    if not sequences:
        raise LabelError(f"{path}: no row is left to learn from; give a table with other proteins")
    proteins = Corpus.from_sequences(sequences)
    if all(len(label) == len(sequence) for label, sequence in zip(labels, sequences, strict=True)):
        letters, targets = np.unique(list("".join(labels)), return_inverse=True)
        _check_classes(path, len(letters))
        nothing = np.empty((len(sequences), 0), dtype=np.int64)
        return SourceTable(name, proteins, targets.astype(np.int64), nothing, (len(letters),))
    if all(label.split(";")[0].count(".") == 3 for label in labels):
        levels = [label.split(";")[0].split(".") for label in labels]
        columns = [_encode([".".join(level[:depth]) for level in levels]) for depth in (2, 3, 4)]
    else:
        columns = [_encode(labels)]
    classes = tuple(int(column.max()) + 1 for column in columns)
    _check_classes(path, max(classes))
    return SourceTable(name, proteins, None, np.stack(columns, axis=1), classes)


def _check_classes(path: Path, found: int) -> None:
    if found < 2:
        raise LabelError(f"{path}: fewer than two classes with enough examples; a source task needs two")


def _encode(labels: Sequence[str], *, least: int = 10) -> NDArray[np.int64]:
    """Give numbers to the labels that occur at least `least` times, and ignore the others."""
    values, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    numbers = np.full(len(values), IGNORED, dtype=np.int64)
    frequent = np.flatnonzero(counts >= min(least, counts.max()))
    numbers[frequent] = np.arange(len(frequent))
    return numbers[places]


@dataclass(frozen=True, slots=True)
class Crop:
    """A stretch of one protein, with its labels if it comes from a source table.

    Attributes
    ----------
    tokens : ndarray
        ``(L,)`` uint8, ``BOS`` and ``EOS`` included where the stretch reaches an end.
    source : int
        Number of the source table, -1 for the corpus.
    residue_targets : ndarray or None
        ``(L,)`` int64.
    protein_targets : ndarray or None
        ``(K,)`` int64.
    """

    tokens: NDArray[np.uint8]
    source: int = -1
    residue_targets: NDArray[np.int64] | None = None
    protein_targets: NDArray[np.int64] | None = None


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
        For each source, sequences ``(P,)`` in pack order and their classes ``(P, K)``.
    """

    pack: Pack
    asked: Tensor
    answers: Tensor
    residue_targets: dict[int, tuple[Tensor, Tensor]]
    protein_targets: dict[int, tuple[Tensor, Tensor]]


class CropSampler:
    """Crops from corpus and sources, each walked through in its own shuffled order."""

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
        seed: int,
    ) -> None:
        self.pools = [corpus, *(source.proteins for source in sources)]
        self.sources = sources
        self.batch_tokens = batch_tokens
        self.crop = crop
        self.long_crop = long_crop
        self.long_share = long_share
        self.source_share = source_share
        self.mask_share = mask_share
        self.seed = seed
        self.cursors = [0] * len(self.pools)
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def _next(self, pool: int) -> int:
        epoch, place = divmod(self.cursors[pool], len(self.pools[pool]))
        self.cursors[pool] += 1
        if (pool, epoch) not in self._orders:
            self._orders.pop((pool, epoch - 1), None)
            rng = np.random.default_rng((self.seed, pool, epoch))
            self._orders[pool, epoch] = rng.permutation(len(self.pools[pool]))
        return int(self._orders[pool, epoch][place])

    def draw(self, step: int) -> list[Crop]:
        """Draw crops for one step, ``batch_tokens`` in all."""
        rng = np.random.default_rng((self.seed, 1 << 20, step))
        crops: list[Crop] = []
        room = self.batch_tokens
        while room >= QUANTUM:
            pool = 0
            if self.sources and rng.random() < self.source_share:
                pool = 1 + int(rng.integers(len(self.sources)))
            limit = self.long_crop if rng.random() < self.long_share else self.crop
            crop = self._cut(pool, self._next(pool), min(limit, room), rng)
            crops.append(crop)
            room -= len(crop.tokens)
        return crops

    def _cut(self, pool: int, index: int, limit: int, rng: np.random.Generator) -> Crop:
        residues = self.pools[pool][index]
        framed = np.concatenate(([BOS], residues, [EOS])).astype(np.uint8)
        size = min(len(framed), limit)
        if size > QUANTUM:
            size -= size % QUANTUM
        start = int(rng.integers(len(framed) - size + 1))
        window = slice(start, start + size)
        if pool == 0:
            return Crop(framed[window])
        table = self.sources[pool - 1]
        targets = None
        if table.residue_targets is not None:
            bounds = table.proteins.offsets[index : index + 2]
            edge = [IGNORED]
            targets = np.concatenate((edge, table.residue_targets[bounds[0] : bounds[1]], edge))[window]
        return Crop(framed[window], pool - 1, targets, table.protein_targets[index])

    def batch(self, step: int) -> Batch:
        """Draw, mask and pack the crops of one step."""
        rng = np.random.default_rng((self.seed, 1 << 21, step))
        return mask_and_pack(self.draw(step), rng, self.mask_share)


def mask_and_pack(
    crops: Sequence[Crop], rng: np.random.Generator, mask_share: float, *, shown: float = 0.2
) -> Batch:
    """Hide residues of every crop and pack the crops with what is asked of them.

    Parameters
    ----------
    crops : sequence of Crop
        At least one.
    rng : numpy.random.Generator
        Chooses what is hidden.
    mask_share : float
        Share of residues asked for.
    shown : float, optional
        Share of those that are not hidden: half is changed, half left as it is.
    """
    masked = [_mask(crop.tokens, rng, mask_share, shown) for crop in crops]
    pack = pack_tokens([torch.from_numpy(hidden) for hidden, _ in masked])
    asked = torch.from_numpy(np.concatenate([masked[i][1] for i in pack.order])).nonzero().squeeze(1)
    clear = torch.from_numpy(np.concatenate([crops[i].tokens for i in pack.order]).astype(np.int64))
    residue_targets: dict[int, tuple[Tensor, Tensor]] = {}
    protein_targets: dict[int, tuple[Tensor, Tensor]] = {}
    for source in sorted({crop.source for crop in crops} - {-1}):
        mine = [(place, crops[i]) for place, i in enumerate(pack.order) if crops[i].source == source]
        if mine[0][1].residue_targets is None:
            classes = np.stack([c.protein_targets for _, c in mine if c.protein_targets is not None])
            protein_targets[source] = torch.tensor([place for place, _ in mine]), torch.from_numpy(classes)
        else:
            flat = [
                crops[i].residue_targets
                if crops[i].source == source
                else np.full(len(crops[i].tokens), IGNORED)
                for i in pack.order
            ]
            targets = torch.from_numpy(np.concatenate([t for t in flat if t is not None]))
            places = (targets != IGNORED).nonzero().squeeze(1)
            residue_targets[source] = places, targets[places]
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
