"""Few examples: `auto` and transfer against plain logistic regression, on the same vectors and proteins.

    python benchmarks/few_shot.py TABLES --folder FOLDER [--tasks NAME ...] [--draws 3] [--first 20]

TABLES is what prepare_tables.py wrote. Training sets of 16 and 64 proteins of each class (of a number: in
all) are drawn from rows that the backbone has not seen and that have no relatives among the held-out
ones; the sources of a transfer are the other tables' training rows, at most 1,500 of each, none a
relative of any held-out protein of those tables. gb1_two_vs_rest and stability, which the backbone never
saw, come from the shared folder with their own splits; each of their variants counts as a cluster. Plain
is scikit-learn's LogisticRegression or Ridge on standardised vectors. One trunk serves all draws of a task.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import shared_folder, write_result

from bioxfer.embedding import embed
from bioxfer.evaluate import draw_statistics, interval
from bioxfer.sequences import SequenceRecord
from bioxfer.tasks import Multiclass, Regression, Task, task_from_name
from bioxfer.transfer import Journal, fit
from bioxfer.trunks import Labelled

SIZES = (16, 64)
SOURCE_ROWS = 1500
POOL = "mean+max"
METHODS = ("plain", "auto", "transfer", "sequential", "joint")
TASKS = (
    "localization10",
    "structure_class7",
    "membrane_binary",
    "solubility",
    "signal_peptide",
    "enzyme_ec",
    "meltome",
    "gb1_two_vs_rest",
    "stability",
)
RAW = ("gb1_two_vs_rest", "stability")
LEAST_CLUSTERS = 5  # of a class among the rows to draw from; smaller classes are left out of the task
HELD_OUT = 2500  # of a raw table, at most


@dataclass(frozen=True)
class Table:
    """Rows of one table with their vectors."""

    name: str
    x: np.ndarray
    label: np.ndarray
    split: np.ndarray
    cluster: np.ndarray

    def part(self, rows: np.ndarray, task: Task | None = None) -> Labelled:
        """Return some rows with encoded labels."""
        words = [str(word) for word in self.label[rows]]
        task = task or task_from_name("auto", words)
        _, group = np.unique(self.cluster[rows], return_inverse=True)
        return Labelled(np.ascontiguousarray(self.x[rows]), task.encode(words), task, group, self.name)


def read_table(folder: Path, name: str, *, model: str, cache: str | None, seed: int) -> Table:
    """Read a table and embed what is needed of it."""
    csv.field_size_limit(2**30)
    raw = name in RAW
    with (
        lzma.open(shared_folder() / f"{name}.csv.xz", "rt", encoding="utf-8", newline="")
        if raw
        else (folder / f"{name}.csv").open(newline="", encoding="utf-8")
    ) as file:
        rows = list(csv.DictReader(file))
    if raw:
        chance = np.random.default_rng(seed)
        judged = "test" if any(row["split"] == "test" for row in rows) else "valid"
        parts = {side: [row for row in rows if row["split"] == side] for side in ("train", judged)}
        learn, held_out = ([rows[i] for i in chance.permutation(len(rows))] for rows in parts.values())
        half = min(len(learn) // 2, SOURCE_ROWS)
        own = {"train": learn[:half], "dev": learn[half : 3 * half], "valid": held_out[:HELD_OUT]}
        rows = [
            row | {"split": side, "cluster": row["sequence"]} for side, some in own.items() for row in some
        ]
    if name == "enzyme_ec":  # the first number; proteins of several are left out
        for row in rows:
            first = {number.split(".")[0] for number in row["label"].split(";")}
            row["label"] = first.pop() if len(first) == 1 else ""
        rows = [row for row in rows if row["label"]]
    held = {row["cluster"] for row in rows if row["split"] == "valid"}
    if not raw and name != "meltome":
        drawn = [
            row for row in rows if row["split"] in ("train_unseen", "dev") and row["cluster"] not in held
        ]
        kinds = {row["label"] for row in drawn}
        lone = {
            k for k in kinds if len({row["cluster"] for row in drawn if row["label"] == k}) < LEAST_CLUSTERS
        }
        rows = [row for row in rows if row["label"] in kinds - lone]
    shown = [row for row in rows if row["split"] == "train"]
    shown = [shown[i] for i in np.random.default_rng(seed).permutation(len(shown))[:SOURCE_ROWS]]
    fresh = [row for row in rows if row["split"] in ("train_unseen", "dev") and row["cluster"] not in held]
    kept = shown + fresh + [row for row in rows if row["split"] == "valid"]
    records = [SequenceRecord(str(place), row["sequence"]) for place, row in enumerate(kept)]
    vectors = embed(records, model=model, pool=POOL, precision="bf16", cache=cache).vectors
    usable = np.isfinite(vectors).all(axis=1)
    print(f"{name}: {len(shown)} as source, {len(fresh)} to draw from, {len(kept)} in all", flush=True)
    columns = (np.array([row[key] for row in kept])[usable] for key in ("label", "split", "cluster"))
    return Table(name, vectors[usable], *columns)


def draw(table: Table, size: int, seed: int) -> np.ndarray:
    """Draw so many proteins of each class; of a number, in all."""
    fresh = np.flatnonzero(np.isin(table.split, ["train_unseen", "dev"]))
    order = np.random.default_rng(seed).permutation(fresh)
    if isinstance(task_from_name("auto", [str(word) for word in table.label[fresh]]), Regression):
        return np.sort(order[:size])
    rows: list[int] = []
    for word in np.unique(table.label[fresh]):
        mine = order[table.label[order] == word]
        other = int(np.argmax(table.cluster[mine] != table.cluster[mine[0]]))  # two clusters at least
        rows += [*mine[:1], mine[other], *np.delete(mine, [0, other])[: size - 2]]
    return np.sort(np.array(rows))


def fit_plain(few: Labelled, x: np.ndarray) -> np.ndarray:
    """Predict with what anybody would try first."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(max_iter=2000) if isinstance(few.task, Multiclass) else Ridge()
    return make_pipeline(StandardScaler(), model).fit(few.x, few.y).predict(x)


def run(table: Table, sources: list[Labelled], size: int, numbers: range, journal: Path) -> dict[str, Any]:
    """Compare the methods on one task at one size; differences are paired by draw and held-out protein."""
    valid = np.flatnonzero(table.split == "valid")
    said: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    seconds = dict.fromkeys(("plain", "transfer"), 0.0)
    chosen, counts = [], []
    for number in numbers:
        few = table.part(draw(table, size, seed=number))
        held = table.part(valid, few.task)
        started = time.perf_counter()
        said["plain"].append(fit_plain(few, held.x))
        seconds["plain"] += time.perf_counter() - started
        started = time.perf_counter()
        found = fit(sources, few, held, sizes=(), seed=number, journal=Journal(journal, table.name))
        seconds["transfer"] += time.perf_counter() - started
        outputs = {way: few.task.predict(fitted.outputs(held.x)) for way, fitted in found.fits.items()}
        said["auto"].append(outputs["target_only"])
        said["transfer"].append(outputs[found.chosen])
        said["sequential"].append(outputs["sequential"])
        said["joint"].append(outputs["joint"])
        chosen.append(found.chosen)
        counts.append(len(few.x))
    name = held.task.main_metric
    together = np.stack([each for method in METHODS for each in said[method]], axis=1)

    def means(y: np.ndarray, p: np.ndarray) -> np.ndarray:
        scores = np.array([held.task.metrics(y, column)[name] for column in p.T])
        values = scores.reshape(len(METHODS), len(numbers)).mean(axis=1)
        return np.concatenate([values, values[1:] - values[0], values[2:] - values[1]])

    values = means(held.y, together)
    drawn = draw_statistics(means, held.y, together, held.group, n=1000, seed=0)
    labels = [*METHODS, *(f"{m} - plain" for m in METHODS[1:]), *(f"{m} - auto" for m in METHODS[2:])]
    scores = {
        label: {"value": float(value), "ci95": interval(column)}
        for label, value, column in zip(labels, values, drawn.T, strict=True)
    }
    return {
        "task": table.name,
        "size": size,
        "unit": "proteins"
        if isinstance(held.task, Regression)
        else "proteins of each class, where there are",
        "training_proteins": counts,
        "held_out": len(held.x),
        "metric": name,
        "scores": scores,
        "chosen": chosen,
        "seconds": seconds,
    }


def main() -> None:
    """Run all and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--first", type=int, default=20, help="seed of the first draw")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--folder", type=Path, required=True, help="keeps vectors and finished tasks")
    options = parser.parse_args()
    tables = {
        name: read_table(
            options.tables, name, model=options.model, cache=str(options.folder / "cache.sqlite"), seed=0
        )
        for name in TASKS
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    numbers = range(options.first, options.first + options.draws)
    place = f"{{}}-{{}}-{options.first}-{options.draws}.json"
    for name in options.tasks:
        others = [table for table in tables.values() if table.name != name]
        sources = [each.part(np.flatnonzero(each.split == "train")) for each in others]
        for size in SIZES:
            kept = options.folder / place.format(name, size)
            if kept.exists():
                continue
            journal = options.folder / f"{name}.safetensors"
            result = run(tables[name], sources, size, numbers, journal)
            kept.write_text(json.dumps(result), encoding="utf-8")
            told = ", ".join(f"{m} {result['scores'][m]['value']:.3f}" for m in METHODS)
            gain = result["scores"]["transfer - plain"]
            print(f"{name} {size}: {told}; transfer - plain {gain['value']:+.3f} {gain['ci95']}", flush=True)
    paths = [options.folder / place.format(name, size) for name in TASKS for size in SIZES]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    write_result(
        "few_shot",
        {
            "model": options.model,
            "pool": POOL,
            "draws": options.draws,
            "first_draw": options.first,
            "results": found,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
