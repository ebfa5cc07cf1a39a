"""Reports: pages that hold what cards and tables say, load nothing, and are drawn by a real browser."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html.parser
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_genes import CODON
from test_residue_regression import head as number_head
from test_residues import head as residue_head
from toys import WINDOW, backbone, fasta, head, one_sentence, proteins, run, table

import bioxfer
from bioxfer.cards import score_text
from bioxfer.cardtables import html_table
from bioxfer.embedding import EmbeddedRecord
from bioxfer.errors import MissingExtraError, UsageError
from bioxfer.prediction import predict_rows
from bioxfer.rows import Batch
from bioxfer.sequences import SequenceRecord
from bioxfer.training import evaluate_on_records

pytest.importorskip("matplotlib")

from bioxfer.report import (
    Page,
    PredictionReport,
    check_report,
    plot_confusion,
    plot_counts,
    plot_map,
    plot_track,
    report_evaluation,
    report_head,
)

_VOID = {"meta", "br", "img", "link", "input", "hr"}
_LARGEST = 5_000_000  # bytes of a page


class Reader(html.parser.HTMLParser):
    """What a page holds: figures with their texts, tables, tags in order, and no loose ends."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.figures: dict[str, list[dict[str, object]]] = {}
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self._figure: dict | None = None
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "figure":
            self._figure = {"caption": "", "titles": [], "texts": [], "paths": 0}
            self.figures.setdefault(values["data-figure"], []).append(self._figure)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "title" and self._figure is not None:
            self._figure["titles"].append("")
        elif tag in ("path", "use") and self._figure is not None:
            self._figure["paths"] += 1

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "figure":
            self._figure = None

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        self.texts.append(data)
        if where in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif where == "figcaption":
            self._figure["caption"] += data
        elif where == "title" and self._figure is not None:
            self._figure["titles"][-1] += data
        elif where in ("text", "tspan"):
            self._figure["texts"].append(data)

    def figure(self, name: str) -> dict:
        (found,) = self.figures[name]
        return found

    def table(self, first: str) -> list[list[str]]:
        """Give the rows of the table whose first column is called so."""
        (found,) = (rows for rows in self.tables if rows[0][0] == first)
        return found[1:]


def read(page: str) -> Reader:
    """Parse a page, and hold it to what is true of every one."""
    reader = Reader(page)
    assert len(set(reader.ids)) == len(reader.ids)
    for tag, values in reader.tags:
        assert tag not in {"link", "img", "image", "iframe", "object", "embed", "base", "form"}
        for name, value in values.items():
            assert name not in {"src", "srcset", "action", "data"}
            assert not name.startswith("on")
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                assert target.startswith("#")
                assert target[1:] in reader.ids
        if "href" in values:
            assert values["href"][1:] in reader.ids, values["href"]
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1] for tag in ("style", "script"))
    assert page.count("<script") == 1
    assert "@import" not in style
    assert "url(" not in style
    assert "://" not in style + script
    (policy,) = (v["content"] for t, v in reader.tags if v.get("http-equiv") == "Content-Security-Policy")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    assert len(page.encode()) < _LARGEST
    for drawn in (figure for figures in reader.figures.values() for figure in figures):
        assert drawn["caption"]
        assert drawn["paths"]
        assert drawn["texts"], drawn["caption"]  # text is text, not outlines
    return reader


CURVE = [
    {"way": way, "size": size, "value": value, "ci95": [value - 0.1, value + 0.1], "metric": "accuracy"}
    for way, start in (("target_only", 0.4), ("joint", 0.6))
    for size, value in ((16, start), (64, start + 0.1))
]


def transferred() -> dict:
    """What a card says of a transfer."""
    metrics = {"accuracy": {"value": 0.7, "ci95": [0.6, 0.8]}}
    gain = {"metric": "accuracy", "value": 0.2, "ci95": [0.1, 0.3]}
    return {
        "verdict": {"word": "helped", "way": "joint", "gain": gain},
        "chosen": "joint",
        "ways": {
            "target_only": {"metrics": metrics},
            "joint": {"metrics": metrics, "minus_target_only": gain},
        },
        "curve": CURVE,
        "left_out_sizes": {"256": "256 proteins are more than all"},
        "sources": [],
    }


# --- heads ----------------------------------------------------------------------------------------------


def test_the_page_of_a_head_says_what_its_card_says():
    card = head().card
    page = read(report_head(head()).html())
    assert set(page.figures) == {"baselines", "identity", "reliability", "confusion", "map"}
    metrics = sorted(card["metrics"])
    rows = {row[0]: row[1:] for row in page.table("held-out proteins")}
    assert rows["this head"] == [score_text(card["metrics"][name]) for name in metrics]
    for name, baseline in card["baselines"].items():
        assert rows[name] == [score_text(baseline["metrics"][metric]) for metric in metrics]
    assert len(rows) == 1 + len(card["baselines"])
    labels, cells = card["confusion"]["labels"], card["confusion"]["cells"]
    held = {true: sum(n for t, _, n in cells if t == true) for true, _, _ in cells}
    assert sorted(page.figure("confusion")["titles"]) == sorted(
        f"{labels[t]} seen as such: {n} of {held[t]}"
        if t == s
        else f"{labels[t]} taken for {labels[s]}: {n} of {held[t]}"
        for t, s, n in cells
    )
    assert sum(held.values()) == card["split"]["valid"]
    assert {str(n) for *_, n in cells} <= set(page.figure("confusion")["texts"])
    index = head().index
    assert sorted(page.figure("map")["titles"]) == sorted(
        f"{name}\n{head().task.label(target)}" for name, target in zip(index.ids, index.targets, strict=True)
    )
    assert (
        f"calibration error {card['calibration']['ece_after']:.3f}" in page.figure("reliability")["caption"]
    )
    assert {"this head", *card["baselines"]} <= set(page.figure("baselines")["texts"])
    for part in card["by_identity"]["bins"]:
        assert f"{part['valid']} proteins" in page.figure("identity")["texts"]
    by_class = {row[0]: row for row in page.table("class")}
    for each in card["classes"]:
        assert by_class[each["label"]][1:4] == [str(each[k]) for k in ("train", "train_clusters", "valid")]
    bins = card["calibration"]["reliability"]
    assert [row[1] for row in page.table("probability")] == [str(each["count"]) for each in bins]
    shown = page.figure("reliability")["titles"]
    assert len(shown) == 2 * len(bins)  # a bar and a point of each
    for title, each in zip(shown, (*bins, *bins), strict=True):
        assert f"{each['count']} of {card['split']['valid']} answers" in title
        assert score_text({"value": each["accuracy"], "ci95": each["ci95"]}) in title
    assert f"this head: {score_text(card['metrics']['accuracy'])}" in page.figure("baselines")["titles"]
    assert "share of its row" in page.figure("confusion")["caption"]
    assert f"(chance alone: {card['calibration']['ece_if_honest']:.3f})" in "".join(page.texts)
    whole = "".join(page.texts).partition("the whole card")[2]
    assert json.JSONDecoder().raw_decode(whole)[0] == json.loads(json.dumps(card))


def test_the_page_of_a_head_shows_its_learning_curve(monkeypatch):
    curve = [{**point, "way": "head", "draws": 3} for point in CURVE[:2]]
    left = {"256": "256 proteins are no part of the 80 for training"}
    monkeypatch.setattr(head(), "card", {**head().card, "curve": curve, "left_out_sizes": left})
    text = report_head(head()).html()
    page = read(text)
    assert {"16", "64", "labelled proteins in training"} <= set(page.figure("learning-curve")["texts"])
    assert page.figure("learning-curve")["titles"] == [
        f"head, {point['size']} proteins: {score_text(point)}" for point in curve
    ]
    assert page.table("proteins in training") == [
        [str(point["size"]), "3", score_text(point)] for point in curve
    ]
    assert f"256 proteins are left out of the learning curve, as {left['256']}." in text


def test_a_head_names_the_held_out_proteins_that_it_got_most_wrong(monkeypatch):
    card = head().card
    wrong = sum(n for true, said, n in card["confusion"]["cells"] if true != said)
    assert card["missed"]["of"] == wrong == len(card["missed"]["rows"])
    trained = head("share", task="regression")
    rows = trained.card["missed"]["rows"]
    assert 1 <= len(rows) <= 25
    pairs = {(f"{true:g}", f"{said:g}") for true, said in trained.card["predicted"]["pairs"]}
    assert {(f"{float(row['true']):g}", f"{float(row['said']):g}") for row in rows} <= pairs
    for row in rows:
        assert row["miss"] == pytest.approx(abs(float(row["true"]) - float(row["said"])), abs=1e-4)
    page = read(report_head(trained).html())
    assert page.table("id") == [[r["id"], r["true"], r["said"], f"{r['miss']:.3f}"] for r in rows]
    assert [r["miss"] for r in rows] == sorted((r["miss"] for r in rows), reverse=True)
    old = {key: value for key, value in trained.card.items() if key != "missed"}
    monkeypatch.setattr(trained, "card", old)
    assert "second look" not in report_head(trained).html()  # of an older version


def test_a_head_for_residues_shows_its_worst_proteins_beside_the_truth():
    for trained in (residue_head(), number_head()):
        missed = trained.card["missed"]
        assert [r["miss"] for r in missed["rows"]] == sorted(
            (r["miss"] for r in missed["rows"]), reverse=True
        )
        page = read(report_head(trained).html())
        assert len(page.figures["track"]) == min(3, missed["of"])
        for figure, row in zip(page.figures["track"], missed["rows"], strict=False):
            assert figure["caption"] == f"{trained.name} along {row['id']}"
            assert "true" in figure["texts"]
    row = residue_head().card["missed"]["rows"][0]
    first = read(report_head(residue_head()).html()).figures["track"][0]
    for word in ("said", "true"):
        runs = [re.match(rf"{word} (.): residues (\d+) to (\d+)", title) for title in first["titles"]]
        found = sorted((run.groups() for run in runs if run), key=lambda run: int(run[1]))
        assert "".join(c * (int(end) - int(start) + 1) for c, start, end in found) == row[word]


def test_small_words_are_read_on_both_grounds():
    def bright(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        line = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2]

    style = re.search(r"<style>(.*?)</style>", Page("x").html(), re.S)[1]
    for colours in re.findall(r"--ink:[^}]*", style):
        values = dict(re.findall(r"--(\w+):(#\w{6})", colours))
        for ground, ink in itertools.product(("paper", "card"), ("ink", "mute", "c0")):
            low, high = sorted((bright(values[ground]), bright(values[ink])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink)
    for rule in (".lead{", ".tile span{", "\ncaption{", ".facts th{"):
        assert "color:var(--mute)" in style.partition(rule)[2].partition("}")[0]


def test_a_card_counts_what_was_taken_for_what():
    card = head().card
    right = sum(n for true, said, n in card["confusion"]["cells"] if true == said)
    assert right / card["split"]["valid"] == pytest.approx(card["metrics"]["accuracy"]["value"])
    card = residue_head().card
    cells = card["confusion"]["cells"]
    assert sum(n for *_, n in cells) == sum(each["valid"] for each in card["classes"])
    pairs = np.array(head(task="regression").card["predicted"]["pairs"])
    rmse = head(task="regression").card["metrics"]["rmse"]["value"]
    assert np.sqrt(np.square(pairs[:, 0] - pairs[:, 1]).mean()) == pytest.approx(rmse, rel=1e-3)
    assert "confusion" not in head(task="regression").card


def test_the_page_of_a_head_of_numbers_has_them_beside_the_true_ones():
    trained = head(task="regression")
    page = read(report_head(trained).html())
    assert set(page.figures) == {"baselines", "identity", "numbers", "map"}
    assert page.figure("numbers")["titles"] == [
        f"true {true:g}, said {said:g}" for true, said in trained.card["predicted"]["pairs"]
    ]


@pytest.mark.parametrize(
    ("trained", "figures"),
    [
        (residue_head, {"baselines", "reliability", "confusion", "map", "track"}),
        (number_head, {"baselines", "numbers", "map", "track"}),
    ],
)
def test_heads_for_residues_have_pages_too(trained, figures):
    page = read(report_head(trained()).html())
    assert set(page.figures) == figures
    assert len(page.figure("map")["titles"]) == len(trained().index.ids)


def test_a_transfer_shows_its_verdict_and_its_curve(monkeypatch):
    monkeypatch.setitem(head().card, "transfer", transferred())
    page = read(report_head(head()).html())
    assert {"16", "64", "target only", "joint"} <= set(page.figure("learning-curve")["texts"])
    assert page.table("transfer")[1] == ["joint (chosen)", "0.700 [0.600, 0.800]", "+0.200 [+0.100, +0.300]"]
    said = "".join(page.texts)
    assert "Helped: +0.200 [+0.100, +0.300] accuracy by joint over the target alone." in said
    assert "256 proteins are left out of the learning curve" in said


def test_equal_heads_have_equal_pages():
    assert report_head(head()).html() == report_head(head()).html()


def test_train_writes_its_page_and_the_card_is_the_heads(tmp_path, bench):
    source = bench.write("t.csv", table(proteins(), "id", "sequence", "label"))
    page, out = tmp_path / "r.html", tmp_path / "own.safetensors"
    options = ("--model", bench.weights, "--head", "linear", "--valid", "0.3", "--cluster-by", "kmer")
    assert run("train", source, "-o", out, "--report", page, *options).code == 0
    assert page.read_text(encoding="utf-8") == report_head(bioxfer.load_head(out)).html()
    assert stat.S_IMODE(page.stat().st_mode) & 0o600 == 0o600


STRANGE = "<script>alert(1)</script>&\"'$x_{$"


def test_what_comes_from_outside_is_escaped_everywhere(monkeypatch):
    trained = residue_head()
    card = {
        **trained.card,
        "name": STRANGE,
        "intended_use": STRANGE,
        "limits": [STRANGE],
        "warnings": [STRANGE],
    }
    card["data"] = {**card["data"], "source": STRANGE, "licence": STRANGE}
    card["confusion"] = {"labels": [STRANGE, "\x1b[31m", "caf\udce9"], "cells": [[0, 1, 3], [2, 2, 1]]}
    card["classes"] = [{**card["classes"][0], "label": STRANGE}]
    monkeypatch.setattr(trained, "card", card)
    monkeypatch.setattr(trained, "name", STRANGE)
    page = read(report_head(trained).html())
    assert page.table("class")[0][0] == STRANGE
    assert f"{STRANGE} taken for \\u001b[31m: 3 of 3" in page.figure("confusion")["titles"]
    shown = trained._repr_html_()
    assert "<script" not in shown
    assert Reader(shown).tables


def test_a_head_shows_its_card_in_a_notebook():
    shown = Reader(head()._repr_html_())
    assert shown.table("held-out proteins")[0][1] == score_text(head().card["metrics"]["accuracy"])
    assert Reader(residue_head()._repr_html_()).table("held-out proteins")


@pytest.mark.parametrize("card", [{}, {"name": "<b>", "metrics": 3}, {"name": []}])
def test_a_card_of_another_layout_is_shown_as_it_is(card):
    from bioxfer.cardtables import card_to_html

    assert card_to_html(card).startswith("<pre>{")
    assert "<b>" not in card_to_html(card)


# --- evaluations ----------------------------------------------------------------------------------------


def judge(trained, records):
    found = []
    rows = evaluate_on_records(trained, records, backbone(), cluster_by="kmer", watch=found.append)
    assert found[0].rows == rows
    return found[0], rows


def flipped() -> list[SequenceRecord]:
    """Proteins of which the first has the other's label."""
    first, second, *others = proteins(12, seed=5)
    odd = SequenceRecord(STRANGE, first.sequence, label=second.label)
    return [odd, second, *others, SequenceRecord("empty", "", label=second.label)]


def test_an_evaluation_shows_its_numbers_and_its_worst_answers():
    judged, rows = judge(head(), flipped())
    page = read(report_evaluation(head(), judged, source="t.csv").html())
    assert set(page.figures) == {"reliability", "confusion", "map", "baselines", "identity"}
    assert page.table("metric") == [list(row) for row in rows]
    wrong = page.table("id")
    assert wrong[0][:3] == [STRANGE, "salty", "oily"]
    assert sum(row[1] != row[2] for row in wrong) == len(wrong)
    accuracy = next(float(value) for name, value, *_ in rows if name == "accuracy")
    assert 1 - len(wrong) / len(judged.answers) == pytest.approx(accuracy, abs=1e-4)
    assert [float(row[3]) for row in wrong] == sorted((float(row[3]) for row in wrong), reverse=True)
    assert "Without a vector, and so without an answer: 1 (empty)." in "".join(page.texts)
    assert len(page.figure("map")["titles"]) == 12
    assert page.figure("reliability")["caption"].startswith("taste: reliability on 12 labelled proteins")


@pytest.mark.parametrize(
    ("trained", "records"),
    [
        (functools.partial(head, task="regression"), None),
        (residue_head, "test_residues"),
        (number_head, "test_residue_regression"),
    ],
)
def test_evaluations_of_every_sort_have_a_page(trained, records):
    if records is None:
        rows = [SequenceRecord(r.id, r.sequence, label=str(i / 7)) for i, r in enumerate(proteins(10))]
    else:
        rows = sys.modules[records].proteins(10, seed=3)
    judged, told = judge(trained(), rows)
    page = read(report_evaluation(trained(), judged, source="t").html())
    assert page.table("metric") == [list(row) for row in told]
    assert "map" in page.figures
    assert {"confusion", "numbers"} & set(page.figures)
    assert ("track" in page.figures) == (records is not None)
    wrong = page.table("id")
    if records is not None:  # strings that are cut off say nothing; tracks do
        assert [len(row) for row in wrong] == [3] * len(wrong)
    misses = [answer.miss for answer in judged.answers]
    assert len(misses) == 10
    if trained is residue_head:  # residues that are wrong, over all proteins of one weight
        accuracy = next(float(value) for name, value, *_ in told if name == "protein_accuracy")
        assert 1 - np.mean(misses) == pytest.approx(accuracy, abs=1e-4)


def test_evaluate_writes_its_page(bench, tmp_path):
    source = bench.write("t.csv", table(proteins(12, seed=5), "id", "sequence", "label"))
    page = tmp_path / "r.html"
    ran = run(
        "evaluate", bench.head, source, "--report", page, "--model", bench.weights, "--cluster-by", "kmer"
    )
    assert ran.code == 0
    lines = [line.split(",") for line in ran.out.decode().splitlines()[1:]]
    assert read(page.read_text(encoding="utf-8")).table("metric") == lines


# --- predictions ----------------------------------------------------------------------------------------


def odd_records() -> list[SequenceRecord]:
    dice = random.Random(1)
    long = "".join(dice.choices("ACDEFGHIKLMNPQRSTVWY", k=3 * WINDOW))
    return [
        *proteins(8, seed=3),
        SequenceRecord(STRANGE, "MKVLAAGIVALAAGT"),
        SequenceRecord("none", ""),
        SequenceRecord("long", long),
    ]


def report_of(records, heads, **options) -> str:
    noted = PredictionReport(heads)
    list(predict_rows(records, heads, backbone(), watch=noted.watch, **options)[1])
    return noted.page(source="in.fasta").html()


def test_a_prediction_shows_what_was_said_and_what_is_odd():
    records = odd_records()
    heads = [head(), head("share", task="regression"), residue_head()]
    said = bioxfer.predict(records, heads=heads, model=backbone())
    page = read(report_of(records, heads))
    counts = said["taste"].value_counts()
    bars = page.figures["counts"][0]["titles"]
    assert sorted(bars) == sorted(f"{name}: {n} proteins" for name, n in counts.items())
    letters = "".join(said["kind"].dropna())
    assert sorted(page.figures["counts"][1]["titles"]) == sorted(
        f"{letter}: {letters.count(letter)} residues" for letter in set(letters)
    )
    assert {name: len(found) for name, found in page.figures.items()} == {
        "lengths": 1, "counts": 2, "scores": 2, "values": 1, "similarity": 3, "map": 3, "track": 5,
    }  # fmt: skip
    answered = said[said["taste"].notna()]
    assert sorted(page.figures["map"][0]["titles"]) == sorted(
        f"{row.id}\n{row.taste} ({row.taste_score:.3f})\nnearest: {row.taste_nearest}, {row.taste_flag}"
        for row in answered.itertuples()
    )
    for name in ("scores", "similarity", "values"):
        for figure in page.figures[name]:
            assert sum(int(re.search(r": (\d+) ", title)[1]) for title in figure["titles"]) == len(answered)
    for trained in heads:  # its card, and not its own number alone
        metric = trained.task.main_metric
        stated = f"Its card: {metric} {score_text(trained.card['metrics'][metric])}"
        (told,) = [text for text in page.texts if stated in text]
        gains = {k: v["head_minus_baseline"]["value"] for k, v in trained.card["baselines"].items()}
        best = min(sorted(gains), key=gains.get)
        beside = trained.card["baselines"][best]["metrics"][metric]
        assert told.endswith(f"the best simple method, {best}: {score_text(beside)}.")
    cards = [rows for rows in page.tables if rows[0][0] == "held-out proteins"]
    assert len(cards) == len(heads)
    odd = [
        row for rows in page.tables for row in rows[1:] if rows[0] == ["id", "length", "status", "message"]
    ]
    assert [row[:3] for row in odd] == [["none", "0", "skipped"], ["long", str(3 * WINDOW), "windowed"]]
    tracks = [figure["caption"] for figure in page.figures["track"]]
    assert tracks == [f"kind along {record.id}" for record in records[:5]]
    first = page.figures["track"][0]["titles"]
    runs = [re.match(r"(.): residues (\d+) to (\d+), .*\n(\w+)", title).groups() for title in first]
    runs.sort(key=lambda run: int(run[1]))
    drawn = "".join(letter * (int(end) - int(start) + 1) for letter, start, end, _ in runs)
    assert "".join(letters for *_, letters in runs) == records[0].sequence
    assert drawn == said["kind"][0]


def test_records_that_were_changed_are_named_and_no_message_is_cut():
    text = "J1" * 5 + proteins(1)[0].sequence[:20]
    page = read(report_of([SequenceRecord("xs", text), *proteins(2, seed=3)], [head()]))
    (row,) = (rows[1] for rows in page.tables if rows[0][-1] == "message")
    assert row[:3] == ["xs", str(len(text)), "ok"]
    assert row[3].startswith("10 residues became X (J at 1, 1 at 2")
    assert "1 ok, with a remark" in "".join(page.texts)
    assert "Every record was read whole" not in "".join(page.texts)
    long = "a message that goes on and on " * 8
    assert long in html_table(["id", "message"], [["a", long]], names=2, whole=("message",))


def test_the_form_of_the_table_changes_nothing():
    heads = [head(), residue_head()]
    wide = report_of(odd_records(), heads, probabilities=True)
    assert wide == report_of(odd_records(), heads) == report_of(odd_records(), heads, shape="long")


def test_how_records_come_in_batches_changes_nothing(monkeypatch):
    whole = report_of(odd_records(), [head()])
    monkeypatch.setattr(bioxfer.prediction, "_ROWS_AT_ONCE", 3)
    assert report_of(odd_records(), [head()]) == whole


def test_predict_writes_its_page_beside_the_table(bench, tmp_path):
    page = tmp_path / "r.html"
    source = bench.write("odd.fasta", fasta(odd_records()))
    assert bench.predict(source, "--report", page).code == 0
    plain = bench.out.read_bytes()
    told = page.read_text(encoding="utf-8")
    assert "<h1>Predictions for odd.fasta</h1>" in told
    read(told)
    bench.predict(source)
    assert bench.out.read_bytes() == plain  # who watches changes no row


def test_what_was_translated_is_said_with_its_place(bench, tmp_path):
    gene = "".join(CODON[each] for each in proteins(1, seed=4)[0].sequence)
    source = bench.write("genes.fasta", f">g1\nATG{gene}TAA\n>g2\nATG{gene}\n>none\n\n")
    page = tmp_path / "r.html"
    assert bench.predict(source, "--translate", "cds", "--report", page).code == 0
    told = read(page.read_text(encoding="utf-8"))
    rows = bench.rows()
    assert [bool(row["start"]) for row in rows] == [True, True, False]
    assert "Translated from nucleotides: 2 of 3; 1 of them are odd." in "".join(told.texts)
    assert [title.split("\n")[0] + title.split("\n")[-1] for title in told.figure("map")["titles"]] == [
        f"{row['id']}{row['source']}, {row['start']} to {row['end']}, {row['strand']} strand"
        for row in rows[:2]
    ]
    assert bench.predict(bench.fasta, "--report", page, "--overwrite").code == 0
    assert "Translated" not in page.read_text(encoding="utf-8")


def test_nothing_to_predict_is_said(bench, tmp_path):
    page = tmp_path / "r.html"
    assert bench.predict(bench.write("no.fasta", ""), "--report", page).code == 0
    assert "holds no sequence" in page.read_text(encoding="utf-8")


def test_the_worst_rows_are_the_worst_of_all():
    noted = feed(2000, seed=2)
    page = read(noted.page(source="many").html())
    least, _ = sorted((rows for rows in page.tables if rows[0][0] == "id"), key=lambda rows: rows[0][2])
    assert least[0] == ["id", "said", "score"]
    scores = np.random.default_rng(2).random(2000).round(4)
    assert [float(row[2]) for row in least[1:]] == pytest.approx(sorted(scores)[:25], abs=5e-4)


def feed(count: int, *, seed: int = 0) -> PredictionReport:
    """Note so many made-up records, whose scores and similarities are chance."""
    dice = np.random.default_rng(seed)
    scores, near = dice.random(count).round(4), dice.random(count)
    noted = PredictionReport([head()])
    vectors = dice.normal(size=(1000, head().n_features)).astype(np.float32)
    for start in range(0, count, 1000):
        part = range(start, min(start + 1000, count))
        cells = [
            [
                ("oily", "salty")[i % 2],
                float(scores[i]),
                f"p1 {near[i]:.3f}",
                "far" if near[i] < 0.5 else "in-domain",
            ]
            for i in part
        ]
        some = [EmbeddedRecord(SequenceRecord(f"r{i}", "M"), 50 + i % 300, "ok") for i in part]
        noted.watch(Batch(some, {"taste": cells}, {"taste": (list(range(len(part))), vectors[: len(part)])}))
    return noted


def test_a_hundred_thousand_predictions_are_a_small_page_that_says_what_it_leaves_out():
    page = feed(100_000).page(source="many").html()
    told = read(page)
    assert len(page.encode()) < 1_000_000
    shown = told.figure("map")
    assert shown["caption"].startswith("taste: 1000 of 100000 proteins")
    drawn = [int(title.partition("\n")[0][1:]) for title in shown["titles"]]
    assert len(set(drawn)) == 1000
    assert 45_000 < np.mean(drawn) < 55_000  # from all of them, not the first
    assert sum(int(re.search(r": (\d+) ", t)[1]) for t in told.figure("scores")["titles"]) == 100_000


# --- figures for notebooks ------------------------------------------------------------------------------


def test_maps_show_other_proteins_among_the_training_ones():
    embedded = bioxfer.embed([r.sequence for r in proteins(6, seed=9)], model=backbone())
    ax = plot_map(head(), embedded.vectors, labels=["a", "b"] * 3, names=list("uvwxyz"))
    training, *groups = ax.get_legend().get_texts()
    assert training.get_text() == "training"
    assert [text.get_text() for text in groups] == ["a", "b"]
    assert len(ax.lines[0].get_xdata()) == len(head().index.ids)
    assert sum(len(points.get_offsets()) for points in ax.collections) == 6
    with pytest.raises(UsageError, match="2 labels do not fit 6 proteins; give one for each"):
        plot_map(head(), embedded.vectors, labels=["a", "b"])
    with pytest.raises(UsageError, match="layout 'tsne' is neither 'pca' nor 'umap'"):
        plot_map(head(), how="tsne")


def test_a_map_lies_along_the_largest_differences():
    ax = plot_map(head())
    points = np.concatenate([each.get_offsets() for each in ax.collections])
    known = head().index.vectors.astype(np.float64)
    largest = np.linalg.svd(known - known.mean(axis=0), compute_uv=False)[:2]
    np.testing.assert_allclose(
        np.sqrt(np.square(points - points.mean(axis=0)).sum(axis=0)), largest, rtol=1e-4
    )
    share = np.square(largest) / np.square(known - known.mean(axis=0)).sum()
    assert ax.get_xlabel() == f"first principal component, {share[0]:.0%} of the variance"
    assert ax.get_ylabel() == f"second principal component, {share[1]:.0%} of the variance"
    for mark in ax.get_legend().legend_handles:
        assert mark.get_sizes().min() >= 25  # the points themselves may be small


def test_umap_is_drawn_where_it_is_installed_and_named_where_it_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match="pip install umap-learn"):
        plot_map(head(), how="umap")


def test_a_long_protein_is_drawn_in_few_steps():
    matrix = bioxfer.embed(["MAILVFWGDE" * 5], model=backbone(), per_residue=True).residues[0]
    for trained in (residue_head(), number_head()):
        ax = plot_track(trained, np.tile(matrix, (200, 1)), name="titin")  # 10,000 residues
        assert max(len(line.get_xdata()) for line in ax.lines) == 2000
        assert ax.get_xlim() == (0.5, 10_000.5)
        assert ax.get_title() == f"{trained.name} along titin"


def test_forty_long_names_of_classes_are_told_apart(monkeypatch):
    labels = [f"an enzyme that acts upon a donor, number {i:02}" for i in range(40)]
    cells = [[i, (i * 7) % 40, 40 - i] for i in range(40)]
    monkeypatch.setitem(head().card, "confusion", {"labels": labels, "cells": cells})
    ax = plot_confusion(head().card)
    ax.figure.draw_without_rendering()
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert len(set(names)) == len(names) == 30
    assert names[3] == "an enzyme t... number 03"
    for texts, side in ((ax.get_yticklabels(), "y"), (ax.get_xticklabels(), "x")):
        ends = sorted(getattr(text.get_window_extent(), f"interval{side}").tolist() for text in texts)
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ends)), side
    page = report_head(head()).html()
    assert '<figure class="broad" data-figure="confusion">' in page


def test_rare_labels_are_counted_together():
    ax = plot_counts({f"c{number:02}": 100 - number for number in range(40)})
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[:2] == ["c00", "c01"]
    assert names[-1] == "26 others"
    assert sum(bar.get_width() for bar in ax.patches) == sum(100 - number for number in range(40))


# --- files ----------------------------------------------------------------------------------------------


def test_a_report_that_cannot_be_written_is_refused_before_the_work(bench, tmp_path, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr("bioxfer.prediction.load_heads", work)
    monkeypatch.setattr("bioxfer.training.read_labelled", work)
    there = bench.write("r.html", "old")
    train = ("train", bench.fasta, "-o", tmp_path / "h.safetensors", "--labels", bench.fasta)
    moved = ("transfer", bench.fasta, "--source", bench.fasta, "-o", tmp_path / "h.safetensors")
    judged = ("evaluate", bench.head, bench.fasta)
    for command in (("predict", bench.fasta, "-o", bench.out), train, moved, judged):
        ran = run(*command, "--report", tmp_path / "r.png", "-q")
        assert ran.code == 2
        assert "a report is a .html, .htm file, not" in one_sentence(ran.err)
        ran = run(*command, "--report", tmp_path / "no" / "r.html", "-q")
        assert ran.code == 3
        assert "there is no folder" in one_sentence(ran.err)
    ran = run("predict", bench.fasta, "-o", bench.out, "--report", there, "-q")
    assert ran.code == 3
    assert "r.html exists; choose another name or use --overwrite" in one_sentence(ran.err)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("predict", bench.fasta, "-o", bench.out, "--report", tmp_path / "x.html", "-q")
    assert "pip install 'bioxfer[report]'" in one_sentence(ran.err)
    assert there.read_text() == "old"
    assert not bench.out.exists()


def test_a_report_replaces_no_other_file_of_the_command(bench, tmp_path):
    link = tmp_path / "link.html"
    for other in (bench.fasta, bench.head, bench.weights):
        link.symlink_to(other)
        before = other.read_bytes()
        ran = bench.predict(bench.fasta, "--report", link, "-q")
        assert ran.code == 3
        assert "is the input" in one_sentence(ran.err)
        assert other.read_bytes() == before
        link.unlink()
    link.symlink_to(bench.out)
    assert bench.predict(bench.fasta, "--report", link).code == 3


def test_an_unwritable_folder_is_refused():
    with pytest.raises(UsageError, match="not '-'; change"):
        check_report("-")


def test_a_page_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    Page("first").save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(bioxfer.BioxferError, match=r"cannot write .*r\.html: No space left on device"):
        Page("second").save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]


# --- in a browser ---------------------------------------------------------------------------------------

_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--enable-logging=stderr",
)  # fmt: skip
_ATTEMPTS = 4  # a browser may hang while it starts on a busy machine

# Asks the page itself, after its own script, and leaves the answers in its title.
_PROBE = """
const seen = [...document.querySelectorAll("svg.figure")].map(svg => {
  const box = svg.getBoundingClientRect();
  const inner = svg.querySelector("g").getBBox();
  const clear = [...svg.querySelectorAll("text")].every(text => getComputedStyle(text).fill !== "none");
  return [svg.closest("figure").dataset.figure, Math.round(box.width), Math.round(box.height),
    inner.width > 50 && inner.height > 30 && clear];
});
const part = document.querySelector("svg.figure [data-tip]");
const place = part.getBoundingClientRect();
part.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: place.x, clientY: place.y}));
const shown = [getComputedStyle(tip).display, tip.textContent, part.dataset.tip];
document.title = JSON.stringify({seen, tip: shown,
  wide: document.documentElement.scrollWidth, window: innerWidth,
  left: document.querySelectorAll("svg.figure title").length,
  paper: getComputedStyle(document.body).backgroundColor});
"""


def browse(chromium: str, path: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page; give what became of it, and what the console says."""
    for attempt in range(_ATTEMPTS):
        folder = path.parent / f"{path.stem}-{attempt}"
        folder.mkdir()
        command = [chromium, *_QUIET, f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom"]
        # files, since helpers of a browser that hangs would keep a pipe open
        with (folder / "dom").open("wb") as dom, (folder / "log").open("wb") as log:
            browser = subprocess.Popen(
                [*command, path.as_uri()], stdout=dom, stderr=log, start_new_session=True
            )
            try:
                browser.wait(timeout=40)
            except subprocess.TimeoutExpired:
                continue
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(browser.pid, signal.SIGKILL)
                browser.wait()
        log_lines = (folder / "log").read_text(errors="replace").splitlines()
        return (folder / "dom").read_text(encoding="utf-8"), [line for line in log_lines if "CONSOLE" in line]
    raise AssertionError(f"{chromium} hung {_ATTEMPTS} times on {path.name}")


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium here to open the pages in; apt-get install chromium")
    return found


def test_the_console_is_heard(chromium, tmp_path):
    path = tmp_path / "wrong.html"
    path.write_text("<!DOCTYPE html><script>nothing.here()</script>")
    assert "nothing is not defined" in browse(chromium, path)[1][0]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_browser_draws_every_figure_and_complains_of_nothing(chromium, tmp_path, monkeypatch, width, dark):
    monkeypatch.setitem(head().card, "transfer", transferred())
    judged, _ = judge(head(), flipped())
    pages = {
        "head": report_head(head()).html(),
        "numbers": report_head(head(task="regression")).html(),
        "evaluation": report_evaluation(head(), judged, source="t.csv").html(),
        "predictions": report_of(odd_records(), [head(), residue_head(), number_head()]),
    }
    options = (f"--window-size={width},900", *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    for name, page in pages.items():
        # with a question at its end that its own policy lets it answer
        known = base64.b64encode(hashlib.sha256(_PROBE.encode()).digest()).decode()
        asked = page.replace("script-src ", f"script-src 'sha256-{known}' ")
        asked = asked.replace("</body>", f"<script>{_PROBE}</script></body>")
        path = tmp_path / f"{name}.html"
        path.write_text(asked, encoding="utf-8")
        dom, console = browse(chromium, path, *options)
        assert not console, name
        answer = json.loads(html.unescape(re.search(r"<title>(\{.*?)</title>", dom, re.S)[1]))
        wanted = [(kind, len(found)) for kind, found in Reader(page).figures.items()]
        assert [(kind, sum(each[0] == kind for each in answer["seen"])) for kind, _ in wanted] == wanted
        for kind, broad, high, drawn in answer["seen"]:
            assert drawn, (name, kind)
            assert broad > 250, (name, kind)
            assert high > 100, (name, kind)
        shown, text, expected = answer["tip"]
        assert (shown, text) == ("block", expected)
        assert expected
        assert answer["left"] == 0
        assert answer["wide"] <= answer["window"], name  # nothing sticks out sideways
        assert (answer["paper"] == "rgb(21, 24, 28)") is dark
