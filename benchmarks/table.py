"""Print README's tables from the result files, one below the other.

The ready heads beside baselines and the edition before, few examples, biotrainer, the faults of three tools,
and many records; of the last four one is left out where its result file is absent.

    python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BASELINES = {"enzyme_class": "enzyme_ec level 1", "enzyme_subclass": "enzyme_ec level 2"}


def read(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def show(score: dict[str, Any] | None, *, interval: bool = False) -> str:
    if not score:
        return ""
    text = f"{score['value']:.3f}"
    return text + (" [{:.3f}, {:.3f}]".format(*score["ci95"]) if interval and score["ci95"] else "")


def main() -> None:
    heads, before, baselines = read("ready_heads"), read("ready_heads_edition_1"), read("baselines")["tasks"]
    print(
        "| head | held-out proteins | metric | this edition | edition 1 | MMseqs2 nearest | dipeptides "
        "| composition | majority | ECE |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, head in heads.items():
        if not isinstance(head, dict) or "metrics" not in head:
            continue
        metric = head["metric"]
        simple = baselines[BASELINES.get(name, head["table"])]["baselines"]
        error = head["calibration"]["ece_after"]
        cells = [
            f"`{name}`",
            str(head["split"]["valid"]),
            metric,
            f"**{show(head['metrics'][metric], interval=True)}**",
            show(before.get(name, {}).get("metrics", {}).get(metric)),
            show(simple["nearest"]),
            show(simple.get("dipeptides") or simple.get("triplet")),
            show(simple.get("composition") or simple.get("residue")),
            show(simple["majority"]),
            "" if error is None else f"{error:.3f}",
        ]
        print("| " + " | ".join(cells) + " |")
    show_few_shot(read("few_shot"))
    show_peers(read("biotrainer"))
    show_faults(read("faults"))
    show_scale(read("scale"))


def show_few_shot(found: dict[str, Any]) -> None:
    """Print the table of few examples; gains are over plain, with their intervals."""
    if not found:
        return
    print(
        "\n| task, metric | examples | plain | `auto` | gain | `transfer` | gain | sequential | joint |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for each in found["results"]:
        scores = each["scores"]
        per = "" if each["unit"] == "proteins" else " a class"
        gains = {
            method: "{:+.3f} [{:+.3f}, {:+.3f}]".format(
                scores[f"{method} - plain"]["value"], *scores[f"{method} - plain"]["ci95"]
            )
            for method in ("auto", "transfer")
        }
        cells = [
            f"{each['task']}, {each['metric']}",
            f"{each['size']}{per}",
            show(scores["plain"]),
            show(scores["auto"]),
            gains["auto"],
            show(scores["transfer"]),
            gains["transfer"],
            show(scores["sequential"]),
            show(scores["joint"]),
        ]
        print("| " + " | ".join(cells) + " |")


def show_peers(found: dict[str, Any]) -> None:
    """Print the table beside biotrainer: every model of either side, and seconds of training."""
    if not found:
        return
    print(
        "\n| task | train / dev / test | metric | biotrainer: score, training | bioxfer: score, training |\n"
        "|---|---|---|---|---|"
    )
    for name, task in found["tasks"].items():
        sides = []
        for who in ("biotrainer", "bioxfer"):
            told = [
                f"{'**' if model == task['biotrainer_best_on_dev'] else ''}{model} "
                f"{show(each['metrics'][task['metric']])}"
                f"{'**' if model == task['biotrainer_best_on_dev'] else ''}, {each['seconds_training']:.1f} s"
                for model, each in task[who].items()
            ]
            sides.append("; ".join(told))
        counts = " / ".join(str(task["proteins"][side]) for side in ("train", "dev", "valid"))
        print(f"| {name} | {counts} | {task['metric']} | {sides[0]} | {sides[1]} |")


def show_faults(found: dict[str, Any]) -> None:
    """Print what happened to each tool on each fault, and how often each happened."""
    if not found:
        return
    tools = list(found["tools"])
    print("\n| fault | " + " | ".join(tools) + " |\n|---|" + "---|" * len(tools))
    for name, each in found["faults"].items():
        cells = [name.replace("|", "\\|").replace("<", "&lt;"), *(each[tool]["outcome"] for tool in tools)]
        print("| " + " | ".join(cells) + " |")
    words = dict.fromkeys(word for total in found["totals"].values() for word in total)
    for word in words:
        print(
            f"| all: {word} | " + " | ".join(str(found["totals"][tool].get(word, 0)) for tool in tools) + " |"
        )


def show_scale(found: dict[str, Any]) -> None:
    """Print the runs over many records."""
    if not found:
        return
    print(
        f"\n| {found['records']:,} records | seconds | a second | last fifth / first "
        "| MiB after a tenth, at the end | complete |\n|---|---|---|---|---|---|"
    )
    for name, each in found.items():
        if not isinstance(each, dict) or "mib_at_tenths" not in each:
            continue
        output, sizes = each["output"], each["mib_at_tenths"]
        whole = output["rows"] == found["records"] and output["ids_in_order"] and each["exit_code"] == 0
        cells = [
            name.replace("_", " "),
            f"{each['seconds']:.0f}",
            f"{each['records_per_second']:,}",
            f"{each['last_fifth_over_first']:.2f}",
            f"{sizes[0]}, {sizes[-1]}",
            "yes" if whole else "no",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
