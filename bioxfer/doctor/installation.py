"""What is installed: bioxfer itself, the machine, packages, torch, compiled kernels, programs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bioxfer import machine
from bioxfer.doctor.findings import Finding, Value, Verdict, count, hide_home

__all__ = [
    "see_esm",
    "see_installation",
    "see_kernels",
    "see_memory",
    "see_mmseqs",
    "see_packages",
    "see_precision",
    "see_processor",
    "see_torch",
]

_MODULES = {"biopython": "Bio", "scikit-learn": "sklearn", "fair-esm": "esm"}  # where names differ
_USES = {
    "hdf5": "writing .h5",
    "parquet": "writing .parquet",
    "zstd": "reading .zst",
    "report": "pictures of cards",
}
_LITTLE_MEMORY = 1 << 30  # bytes; embedding with the embedded backbone takes a third of it


def see_installation() -> Iterator[Finding]:
    """Tell version, place, Python and system."""
    from bioxfer import __version__

    folder = Path(__file__).parent.parent
    values: dict[str, Value] = {"version": __version__, "folder": hide_home(folder)}
    yield Finding("bioxfer", "ok", f"{__version__} in {hide_home(folder)}", values=values)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield Finding(
        "python",
        "ok",
        f"{python} in {hide_home(sys.executable)}",
        values={"version": platform.python_version(), "executable": hide_home(sys.executable)},
    )
    # platform.platform() would start a program.
    parts = (platform.system(), platform.release(), platform.machine(), *platform.libc_ver())
    system = " ".join(filter(None, parts))
    yield Finding("platform", "ok", system, values={"platform": system})


def see_processor() -> Iterator[Finding]:
    """Tell the processor, and what of it this process may use."""
    found = machine.look_at_processor()
    limits = []
    if found.allowed < found.cores:
        limits.append(f"this process may use {found.allowed}")
    if found.quota is not None:
        limits.append(f"its control group gives it the time of {found.quota:g}")
    sets = ", ".join(found.instructions) or "none of the instruction sets that matter here"
    yield Finding(
        "processor",
        "note" if limits else "ok",
        "; ".join([f"{found.name}, {count(found.cores, 'core')}", *limits, sets]),
        values={
            "name": found.name,
            "cores": found.cores,
            "allowed": found.allowed,
            "quota": found.quota,
            "instructions": " ".join(found.instructions),
        },
    )


def see_memory() -> Iterator[Finding]:
    """Tell the memory, and what of it this process may use."""
    found = machine.look_at_memory()
    values: dict[str, Value] = {"total": found.total, "available": found.available, "limit": found.limit}
    sizes = {"in all": found.total, "available": found.available, "allowed by the control group": found.limit}
    words = [f"{machine.describe_size(size)} {name}" for name, size in sizes.items() if size is not None]
    least = min((size for size in (found.available, found.limit) if size is not None), default=None)
    if least is not None and least < _LITTLE_MEMORY:
        remedy = "give it more, or smaller batches (--batch-tokens 512, --threads 1)"
        yield Finding("memory", "note", ", ".join(words), remedy, values)
    else:
        yield Finding("memory", "ok", ", ".join(words) or "this system does not tell", values=values)


def see_packages() -> Iterator[Finding]:
    """Hold the packages against what bioxfer says it needs."""
    try:
        needs = importlib.metadata.requires("bioxfer") or []
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install it, so that what it needs is known"
        yield Finding("packages", "note", "bioxfer runs from a folder and is not installed", remedy)
        return
    for need in needs:
        parsed = re.match(r"([\w.-]+)\s*([^;\[]*?)\s*(?:;.*extra == ['\"]([\w-]+)['\"].*)?$", need)
        if parsed is not None and (parsed[3] is None or parsed[3] in _USES):
            yield _see_package(parsed[1], parsed[2], extra=parsed[3])


def _see_package(name: str, wanted: str, *, extra: str | None) -> Finding:
    check = f"package {name}"
    module = _MODULES.get(name, name.replace("-", "_"))
    install = f"pip install 'bioxfer[{extra}]'" if extra else f"pip install '{name}{wanted}'"
    values: dict[str, Value] = {"version": None, "wanted": wanted, "extra": extra}
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra is None:
            return Finding(check, "problem", f"not installed; bioxfer needs it ({wanted})", install, values)
        return Finding(check, "note", f"not installed; only for {_USES[extra]}", install, values)
    values["version"] = version
    if importlib.util.find_spec(module) is None:
        again = f"pip install --force-reinstall '{name}{wanted}'"
        return Finding(check, "problem", f"{version}, but its files are not there", again, values)
    if not _fits(version, wanted):
        return Finding(check, "problem", f"{version}, but {name}{wanted} is needed", install, values)
    return Finding(check, "ok", version, values=values)


def _fits(version: str, wanted: str) -> bool:
    """Tell whether a version fits conditions such as ``>=2.10,<3``; ones not understood are taken as met."""
    for condition in wanted.replace(" ", "").split(","):
        parsed = re.match(r"(>=|==|<|!=)([\d.]+)$", condition)
        if parsed is None:
            continue
        mine, theirs = _release(version), _release(parsed[2])
        length = max(len(mine), len(theirs))
        mine, theirs = (numbers + [0] * (length - len(numbers)) for numbers in (mine, theirs))
        met = {">=": mine >= theirs, "==": mine == theirs, "<": mine < theirs, "!=": mine != theirs}
        if not met[parsed[1]]:
            return False
    return True


def _release(version: str) -> list[int]:
    """Read the numbers before any letter: 2, 13, 0 of 2.13.0rc1+cpu."""
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in found[0].split(".")] if found else []


def see_esm() -> Iterator[Finding]:
    """Tell where another package has taken the import name of fair-esm."""
    owners = sorted(set(importlib.metadata.packages_distributions().get("esm", [])))
    foreign = [name for name in owners if name.lower().replace("_", "-") != "fair-esm"]
    if foreign:
        yield Finding(
            "package esm",
            "note",
            f"the import name esm belongs to {' and '.join(owners)}; bioxfer reads fair-esm's checkpoints by "
            "itself and is not harmed, programs that import fair-esm are",
            f"pip uninstall {' '.join(foreign)}; pip install --force-reinstall fair-esm==2.0.0",
            {"owners": " ".join(owners)},
        )


def see_torch() -> Iterator[Finding]:
    """Tell the threads and the GPUs of torch."""
    import torch

    usable = machine.look_at_processor().usable
    threads = torch.get_num_threads()
    built = f"built with CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    values: dict[str, Value] = {"version": torch.__version__, "threads": threads, "usable": usable}
    fact = f"{torch.__version__}, {count(threads, 'thread')}, {built}"
    if threads > usable:
        remedy = f"--threads {usable}, or OMP_NUM_THREADS={usable}"
        yield Finding("torch", "note", f"{fact}; only {usable} can run at once", remedy, values)
    else:
        yield Finding("torch", "ok", fact, values=values)
    if not torch.cuda.is_available():
        verdict: Verdict = "note" if torch.version.cuda else "ok"
        remedy = "check the driver with nvidia-smi, if there should be one" if torch.version.cuda else ""
        yield Finding("gpu", verdict, "none that torch can use", remedy, {"count": 0})
        return
    for number in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(number)
        fact = f"cuda:{number} {seen.name}, {machine.describe_size(seen.total_memory)}"
        yield Finding("gpu", "ok", fact, values={"name": seen.name, "memory": seen.total_memory})


def see_kernels() -> Iterator[Finding]:
    """Tell whether the compiled kernels are used, or why not."""
    from bioxfer.backbones.kernels import INSTRUCTIONS, inspect_builds, load_kernels

    builds = inspect_builds()
    wanted = os.environ.get("BIOXFER_KERNELS", "")
    values: dict[str, Value] = {"instructions": None, "wanted": wanted, "builds": len(builds)}
    if wanted not in ("", "off", *INSTRUCTIONS):
        remedy = f"set it to off, {', '.join(INSTRUCTIONS)}, or not at all"
        yield Finding("kernels", "problem", f"BIOXFER_KERNELS is {wanted!r}, no choice of it", remedy, values)
        return
    kernels = load_kernels()
    slower = "; everything is computed with torch alone, to the same numbers and slower"
    if kernels is not None:
        values["instructions"] = kernels.instructions
        asked = f" (BIOXFER_KERNELS={wanted})" if wanted else ""
        fact = f"built, loaded for {kernels.instructions}{asked}; known: {', '.join(INSTRUCTIONS)}"
        yield Finding("kernels", "ok", fact, values=values)
    elif wanted == "off":
        yield Finding("kernels", "note", f"switched off{slower}", "unset BIOXFER_KERNELS", values)
    elif not builds:
        remedy = "install a C++ compiler (gcc 11 or newer), then bioxfer again"
        yield Finding("kernels", "note", f"not built{slower}", remedy, values)
    elif all(reason for _, reason in builds):
        told = "; ".join(f"{path.name} {reason}" for path, reason in builds)
        yield Finding("kernels", "note", hide_home(told) + slower, "install bioxfer again", values)
    else:
        fact = f"built, but none for this processor is known to be faster than torch{slower}"
        yield Finding("kernels", "ok", fact, values=values)


def see_precision() -> Iterator[Finding]:
    """Tell the precisions that there are on each device."""
    from bioxfer.backbones import has_native_bf16, resolve_precision

    for device in ("cpu", *(["cuda"] if _has_gpu() else [])):
        native, auto = has_native_bf16(device), resolve_precision("auto", device=device)
        values: dict[str, Value] = {"bf16_native": native, "fp16": device != "cpu", "auto": auto}
        bf16 = "native" if native else "emulated, slower than fp32"
        fp16 = "not on a processor" if device == "cpu" else "native"
        fact = f"on {device}: fp32 exact, bf16 {bf16}, fp16 {fp16}; auto takes {auto}"
        yield Finding("precision", "ok", fact, values=values)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def see_mmseqs() -> Iterator[Finding]:
    """Tell the version of MMseqs2, or what takes its place."""
    if shutil.which("mmseqs") is None:
        fact = "not on PATH; relatives are found by bioxfer's own k-mer search, which sees fewer remote ones"
        yield Finding("mmseqs", "note", fact, "install MMseqs2 for splits and audits", {"version": None})
        return
    try:
        told = subprocess.run(
            ["mmseqs", "version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(
            "mmseqs", "problem", f"does not run ({error})", "install it again, or --cluster-by kmer"
        )
        return
    version = (told.stdout.strip().splitlines() or [""])[0]
    if told.returncode or not version:
        fact = f"ended with status {told.returncode} when asked for its version"
        yield Finding("mmseqs", "problem", fact, "install it again, or --cluster-by kmer")
    else:
        yield Finding("mmseqs", "ok", f"MMseqs2 {version}", values={"version": version})
