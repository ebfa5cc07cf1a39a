"""Make reports and open them in a headless browser: the size of each, and how long it takes to be drawn.

The demo and made sequences are predicted with the ready heads; heads are trained on rows drawn from the
shared tables.

    python benchmarks/pages.py FOLDER [--count N] [--rows N]

FOLDER takes inputs and pages. Other numbers than the usual ones are a trial, whose result file stays there.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import html
import json
import lzma
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import shared_folder, write_result
from scale import draw_proteins, name_record

_ASK = """
addEventListener("load", () => setTimeout(() => {
  const entry = performance.getEntriesByType("navigation")[0];
  document.title = JSON.stringify({parsed: entry.domInteractive, loaded: entry.loadEventEnd,
    figures: document.querySelectorAll("svg.figure").length, parts: document.querySelectorAll("*").length});
}, 0));
"""


COUNT = 100_000  # short proteins of the largest page
ROWS = 300  # of each table

# A head each, with options of its training.
TRAINED: dict[str, list[str]] = {
    "localization10": ["--sizes", "100,400"],
    "enzyme_ec": ["--task", "multilabel"],
    "meltome": [],
    "secondary_structure3": ["--task", "residue-class", "--head", "linear"],
    "conservation9": ["--task", "residue-class", "--head", "linear"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("pages.py needs chromium; apt-get install chromium")
    said = subprocess.run([browser, "--version"], capture_output=True, text=True, check=True).stdout
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for name, words in commands(folder, given.count, given.rows).items():
        page = folder / f"{name}.html"
        subprocess.run(
            [sys.executable, "-m", "bioxfer", *words, "--report", str(page), "--overwrite", "-q"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        pages[name] = measure(browser, page, given.repeats)
        print(name, pages[name], flush=True)
    write_result(
        "pages",
        {"browser": said.split(" built")[0].strip(), "repeats": given.repeats, "pages": pages},
        packages=("matplotlib",),
        into=folder if (given.count, given.rows) != (COUNT, ROWS) else None,
    )


def commands(folder: Path, count: int, rows: int) -> dict[str, list[str]]:
    """Name the pages, and what makes each."""
    many = folder / "many.fasta"
    with many.open("w", encoding="ascii") as file:
        file.writelines(f">{name_record(n)}\n{each}\n" for n, each in enumerate(draw_proteins(count)))
    contig = folder / "contig.fasta"
    contig.write_text(">contig\n" + "".join(random.Random(0).choices("ACGT", k=50_000)) + "\n")
    out, head = str(folder / "out.csv"), str(folder / "head.safetensors")
    demo = str(Path(__file__).parent.parent / "data" / "demo.fasta")
    table = {name: draw_table(folder, name, rows) for name in (*TRAINED, "membrane_binary")}
    found = {
        "predict_demo": ["predict", demo, "-o", out],
        "predict_100000": ["predict", str(many), "-o", out, "--head", "localization"],
        "predict_six_frame": ["predict", str(contig), "-o", out, "--translate", "six-frame"],
    }
    for name, options in TRAINED.items():
        found[f"train_{name}"] = ["train", table[name], "-o", head, *options]
    source = ["--source", table["membrane_binary"], "--sizes", "200"]
    found["transfer"] = ["transfer", table["localization10"], *source, "-o", head]
    found["evaluate_localization10"] = ["evaluate", "localization", table["localization10"], "-o", out]
    return found


def draw_table(folder: Path, name: str, rows: int) -> str:
    """Write some rows of a shared table."""
    with lzma.open(shared_folder() / f"{name}.csv.xz", "rt", encoding="utf-8") as file:
        whole = list(csv.DictReader(file))
    if name == "enzyme_ec":  # of 5,000 numbers the first digits, the enzymes' classes
        for row in whole:
            row["label"] = ";".join(sorted({number.split(".")[0] for number in row["label"].split(";")}))
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "sequence", "label"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(random.Random(0).sample(whole, min(rows, len(whole))))
    return str(path)


def measure(browser: str, path: Path, repeats: int) -> dict[str, Any]:
    """Open one page again and again, each time in a browser that knows nothing; give the medians."""
    page = path.read_text(encoding="utf-8")
    known = base64.b64encode(hashlib.sha256(_ASK.encode()).digest()).decode()
    asked = page.replace("script-src ", f"script-src 'sha256-{known}' ", 1)
    asked = asked.replace("</body>", f"<script>{_ASK}</script></body>")
    answers = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / "page.html"
            copy.write_text(asked, encoding="utf-8")
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            command += [f"--user-data-dir={folder}/profile", "--window-size=1280,900", "--dump-dom"]
            ran = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=60)
        found = re.search(r"<title>(\{.*?)</title>", ran.stdout, re.S)
        if found is None:
            sys.exit(f"the browser gave no times for {path.name}: {ran.stderr[-300:]}")
        answers.append(json.loads(html.unescape(found[1])))
    return {
        "bytes": len(page.encode()),
        "figures": answers[0]["figures"],
        "elements": answers[0]["parts"],
        "parsed_ms": round(statistics.median(each["parsed"] for each in answers)),
        "loaded_ms": round(statistics.median(each["loaded"] for each in answers)),
    }


if __name__ == "__main__":
    main()
