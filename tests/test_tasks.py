"""Tasks: labels to targets and back."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from bioxfer.errors import LabelError, UsageError
from bioxfer.tasks import Decision, Multiclass, Multilabel, Regression, task_from_dict, task_from_name


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["a", "b", "a"], Multiclass),
        (["0", "1", "1"], Multiclass),
        ([str(i) for i in range(21)], Regression),
        (["1.5", "2", "3"], Regression),
        (["1e5", "NA", "007"], Multiclass),
        (["nan", "1.5", "b", "c"], Multiclass),
        (["0", "1", "0", "1", "NA"], Multiclass),
        (["1.5", "2.5", "3.5", "cold"], Multiclass),
    ],
)
def test_auto_takes_numbers_for_regression_and_names_for_classes(labels, kind):
    assert isinstance(task_from_name("auto", labels), kind)


def test_class_labels_stay_the_strings_they_were():
    task = Multiclass.from_labels(["NA", "007", "1e5", "7"])
    assert task.classes == ("007", "1e5", "7", "NA")
    assert [task.label(t) for t in task.encode(["1e5", "NA", "007"])] == ["1e5", "NA", "007"]


def test_labels_that_fit_no_task_are_named():
    with pytest.raises(LabelError, match="'a' \\(3 proteins\\)"):
        Multiclass.from_labels(["a"] * 3)
    with pytest.raises(LabelError, match="1 of 3 labels are empty"):
        Multiclass.from_labels(["a", "", "b"])
    with pytest.raises(LabelError, match="'z' \\(row 2\\) is none of the classes a, b"):
        Multiclass(("a", "b")).encode(["a", "z"])
    with pytest.raises(LabelError, match="'warm' \\(row 2\\) is not a finite number"):
        Regression.from_labels(["1.0", "warm"])
    with pytest.raises(LabelError, match="all 2 are the same"):
        Regression.from_labels(["1.0", "1"])
    with pytest.raises(UsageError, match="task 'several' is not one of"):
        task_from_name("several", ["a", "b"])


def test_multiclass_decodes_to_the_likeliest_class_at_the_temperature():
    task = Multiclass(("a", "b"))
    outputs = np.array([[0.0, 2.0], [1.0, 0.0]], dtype=np.float32)
    cold, warm = (task.decode(outputs, temperature=t) for t in (1.0, 4.0))
    assert [d.label for d in cold] == [d.label for d in warm] == ["b", "a"]
    assert cold[0].score == pytest.approx(1 / (1 + math.exp(-2)))
    assert warm[0].score == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_rows_without_a_vector_decode_to_nothing():
    nothing = np.full((1, 2), np.nan)
    label, score = Multiclass(("a", "b")).decode(nothing)[0]
    assert label == ""
    assert math.isnan(score)
    assert Regression(0.0, 1.0).decode(nothing)[0].label == ""


def test_regression_is_standardised_inside_and_in_units_outside():
    task = Regression.from_labels(["40", "50", "60"])
    y = task.encode(["40", "50", "60"])
    assert y.mean() == pytest.approx(0)
    assert y.std() == pytest.approx(1)
    assert [d.label for d in task.decode(y[:, None])] == ["40", "50", "60"]
    assert task.metrics(y, y + 1)["rmse"] == pytest.approx(task.scale)
    assert task.probabilities(y[:, None]).shape == (3, 0)


def test_losses_are_least_at_the_truth():
    y = torch.tensor([0, 1])
    task = Multiclass(("a", "b"))
    good, bad = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 4.0], [4.0, 0.0]])
    assert task.loss(good, y) < task.loss(bad, y)
    assert Regression(0.0, 1.0).loss(torch.tensor([[1.0]]), torch.tensor([1.0])) == 0


def test_neighbours_vote_by_weight():
    task = Multiclass(("a", "b", "c"))
    outputs = task.neighbour_outputs(np.array([[0, 1, 1]]), np.array([[1.0, 0.9, 0.9]], dtype=np.float32))
    assert outputs.argmax() == 1
    assert np.exp(outputs).sum() == pytest.approx(1)
    mean = Regression(0.0, 1.0).neighbour_outputs(np.array([[1.0, 4.0]]), np.array([[2.0, 1.0]]))
    assert mean[0, 0] == pytest.approx(2.0)


def test_a_refused_row_is_unknown_and_keeps_its_score():
    task = Multiclass(("a", "b"))
    outputs = np.array([[0.0, 2.0], [1.0, 0.0], [np.nan, np.nan]], dtype=np.float32)
    plain, refused = task.decode(outputs), task.decode(outputs, refused=np.array([True, False, True]))
    assert [d.label for d in refused] == ["unknown", "a", ""]
    assert [d.score for d in refused[:2]] == [d.score for d in plain[:2]]


def test_members_are_averaged_as_probabilities_and_as_numbers():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(3, 5, 4)).astype(np.float32)
    task = Multiclass(tuple("abcd"))
    mean = np.mean([task.probabilities(member) for member in outputs], axis=0)
    np.testing.assert_allclose(task.probabilities(task.average_outputs(outputs)), mean, rtol=1e-5)
    numbers = outputs[:, :, :1]
    np.testing.assert_allclose(Regression(0.0, 1.0).average_outputs(numbers), numbers.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("task", [Multiclass(("a", "b")), Regression(0.0, 1.0)])
def test_a_blend_equals_its_parts_at_the_ends_and_lies_between(task):
    rng = np.random.default_rng(1)
    network, votes = rng.normal(size=(2, 6, task.n_outputs)).astype(np.float32)

    def say(outputs, temperature=1.0):
        found = task.probabilities(outputs, temperature=temperature)
        return found if task.labels else task.predict(outputs)

    temperature = 1.7 if task.labels else 1.0
    mixed = {
        w: say(task.mix_outputs(network, votes, share=w, temperature=temperature)) for w in (0.0, 0.3, 1.0)
    }
    np.testing.assert_allclose(mixed[1.0], say(network, temperature), rtol=1e-5)
    np.testing.assert_allclose(mixed[0.0], say(votes), rtol=1e-5)
    np.testing.assert_allclose(mixed[0.3], 0.3 * mixed[1.0] + 0.7 * mixed[0.0], rtol=1e-4, atol=1e-6)


def test_the_halfwidth_is_the_conformal_rank():
    task = Regression(50.0, 2.0)
    y = np.zeros(19)
    outputs = np.arange(1, 20)[:, None] * np.where(np.arange(19) % 2, 1, -1)[:, None]
    assert task.calibrate_width(outputs, y).halfwidth == 18 * 2.0  # rank ceil(20 * 0.9) of 19
    assert task.calibrate_width(outputs[:8], y[:8]).halfwidth is None  # 9 of 8 is too many
    assert task.calibrate_width(y[:, None], y).halfwidth is None
    assert "halfwidth" not in task.to_dict()


@pytest.mark.parametrize("task", [Multiclass(("a", "b")), Regression(50.0, 2.5), Regression(50.0, 2.5, 1.25)])
def test_tasks_survive_their_dict(task):
    assert task_from_dict(task.to_dict()) == task


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"name": "multiclass", "classes": ["a"]},
        {"name": "multiclass", "classes": ["a", "a"]},
        {"name": "multiclass", "classes": ["a", 1]},
        {"name": "regression", "mean": 0.0, "scale": 0.0},
        {"name": "regression", "mean": 0.0, "scale": math.inf},
        {"name": "regression", "mean": 0.0, "scale": 1.0, "halfwidth": -1.0},
        {"name": "regression", "mean": 0.0, "scale": 1.0, "halfwidth": math.nan},
        {"name": "regression", "mean": 0.0, "scale": 1.0, "halfwidth": "wide"},
        {"name": "pickle", "classes": ["a", "b"]},
    ],
)
def test_descriptions_of_no_task_are_refused(data):
    with pytest.raises(ValueError, match="no task"):
        task_from_dict(data)


def test_decisions_unpack_as_label_and_score():
    label, score = Decision("a", 0.5)
    assert (label, score) == ("a", 0.5)


@pytest.mark.parametrize("word", ["nan", "NA", "inf", "-inf", "NULL", "<NA>", "#N/A", "1e999", " NaN ", ""])
def test_numbers_with_gaps_among_them_are_no_classes(word):
    labels = [f"{i / 7:.3f}" for i in range(40)]
    labels[4] = labels[9] = word
    told = re.escape(f"2 of 40 labels are no numbers, such as {word!r} (row 5), and the others are; mend or")
    with pytest.raises(LabelError, match=told + ".*--task multiclass .*if they are classes"):
        task_from_name("auto", labels)
    whole = [str(i) for i in range(30)] + [word]
    with pytest.raises(LabelError, match=r"1 of 31 labels are no numbers, .* \(row 31\)"):
        task_from_name("auto", whole)
    if word:
        assert isinstance(task_from_name("multiclass", labels), Multiclass)


def test_a_long_label_is_shortened_in_messages():
    long = "HHHEEECCC" * 40
    for task, labels in (("regression", ["1.5", long]), ("multilabel", ["a;b", f"{long};|"])):
        with pytest.raises(LabelError, match="HHHEEE") as caught:
            task_from_name(task, labels)
        assert len(str(caught.value)) < 150
    for fit in (
        lambda: Multiclass.from_labels([long] * 3),
        lambda: Multiclass(("a", long)).encode(["a", long + "x"]),
        lambda: Multilabel.from_labels([long, f"{long};b"]),
        lambda: Multilabel(("a", long)).encode(["a", long + "x"]),
    ):
        with pytest.raises(LabelError, match=r"HHHEEECCC\.\.\.'") as caught:
            fit()
        assert len(str(caught.value)) < 200
    with pytest.raises(LabelError, match=r"'a, b', 'c\\nd'"):
        Multiclass(("a, b", "c\nd")).encode(["z"])


def test_the_ends_of_a_range_have_no_more_digits_than_a_float():
    ((low, high),) = Regression(1e308, 1e-320).sets(np.zeros((1, 1)), level=0.5)
    assert float(low) == float(high) == 1e308
