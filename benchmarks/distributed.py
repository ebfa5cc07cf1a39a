"""Proteins a second of one process, Ray's workers and shards; how fast inputs are read and parts merged.

Natural proteins, the first of the shared validation corpus, go through the embedded backbone by the real
command line, in float32, without the cache. A run of two proteins tells what it costs to start and to end,
and is taken off. Parts for merging are of short random proteins (`scale.draw_proteins`).

    python benchmarks/distributed.py FOLDER [--count N] [--rows N] [--reading]

With --reading only that is timed, for a result file of its own. FOLDER takes inputs and outputs. Fewer than
all proteins are a trial, whose result file stays in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import shared_folder, write_result
from scale import draw_proteins, name_record

from bioxfer.distributed import PART_RECORDS, take_census
from bioxfer.io import iter_proteins

WHOLE = 4000
ROWS = 20_000  # of each merged table
ROUNDS = 75  # of all proteins, each time under other ids, for an input that takes long to read
SHARDS = 8  # of the merge
BIOXFER = [sys.executable, "-m", "bioxfer"]
SUFFIXES = (".csv", ".parquet", ".npz")


def write_fasta(path: Path, sequences: list[str]) -> Path:
    with path.open("w", encoding="ascii") as file:
        for number, sequence in enumerate(sequences):
            file.write(f">{name_record(number)}\n{sequence}\n")
    return path


def read_corpus(count: int) -> list[str]:
    with lzma.open(shared_folder() / "corpus" / "valid.txt.xz", "rt", encoding="ascii") as file:
        return [line.strip() for line, _ in zip(file, range(count), strict=False)]


def run(commands: list[list[str]]) -> float:
    """Run commands side by side; give the seconds until the last one has ended."""
    began = time.perf_counter()
    with_threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([*BIOXFER, *words, "-q"], env=with_threads, stdout=subprocess.DEVNULL)
        for words in commands
    ]
    codes = [child.wait() for child in children]
    seconds = time.perf_counter() - began
    assert not any(codes), (commands, codes)
    return seconds


def clear(out: Path) -> None:
    for path in out.parent.glob(f"{out.stem}*"):
        if path.suffix != ".fasta":
            path.unlink()


def ways(fasta: Path, out: Path, part: int) -> dict[str, list[list[str]]]:
    """Name what is compared: the commands that run side by side."""
    common = ["embed", str(fasta), "-o", str(out), "--no-resume"]

    def workers(count: int) -> list[list[str]]:
        spread = "--distributed", "--workers", str(count), "--threads", "1", "--part-records", str(part)
        return [[*common, *spread]]

    return {
        "one process, 1 thread": [[*common, "--threads", "1"]],
        "one process, 2 threads": [[*common, "--threads", "2"]],
        "1 worker of 1 thread": workers(1),
        "2 workers of 1 thread": workers(2),
        "shards 1/2 and 2/2 of 1 thread": [
            [*common, "--threads", "1", "--shard", f"{number}/2"] for number in (1, 2)
        ],
    }


def steady_rate(out: Path, proteins: list[str], part: int, workers: int) -> int | None:
    """Residues a second after each worker's first part, by the times of the marks."""
    marks = sorted(out.parent.glob(f"{out.stem}-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if len(marks) < 4 * workers:
        return None
    numbers = [json.loads(path.read_text(encoding="utf-8"))["shard"]["number"] for path in marks[workers:]]
    residues = sum(len(protein) for n in numbers for protein in proteins[(n - 1) * part : n * part])
    return round(1e9 * residues / (marks[-1].stat().st_mtime_ns - marks[workers - 1].stat().st_mtime_ns))


def compare(folder: Path, proteins: list[str]) -> dict[str, Any]:
    fasta = write_fasta(folder / "proteins.fasta", proteins)
    few = write_fasta(folder / "few.fasta", proteins[:2])
    out, residues = folder / "vectors.npz", sum(map(len, proteins))
    part = max(1, len(proteins) // 20)
    found: dict[str, Any] = {
        "proteins": len(proteins),
        "residues": residues,
        "part_records": part,
        "ways": {},
    }
    for name in ways(fasta, out, part):
        clear(out)
        idle = run(ways(few, out, 1)[name])
        clear(out)
        whole = run(ways(fasta, out, part)[name])
        found["ways"][name] = {
            "seconds": round(whole, 2),
            "seconds_of_start_and_end": round(idle, 2),
            "proteins_per_second": round(len(proteins) / (whole - idle), 1),
            "residues_per_second": round(residues / (whole - idle)),
        }
        if "worker" in name:
            found["ways"][name]["residues_per_second_after_first_parts"] = steady_rate(
                out, proteins, part, int(name[0])
            )
        print(name, found["ways"][name], flush=True)
    clear(out)
    return found


def time_reading(folder: Path, proteins: list[str], rounds: int) -> dict[str, Any]:
    """Time what every shard does with the whole input: read it, check the ids, and digest it."""
    fasta = write_fasta(folder / "many.fasta", proteins * rounds)
    began = time.perf_counter()
    records = take_census(iter_proteins(fasta), PART_RECORDS).total.records
    seconds = time.perf_counter() - began
    found = {
        "records": records,
        "residues": sum(map(len, proteins)) * rounds,
        "seconds": round(seconds, 2),
        "records_per_second": round(records / seconds),
    }
    fasta.unlink()
    print("reading", found, flush=True)
    return found


def make_parts(fasta: Path, out: Path) -> None:
    for number in range(1, SHARDS + 1):
        run([["embed", str(fasta), "-o", str(out), "--shard", f"{number}/{SHARDS}", "--overwrite"]])


def time_merges(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds and memory of joining parts, format by format."""
    fasta = write_fasta(folder / "short.fasta", list(draw_proteins(rows)))
    few = write_fasta(folder / "few.fasta", ["MKTAYIAKQRQISFVKSHFSRQ"] * SHARDS)
    found: dict[str, Any] = {"rows": rows, "parts": SHARDS}
    make_parts(few, folder / "few.csv")
    idle = found["seconds_of_start_and_end"] = round(run([["merge", "-o", str(folder / "few.csv")]]), 2)
    clear(folder / "few.csv")
    for suffix in SUFFIXES:
        out = folder / f"short{suffix}"
        make_parts(fasta, out)
        size = sum(path.stat().st_size for path in folder.glob(f"short-*{suffix}"))
        seconds = run([["merge", "-o", str(out), "--overwrite"]])
        found[suffix] = {
            "seconds": round(seconds, 2),
            "rows_per_second": round(rows / max(seconds - idle, 0.01)),
            "bytes_per_row": round(size / rows),
        }
        print("merge", suffix, found[suffix], flush=True)
    # The largest child so far; those that embed hold the backbone besides.
    found["peak_mib_of_any_command"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=WHOLE)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--reading", action="store_true")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["BIOXFER_CACHE"] = os.fspath(folder / "cache")  # that of the parts to merge
    trial = (options.count, options.rows) != (WHOLE, ROWS)
    into = folder if trial else None
    if options.reading:
        write_result("reading", time_reading(folder, read_corpus(options.count), ROUNDS), into=into)
        return
    found = compare(folder, read_corpus(options.count))
    found["merge"] = time_merges(folder, options.rows)
    write_result("distributed", found, packages=("ray", "pyarrow"), into=into)


if __name__ == "__main__":
    main()
