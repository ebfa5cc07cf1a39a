"""Where result files come from: facts of the run beside what was measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("bioxfer", "torch", "numpy", "scikit-learn", "fair-esm")


def shared_folder() -> Path:
    """Folder of the shared tables."""
    folder = Path(os.environ.get("BIOXFER_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data"
    if not folder.is_dir():
        sys.exit("the shared tables are not here; set BIOXFER_SHARED to their folder")
    return folder


def write_result(name: str, measured: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` and show it."""
    facts = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_bare, sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }
    text = json.dumps(facts | measured, indent=2, ensure_ascii=False) + "\n"
    Path(__file__).parent.joinpath("results", f"{name}.json").write_text(text, encoding="utf-8")
    print(text, end="")


def _bare(word: str) -> str:
    """Leave the folders of this machine out of an argument."""
    return Path(word).name if "/" in word else word


def _processor() -> str:
    """Model and what decides the speed of its matrices."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    matrices = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{facts.get('model name', platform.machine())} ({', '.join(matrices)})"
