"""Card tables: what a head says about itself, as HTML for a notebook or a report.

Every text from outside is escaped. A table of what a card does not hold is empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from bioxfer.cards import plain_way, score_text, sort_baselines
from bioxfer.quoting import name_labels, to_html

__all__ = [
    "card_to_html",
    "class_table",
    "curve_table",
    "fact_table",
    "html_table",
    "metric_table",
    "nearness_table",
    "reliability_table",
    "remark_list",
    "set_table",
    "short",
    "transfer_table",
]

Card: TypeAlias = Mapping[str, Any]

_LONGEST = 60  # characters of a label or an id in a cell


def card_to_html(card: Card) -> str:
    """Put a head's card into HTML tables; one that is not laid out as this version does it, as JSON."""
    try:
        parts = [
            f"<h3>{to_html(card['name'])}</h3>",
            fact_table(card),
            *(
                table(card)
                for table in (metric_table, transfer_table, nearness_table, class_table, set_table)
            ),
            remark_list(card),
        ]
        return "".join(parts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return f"<pre>{to_html(json.dumps(card, indent=2, ensure_ascii=False))}</pre>"


def short(text: object) -> str:
    """Shorten a text after 60 characters, so that one strange label breaks no page."""
    whole = str(text)
    return whole if len(whole) <= _LONGEST else whole[: _LONGEST - 3] + "..."


def html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    names: int = 1,
    whole: Sequence[str] = (),
) -> str:
    """Write a table; the first ``names`` columns are text, the others numbers; None is an empty cell.

    Long texts are shortened, but for those in the columns ``whole``.
    """

    def cell(place: int, value: object) -> str:
        text = "" if value is None else str(value) if columns[place] in whole else short(value)
        return f"<td{_kind(place, names)}>{to_html(text)}</td>"

    body = "".join(f"<tr>{''.join(cell(i, value) for i, value in enumerate(row))}</tr>" for row in rows)
    if not body:
        return ""
    head = "".join(f"<th{_kind(i, names)}>{to_html(column)}</th>" for i, column in enumerate(columns))
    title = f"<caption>{to_html(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _kind(place: int, names: int) -> str:
    return "" if place < names else ' class="n"'


def fact_table(card: Card) -> str:
    """Write what the head is, what it is for, and what it learnt from."""
    backbone, data, split = card["backbone"], card["data"], card["split"]
    classes = [] if card["task"].endswith("regression") else sorted(card.get("labels", ()))
    kin = split.get("valid_with_relatives_in_train")
    facts = {
        "task": f"{card['task']}, {card['head']['kind']} head",
        "classes": f"{len(classes)}: {name_labels(classes)}" if classes else None,
        "backbone": f"{backbone['name']} ({backbone['fingerprint']}), layer {backbone['layer']}, "
        f"{backbone['pool']}" + (f", first {backbone['first']} residues" if "first" in backbone else ""),
        "intended use": card["intended_use"],
        "data": f"{data['source'] or 'not stated'}, {data['proteins']} proteins",
        "licence": data["licence"],
        "split": f"{split['train']} for training, "
        + (f"{split['dev']} to choose by, " if split.get("dev") else "")
        + f"{split['valid']} held out in {split['valid_clusters']} homology clusters; {split['how']}",
        "relatives": None if kin is None else f"{kin} of the held-out proteins have relatives in training",
    }
    rows = "".join(
        f"<tr><th>{name}</th><td>{to_html(value)}</td></tr>" for name, value in facts.items() if value
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def metric_table(card: Card) -> str:
    """Write each metric with its interval, of the head and of the baselines."""
    metrics = sorted(card.get("metrics", ()))
    baselines = card.get("baselines", {})
    scored = [("this head", card["metrics"])] if metrics else []
    scored += [(name, baselines[name]["metrics"]) for name in sort_baselines(baselines)]
    rows = [
        [name, *(score_text(scores[metric]) if metric in scores else None for metric in metrics)]
        for name, scores in scored
    ]
    return html_table(["held-out proteins", *metrics], rows)


def transfer_table(card: Card) -> str:
    """Write what the sources gave: the score of each way of transfer."""
    if not (transfer := card.get("transfer")):
        return ""
    metric = transfer["verdict"]["gain"]["metric"]
    ways = transfer["ways"]
    rows = []
    for way in sorted(ways, key=lambda way: ("minus_target_only" in ways[way], way != "sequential")):
        gain = ways[way].get("minus_target_only")
        rows.append(
            [
                plain_way(way) + (" (chosen)" if way == transfer["chosen"] else ""),
                score_text(ways[way]["metrics"][metric]),
                None if gain is None else score_text(gain, sign=True),
            ]
        )
    return html_table(["transfer", metric, "over the target alone"], rows)


def curve_table(card: Card) -> str:
    """Write how good the head is where it learnt from fewer proteins."""
    rows = [[point["size"], point["draws"], score_text(point)] for point in card.get("curve", ())]
    metric = next((point["metric"] for point in card.get("curve", ())), "")
    return html_table(["proteins in training", "draws", metric], rows)


def nearness_table(card: Card) -> str:
    """Write the main metric by identity to the nearest training protein."""
    if not (nearness := card.get("by_identity")):
        return ""
    rows = [
        [f"{part['low']:.0%} to {part['high']:.0%}", part["valid"], score_text(part)]
        for part in nearness["bins"]
    ]
    return html_table(["identity to training", "proteins", nearness["metric"]], rows)


def reliability_table(card: Card) -> str:
    """Write how many answers had each confidence, and how many of them were right."""
    rows = [
        [
            f"{each['low']:.2f} to {each['high']:.2f}",
            each["count"],
            f"{each['confidence']:.3f}",
            score_text({"value": each["accuracy"], "ci95": each["ci95"]}),
        ]
        for each in card.get("calibration", {}).get("reliability", ())
    ]
    return html_table(["probability", "answers", "on average", "were right"], rows)


def class_table(card: Card) -> str:
    """Write counts, precision, recall and F1 of each class."""
    called = str(card.get("split", {}).get("called", "held out"))
    names = {"train": "training", "train_clusters": "clusters", "valid": called}
    classes = sorted(card.get("classes", ()), key=lambda each: str(each["label"]))
    counted = [key for key in names if classes and key in classes[0]]
    rows = [
        [
            each["label"],
            *(each[key] for key in counted),
            *(None if each[key] is None else f"{each[key]:.3f}" for key in ("precision", "recall")),
            None if each["f1"] is None else score_text({"value": each["f1"], "ci95": each["f1_ci95"]}),
        ]
        for each in classes
    ]
    return html_table(["class", *(names[key] for key in counted), "precision", "recall", "F1"], rows)


def set_table(card: Card) -> str:
    """Write how often label sets hold the truth, and how large they are."""
    if not (conformal := card.get("conformal")):
        return ""
    rows = [
        [
            f"{each['coverage']:.0%}",
            *(
                (score_text(each["covered"]), score_text(each["size"]))
                if "covered" in each
                else ("all, being boundless", None)
            ),
        ]
        for each in conformal["levels"]
    ]
    return html_table(["sets asked to cover", "covered", f"size ({conformal['size_is']})"], rows)


def remark_list(card: Card) -> str:
    """List the warnings, the limits, and what the intervals are."""
    remarks = [f"warning: {text}" for text in card.get("warnings", ())]
    remarks += [f"limit: {text}" for text in card.get("limits", ())]
    if "intervals" in card:
        remarks.append(f"intervals: {card['intervals']}")
    return f"<ul>{''.join(f'<li>{to_html(text)}</li>' for text in remarks)}</ul>" if remarks else ""
