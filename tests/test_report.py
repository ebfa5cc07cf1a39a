"""Pictures of cards: what is drawn, into which file, and what cannot be."""

from __future__ import annotations

import sys

import pytest
from toys import backbone, head, proteins, run, write_head

from bioxfer.errors import MissingExtraError, UsageError
from bioxfer.estimators import SequenceClassifier
from bioxfer.prediction import load_head
from bioxfer.report import plot_learning_curve, plot_reliability, save_plot

SIGNS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def matplotlib():
    return pytest.importorskip("matplotlib")


@pytest.fixture
def curve():
    points = [
        {"way": way, "size": size, "value": value, "ci95": interval, "metric": "accuracy"}
        for way, start in (("joint", 0.6), ("target only", 0.4))
        for size, value, interval in ((64, start + 0.1, [start, start + 0.15]), (16, start, None))
    ]
    return {"name": "toy", "transfer": {"curve": points}}


def test_reliability_has_a_point_for_each_bin(matplotlib):
    card = head().card
    ax = plot_reliability(card)
    bins = card["calibration"]["reliability"]
    points = ax.containers[1].lines[0].get_xydata().tolist()
    assert points == [[each["confidence"], each["accuracy"]] for each in bins]
    assert [patch.get_height() for patch in ax.patches] == pytest.approx(
        [each["count"] / card["split"]["valid"] for each in bins]
    )
    assert "taste: reliability on 12 held-out proteins" in ax.get_title()
    assert f"calibration error {card['calibration']['ece_after']:.3f}" in ax.get_title()


def test_the_axes_may_be_the_callers(matplotlib, curve):
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    assert plot_reliability(head().card, left) is left
    assert plot_learning_curve(curve, ax=right) is right


def test_the_learning_curve_has_a_line_for_each_way(matplotlib, curve):
    ax = plot_learning_curve(curve)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["joint", "target only"]
    for drawn, start in zip(ax.containers, (0.6, 0.4), strict=True):
        assert drawn.lines[0].get_ydata().tolist() == pytest.approx([start, start + 0.1])  # by size
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16", "64"]
    assert ax.get_ylabel() == "accuracy on held-out proteins"


@pytest.mark.parametrize("suffix", SIGNS)
def test_a_picture_is_the_same_file_every_time(matplotlib, tmp_path, suffix):
    for name in ("a", "b"):
        save_plot(head().card, tmp_path / (name + suffix))
    data = (tmp_path / f"a{suffix}").read_bytes()
    assert data.startswith(SIGNS[suffix])
    assert data == (tmp_path / f"b{suffix}").read_bytes()


def test_what_a_card_does_not_hold_is_not_drawn(matplotlib, tmp_path, curve):
    with pytest.raises(UsageError, match="head 'alanine' holds no reliability bins: it predicts a number"):
        plot_reliability(head("alanine", task="regression").card)
    with pytest.raises(UsageError, match="head 'taste' holds no learning curve: none was asked for"):
        plot_learning_curve(head().card)
    with pytest.raises(UsageError, match="plot 'map' is not one of reliability, learning-curve"):
        save_plot(head().card, tmp_path / "a.png", what="map")
    with pytest.raises(UsageError, match=r"a picture is a \.png, \.svg, \.pdf file, not '.*a\.gif'; change"):
        save_plot(head().card, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (lambda: plot_reliability(head().card), lambda: save_plot(head().card, tmp_path / "a.png")):
        with pytest.raises(MissingExtraError, match=r"pip install 'bioxfer\[report\]'"):
            draw()


def test_the_command_line_draws(matplotlib, tmp_path):
    path, out = write_head(tmp_path), tmp_path / "card.png"
    assert run("heads", "plot", path, "-o", out).code == 0
    assert out.read_bytes().startswith(SIGNS[".png"])
    before = out.read_bytes()
    again = run("heads", "plot", path, "-o", out)
    assert again.code == 3
    assert "--overwrite" in again.err
    failed = run("heads", "plot", path, "-o", out, "--what", "learning-curve", "--overwrite")
    assert failed.code == 2
    assert "holds no learning curve" in failed.err
    assert out.read_bytes() == before
    ran = run("heads", "plot", path, "-o", path, "--overwrite")
    assert ran.code == 2  # a head's suffix is no picture's
    load_head(path)  # the head itself is never drawn over


def test_why_there_is_no_learning_curve_is_told_truthfully(curve):
    moved = {"name": "toy", "transfer": {"curve": []}}
    with pytest.raises(UsageError, match="no learning curve: it was transferred with low-rank changes or w"):
        plot_learning_curve(moved)
    with pytest.raises(UsageError, match="no learning curve: none was asked for; train it anew with --sizes"):
        plot_learning_curve(head().card)


def test_a_head_from_python_says_that_nothing_was_held_out():
    records = proteins()
    texts, y = [record.sequence for record in records], [record.label for record in records]
    card = SequenceClassifier(backbone(), identity=None, folds=2).fit(texts, y).head_.card
    for draw in (plot_reliability, plot_learning_curve):
        with pytest.raises(UsageError, match="'label' was fitted in Python with nothing held out, so there"):
            draw(card)


@pytest.mark.parametrize(
    ("draw", "card"),
    [
        (plot_reliability, {"calibration": {"reliability": [{"low": 0}]}}),
        (plot_reliability, {"calibration": []}),
        (plot_reliability, {"calibration": {"reliability": [dict.fromkeys(("low", "high", "count"), 0)]}}),
        (plot_learning_curve, {"transfer": {"curve": [{"way": "joint", "size": "64"}]}}),
        (plot_learning_curve, {"transfer": 3}),
    ],
)
def test_a_card_of_another_layout_is_refused(matplotlib, draw, card, tmp_path):
    with pytest.raises(UsageError, match="card is not laid out as this version of bioxfer does it"):
        draw(card)


@pytest.mark.parametrize("name", ["$x_{$", "a$b$c"])
def test_a_name_is_no_formula(matplotlib, curve, name, tmp_path):
    save_plot(curve | {"name": name}, tmp_path / "curve.svg", what="learning-curve")
    save_plot(head().card | {"name": name}, tmp_path / "reliability.svg")
