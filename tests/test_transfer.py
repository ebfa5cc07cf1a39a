"""Fitting heads: chosen on held-out clusters, calibrated, and honest about itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bioxfer.errors import LabelError, UsageError
from bioxfer.heads import TrainedHead
from bioxfer.transfer import fit, train_head

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
        yield


@pytest.fixture(scope="module")
def data():
    return Data()


@pytest.fixture(scope="module")
def trained(data):
    return data.train(licence="CC0", data_sha256="abc", date="2026-01-01", limits=["Toy data."])


@pytest.mark.parametrize(("head", "least"), [("linear", 0.9), ("mlp", 0.85), ("nearest", 0.7)])
def test_each_form_learns_a_planted_signal_across_clusters(data, head, least):
    fitted = fit(data.x, data.labels, groups=data.groups, head=head, folds=3)
    right = fitted.task.predict(fitted.out_of_fold) == fitted.task.encode(data.labels)
    assert fitted.kind == head
    assert right.mean() >= least


def test_auto_takes_the_least_out_of_fold_loss(data):
    fitted = fit(data.x, data.labels, groups=data.groups, folds=3)
    best = min(fitted.candidates, key=lambda c: c["loss"])
    assert (fitted.kind, fitted.setting) == (best["kind"], best["setting"])
    assert {c["kind"] for c in fitted.candidates} == {"linear", "mlp", "nearest"}


def test_regression_runs_through_the_same_fit(data):
    labels = [f"{v + 50:.3f}" for v in data.value]
    fitted = fit(data.x, labels, groups=data.groups, head="linear", folds=3)
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
        fitted = fit(data.x, labels, groups=groups, head="nearest", folds=3)
        return np.mean(fitted.task.predict(fitted.out_of_fold) == fitted.task.encode(labels))

    assert accuracy(None) > 0.9
    assert accuracy(data.groups) < 0.7


def test_a_held_out_cluster_has_no_say_in_its_own_prediction(data, monkeypatch):
    """Scaler, projection and weights are all fitted inside the fold."""
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.01,))  # nothing to choose: both fits are alike
    fold = fit(data.x, data.labels, groups=data.groups, head="linear", folds=3)
    moved = data.x.copy()
    moved[1] += 1e4  # row 0's relative
    again = fit(moved, data.labels, groups=data.groups, head="linear", folds=3)
    np.testing.assert_array_equal(fold.out_of_fold[0], again.out_of_fold[0])
    assert not np.array_equal(fold.out_of_fold[1], again.out_of_fold[1])


def test_nobodys_random_state_moves_and_a_seed_repeats(data):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fit(data.x[:90], data.labels[:90], groups=data.groups[:90], head="mlp", folds=2, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    second = fit(data.x[:90], data.labels[:90], groups=data.groups[:90], head="mlp", folds=2, seed=3)
    np.testing.assert_array_equal(first.out_of_fold, second.out_of_fold)


def test_labels_and_vectors_that_do_not_fit_are_refused(data):
    x, labels, groups = data.x, data.labels, data.groups
    with pytest.raises(UsageError, match="179 labels do not fit 180 vectors"):
        fit(x, labels[:-1])
    with pytest.raises(LabelError, match="'in' \\(180 proteins\\)"):
        fit(x, ["in"] * 180)
    with pytest.raises(LabelError, match="class 'rare' has 3 training proteins in 1 homology clusters"):
        fit(x, ["rare"] * 3 + labels[3:], groups=groups)
    with pytest.raises(LabelError, match="all 180 proteins are relatives"):
        fit(x, labels, groups=np.zeros(180))
    with pytest.raises(UsageError, match="1 of 180 vectors hold NaN"):
        fit(np.where(np.arange(180)[:, None] == 4, np.nan, x), labels)
    with pytest.raises(UsageError, match="head 'forest' is not one of auto"):
        fit(x, labels, head="forest")


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
    assert set(card["baselines"]) == {"majority", "composition", "dipeptides", "nearest"}
    for part in (card["metrics"], *(b["metrics"] for b in card["baselines"].values())):
        for score in part.values():
            low, high = score["ci95"]
            assert low - 1e-9 <= score["value"] <= high + 1e-9
    assert {"temperature", "ece_before", "ece_after"} <= set(card["calibration"])
    assert card["backbone"] == {"name": "toy", "fingerprint": "f" * 16, "layer": 2, "pool": "mean"}
    assert card["intended_use"]
    assert "Toy data." in card["limits"]
    assert card["date"] == "2026-01-01"
    assert set(card["versions"]) == {"bioxfer", "numpy", "torch"}


def test_the_head_beats_baselines_that_see_nothing_of_the_signal(trained):
    for name in ("majority", "composition", "dipeptides"):
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
