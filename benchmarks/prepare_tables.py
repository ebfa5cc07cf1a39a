"""Split the shared tables by homology, once for the backbone's sources and for the heads.

Every protein of every table belongs to one cluster (MMseqs2, 25% identity over 40% of the member). A table
with a test of its own keeps it; of the others, 8% of the clusters are held out as `valid`. What is in a
cluster with a test protein, or resembles one when searched for (25% identity over 30% of the shorter), is no
source of the backbone, whichever table it comes from; nor is a member of a held-out cluster. Another 7% of
the clusters are `dev`, to choose and calibrate heads on.

Written for each table: TABLE.csv for a head (`train`: also shown to the backbone; `train_unseen`: training
rows that were not; `dev`; `valid`) and TABLE.source.csv for the backbone (the rows of `train`).

    python benchmarks/prepare_tables.py FOLDER
"""

from __future__ import annotations

import csv
import hashlib
import lzma
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from results import shared_folder

from bioxfer.clusters import shares_homology

TESTS = {
    "structure_class7": "valid",
    "localization10": "test",
    "secondary_structure3": "test_NEW364",
    "conservation9": "valid",
    "meltome": "test",
}
OWN = ("membrane_binary", "solubility", "signal_peptide", "enzyme_ec")
HELD, DEV = 8, 15  # of a hundred: below the first held out, below the second dev


def read_rows(table: str) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    with lzma.open(shared_folder() / f"{table}.csv.xz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row | {"sequence": row["sequence"].upper()} for row in rows]


def cluster(sequences: list[str]) -> dict[str, int]:
    """Give each sequence the number of its cluster's representative."""
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder, "all.fasta")
        fasta.write_text("".join(f">s{i}\n{s}\n" for i, s in enumerate(sequences)))
        subprocess.run(
            ["mmseqs", "easy-cluster", fasta, f"{folder}/c", f"{folder}/tmp", "--min-seq-id", "0.25",
             "-c", "0.4", "--cov-mode", "1", "-s", "5", "-v", "1"],
            check=True,
        )  # fmt: skip
        pairs = [line.split() for line in Path(folder, "c_cluster.tsv").read_text().splitlines()]
    return {sequences[int(member[1:])]: int(representative[1:]) for representative, member in pairs}


def draw(group: int) -> int:
    """Give a cluster a number from 0 to 99 that depends on nothing else."""
    return int(hashlib.sha256(f"c{group}".encode()).hexdigest()[:8], 16) % 100


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    rows = {table: read_rows(table) for table in (*TESTS, *OWN)}
    judged = {row["sequence"] for t in rows for row in rows[t] if row["split"].startswith(("test", "val"))}
    judged -= {row["sequence"] for row in rows["solubility"]}  # all of its rows are called valid
    # The enzymes are many enough to drop whatever resembles any table's test or validation row.
    enzymes = [row["sequence"] for row in rows["enzyme_ec"]]
    like = shares_homology(enzymes, sorted(judged))
    rows["enzyme_ec"] = [row for row, far in zip(rows["enzyme_ec"], ~like, strict=True) if far]
    tests = {row["sequence"] for t, split in TESTS.items() for row in rows[t] if row["split"] == split}
    sequences = sorted({row["sequence"] for t in rows for row in rows[t]})
    group = cluster(sequences)
    near = {group[sequence] for sequence in tests}
    asked = [s for s in sequences if group[s] not in near]
    found = shares_homology(asked, sorted(tests))
    relatives = {s for s, hit in zip(asked, found, strict=True) if hit}
    relatives |= {s for s in sequences if group[s] in near}
    for table, some in rows.items():
        sides = []
        for row in some:
            sequence, number = row["sequence"], draw(group[row["sequence"]])
            if row["split"] == TESTS.get(table) or (table in OWN and number < HELD):
                sides.append("valid")
            elif sequence in relatives or number < HELD:
                sides.append("train_unseen")
            else:
                sides.append("dev" if number < DEV else "train")
        parts = {f"{table}.csv": range(len(some)), f"{table}.source.csv": range(len(some))}
        parts[f"{table}.source.csv"] = [i for i, side in enumerate(sides) if side == "train"]
        for name, members in parts.items():
            with (folder / name).open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["id", "sequence", "label", "split", "cluster"])
                writer.writerows(
                    [
                        *(some[i][key] for key in ("id", "sequence", "label")),
                        sides[i],
                        group[some[i]["sequence"]],
                    ]
                    for i in members
                )
        print(table, dict(Counter(sides)), flush=True)


if __name__ == "__main__":
    main()
