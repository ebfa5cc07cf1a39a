"""The machine as a process sees it: processor, memory and disks, with the limits that a container sets.

Read from the system's own files, without starting anything. What a system does
not tell is None.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bioxfer.errors import UsageError

__all__ = [
    "Disk",
    "Memory",
    "Processor",
    "describe_size",
    "expand_home",
    "find_obstacle",
    "look_at_disk",
    "look_at_memory",
    "look_at_processor",
]

# What decides how fast matrices are multiplied, from the least to the best; Arm's names last.
_INSTRUCTIONS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
_NO_LIMIT = 1 << 60  # version 1 of the control groups writes a number near 2**63


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor.

    Attributes
    ----------
    name : str
        As it calls itself, or the machine's kind.
    cores : int
        Logical ones of the machine.
    allowed : int
        Those on which this process may run.
    quota : float or None
        Cores' worth of time that its control group gives it.
    instructions : tuple of str
        The instruction sets that matter here.
    """

    name: str
    cores: int
    allowed: int
    quota: float | None
    instructions: tuple[str, ...]

    @property
    def usable(self) -> int:
        """Threads that can really run at once."""
        return max(1, min(self.allowed, self.cores if self.quota is None else round(self.quota)))


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes: what there is, what is free, what the control group allows."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a folder.

    Attributes
    ----------
    folder : Path
        The folder, or the nearest one above it that is there.
    free : int
        Free bytes.
    writable : bool
        Whether the folder can be written to, or made.
    obstacle : Path or None
        A file that stands where the folder, or one above it, would be.
    """

    folder: Path
    free: int
    writable: bool
    obstacle: Path | None = None


def look_at_processor(*, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Processor:
    """Describe the processor."""
    told = _read(proc / "cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", told, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return Processor(
        name=name[1].strip() if name else platform.machine(),
        cores=cores,
        allowed=allowed,
        quota=min(_quotas(proc, groups), default=None),
        instructions=tuple(each for each in _INSTRUCTIONS if each in has),
    )


def look_at_memory(*, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Describe the memory."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(proc / "meminfo"), re.MULTILINE))
    kilobytes = {name: 1024 * int(number) for name, number in found.items()}
    limits = [
        int(text)
        for folder in _groups_of_this_process(proc, groups, "memory")
        for file in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / file).strip()).isdigit() and int(text) < _NO_LIMIT
    ]
    return Memory(
        total=kilobytes.get("MemTotal"),
        available=kilobytes.get("MemAvailable"),
        limit=min(limits, default=None),
    )


def look_at_disk(folder: Path) -> Disk:
    """Describe the disk of a folder, which need not be there yet; nothing is written."""
    place = folder.absolute()
    while not os.path.isdir(place) and place != place.parent:
        place = place.parent
    obstacle = find_obstacle(folder)
    return Disk(
        folder=place,
        free=shutil.disk_usage(place).free,
        writable=obstacle is None and os.access(place, os.W_OK | os.X_OK),
        obstacle=obstacle,
    )


def find_obstacle(folder: Path) -> Path | None:
    """Find what is no folder, or a link to nothing, and stands where a folder or one above it would be."""
    place = folder.absolute()
    for each in (place, *place.parents):
        try:
            return None if stat.S_ISDIR(os.stat(each).st_mode) else each
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(each):
                return each
        except OSError:  # it may not be looked at
            return None
    return None


def expand_home(path: str) -> Path:
    """Put the user's folder, or that of another, in the place of a ``~`` at the beginning.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path!r} begins with a home folder that does not exist; write it out") from error


def describe_size(size: int) -> str:
    """Put a number of bytes into words.

    >>> describe_size(7_981_488), describe_size(57 * 2**30)
    ('7.6 MiB', '57.0 GiB')
    """
    number, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    for folder in _groups_of_this_process(proc, groups, "cpu"):
        words = _read(folder / "cpu.max").split()  # version 2: microseconds, or max, of a period
        if not words:
            words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _groups_of_this_process(proc: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Give the folder of this process' control group and those above it, of both versions."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" or controller in names.split(","):
            root = groups if number == "0" else groups / controller
            place = root / path.strip("/")
            yield place
            for above in place.parents:
                if above != root and root not in above.parents:
                    break
                yield above


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
