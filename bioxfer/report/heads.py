"""Reports on a head: what training or transfer made, and what an evaluation found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from bioxfer.cards import plain_way, score_text
from bioxfer.cardtables import (
    class_table,
    fact_table,
    html_table,
    metric_table,
    nearness_table,
    remark_list,
    set_table,
    transfer_table,
)
from bioxfer.judgement import Judgement
from bioxfer.report.figures import (
    has_many_classes,
    plot_baselines,
    plot_confusion,
    plot_identity,
    plot_learning_curve,
    plot_numbers,
    plot_reliability,
)
from bioxfer.report.maps import draw_map, into_space
from bioxfer.report.page import Page
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
    for table in (metric_table, nearness_table, class_table, set_table):
        page.add(table(card))
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
        for size, why in transfer.get("left_out_sizes", {}).items():
            page.text(f"{size} proteins are left out of the learning curve, as {why}.")
    page.heading("What it learnt from")
    page.draw(
        "map",
        lambda ax: draw_map(head, None, ax=ax),
        size=_MAP_SIZE,
        note="Each point is a protein in the space where the head looks up neighbours.",
    )
    page.add(fact_table(card))
    page.add(remark_list(card))
    page.details("the whole card", json.dumps(card, indent=1, ensure_ascii=False, sort_keys=True))
    return page


def _draw_confusion(page: Page, card: Mapping[str, Any]) -> None:
    many = has_many_classes(card)
    page.draw("confusion", partial(plot_confusion, card), size=(9.2, 8.4) if many else (4.8, 4.4), broad=many)


def _best_numbers(card: Mapping[str, Any]) -> dict[str, object]:
    """Choose what stands above everything else."""
    numbers: dict[str, object] = {}
    gains = {name: each["head_minus_baseline"] for name, each in card.get("baselines", {}).items()}
    if gains:
        name = min(gains, key=lambda name: (gains[name]["value"], name))
        metric = gains[name]["metric"]
        numbers[f"{metric} on held-out proteins"] = score_text(card["metrics"][metric])
        numbers[f"over the best simple method, {name}"] = score_text(gains[name], sign=True)
    if (error := card["calibration"].get("ece_after")) is not None:
        numbers["calibration error of its scores"] = f"{error:.3f}"
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
    if (error := card["calibration"].get("ece_after")) is not None:
        tiles["calibration error of its scores"] = f"{error:.3f}"
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
    page.add(class_table(card))
    page.add(set_table(card))
    page.heading("Answers that deserve a second look")
    wrong = sorted((a for a in judged.answers if a.miss > 0), key=lambda a: -a.miss)
    rows = [
        [a.id, a.true, a.said, f"{a.miss:.3f}", None if math.isnan(a.similarity) else f"{a.similarity:.3f}"]
        for a in wrong[:_LOOKED_AT]
    ]
    if rows:
        shown = f"the {len(rows)} worst of {len(wrong)}" if len(wrong) > len(rows) else f"all {len(wrong)}"
        page.add(
            html_table(["id", "true", "said", judged.miss_is, "similarity to training"], rows, names=3,
                       caption=shown)
        )  # fmt: skip
    else:
        page.text("No answer is wrong.")
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
