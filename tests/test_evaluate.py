"""Metrics against scikit-learn and SciPy; intervals, calibration and leakage against planted truth."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from bioxfer.errors import UsageError
from bioxfer.evaluate import (
    audit_leakage,
    classification_metrics,
    cluster_bootstrap,
    composition,
    confusion_matrix,
    dipeptides,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    regression_metrics,
    score_answers,
    score_beside,
    score_gain,
    score_predictions,
)
from bioxfer.tasks.number_metrics import RegressionMetrics


def accuracy(y, p):
    return {"accuracy": float(np.mean(y == p))}


@pytest.mark.parametrize("seed", range(3))
def test_classification_metrics_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    y = rng.choice(4, size=200, p=[0.6, 0.3, 0.08, 0.02])
    p = np.where(rng.random(200) < 0.6, y, rng.integers(0, 4, size=200))
    found = classification_metrics(y, p, 4)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, p))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, p, average="macro"))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(y, p))
    np.testing.assert_array_equal(confusion_matrix(y, p, 4), sk.confusion_matrix(y, p))


def test_metrics_are_defined_where_a_class_is_absent_or_nothing_varies():
    found = classification_metrics([0, 0, 0], [0, 0, 0], 5)
    assert found == {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0, "mcc": 0.0}
    assert regression_metrics([1.0, 2.0], [3.0, 3.0])["spearman"] == 0.0


def test_regression_metrics_equal_scipys():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 12, size=60).astype(float)  # with ties
    p = y + rng.normal(size=60)
    found = regression_metrics(y, p)
    assert found["spearman"] == pytest.approx(stats.spearmanr(y, p).statistic)
    assert found["rmse"] == pytest.approx(np.sqrt(sk.mean_squared_error(y, p)))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(25):
        # 60 clusters of 5 that are right or wrong together, 70% right
        right = np.repeat(rng.random(60) < 0.7, 5)
        low, high = cluster_bootstrap(
            lambda y, p: float(p.mean()), right, right, np.arange(300) // 5, n=100, seed=trial
        )
        covered += low <= 0.7 <= high
    assert covered >= 20  # 95% of 25 is 24; three standard deviations below is 20


def test_clusters_widen_the_interval_that_independent_rows_would_give():
    rng = np.random.default_rng(2)
    right = np.repeat(rng.random(40) < 0.7, 10)

    def width(groups):
        low, high = cluster_bootstrap(lambda y, p: float(p.mean()), right, right, groups, n=300)
        return high - low

    assert width(np.arange(400) // 10) > 2 * width(np.arange(400))


def test_intervals_are_the_same_for_a_seed_and_absent_for_one_cluster():
    y, p, groups = [0, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 2, 3]
    first = score_predictions(accuracy, y, p, groups, n=50, seed=4)
    assert first == score_predictions(accuracy, y, p, groups, n=50, seed=4)
    low, high = first["accuracy"]["ci95"]
    assert low <= first["accuracy"]["value"] == 0.8 <= high
    assert score_predictions(accuracy, y, p, [0] * 5)["accuracy"]["ci95"] is None
    with pytest.raises(UsageError, match="n 0 draws"):
        score_predictions(accuracy, y, p, groups, n=0)


def test_gain_over_a_baseline_is_paired():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, size=400)
    worse = np.where(rng.random(400) < 0.3, 1 - y, y)
    better = np.where((worse != y) & (rng.random(400) < 0.2), y, worse)  # never worse, sometimes better
    gain = score_gain(accuracy, "accuracy", y, better, worse, np.arange(400), n=300)
    assert gain["value"] == pytest.approx(np.mean(better == y) - np.mean(worse == y))
    assert gain["ci95"][0] > 0
    assert score_gain(accuracy, "accuracy", y, worse, worse, np.arange(400), n=20)["ci95"] == [0.0, 0.0]


def test_calibration_error_of_planted_confidence():
    y = np.array([0] * 80 + [1] * 20)
    assert expected_calibration_error(np.tile([0.8, 0.2], (100, 1)), y) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.tile([1.0, 0.0], (100, 1)), y) == pytest.approx(0.2)


def test_temperature_recovers_a_planted_one_and_lowers_the_error():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(4000, 3)) * 2
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.array([rng.choice(3, p=row) for row in chance])
    found = fit_temperature(logits * 3.0, y)
    assert found == pytest.approx(3.0, rel=0.1)
    assert log_loss(logits * 3.0, y, temperature=found) < log_loss(logits * 3.0, y)


def test_composition_and_dipeptides_count_what_is_there():
    table = composition(["AACX", "", "w"])
    assert table.shape == (3, 21)
    assert table[0, 0] == pytest.approx(2 / 3)  # X is no amino acid
    assert table[0, 20] == pytest.approx(np.log(5))
    assert table[1].sum() == 0
    assert table[2, :20].sum() == pytest.approx(1)
    pairs = dipeptides(["AAC", "CXA", "A"])
    assert pairs.shape == (3, 401)
    assert pairs[0, 0] == pytest.approx(0.5)
    assert pairs[0, 1] == pytest.approx(0.5)
    assert pairs[1, :400].sum() == pairs[2, :400].sum() == 0  # no pair across X or across proteins


def test_leakage_audit_counts_planted_copies():
    rng = np.random.default_rng(5)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))

    def changed(sequence, share):
        residues = np.array(list(sequence))
        hit = rng.choice(len(residues), size=round(share * len(residues)), replace=False)
        residues[hit] = rng.choice(letters, size=len(hit))
        return "".join(residues)

    train = ["".join(rng.choice(letters, size=150)) for _ in range(20)]
    test = [train[0], train[1].lower(), changed(train[2], 0.04), changed(train[3], 0.4)]
    test += ["".join(rng.choice(letters, size=150)) for _ in range(6)]
    audit = audit_leakage(train, test, method="kmer")
    assert audit.to_dict() == {"test": 10, "identical": 2, "near_identical": 3, "homologous": 4}


def test_answers_are_scored_by_their_share_and_their_accuracy():
    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 2, size=(2, 300))
    p = np.where(rng.random(300) < 0.5, y, p)
    answered = rng.random(300) < 0.4
    found = score_answers(y, p, answered, np.arange(300) // 3)
    assert found["answered"]["value"] == pytest.approx(answered.mean())
    assert found["accuracy_answered"]["value"] == pytest.approx((y == p)[answered].mean())
    for score in found.values():
        low, high = score["ci95"]
        assert low < score["value"] < high
    none = score_answers(y, p, np.zeros(300, dtype=bool), np.arange(300) // 3)
    assert none["answered"]["value"] == 0
    assert none["accuracy_answered"] == {"value": None, "ci95": None}
    lone = score_answers(y, p, answered, np.zeros(300))
    assert lone["answered"]["ci95"] is lone["accuracy_answered"]["ci95"] is None


def test_numbers_are_drawn_by_weight_to_the_same_intervals():
    """A draw that counts rows says what one that copies them does, with ties, constants and signs."""
    rng = np.random.default_rng(5)
    y, groups = rng.normal(size=200).round(1), rng.integers(0, 50, 200)
    metrics = RegressionMetrics(3.0)
    for p in (y + rng.normal(size=200).round(1), -y, np.zeros(200)):
        quick = score_predictions(metrics, y, p, groups, n=100)
        slow = score_predictions(lambda a, b: metrics(a, b), y, p, groups, n=100)
        for name in ("spearman", "rmse"):
            assert quick[name]["value"] == slow[name]["value"]
            assert quick[name]["ci95"] == pytest.approx(slow[name]["ci95"], abs=1e-12)
    assert score_predictions(metrics, y, y, np.zeros(200))["rmse"] == {"value": 0.0, "ci95": None}


def test_baselines_beside_are_scored_as_each_alone():
    rng = np.random.default_rng(6)
    y, p, other, groups = (rng.integers(0, 3, 120) for _ in range(4))
    metrics = partial(classification_metrics, n_classes=3)
    mine, beside = score_beside(metrics, "mcc", y, p, {"guess": (metrics, other)}, groups, n=50)
    assert mine == score_predictions(metrics, y, p, groups, n=50)
    assert beside["guess"] == {
        "metrics": score_predictions(metrics, y, other, groups, n=50),
        "head_minus_baseline": score_gain(metrics, "mcc", y, p, other, groups, n=50),
    }
