"""Heads of bioxfer beside models of biotrainer: the same proteins, the same vectors, the same splits.

The embedded backbone makes every vector once; biotrainer reads them from an HDF5 file in its own layout,
bioxfer from its cache. Both learn from train, choose on dev (biotrainer stops early by it) and are judged on
test, which neither sees before. biotrainer's models run with its default settings, those of whole proteins
once more with standardised features (`scaling_method: standard`, as its own evaluation of backbones has it);
which of its models is its best is told by its own loss on dev. Its bootstrap, its sanity check and its
TensorBoard files are off, so they cost it no time; bioxfer's time holds its baselines, intervals and card.

Seconds are of one core and leave embedding out: `training` is the choice and fit of a head alone,
`whole` all from reading the table and vectors to a judged head; neither holds the start of Python.

    taskset -c 0 python benchmarks/compare_biotrainer.py TABLES FOLDER --biotrainer PYTHON [--only TASK ...]

TABLES are prepare_tables.py's, whose dev rows the backbone has not seen; GB1 is among the shared ones. FOLDER
keeps vectors and finished tasks; the result file is written from all that are there.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import lzma
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy read it; biotrainer's process inherits it

import h5py
import numpy as np
import torch
from results import shared_folder, write_result

import bioxfer as bx
from bioxfer import head_training, residue_training, training
from bioxfer.cache import EmbeddingCache
from bioxfer.embedding import embed_records
from bioxfer.evaluate import classification_metrics, regression_metrics, score_gain, score_predictions

POOL = "mean+max"  # bioxfer's default; whole proteins of both tools are these vectors
RUNNER = Path(__file__).with_name("biotrainer_runner.py")
SCALED = {"scaling_method": "standard"}
QUIET = {
    "device": "cpu",
    "bootstrapping_iterations": 0,
    "sanity_check": False,
    "external_writer": "none",
    "save_split_ids": True,  # or it does not tell its predictions
}
OF_PROTEINS = {
    f"{model}{note}": {"model_choice": model, **more}
    for model in ("LogReg", "FNN")
    for note, more in (("", {}), (", scaled", SCALED))
}
OF_RESIDUES = {"LogReg": {"model_choice": "LogReg"}, "CNN": {"model_choice": "CNN"}}
ATTENTION = {"LightAttention": {"model_choice": "LightAttention"}}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One comparison."""

    table: str
    metric: str
    protocol: str
    peers: Mapping[str, Mapping[str, Any]]
    heads: tuple[str, ...] = ("auto", "linear")
    most: Mapping[str, int] = field(default_factory=dict)  # proteins of a side, drawn where there are more
    sides: Mapping[str, str] = field(default_factory=lambda: PREPARED)  # the table's splits, as far as used
    longest: int | None = None  # residues; longer proteins are left out for both

    @property
    def reads_residues(self) -> bool:
        """Whether the vectors are those of residues."""
        return self.protocol.startswith("residue")


PREPARED = {"train": "train", "train_unseen": "train", "dev": "dev", "valid": "valid"}
GB1 = {"train": "train", "valid": "dev", "test": "valid"}  # variants of one protein: each its own cluster
PLANS = {
    "localization": Plan(
        table="localization10", metric="accuracy", protocol="sequence_to_class", peers=OF_PROTEINS
    ),
    "localization, light attention": Plan(
        table="localization10",
        metric="accuracy",
        protocol="residues_to_class",
        peers=ATTENTION,
        heads=("auto", "light-attention"),
        most={"train": 800, "dev": 200, "valid": 1000},
        longest=600,
    ),
    "secondary structure": Plan(
        table="secondary_structure3",
        metric="q3",
        protocol="residue_to_class",
        peers=OF_RESIDUES,
        heads=("auto", "linear", "conv"),
        most={"train": 1000, "dev": 200},
    ),
    "gb1": Plan(
        table="gb1_two_vs_rest",
        metric="spearman",
        protocol="sequence_to_value",
        sides=GB1,
        peers=OF_PROTEINS,
    ),
    "gb1, light attention": Plan(
        table="gb1_two_vs_rest",
        metric="spearman",
        protocol="residues_to_value",
        sides=GB1,
        peers=ATTENTION,
        heads=("auto", "light-attention"),
    ),
    "meltome": Plan(table="meltome", metric="spearman", protocol="sequence_to_value", peers=OF_PROTEINS),
    "meltome, light attention": Plan(
        table="meltome",
        metric="spearman",
        protocol="residues_to_value",
        peers=ATTENTION,
        heads=("auto", "light-attention"),
        most={"train": 800, "dev": 200, "valid": 600},
        longest=600,
    ),
}


@dataclass(frozen=True)
class Row:
    """One protein; the fields are the columns of bioxfer's table."""

    id: str
    sequence: str
    label: str
    split: str
    cluster: str

    @property
    def hash(self) -> str:
        """What biotrainer calls the sequence."""
        return hashlib.sha256(f"{self.sequence}_{len(self.sequence)}".encode()).hexdigest()


def read_rows(plan: Plan, tables: Path, *, at_most: int | None) -> list[Row]:
    """Choose the proteins of a plan, the same at every call."""
    csv.field_size_limit(10**7)
    prepared = tables / f"{plan.table}.csv"
    opened = prepared.open if prepared.is_file() else partial(
        lzma.open, shared_folder() / f"{plan.table}.csv.xz"
    )  # fmt: skip
    with opened("rt", newline="") as file:
        found = [row | {"split": plan.sides.get(row["split"], "")} for row in csv.DictReader(file)]
    # biotrainer refuses a sequence that comes twice: the judged one stays, or the first
    order = sorted((row for row in found if row["split"]), key=lambda row: row["split"] != "valid")
    distinct = list({row["sequence"].upper(): row for row in reversed(order)}.values())[::-1]
    rows = [row for row in distinct if plan.longest is None or len(row["sequence"]) <= plan.longest]
    rng, chosen = np.random.default_rng(0), []
    for side in ("train", "dev", "valid"):
        places = rng.permutation([i for i, row in enumerate(rows) if row["split"] == side]).tolist()
        chosen += places[: min(plan.most.get(side, len(places)), at_most or len(places))]
    return [
        Row(f"p{i}", row["sequence"].upper(), row["label"], row["split"], row.get("cluster") or f"c{i}")
        for i, row in ((i, rows[i]) for i in sorted(chosen))
    ]


def write_files(rows: list[Row], folder: Path) -> None:
    """Write the proteins as bioxfer's table and as biotrainer's FASTA."""
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    sets = {"train": "train", "dev": "val", "valid": "test"}
    lines = [f">{row.id} TARGET={row.label} SET={sets[row.split]}\n{row.sequence}\n" for row in rows]
    (folder / "proteins.fasta").write_text("".join(lines), encoding="utf-8")


def write_vectors(rows: list[Row], plan: Plan, folder: Path, cache: EmbeddingCache) -> float:
    """Write biotrainer's HDF5, which fills bioxfer's cache too; return the seconds."""
    started = time.perf_counter()
    records = [bx.SequenceRecord(row.id, row.sequence) for row in rows]
    with h5py.File(folder / "vectors.h5", "w") as file:
        found = embed_records(
            records,
            bx.load_backbone("compact", threads=1),
            pools=(POOL,),
            per_residue=plan.reads_residues,
            cache=cache,
            chunk=256,
        )
        for row, one in zip(rows, found, strict=True):
            values = one.residues if plan.reads_residues else one.vector(POOL)
            if values is None:
                sys.exit(f"{row.id} has no vector: {one.message}")
            file.create_dataset(row.hash, data=values).attrs["original_id"] = row.id
    return time.perf_counter() - started


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """Time the first call of each part of bioxfer that chooses or fits; later ones are its baselines'."""
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = function(*args, **options)
        seconds.setdefault(name, time.perf_counter() - started)
        return found

    with ExitStack() as stack:
        for module, name in (
            (head_training, "select"),
            (residue_training, "fit_residues"),
            (training, "attend"),
        ):
            watched = partial(timed, name, getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, watched))
        yield seconds


def run_ours(plan: Plan, head: str, folder: Path, cache: EmbeddingCache) -> dict[str, Any]:
    """Train one head; its answers to the judged proteins are under ``predictions``, by id."""
    task = {"accuracy": "multiclass", "spearman": "regression", "q3": "residue-class"}[plan.metric]
    with clock() as seconds:
        started = time.perf_counter()
        records = training.read_labelled(folder / "table.csv", None)
        trained = training.train_on_records(
            records,
            bx.load_backbone("compact", threads=1),
            name="head",
            task=task,
            head=head,  # type: ignore[arg-type]  # words of the command line
            split="column",
            pool=POOL,
            refit=False,
            cache=cache,
            threads=1,
        )
        whole = time.perf_counter() - started
    trained.save(folder / "head.safetensors")
    judged = [record for record in records if record.split == "valid"]
    table = bx.predict(judged, heads=[str(folder / "head.safetensors")], cache=cache)
    return {
        "seconds_training": sum(seconds.values()),
        "seconds_whole": whole,
        "chosen": {key: trained.card["head"].get(key) for key in ("kind", "setting")},
        "predictions": dict(zip(table["id"].tolist(), table["head"].tolist(), strict=True)),
    }


def run_peer(
    plan: Plan, settings: Mapping[str, Any], rows: list[Row], folder: Path, python: str
) -> dict[str, Any]:
    """Train one model of biotrainer in its own process; answers as `run_ours` gives them."""
    config = {"protocol": plan.protocol, "input_file": str(folder / "proteins.fasta"), **QUIET, **settings}
    config |= {"embeddings_file": str(folder / "vectors.h5"), "output_dir": str(folder / "biotrainer")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "biotrainer.log").open("w") as log:
        command = [python, RUNNER, folder / "config.json", folder / "answer.json"]
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"biotrainer failed; its last words are in {log.name}")
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    said = answer.pop("predictions")
    return answer | {
        "settings": dict(settings),
        "predictions": {row.id: said[row.hash] for row in rows if row.split == "valid"},
    }


class Judge:
    """Scores of the judged proteins, with intervals over their clusters."""

    def __init__(self, plan: Plan, rows: list[Row]) -> None:
        self.rows = [row for row in rows if row.split == "valid"]
        self.groups = np.array([row.cluster for row in self.rows])
        self.metric = plan.metric
        self.names = sorted({row.label for row in rows})
        truth = [row.label for row in self.rows]
        self.truth = np.array(list(map(len, truth))) if plan.metric == "q3" else self.coded(truth)

    def coded(self, labels: list[Any]) -> np.ndarray:
        """Turn labels of proteins into numbers."""
        if self.metric == "spearman":
            return np.array(labels, dtype=np.float64)
        return np.array([self.names.index(label) for label in labels])

    def answers(self, run: dict[str, Any]) -> np.ndarray:
        """Code predictions; of residues, count how many of each protein are right."""
        said = [run["predictions"][row.id] for row in self.rows]
        if self.metric != "q3":
            return self.coded(said)
        pairs = zip(said, self.rows, strict=True)
        return np.array([sum(a == b for a, b in zip(s, row.label, strict=True)) for s, row in pairs])

    def metrics(self, y: np.ndarray, p: np.ndarray) -> dict[str, float]:
        """Score coded predictions, or counts of right residues against lengths."""
        if self.metric == "q3":
            return {"q3": float(p.sum() / y.sum())}
        if self.metric == "spearman":
            return regression_metrics(y, p)
        return classification_metrics(y, p, len(self.names))

    def gain(self, run: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
        """Compare two runs on the same drawn clusters."""
        own, other = self.answers(run), self.answers(peer)
        return score_gain(self.metrics, self.metric, self.truth, own, other, self.groups)


def compare(plan: Plan, tables: Path, folder: Path, python: str, *, at_most: int | None) -> dict[str, Any]:
    """Run one plan."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(plan, tables, at_most=at_most)
    write_files(rows, folder)
    ours, peers, refused = {}, {}, {}
    with EmbeddingCache(folder / "cache.sqlite") as cache:
        embedding = write_vectors(rows, plan, folder, cache)
        for name, settings in plan.peers.items():
            trial = {"num_epochs": 3} if at_most and plan.reads_residues else {}
            peers[name] = run_peer(plan, {**settings, **trial}, rows, folder, python)
        for head in plan.heads:
            try:
                ours[head] = run_ours(plan, head, folder, cache)
            except bx.BioxferError as error:
                refused[head] = str(error)
    judge = Judge(plan, rows)
    best = min(peers, key=lambda name: peers[name]["dev_loss"])
    gains = {f"{a} - {b}": judge.gain(ours[a], peers[b]) for a in ours for b in peers}
    for run in (*ours.values(), *peers.values()):
        run["metrics"] = score_predictions(judge.metrics, judge.truth, judge.answers(run), judge.groups)
        del run["predictions"]
    sides = [row.split for row in rows]
    return {
        "table": plan.table,
        "protocol": plan.protocol,
        "proteins": {side: sides.count(side) for side in ("train", "dev", "valid")},
        "most": dict(plan.most),
        "longest": plan.longest,
        "clusters_judged": len(set(judge.groups)),
        "vectors": "residues" if plan.reads_residues else POOL,
        "seconds_embedding": embedding,
        "bioxfer": ours,
        "refused": refused,
        "biotrainer": peers,
        "biotrainer_best_on_dev": best,
        "metric": plan.metric,
        "bioxfer_minus_biotrainer": gains,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--biotrainer", metavar="PYTHON", required=True, help="an interpreter that has it")
    parser.add_argument("--only", nargs="*", choices=PLANS, default=list(PLANS))
    parser.add_argument(
        "--at-most", type=int, metavar="N", help="of each side: a trial, with 3 epochs on residues"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    # bioxfer loads these when it needs them; biotrainer has loaded all of its own before its clock starts
    for late in ("scipy.stats", "sklearn.linear_model", "torch._dynamo"):
        import_module(late)
    folder = options.folder.resolve()
    for name in options.only:
        place, limit = folder / name.replace(", ", "-"), options.at_most
        found = compare(PLANS[name], options.tables, place, options.biotrainer, at_most=limit)
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        for gain, value in found["bioxfer_minus_biotrainer"].items():
            print(name, gain, value, flush=True)
    done = [name for name in PLANS if (folder / f"{name}.json").exists()]
    write_result(
        "biotrainer",
        {
            "cores": len(os.sched_getaffinity(0)),
            "tasks": {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in done},
        },
        into=folder / "trial" if options.at_most else None,
    )


if __name__ == "__main__":
    main()
