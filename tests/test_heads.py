"""Trained heads: what they compute, and files that are whole, safe and the same every time."""

from __future__ import annotations

import json
import math
import pickle
import struct
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from bioxfer.errors import FingerprintError, HeadFileError, InputError, OutputError
from bioxfer.heads import NeighbourIndex, TrainedHead, unit_rows
from bioxfer.tasks import Multiclass, Regression

FEATURES, DIMENSIONS, PROTEINS = 5, 3, 7
KINDS = ["linear", "mlp", "nearest", "blend", "blend of mlp"]
IDS = ("sp|P1|A_HUMAN", "../up", "NA", "=1+1", "caf\udce9", "two\nlines", "A/b")


def make_head(kind="linear", *, seed=0, task=None, **changes):
    rng = np.random.default_rng(seed)
    task = task or Multiclass(("in", "out"))
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tensors = {
        "linear": {"weight": draw(task.n_outputs, FEATURES), "bias": draw(task.n_outputs)},
        "mlp": {
            "weight_in": draw(2, 4, FEATURES),
            "bias_in": draw(2, 4),
            "weight_out": draw(2, task.n_outputs, 4),
            "bias_out": draw(2, task.n_outputs),
        },
        "nearest": {"neighbours": np.array(3, np.int32), "sharpness": np.array(10.0, np.float32)},
    }
    mixing = {"share": np.array(0.7, np.float32), "network_temperature": np.array(1.3, np.float32)}
    tensors["blend"] = tensors["linear"] | tensors["nearest"] | mixing
    tensors["blend of mlp"] = tensors["mlp"] | tensors["nearest"] | mixing
    targets = np.arange(PROTEINS) % 2
    index = NeighbourIndex(
        ids=IDS,
        targets=targets.astype(np.int32 if task.target_kind == "i" else np.float32),
        vectors=unit_rows(draw(PROTEINS, DIMENSIONS)).astype(np.float16),
        projection=draw(DIMENSIONS, FEATURES),
        offset=draw(DIMENSIONS),
        far=0.25,
    )
    parts = {
        "name": "compartment",
        "task": task,
        "kind": kind.split()[0],
        "pool": "mean",
        "layer": 4,
        "backbone": "compact",
        "fingerprint": "0123456789abcdef",
        "tensors": tensors[kind],
        "temperature": 1.5,
        "index": index,
        "card": {"licence": "CC BY 4.0", "note": "ä \udce9"},
    }
    return TrainedHead(**(parts | changes))


@pytest.fixture
def features():
    return np.random.default_rng(1).normal(size=(6, FEATURES)).astype(np.float32)


@dataclass
class Backbone:
    name: str = "compact"
    fingerprint: str = "0123456789abcdef"
    dim: int = FEATURES
    n_layers: int = 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [Multiclass(("in", "out")), Regression(50.0, 2.0)])
def test_a_saved_head_predicts_as_before(kind, task, features, tmp_path):
    head = make_head(kind, task=task)
    head.save(tmp_path / "h.safetensors")
    again = TrainedHead.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(head.logits(features), again.logits(features))
    assert head.predict(features)[0].label == again.predict(features)[0].label
    assert head.nearest(features) == again.nearest(features)
    assert again.index.ids == IDS
    assert again.card == head.card
    assert (again.name, again.layer, again.pool, again.labels) == ("compartment", 4, "mean", task.labels)


def test_the_same_head_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        make_head().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_linear_and_mlp_heads_are_the_formulas_they_say(features):
    linear = make_head("linear")
    expected = features @ linear.tensors["weight"].T + linear.tensors["bias"]
    np.testing.assert_allclose(linear.logits(features), expected, rtol=1e-6)
    mlp = make_head("mlp")
    expected = []
    for member in range(2):
        w_in, b_in, w_out, b_out = (
            mlp.tensors[n][member] for n in ("weight_in", "bias_in", "weight_out", "bias_out")
        )
        expected.append(mlp.task.probabilities(np.maximum(features @ w_in.T + b_in, 0) @ w_out.T + b_out))
    found = mlp.task.probabilities(mlp.logits(features))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)
    parts = [mlp.task.probabilities(make_head("linear").logits(features), temperature=1.3)]
    parts.append(mlp.task.probabilities(make_head("nearest").logits(features)))
    found = mlp.task.probabilities(make_head("blend").logits(features))
    np.testing.assert_allclose(found, 0.7 * parts[0] + 0.3 * parts[1], rtol=1e-5)


def test_a_threshold_makes_more_unknown_the_higher_it_is(features, tmp_path):
    head, counts = make_head(), []
    for threshold in (0.0, 0.2, 0.4, 0.6, 1.0):
        strict = make_head(threshold=threshold)
        decisions = strict.predict(features)
        assert [d.score for d in decisions] == [d.score for d in head.predict(features)]
        np.testing.assert_array_equal(strict.predict_proba(features), head.predict_proba(features))
        sure = [
            d.score * max(n.similarity, 0) for d, n in zip(decisions, head.nearest(features), strict=True)
        ]
        wanted = [s < threshold for s in sure]
        assert [d.label == "unknown" for d in decisions] == strict.refused(features).tolist() == wanted
        counts.append(sum(wanted))
        strict.save(tmp_path / "h")
        assert TrainedHead.load(tmp_path / "h").predict(features) == decisions
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, len(features))
    holed = np.full((1, FEATURES), np.nan, dtype=np.float32)
    assert make_head(threshold=0.5).predict(holed)[0].label == ""


def test_a_single_network_of_the_first_version_is_read(features, tmp_path):
    head = make_head("mlp")
    head.tensors = {name: value[0] for name, value in head.tensors.items()}
    head.save(tmp_path / "old")
    again = TrainedHead.load(tmp_path / "old")
    assert again.tensors["weight_in"].shape == (1, 4, FEATURES)
    w = head.tensors
    expected = np.maximum(features @ w["weight_in"].T + w["bias_in"], 0) @ w["weight_out"].T + w["bias_out"]
    chances = head.task.probabilities(expected)
    np.testing.assert_allclose(again.task.probabilities(again.logits(features)), chances, rtol=1e-5)


def test_probabilities_sum_to_one_and_score_is_the_largest(features):
    head = make_head()
    chances = head.predict_proba(features)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    np.testing.assert_allclose([d.score for d in head.predict(features)], chances.max(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_neighbours_in_the_batch(kind, features):
    head = make_head(kind)
    together = head.logits(features)
    for i in range(len(features)):
        np.testing.assert_allclose(head.logits(features[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_vector_gets_nothing_and_harms_nobody(kind, features):
    head = make_head(kind)
    holed = features.copy()
    holed[2] = np.nan
    decisions, neighbours = head.predict(holed), head.nearest(holed)
    assert decisions[2].label == neighbours[2].id == head.flag(neighbours[2].similarity) == ""
    assert math.isnan(decisions[2].score)
    assert decisions[3] == head.predict(features)[3]
    assert neighbours[3] == head.nearest(features)[3]
    assert head.predict(features[:0]) == head.nearest(features[:0]) == []


def test_a_training_protein_is_its_own_nearest():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(PROTEINS, FEATURES)).astype(np.float32)
    head = make_head()
    vectors = unit_rows(features @ head.index.projection.T + head.index.offset).astype(np.float16)
    head.index = replace(head.index, vectors=vectors)
    found = head.nearest(features)
    assert tuple(n.id for n in found) == IDS
    assert [n.label for n in found] == ["in", "out", "in", "out", "in", "out", "in"]
    assert all(n.similarity > 0.999 for n in found)
    places, cosines = head.index.search(features, k=3)
    assert (np.diff(cosines, axis=1) <= 0).all()
    np.testing.assert_array_equal(places[:, 0], np.arange(PROTEINS))


def test_flag_turns_at_the_threshold():
    head = make_head()
    assert head.flag(0.25) == "in-domain"
    assert head.flag(0.249) == "far"


def test_another_backbone_layer_or_pooling_is_refused_with_both_named(features):
    head = make_head()
    head.check_backbone(Backbone(), layer=4, pool="mean")
    with pytest.raises(FingerprintError, match=r"compact \(0123456789abcdef\) .* other \(ffff\)"):
        head.check_backbone(Backbone("other", "ffff"))
    with pytest.raises(FingerprintError, match=r"layer 4 and cannot read .* layer 3"):
        head.check_backbone(Backbone(), layer=3)
    with pytest.raises(FingerprintError, match=r"pooling mean and cannot read .* pooling mean\+max"):
        head.check_backbone(Backbone(), pool="mean+max")
    for changed, told in (
        ({"layer": 5}, "from layer 5, but .* layers 0 to 4"),
        ({"pool": "mean+max"}, "gives width 10"),
    ):
        with pytest.raises(HeadFileError, match=f"'compartment' reads vectors of width 5 .*{told}"):
            make_head(**changed).check_backbone(Backbone())
    with pytest.raises(FingerprintError, match=r"width 5 .* shape \(6, 4\)"):
        head.logits(features[:, :4])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("heads") / "h.safetensors"
    make_head().save(path)
    return path.read_bytes()


def load_bytes(tmp_path, data):
    (tmp_path / "bad").write_bytes(data)
    return TrainedHead.load(tmp_path / "bad")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_one_clear_error(tmp_path_factory, whole, data):
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != whole[place]))
    path = tmp_path_factory.mktemp("mutant") / "h.safetensors"
    path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    try:
        head = TrainedHead.load(path)
    except HeadFileError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:  # only white space in the header may change without changing what is said
        head.save(path)
        assert path.read_bytes() == whole


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 4000))
def test_a_cut_file_is_refused(tmp_path_factory, whole, cut):
    with pytest.raises(HeadFileError, match="damaged"):
        load_bytes(tmp_path_factory.mktemp("cut"), whole[: max(0, len(whole) - cut)])


def rewrite(whole, change):
    """Change tensors or metadata as a forger would: with a digest that fits."""
    from bioxfer.headfile import digest, to_json

    (size,) = struct.unpack("<Q", whole[:8])
    meta = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"]["bioxfer"])
    tensors = load(whole)
    del meta["sha256"]
    change(meta, tensors)
    meta["sha256"] = digest(meta, tensors)
    return save(tensors, metadata={"bioxfer": to_json(meta)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m, t: t.pop("head.bias"), "missing or foreign: head.bias"),
        (lambda m, t: t.update(extra=np.zeros(2)), "missing or foreign: extra"),
        (lambda m, t: t.update({"head.bias": np.zeros(3, np.float32)}), "head.* of shape"),
        (lambda m, t: t["head.weight"].__setitem__((0, 0), np.nan), "head.weight holds NaN"),
        (lambda m, t: t.update({"head.bias": np.zeros(2, np.int64)}), "head.bias has the type int64"),
        (lambda m, t: t["index.targets"].__setitem__(0, 2), "outside the 2 classes"),
        (lambda m, t: t.update({"index.ids": np.zeros(3, np.uint8)}), "ids are no JSON"),
        (lambda m, t: t.update({"index.ids": np.frombuffer(b"[1, 2]", np.uint8)}), "no list of texts"),
        (lambda m, t: t.update({"index.ids": np.frombuffer(b'["a"]', np.uint8)}), "1 ids for 7"),
        (lambda m, t: m["task"]["classes"].append("third"), "head.* of shape"),
        (lambda m, t: m.update(task={"name": "?"}), "no task"),
        (lambda m, t: m.update(kind="quantum"), "kind 'quantum'"),
        (lambda m, t: m.update(kind=["linear"]), r"kind \['linear'\]"),
        (lambda m, t: m.update(temperature=0.0), "temperature 0.0 is not above 0"),
        (lambda m, t: m.update(far="near"), "far 'near' is not a finite number"),
        (lambda m, t: m.update(layer="last"), "layer 'last' is not of type int"),
        (lambda m, t: m.update(format=2), "format 2 is not 1"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(tmp_path, whole, change, reason):
    with pytest.raises(HeadFileError, match=reason):
        load_bytes(tmp_path, rewrite(whole, change))


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("mlp", lambda m, t: t.update({"head.bias_in": t["head.bias_in"][:1]}), "head.* of shape"),
        ("mlp", lambda m, t: t.update({"head.weight_in": t["head.weight_in"][0]}), "head.* of shape"),
        ("mlp", lambda m, t: t.pop("head.bias_out"), "missing or foreign: head.bias_out"),
        ("blend", lambda m, t: t.pop("head.share"), "missing or foreign: head.share"),
        ("blend", lambda m, t: t.pop("head.weight"), "missing or foreign: head.weight"),
        ("blend", lambda m, t: t.update({"head.weight_in": np.zeros((1, 4, 5))}), "missing or foreign"),
        ("blend", lambda m, t: t.update({"head.share": np.array(1.0)}), "share 1.0 of the network"),
        ("blend", lambda m, t: t.update({"head.share": np.array(np.nan)}), "head.share holds NaN"),
        ("blend", lambda m, t: t.update({"head.share": np.array([0.5])}), "head.share of shape"),
        (
            "blend of mlp",
            lambda m, t: t.update({"head.network_temperature": np.array(0.0)}),
            "network temperature 0.0 is not above 0",
        ),
        ("blend", lambda m, t: t.update({"head.neighbours": np.array(0)}), "0 neighbours are none"),
        ("linear", lambda m, t: m.update(threshold=1.5), "threshold 1.5 is not between 0 and 1"),
        ("linear", lambda m, t: m.update(threshold="low"), "threshold 'low' is not a finite number"),
        ("linear", lambda m, t: m.update(first=0), "first 0 is no number of residues"),
        ("linear", lambda m, t: m.update(first=True), "first True is no number of residues"),
        ("linear", lambda m, t: m.update(first=70.0), "first 70.0 is no number of residues"),
        ("linear", lambda m, t: m.update(first=None), "first None is no number of residues"),
    ],
)
def test_an_ensemble_or_blend_that_contradicts_itself_is_refused(tmp_path, kind, change, reason):
    make_head(kind).save(tmp_path / "whole")
    with pytest.raises(HeadFileError, match=reason):
        load_bytes(tmp_path, rewrite((tmp_path / "whole").read_bytes(), change))


def test_a_huge_header_is_not_read(tmp_path):
    with pytest.raises(HeadFileError, match="header of 1099511627776 bytes"):
        load_bytes(tmp_path, struct.pack("<Q", 2**40) + b"{}")


def test_deep_json_is_refused(tmp_path):
    text = b'{"__metadata__":' + b"[" * 100_000
    with pytest.raises(HeadFileError, match="damaged"):
        load_bytes(tmp_path, struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "[" * 60 + "]" * 60, "[" * 990 + "]" * 990])
def test_a_header_that_could_not_be_written_is_refused(tmp_path, whole, value):
    """The hash of what JSON cannot say was asked for."""
    (size,) = struct.unpack("<Q", whole[:8])
    outer = json.loads(whole[8 : 8 + size])
    outer["__metadata__"]["bioxfer"] = outer["__metadata__"]["bioxfer"].replace('"CC BY 4.0"', value)
    text = json.dumps(outer).encode()
    with pytest.raises(HeadFileError, match=r"its metadata (hold|are nested)"):
        load_bytes(tmp_path, struct.pack("<Q", len(text)) + text + whole[8 + size :])


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(HeadFileError, match="damaged"):
        load_bytes(tmp_path, pickle.dumps(Canary()))
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        TrainedHead.load(tmp_path / "nowhere")
    with pytest.raises(OutputError):
        make_head().save(tmp_path / "no folder" / "h.safetensors")
