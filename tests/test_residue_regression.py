"""Numbers for residues: from labels with gaps to a head, its card and the table."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from toys import SALTY, WINDOW, backbone, run, table, write_weights
from toys import head as protein_head

import bioxfer.residue_fitting
from bioxfer.cards import describe_card
from bioxfer.embedding import embed
from bioxfer.errors import HeadFileError, LabelError, UsageError
from bioxfer.headfile import digest, read_container, to_json
from bioxfer.prediction import load_head, predict
from bioxfer.residue_fitting import fit_residues, gather_residues
from bioxfer.residue_labels import choose_residue_task, encode_labels
from bioxfer.residue_scores import (
    ResidueClassScores,
    ResidueValueScores,
    fit_window_values,
    run_windows,
    score_residue_gain,
    window_codes,
)
from bioxfer.residue_tasks import ResidueClasses, ResidueValues, look_like_residue_values
from bioxfer.residues import ResidueHead
from bioxfer.sequences import SequenceRecord
from bioxfer.training import evaluate_on_records, train_on_records

# Few epochs of a small network at a high rate: a short path is a quick test.
SHORT = {"EPOCHS": (2, 20), "WIDTHS": (3,), "HIDDEN": 16, "RATE": {"linear": 2e-2, "conv": 2e-2}}
SCALE = {letter: 10.0 + 0.5 * place for place, letter in enumerate("ADEFGIKLMNPQRSTVWY")}

FORMS = pytest.mark.parametrize("form", ["linear", "conv"])


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    for key, value in SHORT.items():
        monkeypatch.setattr(bioxfer.residue_fitting, key, value)


def proteins(count: int = 24, *, seed: int = 0) -> list[SequenceRecord]:
    """Give each residue the number of its letter; every seventh is unresolved."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        sequence = "M" + "".join(dice.choices(list(SCALE), k=dice.randint(20, 39)))
        cells = ["?" if place % 7 == 3 else f"{SCALE[r]:.2f}" for place, r in enumerate(sequence)]
        found.append(SequenceRecord(f"p{number}", sequence, label=" ".join(cells)))
    return found


def relabelled(record: SequenceRecord, place: int, cell: str) -> SequenceRecord:
    cells = (record.label or "").split()
    cells[place] = cell
    return dataclasses.replace(record, label=" ".join(cells))


def train(records, **options) -> ResidueHead:
    head = train_on_records(
        records,
        backbone(),
        **{"name": "size", "data_source": "toys", "valid": 0.3, "cluster_by": "kmer", **options},
    )
    assert isinstance(head, ResidueHead)
    return head


@functools.cache
def head(form: str = "linear") -> ResidueHead:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in SHORT.items():
            patch.setattr(bioxfer.residue_fitting, key, value)
        return train(proteins(), head=form)


# --- labels -----------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=2))
def test_numbers_survive_being_written(values):
    label = "\t ".join("?" if value is None else repr(value) for value in values)
    (cells,) = ResidueValues.split([f" {label}\n"])
    np.testing.assert_array_equal(
        ResidueValues.encode(cells), np.array([math.nan if v is None else v for v in values])
    )


def test_what_says_nothing_is_unresolved():
    cells = ["1", "?", "-", "_", ".", "nan", "NaN", "NA", "na", "-2.5e1"]
    assert [math.isnan(value) for value in ResidueValues.encode(cells)] == [False, *[True] * 8, False]
    assert ResidueValues.encode(cells)[-1] == -25


def test_a_table_without_white_space_holds_digits():
    assert ResidueValues.split(["019?", "3"]) == [["0", "1", "9", "?"], ["3"]]
    assert ResidueValues.split(["0.5", "1 2"]) == [["0.5"], ["1", "2"]]
    task, codes = encode_labels(
        [SequenceRecord("a", "MKV", label="01?"), SequenceRecord("b", "MK", label="9-")], "residue-regression"
    )
    assert [list(np.nan_to_num(code, nan=-1)) for code in codes] == [[0, 1, -1], [9, -1]]
    assert (task.mean, task.n_outputs, task.labels) == (pytest.approx(10 / 3), 1, ())


def test_auto_tells_numbers_of_residues():
    assert look_like_residue_values(["1 2 3", "0.5\tNA\t?"], [3, 3])
    assert not look_like_residue_values(["1 2 3", "1 2"], [3, 3])
    assert look_like_residue_values(["1 2 3"] * 9 + ["1 2"], [3] * 10)
    assert not look_like_residue_values(["1 2 3", "1 inf 3"], [3, 3])
    assert not look_like_residue_values(["a b c"], [3])
    assert not look_like_residue_values(["1", "2"], [1, 1])
    assert not look_like_residue_values([], [])
    records = proteins(3)
    assert choose_residue_task("auto", records) == "residue-regression"
    assert choose_residue_task("regression", records) == ""
    digits = [dataclasses.replace(r, label="7" * len(r.sequence)) for r in records]
    assert choose_residue_task("auto", digits) == "residue-class"
    assert choose_residue_task("residue-regression", digits) == "residue-regression"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("inf", r"'p2' \(t\.csv, line 4\): label 'inf' at residue 6 is not a finite number"),
        ("-1e999", "label '-1e999' at residue 6 is not a finite number; give \\? if there is none"),
        ("high", "label 'high' at residue 6"),
        ("1,5", "label '1,5' at residue 6"),
        ("1 2", r"'p2' \(t\.csv, line 4\): a label of (\d+) numbers does not fit a protein of \d+ residues"),
        ("", "give one number for each, \\? where it is unresolved"),
    ],
)
def test_a_bad_cell_names_its_record_and_its_residue(cell, message):
    records = proteins()
    records[2] = relabelled(dataclasses.replace(records[2], source="t.csv", line=4), 5, cell)
    with pytest.raises(LabelError, match=message):
        train(records, task="residue-regression")
    with pytest.raises(LabelError, match=message):
        evaluate_on_records(head(), records, backbone(), cluster_by="kmer")


def test_nothing_to_learn_from_is_refused():
    records = proteins()
    blank = [dataclasses.replace(r, label=" ".join("?" * len(r.sequence))) for r in records]
    with pytest.raises(LabelError, match="no residue has a number, all are unresolved"):
        train(blank)
    with pytest.raises(LabelError, match="no residue of these proteins has a resolved label"):
        evaluate_on_records(head(), blank, backbone(), cluster_by="kmer")
    same = [dataclasses.replace(r, label=" ".join(["1.5"] * len(r.sequence))) for r in records]
    with pytest.raises(LabelError, match=r"numbers that differ, and all \d+ are 1\.5"):
        train(same)
    huge = [relabelled(relabelled(r, 0, "1e300"), 1, "-1e300") for r in records]
    with pytest.raises(LabelError, match="no standard deviation in double precision"):
        train(huge)
    with pytest.raises(LabelError, match="'p0' has no label"):
        train([dataclasses.replace(records[0], label=""), *records[1:]], task="residue-regression")
    with pytest.raises(UsageError, match="'mlp' cannot label residues"):
        train(records, head="mlp")
    with pytest.raises(UsageError, match="'residues' is not one of residue-class, residue-regression"):
        encode_labels(records, "residues")
    words = ["train", "train", "dev", "valid"]
    parted = [dataclasses.replace(r, split=words[n % 4]) for n, r in enumerate(records)]
    alone = [
        dataclasses.replace(s, split=r.split) if r.split == "train" else r
        for r, s in zip(parted, same, strict=True)
    ]
    with pytest.raises(LabelError, match=r"numbers that differ, and all \d+ are 1\.5"):
        train(alone, split="column")


# --- training ---------------------------------------------------------------------------------------------


@FORMS
def test_training_beats_the_mean_and_says_so(form):
    card = head(form).card
    assert (card["task"], card["head"]["kind"]) == ("residue-regression", form)
    assert set(card["metrics"]) == {"spearman", "protein_spearman", "rmse"}
    assert set(card["baselines"]) == {"mean", "residue", "window15"}
    assert card["baselines"]["mean"]["metrics"]["spearman"]["value"] == 0
    # the number is the residue's own
    assert card["baselines"]["residue"]["metrics"]["spearman"]["value"] == pytest.approx(1)
    assert card["baselines"]["residue"]["metrics"]["rmse"]["value"] == pytest.approx(0, abs=1e-6)
    gain = card["baselines"]["mean"]["head_minus_baseline"]
    assert gain["metric"] == "spearman"
    assert gain["ci95"][0] > 0
    counted = sum(card["labels"][side]["count"] for side in ("train", "dev", "valid"))
    unresolved = sum((r.label or "").count("?") for r in proteins())
    assert card["data"]["unresolved_residues"] == unresolved
    assert counted + unresolved == card["data"]["residues"] == sum(len(r.sequence) for r in proteins())
    assert (card["labels"]["train"]["min"], card["labels"]["train"]["max"]) == (10.0, 18.5)
    text = describe_card(card)
    assert "residue-regression" in text
    assert "window15" in text
    assert "classes" not in text
    assert "calibration error" not in text
    json.dumps(card, allow_nan=False)


def test_units_are_those_of_the_training_proteins():
    """Numbers of held-out proteins reach neither the weights nor the units."""
    words = ["train", "train", "dev", "valid"]
    records = [dataclasses.replace(r, split=words[n % 4]) for n, r in enumerate(proteins())]
    shifted = [
        dataclasses.replace(r, label=(r.label or "").replace("1", "9")) if r.split == "valid" else r
        for r in records
    ]
    first, second = (train(some, split="column", refit=False, head="linear") for some in (records, shifted))
    assert first.task == second.task
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[name], tensor)
    assert first.card["metrics"] != second.card["metrics"]


def toy_set(*, classes: bool):
    records = proteins(12)
    task, codes = encode_labels(records, "residue-regression")
    if classes:
        task = ResidueClasses(("a", "b"))
        codes = [np.where(np.isnan(c), -1, c > 14).astype(np.int8) for c in codes]
    found = embed(records, model=backbone(), per_residue=True)
    rows = zip(found.ids, [r.sequence for r in records], found.residues, strict=True)
    return gather_residues(rows, codes, width=64)[0], task


@FORMS
@pytest.mark.parametrize("classes", [False, True], ids=["numbers", "classes"])
def test_what_is_masked_changes_nothing(form, classes):
    """An unresolved residue weighs as if it had never been asked for, whatever its neighbours are."""
    data, task = toy_set(classes=classes)
    sides = {"train": np.arange(9), "dev": np.arange(9, 12)}
    fitted = fit_residues(data, task, head=form, seed=0, **sides)
    said = fitted.run(data, np.arange(12))
    assert np.isfinite(said).all()
    # A residue is masked by its target alone: what loss and gradient see of its output is nothing.
    outputs = torch.from_numpy(said.copy()).requires_grad_()
    fitted.task.loss(outputs, torch.from_numpy(data.targets)).backward()
    masked = np.isnan(data.targets) if data.targets.dtype.kind == "f" else data.targets < 0
    assert masked.any()
    assert not outputs.grad[torch.from_numpy(masked)].any()
    assert outputs.grad[torch.from_numpy(~masked)].any(dim=1).all()
    whole, known = torch.from_numpy(said), torch.from_numpy(~masked)
    targets = torch.from_numpy(data.targets)
    assert fitted.task.loss(whole, targets) == pytest.approx(
        float(fitted.task.loss(whole[known], targets[known])), rel=1e-6
    )
    assert fitted.task.out_of_sample_loss(said[~masked], data.targets[~masked]) == pytest.approx(
        float(fitted.task.loss(whole, targets)), rel=1e-5
    )


@pytest.mark.parametrize("task", ["residue-regression", "residue-class"])
def test_how_a_residue_is_masked_changes_nothing(task):
    words, marks = ["train", "train", "dev", "valid"], ("?", "nan")
    records = [dataclasses.replace(r, split=words[n % 4]) for n, r in enumerate(proteins())]
    if task == "residue-class":
        marks = ("?", "-")
        cells = {f"{value:.2f}": "ab"[value > 14] for value in SCALE.values()} | {"?": "?"}
        records = [
            dataclasses.replace(r, label="".join(cells[c] for c in (r.label or "").split())) for r in records
        ]
    other = [dataclasses.replace(r, label=(r.label or "").replace(*marks)) for r in records]
    assert other != records
    first, second = (train(some, task=task, split="column", head="conv") for some in (records, other))
    assert first.card["data"].pop("sha256") != second.card["data"].pop("sha256")
    assert (first.card, first.task, first.temperature) == (second.card, second.task, second.temperature)
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(second.tensors[name], tensor)


@pytest.mark.parametrize("task", ["residue-regression", "residue-class"])
def test_a_masked_label_changes_no_metric(task):
    """Of two heads that differ in masked residues' answers alone, no number differs."""
    chance = np.random.default_rng(0)
    lengths, groups = chance.integers(5, 30, 20), chance.integers(0, 8, 20)
    total = int(lengths.sum())
    masked = chance.random(total) < 0.2
    if task == "residue-class":
        targets, said = np.where(masked, -1, chance.integers(0, 3, total)), chance.integers(0, 3, total)
        other = np.where(masked, (said + 1) % 3, said)
        found = [
            ResidueClassScores(ResidueClasses(tuple("abc")), targets, each, lengths, groups).score(seed=0)
            for each in (said, other)
        ]
    else:
        targets, said = np.where(masked, np.nan, chance.normal(size=total)), chance.normal(size=total)
        other = np.where(masked, 1e9, said)
        found = [
            ResidueValueScores(ResidueValues(0.0, 1.0), targets, each, lengths, groups).score(seed=0)
            for each in (said, other)
        ]
    assert found[0] == found[1]


def test_proteins_without_any_number_train_nothing():
    records = proteins()
    words = ["train", "train", "dev", "valid"]
    records = [dataclasses.replace(r, split=words[n % 4]) for n, r in enumerate(records)]
    blank = [
        dataclasses.replace(r, label=" ".join("?" * len(r.sequence))) if r.split == "dev" else r
        for r in records
    ]
    with pytest.raises(UsageError, match="6 dev proteins with a vector hold no resolved residue"):
        train(blank, split="column")


def test_training_is_deterministic():
    again = train(proteins(), head="conv")
    for name, tensor in head("conv").tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert (again.card, again.task) == (head("conv").card, head("conv").task)


# --- scores -----------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_text_books():
    chance = np.random.default_rng(1)
    lengths, groups = chance.integers(1, 60, 60), chance.integers(0, 20, 60)
    total = int(lengths.sum())
    targets = np.round(chance.normal(size=total), 1)  # with equals among them
    said = targets + np.round(chance.normal(size=total), 1)
    targets[chance.random(total) < 0.1] = np.nan
    scores = ResidueValueScores(ResidueValues(0.0, 1.0), targets, said, lengths, groups)
    found = scores.score(seed=0)
    seen = ~np.isnan(targets)
    assert found["spearman"]["value"] == pytest.approx(spearmanr(targets[seen], said[seen]).statistic)
    assert found["rmse"]["value"] == pytest.approx(np.sqrt(np.square(targets - said)[seen].mean()))
    owner = np.repeat(np.arange(60), lengths)
    each = [
        spearmanr(targets[seen & (owner == p)], said[seen & (owner == p)]).statistic
        for p in range(60)
        if (seen & (owner == p)).sum() >= 3
    ]
    assert found["protein_spearman"]["value"] == pytest.approx(np.nanmean(each))
    for score in found.values():
        low, high = score["ci95"]
        assert low < score["value"] < high
    assert score_residue_gain(scores, scores, seed=0)["ci95"] == [0.0, 0.0]
    alone = ResidueValueScores(ResidueValues(0.0, 1.0), targets, said, lengths, np.zeros(60)).score(seed=0)
    assert alone["spearman"]["ci95"] is None


def test_ranks_by_steps_are_close_to_exact_ones():
    """A draw of each cluster once is the whole, and its steps cost no more than rounding would."""
    chance = np.random.default_rng(2)
    lengths, groups = np.full(300, 30), np.arange(300)
    targets = chance.gamma(0.5, size=9000)
    said = targets + chance.normal(size=9000)
    scores = ResidueValueScores(ResidueValues(0.0, 1.0), targets, said, lengths, groups)
    stepped = scores.metrics(np.ones((1, 300)))["spearman"][0]
    assert stepped == pytest.approx(spearmanr(targets, said).statistic, abs=1e-3)
    few = ResidueValueScores(ResidueValues(0.0, 1.0), np.round(targets), np.round(said), lengths, groups)
    exact = spearmanr(np.round(targets), np.round(said)).statistic
    assert few.metrics(np.ones((1, 300)))["spearman"][0] == pytest.approx(exact, abs=1e-6)


def test_the_window_baseline_is_a_ridge_regression():
    chance = np.random.default_rng(0)
    sequences = ["".join(chance.choice(list("ACDEFGHIKLMNPQRSTVWY"), 50)) for _ in range(40)]
    codes = window_codes(sequences)
    targets = 5.0 + (codes[:, 7] % 22) * 1.0 + 0.5 * (codes[:, 8] % 22)
    said = run_windows(fit_window_values(codes, targets), codes)[:, 0]
    ones = np.zeros((len(codes), 330))
    np.put_along_axis(ones, codes.astype(int), 1, axis=1)
    weight = np.linalg.solve(ones.T @ ones + 10 * np.eye(330), ones.T @ (targets - targets.mean()))
    np.testing.assert_allclose(said, ones @ weight + targets.mean(), atol=1e-3)
    assert np.corrcoef(said, targets)[0, 1] > 0.99


def test_a_width_holds_its_share_of_new_proteins():
    """Proteins differ in how far off they are, and clusters differ in size."""
    chance = np.random.default_rng(0)
    task, held = ResidueValues(3.0, 2.0), []
    for _ in range(200):
        spread, lengths = chance.gamma(2.0, size=41), chance.integers(5, 80, 41)
        owner = np.repeat(np.arange(41), lengths)
        outputs = chance.normal(size=(len(owner), 1))
        targets = task.values(outputs) + chance.normal(size=len(owner)) * spread[owner]
        fit, new = owner < 40, owner == 40
        width = task.calibrate_width(outputs[fit], targets[fit], owner[fit]).halfwidth
        held.append((np.abs(task.values(outputs) - targets)[new] <= width).mean())
    assert np.mean(held) == pytest.approx(0.9 + 0.5 / 41, abs=0.04)  # 200 draws of a protein's share
    few = owner < 8
    assert task.calibrate_width(outputs[few], targets[few], owner[few]).halfwidth is None


def test_a_card_of_classes_tells_each_class_and_each_confidence():
    records = [
        dataclasses.replace(r, label="".join("s" if c in SALTY else "o" for c in r.sequence[:-1]) + "?")
        for r in proteins()
    ]
    card = train(records, head="linear").card
    assert [told["label"] for told in card["classes"]] == ["o", "s"]
    for told in card["classes"]:
        counted = card["labels"][told["label"]]
        assert (told["train"], told["valid"]) == (counted["train"], counted["valid"])
        assert told["train_clusters"] == card["split"]["train_clusters"]  # each has some of both
        assert told["f1_ci95"][0] <= told["f1"] <= told["f1_ci95"][1]
        assert told["f1"] == pytest.approx(
            2 * told["precision"] * told["recall"] / (told["precision"] + told["recall"])
        )
    resolved = sum(told["valid"] for told in card["classes"])
    right = sum(told["recall"] * told["valid"] for told in card["classes"])
    assert right / resolved == pytest.approx(card["metrics"]["accuracy"]["value"])
    assert np.mean([told["f1"] for told in card["classes"]]) == pytest.approx(
        card["metrics"]["macro_f1"]["value"]
    )
    bins = card["calibration"]["reliability"]
    assert sum(each["count"] for each in bins) == resolved
    assert sum(each["count"] * each["accuracy"] for each in bins) == pytest.approx(right)
    gap = sum(each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / resolved
    assert gap == pytest.approx(card["calibration"]["ece_after"])
    for each in bins:
        assert each["low"] <= each["confidence"] <= each["high"]
    assert "precision" in describe_card(card)
    assert "the held-out proteins make" in card["warnings"][0]
    json.dumps(card, allow_nan=False)


def test_a_class_that_is_never_said_has_no_precision():
    scores = ResidueClassScores(
        ResidueClasses(tuple("abc")),
        np.array([0, 0, 1, -1]),
        np.array([0, 1, 1, 2]),
        np.array([4]),
        np.zeros(1),
    )
    found = scores.by_class(seed=0)
    one, other = {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}, dict.fromkeys(found[0])
    assert found[0] == {"valid": 2, **one, "f1_ci95": None}
    assert found[2] == other | {"valid": 0}


# --- the head, its file and the table ---------------------------------------------------------------------

ODD = [
    SequenceRecord("a", "MAILVFWAILVFWPP"),
    SequenceRecord("empty", ""),
    SequenceRecord("long", "MAILVFWGDE" * 15),
]


@FORMS
def test_a_saved_head_is_the_same_bit_by_bit(form, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    head(form).save(first)
    for found in (ResidueHead.load(first), load_head(first)):
        found.save(second)
        assert first.read_bytes() == second.read_bytes()
        assert found.task == head(form).task
        pd.testing.assert_frame_equal(
            predict(ODD, heads=[found], model=backbone()), predict(ODD, heads=[head(form)], model=backbone())
        )
    assert repr(found) == f"<ResidueHead size: numbers, {form} on toy layer 2, 24 training proteins>"


@pytest.mark.parametrize(
    "change",
    [{"scale": 0.0}, {"scale": "1"}, {"mean": None}, {"halfwidth": -1.0}, {"halfwidth": "wide"}],
)
def test_a_task_that_is_none_is_refused(tmp_path, change):
    from safetensors.numpy import save

    path = tmp_path / "h.safetensors"
    head().save(path)
    meta, arrays = read_container(path.read_bytes())
    del meta["sha256"]
    meta["task"] |= change
    meta["sha256"] = digest(meta, arrays)
    path.write_bytes(save(arrays, metadata={"bioxfer": to_json(meta)}))
    with pytest.raises(HeadFileError, match="no task of residues"):
        load_head(path)


def test_the_table_has_one_number_for_each_residue():
    found = predict(ODD, heads=[head(), protein_head()], model=backbone(), long="truncate")
    assert found["size"].isna().tolist() == [False, True, False]
    assert found["size_score"].isna().all()
    assert found["size_flag"].notna().tolist() == [True, False, True]
    matrices = embed([ODD[0]], model=backbone(), per_residue=True).residues
    numbers = np.array(found["size"][0].split(), dtype=float)
    np.testing.assert_allclose(numbers, head().values(matrices[0]), rtol=1e-3)
    assert head().predict(matrices[0]) == found["size"][0]
    assert head().predict_proba(matrices[0]).shape == (15, 0)
    cells = found["size"][2].split(" ")
    assert (len(cells), cells[WINDOW:]) == (150, ["?"] * (150 - WINDOW))
    long = predict(ODD, heads=[head(), protein_head()], model=backbone(), long="truncate", shape="long")
    rows = long[(long["id"] == "long") & (long["head"] == "size")]
    assert list(rows["label"]) == cells
    assert list(rows["position"]) == list(range(1, 151))
    assert rows["score"].isna().all()
    assert rows["rank"].isna().all()


def test_numbers_are_written_as_exactly_as_they_vary():
    outputs = np.array([[0.0], [1.0], [-1.0], [np.nan]], dtype=np.float32)
    assert ResidueValues(0.0, 1 / 3).answer(outputs)[0] == ["0", "0.3333", "-0.3333", "?"]
    assert ResidueValues(1e6, 0.5).answer(outputs)[0][:3] == ["1000000", "1000000.5", "999999.5"]
    assert ResidueValues(0.0, 1.0).answer(-outputs[:1])[0] == ["0"]
    with pytest.raises(UsageError, match="predicts classes, not numbers"):
        dataclasses.replace(head(), task=ResidueClasses(("a", "b"))).values(np.zeros((1, 64)))


# --- the command line -------------------------------------------------------------------------------------


def test_the_command_line_from_labels_to_table(tmp_path):
    weights, data = write_weights(tmp_path), tmp_path / "data.csv"
    data.write_text(table(proteins(), "id", "sequence", "label"))
    made = tmp_path / "size.safetensors"
    options = ["--model", weights, "--cluster-by", "kmer", "-q"]
    trained = run("train", data, "-o", made, *options, "--head", "linear")
    assert trained.code == 0, trained.err
    assert b"residue-regression, linear head on toy" in trained.out
    shown = run("heads", "show", made, "--json")
    assert json.loads(shown.out)["task"] == "residue-regression"
    judged = run("evaluate", made, data, *options)
    assert judged.code == 0, judged.err
    rows = dict(line.split(",")[:2] for line in judged.out.decode().splitlines())
    assert float(rows["spearman"]) > 0.5
    assert int(rows["unresolved_residues"]) == sum((r.label or "").count("?") for r in proteins())
    assert "calibration_error" not in rows
    told = run("predict", data, "--head", made, "--model", weights, "-o", "-", "-q")
    assert told.code == 0, told.err
    header, *lines = (line.split(",") for line in told.out.decode().splitlines())
    assert header[4:6] == ["size", "size_score"]
    assert [len(line[4].split(" ")) for line in lines] == [int(line[1]) for line in lines]
    digits = [
        dataclasses.replace(r, label="".join("1" if c in SALTY else "9" for c in r.sequence))
        for r in proteins()
    ]
    data.write_text(table(digits, "id", "sequence", "label"))
    as_numbers = run(
        "train", data, "-o", tmp_path / "d.safetensors", *options, "--head", "linear",
        "--task", "residue-regression",
    )  # fmt: skip
    assert as_numbers.code == 0, as_numbers.err
    assert b"residue-regression" in as_numbers.out


def test_numbers_that_vary_by_nothing_beside_their_size_are_written():
    """Of 1e308 and 1e-320 the quotient is infinite, and has no whole number of digits."""
    cells, _ = ResidueValues(1e308, 1e-320).answer(np.zeros((2, 1)))
    assert [float(cell) for cell in cells] == [1e308, 1e308]
