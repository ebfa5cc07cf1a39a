"""Cards: what a head says about itself, as a page of text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bioxfer.quoting import name_labels, plain_label, printable

__all__ = ["describe_card", "plain_way", "score_text", "sort_baselines"]

_CLASSES_SHOWN = 40  # in a table of their own: those that the head knows least, where there are more
_WARNINGS_SHOWN = 10
_NAME_WIDTH = 40


def describe_card(card: dict[str, Any]) -> str:
    """Put a head's card into a page of text; one that is not laid out as this version does it, as JSON."""
    try:
        page = _describe(card)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        page = "the card is not laid out as this version of bioxfer does it; it says\n" + json.dumps(
            card, indent=2, ensure_ascii=False
        )
    return printable(page)


def _describe(card: dict[str, Any]) -> str:
    backbone, split, calibration = card["backbone"], card["split"], card["calibration"]
    classes = [] if card["task"].endswith("regression") else sorted(card.get("labels", ()))
    lines = [
        f"{card['name']}: {card['task']}, {card['head']['kind']} head on {backbone['name']} "
        f"({backbone['fingerprint']}), layer {backbone['layer']}, {backbone['pool']}"
        + (f", first {backbone['first']} residues" if "first" in backbone else ""),
        *([f"classes  {len(classes)}: {name_labels(classes)}"] if classes else []),
        f"use      {card['intended_use']}",
        f"data     {card['data']['source']}, {card['data']['proteins']} proteins, "
        f"licence: {card['data']['licence']}",
        f"split    {split['train']} for training, "
        + (f"{split['dev']} to choose by, " if split.get("dev") else "")
        + f"{split['valid']} held out in {split['valid_clusters']} "
        f"homology clusters; {split['how']}",
        f"         {split['valid_with_relatives_in_train']} of the held-out have relatives in training"
        + _describe_clusters(split),
        "",
        f"{'held-out proteins':<20}" + "".join(f"{metric:>26}" for metric in sorted(card["metrics"])),
        _describe_scores(card["name"], card["metrics"]),
    ]
    for name in sort_baselines(card["baselines"]):
        lines.append(_describe_scores(name, card["baselines"][name]["metrics"]))
    lines += _describe_gain(card["baselines"])
    if transfer := card.get("transfer"):
        lines += ["", *_describe_transfer(transfer)]
    elif curve := card.get("curve"):
        lines += ["", f"{'learning curve':<20}{curve[0]['metric']:>26}"]
        sizes = [f"{point['size']} proteins" for point in curve]
        scores = zip(sizes, map(score_text, curve), strict=True)
        lines += [f"{size:<20}{score:>26}" for size, score in scores]
        lines += _describe_left_out(card)
    if nearness := card.get("by_identity"):
        lines += ["", *_describe_nearness(nearness)]
    if per_class := card.get("classes"):
        lines += ["", *_describe_classes(per_class)]
    lines.append("")
    if calibration["ece_after"] is not None:
        lines.append(
            f"calibration error {calibration['ece_before']:.3f}, "
            f"{calibration['ece_after']:.3f} after temperature {calibration['temperature']:.2f}"
            + (
                f" (chance alone: {calibration['ece_if_honest']:.3f})"
                if "ece_if_honest" in calibration
                else ""
            )
        )
    lines += _describe_reliability(calibration.get("reliability", ()))
    if conformal := card.get("conformal"):
        lines += ["", *_describe_sets(conformal), ""]
    if decision := card.get("decision"):
        lines.append(f"says labels from a probability of {decision['said_from']:.2f}, and the likeliest")
    if families := card.get("families"):
        gain = families["gain"]
        low, high = gain["ci95"] or (math.nan, math.nan)
        lines.append(
            f"knows {families['count']} families by their words: {gain['value']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] {gain['metric']} on the held-out proteins"
        )
    if abstention := card.get("abstention"):
        share, right = abstention["answered"], abstention["accuracy_answered"]
        lines.append(
            f"answers {score_text(share)} of the held-out proteins (confidence from "
            f"{abstention['threshold']:.3f}), with an accuracy of {score_text(right)}"
        )
    width = card.get("uncertainty", {}).get("halfwidth90")
    if width is not None:
        lines.append(
            f"a number is ±{width:.3g} (90%); {card['uncertainty']['held_on_valid']:.1%} of the held-out were"
        )
    lines.append(f"intervals: {card['intervals']}")
    warnings = card.get("warnings", ())
    lines += [f"warning: {warning}" for warning in warnings[:_WARNINGS_SHOWN]]
    if len(warnings) > _WARNINGS_SHOWN:
        lines.append(f"warning: {len(warnings) - _WARNINGS_SHOWN} more are in the whole card")
    lines += [f"limit: {limit}" for limit in card["limits"]]
    return "\n".join(line for line, before in zip(lines, ["", *lines[:-1]], strict=True) if line or before)


def _describe_gain(baselines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what the head gains over the baseline that leaves it the least."""
    gains = [(each["head_minus_baseline"]["value"], name) for name, each in baselines.items()]
    if not gains:
        return []
    name = min(gains)[1]
    gain = baselines[name]["head_minus_baseline"]
    interval = " [{:+.3f}, {:+.3f}]".format(*gain["ci95"]) if gain["ci95"] else ""
    return [f"{gain['value']:+.3f}{interval} {gain['metric']} over the best baseline, {name}"]


def _describe_transfer(transfer: Mapping[str, Any]) -> list[str]:
    """Write what the sources gave: the verdict, each way's score, and its learning curve."""
    verdict, gain = transfer["verdict"], transfer["verdict"]["gain"]
    interval = " [{:+.3f}, {:+.3f}]".format(*gain["ci95"]) if gain["ci95"] else ""
    sources = ", ".join(f"{source['name']} ({source['proteins']} proteins)" for source in transfer["sources"])
    ways, curve = transfer["ways"], transfer.get("curve", ())
    order = sorted(ways, key=lambda way: ("minus_target_only" in ways[way], way != "sequential"))
    lines = [
        f"transfer from {sources}: {verdict['word']}, {gain['value']:+.3f}{interval} {gain['metric']} by "
        f"{plain_way(verdict['way'])} over the target alone; the head is {plain_way(transfer['chosen'])}",
        f"{gain['metric']:<20}" + "".join(f"{plain_way(way):>26}" for way in order),
    ]
    for size in sorted({point["size"] for point in curve}):
        points = {point["way"]: point for point in curve if point["size"] == size}
        cells = [score_text(points[way]) if way in points else "-" for way in order]
        lines.append(f"{f'{size} proteins':<20}" + "".join(f"{cell:>26}" for cell in cells))
    lines += _describe_left_out(transfer)
    if not curve:
        cells = [score_text(ways[way]["metrics"][gain["metric"]]) for way in order]
        lines.append(f"{'all proteins':<20}" + "".join(f"{cell:>26}" for cell in cells))
    return lines


def _describe_left_out(curve: Mapping[str, Any]) -> list[str]:
    left = curve.get("left_out_sizes", {})
    return [f"{size} proteins: left out of the learning curve, as {why}" for size, why in left.items()]


def plain_way(way: str) -> str:
    """Write the name of a way of transfer for people."""
    return way.replace("_", " ")


def _describe_nearness(nearness: Mapping[str, Any]) -> list[str]:
    lines = [f"{'nearest in training':<20}{'proteins':>12}{nearness['metric']:>26}"]
    for part in nearness["bins"]:
        low, high = part["low"], part["high"]
        name = f"{low:.0%} to {high:.0%}" if high < 1 else f"{low:.0%} and above"
        name = f"below {high:.0%}" if low == 0 else name
        lines.append(f"{name:<20}{part['valid']:>12}{score_text(part):>26}")
    held = sum(part["valid"] for part in nearness["bins"])
    lines.append(
        f"({nearness['meaning']}; {nearness['aligned']} of {held} align at all, by {nearness['method']})"
    )
    return lines


def _describe_classes(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the table of classes, in the order of their names or, if some must go, of their F1."""
    shown = sorted(classes, key=lambda each: str(each["label"]))
    if len(shown) > _CLASSES_SHOWN:
        shown = sorted(shown, key=lambda each: -1.0 if each["f1"] is None else each["f1"])[:_CLASSES_SHOWN]
    width = max(18, *(len(_plain(each["label"])) for each in shown)) + 2
    lines = [
        f"{'class':<{width}}{'training':>9}{'clusters':>9}{'held out':>9}"
        f"{'precision':>11}{'recall':>8}{'F1':>24}"
    ]
    for each in shown:
        precision, recall = (
            "-" if each[key] is None else f"{each[key]:.3f}" for key in ("precision", "recall")
        )
        f1 = "-" if each["f1"] is None else score_text({"value": each["f1"], "ci95": each["f1_ci95"]})
        lines.append(
            f"{_plain(each['label']):<{width}}{each['train']:>9}{each['train_clusters']:>9}{each['valid']:>9}"
            f"{precision:>11}{recall:>8}{f1:>24}"
        )
    if len(classes) > len(shown):
        lines.append(f"(the {len(shown)} of {len(classes)} classes with the lowest F1)")
    return lines


def _describe_reliability(bins: Sequence[Mapping[str, Any]]) -> list[str]:
    if not bins:
        return []
    lines = [f"{'  confidence':<20}{'count':>12}{'right':>26}"]
    for each in bins:
        right = score_text({"value": each["accuracy"], "ci95": each["ci95"]})
        lines.append(f"{'  ' + format(each['confidence'], '.3f'):<20}{each['count']:>12}{right:>26}")
    return lines


def _describe_sets(conformal: Mapping[str, Any]) -> list[str]:
    lines = [f"{'sets asked to cover':<20}{'covered':>26}{'size':>26}"]
    for each in conformal["levels"]:
        if "covered" in each:
            held, size = score_text(each["covered"]), score_text(each["size"])
        else:
            held, size = "all, being boundless", "-"
        lines.append(f"{'  ' + format(each['coverage'], '.0%'):<20}{held:>26}{size:>26}")
    lines.append(
        f"(size: {conformal['size_is']}; from {conformal['proteins']} proteins, {conformal['fitted_on']})"
    )
    if any(each["level"] is None for each in conformal["levels"]):
        lines.append(
            f"({conformal['proteins']} proteins are too few for each of these: such a set leaves out none)"
        )
    return lines


def _plain(label: str) -> str:
    """Write a label on one line and not too long."""
    text = plain_label(label)
    return text if len(text) <= _NAME_WIDTH else text[: _NAME_WIDTH - 3] + "..."


def _describe_clusters(split: dict[str, Any]) -> str:
    if split.get("clustered_by") == "given":
        return " (by the table's own clusters)"
    return f" (by {split['clustered_by']}, identity {split['identity']})" if "identity" in split else ""


def _describe_scores(name: str, scores: dict[str, Any]) -> str:
    cells = [score_text(score) for _, score in sorted(scores.items())]
    return f"{name:<20}" + "".join(f"{cell:>26}" for cell in cells)


def sort_baselines(baselines: Iterable[str]) -> list[str]:
    """Put the names of baselines in an order of our own: a card read from a file has its keys sorted."""
    return sorted(baselines, key=lambda name: (name != "majority", name))


def score_text(score: Mapping[str, Any], *, sign: bool = False) -> str:
    """Write a score with its interval, or a difference with its sign."""
    if score["value"] is None:
        return "nothing known"
    form = "+.3f" if sign else ".3f"
    interval = " [{}, {}]".format(*(format(end, form) for end in score["ci95"])) if score["ci95"] else ""
    return f"{score['value']:{form}}{interval}"
