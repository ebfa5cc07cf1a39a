"""Masked residues alone against the joint objective: same minutes, same shape, judged on validation.

Takes two editions that `bioxfer pretrain` made, without and with source tasks, embeds the two target tasks
with each and fits linear heads on a sample of the training rows. Neither target is among the sources.

    python benchmarks/compare_objectives.py PLAIN.safetensors JOINT.safetensors
"""

from __future__ import annotations

import argparse
import csv
import lzma

import numpy as np
from results import shared_folder, write_result

from bioxfer.backbones import load_backbone
from bioxfer.backbones.compact import read_card
from bioxfer.clusters import cluster_sequences
from bioxfer.embedding import embed
from bioxfer.evaluate import score_gain, score_predictions
from bioxfer.transfer import fit

POOL = "mean+max+start+end"
TARGETS = {
    "structure_class7": (("train",), "valid"),
    "localization10": (("train_recovered", "train_peer"), "val_LA"),
}


def sample_rows(table: str, splits: tuple[str, ...], most: int, longest: int) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    with lzma.open(shared_folder() / f"{table}.csv.xz", "rt", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["split"] in splits and len(r["sequence"]) <= longest]
    chosen = np.random.default_rng(0).permutation(len(rows))[:most]
    return [rows[i] for i in sorted(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plain")
    parser.add_argument("joint")
    parser.add_argument("--train", type=int, default=2000, help="training proteins of each target")
    parser.add_argument("--valid", type=int, default=800, help="validation proteins of each target")
    parser.add_argument("--longest", type=int, default=1000, help="residues")
    options = parser.parse_args()
    editions = {"plain": options.plain, "joint": options.joint}
    measured: dict[str, object] = {
        "editions": {
            name: {fact: read_card(path).get(fact) for fact in ("steps", "tokens", "minutes", "stages")}
            for name, path in editions.items()
        }
    }
    for table, (train_splits, valid_split) in TARGETS.items():
        train = sample_rows(table, train_splits, options.train, options.longest)
        valid = sample_rows(table, (valid_split,), options.valid, options.longest)
        groups = cluster_sequences([row["sequence"] for row in valid])
        said = {}
        for name, path in editions.items():
            backbone = load_backbone(path, precision="auto")
            vectors = [
                embed([row["sequence"] for row in rows], model=backbone, pool=POOL).vectors
                for rows in (train, valid)
            ]
            fitted = fit(vectors[0], [row["label"] for row in train], head="linear", folds=3)
            said[name] = fitted.task.predict(fitted.outputs(vectors[1]))
            truth = fitted.task.encode([row["label"] for row in valid])
        metrics = fitted.task.metrics
        measured[table] = {
            "train": len(train),
            "valid": len(valid),
            "valid_clusters": len(set(groups.tolist())),
            **{name: score_predictions(metrics, truth, p, groups) for name, p in said.items()},
            "joint_minus_plain": score_gain(metrics, "accuracy", truth, said["joint"], said["plain"], groups),
        }
    write_result("objectives", measured)


if __name__ == "__main__":
    main()
