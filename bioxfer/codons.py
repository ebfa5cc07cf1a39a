"""Codons: the genetic codes, and how a coding sequence is read by one of them.

Shapes and names are those of Biopython's copy of NCBI's tables; the reading of whole files is in
:mod:`bioxfer.genes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bioxfer.errors import UsageError
from bioxfer.sequences import remove_white_space

__all__ = [
    "LETTERS",
    "NO_NUCLEOTIDE",
    "as_dna",
    "code_arrays",
    "count_ambiguous",
    "read_coding",
    "read_genetic_code",
    "reverse_complement",
]

LETTERS = "ACGTRYSWKMBDHVN"
"""The four nucleotides of DNA and their IUPAC ambiguity codes."""

_UPPER = str.maketrans(ascii_lowercase + "Uu", ascii_uppercase + "TT")
_COMPLEMENT = str.maketrans(LETTERS, "TGCAYRSWMKVHDBN")
NO_NUCLEOTIDE = re.compile(f"[^{LETTERS}]")
"""Finds what is not one of the IUPAC codes of DNA, in upper case."""


def as_dna(sequence: str) -> str:
    """Return DNA or RNA in upper case, with T for U, without white space."""
    # Of ASCII alone: to str.upper(), the one letter "ß" is SS, two codes of nucleotides.
    return remove_white_space(sequence).translate(_UPPER)


def reverse_complement(text: str) -> str:
    """Return the other strand of upper case DNA, from its own 5' end.

    Examples
    --------
    >>> reverse_complement("ATGNR")
    'YNCAT'
    """
    return text.translate(_COMPLEMENT)[::-1]


def read_coding(
    text: str,
    table: int,
    *,
    codon_start: int = 1,
    open_start: bool = False,
    open_end: bool = False,
    exceptions: Mapping[int, str] | None = None,
) -> tuple[str, list[str]]:
    """Read codons, from 5' to 3', and tell what was odd.

    Parameters
    ----------
    text : str
        Upper case DNA, N nucleotides.
    table : int
        NCBI's number of the genetic code.
    codon_start : {1, 2, 3}, optional
        Nucleotide at which the first whole codon begins.
    open_start, open_end : bool, optional
        Whether the true ends are known to lie outside.
    exceptions : mapping of int to str, optional
        Residue, or ``*`` of a stop, of the codon that begins that many nucleotides after the first.

    Returns
    -------
    protein : str
        Without its final stop; M for a start codon that begins it. An inner stop is ``*``.
    oddities : list of str
        Empty if there are none.
    """
    codons, starts, stops = read_genetic_code(table)
    given = exceptions or {}
    shift = codon_start - 1
    over = (len(text) - shift) % 3 if len(text) > shift else 0
    end = len(text) - over
    parts = [text[place : place + 3] for place in range(shift, end, 3)]
    protein = [codons.get(codon, "X") for codon in parts]
    for place, residue in given.items():
        number, beside = divmod(place - shift, 3)
        if not beside and 0 <= number < len(protein):
            protein[number] = residue
    oddities = []
    # The poly-A tail may complete a stop codon, which the annotation then says.
    completed = bool(over) and given.get(end) == "*"
    last = end - 3
    whole = not over and bool(parts) and (given[last] == "*" if last in given else parts[-1] in stops)
    if whole:
        parts.pop()
        protein.pop()
        if not parts:
            oddities.append("a stop codon alone")
    first = protein[0] if parts else "M"
    if not open_start and codon_start == 1 and parts and shift not in given:
        if parts[0] not in starts:
            oddities.append("no start codon")
        elif first != "M":
            oddities.append(f"start codon {parts[0]} read as M")
            protein[0] = "M"
    if not (whole or completed or open_end):
        oddities.append("no stop codon")
    if over and not completed and not open_end:
        oddities.append(f"an incomplete last codon ({over} of 3 nucleotides) left out")
    inner = protein.count("*")
    if inner:
        oddities.append(f"{inner} stop codon{'s' * (inner > 1)} inside")
    return "".join(protein), [*oddities, *count_ambiguous(protein)]


def count_ambiguous(protein: Iterable[str]) -> list[str]:
    """Word how many residues of a protein are X because their codon may be several; nothing if none."""
    number = sum(residue == "X" for residue in protein)
    return [f"{number} ambiguous codon{'s' * (number > 1)} read as X"] if number else []


@lru_cache(maxsize=64)  # NCBI has 27, and one file of mitochondria ten of them
def read_genetic_code(table: int) -> tuple[Mapping[str, str], frozenset[str], frozenset[str]]:
    """Look a genetic code up in Biopython's copy of NCBI's tables.

    Returns
    -------
    codons : mapping of str to str
        Amino acid, or ``*``, of each codon, ambiguous ones included where their meaning is not.
    starts, stops : frozenset of str
        Codons that begin and end a protein; some codes have codons that both end it and mean a residue.

    Raises
    ------
    UsageError
        There is no such genetic code.
    """
    from itertools import product

    from Bio.Data.CodonTable import TranslationError, ambiguous_dna_by_id

    if table not in ambiguous_dna_by_id:
        known = ", ".join(map(str, sorted(ambiguous_dna_by_id)))
        raise UsageError(f"there is no genetic code {table}; NCBI numbers them {known}")
    code = ambiguous_dna_by_id[table]
    stops = frozenset(code.stop_codons)
    codons = {}
    for letters in product(LETTERS, repeat=3):
        codon = "".join(letters)
        try:
            codons[codon] = code.forward_table[codon]
        except (KeyError, TranslationError):  # a stop codon; or more than one meaning
            if codon in stops:
                codons[codon] = "*"
    return MappingProxyType(codons), frozenset(code.start_codons), stops


@lru_cache(maxsize=64)  # NCBI has 27, and one file of mitochondria ten of them
def code_arrays(
    table: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the same as arrays, over all codons of the 15 letters in their order.

    Returns
    -------
    residues : ndarray of uint8
        As bytes; ``*`` of every codon that may end a protein.
    starts, stops : ndarray of bool
        Whether it may begin a protein, and end one.
    """
    codons, starts, stops = read_genetic_code(table)
    every = [a + b + c for a in LETTERS for b in LETTERS for c in LETTERS]
    residues = "".join("*" if codon in stops else codons.get(codon, "X") for codon in every)
    return (
        np.frombuffer(residues.encode("ascii"), dtype=np.uint8),
        np.array([codon in starts and codon not in stops for codon in every]),
        np.array([codon in stops for codon in every]),
    )
