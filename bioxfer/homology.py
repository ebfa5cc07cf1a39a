"""Homology search: which of these proteins are relatives of which.

Two proteins are linked when a local alignment between them is significant, long enough and similar enough.
Two searches find links:

``mmseqs``
    MMseqs2 (Steinegger and Söding, Nat Biotechnol 2017), where its binary is on PATH. The more sensitive.
``kmer``
    Our own. Two spaced words over a reduced alphabet (Ma et al., Bioinformatics 2002; Murphy et al., Protein
    Eng 2000) must hit one diagonal close together; where its surroundings score well, the diagonal is scored
    without gaps under BLOSUM62, and Karlin-Altschul statistics say whether the score is significant (Altschul
    et al., NAR 1997). Pairs that are likely, and fall short of a threshold, are aligned with gaps.
    Of the pairs that MMseqs2 found among 4,000 protein domains it found 59% at 30-40% identity, 94% at 40-50%
    and 99% above; after a split by it, 6% of the held-out domains had a relative in training by MMseqs2, of a
    random split 42% (``benchmarks/compare_clusters.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import ModelError, UsageError

__all__ = ["Links", "Method", "choose_method", "find_links", "normal_form"]

Method: TypeAlias = Literal["auto", "mmseqs", "kmer"]
IntArray: TypeAlias = npt.NDArray[np.int64]

_RESIDUES = "ARNDCQEGHILKMFPSTVWYX"  # X stands for everything else
_UNKNOWN = len(_RESIDUES) - 1
# Murphy et al. 2000, ten groups: relatives at 30% identity still agree in about half of their groups.
_GROUPS = ("LVIM", "C", "A", "G", "ST", "P", "FYW", "EDNQ", "KR", "H")
# Weight 6 over 10 groups: about 10^6 words, few chance hits in 10^6..10^7 residues. Spaced, because hits
# of neighbouring contiguous words are one event, not two.
_SHAPES = ((0, 1, 3, 4, 7, 9), (0, 2, 3, 6, 8, 9), (0, 1, 2, 5, 7, 8))
_APART = 40  # residues between two words that make a hit, as BLAST has it (Altschul et al. 1997)
_AROUND, _LOCAL_SCORE = 40, 22  # a segment that is significant within 150 residues squared scores 34
_MMSEQS_SHORTEST = 14  # residues; it stops where all of a side are shorter, so that our own search takes over
_OCCURRENCES = 256  # reference positions followed per word: a family of thousands is still one star
_HITS_AT_ONCE = 4_000_000  # bounds memory at a few hundred MB
# Ungapped BLOSUM62 at Robinson and Robinson's residue frequencies (Altschul and Gish 1996, table I).
_LAMBDA, _K = 0.3176, 0.134
_LAMBDA_GAPPED, _K_GAPPED = 0.267, 0.041  # gaps of 11 + 1 for each residue (the same table)
_LIKELY = 1.2  # E-value of 0.3: pairs to align with gaps
_ALIGNED = 16  # likely relatives aligned with gaps for each query
_CELLS = 16_000_000  # of one alignment, a byte each


@dataclass(frozen=True, slots=True)
class Links:
    """Pairs of related proteins, each pair of places once.

    Attributes
    ----------
    query, reference : ndarray (M,)
        Places in the two lists that were searched.
    identity : ndarray (M,)
        Identical residues over aligned residues, 0 to 1.
    coverage : ndarray (M,)
        Share of the shorter protein that lies between the alignment's ends, 0 to 1.
    score : ndarray (M,)
        Bit score of the alignment; of several between one pair the best is kept. It ranks relatives that the
        same method found; another method's bits differ.
    """

    query: IntArray
    reference: IntArray
    identity: npt.NDArray[np.float64]
    coverage: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.query)


def find_links(
    queries: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    identity: float = 0.3,
    coverage: float = 0.5,
    evalue: float = 1e-3,
    most: int = 1000,
    method: Method = "auto",
    threads: int | None = None,
) -> Links:
    """Search every query in the references and return the pairs that pass all thresholds.

    Parameters
    ----------
    queries : sequence of str
        Proteins.
    references : sequence of str, optional
        Proteins; None searches the queries among themselves, each pair once, ``reference < query``.
    identity, coverage, method, threads
        As in `cluster_sequences`.
    evalue : float
        Chance hits expected per query at most.
    most : int
        Pairs that MMseqs2 aligns per query, the likeliest; the own search has a limit of its own.

    Returns
    -------
    Links
        Sorted by query, then reference. Of a family larger than the search's limit per query not every pair
        is listed.

    Raises
    ------
    UsageError
        As in `cluster_sequences`.
    """
    for name, value in (("identity", identity), ("coverage", coverage)):
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"{name} {value} is not between 0 and 1; give a share such as 0.3")
    search = choose_method(method)
    if not any(map(normal_form, queries)) or not (references is None or any(map(normal_form, references))):
        return _no_links()
    sides = (queries, queries if references is None else references)
    shortest = min(max(map(len, proteins)) for proteins in sides)
    if search == "mmseqs" and shortest >= _MMSEQS_SHORTEST:
        return _search_mmseqs(queries, references, identity, coverage, evalue, most, threads)
    return _search_words(queries, references, identity, coverage, evalue)


def _no_links() -> Links:
    nowhere, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Links(nowhere, nowhere, nothing, nothing, nothing)


def choose_method(method: Method) -> Literal["mmseqs", "kmer"]:
    """Say what a method is on this machine, where ``auto`` is either.

    Raises
    ------
    UsageError
        No such method, or ``mmseqs`` is not on PATH.
    """
    present = shutil.which("mmseqs") is not None
    if method == "auto":
        return "mmseqs" if present else "kmer"
    if method == "mmseqs" and not present:
        raise UsageError("method 'mmseqs' needs the program mmseqs on PATH; install MMseqs2 or use 'kmer'")
    if method not in ("mmseqs", "kmer"):
        raise UsageError(f"method {method!r} is not one of auto, mmseqs, kmer")
    return method


def normal_form(sequence: str) -> str:
    """Return a sequence as the searches compare it: upper case, no white space around it."""
    return sequence.strip().upper()


# --- our own search -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Encoded:
    codes: npt.NDArray[np.uint8]  # all residues, one after the other; low-complexity runs are unknown
    whole: npt.NDArray[np.uint8]  # the same with those runs
    starts: IntArray  # (N + 1,) where each protein starts; the last is the end
    owner: IntArray  # (residues,) protein of each residue


def _encode(sequences: Sequence[str]) -> _Encoded:
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    for code, residue in enumerate(_RESIDUES):
        table[[ord(residue), ord(residue.lower())]] = code
    # "replace" turns any character outside ASCII into one '?', so a character stays one residue
    text = "".join(sequences).encode("ascii", "replace")
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    whole = table[np.frombuffer(text, dtype=np.uint8)]
    encoded = _Encoded(
        codes=whole.copy(),
        whole=whole,
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        owner=np.repeat(np.arange(len(sequences)), lengths),
    )
    _mask_low_complexity(encoded)
    return encoded


def _words(encoded: _Encoded, shape: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Return the spaced words of all proteins and the positions at which they start."""
    group = np.full(len(_RESIDUES), -1, dtype=np.int64)
    for number, members in enumerate(_GROUPS):
        for residue in members:
            group[_RESIDUES.index(residue)] = number
    grouped = group[encoded.codes]
    total = len(grouped) - shape[-1]
    if total <= 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    word = np.zeros(total, dtype=np.int64)
    valid = encoded.owner[:total] == encoded.owner[shape[-1] :]  # no word across two proteins
    for offset in shape:
        letters = grouped[offset : offset + total]
        word = word * len(_GROUPS) + letters
        valid &= letters >= 0
    # A word of one letter says composition, not kinship.
    distinct = np.zeros(total, dtype=bool)
    for offset in shape[1:]:
        distinct |= grouped[offset : offset + total] != grouped[:total]
    positions = np.flatnonzero(valid & distinct)
    return word[positions], positions


def _search_words(
    queries: Sequence[str],
    references: Sequence[str] | None,
    identity: float,
    coverage: float,
    evalue: float,
) -> Links:
    query = reference = _encode(queries)
    if references is not None:
        reference = _encode(references)
    found = [_score_hits(query, reference, *block) for block in _double_hits(query, reference)]
    segments = np.concatenate(found, axis=1)
    return _merge_segments(query, reference, segments, identity=identity, coverage=coverage, evalue=evalue)


def _double_hits(
    query: _Encoded, reference: _Encoded
) -> Iterator[tuple[IntArray, IntArray, IntArray, IntArray]]:
    """Yield, in blocks of queries, where two words hit a diagonal: ``(query, reference, place in each)``."""
    tables = []
    for shape in _SHAPES:
        words, positions = _words(reference, shape)
        order = np.argsort(words, kind="stable")
        tables.append((words[order], positions[order], *_words(query, shape)))
    spans = []
    hits = np.zeros(len(query.starts), dtype=np.int64)  # per query protein, and one to spare
    for words, _, asked, places in tables:
        low = np.searchsorted(words, asked, side="left")
        count = np.minimum(np.searchsorted(words, asked, side="right") - low, _OCCURRENCES)
        hits += np.bincount(query.owner[places], weights=count, minlength=len(hits)).astype(np.int64)
        spans.append((low, count))
    for first, last in _blocks(hits[:-1]):
        begin, end = query.starts[[first, last]].tolist()
        bits = max(end - begin, 1).bit_length()
        keys = []
        for (_, positions, _, places), (low, count) in zip(tables, spans, strict=True):
            a, b = np.searchsorted(places, [begin, end])
            n = count[a:b]
            at_query = np.repeat(places[a:b], n)
            step = np.arange(len(at_query)) - np.repeat(np.cumsum(n) - n, n)
            across = at_query - positions[np.repeat(low[a:b], n) + step]
            if query is reference:
                # the lower place is the reference: that is where the followed occurrences lie
                at_query, across = at_query[across > 0], across[across > 0]
            keys.append((across + len(reference.codes) << bits) + (at_query - begin))
        key = np.sort(np.concatenate(keys))
        # Two hits of one diagonal; the same diagonal far off belongs to other proteins, or to chance.
        close = np.flatnonzero(np.diff(key) <= _APART)
        across, at_query = key[close] >> bits, (key[close] & ((1 << bits) - 1)) + begin
        then, at_then = key[close + 1] >> bits, (key[close + 1] & ((1 << bits) - 1)) + begin
        at_reference = at_query - across + len(reference.codes)
        q, r = query.owner[at_query], reference.owner[at_reference]
        once = (across == then) & (query.owner[at_then] == q)
        once[once] &= reference.owner[(at_reference + at_then - at_query)[once]] == r[once]
        if query is reference:
            once &= r < q
        q, r, at_query, at_reference = q[once], r[once], at_query[once], at_reference[once]
        stretch = (at_query - at_reference, at_query // _AROUND, q, r)  # one look is enough for each
        seen = np.zeros(len(q), dtype=bool)
        seen[1:] = np.logical_and.reduce([np.diff(part) == 0 for part in stretch])
        q, r, at_query, at_reference = q[~seen], r[~seen], at_query[~seen], at_reference[~seen]
        yield q, r, at_query - query.starts[q], at_reference - reference.starts[r]


def _blocks(sizes: IntArray) -> Iterator[tuple[int, int]]:
    """Cut items of these sizes into runs ``(first, past the last)`` of a bounded sum each."""
    run = np.cumsum(sizes) // _HITS_AT_ONCE
    edges = [*np.flatnonzero(np.diff(run, prepend=-1)).tolist(), len(sizes)]
    yield from itertools.pairwise(edges)


def _score_hits(
    query: _Encoded,
    reference: _Encoded,
    q: IntArray,
    r: IntArray,
    q_place: IntArray,
    r_place: IntArray,
) -> IntArray:
    """Find the best ungapped segment of each diagonal that was hit, as `_score_runs` returns it.

    Most hits are chance, and tell by their surroundings; only the others' whole diagonals are scored.
    """
    before = np.minimum(np.minimum(q_place, r_place), _AROUND)
    length = np.minimum(np.diff(query.starts)[q] - q_place, np.diff(reference.starts)[r] - r_place)
    around = before + np.minimum(length, _AROUND)
    near = _score_runs(query, reference, q, r, q_place - before, r_place - before, around)
    hit = near[2] >= _LOCAL_SCORE
    q, r, shift = np.unique(np.stack([q, r, q_place - r_place])[:, hit], axis=1)
    q_first, r_first = np.maximum(shift, 0), np.maximum(-shift, 0)
    length = np.minimum(np.diff(query.starts)[q] - q_first, np.diff(reference.starts)[r] - r_first)
    return _score_runs(query, reference, q, r, q_first, r_first, length)


def _score_runs(
    query: _Encoded,
    reference: _Encoded,
    q: IntArray,
    r: IntArray,
    q_first: IntArray,
    r_first: IntArray,
    length: IntArray,
) -> IntArray:
    """Find the best ungapped segment of each run of residues along a diagonal.

    Returns
    -------
    numpy.ndarray
        ``(8, M)``: query, reference, score, identical residues, start and end in the query, start and end in
        the reference.
    """
    matrix = _substitution_scores()
    q_start, r_start = query.starts[q] + q_first, reference.starts[r] + r_first
    found = [np.zeros((8, 0), dtype=np.int64)]
    for first, last in _blocks(length):
        part = slice(first, last)
        n = length[part]
        head = np.cumsum(n + 1) - (n + 1)  # one slot before each diagonal: "nothing aligned yet"
        place = np.arange(int((n + 1).sum()))
        a = query.codes[np.maximum(place + np.repeat(q_start[part] - head - 1, n + 1), 0)]
        b = reference.codes[np.maximum(place + np.repeat(r_start[part] - head - 1, n + 1), 0)]
        gain = matrix[a, b]
        same = (a == b) & (a != _UNKNOWN)
        # Falling by more than a diagonal can gain makes each head a new lowest point, so that one running
        # minimum over all diagonals is a minimum within each.
        gain[head] = -12 * (int(n.max()) + 1)
        same[head] = False
        total, matches = np.cumsum(gain, dtype=np.int32), np.cumsum(same, dtype=np.int32)
        lowest = np.minimum.accumulate(total)
        lowest_at = np.maximum.accumulate(np.where(total == lowest, place, 0))
        best = np.maximum.reduceat((total - lowest) * np.int64(len(total)) + place, head)
        score, end = np.divmod(best, len(total))
        start = lowest_at[end]
        found.append(
            np.stack(
                [
                    q[part],
                    r[part],
                    score,
                    matches[end] - matches[start],
                    q_first[part] + start - head,
                    q_first[part] + end - head,
                    r_first[part] + start - head,
                    r_first[part] + end - head,
                ]
            )
        )
    return np.concatenate(found, axis=1)


@cache
def _substitution_scores() -> npt.NDArray[np.int32]:
    from Bio.Align import substitution_matrices

    blosum62 = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    scores = np.array([[int(blosum62[a, b]) for b in _RESIDUES] for a in _RESIDUES], dtype=np.int32)
    scores[_UNKNOWN, :] = scores[:, _UNKNOWN] = -1
    return scores


def _merge_segments(
    query: _Encoded,
    reference: _Encoded,
    segments: IntArray,
    *,
    identity: float,
    coverage: float,
    evalue: float,
) -> Links:
    """Join the segments of each pair and keep the pairs that pass the thresholds."""
    q_length, r_length = np.diff(query.starts), np.diff(reference.starts)
    q, r, score = segments[:3]
    # A segment must be unlikely within its own pair; the best one within the whole search (E-value).
    within_pair = _LAMBDA * score - np.log(_K * q_length[q] * r_length[r])
    segments = segments[:, within_pair > -np.log(0.05)]
    if not segments.shape[1]:
        return _no_links()
    pair = segments[0] * len(r_length) + segments[1]
    segments = segments[:, np.argsort(pair, kind="stable")]
    q, r, score, same, q_start, q_end, r_start, r_end = segments
    first = np.flatnonzero(np.diff(q * len(r_length) + r, prepend=-1))
    q, r = q[first], r[first]
    best = np.maximum.reduceat(score, first)
    excess = _LAMBDA * best - np.log(_K * q_length[q] * float(r_length.sum()))
    q_span = np.maximum.reduceat(q_end, first) - np.minimum.reduceat(q_start, first)
    r_span = np.maximum.reduceat(r_end, first) - np.minimum.reduceat(r_start, first)
    covered = np.where(q_length[q] <= r_length[r], q_span / q_length[q], r_span / r_length[r])
    aligned = np.add.reduceat(q_end - q_start, first)
    identical = np.add.reduceat(same, first) / aligned
    # Segments of a repeat lie over one another: residues aligned twice must not score twice.
    once = np.minimum(1.0, np.minimum(q_span, r_span) / aligned)
    bits = (_LAMBDA * np.maximum(best, once * np.add.reduceat(score, first)) - np.log(_K)) / np.log(2)
    keep = (excess >= -np.log(evalue)) & (identical >= identity) & (covered >= coverage)
    # Gaps cost remote relatives their coverage or significance: align those that are likely, best first.
    likely = np.flatnonzero(~keep & (excess >= _LIKELY) & (q_length[q] * r_length[r] <= _CELLS))
    likely = likely[np.argsort(-best[likely], kind="stable")]
    likely = likely[_rank_within(q[likely]) < _ALIGNED]
    for place in likely.tolist():
        found = _align(_part(query, int(q[place])), _part(reference, int(r[place])))
        chance = _LAMBDA_GAPPED * found.score - np.log(_K_GAPPED * q_length[q[place]] * float(r_length.sum()))
        identical[place], covered[place] = found.identity, found.coverage
        bits[place] = (_LAMBDA_GAPPED * found.score - np.log(_K_GAPPED)) / np.log(2)
        keep[place] = chance >= -np.log(evalue) and found.identity >= identity and found.coverage >= coverage
    return Links(q[keep], r[keep], identical[keep], covered[keep], bits[keep])


def _rank_within(owner: IntArray) -> IntArray:
    """Count, for each item, the earlier ones of the same owner."""
    order = np.argsort(owner, kind="stable")
    _, first, count = np.unique(owner[order], return_index=True, return_counts=True)
    rank = np.empty(len(owner), dtype=np.int64)
    rank[order] = np.arange(len(owner)) - np.repeat(first, count)
    return rank


def _part(encoded: _Encoded, number: int) -> str:
    """Return a protein with its low-complexity runs: they start no alignment, but may be part of one."""
    codes = encoded.whole[encoded.starts[number] : encoded.starts[number + 1]]
    return "".join(_RESIDUES[code] for code in codes)


@dataclass(frozen=True, slots=True)
class _Alignment:
    score: float
    identity: float
    coverage: float  # of the shorter protein, between the alignment's ends


def _align(query: str, reference: str) -> _Alignment:
    """Align two proteins locally, with gaps (Smith and Waterman 1981; Gotoh 1982)."""
    alignments = _aligner().align(query, reference)
    if not alignments.score > 0:
        return _Alignment(0.0, 0.0, 0.0)
    blocks_q, blocks_r = next(iter(alignments)).aligned
    same = sum(
        a == b != "X"
        for (q_start, q_end), (r_start, r_end) in zip(blocks_q, blocks_r, strict=True)
        for a, b in zip(query[q_start:q_end], reference[r_start:r_end], strict=True)
    )
    q_span, r_span = (int(blocks[-1][1] - blocks[0][0]) for blocks in (blocks_q, blocks_r))
    paired = int((blocks_q[:, 1] - blocks_q[:, 0]).sum())
    columns = q_span + r_span - paired
    covered = q_span / len(query) if len(query) <= len(reference) else r_span / len(reference)
    return _Alignment(float(alignments.score), same / columns, covered)


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    scores = substitution_matrices.Array(alphabet=_RESIDUES, dims=2)  # type: ignore[no-untyped-call]
    scores[:, :] = _substitution_scores()
    aligner: Any = PairwiseAligner(mode="local", substitution_matrix=scores)  # type: ignore[no-untyped-call]
    aligner.open_gap_score, aligner.extend_gap_score = -12, -1  # 11 to open and 1 for each residue
    return aligner


def _mask_low_complexity(encoded: _Encoded) -> None:
    """Set runs of few different residues to unknown: they look alike without being related.

    A window of 12 residues with an entropy of at most 2.2 bits is such a run, as in SEG (Wootton and
    Federhen, Comput Chem 1993).
    """
    window, threshold = 12, 2.2
    codes = encoded.codes
    total = len(codes) - window + 1
    if total <= 0:
        return
    counts = np.arange(window + 1)
    term = np.where(counts > 0, -counts / window * np.log2(np.maximum(counts, 1) / window), 0).astype(
        np.float32
    )
    entropy = np.zeros(total, dtype=np.float32)
    for code in range(len(_RESIDUES)):
        seen = np.concatenate([[0], np.cumsum(codes == code, dtype=np.int32)])
        entropy += term[seen[window:] - seen[:-window]]
    low = (entropy <= threshold) & (encoded.owner[:total] == encoded.owner[window - 1 :])
    opened = np.zeros(len(codes) + 1, dtype=np.int32)
    opened[:total] += low
    opened[window : window + total] -= low
    codes[np.cumsum(opened)[:-1] > 0] = _UNKNOWN


# --- MMseqs2 --------------------------------------------------------------------------------------------


def _search_mmseqs(
    queries: Sequence[str],
    references: Sequence[str] | None,
    identity: float,
    coverage: float,
    evalue: float,
    most: int,
    threads: int | None,
) -> Links:
    with tempfile.TemporaryDirectory(prefix="bioxfer-mmseqs-") as folder:
        place = Path(folder)
        _write_numbered(place / "q.fasta", queries)
        if references is not None:
            _write_numbered(place / "r.fasta", references)
        target = "q.fasta" if references is None else "r.fasta"
        command = ["mmseqs", "easy-search", "q.fasta", target, "hits.tsv", "tmp", "--dbtype", "1"]
        command += ["-e", str(evalue), "--max-seqs", str(most), "-v", "1"]
        command += ["--format-output", "query,target,fident,qcov,tcov,bits,qlen,tlen"]
        command += ["--threads", str(threads or os.cpu_count() or 1)]
        wrong = _run_mmseqs(command, place)
        if not wrong:
            try:
                q, r, numbers = _read_hits(place / "hits.tsv", len(queries), len(references or queries))
            except FileNotFoundError:
                wrong = "mmseqs easy-search wrote no hits.tsv"
            except ValueError:
                wrong = "mmseqs easy-search wrote hits that cannot be read"
        if wrong:
            raise ModelError(f"{wrong}; use method 'kmer', which needs no mmseqs")
    if not len(q):
        return _no_links()
    identical, q_cov, r_cov, bits, q_len, r_len = numbers.T
    covered = np.where(q_len <= r_len, q_cov, r_cov)
    if references is None:  # found from either side, or from both
        q, r = np.maximum(q, r), np.minimum(q, r)
    keep = np.flatnonzero(
        (identical >= identity) & (covered >= coverage) & ((references is not None) | (r < q))
    )
    keep = keep[np.argsort(-bits[keep], kind="stable")]  # the better of two directions stands first
    pair = q[keep] * (r.max() + 1) + r[keep]
    keep = keep[np.unique(pair, return_index=True)[1]]
    return Links(q[keep], r[keep], identical[keep], covered[keep], bits[keep])


def _run_mmseqs(command: Sequence[str], place: Path) -> str:
    """Run the program, and tell what went wrong, if anything did."""
    try:
        run = subprocess.Popen(
            command,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # to end the programs it starts with it; a SIGKILL of ours ends neither
        )
    except OSError as error:
        return f"mmseqs cannot be started ({error.strerror})"
    try:
        out, err = run.communicate()
    except BaseException:
        with contextlib.suppress(OSError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()  # until all have let go of the folder, which is removed next
        raise
    if run.returncode < 0:
        return f"mmseqs easy-search was killed by signal {-run.returncode}"
    reason = (err.strip() or out.strip() or "no message").splitlines()[-1]
    return f"mmseqs easy-search ended with status {run.returncode} ({reason})" if run.returncode else ""


def _read_hits(path: Path, queries: int, references: int) -> tuple[Any, Any, npt.NDArray[np.float64]]:
    """Return query numbers, reference numbers and the six columns after them; ValueError if they are none."""
    rows = [line.split("\t") for line in path.read_text(encoding="ascii").splitlines()]
    if any(len(row) != 8 for row in rows):
        raise ValueError("not eight columns")
    q, r = (np.array([int(row[side].removeprefix("s")) for row in rows], dtype=np.int64) for side in (0, 1))
    numbers = np.array([row[2:] for row in rows], dtype=np.float64).reshape(len(rows), 6)
    strange = (q < 0) | (q >= queries) | (r < 0) | (r >= references) | ~np.isfinite(numbers).all(axis=1)
    if strange.any():
        raise ValueError("numbers out of range")
    return q, r, numbers


def _write_numbered(path: Path, sequences: Sequence[str]) -> None:
    """Write FASTA under names of our own, since MMseqs2 cuts names it takes for database accessions."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        for i, sequence in enumerate(sequences):
            residues = "".join(c if c in _RESIDUES else "X" for c in normal_form(sequence))
            if residues:
                file.write(f">s{i}\n{residues}\n")
