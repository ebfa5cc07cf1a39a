"""What the estimators make of ``y``: classes of any type, sets of labels, numbers, and what is none."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, FitFailedWarning
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from toys import OILY, SALTY, backbone

from bioxfer.clusters import HomologyKFold
from bioxfer.errors import LabelError, UsageError
from bioxfer.estimators import (
    AnnotationTransfer,
    ResidueClassifier,
    ResidueRegressor,
    SequenceClassifier,
    SequenceRegressor,
)
from bioxfer.heads import TrainedHead
from bioxfer.prediction import predict


@pytest.fixture(autouse=True)
def _short_path(monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))  # a short path is a quick test


@pytest.fixture(scope="module")
def toys():
    dice = np.random.default_rng(0)
    return ["".join(dice.choice(list(letters), size=24)) for letters in (OILY, SALTY) * 10]


@pytest.fixture
def classifier():
    return SequenceClassifier(backbone(), identity=None, folds=2)


@pytest.fixture(params=[SequenceClassifier, AnnotationTransfer], ids=lambda c: c.__name__)
def either(request):
    return request.param(backbone()).set_params(
        **({"identity": None} if request.param is SequenceClassifier else {})
    )


def two(one, other, count=20):
    return [one, other] * (count // 2)


# --- classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (two(7, 12), "i"),
        (np.array(two(1, 0), dtype=np.uint8), "u"),
        (two(True, False), "b"),
        (two(2.0, 10.0), "f"),
        (two('a "quoted", comma', "two\nlines\r\n"), "U"),
        (two("1.50", "1.5"), "U"),
        (pd.Series(two("é", "e\u0301"), dtype="string"), "O"),
        (pd.Categorical(two("b", "a")), "O"),
    ],
    ids=["int", "uint8", "bool", "float", "odd text", "like numbers", "pandas text", "categories"],
)
def test_labels_of_every_type_come_back_as_they_were(either, toys, y, kind, tmp_path):
    either.fit(toys, y)
    assert either.classes_.dtype.kind == kind
    assert either.classes_.tolist() == sorted(set(np.asarray(y).tolist()))
    assert either.predict(toys).tolist() == list(y)
    assert either.score(toys, y) == 1.0
    either.save(tmp_path / "h.safetensors")
    again = type(either).load(tmp_path / "h.safetensors", model=backbone())
    assert again.predict(toys).tolist() == list(y)
    np.testing.assert_array_equal(again.predict_proba(toys), either.predict_proba(toys))
    assert again.classes_.tolist() == either.classes_.tolist()
    table = predict(toys, heads=[tmp_path / "h.safetensors"], model=backbone())
    assert table["label"].tolist() == [str(label) for label in np.asarray(y).tolist()]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (two("a", "a"), r"needs at least two classes, and the labels hold 'a' \(20 proteins\)"),
        (["a", None, *two("a", "b", 18)], r"label of protein 2 of 20 \('seq2'\) is None; drop the protein"),
        ([1.0, 2.0, np.nan, *[1.0] * 17], r"label of protein 3 of 20 \('seq3'\) is nan"),
        (
            pd.array([1, pd.NA, *[2] * 18], dtype="Int64"),
            r"label of protein 2 of 20 \('seq2'\) is (<NA>|nan)",
        ),
        (["", *["b"] * 19], r"1 of 20 labels are empty"),
        (
            [0.25, *[1.0] * 19],
            r"Unknown label type: continuous, such as .*0.25.* of protein 1 of 20 \('seq1'\)",
        ),
        ([1, "b", *two("b", 1, 18)], r"labels of different types \(int, str\); make all of them text"),
        ([["a"], ["b", "c"], *[["a"]] * 18], r"y holds lists of different lengths"),
        (np.zeros((20, 2, 2)), r"y of shape \(20, 2, 2\) is no list of labels"),
        (np.float64(3), r"y of shape \(\) is no list of labels"),
    ],
    ids=["one class", "none", "nan", "na", "empty", "numbers", "mixed", "ragged", "cube", "number"],
)
def test_labels_that_are_none_are_refused_by_place(either, toys, y, message):
    with pytest.raises((LabelError, UsageError), match=message) as error:
        either.fit(toys, y)
    assert isinstance(error.value, ValueError)


def test_a_column_is_a_list_with_scikit_learns_warning(either, toys):
    y = np.array(two("a", "b"))
    listed = clone(either).fit(toys, y).predict(toys)
    with pytest.warns(DataConversionWarning, match="column-vector"):
        np.testing.assert_array_equal(either.fit(toys, y[:, None]).predict(toys), listed)


def test_a_class_absent_from_a_fold_costs_only_its_own_proteins(either, toys):
    y = np.array(["a", "b"] * 8 + ["c"] * 4)
    scores = cross_val_score(either, toys, y, cv=KFold(5))  # the last fold is all there is of c
    assert scores[-1] == 0.0
    assert scores[:-1].mean() > 0.4
    either.fit(toys[:16], y[:16])
    assert either.predict_proba(toys).shape == (20, 2)
    assert either.classes_.tolist() == ["a", "b"]
    with pytest.warns(RuntimeWarning, match="Number of classes"):
        whole = cross_val_predict(either, toys, y, cv=KFold(5), method="predict_proba")
    assert whole.shape == (20, 3)
    assert whole[:, 2].tolist()[16:] == [0.0] * 4


def test_a_class_that_cannot_be_held_out_fails_its_fold_and_says_why(classifier, toys):
    y = np.array(["a", "b"] * 10)
    y[[9, 19]] = "c"
    with pytest.raises(LabelError, match=r"class 'c' has 1 training proteins in 1 homology clusters"):
        classifier.fit(toys[:19], y[:19])
    with pytest.warns(FitFailedWarning, match="class 'c'"):
        scores = cross_val_score(classifier, toys, y, cv=KFold(4))
    assert np.isnan(scores).tolist() == [False, True, False, True]
    assert AnnotationTransfer(backbone()).fit(toys[:19], y[:19]).classes_.tolist() == ["a", "b", "c"]


# --- sets of labels -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(toys):
    """Two labels that composition tells, one that everybody may bear."""
    oily = np.arange(20) % 2 == 0
    return np.stack([oily, ~oily, np.arange(20) % 4 < 2], axis=1).astype(int)


def test_a_matrix_comes_back_as_a_matrix(classifier, toys, sets, tmp_path):
    classifier.fit(toys, sets)
    said = classifier.predict(toys)
    assert said.shape == sets.shape
    assert said.dtype.kind == "i"
    assert set(np.unique(said)) <= {0, 1}
    np.testing.assert_array_equal(said[:, :2], sets[:, :2])
    chances = classifier.predict_proba(toys)
    assert chances.shape == sets.shape
    assert (chances[sets[:, 0] == 1, 0] > chances[sets[:, 0] == 0, 0].max()).all()
    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.score(toys, sets) == (said == sets).all(axis=1).mean()
    classifier.save(tmp_path / "h.safetensors")
    again = SequenceClassifier.load(tmp_path / "h.safetensors", model=backbone())
    assert again.task == "multilabel"
    np.testing.assert_array_equal(again.predict(toys), said)
    np.testing.assert_array_equal(again.predict_proba(toys), chances)
    assert again.classes_.tolist() == [0, 1, 2]
    table = predict(toys, heads=[tmp_path / "h.safetensors"], model=backbone())
    assert table["label"].tolist() == [";".join(map(str, np.flatnonzero(row))) for row in said]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y.astype(bool),
        lambda y: y.astype(float),
        lambda y: y.tolist(),
        csr_array,
        lambda y: pd.DataFrame(y, columns=["a", "b", "c"]),
    ],
    ids=["bool", "float", "lists", "sparse", "frame"],
)
def test_matrices_of_every_make_are_alike(classifier, toys, sets, wrap):
    plain = clone(classifier).fit(toys, sets).predict_proba(toys)
    classifier.fit(toys, wrap(sets))
    np.testing.assert_allclose(classifier.predict_proba(toys), plain, atol=1e-6)
    assert [str(name) for name in classifier.classes_] in (["0", "1", "2"], ["a", "b", "c"])


def test_joined_labels_are_a_matrix_of_their_names(classifier, toys, sets, tmp_path):
    names = np.array(["oily", 'salty, "very"', "any"])
    cells = ["; ".join(names[row == 1]) for row in sets]
    classifier.set_params(task="multilabel").fit(toys, cells)
    assert classifier.classes_.tolist() == sorted(names)
    order = np.argsort(names)
    listed = clone(classifier).fit(toys, [names[row == 1].tolist() for row in sets])
    np.testing.assert_array_equal(listed.predict(toys), classifier.predict(toys))
    right = (classifier.predict(toys) == sets[:, order]).all(axis=1).mean()
    assert classifier.score(toys, cells) == right > 0
    assert classifier.score(toys, [*cells[1:], "never seen"]) < 0.5
    assert classifier.score(toys[:1], cells[:1]) in (0.0, 1.0)
    classifier.save(tmp_path / "h.safetensors")
    again = SequenceClassifier.load(tmp_path / "h.safetensors", model=backbone())
    assert again.classes_.tolist() == sorted(names)
    np.testing.assert_array_equal(again.predict(toys), classifier.predict(toys))


def test_a_column_without_a_bearer_stays_a_column(classifier, toys, sets, tmp_path):
    y = np.insert(sets, 1, 0, axis=1)
    classifier.fit(toys, y)
    assert classifier.predict(toys).shape == (20, 4)
    assert not classifier.predict(toys)[:, 1].any()
    assert not classifier.predict_proba(toys)[:, 1].any()
    classifier.save(tmp_path / "h.safetensors")
    again = SequenceClassifier.load(tmp_path / "h.safetensors", model=backbone())
    np.testing.assert_array_equal(again.predict_proba(toys), classifier.predict_proba(toys))


def test_sets_of_labels_are_cross_validated(classifier, toys, sets):
    scores = cross_val_score(classifier, toys, sets, cv=KFold(4), scoring="f1_micro")
    assert (scores > 0.5).all()
    search = GridSearchCV(classifier, {"head": ["linear", "nearest"]}, cv=KFold(2)).fit(toys, sets)
    assert f1_score(sets, search.predict(toys), average="micro") > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: np.where(y == 1, 3, 0), r"protein 1 of 20 \('seq1'\) has .*3.* for label '0'"),
        (
            lambda y: y * [[0, 1, 1]] * (np.arange(20) != 1)[:, None],
            r"protein 2 of 20 \('seq2'\) bears no label",
        ),
        (lambda y: y[1:], r"19 rows of labels do not fit 20 proteins"),
        (lambda y: np.where(y == 1, np.nan, 0), r"protein 1 of 20 \('seq1'\) has .*nan.* for label '0'"),
        (lambda y: pd.DataFrame(y, columns=["a;b", "c", "d"]), r"label 'a;b' holds one of ; \|, which part"),
        (lambda y: np.ones((20, 2)), r"label '0' is borne by all 20 proteins"),
    ],
    ids=["three", "bare", "short", "nan", "separator", "everywhere"],
)
def test_matrices_that_are_none_are_refused(classifier, toys, sets, change, message):
    with pytest.raises((LabelError, UsageError), match=message):
        classifier.fit(toys, change(sets))


def test_an_unknown_task_is_refused(classifier, toys):
    with pytest.raises(UsageError, match="task 'auto' is not one of multiclass, multilabel"):
        classifier.set_params(task="auto").fit(toys, two("a", "b"))


# --- numbers --------------------------------------------------------------------------------------------


def test_a_regressor_is_cross_validated_searched_and_saved(toys, tmp_path):
    y = np.array([protein.count("A") + 2.0 * protein.count("K") for protein in toys], dtype=np.float32)
    regressor = SequenceRegressor(backbone(), identity=None, folds=2)
    scores = cross_val_score(regressor, toys, y, cv=KFold(2), scoring="neg_mean_absolute_error")
    assert np.isfinite(scores).all()
    search = GridSearchCV(
        regressor, {"head": ["linear", "nearest"], "pool": ["mean", "mean+max"]}, cv=KFold(2)
    )
    best = search.fit(toys, y).best_estimator_
    best.save(tmp_path / "h.safetensors")
    again = SequenceRegressor.load(tmp_path / "h.safetensors", model=backbone())
    np.testing.assert_array_equal(again.predict(toys), search.predict(toys))
    table = predict(toys, heads=[tmp_path / "h.safetensors"], model=backbone())
    np.testing.assert_allclose(table["label"].astype(float), search.predict(toys), rtol=1e-5)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.5, np.nan, *range(18)], r"label of protein 2 of 20 \('seq2'\) is nan; drop the protein"),
        ([1.5, np.inf, *range(18)], r"label of protein 2 of 20 \('seq2'\) is inf"),
        (["1.5", "warm", *map(str, range(18))], r"label 'warm' \(row 2\) is not a finite number"),
        ([2.0] * 20, r"all 20 are the same"),
        (np.zeros((20, 2)), r"y of shape \(20, 2\) is no list of labels"),
    ],
    ids=["nan", "inf", "text", "constant", "table"],
)
def test_numbers_that_are_none_are_refused_by_place(toys, y, message):
    with pytest.raises((LabelError, UsageError), match=message):
        SequenceRegressor(backbone(), identity=None, folds=2).fit(toys, y)


def test_numbers_as_text_are_numbers(toys):
    y = [float(protein.count("A")) for protein in toys]
    regressor = SequenceRegressor(backbone(), identity=None, folds=2)
    numbers = clone(regressor).fit(toys, y).predict(toys)
    np.testing.assert_array_equal(regressor.fit(toys, list(map(str, y))).predict(toys), numbers)


def test_a_single_protein_is_too_few(classifier, toys):
    for estimator in (
        classifier,
        SequenceRegressor(backbone(), identity=None),
        AnnotationTransfer(backbone()),
    ):
        with pytest.raises(LabelError, match="1 sample is too few"):
            estimator.fit(toys[:1], [1])


def test_nothing_is_warned_about_in_an_ordinary_fit(either, toys, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        either.fit(toys, two("a", "b")).save(tmp_path / "h.safetensors")
    assert TrainedHead.load(tmp_path / "h.safetensors").card["label_type"] == "str"


# --- heads that read residues ---------------------------------------------------------------------------


def test_light_attention_is_fitted_saved_and_read_by_predict(toys, tmp_path):
    y = two("a, b", "c")
    classifier = SequenceClassifier(backbone(), head="light-attention", identity=None, seed=3).fit(toys, y)
    assert classifier.score(toys, y) == 1.0
    assert classifier.head_.attention is not None
    card = classifier.head_.card
    assert card["split"]["how"] == "nothing was held out"
    assert card["head"]["weights_fitted_on"] == "all proteins"
    classifier.save(tmp_path / "h.safetensors")
    again = SequenceClassifier.load(tmp_path / "h.safetensors", model=backbone())
    assert (again.head, again.n_features_in_) == ("light-attention", classifier.n_features_in_)
    np.testing.assert_array_equal(again.predict_proba(toys), classifier.predict_proba(toys))
    table = predict(toys, heads=[tmp_path / "h.safetensors"], model=backbone())
    assert table["label"].tolist() == y


def test_a_regressor_of_residues_learns_leaves_out_and_comes_back(toys, tmp_path):
    y = [[np.nan if letter == "M" else float("AILV".find(letter)) for letter in protein] for protein in toys]
    regressor = ResidueRegressor(backbone(), identity=None, head="linear").fit(toys, y)
    said = regressor.predict(toys)
    assert [len(numbers) for numbers in said] == [len(protein) for protein in toys]
    assert regressor.score(toys, y) > 0.5
    texts = [" ".join("?" if np.isnan(value) else str(value) for value in numbers) for numbers in y]
    twin = clone(regressor).fit(toys, texts)
    np.testing.assert_array_equal(np.concatenate(twin.predict(toys)), np.concatenate(said))
    assert twin.score(toys, texts) == regressor.score(toys, y)
    regressor.save(tmp_path / "h.safetensors")
    again = ResidueRegressor.load(tmp_path / "h.safetensors", model=backbone())
    np.testing.assert_array_equal(np.concatenate(again.predict(toys)), np.concatenate(said))
    with pytest.raises(UsageError, match="is a residue-regression head, not a residue-class head"):
        ResidueClassifier.load(tmp_path / "h.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: [y[0][1:], *y[1:]], r"a label of 23 numbers does not fit a protein of 24 residues"),
        (lambda y: [[np.inf, *y[0][1:]], *y[1:]], r"seq1.*inf"),
        (lambda y: [[np.nan] * 24] * 20, r"resolved"),
        (lambda y: [[2.0] * 24] * 20, r"same|differ|one number"),
        (lambda y: ["a" * 24, *y[1:]], r"seq1"),
    ],
    ids=["short", "infinite", "unresolved", "constant", "text"],
)
def test_numbers_of_residues_that_are_none_are_refused(toys, change, message):
    y = [[float("AILV".find(letter)) for letter in protein] for protein in toys]
    with pytest.raises((LabelError, UsageError), match=message):
        ResidueRegressor(backbone(), identity=None, head="linear").fit(toys, change(y))


def test_lists_of_labels_and_of_numbers_are_cross_validated(classifier, toys, sets):
    names = np.array(["oily", "mixed", "salty"])[: sets.shape[1]]
    lists = [names[row != 0].tolist() for row in np.asarray(sets)]
    model = clone(classifier).set_params(task="multilabel")
    scores = cross_val_score(model, toys, lists, cv=HomologyKFold(3, method="kmer"), error_score="raise")
    assert (scores > 0).all()
    numbers = [[float("AILV".find(letter)) for letter in protein] for protein in toys]
    regressor = ResidueRegressor(backbone(), identity=None, head="linear")
    folds = HomologyKFold(3, method="kmer")
    scores = cross_val_score(regressor, toys, numbers, cv=folds, error_score="raise")
    assert (scores > 0).all()


@pytest.mark.parametrize("count", [19, 21])
def test_groups_of_another_length_are_refused(toys, count):
    marks = ["".join("oi"[letter in "AILMVWY"] for letter in protein) for protein in toys]
    numbers = [[float("AILV".find(letter)) for letter in protein] for protein in toys]
    for estimator, y in (
        (ResidueClassifier(backbone()), marks),
        (ResidueRegressor(backbone()), numbers),
        (SequenceClassifier(backbone(), head="light-attention"), two("a", "b")),
        (SequenceClassifier(backbone()), two("a", "b")),
    ):
        with pytest.raises(UsageError, match=f"{count} groups do not fit 20 proteins; give one cluster each"):
            estimator.fit(toys, y, groups=np.arange(count))
        with pytest.raises(UsageError, match=r"groups of shape \(20, 1\) do not fit 20 proteins"):
            estimator.fit(toys, y, groups=np.arange(20)[:, None])
