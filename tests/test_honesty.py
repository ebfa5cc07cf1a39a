"""What a card says beside its metrics: by class, by nearness, at each confidence, and where to doubt."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from bioxfer.alignment import Alignment, align_to_training
from bioxfer.breakdown import reliability, score_classes, score_parts, score_sets
from bioxfer.evaluate import expected_calibration_error
from bioxfer.head_training import train_head
from bioxfer.honesty import (
    LEAST_CLUSTERS,
    LEAST_TRAIN,
    LEAST_VALID,
    describe_classes,
    describe_nearness,
    find_warnings,
    label_by_alignment,
)
from bioxfer.tasks import Multiclass, Regression

AMINO = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
TASK = Multiclass(("a", "b", "c"))


def random_protein(rng, length=120) -> str:
    return "".join(rng.choice(AMINO, size=length))


def mutate(protein: str, share: float, rng) -> str:
    """Keep this share of the residues, and change every other."""
    letters = np.array(list(protein))
    others = rng.permutation(len(letters))[: round((1 - share) * len(letters))]
    letters[others] = [rng.choice(AMINO[letters[i] != AMINO]) for i in others]
    return "".join(letters)


# The nearest training protein.


def test_the_alignment_names_the_best_training_protein_and_its_identity():
    rng = np.random.default_rng(0)
    train = [random_protein(rng) for _ in range(20)]
    held = [mutate(train[7], 0.6, rng), random_protein(rng), train[3], mutate(train[11], 0.9, rng)]
    found = align_to_training(held, [*train, mutate(train[11], 0.5, rng)], method="kmer")
    assert found.nearest.tolist() == [7, -1, 3, 11]
    assert found.found.tolist() == [True, False, True, True]
    np.testing.assert_allclose(found.identity, [0.6, 0, 1, 0.9], atol=0.05)


def test_a_shared_piece_is_a_neighbour_but_no_identity():
    rng = np.random.default_rng(1)
    piece = random_protein(rng, 60)
    train, held = piece + random_protein(rng, 300), random_protein(rng, 300) + piece
    found = align_to_training([held], [train], method="kmer")
    assert found.nearest.tolist() == [0]
    assert found.identity.tolist() == [0.0]


def test_what_does_not_align_gets_the_majority():
    found = Alignment(np.array([1, -1, 0]), np.zeros(3))
    assert label_by_alignment(TASK, found, np.array([2, 0, 2])).tolist() == [0, 2, 2]
    task = Regression(0.0, 1.0)
    assert label_by_alignment(task, found, np.array([-1.0, 0.0, 4.0])).tolist() == [0.0, 1.0, -1.0]


def test_each_protein_is_in_one_bin_of_identity():
    identity = np.array([0.0, 0.29, 0.3, 0.49, 0.5, 1.0, 1.0])
    y, predicted = np.array([0, 0, 1, 1, 2, 2, 0]), np.array([0, 1, 1, 1, 2, 0, 1])
    found = Alignment(np.array([-1, 0, 0, 0, 0, 0, 0]), identity)
    told = describe_nearness(TASK, found, y, predicted, np.arange(7), method="kmer", seed=0)
    assert [(b["low"], b["high"], b["valid"]) for b in told["bins"]] == [
        (0.0, 0.3, 2), (0.3, 0.5, 2), (0.5, 1.0, 3),
    ]  # fmt: skip
    assert [b["value"] for b in told["bins"]] == [0.5, 1.0, pytest.approx(1 / 3)]
    assert (told["aligned"], told["metric"], told["method"]) == (6, "accuracy", "kmer")


# Class by class.


def test_scores_of_classes_are_scikit_learns():
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    told = score_classes(np.eye(5)[y], np.eye(5)[p], rng.integers(0, 40, 200))
    expected = precision_recall_fscore_support(y, p, labels=range(5), zero_division=np.nan)[:3]
    for key, values in zip(("precision", "recall", "f1"), expected, strict=True):
        ours = [np.nan if each[key] is None else each[key] for each in told]
        np.testing.assert_allclose(ours, values)
    for each in told[:3]:
        assert each["f1_ci95"][0] < each["f1"] < each["f1_ci95"][1]
    assert told[4] == {"precision": None, "recall": None, "f1": None, "f1_ci95": None}
    alone = score_classes(np.eye(5)[y], np.eye(5)[p], np.zeros(200))
    assert alone[0]["f1"] == told[0]["f1"]
    assert alone[0]["f1_ci95"] is None


def test_classes_are_counted_where_they_lie():
    y = np.array([0, 0, 0, 1, 1, 2, 0, 1])
    groups = np.array([1, 1, 2, 3, 3, 4, 5, 6])
    train, held = np.arange(6), np.array([6, 7])
    told = describe_classes(TASK, y, np.array([0, 0]), groups, train=train, held=held, seed=0)
    assert [(c["label"], c["train"], c["train_clusters"], c["valid"]) for c in told] == [
        ("a", 3, 2, 1), ("b", 2, 1, 1), ("c", 1, 1, 0),
    ]  # fmt: skip
    assert (told[0]["precision"], told[0]["recall"]) == (0.5, 1.0)
    number = Regression(0.0, 1.0)
    assert not describe_classes(number, y * 1.0, y[held], groups, train=train, held=held, seed=0)


@pytest.mark.parametrize(
    ("key", "least", "words"),
    [
        ("train", LEAST_TRAIN, "9 training proteins (fewer than 10)"),
        ("train_clusters", LEAST_CLUSTERS, "2 training clusters (fewer than 3)"),
        ("valid", LEAST_VALID, "4 held-out proteins (fewer than 5)"),
    ],
)
def test_a_class_with_too_few_examples_is_warned_of(key, least, words):
    enough = {"label": "rare", "train": 10, "train_clusters": 3, "valid": 5}
    assert find_warnings([enough], valid_clusters=10) == []
    told = find_warnings([enough | {key: least - 1}], valid_clusters=10)
    assert told == [f"class 'rare' has {words}; its numbers mean little"]
    assert find_warnings([enough], valid_clusters=9) == [
        "the held-out proteins make 9 homology clusters; intervals drawn from fewer than 10 are too narrow"
    ]


# Confidence.


def test_reliability_adds_up_to_the_calibration_error():
    rng = np.random.default_rng(3)
    table = rng.dirichlet([0.5] * 4, size=300)
    y = rng.integers(0, 4, 300)
    right = table.argmax(axis=1) == y
    told = reliability(table.max(axis=1)[:, None], right[:, None], np.arange(300))
    bins = told["reliability"]
    assert sum(each["count"] for each in bins) == 300
    error = sum(each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / 300
    assert error == pytest.approx(expected_calibration_error(table, y))
    for each in bins:
        assert each["low"] <= each["confidence"] <= each["high"]
        assert each["ci95"][0] <= each["accuracy"] <= each["ci95"][1]


def test_an_honest_head_shows_the_error_of_chance():
    rng = np.random.default_rng(4)
    sure = rng.random((150, 1))
    errors = []
    for _ in range(300):
        told = rng.random((150, 1)) < sure
        place = (sure[:, 0] * 15).astype(int)
        errors.append(np.abs(np.bincount(place, weights=(told - sure)[:, 0])).sum() / 150)
    chance = reliability(sure, sure > 0.5, np.arange(150))["ece_if_honest"]
    assert chance == pytest.approx(np.mean(errors), rel=0.05)


def test_parts_without_rows_have_no_value():
    y, p = np.array([0, 1, 1]), np.array([0, 1, 0])
    parts = [np.array([True, True, True]), np.zeros(3, dtype=bool)]
    found = score_parts(TASK.metrics, "accuracy", y, p, np.arange(3), parts)
    assert found[0]["value"] == pytest.approx(2 / 3)
    assert found[1] == {"value": None, "ci95": None}
    sets = score_sets([True, False, True], [1, 3, 2], np.arange(3))
    assert (sets["covered"]["value"], sets["size"]["value"]) == (pytest.approx(2 / 3), 2.0)


# In a card.


@pytest.fixture(scope="module")
def families():
    """40 clusters of 4 real relatives, whose label only their sequence tells, and a class that is rare."""
    rng = np.random.default_rng(5)
    parents = [random_protein(rng, 80) for _ in range(40)]
    sequences = [mutate(parent, 0.7, rng) for parent in parents for _ in range(4)]
    groups = np.repeat(np.arange(40), 4)
    labels = [("odd", "even")[g % 2] if g > 2 else "rare" for g in groups]
    return sequences, groups, labels


def train(families, splits, **changes):
    sequences, groups, labels = families
    rng = np.random.default_rng(6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))
        return train_head(
            rng.normal(size=(160, 6)).astype(np.float32),
            labels,
            [f"p{i}" for i in range(160)],
            sequences=sequences,
            groups=groups,
            name="parity",
            pool="mean",
            layer=2,
            backbone_name="toy",
            backbone_fingerprint="f" * 16,
            head="linear",
            folds=3,
            splits=splits,
            method="kmer",
            **changes,
        )


def test_alignment_is_the_baseline_to_beat_where_relatives_are_on_both_sides(families, caplog):
    splits = ["valid" if i % 4 == 0 else "train" for i in range(160)]
    with caplog.at_level(logging.WARNING, logger="bioxfer"):
        card = train(families, splits).card
    assert card["baselines"]["alignment"]["metrics"]["accuracy"]["value"] > 0.9
    assert card["baselines"]["nearest"]["metrics"]["accuracy"]["value"] < 0.7  # of noise
    assert card["baselines"]["alignment"]["head_minus_baseline"]["ci95"][1] < 0
    assert card["by_identity"]["aligned"] >= 34
    assert sum(part["valid"] for part in card["by_identity"]["bins"]) == 40
    assert card["by_identity"]["bins"][2]["valid"] > 20  # two of 70% each are half alike
    assert [c["label"] for c in card["classes"]] == ["even", "odd", "rare"]
    assert card["classes"][2]["train"] == 9
    assert card["warnings"] == [
        "class 'rare' has 9 training proteins (fewer than 10) and 3 held-out proteins (fewer than 5); "
        "its numbers mean little"
    ]
    assert card["warnings"][0] in caplog.text


def test_alignment_says_nothing_of_strangers(families):
    splits = ["valid" if g % 4 == 1 else "train" for g in families[1]]
    card = train(families, splits).card
    assert card["by_identity"]["aligned"] <= 4
    assert card["by_identity"]["bins"][0]["valid"] == 40
    assert card["by_identity"]["bins"][2]["value"] is None
    majority, alignment = (
        card["baselines"][name]["metrics"]["accuracy"] for name in ("majority", "alignment")
    )
    assert abs(majority["value"] - alignment["value"]) < 0.1
    assert card["calibration"]["ece_if_honest"] > 0
    assert card["conformal"]["proteins"] == 120


def test_a_head_of_first_residues_is_held_against_first_residues(families):
    """Who reads only a start is not compared with a search of whole proteins; kinship is of whole ones."""
    rng = np.random.default_rng(7)
    sequences = [random_protein(rng, 60) + protein for protein in families[0]]
    splits = ["valid" if i % 4 == 0 else "train" for i in range(160)]
    card = train((sequences, *families[1:]), splits, first=60).card
    assert card["baselines"]["alignment"]["metrics"]["accuracy"]["value"] < 0.7
    assert card["by_identity"]["aligned"] >= 34


@pytest.mark.parametrize("method", ["kmer", "auto"])
@pytest.mark.parametrize("protein", ["MKTAYI", "AAAAAAAAAAAAAAAA", "GSGSGSGSGSGSGSGSGSGSGSGS"])
def test_an_equal_protein_is_nearest_however_short_or_monotonous(protein, method):
    other = random_protein(np.random.default_rng(0))
    found = align_to_training([protein.lower(), "WWWWWWP"], [other, protein], method=method)
    assert found.nearest.tolist() == [1, -1]
    assert found.identity.tolist() == [1.0, 0.0]


def test_ranges_of_large_numbers_keep_their_ends_apart():
    task = Regression(1234567.0, 1.0)
    ((low, high),) = task.sets(np.array([[0.3]]), level=0.2)
    assert float(low) < 1234567.3 < float(high)
    assert float(high) - float(low) == pytest.approx(0.4, rel=0.01)
