"""Where result files come from: facts of the run beside what was measured."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("bioxfer", "torch", "numpy", "scikit-learn", "fair-esm")


def shared_folder() -> Path:
    """Folder of the shared tables."""
    folder = Path(os.environ.get("BIOXFER_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data"
    if not folder.is_dir():
        sys.exit("the shared tables are not here; set BIOXFER_SHARED to their folder")
    return folder


def write_result(
    name: str, measured: dict[str, Any], *, packages: Sequence[str] = (), into: Path | None = None
) -> None:
    """Write ``results/NAME.json`` and show it.

    Parameters
    ----------
    name : str
        Of the file, without its suffix.
    measured : dict
        What the file holds beside the facts of the run.
    packages : sequence of str, optional
        Packages whose versions are facts too, beside `PACKAGES`.
    into : Path, optional
        Folder of the file; ``results`` beside this script if not given.
    """
    facts = run_facts(packages)
    machine = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    facts = {"command": facts["command"], "date": facts["date"], "machine": machine, **facts}
    text = json.dumps(facts | measured, indent=2, ensure_ascii=False) + "\n"
    folder = Path(__file__).parent / "results" if into is None else into
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath(f"{name}.json").write_text(text, encoding="utf-8")
    print(text, end="")


def run_facts(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Command, date and versions of this run.

    Parameters
    ----------
    packages : sequence of str, optional
        Packages whose versions are facts too, beside `PACKAGES`.
    """
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_bare, sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), **_versions((*PACKAGES, *packages))},
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


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
