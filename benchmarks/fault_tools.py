"""The tools that compare_faults.py provokes: how each is run on a FASTA, and how its output is read."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MEMORY = 12 * 2**30  # bytes of address space that a tool may take, so that the machine stays usable
FORCED = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
ASK = """
import json, platform, sys
from importlib.metadata import version
print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in sys.argv[1:]}}))
"""
TIGHT = 1e-4  # of a vector's largest number; float32 sums in another order differ by 1e-6


@dataclass
class Ran:
    """How a command ended."""

    code: int | None  # None where its time was over
    said: str
    seconds: float
    struck: bool = False  # whether the signal was sent before the end

    @property
    def traceback(self) -> bool:
        """Whether Python's own report of an unforeseen error was printed."""
        return "Traceback (most recent call last)" in self.said

    @property
    def last_line(self) -> str:
        """The line that a user reads first."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return re.sub(r"(/[^\s/'\"]+)+/", "", lines[-1])[:200] if lines else ""


@dataclass(eq=False)  # arrays have no one truth
class Entry:
    """What an output says of one record; the vector is None where it says that there is none."""

    id: str
    vector: np.ndarray | None
    note: str = ""


@dataclass
class Unreadable:
    """What lies in an output and cannot be read."""

    name: str


def launch(
    command: Sequence[str | Path],
    folder: Path,
    *,
    seconds: float,
    env: Mapping[str, str],
    largest: int | None = None,
    strike: tuple[signal.Signals, Callable[[], bool], float] | None = None,
) -> Ran:
    """Run a command in a session of its own, and leave none of its processes behind.

    Parameters
    ----------
    command, folder, env
        What to run, where it works and writes its log, and variables beside this process' own.
    seconds : float
        After which it counts as hanging.
    largest : int, optional
        Bytes that a file may have, as on a disk that is full at this size.
    strike : signal, callable and seconds, optional
        Send the signal so many seconds after the callable says yes: to the first process, and SIGINT to all.
    """

    def limit() -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # a background shell has SIGINT ignored
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    log = folder / "log.txt"
    started, code = time.perf_counter(), None
    reader, writer = os.pipe()  # not a file, which a limit on files would cut too
    with log.open("wb") as kept:
        process = subprocess.Popen(
            [os.fspath(word) for word in command],
            cwd=folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
            preexec_fn=limit,
        )
        os.close(writer)
        os.set_blocking(reader, False)
        due: float | None = None
        struck = False
        while code is None and time.perf_counter() - started < seconds:
            code = process.poll()
            drain(reader, kept)
            if strike is not None and code is None:
                number, ready, delay = strike
                if due is None and ready():
                    due = time.perf_counter() + delay
                if due is not None and time.perf_counter() >= due:
                    struck = True
                    if number == signal.SIGINT:  # a terminal sends it to all processes of a command
                        os.killpg(process.pid, number)
                    else:
                        process.send_signal(number)
                    strike = None
            time.sleep(0.005)
        took = time.perf_counter() - started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        drain(reader, kept)
        os.close(reader)
    return Ran(code, log.read_text(encoding="utf-8", errors="replace"), took, struck)


def drain(reader: int, kept: Any) -> None:
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 65536):
            kept.write(data)
    kept.flush()


class Tool:
    """One tool; a run writes into ``folder/out`` and keeps what else it needs beside."""

    name = ""
    python: Path
    packages: tuple[str, ...] = ()  # whose versions matter
    limits = ""  # what a reader must know of how it was run
    env: Mapping[str, str] = {}

    def embed(self, fasta: Path, folder: Path, **options: Any) -> Ran:
        """Turn a FASTA into one mean vector a record."""
        return self.run(self.command(fasta, folder), folder, **options)

    def run(self, command: Sequence[str | Path], folder: Path, **options: Any) -> Ran:
        """Run a command of this tool."""
        env = {"OMP_NUM_THREADS": "1", **self.env, "BIOXFER_CACHE": os.fspath(folder / "cache")}
        return launch(command, folder, env={**env, **options.pop("more", {})}, **options)

    def command(self, fasta: Path, folder: Path) -> list[str | Path]:
        """Word the command that embeds."""
        raise NotImplementedError

    def header(self, identifier: str, number: int) -> str:
        """Write a record's first line as this tool wants it."""
        return f">{identifier}"

    def read(self, folder: Path) -> list[Entry | Unreadable]:
        """Read what is in the output."""
        raise NotImplementedError

    def results(self, folder: Path) -> list[Path]:
        """List the files that hold results, or parts of them."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Ask its interpreter for the versions of its packages."""
        said = subprocess.run([self.python, "-c", ASK, *self.packages], check=True, capture_output=True)
        return dict(json.loads(said.stdout))


@dataclass
class FairEsm(Tool):
    """fair-esm 2.0.0 with scripts/extract.py of its repository."""

    python: Path
    script: Path
    model: Path
    name = "fair-esm 2.0.0"
    packages = ("fair-esm", "torch", "numpy")
    limits = (
        f"scripts/extract.py --include mean, otherwise its defaults; {FORCED}=1, "
        "without which torch 2.6 and later refuse its own checkpoints; random weights of the 8M shape"
    )
    env = {FORCED: "1"}  # noqa: RUF012

    def command(self, fasta: Path, folder: Path) -> list[str | Path]:
        """Word the command that embeds."""
        return [self.python, self.script, self.model, fasta, folder / "out", "--include", "mean", "--nogpu"]

    def results(self, folder: Path) -> list[Path]:
        """List the files that hold results, or parts of them."""
        return sorted(folder.rglob("*.pt"))

    def read(self, folder: Path) -> list[Entry | Unreadable]:
        """Read what is in the output."""
        found: list[Entry | Unreadable] = []
        for path in self.results(folder):
            try:
                one = torch.load(path, weights_only=True)
                found.append(Entry(one["label"], next(iter(one["mean_representations"].values())).numpy()))
            except Exception:  # whatever torch says of half a file
                found.append(Unreadable(path.name))
        return found


@dataclass
class Biotrainer(Tool):
    """biotrainer 1.4.0; its embedding is the first step of a training."""

    python: Path
    home: Path  # of Hugging Face's cache
    name = "biotrainer 1.4.0"
    packages = ("biotrainer", "torch", "transformers", "numpy", "h5py")
    model = "facebook/esm2_t6_8M_UR50D"
    limits = (
        "a training from a FASTA with TARGET and SET in its headers (sequence_to_class, LogReg, 2 epochs, "
        "bootstrap, sanity check and TensorBoard off, validate_input at its default, on), judged by the "
        "embeddings file that it leaves; started by its Python function, as its console script needs a "
        "package that it does not install; facebook/esm2_t6_8M_UR50D with random weights, in the cache of "
        "Hugging Face"
    )

    @property
    def env(self) -> Mapping[str, str]:  # type: ignore[override]
        """Variables of its runs."""
        return {"HF_HUB_OFFLINE": "1", "HF_HOME": os.fspath(self.home)}

    def command(self, fasta: Path, folder: Path) -> list[str | Path]:
        """Word the command that embeds."""
        lines = {
            "protocol": "sequence_to_class",
            "input_file": fasta,
            "output_dir": folder / "out",
            "embedder_name": self.model,
            "model_choice": "LogReg",
            "num_epochs": 2,
            "device": "cpu",
            "bootstrapping_iterations": 0,
            "sanity_check": "false",
            "external_writer": "none",
        }
        config = folder / "config.yml"
        config.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()), encoding="utf-8")
        code = "from biotrainer.utilities.executer import parse_config_file_and_execute_run as run; run('{}')"
        return [self.python, "-c", code.format(config)]

    def header(self, identifier: str, number: int) -> str:
        """Write a record's first line."""
        side = ("train", "train", "train", "train", "val", "test")[number // 2 % 6]
        return f">{identifier} TARGET={'ab'[number % 2]} SET={side}"

    def results(self, folder: Path) -> list[Path]:
        """List the files that hold results, or parts of them."""
        return sorted(folder.rglob("*.h5"))

    def read(self, folder: Path) -> list[Entry | Unreadable]:
        """Read what is in the output."""
        import h5py

        found: list[Entry | Unreadable] = []
        for path in self.results(folder):
            try:
                with h5py.File(path, "r") as file:
                    found += [Entry(str(each.attrs["original_id"]), each[()]) for each in file.values()]
            except (OSError, KeyError, RuntimeError):
                found.append(Unreadable(path.name))
        return found


@dataclass
class Bioxfer(Tool):
    """The package of this repository."""

    model: Path
    python = Path(sys.executable)
    name = "bioxfer"
    packages = ("bioxfer", "torch", "numpy", "safetensors")
    limits = "bioxfer embed to .npz, otherwise its defaults; the checkpoint that fair-esm reads"
    options: tuple[str, ...] = ("--overwrite",)

    def command(self, fasta: Path, folder: Path) -> list[str | Path]:
        """Word the command that embeds."""
        (folder / "out").mkdir(exist_ok=True)
        out = folder / "out" / "vectors.npz"
        return [
            *self.program,
            "embed",
            fasta,
            "-o",
            out,
            "--model",
            self.model,
            "--threads",
            "1",
            *self.options,
        ]

    @property
    def program(self) -> list[str]:
        """How it is started."""
        return [os.fspath(self.python), "-m", "bioxfer"]

    def results(self, folder: Path) -> list[Path]:
        """List the files that hold results, or parts of them."""
        return sorted(folder.rglob("*.npz"))

    def read(self, folder: Path) -> list[Entry | Unreadable]:
        """Read what is in the output."""
        found: list[Entry | Unreadable] = []
        for path in self.results(folder):
            try:
                with np.load(path) as made:
                    columns = made["ids"].tolist(), made["vectors"], made["messages"].tolist()
                    for name, vector, note in zip(*columns, strict=True):
                        found.append(Entry(name, None if np.isnan(vector).all() else vector, note))
            except Exception:  # whatever numpy says of half a file
                found.append(Unreadable(path.name))
        return found


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV; its ids may hold bytes that are not UTF-8."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Tell whether two vectors are one but for rounding; what is not finite is like nothing."""
    if one is None or other is None:
        return one is other
    if not np.isfinite(other).all():
        return False
    return one.shape == other.shape and bool(np.abs(one - other).max() <= TIGHT * np.abs(other).max())
