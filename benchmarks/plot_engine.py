"""Draw ``results/engine.svg`` from what bench_engine.py measured, and print README's table of it.

python benchmarks/plot_engine.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SHAPES = ("8M", "35M", "150M", "650M")
FILES = ("engine_lengths", "engine_growth", *(f"engine_{shape}" for shape in SHAPES))
COLOURS = {
    "bioxfer": "#0072b2",
    "fair-esm": "#767676",
    "transformers": "#d55e00",
    "onnxruntime": "#009e73",
    "openvino": "#aa4499",
    "bound": "#222222",
}
# What bf16 and fp32 of a tool differ in.
MARKERS = {"fp32": "o", "bf16": "s"}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the result files that are there, by name."""
    found = {}
    for name in FILES:
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def draw_rates(axes: Any, columns: dict[float, dict[str, Any]]) -> None:
    """Draw the forward residues a second of all ways, and the bounds, over numbers.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    columns : dict
        The measured set (``bounds`` and ``ways``) for each number on the abscissa.
    """
    names = dict.fromkeys(name for found in columns.values() for name in found["ways"])
    for name in names:
        tool, precision, *without = name.split()
        points = {
            x: found["ways"][name]["forward"]["residues_per_second"]
            for x, found in columns.items()
            if name in found["ways"]
        }
        ours = tool == "bioxfer" and not without
        axes.plot(
            list(points),
            list(points.values()),
            color=COLOURS[tool],
            marker=MARKERS[precision],
            markerfacecolor=COLOURS[tool] if precision == "bf16" else "white",
            markersize=5.5,
            linestyle="-" if ours else ":" if without else "--",
            linewidth=2.4 if ours else 1.3,
            zorder=3 if ours else 2,
            label=name,
        )
    for precision, style in (("fp32", ":"), ("bf16", (0, (6, 2, 1, 2)))):
        points = {
            x: found["bounds"][precision]["with_attention"]
            for x, found in columns.items()
            if precision in found["bounds"]
        }
        if points:
            axes.plot(
                list(points),
                list(points.values()),
                color=COLOURS["bound"],
                linestyle=style,
                linewidth=1.2,
                label=f"torch's products alone, {precision}",
            )
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_ylabel("residues a second, forward only")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set_xticks(list(columns))


def draw_growth(axes: Any, found: dict[str, Any]) -> None:
    """Draw the seconds of ``bioxfer embed`` over records."""
    records = {int(count): row for count, row in found["records"].items()}
    seconds = [row["seconds"] for row in records.values()]
    axes.plot(list(records), seconds, color=COLOURS["bioxfer"], marker="o", linewidth=2.4)
    for count, row in records.items():
        first = count == min(records)
        axes.annotate(
            f"{row['seconds']:,.1f} s\n{row['peak_memory_mib']:,} MiB",
            (count, row["seconds"]),
            xytext=(8, -6) if first else (-8, 6),
            textcoords="offset points",
            ha="left" if first else "right",
            va="top" if first else "bottom",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(seconds) / 2, max(seconds) * 3)
    axes.set_xlim(min(records) / 1.6, max(records) * 1.6)
    axes.minorticks_off()
    axes.set_xticks(list(records), [f"{count:,}" for count in records])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("records of about 120 residues")
    axes.set_ylabel("seconds, FASTA to NPZ, and peak memory")
    axes.set_title(f"Embedded backbone, {found['precision']}")


def draw(results: dict[str, dict[str, Any]]) -> Any:
    """Draw three panels with one legend below; those without results stay empty."""
    from matplotlib import pyplot

    pyplot.rcParams |= {"font.size": 10, "svg.hashsalt": "bioxfer", "axes.titlesize": 11}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 5.4))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    handles: dict[str, Any] = {}
    if found := results.get("engine_lengths"):
        draw_rates(left, {int(length): row for length, row in found["lengths"].items()})
        left.set_xticks(left.get_xticks(), [f"{x:.0f}" for x in left.get_xticks()])
        left.set_xlabel("residues of each protein")
        left.set_title(f"ESM-2 {found['shape']}: speed against length")
    shapes = [shape for shape in SHAPES if f"engine_{shape}" in results]
    if shapes:
        columns = {float(shape[:-1]): results[f"engine_{shape}"]["sets"]["swissprot"] for shape in shapes}
        draw_rates(middle, columns)
        middle.set_xticks(list(columns), [shape.replace("M", " M") for shape in shapes])
        middle.set_xlabel("parameters")
        middle.set_title("Swiss-Prot-like lengths: speed against size")
    if found := results.get("engine_growth"):
        draw_growth(right, found)
    for axes in (middle, left):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.tight_layout(rect=(0, 0.13, 1, 1), w_pad=2.5)
    figure.legend(
        handles.values(), handles, loc="lower center", ncols=5, frameon=False, handlelength=3.2, fontsize=9.5
    )
    return figure


def tabulate(results: dict[str, dict[str, Any]]) -> str:
    """Make README's table: residues a second of every way on Swiss-Prot-like lengths, forward only."""
    rows = [
        "| shape | way | residues/s | × fair-esm | × transformers | least cosine | largest error |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        ways = results.get(f"engine_{shape}", {"sets": {"swissprot": {"ways": {}}}})["sets"]["swissprot"][
            "ways"
        ]
        for name, row in ways.items():
            speed = row["forward"]
            name = f"**{name}**" if name.startswith("bioxfer") and "without" not in name else name
            rows.append(
                f"| {shape} | {name} | {speed['residues_per_second']:,} | {speed['ratio_to_fairesm']:.1f} "
                f"| {speed.get('ratio_to_transformers', 0):.2f} | {row['min_cosine']:.6f} "
                f"| {row['max_relative_error']:.0e} |"
            )
    return "\n".join(rows)


def main() -> None:
    folder = Path(__file__).parent / "results"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=folder, help="folder of the result files")
    parser.add_argument("-o", "--out", type=Path, help="SVG or PNG; engine.svg beside the results")
    options = parser.parse_args()
    results = read_results(options.results)
    if not results:
        parser.error(f"{options.results} holds no result of bench_engine.py; run that first")
    figure = draw(results)
    out = options.out or options.results / "engine.svg"
    # Without a date, the same results give the same file.
    figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)
    print(tabulate(results))


if __name__ == "__main__":
    main()
