"""Homology clusters, and folds that keep relatives together.

A random split puts cousins on both sides and measures memory. Here the connected components of the links that
`bioxfer.homology` finds are the groups for every fold, interval and hold-out of bioxfer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from bioxfer.errors import LabelError, UsageError
from bioxfer.homology import Method, choose_method, find_links, normal_form
from bioxfer.quoting import plain_label

if TYPE_CHECKING:
    from bioxfer.sequences import SequenceRecord

__all__ = ["HomologyKFold", "cluster_records", "cluster_sequences", "homology_split", "shares_homology"]

IntArray: TypeAlias = npt.NDArray[np.int64]

log = logging.getLogger("bioxfer")

_CLASSES_NAMED = 5  # in a message before it says "..."
_LONGEST_CLASS = 100  # characters of a class's name on average; what is longer is of residues


def cluster_sequences(
    sequences: Sequence[str],
    *,
    identity: float = 0.3,
    coverage: float = 0.5,
    method: Method = "auto",
    threads: int | None = None,
) -> IntArray:
    """Group proteins so that no two groups hold detectable relatives.

    Clusters are connected components (single linkage), so that a split by cluster leaves no link between its
    sides; a greedy or set-cover clustering does not promise that.

    Parameters
    ----------
    sequences : sequence of str
        N proteins; lower case and unknown letters are allowed, empty ones stand alone.
    identity : float
        Least share of identical residues in the alignment, 0 to 1.
    coverage : float
        Least share of the shorter protein inside the alignment, 0 to 1.
    method : {"auto", "mmseqs", "kmer"}
        ``auto`` takes MMseqs2 where its binary ``mmseqs`` is on PATH, else our own k-mer search.
    threads : int, optional
        Threads of MMseqs2; the k-mer search has one.

    Returns
    -------
    ndarray (N,)
        Cluster numbers from 0, in order of first appearance.

    Raises
    ------
    UsageError
        A threshold is out of range, or ``mmseqs`` is asked for and not there.

    Examples
    --------
    >>> cluster_sequences(["MKTAYIAKQRQISFVKSHFSRQ", "GGSGGSPPWW", "MKTAYIAKQRQISFVKSHFSRQ"], method="kmer")
    array([0, 1, 0])
    """
    unique, places = _distinct(sequences)
    links = find_links(unique, identity=identity, coverage=coverage, method=method, threads=threads)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(links), dtype=bool)
    graph = coo_matrix((ones, (links.query, links.reference)), shape=(len(unique), len(unique)))
    _, component = connected_components(graph, directed=False)
    return _in_order_of_appearance(component[places]) if len(places) else np.zeros(0, dtype=np.int64)


def cluster_records(
    records: Sequence[SequenceRecord],
    sequences: Sequence[str],
    *,
    identity: float = 0.3,
    method: Method = "auto",
    threads: int | None = None,
) -> tuple[IntArray, str]:
    """Group labelled records by homology, or as their table's column ``cluster`` does.

    Parameters
    ----------
    records : sequence of SequenceRecord
        N records.
    sequences : sequence of str
        Their residues after cleaning.
    identity, method, threads
        As in `cluster_sequences`; not asked for where the table tells.

    Returns
    -------
    tuple of ndarray (N,) and str
        Cluster numbers, and what made them: ``mmseqs``, ``kmer`` or ``given``.

    Raises
    ------
    LabelError
        Some records have a cluster and others have none.
    UsageError
        As in `cluster_sequences`.
    """
    named = [record.cluster for record in records]
    if not any(named):
        finder = choose_method(method)
        return cluster_sequences(sequences, identity=identity, method=finder, threads=threads), finder
    for record in records:
        if not record.cluster:
            raise LabelError(f"{record.place} has no cluster while others have; fill or drop the column")
    return _in_order_of_appearance(np.array(named)), "given"


def shares_homology(
    queries: Sequence[str],
    references: Sequence[str],
    *,
    identity: float = 0.25,
    coverage: float = 0.3,
    method: Method = "auto",
    threads: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Tell which queries have a likely relative among the references.

    Made to keep everything that resembles a test protein out of training data, so its thresholds are looser
    than those of `cluster_sequences`: a shared domain is enough.

    Parameters
    ----------
    queries, references : sequence of str
        Proteins. Memory grows with the references' residues, time with both.
    identity, coverage, method, threads
        As in `cluster_sequences`.

    Returns
    -------
    ndarray (len(queries),)
        True where a relative was found. An equal sequence always is one.

    Raises
    ------
    UsageError
        As in `cluster_sequences`.

    Examples
    --------
    >>> shares_homology(["MKTAYIAKQRQISFVKSHFSRQ", "GGSGGSPPWW"], ["MKTAYIAKQRQISFVKSHFSRQ"], method="kmer")
    array([ True, False])
    """
    unique, places = _distinct(queries)
    known = {normal_form(sequence) for sequence in references}
    links = find_links(
        unique,
        _distinct(references)[0],
        identity=identity,
        coverage=coverage,
        method=method,
        threads=threads,
    )
    related = np.fromiter((bool(s) and s in known for s in unique), dtype=bool, count=len(unique))
    related[links.query] = True
    return related[places]


def _distinct(sequences: Sequence[str]) -> tuple[list[str], IntArray]:
    """Return the different sequences and, per input, the place of its own among them.

    Empty sequences are relatives of nobody, so each keeps its own place.
    """
    place: dict[str | int, int] = {}
    places = np.empty(len(sequences), dtype=np.int64)
    unique: list[str] = []
    for i, sequence in enumerate(sequences):
        normal = normal_form(sequence)
        key: str | int = normal or i
        if key not in place:
            place[key] = len(unique)
            unique.append(normal)
        places[i] = place[key]
    return unique, places


def _in_order_of_appearance(labels: npt.NDArray[Any]) -> IntArray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


class HomologyKFold:
    """Cross-validation folds that keep relatives together, for scikit-learn's ``cv=``.

    Clusters are dealt, largest first, to the fold that lacks their labels most, so folds are alike in size
    and in class counts. No cluster is cut for that: a class with fewer clusters than there are folds is
    missing in some test folds, and one that is missing in a training fold too is named in a warning.

    Parameters
    ----------
    n_splits : int
        Number of folds, at least 2; each holds one cluster or more.
    seed : int
        Order in which clusters of equal size are dealt.
    identity, coverage, method
        As in `cluster_sequences`; used where `split` gets sequences and no groups.

    Examples
    --------
    >>> folds = HomologyKFold(2, method="kmer").split(["MKTAYIAKQRQ", "MKTAYIAKQRQ", "WWPPGGSS", "WWPPGGSS"])
    >>> [test.tolist() for _, test in folds]
    [[0, 1], [2, 3]]
    """

    def __init__(
        self,
        n_splits: int = 5,
        *,
        seed: int = 0,
        identity: float = 0.3,
        coverage: float = 0.5,
        method: Method = "auto",
    ) -> None:
        self.n_splits = n_splits
        self.seed = seed
        self.identity = identity
        self.coverage = coverage
        self.method = method

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """Return the number of folds."""
        return self.n_splits

    def split(
        self, X: Sequence[Any], y: Any = None, groups: npt.ArrayLike | None = None
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """Yield ``(train, test)`` places, fold by fold.

        Parameters
        ----------
        X : sequence
            N strings or records; with ``groups`` anything of length N.
        y : array-like (N,) or (N, C), or N lists, optional
            Class labels to balance; or a matrix of 0 and 1, dense or sparse, whose every column is balanced,
            or lists of labels, likewise. Numbers, and labels or numbers of residues, are not balanced.
        groups : array-like (N,), optional
            Cluster of each; None clusters the sequences.

        Raises
        ------
        UsageError
            Fewer than 2 folds, fewer clusters than folds, labels or groups of another length than X, or a
            threshold that is out of range.
        """
        if self.n_splits < 2:
            raise UsageError(f"n_splits {self.n_splits} makes no folds; give 2 or more")
        if groups is None:
            groups = cluster_sequences(
                [getattr(x, "sequence", x) for x in X],
                identity=self.identity,
                coverage=self.coverage,
                method=self.method,
            )
        clusters = np.asarray(groups)
        if clusters.shape != (len(X),):
            raise UsageError(f"groups {clusters.shape} do not fit {len(X)} proteins; give one cluster each")
        named = _memberships(y, len(X), lengths=_lengths(X))
        shares = np.full(self.n_splits, 1 / self.n_splits)
        fold = _deal_clusters(clusters, named[1], shares, self.seed, what="folds")
        _warn_of_absent_classes(*named, fold)
        for number in range(self.n_splits):
            yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def homology_split(
    groups: npt.ArrayLike,
    *,
    valid: float = 0.15,
    test: float = 0.0,
    dev: float = 0.0,
    seed: int = 0,
    y: Any = None,
) -> npt.NDArray[np.str_]:
    """Hold out whole clusters for validation, and for two more parts if they are asked for.

    Parameters
    ----------
    groups : array-like (N,)
        Cluster of each protein.
    valid, test, dev : float
        Shares of the proteins to hold out, from 0 to below 1; a part of share 0 is not there.
    seed : int
        Order in which clusters of equal size are dealt.
    y : array-like (N,) or (N, C), or N lists, optional
        Class labels to balance between the parts, as in `HomologyKFold.split`.

    Returns
    -------
    ndarray (N,)
        ``"train"``, ``"dev"``, ``"valid"`` or ``"test"`` for each protein.

    Raises
    ------
    UsageError
        The shares are out of range, leave nothing for training, or there are fewer clusters than parts.

    Examples
    --------
    >>> homology_split([0, 0, 0, 1, 2], valid=0.2, test=0.2).tolist()
    ['train', 'train', 'train', 'test', 'valid']
    """
    asked = {"dev": dev, "valid": valid, "test": test}
    for name, share in asked.items():
        if not 0.0 <= share < 1.0:
            raise UsageError(f"{name} {share} is not between 0 and 1; give a share such as 0.15")
    held = sum(asked.values())
    if not 0.0 < held < 1.0:
        raise UsageError(
            f"dev {dev}, valid {valid} and test {test} sum to {held:g}; they must hold out more than 0 and "
            "less than 1, such as 0.15"
        )
    shares = {"train": 1.0 - held} | {name: share for name, share in asked.items() if share}
    clusters = np.asarray(groups)
    _, member = _memberships(y, len(clusters))
    part = _deal_clusters(clusters, member, np.array(list(shares.values())), seed, what="parts")
    return np.array(list(shares))[part]


def _deal_clusters(
    groups: npt.NDArray[Any],
    member: npt.NDArray[np.bool_],
    shares: npt.NDArray[np.float64],
    seed: int,
    *,
    what: Literal["folds", "parts"],
) -> IntArray:
    """Deal clusters to folds of the given shares; return the fold of every protein.

    ``member``: ``(N, C)``, who is in which class to balance; ``what``: the folds' name in a message.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        remedy = "use fewer folds" if what == "folds" else "hold out fewer parts"
        raise UsageError(
            f"{len(groups)} proteins in {len(names)} homology clusters cannot fill {len(shares)} {what}; "
            f"{remedy}, use a higher identity threshold or more diverse proteins"
        )
    counts = [np.bincount(group)]  # all proteins count as one more class, so that sizes even out too
    for column in member.T:
        counts.append(np.bincount(group, weights=column, minlength=len(names)))
    table = np.stack(counts, axis=1).astype(np.float64)
    table /= table.sum(axis=0)  # (clusters, classes): share of each class
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[0][order], kind="stable")]
    filled = np.zeros((len(shares), table.shape[1]))
    fold = np.empty(len(names), dtype=np.int64)
    for cluster in order:
        added = table[cluster]
        # Growth of sum((filled / share)^2 * share): least where the fold lacks these classes most.
        fold[cluster] = target = int(np.argmin(((2 * filled + added) * added).sum(axis=1) / shares))
        filled[target] += added
    for empty in np.setdiff1d(np.arange(len(shares)), fold):
        fullest = int(np.argmax(np.bincount(fold, minlength=len(shares))))
        fold[np.flatnonzero(fold == fullest)[-1]] = empty
    return fold[group]


def _memberships(
    y: Any, n: int, *, lengths: Sequence[int] | None = None
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Return names of the classes to balance, and who is in which, ``(N, C)``.

    None are balanced where there are no labels, where they are continuous or of residues, or where most
    differ. ``lengths``: of the proteins, if known.
    """
    nobody: tuple[list[str], npt.NDArray[np.bool_]] = [], np.zeros((n, 0), dtype=bool)
    if y is None:
        return nobody
    if hasattr(y, "toarray"):  # a sparse matrix has no length
        y = y.toarray()
    if (lists := _as_lists(y)) is not None:
        if len(lists) != n:
            raise UsageError(f"{len(lists)} labels do not fit {n} proteins; give a label or a row each")
        if any(isinstance(name, str) for each in lists for name in each):
            names = sorted({str(name) for each in lists for name in each})
            order = {name: place for place, name in enumerate(names)}
            member = np.zeros((n, len(order)), dtype=bool)
            for row, each in enumerate(lists):
                member[row, [order[str(name)] for name in each]] = True
            return names, member
        if len({len(each) for each in lists}) != 1:
            return nobody
        y = lists
    target = np.asarray(y)
    if target.ndim not in (1, 2) or len(target) != n:
        raise UsageError(
            f"labels of shape {target.shape} do not fit {n} proteins; give a label or a row each"
        )
    if target.ndim == 2:
        if not np.isin(target, (0, 1)).all():
            return nobody
        member = target.astype(bool)
        present = np.flatnonzero(member.any(axis=0))
        return [f"column {column}" for column in present], member[:, present]
    if target.dtype.kind == "f":
        return nobody
    texts = target.astype(str)
    sizes = np.char.str_len(texts)
    if sizes.sum() > _LONGEST_CLASS * n or (lengths is not None and sizes.tolist() == list(lengths)):
        return nobody
    classes, label = np.unique(texts, return_inverse=True)
    if 2 * len(classes) > max(n, 10):  # numbers by another name; few proteins may well differ in class
        return nobody
    return classes.tolist(), label[:, None] == np.arange(len(classes))


def _as_lists(y: Any) -> list[list[Any]] | None:
    """Return lists of labels or numbers, one for each protein; None where ``y`` is none of lists."""
    if isinstance(y, np.ndarray) and y.dtype.kind != "O":
        return None
    if hasattr(y, "columns") or isinstance(y, (str, bytes)):  # a table is a matrix
        return None
    kinds = (list, tuple, set, frozenset, np.ndarray)
    rows = list(y)
    if not rows or not all(isinstance(each, kinds) for each in rows):
        return None
    if any(isinstance(each, np.ndarray) and each.ndim != 1 for each in rows):
        return None
    return [list(each) for each in rows]


def _lengths(X: Sequence[Any]) -> list[int] | None:
    """Return the residues of each protein; None where ``X`` is something else."""
    texts = [getattr(x, "sequence", x) for x in X]
    return [len(text) for text in texts] if all(isinstance(text, str) for text in texts) else None


def _warn_of_absent_classes(names: Sequence[str], member: npt.NDArray[np.bool_], fold: IntArray) -> None:
    """Name the classes that are whole in one fold: its classifier has never seen what it is tested on."""
    whole = [
        name for name, column in zip(names, member.T, strict=True) if len(set(fold[column].tolist())) == 1
    ]
    if whole and len(names) > 1:
        log.warning(
            "classes that are in one homology cluster, or in few that one fold took, are missing in that "
            "fold's training: %s; use fewer folds or add diverse proteins of them",
            ", ".join(map(plain_label, whole[:_CLASSES_NAMED])) + ", ..." * (len(whole) > _CLASSES_NAMED),
        )
