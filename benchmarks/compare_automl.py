"""`auto` and its cross-validation over homology clusters beside AutoPeptideML's search, on one small task.

The task is solubility, as far as the backbone has not seen its labels: the rows `dev` and `valid` of
prepare_tables.py. An outer cross-validation over homology clusters (25% identity) judges every protein once;
in each fold both get the same vectors of the same training proteins and know nothing of the others.
AutoPeptideML then runs its own procedure: five folds drawn at random, a search by Optuna for Matthews'
coefficient through nearest neighbours, support vectors, random forests and three kinds of boosted trees, and
the average of the five models of the best trial. bioxfer's `auto` chooses by cross-validation over clusters.
What AutoPeptideML does before, its representations and its partition by similarity, is left out: vectors and
outer folds are the same for both.

Seconds are of one core, without embedding; those of bioxfer hold its baselines, intervals and card.

    taskset -c 0 python benchmarks/compare_automl.py TABLES --autopeptideml PYTHON
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy read it; the other process inherits it

import numpy as np
import torch
from results import write_result

import bioxfer as bx
from bioxfer.evaluate import classification_metrics, score_gain, score_predictions
from bioxfer.head_training import train_head

POOL = "mean+max"
RUNNER = Path(__file__).with_name("automl_runner.py")


def read_rows(tables: Path, *, at_most: int | None) -> list[dict[str, str]]:
    """Take the proteins that are no source of the backbone."""
    with (tables / "solubility.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in ("dev", "valid")]
    kept = np.sort(np.random.default_rng(0).permutation(len(rows))[: at_most or len(rows)])
    return [rows[i] for i in kept.tolist()]


def run_ours(rows: list[dict[str, str]], x: np.ndarray, judged: np.ndarray, *, backbone: Any) -> Any:
    """Train on the rows that are not judged; return the judged ones' chances of being soluble, and facts."""
    started = time.perf_counter()
    head = train_head(
        x,
        [row["label"] for row in rows],
        [row["id"] for row in rows],
        sequences=[row["sequence"] for row in rows],
        groups=np.unique([row["cluster"] for row in rows], return_inverse=True)[1],
        name="soluble",
        pool=POOL,
        layer=backbone.n_layers,
        backbone_name=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        task="multiclass",
        splits=np.where(judged, "valid", "train").tolist(),
        refit=False,
    )
    seconds = time.perf_counter() - started
    return head.predict_proba(x[judged])[:, 1], {"seconds_whole": seconds, "chosen": head.kind}


def run_automl(x: np.ndarray, y: np.ndarray, judged: np.ndarray, *, python: str, trials: int) -> Any:
    """Let AutoPeptideML do the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", x=x[~judged], y=y[~judged], x_judged=x[judged])
        started = time.perf_counter()
        command = [python, RUNNER, folder / "data.npz", folder / "answer.json", str(trials)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        found["seconds_process"] = time.perf_counter() - started
    return np.array(found.pop("chances")), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", type=Path, help="folder of the prepared tables")
    parser.add_argument("--autopeptideml", metavar="PYTHON", required=True, help="an interpreter that has it")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=100, help="AutoPeptideML's own number")
    parser.add_argument("--at-most", type=int, metavar="N", help="proteins: a trial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(options.tables, at_most=options.at_most)
    backbone = bx.load_backbone("compact", threads=1)
    x = bx.embed([row["sequence"] for row in rows], model=backbone, pool=POOL).vectors
    y = np.array([int(row["label"]) for row in rows])
    groups = np.unique([row["cluster"] for row in rows], return_inverse=True)[1]
    chances = {name: np.full(len(rows), np.nan) for name in ("bioxfer", "autopeptideml")}
    facts: dict[str, list[Any]] = {name: [] for name in chances}
    for _, test in bx.HomologyKFold(options.folds, seed=0).split(x, y, groups):
        judged = np.isin(np.arange(len(rows)), test)
        runs = {
            "bioxfer": run_ours(rows, x, judged, backbone=backbone),
            "autopeptideml": run_automl(x, y, judged, python=options.autopeptideml, trials=options.trials),
        }
        for name, (said, fact) in runs.items():
            chances[name][judged] = said
            facts[name].append(fact)
            print(name, fact, flush=True)

    def metrics(true: np.ndarray, said: np.ndarray) -> dict[str, float]:
        return classification_metrics(true, said, 2)

    answers = {name: (each > 0.5).astype(np.int64) for name, each in chances.items()}
    pair = (answers["bioxfer"], answers["autopeptideml"], groups)
    write_result(
        "automl",
        {
            "cores": len(os.sched_getaffinity(0)),
            "proteins": len(rows),
            "clusters": len(np.unique(groups)),
            "outer_folds": options.folds,
            "most_trials": options.trials,
            "metrics": {name: score_predictions(metrics, y, said, groups) for name, said in answers.items()},
            "bioxfer_minus_autopeptideml": {
                name: score_gain(metrics, name, y, *pair) for name in ("accuracy", "mcc")
            },
            "folds": facts,
        },
        into=Path(tempfile.gettempdir(), "bioxfer-trial") if options.at_most else None,
    )


if __name__ == "__main__":
    main()
