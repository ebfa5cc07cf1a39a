"""Train the ready heads with `bioxfer train` on the tables of prepare_tables.py, and note how good they are.

Rows of `dev`, which the backbone has not seen, choose each head's form and calibrate it; rows of `valid` are
only judged. What simple methods reach on the same rows is baselines.py's to say.

    python benchmarks/train_ready_heads.py TABLES [HEAD ...] [--precision bf16]

Without any HEAD, all are trained. The result file is written anew from the cards of all that are there, and
the sha256 of all that is shipped is recorded.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from results import write_result

from bioxfer.backbones.shipped import record_shipped
from bioxfer.prediction import READY_HEADS, load_head

POOL = "mean+max+cls+start+end"
LEAST = 30  # proteins of a subclass, in training
OWN_TEST = "Held-out proteins are whole homology clusters of the table itself, which has no test of its own."


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One head."""

    table: str
    use: str
    licence: str
    metric: str = "accuracy"
    relabel: Callable[[str], str] = str
    options: tuple[str, ...] = ("--pool", POOL)
    limits: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)


def first_numbers(count: int) -> Callable[[str], str]:
    """Cut EC numbers; a protein whose numbers differ there gets no label."""

    def cut(label: str) -> str:
        found = {".".join(number.split(".")[:count]) for number in label.split(";")}
        return found.pop() if len(found) == 1 and "-" not in label else ""

    return cut


PEER = "MIT (PEER, by way of DeepProtein)"
FLIP = "AFL-3 (FLIP)"
ENZYME_LIMITS = (
    "Trained on bacterial enzymes alone; the table holds no protein that is none. A protein that is unlike "
    "all of them is told unknown, but not each non-enzyme is.",
    OWN_TEST,
)
HEADS = {
    "structure_class": Plan(
        table="structure_class7",
        use="SCOP class (a all-alpha, b all-beta, c alpha/beta, d alpha+beta, e multi-domain, f membrane, "
        "g small) of one protein domain.",
        licence="MIT (TAPE remote homology, by way of nadavbra/protein_bert)",
    ),
    "localization": Plan(
        table="localization10",
        use="Main compartment of a eukaryotic protein, one of ten.",
        licence="MIT (DeepLoc, by way of protein-localization, bio_embeddings and DeepProtein)",
        limits=("A third of DeepLoc's original training proteins is missing from the data.",),
    ),
    "membrane": Plan(
        table="membrane_binary",
        use="Whether a eukaryotic protein is bound to a membrane or soluble.",
        licence=PEER,
        names={"0": "membrane", "1": "soluble"},  # as the compartments of the same proteins say
        limits=(OWN_TEST,),
    ),
    "solubility": Plan(
        table="solubility",
        use="Whether a protein is soluble when made in Escherichia coli.",
        licence="MIT (DeepSol, by way of PEER)",
        names={"0": "insoluble", "1": "soluble"},
        limits=(OWN_TEST,),
    ),
    "signal_peptide": Plan(
        table="signal_peptide",
        use="Whether a protein begins with a signal peptide.",
        licence="as SignalP 5 data by way of nadavbra/protein_bert (MIT)",
        metric="mcc",
        names={"0": "none", "1": "signal"},
        options=("--pool", POOL, "--first", "70"),
        limits=(OWN_TEST,),
    ),
    "enzyme_class": Plan(
        table="enzyme_ec",
        use="First number of the EC classification of a bacterial enzyme.",
        licence="CC BY 4.0 (UniProt, by way of gapseq)",
        relabel=first_numbers(1),
        options=("--pool", POOL, "--task", "multiclass", "--abstain", "0.25", "--families"),
        limits=ENZYME_LIMITS,
    ),
    "enzyme_subclass": Plan(
        table="enzyme_ec",
        use="First two numbers of the EC classification of a bacterial enzyme.",
        licence="CC BY 4.0 (UniProt, by way of gapseq)",
        relabel=first_numbers(2),
        options=("--pool", POOL, "--task", "multiclass", "--abstain", "0.25", "--families"),
        limits=(*ENZYME_LIMITS, f"Subclasses of fewer than {LEAST} training proteins are not known to it."),
    ),
    "secondary_structure": Plan(
        table="secondary_structure3",
        use="Helix (H), strand (E) or coil (C) of every residue.",
        licence="AFL-3 (NetSurfP-2, by way of FLIP)",
        options=("--task", "residue-class", "--no-resume"),
    ),
    "conservation": Plan(
        table="conservation9",
        use="Conservation of every residue among its relatives, from 1 (variable) to 9 (conserved).",
        licence=FLIP,
        options=("--task", "residue-class", "--no-resume"),
    ),
    "melting_temperature": Plan(
        table="meltome",
        use="Melting temperature of a protein in its cell or lysate, in °C.",
        licence=FLIP,
        metric="spearman",
        options=("--pool", POOL, "--task", "regression"),
    ),
}


def write_table(source: Path, plan: Plan, out: Path) -> None:
    """Write the head's own labels; rows without one are left out."""
    csv.field_size_limit(10**7)
    with source.open(newline="") as file:
        rows = [row | {"label": plan.relabel(row["label"])} for row in csv.DictReader(file)]
    counts = Counter(row["label"] for row in rows if row["split"].startswith("train"))
    subclass = plan.relabel is HEADS["enzyme_subclass"].relabel
    kept = [row for row in rows if row["label"] and (not subclass or counts[row["label"]] >= LEAST)]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "sequence", "label", "split", "cluster"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"label": plan.names.get(row["label"], row["label"])} for row in kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path)
    parser.add_argument("heads", nargs="*", help="of " + ", ".join(HEADS))
    parser.add_argument("--precision", default="fp32", help="of the backbone while it makes the vectors")
    parser.add_argument("--cards-only", action="store_true", help="train nothing, read the cards anew")
    options = parser.parse_args()
    tables = options.tables
    names = [] if options.cards_only else options.heads or list(HEADS)
    READY_HEADS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            plan = HEADS[name]
            table = Path(folder, f"{plan.table}.csv")
            write_table(tables / table.name, plan, table)
            words = ["train", table, "-o", READY_HEADS / f"{name}.safetensors", "--split", "column"]
            words += ["--no-refit", "--overwrite", *plan.options, "--licence", plan.licence]
            words += ["--precision", options.precision]
            words += ["--intended-use", plan.use, *(w for text in plan.limits for w in ("--limit", text))]
            shown = subprocess.run(
                [sys.executable, "-m", "bioxfer", *map(str, words)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            print(shown, flush=True)
    record_shipped()
    measured = {}
    for name, plan in HEADS.items():
        if not (READY_HEADS / f"{name}.safetensors").exists():
            continue
        card = load_head(READY_HEADS / f"{name}.safetensors").card
        parts = (
            "split",
            "head",
            "backbone",
            "metrics",
            "baselines",
            "calibration",
            "abstention",
            "families",
            "uncertainty",
        )
        measured[name] = {"table": plan.table, "metric": plan.metric}
        measured[name] |= {part: card[part] for part in parts if part in card}
    write_result("ready_heads", json.loads(json.dumps(measured)))


if __name__ == "__main__":
    main()
