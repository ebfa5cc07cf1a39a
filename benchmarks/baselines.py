"""What simple methods reach on the shared tables: the numbers that a head has to beat.

majority: the commonest label, or the mean. composition, dipeptides: a linear head on counts of residues or of
residue pairs. nearest: the label of the best MMseqs2 hit by bits, the majority where nothing is found; needs
the program mmseqs. Labels of residues: residue and triplet are the commonest label of an amino acid, alone or
between its two neighbours; nearest carries labels over along the alignment.

The folder holds the tables of prepare_tables.py: rows of train, train_unseen and dev teach, those of valid
are judged. A table without valid rows is judged on its own test split among the
shared tables; a table that is not there is left out and named. Intervals are 95%, by resampling homology
clusters of the judged proteins.

    python benchmarks/baselines.py TABLES
"""

from __future__ import annotations

import argparse
import csv
import lzma
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from results import shared_folder, write_result

from bioxfer.clusters import cluster_sequences
from bioxfer.evaluate import (
    classification_metrics,
    composition,
    dipeptides,
    regression_metrics,
    score_predictions,
)
from bioxfer.head_training import fit_head
from bioxfer.homology import normal_form

TRAIN_ROWS = 12_000  # of the linear heads, drawn at random where there are more
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWYX"  # X stands for everything else


class Plan(NamedTuple):
    """One measurement."""

    table: str
    metric: str = "accuracy"
    test: str = ""  # split of the shared table to judge on where the prepared table has none
    level: int = 0  # dots and numbers of an EC number to keep; 0 keeps a label as it is
    per_residue: bool = False


class Row(NamedTuple):
    """One protein."""

    sequence: str
    label: str


class Hit(NamedTuple):
    """Best hit of a protein: the place of the other one, and both sides of the alignment."""

    target: int
    query_start: int
    target_start: int
    query_line: str
    target_line: str


PLANS = {
    "structure_class7": Plan("structure_class7", test="valid"),
    "localization10": Plan("localization10", test="test"),
    "membrane_binary": Plan("membrane_binary", test="valid"),
    "secondary_structure3": Plan("secondary_structure3", test="test_NEW364", per_residue=True),
    "conservation9": Plan("conservation9", test="valid", per_residue=True),
    "meltome": Plan("meltome", metric="spearman", test="test"),
    "solubility": Plan("solubility"),
    "signal_peptide": Plan("signal_peptide", metric="mcc"),
    "enzyme_ec level 1": Plan("enzyme_ec", level=1),
    "enzyme_ec level 2": Plan("enzyme_ec", level=2),
}


def read_table(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def read_sides(folder: Path, plan: Plan) -> tuple[list[Row], list[Row]]:
    """Training and judged proteins of a plan."""
    rows = read_table(folder / f"{plan.table}.csv")
    train = [row for row in rows if row["split"].startswith(("train", "dev"))]
    judged = [row for row in rows if row["split"] == "valid"]
    if not judged:
        shared = read_table(shared_folder() / f"{plan.table}.csv.xz")
        judged = [row for row in shared if row["split"] == plan.test]

    def cut(row: dict[str, str]) -> Row:
        label = row["label"]
        if plan.level:
            label = ".".join(label.split(";")[0].split(".")[: plan.level])
        return Row(normal_form(row["sequence"]), label)

    return list(map(cut, train)), list(map(cut, judged))


def search(queries: Sequence[str], references: Sequence[str], threads: int) -> dict[int, Hit]:
    """Best MMseqs2 hit by bits of every query that has one."""
    best: dict[int, tuple[float, Hit]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, sequences in (("q.fasta", queries), ("r.fasta", references)):
            text = "".join(f">s{i}\n{s}\n" for i, s in enumerate(sequences) if s)
            Path(folder, name).write_text(text, encoding="ascii", newline="\n")
        command = ["mmseqs", "easy-search", "q.fasta", "r.fasta", "hits.tsv", "tmp", "-v", "1"]
        command += ["--threads", str(threads), "-s", "5.7", "--max-seqs", "100"]
        command += ["--format-output", "query,target,bits,qstart,tstart,qaln,taln"]
        subprocess.run(command, cwd=folder, check=True)
        with Path(folder, "hits.tsv").open() as file:
            for line in file:
                query, target, bits, q_start, t_start, q_line, t_line = line.rstrip("\n").split("\t")
                place = int(query[1:])
                if place not in best or float(bits) > best[place][0]:
                    hit = Hit(int(target[1:]), int(q_start) - 1, int(t_start) - 1, q_line, t_line)
                    best[place] = (float(bits), hit)
    return {place: hit for place, (_, hit) in best.items()}


def say_linear(
    count: Callable[[Sequence[str]], np.ndarray], train: list[Row], judged: list[Row], task: str
) -> np.ndarray:
    """Predictions of a linear head on counts; its penalty by cross-validation."""
    if task == "multiclass":  # a class needs two proteins to be learnt
        counts: dict[str, int] = {}
        for row in train:
            counts[row.label] = counts.get(row.label, 0) + 1
        train = [row for row in train if counts[row.label] > 1]
    fitted = fit_head(
        count([r.sequence for r in train]), [r.label for r in train], head="linear", task=task, folds=3
    )
    outputs = fitted.outputs(count([r.sequence for r in judged]))
    if task == "regression":
        return np.asarray(outputs, dtype=np.float64).reshape(len(judged))
    return np.array(fitted.task.labels)[fitted.task.predict(outputs)]


def commonest(labels: np.ndarray) -> str:
    names, counts = np.unique(labels, return_counts=True)
    return str(names[counts.argmax()])


def judge_proteins(plan: Plan, train: list[Row], judged: list[Row], threads: int) -> Iterator[Any]:
    """Truth, then name and predictions of each method."""
    number = plan.metric == "spearman"
    known = np.array([float(r.label) if number else r.label for r in train])
    yield "truth", np.array([float(r.label) if number else r.label for r in judged])
    usual = known.mean() if number else commonest(known)
    yield "majority", np.full(len(judged), usual)
    drawn = np.random.default_rng(0).permutation(len(train))[:TRAIN_ROWS]
    some = [train[i] for i in np.sort(drawn)]
    task = "regression" if number else "multiclass"
    yield "composition", say_linear(composition, some, judged, task)
    yield "dipeptides", say_linear(dipeptides, some, judged, task)
    hits = search([r.sequence for r in judged], [r.sequence for r in train], threads)
    yield (
        "nearest",
        np.array([known[hits[i].target] if i in hits else usual for i in range(len(judged))]),
    )


def letters(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of all residues, their amino acids, and their amino acids between both neighbours."""
    table = np.full(256, AMINO_ACIDS.index("X"))
    for code, residue in enumerate(AMINO_ACIDS):
        table[ord(residue)] = code
    end, size = len(AMINO_ACIDS), len(AMINO_ACIDS) + 1
    labels, alone, between = [], [], []
    for row in rows:
        code = table[np.frombuffer(row.sequence.encode("ascii"), dtype=np.uint8)]
        padded = np.concatenate([[end], code, [end]])
        labels.append(np.array(list(row.label)))
        alone.append(code)
        between.append((padded[:-2] * size + code) * size + padded[2:])
    return np.concatenate(labels), np.concatenate(alone), np.concatenate(between)


def judge_residues(train: list[Row], judged: list[Row], threads: int) -> Iterator[Any]:
    """Truth, then name and predictions of each method, residue by residue."""
    known, known_alone, known_between = letters(train)
    truth, alone, between = letters(judged)
    yield "truth", truth
    names, y = np.unique(known, return_inverse=True)
    usual = commonest(known)
    yield "majority", np.full(len(truth), usual)

    def count(words: np.ndarray, asked: np.ndarray) -> np.ndarray:
        size = (len(AMINO_ACIDS) + 1) ** 3
        table = np.bincount(words * len(names) + y, minlength=size * len(names)).reshape(size, len(names))
        return table[asked]

    single = count(known_alone, alone)
    yield "residue", names[single.argmax(axis=1)]
    # an unseen triplet falls back on its middle residue
    share = single / np.maximum(single.sum(axis=1, keepdims=True), 1)
    yield "triplet", names[(count(known_between, between) + share).argmax(axis=1)]
    hits = search([r.sequence for r in judged], [r.sequence for r in train], threads)
    carried = []
    for i, row in enumerate(judged):
        line = np.full(len(row.sequence), usual)
        if i in hits:
            hit = hits[i]
            at, other, source = hit.query_start, hit.target_start, train[hit.target].label
            for a, b in zip(hit.query_line, hit.target_line, strict=True):
                if a != "-" and b != "-":
                    line[at] = source[other]
                at, other = at + (a != "-"), other + (b != "-")
        carried.append(line)
    yield "nearest", np.concatenate(carried)


def measure(plan: Plan, folder: Path, threads: int) -> dict[str, Any]:
    started = time.perf_counter()
    train, judged = read_sides(folder, plan)
    groups = cluster_sequences([r.sequence for r in judged], threads=threads)
    if plan.per_residue:
        said = dict(judge_residues(train, judged, threads))
        rows_of_group = np.repeat(groups, [len(r.sequence) for r in judged])
    else:
        said = dict(judge_proteins(plan, train, judged, threads))
        rows_of_group = groups
    truth = said.pop("truth")
    classes = np.unique(np.concatenate([truth, *said.values()]))

    def metrics(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
        if plan.metric == "spearman":
            return {plan.metric: regression_metrics(y, p)[plan.metric]}
        if plan.metric == "accuracy":  # over many residues a table of all classes would take minutes
            return {plan.metric: float(np.mean(y == p))}
        return {plan.metric: classification_metrics(y, p, len(classes))[plan.metric]}

    def coded(values: np.ndarray) -> np.ndarray:
        return values if plan.metric == "spearman" else np.searchsorted(classes, values)

    return {
        "metric": plan.metric,
        "train": len(train),
        "train_linear": None if plan.per_residue else min(len(train), TRAIN_ROWS),
        "test": len(judged),
        "test_residues": len(truth) if plan.per_residue else None,
        "test_clusters": len(np.unique(groups)),
        "baselines": {
            name: score_predictions(metrics, coded(truth), coded(values), rows_of_group)[plan.metric]
            for name, values in said.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", type=Path, help="folder of the prepared tables")
    parser.add_argument("--threads", type=int, default=1, help="threads of MMseqs2")
    parser.add_argument("--only", nargs="*", choices=PLANS, default=list(PLANS))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    missing = []
    for name in options.only:
        if not (options.tables / f"{PLANS[name].table}.csv").is_file():
            missing.append(name)
            continue
        found[name] = measure(PLANS[name], options.tables, options.threads)
        print(name, found[name], flush=True)
    write_result("baselines", {"rows_of_linear_baselines": TRAIN_ROWS, "missing": missing, "tasks": found})


if __name__ == "__main__":
    main()
