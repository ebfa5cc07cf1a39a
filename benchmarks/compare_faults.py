"""What the same faults do to fair-esm's script, biotrainer and bioxfer.

Each tool is run for real, in a process of its own with a time limit, on inputs and in surroundings that are
faulty in a known way, and is judged by code: by its exit status, by what it printed, and by every vector of
its output, held against the same tool's vector of the same protein in a faultless file. The words are

right             every record is there once, under its id, with its vector (or a note why there is none)
refused clearly   no success is claimed, and the last words name what is wrong, even below a traceback
traceback         it ends in Python's report of an error that names something else
refused unclearly it ends with an error that is neither
silently wrong    success is claimed, and a result is not what the input says
silently dropped  success is claimed, and a record is missing without a word
overwritten       of two records or two runs one has replaced what belonged to the other
wrote outside     a file lies outside the folder that was named
ran its code      a model file made the tool run a program
no word           what should be warned of is taken without a warning
hang              no end within the time
not applicable    the tool does not do such a thing

A refusal is clear where the last three lines match the pattern that stands here for that fault. What a tool
says of what an earlier run left, after a kill, after a signal or cut to half, is held against one pattern.
A signal counts only where it was sent before the end and the run did not succeed; where that never happens
there is no verdict, and the fault must be provoked again.
A vector of the longest protein is held against the mean of the tool's own vectors of its residues or, where a
tool's command gives none, must be finite and not that of the protein's start; the verdict says which.
Whoever refuses what others take (a compressed file, a second record of one name) is as right as they are.
What is no flaw (letters in lower case, a slash in an id) cannot be refused clearly.

    python benchmarks/compare_faults.py FOLDER --fair-esm PYTHON --extract SCRIPT --biotrainer PYTHON

The first interpreter has fair-esm, SCRIPT is scripts/extract.py of its repository, the second one has
biotrainer. FOLDER takes models, inputs and outputs; what is done there is not done again. Linux only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fault_tools import FORCED, Biotrainer, Bioxfer, Entry, FairEsm, Ran, Tool, Unreadable, read_table, same
from results import write_result

import bioxfer as bx

WAIT = 120.0  # seconds; a run without a fault takes 3 to 20
LONG_WAIT = 400.0  # for titin, and for attempts at a network that is not there
DAMAGED = r"damaged|corrupt|truncated|not found in embeddings file"  # of what an earlier run left
NO_DATA = "This tool has no training."

MAKE_FAIRESM = """
import argparse, sys, esm, torch
torch.manual_seed(0)
alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
state = esm.model.esm2.ESM2(6, 320, 20, alphabet=alphabet).state_dict()
shape = dict(encoder_layers=6, encoder_embed_dim=320, encoder_attention_heads=20, token_dropout=True)
prefix = lambda name: "encoder." if name.startswith("lm_head") else "encoder.sentence_encoder."
contact = {name: value for name, value in state.items() if name.startswith("contact_head")}
main = {prefix(name) + name: value for name, value in state.items() if name not in contact}
torch.save({"cfg": {"model": argparse.Namespace(**shape)}, "model": main}, sys.argv[1] + ".pt")
torch.save({"model": contact}, sys.argv[1] + "-contact-regression.pt")
"""
MAKE_TRANSFORMERS = """
import sys, torch
from pathlib import Path
from transformers import EsmConfig, EsmModel, EsmTokenizer
main = Path(sys.argv[1], "hub", "models--facebook--esm2_t6_8M_UR50D")  # as a download lies in the cache
folder = main / "snapshots" / "random"
folder.mkdir(parents=True)
(main / "refs").mkdir()
(main / "refs" / "main").write_text("random")
words = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
(folder / "vocab.txt").write_text("\\n".join(words))
torch.manual_seed(0)
shape = dict(hidden_size=320, num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280)
kind = dict(position_embedding_type="rotary", token_dropout=True, pad_token_id=1, mask_token_id=32)
EsmModel(EsmConfig(vocab_size=33, max_position_embeddings=1026, **shape, **kind)).save_pretrained(folder)
EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
"""
CANARY = """
import argparse, sys, torch
class Canary:
    def __reduce__(self):
        return (open, (sys.argv[2], "w"))
found = torch.load(sys.argv[1], weights_only=False)
found["canary"] = Canary()
torch.save(found, sys.argv[3])
"""


@dataclass(frozen=True)
class Verdict:
    """What happened, in a word and in a sentence."""

    outcome: str
    sentence: str
    code: int | None = None
    seconds: float = 0.0
    traceback: bool = False


def told(ran: Ran, outcome: str, sentence: str) -> Verdict:
    return Verdict(outcome, sentence, ran.code, round(ran.seconds, 1), ran.traceback)


NOT_APPLICABLE = Verdict("not applicable", NO_DATA)


def draw(
    count: int, seed: int, shortest: int = 40, longest: int = 90, letters: str = "ACDEFGHIKLMNPQRSTVWY"
) -> list[str]:
    dice = random.Random(seed)
    return ["M" + "".join(dice.choices(letters, k=dice.randint(shortest, longest))) for _ in range(count)]


PROTEINS = draw(12, seed=0)
BASE = [(f"p{number}", sequence) for number, sequence in enumerate(PROTEINS)]
MANY = [
    (f"m{number}", sequence) for number, sequence in enumerate(draw(240, seed=1, shortest=100, longest=160))
]
COMPANION = draw(1, seed=2, shortest=400, longest=400)[0]
TITIN = "".join(draw(1, seed=3, shortest=35_212, longest=35_212))
DNA = "ATG" + "".join(random.Random(4).choices("ACGT", k=297))

Records = Sequence[tuple[str, str]]


def text(tool: Tool, records: Records) -> bytes:
    lines = [f"{tool.header(name, number)}\n{sequence}\n" for number, (name, sequence) in enumerate(records)]
    return "".join(lines).encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Reading:
    """A FASTA with a fault in it, and what its records are."""

    row: str
    name: str
    make: Callable[[Tool], bytes]
    expected: Sequence[tuple[str | None, str | None]]  # ids (None is any) and what each sequence amounts to
    refusal: str | None = None  # what a clear refusal names; None where nothing may be refused
    suffix: str = ""
    lenient: str | None = (
        None  # an odd sequence: a tool may have a token of its own for what it does not know
    )
    seconds: float = WAIT


def records(*made: tuple[str, str]) -> Callable[[Tool], bytes]:
    return lambda tool: text(tool, [*made, *BASE[len(made) :]])


def renamed(*names: str) -> tuple[Callable[[Tool], bytes], list[tuple[str | None, str | None]]]:
    """Give the first proteins other ids."""
    made = [(name, sequence) for name, (_, sequence) in zip(names, BASE, strict=False)]
    return records(*made), [*made, *BASE[len(made) :]]


def altered(
    sequence: str, meant: str | None
) -> tuple[Callable[[Tool], bytes], list[tuple[str | None, str | None]]]:
    """Give the first record another sequence, which amounts to a third one."""
    return records(("p0", sequence)), [("p0", meant), *BASE[1:]]


def edited(change: Callable[[bytes], bytes]) -> Callable[[Tool], bytes]:
    return lambda tool: change(text(tool, BASE))


def wrapped(data: bytes) -> bytes:
    """Break sequences into lines of 20 residues, as most databases do at 60 or 80."""
    lines = [
        line if line.startswith(b">") else re.sub(rb"(.{20})(?=.)", rb"\1\n", line)
        for line in data.split(b"\n")
    ]
    return b"\n".join(lines)


FIRST = PROTEINS[0]
SHORT = r"gzip|gz\b|compress|valid fasta|UTF-8 text"
NULS = r"NUL|null byte|null character|\\x00|invalid character|valid fasta"
READINGS = [
    Reading("F1", "lines end in CRLF", edited(lambda d: d.replace(b"\n", b"\r\n")), BASE),
    Reading("F1", "lines end in CR alone", edited(lambda d: d.replace(b"\n", b"\r")), BASE),
    Reading(
        "F1", "blank lines, no last line end", edited(lambda d: d.replace(b"\n>", b"\n\n \n>").rstrip()), BASE
    ),
    Reading("F1", "a sequence over several lines", edited(wrapped), BASE),
    Reading("F2", "UTF-8 byte-order mark", edited(lambda d: b"\xef\xbb\xbf" + d), BASE),
    Reading(
        "F2",
        "text before the first >",
        edited(lambda d: b"SEQUENCES\n" + d),
        BASE,
        r"'SEQUENCES'|line 1\b|first '>'",
    ),
    Reading("F3", "Latin-1 in an id", *renamed("caf\udce9")),
    Reading("F3", "NUL byte in a sequence", *altered(FIRST[:9] + "\0" + FIRST[9:], FIRST), NULS),
    Reading("F3", "NUL byte in an id", *renamed("p\0x"), NULS),
    Reading("F4", "gzip", edited(gzip.compress), BASE, SHORT, ".gz"),
    Reading(
        "F4",
        "gzip of two members",
        edited(lambda d: gzip.compress(d[:300]) + gzip.compress(d[300:])),
        BASE,
        SHORT,
        ".gz",
    ),
    Reading(
        "F4",
        "gzip cut off",
        edited(lambda d: gzip.compress(d)[:-10]),
        [],
        rf"truncated|cut off|end of|ended|{SHORT}",
        ".gz",
    ),
    Reading("F5", "empty file", lambda tool: b"", [], r"empty|no sequence|no record"),
    Reading("F5", "empty sequence", *altered("", None), r"empty|no residue|no sequence"),
    Reading(
        "F5",
        "no id",
        edited(lambda d: d.replace(b">p0", b">", 1)),
        [(None, FIRST), *BASE[1:]],
        r"no id|\bid\b|valid fasta",
    ),
    Reading("F6", "an id twice", *renamed("p1"), r"duplicate|already used|twice"),
    Reading("F7", "a sequence twice", *altered(PROTEINS[1], PROTEINS[1]), r"duplicated sequences"),
    Reading("F8", "/ and . in ids", *renamed("a/b", ".", "..", "c.d/e")),
    Reading("F8", "ids NA, 1e5, 007, nan, None", *renamed("NA", "1e5", "007", "nan", "None")),
    Reading("F9", "id ../up", *renamed("../up")),
    Reading("F9", "id of 300 characters", *renamed("x" * 300)),
    Reading("F9", "ids A and a", *renamed("A", "a")),
    Reading("F10", "lower case", *altered(FIRST.lower(), FIRST)),
    Reading("F10", "* at the end", *altered(FIRST + "*", FIRST), r"'\*'", lenient=FIRST),
    Reading(
        "F10",
        "* within",
        *altered(FIRST[:9] + "*" + FIRST[9:], FIRST[:9] + "X" + FIRST[9:]),
        r"'\*'|invalid",
        lenient=FIRST,
    ),
    Reading(
        "F10",
        "J and digits",
        *altered(FIRST[:9] + "J71J" + FIRST[9:], FIRST[:9] + "XXXX" + FIRST[9:]),
        r"'J71J'|'[J7]'|invalid",
        lenient=FIRST,
    ),
    Reading(
        "F11",
        "<mask> in a sequence",
        *altered(FIRST[:9] + "<mask>" + FIRST[9:], FIRST[:9] + "XMASKX" + FIRST[9:]),
        r"'<'|invalid",
    ),
    Reading(
        "F12", "gaps of an alignment", *altered(FIRST[:9] + "---" + FIRST[9:], FIRST), r"'-'|gap|invalid"
    ),
    Reading("F35", "id =HYPERLINK(0)", *renamed("=HYPERLINK(0)")),
]


class MissedError(Exception):
    """The fault could not be provoked, so there is nothing to judge."""


class Bench:
    """A folder for each run, and each tool's vectors of faultless proteins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clean: dict[str, dict[str, np.ndarray]] = {}

    def place(self, tool: Tool, name: str) -> Path:
        """Make an empty folder in which a tool can work, within one that shows what it writes beside."""
        stem = re.sub(r"\W+", "-", f"{tool.name} {name}").strip("-")
        folder = self.folder / "runs" / f"{stem}-{time.monotonic_ns()}" / "run"
        folder.mkdir(parents=True)
        return folder

    def reference(self, tool: Tool) -> dict[str, np.ndarray]:
        """Embed every protein that a fault amounts to, in a faultless file."""
        if tool.name not in self.clean:
            wanted = [sequence for each in READINGS for _, sequence in each.expected if sequence]
            wanted += [sequence for _, sequence in MANY]
            made = [(f"r{number}", sequence) for number, sequence in enumerate(dict.fromkeys(wanted))]
            folder = self.place(tool, "reference")
            ran = self.embed(tool, folder, text(tool, made))
            found = {each.id.split()[0]: each.vector for each in tool.read(folder) if isinstance(each, Entry)}
            if len(found) < len(made):
                raise SystemExit(f"{tool.name} fails without a fault: {ran.said[-2000:]}")
            self.clean[tool.name] = {sequence: found[name] for name, sequence in made}
        return self.clean[tool.name]

    def embed(self, tool: Tool, folder: Path, data: bytes, suffix: str = "", **options: object) -> Ran:
        """Write a FASTA into the folder and have it embedded."""
        fasta = folder / f"in.fasta{suffix}"
        fasta.write_bytes(data)
        return tool.embed(fasta, folder, **{"seconds": WAIT, **options})


def judge(
    tool: Tool,
    ran: Ran,
    folder: Path,
    expected: Sequence[tuple[str | None, str | None]],
    refusal: str | None,
    clean: dict[str, np.ndarray],
) -> Verdict:
    """Judge an embedding by its exit status, its words and every vector."""
    if ran.code is None:
        return told(ran, "hang", f"no end within {ran.seconds:.0f} s")
    strays = [path for path in folder.parent.rglob("*") if path.is_file() and not foreseen(path, folder)]
    if strays:
        return told(ran, "wrote outside", f"{strays[0].name} lies outside the folder that was named")
    if ran.code:
        return judge_refusal(ran, refusal)
    entries = tool.read(folder)
    broken = [each.name for each in entries if isinstance(each, Unreadable)]
    if broken:
        return told(ran, "silently wrong", f"{len(broken)} files cannot be read, such as {broken[0]}")
    rest = [each for each in entries if isinstance(each, Entry)]
    counts = Counter(each.id for each in rest)
    for name, sequence in expected:
        mine = [each for each in rest if name is None or each.id == name]
        if name is None:
            mine = [each for each in rest if each.id not in {known for known, _ in expected}]
        if not mine:
            twice = sum(other == name for other, _ in expected) > 1
            if twice:
                return told(ran, "overwritten", f"of two records called {name!r} one is left")
            others = [other for other in counts if other not in {known for known, _ in expected}]
            if others and len(rest) >= len(expected):
                return told(ran, "silently wrong", f"the id {short(name)} became {short(others[0])}")
            absent = f"{len(expected) - len(entries)} of {len(expected)} rows are missing"
            return told(ran, "silently dropped", f"{short(name)} is not in the output, {absent}")
        if sequence is None:
            fitting = [each for each in mine if each.vector is None and each.note]
            if not fitting:
                return told(
                    ran,
                    "silently wrong",
                    f"the vector of {short(name)} is {describe(mine[0].vector)}, without a word",
                )
        else:
            fitting = [each for each in mine if same(each.vector, clean[sequence])]
            if not fitting:
                far = distance(mine[0].vector, clean[sequence])
                return told(
                    ran, "silently wrong", f"the vector of {short(name)} is not that of its protein: {far}"
                )
        rest.remove(fitting[0])
    if rest:
        return told(ran, "silently wrong", f"{len(rest)} rows too many, such as {short(rest[0].id)}")
    notes = [each.note for each in entries if isinstance(each, Entry) and each.note]
    return told(ran, "right", notes[0] if notes else "")


def foreseen(path: Path, folder: Path) -> bool:
    """Tell whether a file is the comparison's own, or lies where the tool was told to write."""
    if path.is_relative_to(folder / "out") or path.is_relative_to(folder / "cache"):
        return True
    return path.parent == folder and path.name in ("in.fasta", "in.fasta.gz", "log.txt", "config.yml")


def judge_refusal(ran: Ran, refusal: str | None) -> Verdict:
    """Judge the end of a tool that claims no success."""
    last = "\n".join(ran.said.strip().splitlines()[-3:])
    if refusal is not None and re.search(refusal, last, re.IGNORECASE):
        return told(ran, "refused clearly", ran.last_line)
    return told(ran, "traceback" if ran.traceback else "refused unclearly", ran.last_line)


def short(name: str | None) -> str:
    return repr(name if name is None or len(name) < 40 else f"{name[:36]}...")


def describe(vector: np.ndarray | None) -> str:
    if vector is None:
        return "missing"
    return "NaN" if np.isnan(vector).all() else f"{vector.size} numbers"


def distance(vector: np.ndarray | None, meant: np.ndarray) -> str:
    if vector is None or vector.shape != meant.shape or np.isnan(vector).any():
        return describe(vector)
    return f"off by {np.abs(vector - meant).max() / np.abs(meant).max():.2g} of its largest number"


# --- faults of the input ------------------------------------------------------------------------------


def read_fault(bench: Bench, tool: Tool, fault: Reading) -> Verdict:
    clean = bench.reference(tool)
    folder = bench.place(tool, fault.name)
    ran = bench.embed(tool, folder, fault.make(tool), fault.suffix, seconds=fault.seconds)
    verdict = judge(tool, ran, folder, fault.expected, fault.refusal, clean)
    if fault.lenient is None or verdict.outcome != "silently wrong":
        return verdict
    odd = next(each.vector for each in tool.read(folder) if isinstance(each, Entry) and each.id == "p0")
    data = text(tool, [*BASE, ("companion", COMPANION)])
    sequence = fault.make(tool).split(b"\n")[1]
    again = bench.place(tool, f"{fault.name} in company")
    bench.embed(tool, again, data.replace(FIRST.encode(), sequence, 1))
    beside = [each.vector for each in tool.read(again) if isinstance(each, Entry) and each.id == "p0"]
    if beside and same(odd, beside[0]):
        return told(ran, "right", "a token of its own for what is no residue")
    return told(ran, "silently wrong", "the vector changes with the longest protein of the batch")


def alone_or_not(bench: Bench, tool: Tool) -> Verdict:
    """F17: one protein at a time gives what all give together."""
    clean = bench.reference(tool)
    worst = 0.0
    for number in (0, 5, 11):
        folder = bench.place(tool, "alone")
        kept = BASE if isinstance(tool, Biotrainer) else [BASE[number]]  # a training needs its three sets
        made = [*reversed(kept), ("companion", COMPANION)] if len(kept) > 1 else kept
        ran = bench.embed(tool, folder, text(tool, made))
        if ran.code:
            return judge_refusal(ran, None)
        found = {each.id: each.vector for each in tool.read(folder) if isinstance(each, Entry)}
        meant = clean[BASE[number][1]]
        worst = max(worst, float(np.abs(found[BASE[number][0]] - meant).max() / np.abs(meant).max()))
        if len(kept) > 1:
            break
    outcome = "right" if worst <= 1e-5 else "silently wrong"
    return told(ran, outcome, f"differences up to {worst:.1g} of the largest number")


def titin(bench: Bench, tool: Tool) -> Verdict:
    """F14: 35,213 residues."""
    clean = bench.reference(tool)
    folder = bench.place(tool, "titin")
    ran = bench.embed(
        tool, folder, text(tool, [("titin", TITIN), ("start", TITIN[:1022]), *BASE[:10]]), seconds=LONG_WAIT
    )
    if ran.code is None:
        return told(ran, "hang", f"no end within {ran.seconds:.0f} s on one core")
    if ran.code:
        return judge_refusal(ran, r"memory|alloc|35213|too long")
    found = {each.id: each for each in tool.read(folder) if isinstance(each, Entry)}
    if "titin" not in found:
        return told(ran, "silently dropped", "the protein is not in the output")
    one = found["titin"]
    start = found["start"].vector if "start" in found else None
    if start is None or not np.isfinite(start).all():
        return told(ran, "silently dropped", "the protein's start, a record of its own, has no vector")
    if one.vector is None:
        return told(ran, "right" if one.note else "silently wrong", one.note or "no vector, without a word")
    if not np.isfinite(one.vector).all():
        return told(ran, "silently wrong", "the vector is not finite, without a word")
    if one.vector.shape != start.shape:
        return told(ran, "silently wrong", f"the vector is {describe(one.vector)}")
    if same(one.vector, start):
        return told(ran, "silently wrong", "the vector is that of the first 1,022 residues, without a word")
    for name, sequence in BASE[:10]:
        if name not in found or not same(found[name].vector, clean[sequence]):
            return told(ran, "silently wrong", f"{name} beside it is missing or has another vector")
    how = one.note or "the whole protein at once"
    if not isinstance(tool, Bioxfer):
        return told(ran, "right", f"{how}; finite and not that of its start, and held against nothing else")
    matrix, said = residues(bench, tool)
    if matrix is None:
        return told(said, "silently wrong", "no vectors of the residues")
    if matrix.shape != (len(TITIN), one.vector.size) or not same(one.vector, matrix.mean(axis=0)):
        return told(ran, "silently wrong", "the vector is not the mean of its residues' vectors")
    return told(ran, "right", f"{how}; the mean of the vectors of its residues")


def residues(bench: Bench, tool: Bioxfer) -> tuple[np.ndarray | None, Ran]:
    """Have titin embedded residue by residue."""
    folder = bench.place(tool, "residues")
    fasta = folder / "in.fasta"
    fasta.write_bytes(text(tool, [("titin", TITIN)]))
    command = [*tool.command(fasta, folder), "--per-residue"]
    ran = tool.run(command, folder, seconds=LONG_WAIT)
    if ran.code:
        return None, ran
    with np.load(tool.results(folder)[0]) as made:
        found = [made[name] for name in made.files if made[name].ndim == 2]
    return (found[0].astype(np.float64) if len(found) == 1 else None), ran


def dna(bench: Bench, tool: Tool) -> Verdict:
    """F13: nucleotides where proteins are expected."""
    folder = bench.place(tool, "bases")  # the word itself would be found in a path that is printed
    ran = bench.embed(tool, folder, text(tool, [("gene", DNA), *BASE[1:]]))
    if ran.code:
        return judge_refusal(ran, "nucleotide|DNA")
    warned = re.search("nucleotide|DNA", ran.said, re.IGNORECASE)
    return told(
        ran,
        "right" if warned else "no word",
        "warned" if warned else "embedded as alanine, cysteine, glycine and threonine",
    )


# --- faults of the surroundings -----------------------------------------------------------------------


def struck(number: signal.Signals, delays: Sequence[float]) -> Callable[[Bench, Tool], Verdict]:
    """F20, F26: struck by a signal while results appear, then the same command again."""

    def provoke(bench: Bench, tool: Tool) -> Verdict:
        clean = bench.reference(tool)
        hit, verdict = 0, None
        for delay in delays:
            folder = bench.place(tool, f"signal {number.name}")
            data = text(tool, MANY)

            def begun(folder: Path = folder) -> bool:
                logs = [*folder.glob("cache/*-wal")]
                return any(path.stat().st_size > 50_000 for path in logs) or (
                    not isinstance(tool, Bioxfer) and bool(tool.results(folder))
                )

            first = bench.embed(tool, folder, data, strike=(number, begun, delay))
            if first.code is None:
                return told(first, "hang", f"no end within {first.seconds:.0f} s of {number.name}")
            if not first.struck or first.code == 0:
                continue  # it was done before
            hit += 1
            again = bench.embed(tool, folder, data)
            verdict = judge(tool, again, folder, MANY, DAMAGED, clean)
            if verdict.outcome != "right":
                where = f"after {number.name} {delay} s into its work the same command again"
                return told(again, verdict.outcome, f"{where}: {verdict.sentence or again.last_line}")
        if verdict is None:
            raise MissedError(f"{number.name} never struck before the end; choose other delays")
        return Verdict(
            "right",
            f"struck {hit} times of {len(delays)}; the rerun is complete and right",
            verdict.code,
            verdict.seconds,
        )

    return provoke


def damaged(bench: Bench, tool: Tool) -> Verdict:
    """F21: what an earlier run kept was cut to half meanwhile."""
    clean = bench.reference(tool)
    folder = bench.place(tool, "damaged")
    data = text(tool, MANY)
    bench.embed(tool, folder, data)
    kept = [*tool.results(folder), *folder.glob("cache/*.sqlite")]
    for path in kept:
        os.truncate(path, path.stat().st_size // 2)
    ran = bench.embed(tool, folder, data)
    verdict = judge(tool, ran, folder, MANY, DAMAGED, clean)
    return told(
        ran,
        verdict.outcome,
        verdict.sentence or "everything is computed again, or what passes its checksum is kept",
    )


def full_disk(bench: Bench, tool: Tool) -> Verdict:
    """F23: no file can grow beyond half of what an output needs, and an older output is there."""
    folder = bench.place(tool, "full")
    data = text(tool, MANY)
    bench.embed(tool, folder, data)
    old = {path: path.read_bytes() for path in tool.results(folder)}
    limit = max(map(len, old.values())) // 2
    for path in folder.glob("cache/*"):
        path.unlink()
    if isinstance(tool, Biotrainer):  # it computes nothing while its file is there, so there is no old one
        for path in old:
            path.unlink()
        old = {}
    ran = bench.embed(tool, folder, data, largest=limit)
    lost = sum(not path.exists() or path.read_bytes() != content for path, content in old.items())
    if ran.code is None:
        return told(ran, "hang", f"no end within {ran.seconds:.0f} s")
    if lost:
        return told(
            ran, "overwritten", f"{lost} of {len(old)} older files are destroyed; last words: {ran.last_line}"
        )
    if not ran.code:
        return told(ran, "silently wrong", f"success is claimed with files of {limit} bytes at most")
    verdict = judge_refusal(ran, r"too large|no space|disk|room|Errno 27|Errno 28")
    remains = len(tool.results(folder)) - len(old)
    return told(
        ran, verdict.outcome, verdict.sentence + (f" ({remains} half a file left)" if remains > 0 else "")
    )


def unwritable(bench: Bench, tool: Tool) -> Verdict:
    """F42: the output's folder cannot be made, as a file stands where it should be."""
    folder = bench.place(tool, "unwritable")
    fasta = folder / "in.fasta"
    fasta.write_bytes(text(tool, BASE))
    (folder / "wall").write_text("a file\n")
    command = [
        Path(os.fspath(word).replace(os.fspath(folder / "out"), os.fspath(folder / "wall" / "out")))
        if isinstance(word, Path)
        else word
        for word in tool.command(fasta, folder)
    ]
    config = folder / "config.yml"
    if config.exists():
        config.write_text(config.read_text().replace(f"{folder}/out", f"{folder}/wall/out"))
    ran = tool.run(command, folder, seconds=WAIT)
    if not ran.code:
        return told(ran, "silently wrong", "success is claimed")
    return judge_refusal(ran, r"not writable|not a directory|not a folder|is a file")


def offline(bench: Bench, tool: Tool) -> Verdict:
    """F30: a model that is not here, and no network."""
    folder = bench.place(tool, "offline")
    fasta = folder / "in.fasta"
    fasta.write_bytes(text(tool, BASE))
    model, absent = os.fspath(tool.model), "esm2_t6_8M_UR50D"  # type: ignore[attr-defined]
    if isinstance(tool, Biotrainer):
        absent = model  # its home is empty below
    command = [absent if os.fspath(word) == model else word for word in tool.command(fasta, folder)]
    config = folder / "config.yml"
    if config.exists():
        config.write_text(config.read_text().replace(model, absent))
    homes = {
        "TORCH_HOME": os.fspath(folder / "torch"),
        "HF_HOME": os.fspath(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    ran = tool.run(["unshare", "-n", *command], folder, seconds=LONG_WAIT, more=homes)
    if ran.code is None:
        return told(ran, "hang", f"attempts at the network, no end within {ran.seconds:.0f} s")
    if not ran.code:
        return told(ran, "silently wrong", "success is claimed without a model")
    return judge_refusal(ran, r"models download|could not be found|name resolution|network|offline|connect")


def canary(bench: Bench, tool: Tool) -> Verdict:
    """F31: a model file whose unpickling opens a file."""
    folder = bench.place(tool, "canary")
    fasta, sign = folder / "in.fasta", folder / "canary-was-here"
    fasta.write_bytes(text(tool, BASE))
    if isinstance(tool, Biotrainer):
        model = folder / "esm_random_8M"
        model.mkdir()
        (snapshot,) = tool.home.glob("hub/*/snapshots/*")
        for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
            (model / name).write_bytes((snapshot / name).read_bytes())
        code = CANARY.replace("torch.load(sys.argv[1], weights_only=False)", "{}")
        target = model / "pytorch_model.bin"
        source: str | Path = tool.model
    else:
        model = folder / "esm2_random_8M.pt"
        code, target, source = CANARY, model, tool.model  # type: ignore[attr-defined]
        beside = "esm2_random_8M-contact-regression.pt"
        (folder / beside).write_bytes((Path(source).parent / beside).read_bytes())
    subprocess.run([tool.python, "-c", code, source, sign, target], check=True)
    sign.unlink(missing_ok=True)
    command = [
        model if os.fspath(word) == os.fspath(tool.model) else word for word in tool.command(fasta, folder)
    ]  # type: ignore[attr-defined]
    config = folder / "config.yml"
    if config.exists():
        config.write_text(config.read_text().replace(os.fspath(source), os.fspath(model)))
    ran = tool.run(command, folder, seconds=WAIT)
    if sign.exists():
        forced = ", with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 set" if tool.env.get(FORCED) == "1" else ""
        return told(ran, "ran its code", f"the program in the model file ran{forced}")
    if not ran.code:
        return told(ran, "silently wrong", "success is claimed")
    reason = r"weights_only|Weights only|unsafe|pickle|holds more than tensors|Unsupported global"
    if found := re.search(reason, ran.said):  # what counts is that it is refused; the reason may stand above
        return told(ran, "refused clearly", f"{found[0]}; last words: {ran.last_line}")
    return judge_refusal(ran, None)


# --- faults of labels ---------------------------------------------------------------------------------

OILY, SALTY = "AILMFVWGT", "DEKRNQSGT"
LABELLED = [
    (f"q{number}", draw(1, seed=100 + number, shortest=30, longest=60, letters=(OILY, SALTY)[number % 2])[0])
    for number in range(48)
]


def train(
    bench: Bench,
    tool: Tool,
    name: str,
    named: Records,
    labels: Sequence[tuple[str, str | None]],
    split: dict[str, str] | None = None,
) -> tuple[Ran, Path]:
    """Train on records with labels: in the headers for biotrainer, in a table for bioxfer."""
    folder = bench.place(tool, name)
    fasta = folder / "in.fasta"
    of = dict(labels)
    if isinstance(tool, Biotrainer):
        lines = []
        for number, (record, sequence) in enumerate(named):
            side = (split or {}).get(record) or ("train", "train", "train", "train", "val", "test")[
                number // 2 % 6
            ]
            target = f" TARGET={of[record]}" if of.get(record) is not None else ""
            lines.append(f">{record}{target} SET={side}\n{sequence}\n")
        fasta.write_text("".join(lines))
        return tool.run(tool.command(fasta, folder), folder, seconds=WAIT), folder
    fasta.write_text("".join(f">{record}\n{sequence}\n" for record, sequence in named))
    column = ",split" if split else ""
    rows = [
        f"{record},{label}" + (f",{'valid' if split[record] == 'test' else 'train'}" if split else "")
        for record, label in labels
        if label is not None
    ]
    (folder / "labels.csv").write_text("\n".join([f"id,label{column}", *rows]) + "\n")
    assert isinstance(tool, Bioxfer)
    words = [
        "train",
        fasta,
        "--labels",
        folder / "labels.csv",
        "-o",
        folder / "head.safetensors",
        "--head",
        "linear",
    ]
    more = [
        "--model",
        tool.model,
        "--cluster-by",
        "kmer",
        "--threads",
        "1",
        *(["--split", "column"] if split else []),
    ]
    return tool.run([*tool.program, *words, *more], folder, seconds=WAIT), folder


def classes_of(tool: Tool, folder: Path) -> list[str]:
    """Read the classes that a training found."""
    if isinstance(tool, Bioxfer):
        return list(bx.load_head(folder / "head.safetensors").labels)
    said = (folder / "out" / "out.yml").read_text(encoding="utf-8")
    found = re.search(r"class_int2str:\n((?:    .*\n)+)", said)
    return [line.split(":", 1)[1].strip().strip("'\"") for line in found[1].splitlines()] if found else []


def trained(tool: Tool, folder: Path) -> int:
    """Count the proteins of a training."""
    if isinstance(tool, Bioxfer):
        split = bx.load_head(folder / "head.safetensors").card["split"]
        return int(split["train"]) + int(split["valid"])
    said = (folder / "out" / "out.yml").read_text(encoding="utf-8")
    return sum(int(count) for count in re.findall(r"n_(?:testing|training|validation)_ids: (\d+)", said))


def two_classes(number: int) -> str:
    return ("oily", "salty")[number % 2]


def labels_as_ids(bench: Bench, tool: Tool) -> Verdict:
    """F36: proteins called NA, 1e5, 007, ..."""
    odd = ["NA", "1e5", "007", "nan", "None", "true", "1.0", "-1"]
    named = [(odd[n] if n < len(odd) else record, sequence) for n, (record, sequence) in enumerate(LABELLED)]
    ran, folder = train(
        bench, tool, "odd ids", named, [(record, two_classes(n)) for n, (record, _) in enumerate(named)]
    )
    if ran.code:
        return judge_refusal(ran, None)
    count = trained(tool, folder)
    return told(
        ran, "right" if count == len(named) else "silently dropped", f"{count} of {len(named)} proteins"
    )


def odd_labels(bench: Bench, tool: Tool) -> Verdict:
    """F36: classes called NA and 1e5 and 007."""
    names = ["NA", "1e5", "007"]
    labels = [(record, names[n % 2] if n % 3 else names[2]) for n, (record, _) in enumerate(LABELLED)]
    ran, folder = train(bench, tool, "odd labels", LABELLED, labels)
    if ran.code:
        return judge_refusal(ran, None)
    found = sorted(classes_of(tool, folder))
    return told(ran, "right" if found == sorted(names) else "silently wrong", f"classes {', '.join(found)}")


def missing_labels(bench: Bench, tool: Tool) -> Verdict:
    """F40: sequences without labels."""
    labels = [(record, None if n in (4, 9) else two_classes(n)) for n, (record, _) in enumerate(LABELLED)]
    ran, folder = train(bench, tool, "missing labels", LABELLED, labels)
    if ran.code:
        return judge_refusal(ran, r"label|target")
    warned = re.search(r"without a label", ran.said)
    return told(
        ran,
        "right" if warned else "silently dropped",
        f"{trained(tool, folder)} of {len(LABELLED)} proteins, {'with' if warned else 'without'} a warning",
    )


def spare_labels(bench: Bench, tool: Tool) -> Verdict:
    """F40: labels without sequences."""
    if isinstance(tool, Biotrainer):
        return Verdict("not applicable", "Labels stand in the headers of the sequences.")
    labels = [*[(record, two_classes(n)) for n, (record, _) in enumerate(LABELLED)], ("ghost", "oily")]
    ran, folder = train(bench, tool, "spare labels", LABELLED, labels)
    if ran.code:
        return judge_refusal(ran, r"label")
    warned = re.search(r"without a record", ran.said)
    return told(
        ran,
        "right" if warned else "no word",
        f"{trained(tool, folder)} proteins, {'with' if warned else 'without'} a warning",
    )


def one_class(bench: Bench, tool: Tool) -> Verdict:
    """F40: one class alone."""
    ran, _ = train(bench, tool, "one class", LABELLED, [(record, "oily") for record, _ in LABELLED])
    if ran.code is None:
        return told(ran, "hang", f"no end within {ran.seconds:.0f} s")
    if ran.code:
        return judge_refusal(ran, r"one class|single class|two|only")
    warned = re.search(r"one class|single class|only one", ran.said, re.IGNORECASE)
    return told(ran, "right" if warned else "no word", "a model of one class, which is always right")


def relatives(bench: Bench, tool: Tool) -> Verdict:
    """F39: each test protein is a copy, but for two residues, of a training protein."""
    named = list(LABELLED)
    split = {record: "train" for record, _ in named}
    for n in range(12, 16):
        split[named[n][0]] = "val"
    for n in range(36, 48):
        like = named[n - 36][1]
        named[n] = (named[n][0], like[:10] + "GT"[n % 2] + like[11:20] + "GT"[n % 2] + like[21:])
        split[named[n][0]] = "test"
    labels = [(record, two_classes(n)) for n, (record, _) in enumerate(named)]
    ran, _ = train(bench, tool, "relatives", named, labels, split)
    if ran.code:
        return judge_refusal(ran, r"relative|homolog|leak")
    warned = re.search(r"have relatives in training|leak|homolog", ran.said, re.IGNORECASE)
    return told(
        ran,
        "right" if warned else "no word",
        "the relatives are counted beside the score"
        if warned
        else "the score of copies is given as the test's",
    )


def plain_ids(bench: Bench, tool: Tool) -> Verdict:
    """F35: a table for people with spreadsheets."""
    if not isinstance(tool, Bioxfer):
        return Verdict("not applicable", "It writes no table of embeddings.")
    folder = bench.place(tool, "formula")
    fasta = folder / "in.fasta"
    fasta.write_bytes(text(tool, [("=HYPERLINK(0)", FIRST), *BASE[1:]]))
    ran = tool.run([*tool.program, "predict", fasta, "-o", folder / "out.csv"], folder, seconds=WAIT)
    if ran.code:
        return judge_refusal(ran, None)
    kept = read_table(folder / "out.csv")[0]["id"] == "=HYPERLINK(0)"
    warned = "--excel-safe" in ran.said
    return told(
        ran,
        "right" if kept and warned else "silently wrong",
        "verbatim, with a warning that names --excel-safe",
    )


# --- all of them --------------------------------------------------------------------------------------

Provoke = Callable[[Bench, Tool], Verdict]
SURROUNDINGS: list[tuple[str, str, Provoke]] = [
    ("F13", "nucleotides", dna),
    ("F14", "35,213 residues", titin),
    ("F17", "alone or in a batch", alone_or_not),
    ("F20", "SIGKILL, then again", struck(signal.SIGKILL, (0.0, 0.3, 1.0))),
    ("F21", "kept results cut to half", damaged),
    ("F23", "disk full", full_disk),
    ("F26", "SIGTERM, then again", struck(signal.SIGTERM, (0.0, 0.5))),
    ("F26", "SIGINT, then again", struck(signal.SIGINT, (0.0, 0.5))),
    ("F30", "model absent, no network", offline),
    ("F31", "program in a model file", canary),
    ("F35", "id =HYPERLINK(0) in a table", plain_ids),
    ("F42", "output cannot be made", unwritable),
]
LABELS: list[tuple[str, str, Provoke]] = [
    ("F36", "training: ids NA, 1e5, 007, ...", labels_as_ids),
    ("F36", "training: labels NA, 1e5, 007", odd_labels),
    ("F39", "training: relatives across the split", relatives),
    ("F40", "training: sequences without labels", missing_labels),
    ("F40", "training: labels without sequences", spare_labels),
    ("F40", "training: one class", one_class),
]


def all_faults() -> list[tuple[str, str, Provoke]]:
    def reading(fault: Reading) -> Provoke:
        return lambda bench, tool: read_fault(bench, tool, fault)

    def labels(provoke: Provoke) -> Provoke:
        return lambda bench, tool: NOT_APPLICABLE if isinstance(tool, FairEsm) else provoke(bench, tool)

    found = [(fault.row, fault.name, reading(fault)) for fault in READINGS]
    found += SURROUNDINGS + [(row, name, labels(provoke)) for row, name, provoke in LABELS]
    return sorted(found, key=lambda each: int(each[0][1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fair-esm", metavar="PYTHON", required=True)
    parser.add_argument("--extract", metavar="SCRIPT", type=Path, required=True)
    parser.add_argument("--biotrainer", metavar="PYTHON", required=True)
    parser.add_argument("--only", metavar="PATTERN", help="provoke only faults whose names match, and anew")
    parser.add_argument("--tools", metavar="PATTERN", default="", help="provoke only tools whose names match")
    options = parser.parse_args()
    folder = options.folder.resolve()
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    checkpoint, transformer = models / "esm2_random_8M", models / "esm_random_8M"
    if not checkpoint.with_suffix(".pt").exists():
        subprocess.run([options.fair_esm, "-c", MAKE_FAIRESM, checkpoint], check=True)
    if not transformer.exists():
        subprocess.run([options.biotrainer, "-c", MAKE_TRANSFORMERS, transformer], check=True)
    tools: list[Tool] = [
        FairEsm(Path(options.fair_esm), options.extract.resolve(), checkpoint.with_suffix(".pt")),
        Biotrainer(Path(options.biotrainer), transformer),
        Bioxfer(checkpoint.with_suffix(".pt")),
    ]
    kept = folder / "verdicts.json"
    verdicts: dict[str, dict[str, dict[str, object]]] = json.loads(kept.read_text()) if kept.exists() else {}
    bench, faults = Bench(folder), all_faults()
    missed: list[str] = []
    for row, name, provoke in faults:
        told_of = verdicts.get(f"{row} {name}", {})
        for tool in tools:
            if not re.search(options.tools, tool.name) or (
                options.only and not re.search(options.only, name)
            ):
                continue
            if tool.name in told_of and not options.only:
                continue
            try:
                verdict = provoke(bench, tool)
            except MissedError as error:
                print(f"{row} {name} | {tool.name} | no verdict: {error}", file=sys.stderr, flush=True)
                missed.append(name)
                continue
            facts = {key: value for key, value in vars(verdict).items() if value is not None}
            if kept.exists():  # another process may provoke another tool meanwhile
                verdicts = json.loads(kept.read_text(encoding="utf-8"))
            verdicts.setdefault(f"{row} {name}", {})[tool.name] = facts
            kept.write_text(json.dumps(verdicts, indent=1), encoding="utf-8")
            print(f"{row} {name} | {tool.name} | {verdict.outcome} | {verdict.sentence}", flush=True)
    rows = {f"{row} {name}": verdicts.get(f"{row} {name}", {}) for row, name, _ in faults}
    if missed or any(len(each) < len(tools) for each in rows.values()):
        raise SystemExit("not all faults are done; the result file stays as it is")
    totals = {
        tool.name: dict(Counter(str(each[tool.name]["outcome"]) for each in rows.values())) for tool in tools
    }
    write_result(
        "faults",
        {
            "script_sha256": hashlib.sha256(options.extract.read_bytes()).hexdigest(),
            "seconds_at_most": {"F14, F30": LONG_WAIT, "all others": WAIT},
            "tools": {tool.name: {"run": tool.limits, "versions": tool.versions()} for tool in tools},
            "totals": totals,
            "ended_in_a_traceback": {
                tool.name: sum(bool(each[tool.name]["traceback"]) for each in rows.values()) for tool in tools
            },
            "faults": rows,
        },
        packages=("h5py",),
    )


if __name__ == "__main__":
    main()
