"""A million short records from FASTA to vectors and predictions: time, memory, the cache, completeness.

Random proteins of 8 to 60 residues, about 1% of them copies of earlier ones and 0.1% odd (lower case, a stop,
``<mask>``, digits, letters that are no amino acid, nothing at all), go through a backbone of the compact
architecture with random weights (64 wide, one block) by the real command line, each run in a process of its
own on one core, with the cache on. Commands show their progress as on a terminal, where their counts and
times are read; memory is that of /proc (Linux).

    taskset -c 0 python benchmarks/scale.py FOLDER [--count N]

FOLDER takes the FASTA, the cache (half a gigabyte for a million records) and the outputs. A count other than
a million is a trial, whose result file stays in FOLDER; it also predicts without a cache to begin with.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pty
import random
import re
import select
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy reads it; the commands inherit it

import numpy as np
import torch
from results import write_result

from bioxfer.backbones import load_backbone
from bioxfer.backbones.compact import CompactConfig, CompactModel, save_compact
from bioxfer.cache import EmbeddingCache, cache_key
from bioxfer.embedding import make_engine
from bioxfer.sequences import SequenceRecord, clean_protein

WHOLE = 1_000_000
SHORTEST, LONGEST = 8, 60
COPIES, ODD = 0.01, 0.001
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
WAYS_TO_BE_ODD = (
    str.lower,
    lambda s: s + "*",
    lambda s: s[:4] + "<mask>" + s[4:],
    lambda s: s[:5] + "J7" + s[5:],
    lambda s: s[:3] + "*" + s[3:],
    lambda s: "X" * len(s),
    lambda s: "",
)
PARTS = 10  # of a run, whose seconds are told singly
SAMPLES = 0.5  # seconds from one look at the memory to the next
BIOXFER = [sys.executable, "-m", "bioxfer"]
READ = """
import sys, time
from bioxfer.io import iter_sequences

def most():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

count, before, began = 0, most(), time.perf_counter()
for record in iter_sequences(sys.argv[1]):
    count += 1
print(count, time.perf_counter() - began, most() - before)
"""


def draw_proteins(count: int, seed: int = 0) -> Iterator[str]:
    """Draw sequences; copies are of any of the last 100,000, so that most are of another chunk."""
    rng, dice = np.random.default_rng(seed), random.Random(seed)
    earlier: list[str] = []
    for start in range(0, count, 10_000):
        lengths = rng.integers(SHORTEST, LONGEST + 1, size=min(10_000, count - start))
        text = rng.choice(LETTERS, size=int(lengths.sum())).tobytes().decode()
        ends = np.cumsum(lengths).tolist()
        drawn = []
        for begin, end in pairwise([0, *ends]):
            sequence, chance = text[begin:end], dice.random()
            if chance < COPIES and earlier:
                sequence = dice.choice(earlier)
            elif chance < COPIES + ODD:
                sequence = dice.choice(WAYS_TO_BE_ODD)(sequence)
            drawn.append(sequence)
        yield from drawn
        earlier = (earlier + drawn)[-100_000:]


def name_record(number: int) -> str:
    return f"read_{number:07d}"


def write_inputs(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """Write the FASTA, the backbone and a head that `bioxfer train` makes of 400 other proteins."""
    fasta, model, head = folder / f"{count}.fasta", folder / "tiny.safetensors", folder / "oily.safetensors"
    with fasta.open("w", encoding="ascii") as file:
        for number, sequence in enumerate(draw_proteins(count)):
            file.write(f">{name_record(number)}\n{sequence}\n")
    torch.manual_seed(0)
    tiny = CompactModel(CompactConfig(width=64, layers=1, attention=(1,), window=2 * LONGEST))
    save_compact(tiny, model, card={"corpus": "none: random weights"})
    table = folder / "oily.csv"
    with table.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "sequence", "label"])
        for number, sequence in enumerate(draw_proteins(400, seed=1)):
            if sequence:
                oily = sum(letter in "AILMFVW" for letter in sequence) > 0.35 * len(sequence)
                writer.writerow([name_record(number), sequence, "oily" if oily else "plain"])
    made = "train", table, "-o", head, "--model", model, "--head", "linear", "--pool", "mean", "--no-resume"
    made = *made, "--split", "random", "-q", "--overwrite"
    subprocess.run([*BIOXFER, *made], check=True, stdout=subprocess.DEVNULL)
    return fasta, model, head


def memory(process: int | str) -> dict[str, int]:
    """KiB of a process in memory: now (VmRSS) and at most (VmHWM); nothing where it has ended.

    Not by wait4, whose ru_maxrss counts what the process held that started it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return {}
    return {name: int(size) for name, size in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)}


def worked(process: int) -> float:
    """Processor seconds of a process, 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(arguments: list[str | Path], count: int) -> dict[str, Any]:
    """Run one command of bioxfer on a terminal of its own; watch its progress and its memory."""
    ours, theirs = pty.openpty()
    started = time.perf_counter()
    process = subprocess.Popen([*BIOXFER, *arguments], stderr=theirs, stdout=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    seen: list[tuple[float, float, int, int]] = []  # seconds, those of the processor, records, KiB
    said, done, looked, most = b"", 0, 0.0, 0
    while True:
        ready, _, _ = select.select([ours], [], [], SAMPLES)
        try:
            said += os.read(ours, 65536) if ready else b""
        except OSError:  # the other side is closed
            break
        if counts := re.findall(rb"\r(\d+) proteins", said):
            done = int(counts[-1])
            said = said[said.rfind(b"\r") :]
        now = time.perf_counter() - started
        if now - looked >= SAMPLES or not seen or done > seen[-1][2]:
            held = memory(process.pid)
            most = max(most, held.get("VmHWM", 0))
            seen.append((now, worked(process.pid), done, held.get("VmRSS", 0)))
            looked = now
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    last_words = said.split(b"\x1b[K")[-1].decode(errors="replace").strip()
    return {
        "exit_code": process.returncode,
        "seconds": round(seconds, 1),
        "records_per_second": round(count / seconds),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        **describe_course(seen, count),
        "peak_mib": most // 1024,
        "last_words": re.sub(r"\S*/", "", last_words),
    }


def describe_course(seen: list[tuple[float, float, int, int]], count: int) -> dict[str, Any]:
    """Tell what each tenth of the records took, and how much memory was held at its end.

    Processor seconds tell whether work grows, as other processes on the machine do not count in them.
    """
    begun = [each for each in seen if each[2] and each[3]]
    if not begun:
        return {}
    # What follows the last record, such as the joining of arrays, is told beside.
    working = [each for each in begun if each[2] < begun[-1][2]]
    working.append(begun[len(working)])
    moments, efforts, records, sizes = (
        np.array(column, dtype=float) for column in zip(*working, strict=True)
    )
    marks = np.linspace(
        records[0], records[-1], PARTS + 1
    )  # without the start of Python and the first batches
    effort = np.interp(marks, records, efforts)
    # Both ends of the course by two of its tenths each, as chunks make it move in steps.
    first, last = effort[2] - effort[0], effort[-1] - effort[-3]
    places = np.minimum(np.searchsorted(records, marks[1:]), len(sizes) - 1)
    return {
        "seconds_before_first_batch": round(begun[0][0], 2),
        "seconds_after_last_record": round(begun[-1][0] - working[-1][0], 2),
        "seconds_of_tenths": np.diff(np.interp(marks, records, moments)).round(2).tolist(),
        "processor_seconds_of_tenths": np.diff(effort).round(2).tolist(),
        "last_fifth_over_first": round(float(last / first), 3) if first else None,
        "mib_at_tenths": (sizes[places] / 2**10).round().astype(int).tolist(),
    }


def check_rows(ids: Iterator[str], count: int) -> dict[str, Any]:
    """Count rows, and see that each has the id of its place."""
    rows = wrong = 0
    for given, expected in zip_longest(ids, map(name_record, range(count))):
        rows += given is not None
        wrong += given != expected
    return {"rows": rows, "ids_in_order": wrong == 0}


def check_npz(path: Path, fasta: Path, count: int) -> dict[str, Any]:
    """Look at every row: ids, finite vectors, and one vector for all copies of a sequence."""
    with np.load(path) as found:
        vectors, statuses = found["vectors"], found["statuses"]
        checked = check_rows(iter(found["ids"].tolist()), count)
    ready = np.isin(statuses, ("ok", "windowed", "truncated"))
    first: dict[str, int] = {}
    copies = unequal = 0
    for number, line in enumerate(fasta.open(encoding="ascii")):
        if number % 2:
            place = first.setdefault(line, number // 2)
            if place != number // 2 and line.strip():
                copies += 1
                unequal += not np.array_equal(vectors[place], vectors[number // 2])
    return {
        **checked,
        "statuses": dict(Counter(statuses.tolist())),
        "finite_where_ok": bool(np.isfinite(vectors[ready]).all()),
        "nan_elsewhere": bool(np.isnan(vectors[~ready]).all()),
        "copies": copies,
        "copies_with_another_vector": unequal,
        "bytes": path.stat().st_size,
    }


def check_parquet(path: Path, count: int, vectors: Path | None = None) -> dict[str, Any]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    groups = file.iter_batches(columns=["id"])
    checked = check_rows(chain.from_iterable(group["id"].to_pylist() for group in groups), count)
    if vectors is not None:
        with np.load(vectors) as found:
            expected = found["vectors"][:, 0]
        table = parquet.read_table(path, columns=["mean_0"])["mean_0"].to_numpy()
        checked["equal_to_npz"] = bool(np.array_equal(table.astype(np.float32), expected, equal_nan=True))
    return {**checked, "bytes": path.stat().st_size}


def check_csv(path: Path, count: int) -> dict[str, Any]:
    """Count rows, statuses and labels of a prediction table."""
    statuses: Counter[str] = Counter()
    labels: Counter[str] = Counter()

    def ids() -> Iterator[str]:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                statuses[row["status"]] += 1
                labels[row["oily"]] += 1
                yield row["id"]

    checked = check_rows(ids(), count)
    return {**checked, "statuses": dict(statuses), "labels": dict(labels), "bytes": path.stat().st_size}


def time_reading(fasta: Path, count: int) -> dict[str, Any]:
    """Read all records and compare their ids, and nothing else, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", READ, fasta], check=True, capture_output=True, text=True)
    read, seconds, kib = done.stdout.split()
    return {
        "records": int(read),
        "complete": int(read) == count,
        "seconds": round(float(seconds), 2),
        "records_per_second": round(count / float(seconds)),
        "bytes_of_memory_per_record": round(int(kib) * 1024 / count),
    }


def time_cache(path: Path, fasta: Path, model: Path, count: int) -> dict[str, Any]:
    """Size of the cache, and how long it takes to find keys that are there and keys that are not."""
    engine = make_engine(load_backbone(os.fspath(model)))
    keys = []
    with fasta.open(encoding="ascii") as file:
        for number, line in enumerate(file):
            if number % 2 and (sequence := line.strip()):
                residues = clean_protein(SequenceRecord("", sequence)).residues
                if residues:
                    keys += engine._keys(residues).values()
    keys = list(dict.fromkeys(keys))
    size = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
    facts = {"fingerprint": "none", "precision": "fp32", "layer": 0, "policy": "whole", "name": "mean"}
    found: dict[str, Any] = {}
    with EmbeddingCache(path) as cache:
        kept = len(cache)
        for number in (1_000, 100_000):
            if number <= len(keys):
                some = random.Random(number).sample(keys, number)
                began = time.perf_counter()
                values = cache.get_many(some)
                found[f"seconds_for_{number}_keys"] = round(time.perf_counter() - began, 4)
                found[f"found_of_{number}"] = len(values)
        absent = [cache_key(str(number), **facts) for number in range(1_000)]
        began = time.perf_counter()
        nothing = cache.get_many(absent)
        found["seconds_for_1000_absent_keys"] = round(time.perf_counter() - began, 4)
    with closing(sqlite3.connect(path)) as connection:
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return {
        "values": kept,
        "distinct_sequences": len(keys),
        "bytes": size,
        "bytes_per_value": round(size / kept),
        **found,
        "absent_found": len(nothing),
        "integrity": sound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=WHOLE)
    options = parser.parse_args()
    folder, count = options.folder.resolve(), options.count
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["BIOXFER_CACHE"] = os.fspath(folder / "cache")
    cache = folder / "cache" / "embeddings.sqlite"
    for old in cache.parent.glob(f"{cache.name}*"):
        old.unlink()
    fasta, model, head = write_inputs(folder, count)
    npz, parquet = folder / "vectors.npz", folder / "vectors.parquet"
    table, columns = folder / "predictions.csv", folder / "predictions.parquet"
    common: list[str | Path] = ["--model", model, "--threads", "1", "--overwrite"]
    on_head: list[str | Path] = ["--head", head, *common]
    found: dict[str, Any] = {"records": count, "residues": [SHORTEST, LONGEST], "cores": 1, "reading": None}

    def note(name: str, measured: dict[str, Any]) -> None:
        found[name] = measured
        (folder / "so_far.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(name, json.dumps(measured), flush=True)

    note("reading", time_reading(fasta, count))
    measured = run(["embed", fasta, "-o", npz, *common], count)
    note("embed_npz", {**measured, "output": check_npz(npz, fasta, count)})
    note("cache", time_cache(cache, fasta, model, count))
    measured = run(["predict", fasta, "-o", table, *on_head], count)
    note("predict_csv_from_cache", {**measured, "output": check_csv(table, count)})
    measured = run(["embed", fasta, "-o", parquet, *common], count)
    note("embed_parquet_from_cache", {**measured, "output": check_parquet(parquet, count, npz)})
    measured = run(["predict", fasta, "-o", columns, *on_head], count)
    note("predict_parquet_from_cache", {**measured, "output": check_parquet(columns, count)})
    if count < WHOLE:
        warm = table.read_bytes()
        for old in cache.parent.glob(f"{cache.name}*"):
            old.unlink()
        measured = run(["predict", fasta, "-o", table, *on_head], count)
        same = table.read_bytes() == warm
        note("predict_csv", {**measured, "output": check_csv(table, count), "equal_to_cached": same})
    write_result("scale", found, into=None if count == WHOLE else folder)


if __name__ == "__main__":
    main()
