"""Train the ready heads with `bioxfer train`, and judge localization with `bioxfer evaluate` on its test set.

structure_class: TAPE's remote-homology table. Its validation part has hardly a relative in the training part;
it also served to choose the edition of the backbone (compare_objectives.py), and there is no other test.
localization: DeepLoc's ten compartments; whole homology clusters of the training rows are held out, and the
DeepLoc test set is kept for the end.

    python benchmarks/train_ready_heads.py
"""

from __future__ import annotations

import csv
import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

from results import shared_folder, write_result

from bioxfer.evaluate import composition, dipeptides
from bioxfer.prediction import READY_HEADS, load_head
from bioxfer.transfer import fit

POOL = "mean+max+start+end"
HEADS = {
    "structure_class": {
        "table": "structure_class7",
        "train": ("train", "valid"),
        "test": None,
        "options": ["--split", "column", "--no-refit"],
        "limit": "The held-out proteins also served to choose the edition of the backbone and the pooling.",
        "licence": "MIT (TAPE remote homology, by way of nadavbra/protein_bert)",
        "use": "SCOP class (a all-alpha, b all-beta, c alpha/beta, d alpha+beta, e multi-domain, f membrane, "
        "g small) of one protein domain.",
    },
    "localization": {
        "table": "localization10",
        "train": ("train_recovered", "train_peer", "val_LA"),
        "test": "test",
        "options": ["--split", "homology"],
        "limit": "A third of DeepLoc's original training proteins is missing from the data; the val_LA part "
        "of it also served to choose the edition of the backbone and the pooling.",
        "licence": "MIT (DeepLoc, by way of protein-localization, bio_embeddings and DeepProtein)",
        "use": "Main compartment of a eukaryotic protein, one of ten.",
    },
}


def read_rows(table: str) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    with lzma.open(shared_folder() / f"{table}.csv.xz", "rt", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "sequence", "label", "split"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(*words: str) -> str:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "bioxfer", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def score_baseline(count, train: list[dict[str, str]], test: list[dict[str, str]]) -> float:
    """Accuracy on the test of a linear head on counts of residues; its penalty by cross-validation."""
    labels = [row["label"] for row in train]
    fitted = fit(count([row["sequence"] for row in train]), labels, head="linear", folds=3)
    outputs = fitted.outputs(count([row["sequence"] for row in test]))
    right = fitted.task.predict(outputs) == fitted.task.encode([row["label"] for row in test])
    return float(right.mean())


def main() -> None:
    measured = {}
    READY_HEADS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, plan in HEADS.items():
            rows = read_rows(plan["table"])
            kept = [row for row in rows if row["split"] in plan["train"]]
            table = write_rows(Path(folder, f"{plan['table']}.csv"), kept)
            out = READY_HEADS / f"{name}.safetensors"
            shown = run(
                "train", str(table), "-o", str(out), "--pool", POOL, "--licence", plan["licence"],
                "--intended-use", plan["use"], "--limit", plan["limit"], "--overwrite",
                *plan["options"], *sys.argv[1:],
            )  # fmt: skip
            print(shown)
            card = load_head(out).card
            measured[name] = {
                key: card[key] for key in ("split", "head", "backbone", "metrics", "baselines", "calibration")
            }
            if plan["test"]:
                test = write_rows(Path(folder, "test.csv"), [r for r in rows if r["split"] == plan["test"]])
                lines = run("evaluate", str(out), str(test), *sys.argv[1:]).splitlines()
                measured[name]["test"] = {row["metric"]: row for row in csv.DictReader(lines)}
                tested = [row for row in rows if row["split"] == plan["test"]]
                measured[name]["test_baselines"] = {
                    "composition": score_baseline(composition, kept, tested),
                    "dipeptides": score_baseline(dipeptides, kept, tested),
                }
                print(json.dumps([measured[name]["test"], measured[name]["test_baselines"]], indent=2))
    write_result("ready_heads", measured)


if __name__ == "__main__":
    main()
