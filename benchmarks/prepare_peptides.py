"""Make the peptides of data/ from the tables that the package modlamp 4.3.3 carries.

`peptides.fasta` and `peptides.csv`: antimicrobial peptides of APD3, and as many other peptides of UniProt.
`anticancer.csv`: anticancer peptides of CancerPPD, and as many random ones with the composition of
antimicrobial peptides. An id is a table's name and a row's number in it.

    python -m pip download --no-deps modlamp==4.3.3 && unzip modlamp-4.3.3-py3-none-any.whl -d FOLDER
    python benchmarks/prepare_peptides.py FOLDER
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import defaultdict
from pathlib import Path

DATA = Path(__file__).parent.parent / "data"
SHA256 = {
    "AMPvsUniProt": "e1db3dd659179118dcfca63723385f2f0c95c49d27060a90f7a9d5848250eb48",
    "ACP_CancPPD_vs_Random": "5c8d7970226d16eaae7e1c11f4225a81baf48381c9173580427d382ea3fa6cf9",
}
SHORTEST, LONGEST = 10, 60  # residues
EACH = 800  # antimicrobial peptides, and others


def read_rows(folder: Path, table: str) -> dict[str, tuple[str, bool]]:
    """Give each distinct peptide the number of its first row, and whether its class is the first."""
    text = (folder / f"modlamp/data/{table}.csv").read_bytes()
    if (found := hashlib.sha256(text).hexdigest()) != SHA256[table]:
        sys.exit(f"{table}.csv has sha256 {found} and not {SHA256[table]}: take it from modlamp 4.3.3")
    _, *rows = csv.reader(text.decode().splitlines())  # the first counts them
    classes: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for number, (residues, label) in enumerate(rows, start=1):
        sequence = residues.strip().upper()
        classes[sequence].add(label.strip())
        first.setdefault(sequence, f"{table}_{number}")
    # one that is in both classes is in neither
    return {s: (first[s], found == {"1"}) for s, found in classes.items() if len(found) == 1}


def draw(sequences: list[str], count: int) -> list[str]:
    """Draw by the sequences' own hashes, which depend on nothing else."""
    return sorted(sequences, key=lambda sequence: hashlib.sha256(sequence.encode()).digest())[:count]


def main() -> None:
    folder = Path(sys.argv[1])
    known = read_rows(folder, "AMPvsUniProt")
    fit = [sequence for sequence in known if SHORTEST <= len(sequence) <= LONGEST]
    chosen = {s for side in (True, False) for s in draw([s for s in fit if known[s][1] is side], EACH)}
    peptides = [(known[s][0], s, "antimicrobial" if known[s][1] else "other") for s in known if s in chosen]
    (DATA / "peptides.fasta").write_text("".join(f">{id_}\n{s}\n" for id_, s, _ in peptides))
    write(DATA / "peptides.csv", ("id", "label"), [(id_, label) for id_, _, label in peptides])
    cancer = read_rows(folder, "ACP_CancPPD_vs_Random")
    rows = [(id_, s, "anticancer" if found else "random") for s, (id_, found) in cancer.items()]
    write(DATA / "anticancer.csv", ("id", "sequence", "label"), rows)
    shared = sum(s in cancer for s in chosen)
    print(f"{len(peptides)} and {len(rows)} peptides, {shared} of them in both")


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
