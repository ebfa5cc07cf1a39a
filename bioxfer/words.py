"""Word memory: which classes the words of a protein speak for.

Homology search finds the class of a protein by its likeness to one whole known protein. A word memory keeps
no protein: it knows that a spaced word over a reduced alphabet was seen in a class, and weighs for each class
how many words of a query it knows, above what chance gives a protein of that length. A table of 2.6 million
pairs of word and class takes 6 MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import HeadFileError, UsageError

__all__ = ["MOST_CLASSES", "WordMemory"]

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]
IntArray: TypeAlias = npt.NDArray[np.int64]

# Murphy et al., Protein Eng 2000: relatives at 30% identity still agree in about half of these groups.
_GROUPS = ("LVIM", "C", "A", "G", "ST", "P", "FYW", "EDNQ", "KR", "H")
# Seven of nine places: of the shapes tried on 43,000 enzymes the one that told most about queries below 50%
# identity. Spaced, because hits of neighbouring contiguous words are one event, not two.
_SHAPE = (0, 1, 3, 4, 6, 7, 8)
_WORDS = len(_GROUPS) ** len(_SHAPE)
_CODE_BITS = 16  # of a pair: the class, then the last bits of the word
MOST_CLASSES = 2 ** (_CODE_BITS - 1)
"""Classes that a memory can tell apart: 32,768."""
_SPREAD = 20.0  # variance added to chance's own, so that one rare word in a small class is no proof
_LEAST_WEIGHT, _COMMON = 0.1, 0.01  # a word weighs log(_COMMON / its chance in one residue)
_RESIDUES_AT_ONCE = 2**16  # a table of votes that fits the processor's cache is half as fast again
_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class WordMemory:
    """Pairs of word and class, in blocks of neighbouring words.

    Attributes
    ----------
    starts : ndarray (B + 1,)
        Where the pairs of each block start; the last is their number M.
    codes : ndarray (M,)
        Class number and place of the word in its block, in one uint16.
    shares : ndarray (10,)
        Frequency of each residue group in the training proteins.
    means, variances : ndarray (C,), (C,)
        Of the votes that chance gives a class for each residue of a query.
    """

    starts: IntArray
    codes: npt.NDArray[np.uint16]
    shares: npt.NDArray[np.float32]
    means: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]

    @property
    def n_classes(self) -> int:
        """Classes: C."""
        return len(self.means)

    @classmethod
    def fit(
        cls,
        sequences: Sequence[str],
        class_numbers: npt.ArrayLike,
        *,
        n_classes: int,
        pairs: int = 2_600_000,
        least: int = 1,
    ) -> WordMemory:
        """Learn which words speak for which class.

        Parameters
        ----------
        sequences : sequence of str
            N proteins; case is ignored, a word with another letter than the 20 amino acids is left out.
        class_numbers : array-like (N,)
            Class of each, from 0.
        n_classes : int
            C, at most 32,768. Fine classes (families, whole EC numbers) serve coarse ones best.
        pairs : int
            Pairs of word and class to keep at most, of each class the best; 2 bytes each. A class with four
            times the pairs of another keeps twice as many.
        least : int
            Proteins of a class that must have a word before it counts. From 2 on, no word in the memory is
            one protein's own.

        Returns
        -------
        WordMemory
            The same for the same proteins in any order.

        Raises
        ------
        UsageError
            Lengths differ, a class number is out of range, or an option is.
        """
        classes = np.asarray(class_numbers, dtype=np.int64)
        if classes.shape != (len(sequences),):
            raise UsageError(f"class_numbers of shape {classes.shape} do not fit {len(sequences)} proteins")
        if not 1 <= n_classes <= MOST_CLASSES:
            raise UsageError(f"n_classes {n_classes} is not between 1 and {MOST_CLASSES}")
        if least < 1:
            raise UsageError(f"least {least} asks for words that no protein has; give 1 or more")
        if pairs < n_classes:
            raise UsageError(f"pairs {pairs} leave none for some of {n_classes} classes; give more")
        if len(classes) and not 0 <= classes.min() <= classes.max() < n_classes:
            wrong = classes[(classes < 0) | (classes >= n_classes)][0]
            raise UsageError(f"class number {wrong} is not between 0 and n_classes - 1 = {n_classes - 1}")
        pair, total = _read_pairs(sequences, classes, n_classes)
        pair, seen = np.unique(pair, return_counts=True)
        word, kind = pair // n_classes, pair % n_classes
        shares = _group_shares(sequences)
        size = np.bincount(classes, minlength=n_classes)
        chance = np.exp(_log_chance(word, shares)) * total / max(len(sequences), 1)
        first, count = _runs(word)
        others = np.repeat(np.add.reduceat(seen, first), count) - seen if len(word) else seen
        # in how many of the class's proteins, against how many of any by chance or by sight
        weight = np.log(seen / (size[kind] + 1) / (chance + others / max(len(sequences), 1)))
        kept = np.flatnonzero(seen >= least)
        score = np.asarray(seen[kept] * np.maximum(weight[kept], 0.01), dtype=np.float64)
        best = kept[_best_of_each(kind[kept], score, pairs)]
        word, kind = word[best], kind[best]
        bits = _word_bits(n_classes)
        block = word >> bits
        blocks = (_WORDS >> bits) + 1
        log_chance = _log_chance(word, shares)
        vote, hit = _weights(log_chance), np.exp(log_chance)
        return cls(
            starts=np.concatenate([[0], np.cumsum(np.bincount(block, minlength=blocks))]),
            codes=((kind << bits) | (word & (2**bits - 1))).astype(np.uint16),
            shares=shares,
            means=np.bincount(kind, weights=vote * hit, minlength=n_classes).astype(np.float32),
            variances=np.bincount(kind, weights=vote**2 * hit, minlength=n_classes).astype(np.float32),
        )

    def votes(self, sequence: str) -> npt.NDArray[np.float32]:
        """Return the evidence ``(C,)`` of one protein; see `votes_of_all`."""
        votes: npt.NDArray[np.float32] = self.votes_of_all([sequence])[0]
        return votes

    def votes_of_all(self, sequences: Sequence[str]) -> npt.NDArray[np.float32]:
        """Weigh the words of proteins for each class.

        Parameters
        ----------
        sequences : sequence of str
            N proteins.

        Returns
        -------
        ndarray (N, C)
            Votes above chance in standard deviations of chance: about 0 without kinship, 8 and more with it.
        """
        table = np.zeros((len(sequences), self.n_classes), dtype=np.float32)
        for part, first in zip(_parts(sequences), _part_starts(sequences), strict=True):
            table[first : first + len(part)] = self._votes(part)
        return table

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return arrays that `from_tensors` reads back, block sizes in place of starts."""
        sizes = np.diff(self.starts)
        narrow = np.min_scalar_type(int(sizes.max(initial=0)))
        return {
            "sizes": sizes.astype(narrow),
            "codes": self.codes,
            "shares": self.shares,
            "means": self.means,
            "variances": self.variances,
        }

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> WordMemory:
        """Read what `to_tensors` wrote.

        Raises
        ------
        HeadFileError
            An array is missing, or has the wrong type, shape or values.
        """
        types = {"codes": "uint16", "shares": "float32", "means": "float32", "variances": "float32"}
        for name in ("sizes", *types):
            if name not in tensors:
                raise HeadFileError(f"the word memory lacks {name!r}; write it again with to_tensors()")
            kind = str(tensors[name].dtype)
            if tensors[name].ndim != 1 or kind != types.get(name, kind):
                raise HeadFileError(f"{name!r} of the word memory is {kind} {tensors[name].shape}, "
                                    f"not a row of {types.get(name, 'whole numbers')}")  # fmt: skip
        classes = len(tensors["means"])
        sizes = tensors["sizes"]
        if sizes.dtype.kind != "u" or not 1 <= classes <= 2 ** (_CODE_BITS - 1):
            raise HeadFileError(f"a word memory of {classes} classes with {sizes.dtype} sizes is damaged")
        lengths = {"sizes": (_WORDS >> _word_bits(classes)) + 1, "shares": len(_GROUPS)}
        lengths |= {"variances": classes, "codes": int(sizes.sum(dtype=np.int64))}
        for name, length in lengths.items():
            if len(tensors[name]) != length:
                raise HeadFileError(f"{name!r} of the word memory holds {len(tensors[name])}, not {length}")
        for name in ("shares", "means", "variances"):
            if not np.isfinite(tensors[name]).all():
                raise HeadFileError(f"{name!r} of the word memory holds NaN or infinity")
        if (tensors["shares"] <= 0).any() or (tensors["variances"] < 0).any():
            raise HeadFileError("a frequency or variance of the word memory is not positive")
        if (tensors["codes"] >> _word_bits(classes)).max(initial=0) >= classes:
            raise HeadFileError(f"a pair of the word memory names a class beyond the {classes} it has")
        return cls(
            starts=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
            codes=tensors["codes"],
            shares=tensors["shares"],
            means=tensors["means"],
            variances=tensors["variances"],
        )

    def _votes(self, sequences: Sequence[str]) -> npt.NDArray[np.float32]:
        word, owner = _read_words(sequences)
        vote = _weights(_log_chance(word, self.shares))
        bits = _word_bits(self.n_classes)
        first, last = self.starts[word >> bits], self.starts[(word >> bits) + 1]
        table = np.zeros(len(sequences) * self.n_classes)
        ends = np.cumsum(last - first)
        limits = np.arange(0, ends[-1], _PAIRS_AT_ONCE) if len(ends) else ends
        cuts = [*np.searchsorted(ends, limits, side="right"), len(word)]
        for low, high in itertools.pairwise(cuts):
            if high == low:
                continue
            count = last[low:high] - first[low:high]
            asked = np.repeat(np.arange(low, high), count)
            start = np.repeat(first[low:high] - np.concatenate([[0], np.cumsum(count)[:-1]]), count)
            code = self.codes[start + np.arange(len(asked))]
            same = np.flatnonzero((code & (2**bits - 1)) == (word[asked] & (2**bits - 1)))
            asked, kind = asked[same], (code[same] >> bits).astype(np.int64)
            place = owner[asked] * self.n_classes + kind
            table += np.bincount(place, weights=vote[asked], minlength=len(table))
        residues = np.bincount(owner, minlength=len(sequences))[:, None]  # words, which chance counts by
        above = table.reshape(len(sequences), self.n_classes) - residues * self.means
        return np.asarray(above / np.sqrt(residues * self.variances + _SPREAD), dtype=np.float32)


def _word_bits(n_classes: int) -> int:
    """Bits of a code that are left for the word."""
    return _CODE_BITS - max(n_classes - 1, 1).bit_length()


def _groups_of(sequences: Sequence[str]) -> npt.NDArray[np.int8]:
    table = np.full(256, -1, dtype=np.int8)
    for number, members in enumerate(_GROUPS):
        for residue in members:
            table[[ord(residue), ord(residue.lower())]] = number
    return table[np.frombuffer("".join(sequences).encode("ascii", "replace"), dtype=np.uint8)]


def _read_words(sequences: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Return the words of proteins and the place of each word's protein."""
    letters = _groups_of(sequences)
    owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    total = max(len(letters) - _SHAPE[-1], 0)
    word = np.zeros(total, dtype=np.int64)
    usable = owner[:total] == owner[_SHAPE[-1] :]
    for offset in _SHAPE:
        letter = letters[offset : offset + total]
        word = word * len(_GROUPS) + letter
        usable &= letter >= 0
    return word[usable], owner[:total][usable]


def _read_pairs(sequences: Sequence[str], classes: IntArray, n_classes: int) -> tuple[IntArray, int]:
    """Return ``word * n_classes + class``, once for each protein with the word, and the number of words."""
    pairs, total = [np.zeros(0, dtype=np.int64)], 0
    for part, first in zip(_parts(sequences), _part_starts(sequences), strict=True):
        word, owner = _read_words(part)
        total += len(word)
        own = np.unique(word * len(part) + owner)  # a repeat inside one protein is one witness
        pairs.append(own // len(part) * n_classes + classes[own % len(part) + first])
    return np.concatenate(pairs), total


def _group_shares(sequences: Sequence[str]) -> npt.NDArray[np.float32]:
    """Frequency of each group, each counted once more than seen."""
    counts = np.ones(len(_GROUPS))
    for part in _parts(sequences):
        letters = _groups_of(part)
        counts += np.bincount(letters[letters >= 0], minlength=len(_GROUPS))
    return np.asarray(counts / counts.sum(), dtype=np.float32)


def _log_chance(word: IntArray, shares: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probability of words where letters are independent."""
    log_share = np.log(shares.astype(np.float64))
    half = len(_GROUPS) ** (len(_SHAPE) // 2)  # two look-ups in tables of parts in place of seven divisions
    parts = []
    for digits in (len(_SHAPE) // 2, len(_SHAPE) - len(_SHAPE) // 2):
        table = np.zeros(1)
        for _ in range(digits):
            table = (table[:, None] + log_share).ravel()
        parts.append(table)
    low, high = parts
    chance: npt.NDArray[np.float64] = high[word // half] + low[word % half]
    return chance


def _weights(log_chance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Votes of words: the rarer, the more."""
    return np.asarray(np.maximum(np.log(_COMMON) - log_chance, _LEAST_WEIGHT), dtype=np.float64)


def _parts(sequences: Sequence[str]) -> list[Sequence[str]]:
    """Cut a list into pieces of about 65,536 residues."""
    starts = [*_part_starts(sequences), len(sequences)]
    return [sequences[a:b] for a, b in itertools.pairwise(starts)]


def _part_starts(sequences: Sequence[str]) -> list[int]:
    starts, residues = [], _RESIDUES_AT_ONCE
    for place, sequence in enumerate(sequences):
        if residues >= _RESIDUES_AT_ONCE:
            starts.append(place)
            residues = 0
        residues += len(sequence)
    return starts


def _runs(values: IntArray) -> tuple[IntArray, IntArray]:
    """Return where runs of equal values start, and their lengths."""
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else values
    return first, np.diff(np.concatenate([first, [len(values)]]))


def _best_of_each(kind: IntArray, score: npt.NDArray[np.float64], pairs: int) -> IntArray:
    """Keep the best pairs of every class, in number like the root of what it has; return their places."""
    order = np.lexsort((-score, kind))
    first, count = _runs(kind[order])
    rank = np.arange(len(order)) - np.repeat(first, count)
    low, high = 0.0, float(np.sqrt(count.max(initial=0)))
    if len(order) <= pairs:
        return np.sort(order)
    for _ in range(40):
        middle = (low + high) / 2
        fits = np.minimum(count, np.ceil(middle * np.sqrt(count))).sum() <= pairs
        low, high = (middle, high) if fits else (low, middle)
    return np.sort(order[rank < np.repeat(np.ceil(low * np.sqrt(count)), count)])
