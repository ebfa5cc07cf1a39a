"""Fitting heads: chosen on held-out clusters, calibrated, and honest about itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bioxfer.cards import describe_card
from bioxfer.errors import LabelError, UsageError
from bioxfer.head_training import fit_head, train_head
from bioxfer.heads import TrainedHead, confidence
from bioxfer.selection import LEANING, select
from bioxfer.tasks import Regression

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


class Data:
    """60 clusters of 3 relatives with a linear signal, and sequences that say nothing about it."""

    def __init__(self, seed=0, clusters=60, width=6):
        rng = np.random.default_rng(seed)
        self.groups = np.repeat(np.arange(clusters), 3)
        centre = rng.normal(size=(clusters, width))[self.groups]
        self.x = (centre + 0.1 * rng.normal(size=centre.shape)).astype(np.float32) * 7 + 100
        self.value = centre[:, 0] * 2 + centre[:, 1]
        self.labels = ["in" if v > 0 else "out" for v in self.value]
        self.ids = [f"p{i}" for i in range(len(centre))]
        self.sequences = ["".join(rng.choice(LETTERS, size=20)) for _ in self.ids]

    def train(self, **changes):
        options = {
            "sequences": self.sequences,
            "groups": self.groups,
            "name": "side",
            "head": "linear",
            "pool": "mean",
            "layer": 2,
            "backbone_name": "toy",
            "backbone_fingerprint": "f" * 16,
            "valid": 0.25,
            "folds": 3,
        }
        return train_head(self.x, self.labels, self.ids, **(options | changes))


@pytest.fixture(scope="module", autouse=True)
def _short_path():
    """Try few penalties: the tests ask what is done with them, not how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01, 0.001))
        patch.setattr("bioxfer.solvers.STEPS", (20, 60, 120))
        yield


@pytest.fixture(scope="module")
def data():
    return Data()


@pytest.fixture(scope="module")
def trained(data):
    return data.train(licence="CC0", data_sha256="abc", date="2026-01-01", limits=["Toy data."])


@pytest.mark.parametrize(
    ("head", "least"), [("linear", 0.9), ("mlp", 0.85), ("nearest", 0.7), ("blend", 0.85)]
)
def test_each_form_learns_a_planted_signal_across_clusters(data, head, least):
    fitted = fit_head(data.x, data.labels, groups=data.groups, head=head, folds=3)
    right = fitted.task.predict(fitted.out_of_fold) == fitted.task.encode(data.labels)
    assert fitted.kind == head
    assert right.mean() >= least


def test_auto_takes_the_least_out_of_fold_loss(data):
    fitted = fit_head(data.x, data.labels, groups=data.groups, folds=3)
    best = min(fitted.candidates, key=lambda c: c["loss"])
    assert (fitted.kind, fitted.setting) == (best["kind"], best["setting"])
    assert {c["kind"] for c in fitted.candidates} == {"linear", "mlp", "nearest", "blend"}


def test_regression_runs_through_the_same_fit(data):
    labels = [f"{v + 50:.3f}" for v in data.value]
    fitted = fit_head(data.x, labels, groups=data.groups, head="linear", folds=3)
    assert fitted.task.name == "regression"
    found = fitted.task.metrics(fitted.task.encode(labels), fitted.task.predict(fitted.outputs(data.x)))
    assert found["spearman"] > 0.95
    assert fitted.temperature == 1.0


def test_relatives_never_vouch_for_each_other():
    data = Data(seed=1)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 2, size=60)[data.groups]  # a label that only relatives share
    labels = ["in" if v else "out" for v in noise]

    def accuracy(groups):
        fitted = fit_head(data.x, labels, groups=groups, head="nearest", folds=3)
        return np.mean(fitted.task.predict(fitted.out_of_fold) == fitted.task.encode(labels))

    assert accuracy(None) > 0.9
    assert accuracy(data.groups) < 0.7


def test_a_held_out_cluster_has_no_say_in_its_own_prediction(data, monkeypatch):
    """Scaler, projection and weights are all fitted inside the fold."""
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.01,))  # nothing to choose: both fits are alike
    fold = fit_head(data.x, data.labels, groups=data.groups, head="linear", folds=3)
    moved = data.x.copy()
    moved[1] += 1e4  # row 0's relative
    again = fit_head(moved, data.labels, groups=data.groups, head="linear", folds=3)
    np.testing.assert_array_equal(fold.out_of_fold[0], again.out_of_fold[0])
    assert not np.array_equal(fold.out_of_fold[1], again.out_of_fold[1])


def test_nobodys_random_state_moves_and_a_seed_repeats(data):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fit_head(data.x[:90], data.labels[:90], groups=data.groups[:90], head="mlp", folds=2, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    second = fit_head(data.x[:90], data.labels[:90], groups=data.groups[:90], head="mlp", folds=2, seed=3)
    np.testing.assert_array_equal(first.out_of_fold, second.out_of_fold)


def test_labels_and_vectors_that_do_not_fit_are_refused(data):
    x, labels, groups = data.x, data.labels, data.groups
    with pytest.raises(UsageError, match="179 labels do not fit 180 vectors"):
        fit_head(x, labels[:-1])
    with pytest.raises(LabelError, match="'in' \\(180 proteins\\)"):
        fit_head(x, ["in"] * 180)
    with pytest.raises(LabelError, match="class 'rare' has 3 training proteins in 1 homology clusters"):
        fit_head(x, ["rare"] * 3 + labels[3:], groups=groups)
    with pytest.raises(LabelError, match="all 180 proteins are relatives"):
        fit_head(x, labels, groups=np.zeros(180))
    with pytest.raises(UsageError, match="1 of 180 vectors hold NaN"):
        fit_head(np.where(np.arange(180)[:, None] == 4, np.nan, x), labels)
    with pytest.raises(UsageError, match="head 'forest' is not one of auto"):
        fit_head(x, labels, head="forest")


def test_the_card_says_all_that_contract_7_asks(trained):
    card = json.loads(json.dumps(trained.card, allow_nan=False))
    assert card["data"] == {
        "source": "",
        "sha256": "abc",
        "licence": "CC0",
        "proteins": 180,
        "left_out_without_vector": 0,
    }
    assert "whole homology clusters held out" in card["split"]["how"]
    assert card["split"]["valid_with_relatives_in_train"] == 0
    assert card["split"]["train"] + card["split"]["valid"] == 180
    assert sum(sum(counts.values()) for counts in card["labels"].values()) == 180
    assert set(card["metrics"]) == {"accuracy", "balanced_accuracy", "macro_f1", "mcc"}
    assert set(card["baselines"]) == {"majority", "composition", "dipeptides", "nearest", "alignment"}
    for part in (card["metrics"], *(b["metrics"] for b in card["baselines"].values())):
        for score in part.values():
            low, high = score["ci95"]
            assert low - 1e-9 <= score["value"] <= high + 1e-9
    assert card["head"]["chosen_by"].startswith("least out-of-fold loss, 3 folds")
    assert card["calibration"]["fitted_on"] == "out-of-fold outputs of the training part"
    assert (card["split"]["dev"], card["split"]["dev_clusters"]) == (0, 0)
    assert "abstention" not in card
    assert {"temperature", "ece_before", "ece_after"} <= set(card["calibration"])
    assert card["backbone"] == {"name": "toy", "fingerprint": "f" * 16, "layer": 2, "pool": "mean"}
    assert card["intended_use"]
    assert "Toy data." in card["limits"]
    assert card["date"] == "2026-01-01"
    assert set(card["versions"]) == {"bioxfer", "numpy", "torch"}


def test_the_head_beats_baselines_that_see_nothing_of_the_signal(trained):
    for name in ("majority", "composition", "dipeptides", "alignment"):
        assert trained.card["baselines"][name]["head_minus_baseline"]["ci95"][0] > 0


def test_the_trained_head_is_the_same_file_every_time(data, trained, tmp_path):
    again = data.train(licence="CC0", data_sha256="abc", date="2026-01-01", limits=["Toy data."])
    trained.save(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(TrainedHead.load(tmp_path / "a").logits(data.x), trained.logits(data.x))


def test_given_splits_are_kept_and_leaks_across_them_counted(data):
    splits = ["valid" if i % 9 == 0 else "train" for i in range(180)]  # relatives on both sides
    head = data.train(splits=splits, refit=False)
    assert head.card["split"]["how"] == "given with the data"
    assert head.card["split"]["valid"] == head.card["split"]["valid_with_relatives_in_train"] == 20
    assert set(head.index.ids) == {i for i, s in zip(data.ids, splits, strict=True) if s == "train"}
    assert head.card["head"]["weights_fitted_on"] == "train"
    with pytest.raises(UsageError, match="split 'test' is neither"):
        data.train(splits=["test", *splits[1:]])
    with pytest.raises(UsageError, match="180 training and 0 validation"):
        data.train(splits=["train"] * 180)


def test_refit_changes_the_weights_and_not_the_numbers(data, trained):
    apart = data.train(refit=False)
    assert apart.card["metrics"] == trained.card["metrics"]
    assert len(apart.index.ids) < len(trained.index.ids) == 180
    assert not np.array_equal(apart.tensors["weight"], trained.tensors["weight"])


def test_proteins_without_vector_are_left_out_and_counted(data):
    holed = Data()
    holed.x[[3, 50]] = np.nan
    head = holed.train()
    assert head.card["data"]["left_out_without_vector"] == 2
    assert not {"p3", "p50"} & set(head.index.ids)


def test_about_one_in_twenty_held_out_proteins_is_far_and_an_alien_is(data, trained):
    flags = [trained.flag(n.similarity) for n in trained.nearest(data.x)]
    assert flags.count("far") == 0  # its own training proteins
    assert trained.card["domain"]["far"]["valid"] <= 0.25 * trained.card["split"]["valid"]
    assert 0 < trained.index.far < 1


def test_regression_heads_have_a_card_too(data):
    data = Data()
    data.labels = [f"{v + 50:.3f}" for v in data.value]
    head = data.train()
    assert set(head.card["metrics"]) == {"spearman", "rmse"}
    assert head.card["calibration"]["ece_after"] is None
    assert head.card["labels"]["train"]["count"] == head.card["split"]["train"]
    json.dumps(head.card, allow_nan=False)


# The selection part.


def three_parts(data):
    """Whole clusters: three of five to train, one to choose by, one held out."""
    return [("train", "train", "dev", "train", "valid")[g % 5] for g in data.groups]


@pytest.mark.parametrize("head", ["linear", "mlp", "nearest", "blend", "auto"])
def test_validation_rows_have_no_say_in_the_head(data, head):
    def parts(change):
        other = Data()
        for place, split in enumerate(three_parts(other)):
            if split == "valid" and change:
                other.labels[place] = "in" if other.labels[place] == "out" else "out"
                other.x[place] += 5
        return other.train(splits=three_parts(other), head=head, refit=False, abstain=0.1)

    first, second = parts(False), parts(True)
    assert (first.temperature, first.threshold, first.kind) == (
        second.temperature, second.threshold, second.kind,
    )  # fmt: skip
    assert first.card["head"] == second.card["head"]
    assert first.card["metrics"] != second.card["metrics"]
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(tensor, second.tensors[name])
    np.testing.assert_array_equal(first.index.vectors, second.index.vectors)
    assert first.index.far == second.index.far


def test_selection_rows_choose_and_are_not_learnt_from(data):
    """Labels of the selection part are noise, so the strongest penalty and a high temperature win."""
    splits = three_parts(data)
    plain = data.train(splits=splits, refit=False)
    noisy = Data()
    rng = np.random.default_rng(5)
    for place, split in enumerate(splits):
        if split == "dev":
            noisy.labels[place] = ("in", "out")[rng.integers(2)]
    head = noisy.train(splits=splits, refit=False)
    assert head.card["head"]["setting"]["penalty"] > plain.card["head"]["setting"]["penalty"]
    assert head.temperature > 2 * plain.temperature
    assert set(head.index.ids) == {i for i, s in zip(data.ids, splits, strict=True) if s == "train"}
    again = data.train(splits=["train" if s == "dev" else s for s in splits], refit=False)
    assert len(again.index.ids) > len(head.index.ids)


def test_few_proteins_lean_to_a_blend_and_many_do_not():
    """Whether neighbours alone are the best is not for twelve proteins to say."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(40, 6)) * 9

    def fit(relatives):
        x = (np.repeat(centre, relatives, axis=0) + rng.normal(size=(40 * relatives, 6))).astype(np.float32)
        labels = [f"{value}" for value in np.repeat(rng.permutation(40), relatives)]
        groups = np.arange(len(x))  # relatives are told apart, so that neighbours know all
        some = rng.permutation(len(x))[: 80 if relatives == 2 else None]
        return fit_head(x[some], [labels[i] for i in some], groups=groups[some], head="auto", folds=3)

    few, many = fit(2), fit(60)
    losses = {each["kind"]: each["loss"] for each in few.candidates}
    assert few.kind == "blend"
    assert many.kind in ("nearest", "blend")
    assert many.kind == "nearest" or many.setting["share"] < few.setting["share"]
    assert min(losses, key=losses.get) in ("nearest", "blend")


def test_the_card_says_how_auto_leans(data):
    card = data.train(head="auto").card
    assert card["head"]["chosen_by"].endswith(f"of the training part; {LEANING}")
    assert "40 (share of the network - 0.7)^2" in LEANING


def test_the_card_says_that_selection_rows_chose(data):
    splits = three_parts(data)
    card = data.train(splits=splits).card
    assert card["head"]["chosen_by"] == "least loss on dev, by the fit on train"
    assert card["head"]["weights_fitted_on"] == "train, dev, valid"
    assert card["calibration"]["fitted_on"] == "dev, by the fit on train"
    assert card["split"]["dev"] == splits.count("dev") == sum(n["dev"] for n in card["labels"].values())
    assert card["split"]["dev_clusters"] == splits.count("dev") / 3
    assert card["split"]["valid_with_relatives_in_dev"] == card["split"]["dev_with_relatives_in_train"] == 0
    apart = data.train(splits=splits, refit=False)
    assert apart.card["head"]["weights_fitted_on"] == "train"
    assert apart.card["metrics"] == card["metrics"]


def test_refit_learns_from_every_part(data):
    splits = three_parts(data)
    whole = data.train(splits=splits)
    assert set(whole.index.ids) == set(data.ids)
    for kind in ("mlp", "blend"):
        head = data.train(splits=splits, head=kind)
        assert head.kind == kind
        assert np.mean([d.label for d in head.predict(data.x)] == np.array(data.labels)) > 0.85


# Abstention.


def test_the_threshold_refuses_the_asked_share_of_right_answers(data):
    fitted = fit_head(data.x, data.labels, groups=data.groups, head="linear", folds=3)
    chances = fitted.task.probabilities(fitted.out_of_fold, temperature=fitted.temperature)
    right = fitted.task.predict(fitted.out_of_fold) == fitted.targets
    sure = confidence(chances, fitted.similarity)
    thresholds = [fitted.find_threshold(share) for share in (0.01, 0.05, 0.2, 0.5)]
    assert thresholds == sorted(thresholds)
    for share, threshold in zip((0.01, 0.05, 0.2, 0.5), thresholds, strict=True):
        assert (sure[right] < threshold).sum() == int(share * right.sum())


def test_an_abstaining_head_refuses_what_is_like_nothing_it_knows(data, trained):
    head = data.train(abstain=0.05)
    told = head.card["abstention"]
    assert told["threshold"] == head.threshold > 0
    assert 0.5 < told["answered"]["value"] <= 1
    assert told["accuracy_answered"]["value"] >= head.card["metrics"]["accuracy"]["value"]
    json.dumps(head.card, allow_nan=False)
    np.testing.assert_array_equal(head.predict_proba(data.x), trained.predict_proba(data.x))
    aliens = np.random.default_rng(3).normal(size=(40, data.x.shape[1])).astype(np.float32) * 7 + 100
    known = np.mean([d.label == "unknown" for d in head.predict(data.x)])
    assert np.mean([d.label == "unknown" for d in head.predict(aliens)]) > known


def test_abstention_that_means_nothing_is_refused(data):
    with pytest.raises(UsageError, match=r"abstain 1\.5 is not between 0 and 1"):
        data.train(abstain=1.5)
    numbers = Data()
    numbers.labels = [f"{v:.3f}" for v in numbers.value]
    with pytest.raises(UsageError, match="a regression has no classes to abstain from"):
        numbers.train(abstain=0.05)
    named = Data()
    named.labels = ["unknown" if label == "in" else label for label in named.labels]
    with pytest.raises(LabelError, match="a class is called 'unknown'"):
        named.train(abstain=0.05)


# Uncertainty of numbers.


@pytest.mark.parametrize("dev", [False, True])
def test_a_number_comes_with_an_honest_width(data, dev, tmp_path):
    numbers = Data(seed=4, clusters=150)
    noise = np.random.default_rng(4).normal(size=len(numbers.value))
    numbers.labels = [f"{v * 10 + e * 5:.3f}" for v, e in zip(numbers.value, noise, strict=True)]
    head = numbers.train(splits=three_parts(numbers) if dev else None)
    told = head.card["uncertainty"]
    assert told["halfwidth90"] == head.task.halfwidth
    assert told["residual_sd"] == pytest.approx(5, rel=0.3)
    assert told["halfwidth90"] == pytest.approx(1.645 * 5, rel=0.3)
    assert 0.75 < told["held_on_valid"] <= 1
    if dev:  # a mean that knew the validation rows would be a small leak
        known = [label for label, s in zip(numbers.labels, three_parts(numbers), strict=True) if s != "valid"]
        assert replace(head.task, halfwidth=None) == Regression.from_labels(known)
    head.save(tmp_path / "h")
    assert TrainedHead.load(tmp_path / "h").task == head.task


# --- the learning curve ---------------------------------------------------------------------------------


def test_a_learning_curve_ends_where_the_head_is(data, trained):
    curved = data.train(sizes=[40, 12, 40, 9999, 3])
    points = curved.card["curve"]
    learnt = curved.card["split"]["train"]
    assert [(point["way"], point["size"], point["draws"]) for point in points] == [
        ("head", 12, 3), ("head", 40, 3), ("head", learnt, 1)
    ]  # fmt: skip
    assert points[0]["value"] < points[-1]["value"]
    assert {k: points[-1][k] for k in ("value", "ci95")} == {
        k: curved.card["metrics"]["accuracy"][k] for k in ("value", "ci95")
    }
    assert all("minus_target_only" not in point for point in points)
    left = curved.card["left_out_sizes"]
    assert left["9999"] == f"9999 proteins are no part of the {learnt} for training"
    assert "cannot hold two of each of 2 classes" in left["3"]
    # nothing else is another for it
    rest = {k: v for k, v in curved.card.items() if k not in ("curve", "left_out_sizes")}
    assert rest == data.train().card
    text = describe_card(curved.card)
    assert f"{learnt} proteins" in text
    assert "9999 proteins: left out of the learning curve, as" in text


def test_the_small_sets_of_a_curve_are_chosen_by_dev_alone(data, monkeypatch):
    """Their own rows, and those of dev that choose: no other protein has a say."""
    splits = three_parts(data)
    seen = []

    def watch(x, y, ids, *rest, **options):
        seen.append((set(ids), options["dev"].sum()))
        return select(x, y, ids, *rest, **options)

    monkeypatch.setattr("bioxfer.head_training.select", watch)
    data.train(splits=splits, sizes=[10])
    dev = {i for i, side in zip(data.ids, splits, strict=True) if side == "dev"}
    small = [(ids, chosen) for ids, chosen in seen if len(ids) == 10 + len(dev)]
    assert len(small) == 3
    for ids, chosen in small:
        assert chosen == len(dev)
        assert ids > dev
        assert not ids & {i for i, side in zip(data.ids, splits, strict=True) if side == "valid"}


def test_numbers_and_label_sets_have_curves(data):
    numbers = Data()
    numbers.labels = [str(v) for v in numbers.value]
    assert [p["metric"] for p in numbers.train(sizes=[30]).card["curve"]] == ["spearman"] * 2
    sets = Data()
    sets.labels = [
        ";".join(n for n, v in zip("ab", row[:2] > 100, strict=True) if v) or "c" for row in sets.x
    ]
    assert [p["metric"] for p in sets.train(sizes=[60], task="multilabel").card["curve"]] == ["fmax"] * 2


def test_what_makes_no_curve_is_refused(data):
    with pytest.raises(UsageError, match="sizes 1 with 3 draws make no learning curve"):
        data.train(sizes=[1])
    with pytest.raises(UsageError, match="know no families; leave families or sizes out"):
        data.train(sizes=[20], families=True, splits=three_parts(data))
