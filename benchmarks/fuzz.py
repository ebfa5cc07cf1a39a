"""Fuzz the readers and every file of a model by the hundred thousand; tests/fuzzing.py says what must hold.

    python benchmarks/fuzz.py                       writes results/fuzz.json
    python benchmarks/fuzz.py --guided --only head  coverage-guided, where the package atheris is installed

Guided, what reaches new lines of bioxfer is kept and spoilt further; else valid files are spoilt at random.
Whatever is found is kept in the folder that --keep names. Targets that are not named keep their earlier
numbers; of each target the result file has command, date and versions of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from results import run_facts, write_result

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PACKAGES = ("atheris", "safetensors", "zstandard")


class Run:
    """Examples of one target and what became of them."""

    def __init__(self, name: str, folder: Path, keep: Path) -> None:
        import fuzzing

        self.name, self.folder, self.keep = name, folder, keep
        self.target = fuzzing.TARGETS[name]
        self.counts: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.worst, self.start = 0.0, time.perf_counter()

    def examine(self, data: bytes) -> None:
        """Try one example."""
        import fuzzing

        start = time.perf_counter()
        try:
            self.counts[fuzzing.examine(self.target, data, self.folder)] += 1
        except (Exception, fuzzing.HangError) as error:
            trace, place = error.__traceback__, ""
            while trace is not None:
                file = trace.tb_frame.f_code.co_filename
                if "bioxfer" in Path(file).parts or not place:
                    place = f"{Path(file).name}:{trace.tb_lineno}"
                trace = trace.tb_next
            what = f"{type(error).__name__} at {place}"
            self.found[what] += 1
            if self.found[what] == 1:
                self.keep.mkdir(parents=True, exist_ok=True)
                self.keep.joinpath(f"{self.name}-{what}".replace(" ", "_").replace(":", "_")).write_bytes(
                    data
                )
                print(f"{self.name}: {what}: {str(error)[:200]}", file=sys.stderr)
        self.worst = max(self.worst, time.perf_counter() - start)

    def summary(self) -> dict[str, Any]:
        """Count."""
        refused = {kind: count for kind, count in sorted(self.counts.items()) if kind != "accepted"}
        return {
            "examples": sum(self.counts.values()) + sum(self.found.values()),
            "accepted": self.counts["accepted"],
            "refused": refused,
            "found": dict(self.found),
            "seconds": round(time.perf_counter() - self.start, 1),
            "worst_seconds": round(self.worst, 3),
        }


def fuzz(run: Run, count: int, seed: int) -> dict[str, Any]:
    """Spoil valid files at random."""
    import fuzzing

    with fuzzing.memory_limit():
        for data in fuzzing.examples(run.target, count, seed=seed):
            run.examine(data)
    return run.summary()


def fuzz_guided(run: Run, count: int, seed: int) -> dict[str, Any]:
    """Let coverage choose what is spoilt further; libFuzzer ends its process, so it gets one of its own."""
    import atheris
    import fuzzing

    told = run.folder / "told.json"
    corpus = run.folder / "corpus"
    corpus.mkdir()
    seeds = run.target.seeds()
    for number, data in enumerate(seeds):
        corpus.joinpath(str(number)).write_bytes(data)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(run.folder / "log", os.O_WRONLY | os.O_CREAT), 2)
        tried = 0

        def one(data: bytes) -> None:
            nonlocal tried
            tried += 1
            run.examine(data)
            if tried >= count:
                told.write_text(json.dumps(run.summary()))
                os._exit(0)

        def spoil(data: bytes, most: int, number: int) -> bytes:
            dice = Random(number)
            # what is spoilt again and again is refused at its first byte
            data = data if dice.randrange(2) else dice.choice(seeds)
            return fuzzing.mutate(run.target, data, dice)[:most]

        # a little more than wanted: `one` ends it
        options = [f"-runs={2 * count}", f"-seed={seed + 1}", "-max_len=300000", "-len_control=0"]
        options += ["-rss_limit_mb=0", "-timeout=600", str(corpus)]
        atheris.Setup(["fuzz", *options], one, custom_mutator=spoil)
        with fuzzing.memory_limit():
            atheris.Fuzz()
    os.waitpid(child, 0)
    if not told.exists():
        print(run.folder.joinpath("log").read_text(errors="replace")[-3000:], file=sys.stderr)
        sys.exit(f"{run.name}: the fuzzer ended early")
    return json.loads(told.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="targets, separated by commas")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for what is found")
    given = parser.parse_args()
    watch: Any = contextlib.nullcontext()
    if given.guided:
        try:
            import atheris
        except ImportError:
            sys.exit("atheris is not installed; pip install atheris, or leave --guided out")
        watch = atheris.instrument_imports(include=["bioxfer"])
    with watch, tempfile.TemporaryDirectory() as folder:
        import fuzzing
        import torch

        torch.set_num_threads(1)
        names = given.only.split(",") if given.only else list(fuzzing.TARGETS)
        for name in names:  # so that all is imported, and seen by the fuzzer
            for data in fuzzing.TARGETS[name].seeds():
                fuzzing.examine(fuzzing.TARGETS[name], data, Path(folder))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(name, Path(folder), given.keep)
            found = (fuzz_guided if given.guided else fuzz)(run, given.examples, given.seed)
        keep(name, {"guided": given.guided, "seed": given.seed} | found | run_facts(PACKAGES))


def keep(name: str, measured: dict[str, Any]) -> None:
    """Write what was measured of a target beside what is known of the others."""
    import fuzzing

    earlier = Path(__file__).parent / "results" / "fuzz.json"
    targets = json.loads(earlier.read_text(encoding="utf-8"))["targets"] if earlier.exists() else {}
    targets[name] = measured
    targets = {each: targets[each] for each in fuzzing.TARGETS if each in targets}
    facts = {
        "examples": sum(each["examples"] for each in targets.values()),
        "found": sum(sum(each["found"].values()) for each in targets.values()),
        "targets": targets,
    }
    print(name, json.dumps(measured), file=sys.stderr, flush=True)
    write_result("fuzz", facts, packages=PACKAGES)


if __name__ == "__main__":
    main()
