"""Reports on a head: what training or transfer made, and what an evaluation found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from bioxfer.cards import plain_way, score_text
from bioxfer.cardtables import (
    class_table,
    curve_table,
    fact_table,
    html_table,
    metric_table,
    nearness_table,
    reliability_table,
    remark_list,
    set_table,
    transfer_table,
)
from bioxfer.judgement import Judgement
from bioxfer.quoting import to_html
from bioxfer.report.figures import (
    has_many_classes,
    plot_baselines,
    plot_confusion,
    plot_identity,
    plot_learning_curve,
    plot_numbers,
    plot_reliability,
)
from bioxfer.report.maps import draw_map, draw_track, into_space
from bioxfer.report.page import Page
from bioxfer.residues import ResidueHead
from bioxfer.rows import Head

__all__ = ["report_evaluation", "report_head"]

_LOOKED_AT = 25  # answers that are named
_MAP_SIZE = (4.8, 4.6)  # with room for its legend


def report_head(head: Head) -> Page:
    """Make a page of a head: its card, its numbers beside simple methods, and its training proteins.

    Parameters
    ----------
    head : TrainedHead or ResidueHead
        From training, transfer or a file.
    """
    card = head.card
    page = Page(f"{card['name']}: {card['task']} head", card["intended_use"])
    page.tiles(_best_numbers(card))
    page.heading("How good it is")
    page.text(
        f"Measured on {card['split']['valid']} held-out proteins in {card['split']['valid_clusters']} "
        f"homology clusters; intervals: {card['intervals']}."
    )
    for name, plot, size in (
        ("baselines", plot_baselines, (4.8, 3.4)),
        ("identity", plot_identity, (4.8, 3.4)),
        ("reliability", plot_reliability, (4.8, 4.4)),
        ("numbers", plot_numbers, (4.8, 4.4)),
    ):
        page.draw(name, partial(plot, card), size=size)
    _draw_confusion(page, card)
    for table in (metric_table, nearness_table, reliability_table, class_table, set_table):
        page.add(table(card))
    if missed := card.get("missed"):
        _add_missed(page, head, missed)
    if transfer := card.get("transfer"):
        page.heading("Did transfer help?")
        gain = transfer["verdict"]["gain"]
        page.text(
            f"{transfer['verdict']['word'].capitalize()}: {score_text(gain, sign=True)} {gain['metric']} by "
            f"{plain_way(transfer['verdict']['way'])} over the target alone. The head is "
            f"{plain_way(transfer['chosen'])}."
        )
        page.draw("learning-curve", partial(plot_learning_curve, card))
        page.add(transfer_table(card))
        _add_left_out(page, transfer)
    elif card.get("curve"):
        page.heading("Would more labels help?")
        page.draw(
            "learning-curve",
            partial(plot_learning_curve, card),
            note="Points before the last are means over training sets drawn at random. Intervals are of the "
            "held-out clusters, not of the draws.",
        )
        page.add(curve_table(card))
        _add_left_out(page, card)
    page.heading("What it learnt from")
    page.draw(
        "map",
        lambda ax: draw_map(head, None, ax=ax),
        size=_MAP_SIZE,
        note="Each point is a protein in the space where the head looks up neighbours.",
    )
    page.add(fact_table(card))
    page.add(remark_list(card))
    whole = json.dumps(card, indent=1, ensure_ascii=False, sort_keys=True)
    page.details("the whole card", f"<pre>{to_html(whole)}</pre>")
    return page


def _add_left_out(page: Page, curve: Mapping[str, Any]) -> None:
    for size, why in curve.get("left_out_sizes", {}).items():
        page.text(f"{size} proteins are left out of the learning curve, as {why}.")


def _draw_confusion(page: Page, card: Mapping[str, Any]) -> None:
    many = has_many_classes(card)
    page.draw(
        "confusion",
        partial(plot_confusion, card),
        size=(9.2, 8.4) if many else (4.8, 4.4),
        broad=many,
        note="A cell is as dark as its share of its row, which holds all of that true class.",
    )


def _add_missed(page: Page, head: Head, missed: Mapping[str, Any]) -> None:
    """Name the held-out proteins of which the head was most wrong."""
    page.heading("Held-out proteins that deserve a second look")
    _draw_missed(page, head, missed)
    columns = ["id"] if isinstance(head, ResidueHead) else ["id", "true", "said"]
    rows = [[*(row[c] for c in columns), f"{row['miss']:.3f}"] for row in missed["rows"]]
    _add_worst(page, [*columns, missed["is"]], rows, names=len(columns), of=missed["of"])


def _draw_missed(page: Page, head: Head, missed: Mapping[str, Any]) -> None:
    """Draw what was said along the proteins whose residues are most wrong, beside the truth."""
    if isinstance(head, ResidueHead):
        for row in (row for row in missed["rows"] if "said" in row):
            page.draw("track", partial(_draw_row, head, row), size=(9.6, 1.5 if head.labels else 2.0))


def _draw_row(head: ResidueHead, row: Mapping[str, Any], ax: Any) -> None:
    said, true = (row[word].split() if head.task.joint else list(row[word]) for word in ("said", "true"))
    draw_track(head, said, np.empty(0), true=true, name=row["id"], ax=ax)


def _add_worst(page: Page, columns: list[str], rows: list[list[Any]], *, names: int, of: int) -> None:
    if not rows:
        page.text("No answer is wrong.")
        return
    shown = f"the {len(rows)} worst of {of}" if of > len(rows) else f"all {of}"
    page.add(html_table(columns, rows, names=names, caption=shown))


def _error_tile(card: Mapping[str, Any]) -> dict[str, object]:
    calibration = card["calibration"]
    if (error := calibration.get("ece_after")) is None:
        return {}
    chance = calibration.get("ece_if_honest")
    told = "calibration error of its scores" + ("" if chance is None else f" (chance alone: {chance:.3f})")
    return {told: f"{error:.3f}"}


def _best_numbers(card: Mapping[str, Any]) -> dict[str, object]:
    """Choose what stands above everything else."""
    numbers: dict[str, object] = {}
    gains = {name: each["head_minus_baseline"] for name, each in card.get("baselines", {}).items()}
    if gains:
        name = min(gains, key=lambda name: (gains[name]["value"], name))
        metric = gains[name]["metric"]
        numbers[f"{metric} on held-out proteins"] = score_text(card["metrics"][metric])
        numbers[f"over the best simple method, {name}"] = score_text(gains[name], sign=True)
    numbers |= _error_tile(card)
    if width := card.get("uncertainty", {}).get("halfwidth90"):
        numbers["around a number, nine times of ten"] = f"±{width:.3g}"
    if transfer := card.get("transfer"):
        numbers["transfer"] = transfer["verdict"]["word"]
    return numbers


def report_evaluation(head: Head, judged: Judgement, *, source: str) -> Page:
    """Make a page of an evaluation: its numbers beside those of the head's card, and its worst answers.

    Parameters
    ----------
    head : TrainedHead or ResidueHead
        What was judged.
    judged : Judgement
        What `evaluate_on_records` found.
    source : str
        Name of the labelled data.
    """
    card = judged.card
    page = Page(f"{head.name} on {source}", f"{len(judged.answers)} proteins, scored with {head.name}")
    metric = head.task.main_metric
    tiles: dict[str, object] = {f"{metric} here": score_text(card["metrics"][metric])}
    stated = head.card.get("metrics", {}).get(metric)
    if stated:
        tiles[f"{metric} in the head's card"] = score_text(stated)
    tiles |= _error_tile(card)
    facts = {name: value for name, value, low, _ in judged.rows if not low}
    tiles["proteins"] = facts["proteins"]
    if int(facts["trained_on"]):
        tiles["that it was trained on: memory"] = facts["trained_on"]
    page.tiles(tiles)
    page.heading("How good it is here")
    for name, plot in (("reliability", plot_reliability), ("numbers", plot_numbers)):
        page.draw(name, partial(plot, card), size=(4.8, 4.4))
    _draw_confusion(page, card)
    space = into_space(head, judged.vectors)
    names = [answer.id for answer in judged.answers]
    labels = [answer.true for answer in judged.answers] if judged.by_label else None
    page.draw(
        "map",
        lambda ax: draw_map(head, space, labels=labels, names=names, ax=ax),
        size=_MAP_SIZE,
        note="The proteins that the head learnt from lie behind, in grey."
        + (" Colours are the true labels." if labels else ""),
    )
    page.add(html_table(["metric", "value", "low", "high"], judged.rows))
    page.add(reliability_table(card))
    page.add(class_table(card))
    page.add(set_table(card))
    page.heading("Answers that deserve a second look")
    _draw_missed(page, head, card.get("missed", {}))
    wrong = sorted((a for a in judged.answers if a.miss > 0), key=lambda a: -a.miss)
    columns = ["id", "true", "said"] if judged.by_label else ["id"]
    rows = [
        [
            *(getattr(a, column) for column in columns),
            f"{a.miss:.3f}",
            None if math.isnan(a.similarity) else f"{a.similarity:.3f}",
        ]
        for a in wrong[:_LOOKED_AT]
    ]
    columns_said = [*columns, judged.miss_is, "similarity to training"]
    _add_worst(page, columns_said, rows, names=len(columns), of=len(wrong))
    if judged.left_out:
        named = ", ".join(judged.left_out[:10])
        page.text(f"Without a vector, and so without an answer: {len(judged.left_out)} ({named}).")
    if head.card.get("metrics"):
        page.heading("What its card says")
        page.draw("baselines", partial(plot_baselines, head.card), size=(4.8, 3.4))
        page.draw("identity", partial(plot_identity, head.card), size=(4.8, 3.4))
        page.add(metric_table(head.card))
        page.add(fact_table(head.card))
        page.add(remark_list(head.card))
    return page
