"""A toy backbone, toy proteins and toy heads, and the command line run inside this process."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import bioxfer.training
from bioxfer.backbones.compact import CompactBackbone, CompactConfig, CompactModel, load_compact, save_compact
from bioxfer.cli import main
from bioxfer.heads import TrainedHead
from bioxfer.sequences import SequenceRecord

WINDOW = 60
OILY, SALTY = "AILMFVW", "DEKRNQS"


def proteins(count: int = 40, *, seed: int = 0, longest: int = 50) -> list[SequenceRecord]:
    """Proteins whose composition tells their label; none is another's relative."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        letters, label = ((OILY, "oily"), (SALTY, "salty"))[number % 2]
        sequence = "M" + "".join(dice.choices(letters + "GT", k=dice.randint(20, longest - 1)))
        found.append(SequenceRecord(f"p{number}", sequence, label=label))
    return found


def fasta(records: list[SequenceRecord]) -> str:
    return "".join(f">{record.id} a toy\n{record.sequence}\n" for record in records)


def table(records: list[SequenceRecord], *columns: str) -> str:
    rows = [",".join(getattr(record, column) or "" for column in columns) for record in records]
    return "\n".join([",".join(columns), *rows]) + "\n"


@functools.cache
def esm2_file() -> bytes:
    """A tiny ESM-2 in the layout of the published files."""
    import esm

    torch.manual_seed(0)
    model = esm.ESM2(num_layers=2, embed_dim=32, attention_heads=2)
    state = {
        f"encoder.sentence_encoder.{name}": weight
        for name, weight in model.state_dict().items()
        if not name.startswith(("lm_head.", "contact_head."))
    }
    options = Namespace(encoder_attention_heads=2, token_dropout=True)
    buffer = io.BytesIO()
    torch.save({"args": None, "cfg": {"model": options}, "model": state}, buffer)
    return buffer.getvalue()


@functools.cache
def weights_bytes() -> bytes:
    """Weights of an untrained backbone, 64 wide, whose window is 60 residues."""
    torch.manual_seed(0)
    model = CompactModel(CompactConfig(width=64, layers=2, window=WINDOW))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "toy.safetensors")
        save_compact(model, path, card={"corpus": "none: random weights"})
        return path.read_bytes()


def write_weights(folder: Path) -> Path:
    path = folder / "toy.safetensors"
    path.write_bytes(weights_bytes())
    return path


@functools.cache
def backbone() -> CompactBackbone:
    with tempfile.TemporaryDirectory() as folder:
        return load_compact(write_weights(Path(folder)))


def head(name: str = "taste", *, task: str = "multiclass") -> TrainedHead:
    """A linear head on the toy backbone; of the regression the label is the share of alanine."""
    return _train(name, task)


@functools.cache
def _train(name: str, task: str) -> TrainedHead:
    records = proteins()
    if task == "regression":
        share = [f"{r.sequence.count('A') / len(r.sequence):.4f}" for r in records]
        records = [SequenceRecord(r.id, r.sequence, label=s) for r, s in zip(records, share, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))  # a short path is a quick test
        return bioxfer.training.train_on_records(
            records,
            backbone(),
            name=name,
            data_source="toys",
            task=task,
            head="linear",
            pool="mean",
            valid=0.3,
            cluster_by="kmer",
        )


def write_head(folder: Path, name: str = "taste", *, task: str = "multiclass") -> Path:
    path = folder / f"{name}.safetensors"
    head(name, task=task).save(path)
    return path


ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the command line listens to."""


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str


def run(*arguments: object, stdin: bytes = b"") -> Ran:
    """Run the command line here, as the console script would, and leave no trace in this process."""
    streams = (
        io.TextIOWrapper(io.BytesIO(stdin)),
        io.TextIOWrapper(io.BytesIO()),
        io.TextIOWrapper(io.BytesIO(), write_through=True),
    )
    log = logging.getLogger("bioxfer")
    handlers, level, threads = log.handlers[:], log.level, torch.get_num_threads()
    signals = {number: signal.getsignal(number) for number in ENDING}
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        try:
            main([os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            log.handlers[:] = handlers
            log.setLevel(level)
            torch.set_num_threads(threads)
            for number, handler in signals.items():
                signal.signal(number, handler)
    for stream in streams[1:]:
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams[1:])
    return Ran(code, out, err.decode())


class Bench:
    """A folder with a toy backbone, a head on it and a FASTA, and the commands that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = write_weights(folder)
        self.head = write_head(folder)
        self.fasta = self.write("in.fasta", fasta(proteins(6)))
        self.out = folder / "out.csv"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def predict(self, source: object, *options: object, out: object = None, stdin: bytes = b""):
        return run(
            "predict",
            source,
            *("-o", out or self.out, "--head", self.head, "--model", self.weights, "--overwrite"),
            *options,
            stdin=stdin,
        )

    def embed(self, source: object, *options: object, out: object = None, stdin: bytes = b""):
        return run(
            "embed",
            source,
            *("-o", out or self.out, "--model", self.weights, "--overwrite"),
            *options,
            stdin=stdin,
        )

    def rows(self) -> list[dict[str, str]]:
        with self.out.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def one_sentence(err: str) -> str:
    """Give the one line that a command said."""
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("bioxfer: ")
    return lines[0]


def rows_stand_alone() -> bool:
    """Tell whether a row of torch's float32 product is the same bits whatever else is multiplied.

    On AVX-512 it is, from 64 rows on; the AVX2 kernels of its library choose by the number of rows.
    """
    torch.manual_seed(0)
    for deep, wide in ((128, 128), (128, 384), (128, 512), (512, 128)):
        x, weight = torch.randn(512, deep), torch.randn(wide, deep).t()
        whole = x @ weight
        if not all(torch.equal(x[:rows] @ weight, whole[:rows]) for rows in (64, 128, 192, 320)):
            return False
    return True


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user whom permissions bind, for as long as the block lasts; root is made nobody."""
    if os.geteuid() != 0:
        yield
        return
    nobody = 65534
    try:
        os.setresuid(nobody, nobody, 0)  # the saved 0 is the way back
    except OSError:
        pytest.skip("root here cannot become another user")
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Lend a folder that every user can enter, unlike pytest's own, and write to."""
    folder = Path(tempfile.mkdtemp(prefix="bioxfer-test-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def bits_stand_alone() -> bool:
    """Tell whether a vector in float32 is the same bits whatever else is in the batch."""
    from bioxfer.backbones.kernels import load_kernels

    kernels = load_kernels()
    return kernels is not None and (kernels.instructions == "amx" or rows_stand_alone())
