"""Open reports in a headless browser: the size of each page, and how long it takes to be drawn."""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import write_result

_ASK = """
addEventListener("load", () => setTimeout(() => {
  const entry = performance.getEntriesByType("navigation")[0];
  document.title = JSON.stringify({parsed: entry.domInteractive, loaded: entry.loadEventEnd,
    figures: document.querySelectorAll("svg.figure").length, parts: document.querySelectorAll("*").length});
}, 0));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="files that --report wrote")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("pages.py needs chromium; apt-get install chromium")
    said = subprocess.run([browser, "--version"], capture_output=True, text=True, check=True).stdout
    pages = {path.stem: measure(browser, path, given.repeats) for path in given.pages}
    write_result(
        "pages",
        {"browser": said.split(" built")[0].strip(), "repeats": given.repeats, "pages": pages},
        packages=("matplotlib",),
    )


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
