"""Compare our k-mer search with MMseqs2: links, clusters, and what a homology split by either leaks.

Of each table up to PROTEINS different ones are drawn. A pair counts as found where the two are in one cluster
(connected components). `leak` is the share of held-out proteins with a relative in training by MMseqs2, after
a split by each clustering and after a random one. Tables that are not named keep their earlier numbers.

    python benchmarks/compare_clusters.py [PROTEINS] [TABLE ...]
"""

from __future__ import annotations

import csv
import itertools
import json
import lzma
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from results import shared_folder, write_result
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from bioxfer.clusters import homology_split
from bioxfer.homology import Links, Method, find_links

TABLES = ("structure_class7", "localization10", "meltome")
METHODS: tuple[Method, ...] = ("kmer", "mmseqs")
IDENTITIES = (0.3, 0.5)
BINS = (0.3, 0.4, 0.5, 0.6, 1.01)
VALID = 0.2


def read_proteins(table: str, count: int) -> list[str]:
    csv.field_size_limit(10**7)
    with lzma.open(shared_folder() / f"{table}.csv.xz", "rt", newline="") as file:
        different = list(dict.fromkeys(row["sequence"].upper() for row in csv.DictReader(file)))
    drawn = np.random.default_rng(0).permutation(len(different))[:count]
    return [different[place] for place in np.sort(drawn)]


def cluster(links: Links, count: int, identity: float) -> npt.NDArray[np.int64]:
    keep = links.identity >= identity
    ones = np.ones(int(keep.sum()), dtype=bool)
    graph = coo_matrix((ones, (links.query[keep], links.reference[keep])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def pairs_of(sizes: npt.NDArray[np.int64]) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def agree(ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> dict[str, float]:
    both = np.unique(np.stack([ours, theirs]), axis=1, return_counts=True)[1]
    together = pairs_of(both)
    return {
        "pair_precision": together / max(pairs_of(np.bincount(ours)), 1),
        "pair_recall": together / max(pairs_of(np.bincount(theirs)), 1),
        "ari": float(adjusted_rand_score(theirs, ours)),
        "nmi": float(normalized_mutual_info_score(theirs, ours)),
    }


def leak(links: Links, side: npt.NDArray[np.str_], identity: float) -> float:
    keep = links.identity >= identity
    a, b = links.query[keep], links.reference[keep]
    across = side[a] != side[b]
    held = np.where(side[a] == "valid", a, b)[across]
    return len(np.unique(held)) / int((side == "valid").sum())


def processor_seconds() -> float:
    """Processor time of this process and of programs that it ran, which other work on the machine spares."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(table: str, count: int) -> dict[str, Any]:
    proteins = read_proteins(table, count)
    links, seconds = {}, {}
    for method in METHODS:
        start = processor_seconds()
        links[method] = find_links(proteins, identity=min(IDENTITIES), method=method, threads=1)
        seconds[method] = round(processor_seconds() - start, 1)
    found = links["mmseqs"]
    ours = set(zip(links["kmer"].query.tolist(), links["kmer"].reference.tolist(), strict=True))
    hit = np.array(
        [pair in ours for pair in zip(found.query.tolist(), found.reference.tolist(), strict=True)]
    )
    recall = {}
    for low, high in itertools.pairwise(BINS):
        inside = (found.identity >= low) & (found.identity < high)
        name = f"{low:.0%} to {min(high, 1.0):.0%}"
        recall[name] = {
            "pairs": int(inside.sum()),
            "found": float(hit[inside].mean()) if inside.any() else None,
        }
    measured: dict[str, Any] = {
        "proteins": len(proteins),
        "residues": sum(map(len, proteins)),
        "processor_seconds": seconds,
        "links": {method: len(links[method]) for method in METHODS},
        "mmseqs_links_found_by_kmer": recall,
    }
    for identity in IDENTITIES:
        group = {method: cluster(links[method], len(proteins), identity) for method in METHODS}
        sides = {method: homology_split(group[method], valid=VALID) for method in METHODS}
        drawn = np.random.default_rng(0).random(len(proteins)) < VALID
        random = np.where(drawn, "valid", "train")
        measured[f"identity {identity}"] = {
            "clusters": {method: int(group[method].max()) + 1 for method in METHODS},
            "agreement": agree(group["kmer"], group["mmseqs"]),
            "leak": {method: leak(found, sides[method], identity) for method in METHODS}
            | {"random": leak(found, random, identity)},
        }
    return measured


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    version = subprocess.run(["mmseqs", "version"], capture_output=True, text=True, check=True).stdout.strip()
    measured = {table: measure(table, count) for table in sys.argv[2:] or TABLES}
    path = Path(__file__).parent / "results" / "clusters.json"
    # a long run may be cut in pieces
    tables = json.loads(path.read_text())["tables"] if path.exists() else {}
    tables |= measured
    write_result("clusters", {"mmseqs": version, "threads": 1, "valid": VALID, "tables": tables})


if __name__ == "__main__":
    main()
