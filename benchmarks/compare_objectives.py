"""Does joint training help tasks that were not among its sources? Leave-one-group-out, equal steps.

Three editions of `bioxfer pretrain` with the same steps, shape and seed: masked residues alone; with the
sources of group A (structure and enzymes); with those of group B (location, export, making). Each task is
then judged on the edition whose sources did not hold it, against masked residues alone, and beside them on
the edition that did. Linear heads on frozen vectors, fitted on rows that no edition has seen labels of where
there are enough (`train_unseen`: among them relatives of judged proteins, for all three editions alike),
judged on `valid`; differences are paired over the same drawn homology clusters.

    python benchmarks/compare_objectives.py TABLES PLAIN.safetensors A.safetensors B.safetensors
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from results import write_result

from bioxfer.backbones import load_backbone
from bioxfer.backbones.compact import read_card
from bioxfer.clusters import cluster_sequences
from bioxfer.embedding import embed
from bioxfer.evaluate import score_gain, score_predictions
from bioxfer.head_training import fit_head

POOL = "mean+max+start+end"
GROUP = {
    "structure_class7": "A",
    "enzyme_ec": "A",
    "localization10": "B",
    "membrane_binary": "B",
    "signal_peptide": "B",
    "solubility": "B",
    "meltome": "B",
}


def sample_rows(path: Path, split: str, most: int, longest: int) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    with path.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == split and len(r["sequence"]) <= longest]
    if path.stem == "enzyme_ec":
        rows = [row | {"label": row["label"][0]} for row in rows]
    chosen = np.random.default_rng(0).permutation(len(rows))[:most]
    return [rows[i] for i in sorted(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path)
    for name in ("plain", "A", "B"):
        parser.add_argument(name)
    parser.add_argument("--train", type=int, default=1200, help="training proteins of each task")
    parser.add_argument("--valid", type=int, default=800, help="validation proteins of each task")
    parser.add_argument("--longest", type=int, default=600, help="residues")
    options = parser.parse_args()
    editions = {name: getattr(options, name) for name in ("plain", "A", "B")}
    backbones = {name: load_backbone(path, precision="auto") for name, path in editions.items()}
    facts = ("steps", "tokens", "sources", "validation")
    tasks: dict[str, object] = {}
    for table, own in GROUP.items():
        path = options.tables / f"{table}.csv"
        train = sample_rows(path, "train_unseen", options.train, options.longest)
        seen = len(train) < options.train / 2
        if seen:
            train = sample_rows(path, "train", options.train, options.longest)
        valid = sample_rows(path, "valid", options.valid, options.longest)
        groups = cluster_sequences([row["sequence"] for row in valid])
        said = {}
        for name, backbone in backbones.items():
            vectors = [
                embed([row["sequence"] for row in rows], model=backbone, pool=POOL).vectors
                for rows in (train, valid)
            ]
            fitted = fit_head(vectors[0], [row["label"] for row in train], head="linear", folds=3)
            said[name] = fitted.task.predict(fitted.outputs(vectors[1]))
            truth = fitted.task.encode([row["label"] for row in valid])
        task = fitted.task
        other = "B" if own == "A" else "A"

        gains = {
            name: score_gain(task.metrics, task.main_metric, truth, said[name], said["plain"], groups)
            for name in (own, other)
        }
        tasks[table] = {
            "train": len(train),
            "train_rows_seen_by_the_edition_that_has_the_task": seen,
            "valid": len(valid),
            "valid_clusters": len(set(groups.tolist())),
            "metric": task.main_metric,
            "plain": score_predictions(task.metrics, truth, said["plain"], groups)[task.main_metric],
            "left_out_minus_plain": {"sources": other} | gains[other],
            "taken_in_minus_plain": {"sources": own} | gains[own],
        }
        print(table, tasks[table], flush=True)
    cards = {name: {fact: read_card(path).get(fact) for fact in facts} for name, path in editions.items()}
    write_result("objectives", {"editions": cards, "tasks": tasks})


if __name__ == "__main__":
    main()
