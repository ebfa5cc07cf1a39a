"""Conformal sets: they hold the truth as often as asked, grow with what is asked, and live in the file."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from toys import backbone, fasta, head, proteins, run, write_head, write_weights

import bioxfer.prediction
from bioxfer.conformal import COVERAGES, MOST_SCORES, ConformalScores
from bioxfer.errors import HeadFileError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.io import read_sequences
from bioxfer.prediction import list_heads, load_head, predict, predict_rows, write_predictions
from bioxfer.tasks import Multiclass, Multilabel, Regression

CLASSES = Multiclass(("a", "b", "c", "d"))
LABELS = Multilabel(("a", "b", "c", "d"))
NUMBER = Regression(50.0, 4.0)


def draw(task, rows: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets of exchangeable rows, on which the head is far from always right."""
    outputs = rng.normal(size=(rows, task.n_outputs)).astype(np.float32) * 2
    if task is NUMBER:
        return outputs, outputs[:, 0] + rng.standard_t(3, size=rows)
    if task is CLASSES:
        chances = task.probabilities(outputs, temperature=2.0)  # the head is too sure
        return outputs, (rng.random((rows, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(max=3)
    targets = (rng.random(outputs.shape) < task.probabilities(outputs, temperature=2.0)).astype(np.float32)
    targets[np.arange(rows), outputs.argmax(axis=1)] = 1  # a cell names a label at least
    return outputs, targets


def holds(task, sets, targets) -> list[bool]:
    """Tell by the sets as they are written whether each holds the truth."""
    if task is NUMBER:
        values = targets * task.scale + task.mean
        return [float(low) <= value <= float(high) for (low, high), value in zip(sets, values, strict=True)]
    members = task.members(targets)
    true = [{task.classes[c] for c in np.flatnonzero(row)} for row in members]
    return [each <= set(said) for each, said in zip(true, sets, strict=True)]


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBER], ids=lambda task: task.name)
def test_sets_hold_the_truth_as_often_as_asked(task, coverage):
    rng = np.random.default_rng(1)
    rounds, size = 40, 400
    covered, floor = [], []
    for _ in range(rounds):
        outputs, targets = draw(task, 2 * size, rng)
        kept = ConformalScores.fit(task.nonconformity(outputs[:size], targets[:size]))
        sets = task.sets(outputs[size:], level=kept.level(coverage))
        covered += holds(task, sets, targets[size:])
        floor.append(np.mean(task.nonconformity(outputs, targets) == 0))
    # binomial error of the rows, and that of the level, which a round's rows share
    error = 4 * math.sqrt(coverage * (1 - coverage) * (1 / len(covered) + 1 / (rounds * size)))
    assert np.mean(covered) > coverage - error
    # no more than asked, where one answer alone does not give it already
    assert np.mean(covered) < max(coverage, np.mean(floor)) + error + 2 / size


@pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBER], ids=lambda task: task.name)
def test_a_set_grows_with_the_coverage_and_is_never_empty(task):
    rng = np.random.default_rng(2)
    outputs, targets = draw(task, 500, rng)
    kept = ConformalScores.fit(task.nonconformity(outputs, targets))
    before = None
    for coverage in (0.01, 0.5, 0.7, 0.9, 0.99, 0.9999):
        sets = task.sets(outputs, level=kept.level(coverage))
        assert all(sets)
        if before is not None and task is NUMBER:
            assert all(float(b[0]) >= float(s[0]) for b, s in zip(before, sets, strict=True))
        elif before is not None:
            assert all(set(b) <= set(s) for b, s in zip(before, sets, strict=True))
        before = sets
    # of 500 rows none tells about one in ten thousand
    assert before == ([["-inf", "inf"]] * 500 if task is NUMBER else before)
    assert task is NUMBER or {len(s) for s in before} == {4}


def test_what_is_measured_is_what_is_written():
    """A score at the level or below is a truth in the set, to the last row."""
    rng = np.random.default_rng(3)
    for task in (CLASSES, LABELS):
        outputs, targets = draw(task, 300, rng)
        kept = ConformalScores.fit(task.nonconformity(outputs, targets, temperature=0.7))
        for coverage in COVERAGES:
            level = kept.level(coverage)
            inside = task.nonconformity(outputs, targets, temperature=0.7) <= level
            assert inside.tolist() == holds(task, task.sets(outputs, level=level, temperature=0.7), targets)
            assert inside.mean() >= coverage


def test_the_likeliest_stands_first_and_rows_of_nan_say_nothing():
    outputs = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [np.nan] * 4, [0.97, 0.01, 0.01, 0.01]]))
    assert CLASSES.sets(outputs, level=0.85) == [["d", "c", "b"], [], ["a"]]
    assert CLASSES.sets(outputs, level=0.0) == [["d"], [], ["a"]]
    assert NUMBER.sets(np.array([[0.5], [np.nan]]), level=1.0) == [["48", "56"], []]


@given(st.integers(1, 4000), st.floats(0.001, 0.999))
def test_few_or_many_scores_the_level_is_never_too_low(count, coverage):
    scores = np.random.default_rng(count).permutation(np.linspace(0, 1, count))
    kept = ConformalScores.fit(scores)
    assert len(kept.scores) == min(count, MOST_SCORES)
    rank = math.ceil((count + 1) * coverage - 1e-9)
    level = kept.level(coverage)
    if rank > count:
        assert level == math.inf
        return
    exact = np.sort(scores)[max(rank, 1) - 1]
    assert exact <= level <= exact + 1 / MOST_SCORES + 1 / count + 1e-6


def test_scores_are_checked():
    kept = ConformalScores.fit([0.3, 0.1, 0.2])
    np.testing.assert_allclose(kept.scores, [0.1, 0.2, 0.3], rtol=1e-6)
    for coverage in (0.0, 1.0, -0.1, 90.0, math.nan):
        with pytest.raises(UsageError, match=r"coverage .* is not between 0 and 1; give a share such as 0.9"):
            kept.level(coverage)
    tensors = kept.to_tensors()
    again = ConformalScores.from_tensors(tensors)
    assert (again.scores.tolist(), again.count) == (kept.scores.tolist(), 3)
    for changes, message in (
        ({"scores": kept.scores[::-1]}, "do not ascend"),
        ({"scores": kept.scores[:0]}, r"of shape \(0,\) are not of 3 proteins"),
        ({"scores": kept.scores.astype(np.float64)}, "are not of 3 proteins"),
        ({"scores": kept.scores * np.float32(np.nan)}, "do not ascend or are not finite"),
        ({"count": np.array(2)}, "are not of 2 proteins"),
        ({"count": np.array([3])}, "count has shape"),
        ({"more": kept.scores}, "consist of scores and count, not scores, count, more"),
    ):
        with pytest.raises(HeadFileError, match=message):
            ConformalScores.from_tensors(tensors | changes)


# The head.


def test_a_head_keeps_its_scores_in_its_file(tmp_path):
    for name, task in (("taste", "multiclass"), ("alanine", "regression")):
        trained = head(name, task=task)
        loaded = TrainedHead.load(write_head(tmp_path, name, task=task))
        assert loaded.conformal.count == trained.card["split"]["train"] == 28
        np.testing.assert_array_equal(loaded.conformal.scores, trained.conformal.scores)
        features = np.random.default_rng(0).normal(size=(5, trained.n_features)).astype(np.float32)
        assert loaded.predict_sets(features, coverage=0.8) == trained.predict_sets(features, coverage=0.8)


def test_a_file_with_foreign_scores_is_refused(tmp_path):
    path = write_head(tmp_path)
    data = path.read_bytes()
    tensors = load(data)
    tensors["conformal.scores"] = tensors["conformal.scores"][::-1].copy()
    path.write_bytes(save(tensors))  # without its header
    with pytest.raises(HeadFileError):
        TrainedHead.load(path)


def test_the_card_says_how_often_sets_held_and_how_large_they_were():
    told = head().card["conformal"]
    assert [each["coverage"] for each in told["levels"]] == list(COVERAGES)
    assert told["proteins"] == 28
    for each in told["levels"]:
        assert 0 <= each["covered"]["value"] <= 1
        assert 1 <= each["size"]["value"] <= 2
    told = head("alanine", task="regression").card["conformal"]
    widths = [each["size"]["value"] for each in told["levels"]]
    assert widths == sorted(widths)
    assert head("alanine", task="regression").task.halfwidth * 2 == pytest.approx(widths[1], rel=1e-4)


def test_predict_writes_a_set_or_a_range_for_each_head(tmp_path):
    records = [*proteins(6), *read_sequences_of(">empty\n\n", tmp_path)]
    table = predict(
        records,
        heads=[head(), head("alanine", task="regression")],
        model=backbone(),
        coverage=0.9,
        probabilities=True,
    )
    assert list(table.columns[4:]) == [
        "taste", "taste_score", "taste_nearest", "taste_flag", "taste_set", "taste_p_oily", "taste_p_salty",
        "alanine", "alanine_score", "alanine_nearest", "alanine_flag", "alanine_low", "alanine_high",
    ]  # fmt: skip
    whole, empty = table.iloc[:-1], table.iloc[-1]
    assert empty[["taste_set", "alanine_low", "alanine_high"]].isna().all()
    for _, row in whole.iterrows():
        assert row["taste_set"].split(";")[0] == row["taste"]
        assert float(row["alanine_low"]) < float(row["alanine"]) < float(row["alanine_high"])
    plain = predict(records, heads=[head()], model=backbone())
    assert "taste_set" not in plain.columns
    assert plain["taste"].tolist() == table["taste"].tolist()


def read_sequences_of(text, tmp_path):
    (tmp_path / "more.fasta").write_text(text)
    return read_sequences(tmp_path / "more.fasta")


def test_labels_that_hold_the_sign_between_them_are_joined_by_another():
    from bioxfer.rows import _set_cells

    class Odd:
        labels = ("a;b", "c")

    assert _set_cells(Odd(), ["c", "a;b"]) == ["c|a;b"]
    Odd.labels = ("a;b", "c|d")
    assert _set_cells(Odd(), ["c|d", "a;b"]) == ["c|d; a;b"]


def test_the_command_line_asks_for_coverage(tmp_path):
    weights, path = write_weights(tmp_path), write_head(tmp_path)
    (tmp_path / "in.fasta").write_text(fasta(proteins(4)))
    common = ("predict", tmp_path / "in.fasta", "-o", "-", "--model", weights, "--no-resume")
    ran = run(*common, "--head", path, "--coverage", "0.9")
    assert ran.code == 0
    header, *rows = ran.out.decode().splitlines()
    assert header.endswith("taste_flag,taste_set")
    assert len(rows) == 4
    for wrong, message in (
        (("--coverage", "1.5"), "coverage 1.5 is not between 0 and 1; give a share such as 0.9"),
        (("--coverage", "0.9", "--format", "long"), "a long table has no column for label sets; leave"),
    ):
        ran = run(*common, "--head", path, *wrong)
        assert ran.code == 2
        assert message in ran.err


def test_a_head_without_scores_says_so(tmp_path):
    ready = load_head(next(name for name in list_heads() if load_head(name).task.name == "regression"))
    if ready.conformal is None:
        with pytest.raises(
            UsageError, match="keeps no conformal scores to make label sets from; train it anew"
        ):
            ready.predict_sets(np.zeros((1, ready.n_features)))
        with pytest.raises(UsageError, match=f"head '{ready.name}' keeps no conformal scores"):
            predict(["MKV"], heads=[ready], coverage=0.9)
    residues = load_head("secondary_structure")
    with pytest.raises(
        UsageError, match="labels residues, and label sets are of proteins; leave coverage out"
    ):
        predict(["MKV"], heads=[residues], coverage=0.9)


def test_too_few_proteins_for_a_coverage_are_told_once_for_each_head(tmp_path, caplog):
    heads = [head(), head("alanine", task="regression")]
    with caplog.at_level("WARNING", logger="bioxfer"):
        counts = write_predictions(proteins(4), tmp_path / "t.csv", heads, backbone(), coverage=0.999)
    assert counts["ok"] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "head 'taste': 28 proteins are too few for a coverage of 0.999: the set is all labels",
        "head 'alanine': 28 proteins are too few for a coverage of 0.999: the range is everything",
    ]
    cells = (tmp_path / "t.csv").read_text().splitlines()[1].split(",")
    assert cells[-2:] == ["-inf", "inf"]
    caplog.clear()
    write_predictions(proteins(4), tmp_path / "t.csv", heads, backbone(), coverage=0.8)
    assert not caplog.records


def test_without_named_heads_those_without_sets_go_without(tmp_path, monkeypatch, caplog):
    old = dataclasses.replace(head("alanine", task="regression"), conformal=None)
    heads = [head(), old]
    with caplog.at_level("INFO", logger="bioxfer"):
        columns, rows = predict_rows(
            proteins(3), heads, backbone(), coverage=0.9, sets_where_possible=True, probabilities=True
        )
        found = list(rows)
    assert "taste_set" in columns
    assert not {"alanine_set", "alanine_low", "alanine_high"} & set(columns)
    assert {len(row) for row in found} == {len(columns)}
    assert "no label sets of alanine, which labels residues or keeps no conformal scores" in caplog.text
    with pytest.raises(UsageError, match="head 'alanine' keeps no conformal scores"):
        predict_rows(proteins(3), heads, backbone(), coverage=0.9)
    with pytest.raises(UsageError, match="none of 1 heads can make label sets: each labels residues or"):
        predict_rows(proteins(3), [old], backbone(), coverage=0.9, sets_where_possible=True)

    folder = tmp_path / "heads"
    folder.mkdir()
    for each in heads:
        each.save(folder / f"{each.name}.safetensors")
    monkeypatch.setattr(bioxfer.prediction, "READY_HEADS", folder)
    table = predict(proteins(3), model=backbone(), coverage=0.9)
    assert [name for name in table.columns if name.endswith(("_set", "_low"))] == ["taste_set"]
    with pytest.raises(UsageError, match="head 'alanine' keeps no conformal scores"):
        predict(proteins(3), heads=["taste", "alanine"], model=backbone(), coverage=0.9)
    weights = write_weights(tmp_path)
    (tmp_path / "in.fasta").write_text(fasta(proteins(4)))
    common = ("predict", tmp_path / "in.fasta", "-o", "-", "--model", weights, "--no-resume")
    ran = run(*common, "--coverage", "0.9")
    assert ran.code == 0
    assert "taste_set" in ran.out.decode().splitlines()[0]
    assert ran.err.count("no label sets of alanine") == 1
    assert run(*common, "--coverage", "0.9", "--head", "alanine").code == 2
