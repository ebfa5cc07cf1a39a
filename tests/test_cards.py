"""The page of a card: all that the card says, readable, and cards of older heads too."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from toys import head, run, write_head

from bioxfer.cards import describe_card
from bioxfer.prediction import list_heads, load_head

NEW_KEYS = ("by_identity", "classes", "warnings", "conformal")


def without_news(card):
    """What an older version wrote."""
    old = {key: value for key, value in copy.deepcopy(card).items() if key not in NEW_KEYS}
    for key in ("reliability", "ece_if_honest"):
        old["calibration"].pop(key, None)
    old["baselines"].pop("alignment")
    return old


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_page_shows_every_class_with_its_counts_and_scores():
    card = head().card
    text = describe_card(card)
    for each in card["classes"]:
        cells = line_of(text, f"{each['label']} ").split()
        assert cells[1:4] == [str(each["train"]), str(each["train_clusters"]), str(each["valid"])]
        assert cells[4] == f"{each['precision']:.3f}"
        assert cells[6] == f"{each['f1']:.3f}"
    assert "class " not in describe_card(head("alanine", task="regression").card)


def test_the_page_shows_nearness_confidence_and_sets():
    card = head().card
    text = describe_card(card)
    for part, name in zip(
        card["by_identity"]["bins"], ("below 30%", "30% to 50%", "50% and above"), strict=True
    ):
        cells = line_of(text, name).removeprefix(name).split()
        assert cells[0] == str(part["valid"])
        assert ("nothing known" in line_of(text, name)) == (part["value"] is None)
    assert f"0 of {card['split']['valid']} align at all, by kmer" in text
    assert f"(chance alone: {card['calibration']['ece_if_honest']:.3f})" in text
    for each in card["calibration"]["reliability"]:
        assert f"\n  {each['confidence']:.3f} " in text
    for each in card["conformal"]["levels"]:
        assert f"{each['covered']['value']:.3f}" in line_of(text, f"  {each['coverage']:.0%}")
    number = head("alanine", task="regression").card
    assert "width of the range, in the labels' unit; from 28 proteins" in describe_card(number)
    assert "confidence" not in describe_card(number)


def test_the_page_says_by_how_much_the_best_baseline_is_beaten():
    card = head().card
    gains = {name: each["head_minus_baseline"] for name, each in card["baselines"].items()}
    name = min(gains, key=lambda each: (gains[each]["value"], each))
    gain = gains[name]
    assert f"{gain['value']:+.3f} [" in line_of(describe_card(card), "+" if gain["value"] >= 0 else "-")
    assert f"accuracy over the best baseline, {name}" in describe_card(card)


def test_warnings_stand_on_the_page_and_not_too_many():
    card = copy.deepcopy(head().card)
    card["warnings"] = [f"class 'c{n}' has 1 training proteins" for n in range(14)]
    text = describe_card(card)
    assert text.count("warning: class") == 10
    assert "warning: 4 more are in the whole card" in text


def test_of_very_many_classes_the_weakest_are_shown():
    card = copy.deepcopy(head().card)
    one = card["classes"][0]
    card["classes"] = [one | {"label": f"c{n:02}", "f1": n / 60} for n in range(59)]
    card["classes"].append(one | {"label": "never\nnamed", "f1": None, "f1_ci95": None})
    text = describe_card(card)
    assert "\nc38 " in text
    assert "\nc39 " not in text
    assert "\n'never\\nnamed' " in text  # a label with a line end is one line all the same
    assert "(the 40 of 60 classes with the lowest F1)" in text


def test_too_few_proteins_for_a_coverage_are_told():
    card = copy.deepcopy(head("alanine", task="regression").card)
    card["conformal"]["levels"][2] = {"coverage": 0.95, "level": None}
    text = describe_card(card)
    assert "all, being boundless" in line_of(text, "  95%")
    assert "(28 proteins are too few for each of these: such a set leaves out none)" in text


def test_what_a_source_gave_is_told():
    scores = {"value": 0.5, "ci95": [0.4, 0.6]}
    gain = {"metric": "accuracy", "value": 0.1, "ci95": [0.02, 0.18]}
    card = head().card | {
        "transfer": {
            "sources": [{"name": "wide", "proteins": 900}],
            "ways": {
                "joint": {"metrics": {"accuracy": {"value": 0.6, "ci95": None}}, "minus_target_only": gain},
                "target_only": {"metrics": {"accuracy": scores}},
            },
            "chosen": "joint",
            "verdict": {"word": "helped", "way": "joint", "gain": gain},
        }
    }
    text = describe_card(card)
    assert (
        "transfer from wide (900 proteins): helped, +0.100 [+0.020, +0.180] accuracy by joint over the "
        "target alone; the head is joint\n"
    ) in text
    assert line_of(text, "all proteins").split() == ["all", "proteins", "0.500", "[0.400,", "0.600]", "0.600"]
    card["transfer"]["curve"] = [{"way": "joint", "size": 16, "metric": "accuracy", **scores}]
    assert line_of(describe_card(card), "16 proteins").split()[2:] == ["-", "0.500", "[0.400,", "0.600]"]


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_an_older_card_is_shown_as_before(task):
    card = head("old", task=task).card
    text = describe_card(without_news(card))
    for word in ("nearest in training", "precision", "chance alone", "asked to cover", "warning"):
        assert word not in text
    assert text.splitlines()[0] == describe_card(card).splitlines()[0]


@pytest.mark.parametrize("name", list_heads())
def test_every_ready_head_can_be_shown(name):
    assert describe_card(load_head(name).card).startswith(f"{name}: ")


def test_show_prints_the_page(tmp_path):
    ran = run("heads", "show", write_head(tmp_path))
    assert ran.code == 0
    assert ran.out.decode().rstrip("\n") == describe_card(load_head(tmp_path / "taste.safetensors").card)


def test_classes_of_odd_names_are_told_apart():
    card = copy.deepcopy(head().card)
    card["labels"] = ["a, b", "c\nd", "plain one"]
    card["classes"] = [card["classes"][0] | {"label": label} for label in card["labels"]]
    text = describe_card(card)
    assert "classes  3: 'a, b', 'c\\nd', plain one\n" in text
    for start in ("'a, b' ", "'c\\nd' ", "plain one "):
        assert line_of(text, start)


@pytest.mark.parametrize("card", [{}, {"backbone": 3}, {"name": ["x"], "note": "\ud800 \x1b[31mred\x85"}])
def test_a_card_of_another_layout_is_shown_as_it_is(card, tmp_path):
    page = describe_card(card)
    first, rest = page.split("\n", 1)
    assert first == "the card is not laid out as this version of bioxfer does it; it says"
    assert json.loads(rest) == card
    assert not [c for c in page if c != "\n" and not c.isprintable()]
    path = tmp_path / "odd.safetensors"
    replace(head(), card=card).save(path)
    for options in ([], ["--json"]):
        shown = run("heads", "show", path, *options)
        assert shown.code == 0, shown.err
        assert shown.out.decode().endswith(rest + "\n")


def test_what_a_card_says_commands_no_terminal():
    """Nor does a character without a form in UTF-8 stop the page."""
    page = describe_card(head().card | {"intended_use": "\x1b]0;title\x07 \ud800"})
    assert r"use      \u001b]0;title\u0007 \ud800" in page
