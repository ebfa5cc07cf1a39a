"""How good a head is: metrics, intervals over homology clusters, calibration, baselines' features, leakage.

Relatives are not independent witnesses, so intervals come from resampling whole clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from bioxfer.errors import UsageError
from bioxfer.homology import Method, find_links, normal_form

__all__ = [
    "Leakage",
    "SummedMetrics",
    "WeighedMetrics",
    "audit_leakage",
    "classification_metrics",
    "cluster_bootstrap",
    "composition",
    "confusion_matrix",
    "dipeptides",
    "draw_metric",
    "draw_statistics",
    "draw_sums",
    "expected_calibration_error",
    "fit_temperature",
    "interval",
    "log_loss",
    "log_softmax",
    "regression_metrics",
    "score_answers",
    "score_beside",
    "score_gain",
    "score_predictions",
]

FloatArray: TypeAlias = npt.NDArray[np.float64]
Metrics: TypeAlias = Callable[[npt.NDArray[Any], npt.NDArray[Any]], dict[str, float]]

_AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


@runtime_checkable
class SummedMetrics(Protocol):
    """Metrics that need nothing but sums over proteins, so that a draw of the bootstrap only adds up."""

    def __call__(self, y: npt.NDArray[Any], p: npt.NDArray[Any], /) -> dict[str, float]:
        """Score predictions, as all metrics do."""
        ...

    def count(self, y: npt.NDArray[Any], p: npt.NDArray[Any], /) -> FloatArray:
        """Return what each of N proteins adds to the K sums ``(N, K)``."""
        ...

    def score(self, sums: FloatArray, /) -> dict[str, FloatArray]:
        """Turn B times K sums ``(B, K)`` into B values of each metric."""
        ...


@runtime_checkable
class WeighedMetrics(Protocol):
    """Metrics that can count each protein several times, so that a draw of the bootstrap copies no rows."""

    def __call__(self, y: npt.NDArray[Any], p: npt.NDArray[Any], /) -> dict[str, float]:
        """Score predictions, as all metrics do."""
        ...

    def weigh(
        self, y: npt.NDArray[Any], p: npt.NDArray[Any], /
    ) -> Callable[[npt.NDArray[np.int64]], dict[str, float]]:
        """Return what scores N proteins by how often each is there ``(N,)``."""
        ...


def confusion_matrix(y: npt.ArrayLike, p: npt.ArrayLike, n_classes: int) -> npt.NDArray[np.int64]:
    """Count ``(C, C)``: row the true class, column the predicted one."""
    cell = np.asarray(y, dtype=np.int64) * n_classes + np.asarray(p, dtype=np.int64)
    return np.bincount(cell, minlength=n_classes**2).reshape(n_classes, n_classes)


def classification_metrics(y: npt.ArrayLike, p: npt.ArrayLike, n_classes: int) -> dict[str, float]:
    """Score predicted classes.

    Parameters
    ----------
    y, p : array-like (N,)
        True and predicted class numbers.
    n_classes : int
        C.

    Returns
    -------
    dict
        ``accuracy``; ``balanced_accuracy`` (mean recall of the classes present); ``macro_f1`` (mean F1 of
        the classes present or predicted); ``mcc`` (Matthews' coefficient for many classes; Gorodkin, Comput
        Biol Chem 2004; 0 where undefined).
    """
    counts = confusion_matrix(y, p, n_classes).astype(np.float64)
    right, true, said = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    total = max(counts.sum(), 1.0)
    present, named = true > 0, true + said > 0
    spread = np.sqrt((total**2 - (said**2).sum()) * (total**2 - (true**2).sum()))
    return {
        "accuracy": float(right.sum() / total),
        "balanced_accuracy": float((right[present] / true[present]).mean()),
        "macro_f1": float((2 * right[named] / (true + said)[named]).mean()),
        "mcc": float((right.sum() * total - (true * said).sum()) / spread) if spread > 0 else 0.0,
    }


def regression_metrics(y: npt.ArrayLike, p: npt.ArrayLike) -> dict[str, float]:
    """Return ``spearman`` (0 where either side is constant) and ``rmse`` in the unit of ``y``."""
    from scipy.stats import rankdata

    true, said = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    a, b = rankdata(true), rankdata(said)
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return {
        "spearman": 0.0 if constant else float(np.corrcoef(a, b)[0, 1]),
        "rmse": float(np.sqrt(np.square(true - said).mean())),
    }


def cluster_bootstrap(
    metric: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float],
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    n: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Give the 95% percentile interval of any metric by drawing whole clusters with replacement.

    Parameters
    ----------
    metric : callable
        ``metric(y, p) -> float`` of the drawn rows.
    y, p : array-like (N, ...)
        Truths and predictions, row by row.
    groups : array-like (N,)
        Homology cluster of each row.
    n : int
        Number of draws.
    seed : int
        Seed of the draws.

    Returns
    -------
    tuple of float
        Low and high end. With a single cluster there is nothing to draw from and both are NaN.

    Raises
    ------
    UsageError
        No draws are asked for.

    Examples
    --------
    >>> import numpy as np
    >>> accuracy = lambda y, p: float(np.mean(y == p))
    >>> cluster_bootstrap(accuracy, [1, 1, 0, 0], [1, 1, 0, 0], groups=[0, 0, 1, 2])
    (1.0, 1.0)
    """
    values = draw_statistics(lambda a, b: np.array([metric(a, b)]), y, p, groups, n, seed)
    low, high = np.quantile(values[:, 0], [0.025, 0.975])
    return float(low), float(high)


def score_predictions(
    metrics: Metrics,
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Score predictions with several metrics, each with its 95% interval over clusters.

    Parameters
    ----------
    metrics : callable
        ``metrics(y, p) -> {name: float}``, such as `bioxfer.tasks.Multiclass.metrics`.
    y, p, groups, n, seed
        As in `cluster_bootstrap`.

    Returns
    -------
    dict
        ``{name: {"value": float, "ci95": [low, high]}}``; ``ci95`` is None with a single cluster.
    """
    values = metrics(np.asarray(y), np.asarray(p))
    return _with_intervals(values, _draw_metrics(metrics, y, p, groups, n, seed))


def score_beside(
    metrics: Metrics,
    name: str,
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    baselines: Mapping[str, tuple[Metrics, npt.ArrayLike]],
    groups: npt.ArrayLike,
    *,
    n: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Score predictions and baselines on the same drawn clusters, each of which is scored but once.

    Parameters
    ----------
    metrics, name, y, p, groups, n, seed
        As in `score_gain`.
    baselines : mapping of str to (callable, array-like)
        Metrics and predictions of each; its metric of that name must mean the same.

    Returns
    -------
    tuple of dict
        What `score_predictions` gives of the predictions; and for each baseline the same as ``metrics``, and
        what `score_gain` gives as ``head_minus_baseline``.
    """
    true, said = np.asarray(y), np.asarray(p)
    values, drawn = metrics(true, said), _draw_metrics(metrics, true, said, groups, n, seed)
    beside: dict[str, dict[str, Any]] = {}
    for baseline, (theirs, answers) in baselines.items():
        other = np.asarray(answers)
        scores, others = theirs(true, other), _draw_metrics(theirs, true, other, groups, n, seed)
        beside[baseline] = {
            "metrics": _with_intervals(scores, others),
            "head_minus_baseline": {
                "metric": name,
                "value": float(values[name] - scores[name]),
                "ci95": interval(drawn[name] - others[name]),
            },
        }
    return _with_intervals(values, drawn), beside


def _with_intervals(
    values: Mapping[str, float], drawn: Mapping[str, FloatArray]
) -> dict[str, dict[str, Any]]:
    return {name: {"value": value, "ci95": interval(drawn[name])} for name, value in values.items()}


def score_gain(
    metrics: Metrics,
    name: str,
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    baseline: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare predictions with a baseline's on the same drawn clusters.

    Parameters
    ----------
    metrics : callable
        As in `score_predictions`.
    name : str
        The metric to compare by.
    y, p, baseline : array-like (N,)
        Truths, predictions and the baseline's predictions.
    groups, n, seed
        As in `cluster_bootstrap`.

    Returns
    -------
    dict
        ``metric``, ``value`` (predictions' minus baseline's) and ``ci95``. A gain is real where the whole
        interval lies above 0.
    """
    true, said, other = np.asarray(y), np.asarray(p), np.asarray(baseline)
    value = metrics(true, said)[name] - metrics(true, other)[name]
    ours, theirs = (draw_metric(metrics, name, true, side, groups, n, seed) for side in (said, other))
    return {"metric": name, "value": float(value), "ci95": interval(ours - theirs)}


def score_answers(
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    answered: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    n: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Score a classifier that may leave a question unanswered.

    Parameters
    ----------
    y, p : array-like (N,)
        True and predicted class numbers.
    answered : array-like (N,) of bool
        Whether the prediction was given.
    groups, n, seed
        As in `cluster_bootstrap`.

    Returns
    -------
    dict
        ``answered``, the share of rows that were, and ``accuracy_answered``, the share of those that are
        right, each with ``value`` and ``ci95`` as from `score_predictions`. Where nothing was answered there
        is no accuracy: its ``value`` and ``ci95`` are None. Draws without any answer do not count for it.
    """

    def shares(right: npt.NDArray[Any], given: npt.NDArray[Any]) -> FloatArray:
        return np.array([given.mean(), right[given].mean() if given.any() else np.nan])

    right, given = np.asarray(y) == np.asarray(p), np.asarray(answered, dtype=bool)
    drawn = draw_statistics(shares, right, given, groups, n, seed)
    share, accuracy = shares(right, given).tolist()
    some = drawn[np.isfinite(drawn[:, 1]), 1]
    ends = interval(some) if len(some) else None
    none = {"value": None, "ci95": None}
    return {
        "answered": {"value": share, "ci95": interval(drawn[:, 0])},
        "accuracy_answered": {"value": accuracy, "ci95": ends} if given.any() else none,
    }


def expected_calibration_error(probabilities: npt.ArrayLike, y: npt.ArrayLike, *, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy of the predicted class.

    Parameters
    ----------
    probabilities : array-like (N, C)
        Of each class; rows sum to 1.
    y : array-like (N,)
        True class numbers.
    bins : int
        Bins of equal width over confidence 0 to 1 (Guo et al., ICML 2017).
    """
    table = np.asarray(probabilities, dtype=np.float64)
    confidence, right = table.max(axis=1), table.argmax(axis=1) == np.asarray(y)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(table))


def log_softmax(outputs: npt.ArrayLike, *, temperature: float = 1.0) -> FloatArray:
    """Return the log-probabilities ``(N, C)`` of logits ``(N, C)`` divided by a temperature."""
    scaled = np.asarray(outputs, dtype=np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)


def log_loss(outputs: npt.ArrayLike, y: npt.ArrayLike, *, temperature: float = 1.0) -> float:
    """Return the mean of ``-log p(y)``, in nats, of logits ``(N, C)`` and class numbers ``(N,)``."""
    table = log_softmax(outputs, temperature=temperature)
    return float(-table[np.arange(len(table)), np.asarray(y)].mean())


def fit_temperature(outputs: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Find the temperature between 0.05 and 20 with the least log-loss (Guo et al., ICML 2017).

    Parameters
    ----------
    outputs : array-like (N, C)
        Logits of rows that their head was not fitted on.
    y : array-like (N,)
        True class numbers.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(outputs, y, temperature=float(np.exp(log_t))),
        bounds=(np.log(0.05), np.log(20.0)),
        method="bounded",
    )
    return float(np.exp(found.x))


def composition(sequences: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return ``(N, 21)``: frequencies of the 20 amino acids and the natural log of length + 1."""
    codes, owner = _codes(sequences)
    known = codes < 20
    counts = np.bincount(owner[known] * 20 + codes[known], minlength=20 * len(sequences))
    return _frequencies(counts.reshape(len(sequences), 20), sequences)


def dipeptides(sequences: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return ``(N, 401)``: frequencies of the 400 residue pairs and the natural log of length + 1."""
    codes, owner = _codes(sequences)
    pair = codes[:-1] * 20 + codes[1:]
    known = (codes[:-1] < 20) & (codes[1:] < 20) & (owner[:-1] == owner[1:])
    counts = np.bincount(owner[:-1][known] * 400 + pair[known], minlength=400 * len(sequences))
    return _frequencies(counts.reshape(len(sequences), 400), sequences)


@dataclass(frozen=True, slots=True)
class Leakage:
    """How many test proteins the training data gives away; each count holds the ones before it.

    Attributes
    ----------
    test
        Test proteins.
    identical
        Equal to a training protein.
    near_identical
        At least 90% identical over 90% of the shorter protein.
    homologous
        A relative at the thresholds of the audit.
    """

    test: int
    identical: int
    near_identical: int
    homologous: int

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


def audit_leakage(
    train: Sequence[str],
    test: Sequence[str],
    *,
    identity: float = 0.3,
    coverage: float = 0.5,
    method: Method = "auto",
    threads: int | None = None,
) -> Leakage:
    """Count test proteins that have copies, near copies or relatives in the training data.

    Parameters
    ----------
    train, test : sequence of str
        Proteins.
    identity, coverage, method, threads
        As in `bioxfer.clusters.cluster_sequences`.

    Examples
    --------
    >>> audit_leakage(["MKTAYIAKQRQISFVK"], ["MKTAYIAKQRQISFVK", "GGSWWPPEEDDKK"], method="kmer")
    Leakage(test=2, identical=1, near_identical=1, homologous=1)
    """
    known = {normal_form(sequence) for sequence in train}
    same = np.array([normal_form(sequence) in known for sequence in test], dtype=bool)
    near, related = same.copy(), same.copy()
    links = find_links(test, train, identity=identity, coverage=coverage, method=method, threads=threads)
    related[links.query] = True
    near[links.query[(links.identity >= 0.9) & (links.coverage >= 0.9)]] = True
    return Leakage(len(test), int(same.sum()), int(near.sum()), int((related | near).sum()))


def draw_statistics(
    statistic: Callable[[npt.NDArray[Any], npt.NDArray[Any]], FloatArray],
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    groups: npt.ArrayLike,
    n: int,
    seed: int,
) -> FloatArray:
    """Return ``(n, M)``: the M statistics of n draws of whole clusters; NaN with a single cluster."""
    true, said = np.asarray(y), np.asarray(p)
    group, draws = _draw_clusters(groups, n, seed)
    if draws is None:
        return np.full((1, len(statistic(true, said))), np.nan)
    order = np.argsort(group, kind="stable")
    values = []
    for times in draws:
        rows = np.repeat(order, times[group[order]])
        values.append(statistic(true[rows], said[rows]))
    return np.stack(values)


def draw_metric(
    metrics: Metrics,
    name: str,
    y: npt.ArrayLike,
    p: npt.ArrayLike,
    groups: npt.ArrayLike,
    n: int,
    seed: int,
) -> FloatArray:
    """Return one metric ``(n,)`` of the draws of `draw_statistics`; NaN likewise.

    The same seed draws the same clusters, so that two such rows can be subtracted.
    """
    return _draw_metrics(metrics, y, p, groups, n, seed)[name]


def _draw_metrics(
    metrics: Metrics, y: npt.ArrayLike, p: npt.ArrayLike, groups: npt.ArrayLike, n: int, seed: int
) -> dict[str, FloatArray]:
    """Return each metric ``(n,)`` of the draws of `draw_statistics`; NaN likewise."""
    true, said = np.asarray(y), np.asarray(p)
    if isinstance(metrics, SummedMetrics):
        return metrics.score(draw_sums(metrics.count(true, said), groups, n, seed))
    names = list(metrics(true, said))
    if isinstance(metrics, WeighedMetrics):
        score = metrics.weigh(true, said)
        group, draws = _draw_clusters(groups, n, seed)
        if draws is None:
            return dict.fromkeys(names, np.full(1, np.nan))
        drawn = np.array([list(score(times[group]).values()) for times in draws])
    else:
        drawn = draw_statistics(lambda a, b: np.array(list(metrics(a, b).values())), y, p, groups, n, seed)
    return dict(zip(names, drawn.T, strict=True))


def draw_sums(counts: FloatArray, groups: npt.ArrayLike, n: int, seed: int) -> FloatArray:
    """Return ``(n, K)``: sums of counts ``(N, K)`` in the draws of `draw_statistics`; NaN likewise."""
    group, draws = _draw_clusters(groups, n, seed)
    if draws is None:
        return np.full((1, counts.shape[1]), np.nan)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    by_cluster = np.add.reduceat(counts[order], starts, axis=0)
    return np.stack([times @ by_cluster for times in draws])


def _draw_clusters(
    groups: npt.ArrayLike, n: int, seed: int
) -> tuple[npt.NDArray[np.int64], Iterator[npt.NDArray[np.int64]] | None]:
    """Return each row's cluster number and, for n draws, how often each of G clusters is in it ``(G,)``.

    There are no draws with a single cluster.
    """
    if n < 1:
        raise UsageError(f"n {n} draws give no interval; use 1000 or so")
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return group, None
    share = np.full(len(names), 1 / len(names))
    rng = np.random.default_rng(seed)
    return group, (rng.multinomial(len(names), share) for _ in range(n))


def interval(values: FloatArray) -> list[float] | None:
    """Return the 95% percentile interval of draws ``(n,)``; None where there were none to make."""
    low, high = np.quantile(values, [0.025, 0.975])
    return None if np.isnan(low) else [float(low), float(high)]


def _codes(sequences: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    table = np.full(256, 20, dtype=np.int64)
    for code, residue in enumerate(_AMINO_ACIDS):
        table[[ord(residue), ord(residue.lower())]] = code
    text = "".join(sequences).encode("ascii", "replace")
    owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    return table[np.frombuffer(text, dtype=np.uint8)], owner


def _frequencies(counts: npt.NDArray[np.int64], sequences: Sequence[str]) -> npt.NDArray[np.float32]:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    length = np.log1p([len(s) for s in sequences])
    return np.concatenate([share, length[:, None]], axis=1).astype(np.float32)
