"""Several labels for a protein: cells to sets, Fmax, and every command from labels to predictions."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from bioxfer.corpus import read_source
from bioxfer.errors import HeadFileError, LabelError, UsageError
from bioxfer.evaluate import score_gain, score_predictions
from bioxfer.head_training import fit_head, train_head
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import Multiclass, Multilabel, Regression, split_label, task_from_dict, task_from_name
from bioxfer.tasks.label_sets import THRESHOLDS, LabelSetMetrics
from bioxfer.training import evaluate_on_records, train_on_records

# Names that a careless reader or writer of tables would break.
NAMES = ('1,2-diol "kinase"', "heat\nshock", "plain")
LETTERS = {NAMES[0]: "AILMFVW", NAMES[1]: "DEKRNQS", NAMES[2]: "GTPHYC"}


def labelled(count: int = 60, *, seed: int = 0, separator: str = ";") -> list[SequenceRecord]:
    """Proteins made of the letters of their labels, one or two each; none is another's relative."""
    dice = random.Random(seed)
    sets = [*itertools.combinations(NAMES, 1), *itertools.combinations(NAMES, 2)]
    records = []
    for number in range(count):
        names = sets[number % len(sets)]
        letters = "".join(LETTERS[name] for name in names)
        sequence = "M" + "".join(dice.choices(letters, k=dice.randint(30, toys.WINDOW - 5)))
        records.append(SequenceRecord(f"m{number}", sequence, label=separator.join(names)))
    return records


@pytest.fixture(scope="module")
def trained() -> TrainedHead:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioxfer.solvers.PENALTIES", (0.01, 0.001))
        head = train_on_records(
            labelled(),
            toys.backbone(),
            name="several",
            head="linear",
            pool="mean",
            valid=0.3,
            cluster_by="kmer",
        )
    assert isinstance(head, TrainedHead)
    return head


# --- cells ----------------------------------------------------------------------------------------------

names_strategy = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters=";|"), min_size=1).filter(
        lambda name: name == name.strip()
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@given(names_strategy, st.sampled_from(";|"), st.sampled_from(["", " ", "  "]))
def test_joined_names_split_into_themselves(names, separator, gap):
    assert split_label(f"{gap}{separator}{gap}".join(names)) == tuple(names)


@given(st.lists(names_strategy, min_size=2, max_size=8))
def test_what_is_encoded_is_written_back_as_the_same_set(sets):
    cells = [";".join(names) for names in sets]
    try:
        task = Multilabel.from_labels(cells)
    except LabelError:
        return  # one label, or one everywhere
    assert [set(split_label(task.label(row))) for row in task.encode(cells)] == [set(s) for s in sets]
    assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_repeats_and_empty_parts_are_dropped():
    assert split_label(" b ;;a; b;") == ("b", "a")
    assert split_label("x|y") == ("x", "y")


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        (["a;b", "a", "c"], "multilabel"),
        (["a|b", "b | c", "a"], "multilabel"),
        (["a;b", "c;d"], "multiclass"),  # nothing recurs, so nothing says that these are parts
        (["a;b", "a;b", "c"], "multiclass"),  # the same cell twice is no evidence either
        (["1.5;2", "2;3"], "multiclass"),  # numbers are no names
        (["a;b|c", "a", "b"], "multiclass"),  # which of both would part them?
        (["a;b", ";", "a"], "multiclass"),
        (["a", "b", "a"], "multiclass"),
    ],
)
def test_auto_splits_cells_only_where_labels_recur(cells, name):
    assert task_from_name("auto", cells).name == name


def test_a_source_task_takes_joined_labels_as_classes(tmp_path):
    rows = [f"s{n},MKTAYIAKQRQ{'ACDE'[n % 4] * (5 + n)},{('a;b', 'b')[n % 2]}" for n in range(20)]
    path = tmp_path / "source.csv"
    path.write_text("\n".join(["id,sequence,label", *rows]) + "\n")
    table = read_source(path)
    assert (table.kind, table.classes) == ("classes", (2,))


def test_tasks_say_which_classes_a_label_names_and_who_bears_them():
    several, one = Multilabel(("a", "b", "c")), Multiclass(("a", "b", "a;b"))
    assert several.names("c | a") == ("c", "a")
    assert one.names("a;b") == ("a;b",)
    cells = ["a;b", "b"]
    assert several.members(several.encode(cells)).tolist() == [[True, True, False], [False, True, False]]
    assert one.members(one.encode(cells)).tolist() == [[False, False, True], [False, True, False]]
    assert Regression(0.0, 1.0).members(np.zeros(2)).shape == (2, 0)


def test_numbers_are_split_on_demand():
    assert task_from_name("multilabel", ["1.1;2.7", "2.7;3.1", "3.1"]).labels == ("1.1", "2.7", "3.1")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a", "a;a"], "at least two labels, and the cells hold 'a' \\(2 proteins\\)"),
        ([], "the cells hold none"),
        (["a;b", " ; "], "row 2: label ' ; ' names no label"),
        (["a;b", ""], "row 2: label '' names no label"),
        (["a;b|c", "b"], "row 1: label 'a;b\\|c' holds both ';' and '\\|'"),
        (["a;b", "a", "a;c"], "label 'a' is borne by all 3 proteins"),
    ],
)
def test_cells_that_fit_no_multilabel_task_are_named(cells, message):
    with pytest.raises(LabelError, match=message):
        task_from_name("multilabel", cells)


def test_a_strange_label_is_named():
    with pytest.raises(LabelError, match="label 'z' \\(row 2\\) is none of the classes a, b"):
        Multilabel(("a", "b")).encode(["a;b", "b;z"])


@pytest.mark.parametrize(
    "data",
    [
        {"name": "multilabel", "classes": ["a"], "threshold": 0.5},
        {"name": "multilabel", "classes": ["a", "a"], "threshold": 0.5},
        {"name": "multilabel", "classes": ["a", "b;c"], "threshold": 0.5},
        {"name": "multilabel", "classes": ["a", "b"]},
        {"name": "multilabel", "classes": ["a", "b"], "threshold": 0.0},
        {"name": "multilabel", "classes": ["a", "b"], "threshold": math.nan},
    ],
)
def test_descriptions_of_no_multilabel_task_are_refused(data):
    with pytest.raises(ValueError, match="no task"):
        task_from_dict(data)


# --- scores ---------------------------------------------------------------------------------------------


def sets_of(seed: int, proteins: int = 40, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random((proteins, labels)) < 0.3).astype(np.float32)
    y[np.arange(proteins), rng.integers(0, labels, proteins)] = 1
    p = np.round(
        np.clip(0.4 * y + rng.normal(0.2, 0.25, y.shape), 0, 1), 2
    )  # ties with thresholds among them
    p[:2] = 0  # of these nothing is predicted
    return y, p


def slow_fmax(y: np.ndarray, p: np.ndarray) -> float:
    """Radivojac et al. 2013, word for word."""
    best = 0.0
    for threshold in THRESHOLDS.tolist():
        precisions, recalls = [], []
        for true, chance in zip(y, p, strict=True):
            real = {i for i, bit in enumerate(true) if bit}
            said = {i for i, value in enumerate(chance) if value >= threshold}
            if said:
                precisions.append(len(real & said) / len(said))
            recalls.append(len(real & said) / len(real))
        if precisions:
            precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
            if precision + recall:
                best = max(best, 2 * precision * recall / (precision + recall))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_fmax_is_cafas(seed):
    y, p = sets_of(seed)
    assert LabelSetMetrics(0.5)(y, p)["fmax"] == pytest.approx(slow_fmax(y, p))


@pytest.mark.parametrize("seed", range(2))
def test_f1_scores_are_scikit_learns_on_what_is_said(seed):
    from sklearn.metrics import f1_score

    y, p = sets_of(seed)
    p += 1e-6 * np.arange(5)  # one label is the likeliest
    said = p >= 0.4
    said[np.arange(len(p)), p.argmax(axis=1)] = True
    found = LabelSetMetrics(0.4)(y, p)
    assert found["micro_f1"] == pytest.approx(f1_score(y, said, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(y, said, average="macro"))


def test_the_chosen_threshold_is_where_fmax_is_reached():
    y, p = sets_of(7)
    task = Multilabel(tuple("abcde"))
    outputs = np.log(np.clip(p, 1e-6, 1 - 1e-6) / (1 - np.clip(p, 1e-6, 1 - 1e-6)))
    chosen = task.calibrate_width(outputs, y).threshold
    alone = np.where(task.predict(outputs) >= chosen, 1.0, 0.0)  # what is said there, and nothing else
    assert chosen in THRESHOLDS
    assert slow_fmax(y, alone) == pytest.approx(slow_fmax(y, task.predict(outputs)))


def test_quick_draws_are_the_plain_ones():
    y, p = sets_of(3)
    groups = np.arange(len(y)) // 3
    quick = LabelSetMetrics(0.4)

    def plain(a, b):
        return quick(a, b)

    fast, slow = (score_predictions(m, y, p, groups, n=40) for m in (quick, plain))
    for name, score in slow.items():
        assert fast[name]["value"] == score["value"]
        assert fast[name]["ci95"] == pytest.approx(score["ci95"])
    other = np.tile(y.mean(axis=0), (len(y), 1))
    gains = [score_gain(m, "fmax", y, p, other, groups, n=40) for m in (quick, plain)]
    assert gains[0]["ci95"] == pytest.approx(gains[1]["ci95"])
    assert score_predictions(quick, y, p, np.zeros(len(y)), n=5)["fmax"]["ci95"] is None


def test_a_thousand_draws_are_quick():
    y, p = sets_of(0, 2000, 30)
    start = time.process_time()
    score_predictions(LabelSetMetrics(0.4), y, p, np.arange(2000) // 2, n=1000)
    assert time.process_time() - start < 5


# --- the task -------------------------------------------------------------------------------------------


def test_labels_are_said_from_the_threshold_and_the_likeliest_always():
    task = Multilabel(("a", "b", "c"), threshold=0.5)
    outputs = np.array([[2.0, 1.0, -3.0], [-3.0, -2.0, -4.0], [0.0, np.nan, 1.0]], dtype=np.float32)
    plain, warm = task.decode(outputs), task.decode(outputs, temperature=2.0)
    assert [d.label for d in plain] == [d.label for d in warm] == ["a;b", "b", ""]
    assert plain[0].score == pytest.approx(1 / (1 + math.exp(-1)))
    assert warm[1].score == pytest.approx(1 / (1 + math.exp(1)))
    assert math.isnan(plain[2].score)


def test_the_threshold_is_told_as_the_calibrated_probability():
    task = Multilabel(("a", "b"), threshold=0.2)
    at = np.array([[math.log(0.2 / 0.8)] * 2])
    assert task.said_from(1.0) == pytest.approx(0.2)
    assert task.said_from(3.0) == pytest.approx(task.probabilities(at, temperature=3.0)[0, 0])


def test_the_loss_is_least_at_the_truth_and_is_each_labels_own():
    task = Multilabel(("a", "b"))
    y = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    good = torch.tensor([[4.0, -4.0], [4.0, 4.0]])
    assert task.loss(good, y) < task.loss(-good, y)
    expected = sum(
        torch.nn.functional.binary_cross_entropy_with_logits(good[:, c], y[:, c]).item() for c in range(2)
    )
    assert task.loss(good, y).item() == pytest.approx(expected)
    found = task.out_of_sample_loss(good.numpy(), y.numpy())
    assert found <= expected


def test_one_temperature_calibrates_all_labels():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(3000, 6))
    task = Multilabel(tuple("abcdef"))
    y = (rng.random(outputs.shape) < task.probabilities(outputs)).astype(np.float32)
    bold = outputs * 3
    assert task.calibrate(bold, y) == pytest.approx(3, rel=0.1)
    before, after = (task.calibration_error(bold, y, temperature=t) for t in (1.0, 3.0))
    assert after < 0.02 < before


def test_neighbours_vote_on_each_label():
    task = Multilabel(("a", "b", "c"))
    targets = np.array([[[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]], dtype=np.float16)
    weights = np.array([[1e-9, 1e-9], [np.nan, np.nan]])
    chance = task.probabilities(task.neighbour_outputs(targets, weights))
    assert chance[0] == pytest.approx([1.01 / 1.02, 0.5, 0.01 / 1.02], abs=1e-4)
    assert np.isnan(chance[1]).all()


def test_mixtures_are_of_probabilities():
    rng = np.random.default_rng(1)
    task = Multilabel(tuple("abcd"))
    network, votes = rng.normal(size=(2, 6, 4)).astype(np.float32) * 3
    mean = (task.probabilities(network) + task.probabilities(votes)) / 2
    np.testing.assert_allclose(
        task.probabilities(task.average_outputs(np.stack([network, votes]))), mean, rtol=1e-5
    )
    ours = task.probabilities(network, temperature=1.7)
    mixed = task.probabilities(task.mix_outputs(network, votes, share=0.3, temperature=1.7))
    np.testing.assert_allclose(mixed, 0.3 * ours + 0.7 * task.probabilities(votes), rtol=1e-5)


# --- fitting --------------------------------------------------------------------------------------------


class Data:
    """40 clusters of 3 relatives with three labels planted along three directions."""

    def __init__(self, seed=0, clusters=40):
        rng = np.random.default_rng(seed)
        self.groups = np.repeat(np.arange(clusters), 3)
        centre = rng.normal(size=(clusters, 6))[self.groups]
        self.x = (centre + 0.1 * rng.normal(size=centre.shape)).astype(np.float32) * 7 + 100
        borne = centre[:, :3] > 0
        borne[~borne.any(axis=1), 0] = True
        self.labels = ["|".join(np.array(NAMES)[row]) for row in borne]


@pytest.mark.parametrize(
    ("head", "least"), [("linear", 0.86), ("mlp", 0.84), ("nearest", 0.8), ("blend", 0.86)]
)
def test_each_form_learns_planted_labels_across_clusters(head, least, monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.01, 0.001))
    monkeypatch.setattr("bioxfer.solvers.STEPS", (60, 150))
    data = Data()
    fitted = fit_head(data.x, data.labels, groups=data.groups, head=head, folds=3)
    found = fitted.task.metrics(fitted.targets, fitted.task.predict(fitted.out_of_fold))
    assert (fitted.kind, fitted.task.name) == (head, "multilabel")
    constant = np.tile(fitted.task.constant(fitted.targets), (len(fitted.targets), 1))
    assert found["fmax"] >= least > fitted.task.metrics(fitted.targets, constant)["fmax"] + 0.05


def test_a_label_in_one_cluster_is_named():
    data = Data()
    cells = [f"{cell}|rare" if g == 0 else cell for cell, g in zip(data.labels, data.groups, strict=True)]
    with pytest.raises(LabelError, match="class 'rare' has 3 training proteins in 1 homology clusters"):
        fit_head(data.x, cells, groups=data.groups, head="nearest", folds=3)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"abstain": 0.05}, "unsure of each label apart"), ({"families": True}, "a family has one label")],
)
def test_what_is_of_one_label_is_refused(option, message):
    data = Data()
    with pytest.raises(UsageError, match=message):
        train_head(
            data.x,
            data.labels,
            [str(i) for i in range(len(data.x))],
            sequences=["ACDE"] * len(data.x),
            groups=data.groups,
            name="x",
            pool="mean",
            layer=1,
            backbone_name="toy",
            backbone_fingerprint="f" * 16,
            **option,
        )


def test_the_card_counts_labels_and_says_when_one_is_said(trained):
    card = trained.card
    assert card["task"] == "multilabel"
    assert sum(card["labels"]["plain"].values()) == 30
    assert set(card["metrics"]) == {"fmax", "micro_f1", "macro_f1"}
    assert card["metrics"]["fmax"]["value"] > card["baselines"]["majority"]["metrics"]["fmax"]["value"]
    assert card["decision"]["said_from"] == pytest.approx(trained.task.said_from(trained.temperature))
    assert 0 <= card["calibration"]["ece_after"] < 0.5


def test_a_saved_head_says_the_same_bit_for_bit(trained, tmp_path):
    trained.save(tmp_path / "head.safetensors")
    again = TrainedHead.load(tmp_path / "head.safetensors")
    x = np.random.default_rng(0).normal(size=(9, trained.n_features)).astype(np.float32)
    assert again.task == trained.task
    assert again.index.targets.shape == (60, 3)
    assert again.logits(x).tobytes() == trained.logits(x).tobytes()
    assert again.predict(x) == trained.predict(x)
    assert again.nearest(x) == trained.nearest(x)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(60, dtype=np.float16), "index.targets of shape"),
        (np.full((60, 3), 0.5, dtype=np.float16), "neither there nor not there"),
        (np.zeros((60, 2), dtype=np.float16), "index.targets of shape"),
    ],
)
def test_a_file_with_other_targets_is_refused(trained, tmp_path, targets, message):
    from dataclasses import replace

    wrong = replace(trained, index=replace(trained.index, targets=targets))
    wrong.save(tmp_path / "head.safetensors")
    with pytest.raises(HeadFileError, match=message):
        TrainedHead.load(tmp_path / "head.safetensors")


def test_evaluation_names_the_record_of_a_label_it_does_not_know(trained):
    records = labelled(6)
    scored = {
        row[0]: row[1] for row in evaluate_on_records(trained, records, toys.backbone(), cluster_by="kmer")
    }
    assert float(scored["fmax"]) > 0.5
    for cell, message in (("plain;odd", "label 'odd' is none of the classes"), (";", "names no label")):
        strange = [*records, SequenceRecord("odd", "MAAAAAAAA", label=cell)]
        with pytest.raises(LabelError, match=f"odd.*{message}"):
            evaluate_on_records(trained, strange, toys.backbone(), cluster_by="kmer")


# --- the commands ---------------------------------------------------------------------------------------


def write_inputs(folder: Path, records: list[SequenceRecord]) -> tuple[Path, Path]:
    proteins, labels = folder / "in.fasta", folder / "labels.csv"
    proteins.write_text(toys.fasta(records))
    with labels.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerows([("id", "label"), *((r.id, r.label) for r in records)])
    return proteins, labels


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("task", ["auto", "multiclass"])
def test_awkward_names_go_from_labels_to_predictions(task, tmp_path, monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.01,))
    model, head = toys.write_weights(tmp_path), tmp_path / "several.safetensors"
    records = labelled(separator=" | ")
    proteins, labels = write_inputs(tmp_path, records)
    ran = toys.run(
        "train", proteins, "--labels", labels, "-o", head, "--model", model, "--task", task,
        "--head", "linear", "--pool", "mean", "--cluster-by", "kmer", "--valid", "0.3",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ("taken as a multilabel task of 3 labels" in ran.err) == (task == "auto")
    whole = {record.label or "" for record in records}
    known = sorted(whole if task == "multiclass" else NAMES)
    assert list(TrainedHead.load(head).labels) == known

    ran = toys.run("predict", proteins, "-o", "-", "--model", model, "--head", head, "--probabilities")
    assert ran.code == 0, ran.err
    rows = read_rows(ran.out.decode())
    assert [row["id"] for row in rows] == [record.id for record in records]
    right = 0
    for row, record in zip(rows, records, strict=True):
        said = {row["several"]} if task == "multiclass" else set(split_label(row["several"]))
        assert said <= set(known)
        right += said == ({record.label} if task == "multiclass" else set(split_label(record.label or "")))
        chances = {name: float(row[f"several_p_{name}"]) for name in known}
        assert float(row["several_score"]) == min(chances[name] for name in said)
        assert max(chances, key=lambda name: chances[name]) in said
    assert right > len(rows) / 3

    ran = toys.run("predict", proteins, "-o", "-", "--model", model, "--head", head, "--format", "long")
    ranked = [row["label"] for row in read_rows(ran.out.decode()) if row["id"] == "m0"]
    assert sorted(ranked) == known

    ran = toys.run("evaluate", head, proteins, "--labels", labels, "--model", model, "--cluster-by", "kmer")
    assert ran.code == 0, ran.err
    assert ("fmax" in ran.out.decode()) == (task != "multiclass")

    ran = toys.run("heads", "show", head)
    assert ran.code == 0, ran.err
    assert ("says labels from a probability of" in ran.out.decode()) == (task != "multiclass")


def test_cells_that_are_not_split_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.01,))
    records = [
        SequenceRecord(r.id, r.sequence, label=("a;b", "c;d")[r.label == "salty"]) for r in toys.proteins()
    ]
    proteins, labels = write_inputs(tmp_path, records)
    ran = toys.run(
        "train", proteins, "--labels", labels, "-o", tmp_path / "x.safetensors",
        "--head", "linear", "--pool", "mean", "--model", toys.write_weights(tmp_path),
        "--cluster-by", "kmer", "--valid", "0.3",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "40 of 40 cells hold ';' or '|', such as 'a;b', and are taken as one class each" in ran.err


def test_a_cell_without_a_label_is_named_by_its_place(tmp_path):
    records = [*labelled(12), SequenceRecord("none", "MAAAAAAAAAA", label="; ;")]
    proteins, labels = write_inputs(tmp_path, records)
    ran = toys.run(
        "train", proteins, "--labels", labels, "-o", tmp_path / "x.safetensors", "--task", "multilabel",
        "--model", toys.write_weights(tmp_path),
    )  # fmt: skip
    assert ran.code == 3
    assert "'none'" in ran.err
    assert "label '; ;' names no label; give it one or drop it" in ran.err
    assert "Traceback" not in ran.err
