"""Transfer from source to target: trunk, sequential and joint forms, verdict, learning curve, checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bioxfer.checkpoints import write_checkpoint
from bioxfer.curves import draw_proteins
from bioxfer.errors import LabelError, UsageError, WeightsError
from bioxfer.heads import run_mlp
from bioxfer.selection import select
from bioxfer.solvers import linear_path
from bioxfer.tasks import Multiclass, Multilabel, Regression
from bioxfer.transfer import WAYS, Journal, check_lam, fit, judge_gain
from bioxfer.trunks import LAMBDAS, Joint, Labelled, Sequential, train_trunk

WIDTH = 40
TASK = Multiclass(("no", "yes"))


def make_parity(n: int, *, seed: int, name: str = "source", flip: bool = False) -> Labelled:
    """Vectors whose label is whether two hidden directions have one sign: no linear model knows it."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(7).normal(size=(WIDTH, 2)))[0]
    x = rng.normal(size=(n, WIDTH)).astype(np.float32)
    side = x @ axes
    x += (np.sign(side) * 0.7 @ axes.T).astype(np.float32)
    y = (np.sign(side[:, 0]) == np.sign(side[:, 1])).astype(np.int64)
    return Labelled(x, 1 - y if flip else y, TASK, np.arange(n) // 2, name)


@pytest.fixture(scope="module")
def source() -> Labelled:
    return make_parity(1200, seed=1)


@pytest.fixture(scope="module")
def trunk(source):
    return train_trunk([source], seed=0)


@pytest.fixture(scope="module")
def target() -> Labelled:
    return make_parity(36, seed=2, name="target", flip=True)


@pytest.fixture(scope="module")
def held() -> Labelled:
    return make_parity(400, seed=3, name="held", flip=True)


@pytest.fixture(scope="module")
def found(source, target, held):
    return fit([source], target, held, sizes=[16], draws=2, folds=3)


def test_trunk_learns_what_no_linear_model_can(trunk, source):
    assert trunk.losses[0] < 0.3 < np.log(2)
    standard = (source.x[:9] - trunk.mean) / trunk.scale
    by_hand = [np.maximum(standard @ w.T + b, 0) for w, b in zip(trunk.weight, trunk.bias, strict=True)]
    np.testing.assert_allclose(trunk.hidden(source.x[:9]), np.concatenate(by_hand, axis=1), atol=2e-5)


def test_same_seed_gives_the_same_trunk_and_another_seed_another(source):
    few = Labelled(source.x[:200], source.y[:200], TASK, source.group[:200])
    first, again, other = (train_trunk([few], seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.weight, again.weight)
    assert first.steps == again.steps
    assert not np.array_equal(first.weight, other.weight)


def test_a_small_source_takes_all_its_proteins_and_says_so():
    few = make_parity(20, seed=5)
    assert np.isnan(train_trunk([few]).losses[0])


def test_sequential_head_is_a_linear_model_of_vectors_trunk_and_the_sources_answers(trunk, target):
    form = Sequential(trunk)
    tensors = form.refit(target.x, target.y, TASK, 0, {"penalty": 0.1})
    hidden = trunk.hidden(target.x)
    told = np.stack(
        [h @ w.T for h, w in zip(np.split(hidden, 3, axis=1), trunk.heads[0][0], strict=True)]
    ).mean(axis=0)
    np.testing.assert_allclose(hidden @ trunk.read_out().T, told, atol=1e-3)
    gains = np.repeat(
        [1.0, (WIDTH / hidden.shape[1]) ** 0.5, (WIDTH / 2) ** 0.5], [WIDTH, hidden.shape[1], 2]
    )
    features = np.concatenate([target.x, hidden, told], axis=1)
    ((_, plain),) = linear_path(features, target.y, TASK, (0.1,), gains=gains)
    expected = features @ plain["weight"].T + plain["bias"]
    # average_outputs returns log-probabilities: equal up to a constant for each row
    given = run_mlp(tensors, TASK, target.x)
    np.testing.assert_allclose(given - given[:, :1], expected - expected[:, :1], atol=2e-3)


def test_joint_head_weighs_the_target_by_lambda(trunk, source, target):
    noise = replace(target, y=np.random.default_rng(0).integers(0, 2, len(target.y)))
    losses = {}
    for lam in (0.01, 100.0):
        tensors = Joint(trunk, [source], lam).refit(noise.x, noise.y, TASK, 0, {"steps": 60})
        outputs = torch.from_numpy(run_mlp(tensors, TASK, noise.x))
        losses[lam] = float(TASK.loss(outputs, torch.from_numpy(noise.y)))
    assert losses[100.0] < 0.9 * losses[0.01]


def test_joint_training_is_the_same_looked_at_or_not(trunk, source, target):
    form = Joint(trunk, [source], 1.0)
    seen = {setting["steps"]: t for setting, t in form.settings(target.x, target.y, TASK, 0)}
    alone = form.refit(target.x, target.y, TASK, 0, {"steps": 50})
    for name, tensor in alone.items():
        assert np.array_equal(tensor, seen[50][name]), name


def test_select_takes_forms_in_place_of_its_own(trunk, target):
    ids = [str(i) for i in range(len(target.x))]
    fitted = select(
        target.x, target.y, ids, target.group, TASK, head="linear", forms=[Sequential(trunk)], folds=3
    )
    assert fitted.kind == "mlp"
    assert {each["kind"] for each in fitted.candidates} == {"mlp"}
    again = fitted.refit(target.x, target.y, seed=0)
    assert all(np.array_equal(again[name], fitted.tensors[name]) for name in again)
    mixed = select(
        target.x, target.y, ids, target.group, TASK, head="auto", forms=[Sequential(trunk)], folds=3
    )
    assert mixed.kind in ("mlp", "blend")


def test_transfer_helps_where_the_source_knows_what_the_target_needs(found):
    verdict = found.card["verdict"]
    assert verdict["word"] == "helped"
    assert verdict["gain"]["ci95"][0] > 0.1
    assert found.chosen in ("sequential", "joint")
    assert found.forms is not None
    scores = {way: found.card["ways"][way]["metrics"]["accuracy"]["value"] for way in WAYS}
    assert scores["sequential"] > 0.8 > scores["target_only"]


def test_card_of_a_transfer_is_whole(found, source, target):
    card = found.card
    assert [each["name"] for each in card["sources"]] == ["source"]
    assert card["sources"][0]["proteins"] == len(source.x)
    assert card["lam"] == "compared: " + ", ".join(f"{value:g}" for value in LAMBDAS)
    assert card["ways"]["joint"]["setting"]["lam"] in LAMBDAS
    curve = {(point["size"], point["way"]): point for point in card["curve"]}
    assert set(curve) == {(size, way) for size in (16, len(target.x)) for way in WAYS}
    for way in WAYS:
        whole = card["ways"][way]["metrics"]["accuracy"]
        point = curve[len(target.x), way]
        assert (point["value"], point["ci95"]) == (whole["value"], whole["ci95"])
        assert curve[16, way]["draws"] == 2
    assert "minus_target_only" not in curve[16, "target_only"]
    assert curve[16, "joint"]["minus_target_only"]["ci95"] is not None


def test_an_unrelated_source_is_no_help(target, held):
    rng = np.random.default_rng(0)
    other = make_parity(400, seed=8)
    noise = replace(other, y=rng.integers(0, 2, len(other.y)))
    card = fit([noise], target, held, sizes=[], folds=3, lam=1.0).card
    assert card["verdict"]["word"] in ("no difference", "hurt")
    assert card["lam"] == 1.0


def test_numbers_and_label_sets_are_transferred_too(source, held):
    numbers = make_parity(60, seed=4)
    task = Regression(0.0, 1.0)
    size = np.linalg.norm(numbers.x, axis=1).astype(np.float64)
    target = Labelled(numbers.x, (size - size.mean()) / size.std(), task, numbers.group)
    test = Labelled(held.x, np.linalg.norm(held.x, axis=1) - size.mean(), task, held.group)
    sets = Multilabel(("a", "b", "c"))
    some = source.x[:500]
    many = Labelled(some, (some[:, :3] > 0.5).astype(np.float32), sets, source.group[:500], "sets")
    source = Labelled(some, source.y[:500], TASK, source.group[:500])
    card = fit([source, many], target, test, sizes=[20], draws=1, folds=2, lam=1.0).card
    assert [each["task"] for each in card["sources"]] == ["multiclass", "multilabel"]
    assert set(card["ways"]["joint"]["metrics"]) == {"spearman", "rmse"}
    few = Labelled(many.x[:80], many.y[:80], sets, many.group[:80])
    wide = Labelled(many.x[300:], many.y[300:], sets, many.group[300:])
    back = fit([target], few, wide, sizes=[], folds=2, lam=1.0).card
    assert back["ways"]["sequential"]["metrics"]["fmax"]["value"] > 0.5


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ([0.01, 0.2], "helped"),
        ([-0.2, -0.01], "hurt"),
        ([-0.1, 0.1], "no difference"),
        (None, "no difference"),
    ],
)
def test_verdict_needs_the_whole_interval(ends, word):
    assert judge_gain({"value": 0.1, "ci95": ends}) == word


@pytest.mark.parametrize("lam", [0, -1, "much", float("nan"), float("inf"), 2000])
def test_lambda_out_of_range_is_refused(lam):
    with pytest.raises(UsageError, match=f"lam {lam} is no weight"):
        check_lam(lam)


def test_a_drawn_set_is_neither_all_nor_too_small_for_its_classes(target):
    with pytest.raises(LabelError, match="36 proteins are no part of the 36"):
        draw_proteins(target, np.arange(36), 36, seed=0)
    with pytest.raises(LabelError, match="3 proteins cannot hold two of each of 2 classes, which take 4"):
        draw_proteins(target, np.arange(36), 3, seed=0)


def test_sets_that_do_not_fit_are_refused(source, target, held):
    none = Labelled(held.x[:0], held.y[:0], TASK, held.group[:0], "empty")
    narrow = Labelled(source.x[:, :3], source.y, TASK, source.group, "narrow")
    for sources, judged, options, message in (
        ([], held, {}, "nothing to transfer from"),
        ([source], none, {}, "no target protein is held out"),
        ([none], held, {}, "source empty has no protein left"),
        ([narrow], held, {}, "vectors of narrow are 3 wide and the target's 40"),
        ([source], held, {"sizes": [1]}, "sizes 1 with 3 draws make no learning curve"),
        ([source], held, {"draws": 0}, "with 0 draws make no learning curve"),
    ):
        with pytest.raises(UsageError, match=message):
            fit(sources, target, judged, **options)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_drawn_training_set_holds_two_clusters_of_every_class(data):
    n = data.draw(st.integers(12, 60))
    classes = data.draw(st.integers(2, 4))
    y = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    group = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    task = Multiclass(tuple("abcd"[:classes]))
    target = Labelled(np.zeros((n, 2), dtype=np.float32), y, task, group)
    size = data.draw(st.integers(2 * classes, n - 1))
    rows = draw_proteins(target, np.arange(n), size, seed=1)
    assert len(rows) == size == len(set(rows.tolist()))
    for number in set(y.tolist()):
        own = group[y == number]
        assert len(set(group[rows][y[rows] == number].tolist())) >= min(2, len(set(own.tolist())))


def test_a_size_that_is_too_small_is_left_out_and_said(source, held, target):
    ten = Multiclass(tuple("abcdefghij"))
    many = Labelled(source.x[:100], np.arange(100) % 10, ten, np.arange(100))
    test = Labelled(held.x[:50], np.arange(50) % 10, ten, np.arange(50))
    card = fit([source], many, test, sizes=[16, 200], draws=1, folds=2, lam=1.0).card
    assert "16 proteins cannot hold two of each of 10 classes" in card["left_out_sizes"]["16"]
    assert "200 proteins are no part of the 100" in card["left_out_sizes"]["200"]
    assert {point["size"] for point in card["curve"]} == {100}


def test_curve_counts_what_is_learnt_from_and_leaves_out_what_cannot_be_held_out(source, held):
    three = Multiclass(("a", "b", "c"))
    y = np.arange(60) % 3
    group = np.where(y == 2, 0, np.arange(60) + 1)  # one training cluster of c
    few = Labelled(source.x[:60], y, three, group)
    test = Labelled(held.x[:30], np.arange(30) % 3, three, np.arange(30))
    dev = np.zeros(60, dtype=bool)
    dev[45:] = True
    card = fit([source], few, test, sizes=[16], draws=1, folds=2, lam=1.0, dev=dev).card
    assert "needs at least 2 clusters" in card["left_out_sizes"]["16"]
    assert {point["size"] for point in card["curve"]} == {45}


class _Stop(Exception):
    pass


def test_a_killed_comparison_goes_on_from_its_checkpoint(tmp_path, source, target, held, found):
    path = tmp_path / "state.safetensors"

    def stop(line: str) -> None:
        if line.startswith("16 proteins, draw 1 of 2, joint"):
            raise _Stop

    options = {"sizes": [16], "draws": 2, "folds": 3}
    with pytest.raises(_Stop):
        fit([source], target, held, **options, report=stop, journal=Journal(path, "k"))
    lines: list[str] = []
    again = fit([source], target, held, **options, report=lines.append, journal=Journal(path, "k"))
    assert again.card == found.card
    assert lines[0] == "sources: taken from the checkpoint"


def test_a_checkpoint_of_other_data_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    journal = Journal(path, "one")
    journal.put("part", {"numbers": np.arange(3)})
    assert Journal(path, "one").get("part")["numbers"].tolist() == [0, 1, 2]
    assert Journal(path, "one").get("other") is None
    with pytest.raises(UsageError, match="belongs to other data or options"):
        Journal(path, "two")
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"state\.safetensors: not a checkpoint of a transfer"):
        Journal(path, "one")


def test_a_checkpoint_of_numbers_that_numpy_does_not_have_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, {"key": "one"}, {"part:a": torch.zeros(1).bfloat16()}, sort="a transfer")
    with pytest.raises(WeightsError, match=r"state\.safetensors: what the checkpoint holds does not fit"):
        Journal(path, "one")
