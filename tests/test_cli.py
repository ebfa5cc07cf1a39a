"""The command line: what it says, where it writes, how it ends."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import io
import itertools
import json
import logging
import lzma
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from toys import ENDING, Bench, fasta, head, one_sentence, proteins, run, table

import bioxfer
import bioxfer.__main__
from bioxfer.backbones.compact import CompactBackbone
from bioxfer.cli import app
from bioxfer.cli.terminal import run_app, show_progress
from bioxfer.prediction import list_heads
from bioxfer.sequences import ORIGIN_COLUMNS

COMMANDS = [
    "predict", "embed", "convert", "merge", "train", "transfer", "evaluate", "split", "pretrain", "doctor",
    "models list", "models show", "models download", "models verify",
    "heads list", "heads show", "heads plot",
]  # fmt: skip
PACKAGE = Path(bioxfer.__file__).parents[1]
DEMO = PACKAGE / "data" / "demo.fasta"


# Help, version, usage.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_how_it_can_end(command):
    code, out, err = run(*command.split(), "--help")
    text = " ".join(out.decode().split())
    assert (code, err) == (0, "")
    assert "Usage: bioxfer " + command in text
    for number in (0, 2, 3, 4, 129, 130, 143):
        assert re.search(rf"\b{number}\b", text[text.index("Exit codes:") :])


def test_every_option_and_argument_is_explained():
    def walk(command):
        yield command
        for inner in getattr(command, "commands", {}).values():
            yield from walk(inner)

    for command in walk(typer.main.get_command(app)):
        assert command.help
        for parameter in command.params:
            assert parameter.help, (command.name, parameter.name)


def test_help_comes_at_once():
    code = (
        "import sys, time; start = time.process_time()\n"
        "from bioxfer.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "finally: open(int(sys.argv[1]), 'w').write(str(time.process_time() - start))"
    )

    def seconds() -> float:
        read, write = os.pipe()
        try:
            subprocess.run(
                [sys.executable, "-c", code, str(write)],
                check=True,
                stdout=subprocess.DEVNULL,
                pass_fds=[write],
            )
            return float(os.read(read, 100))
        finally:
            os.close(read)
            os.close(write)

    assert min(seconds() for _ in range(3)) < 0.5  # a busy machine slows its processor's caches too


def test_an_interrupt_while_it_is_loaded_is_one_too(monkeypatch):
    class Impatient:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "bioxfer.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "bioxfer.cli")
    monkeypatch.setattr(sys, "meta_path", [Impatient, *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        bioxfer.__main__.main()
    assert end.value.code == 130


def test_without_a_command_the_help_is_shown():
    assert run() == run("--help")
    assert b"predict" in run().out


def test_version_is_told():
    assert run("--version") == (0, f"bioxfer {bioxfer.__version__}\n".encode(), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("foo", "foo"),
        ("models", "missing command"),
        ("predict", "missing argument 'IN'"),
        ("predict in.fasta", "--out"),
        ("predict in.fasta -o out.csv --long sometimes", "sometimes"),
        ("predict in.fasta -o out.csv --format round", "round"),
        ("predict in.fasta -o out.csv --threads 0", "--threads"),
        ("predict in.fasta -o out.csv --threads many", "--threads"),
        ("predict in.fasta -o out.csv --nonsense", "--nonsense"),
        ("predict in.fasta -o out.png", "out.png"),
        ("predict in.fasta -o out.h5", "out.h5"),
        ("embed in.fasta -o out.csv --per-residue", "matrix"),
        ("embed in.fasta -o out.csv --pool median", "median"),
        ("embed in.fasta -o out.h5ad --per-residue", "AnnData has one row per protein"),
        ("convert", "missing argument 'IN'"),
        ("convert v.h5 -o out.csv --pool median", "median"),
        ("embed in.fasta -o out.csv --layer 9", "layer 9"),
        ("embed in.fasta -o out.csv --translate cds --genetic-code 7", "genetic code 7"),
        ("embed in.fasta -o out.csv --translate six-frame --min-orf 0", "--min-orf"),
        ("embed in.fasta -o out.csv --translate orf --gff a.gff", "leave one of the two out"),
        ("embed in.fasta -o out.csv --device abacus", "abacus"),
        ("train in.fasta -o out.csv", ".safetensors"),
        ("train in.fasta -o out.safetensors --pool median", "median"),
        ("evaluate", "missing argument 'HEAD'"),
        ("pretrain in.fasta -o out.csv", ".safetensors"),
        ("pretrain in.fasta -o out.safetensors", "minutes or steps"),
        ("pretrain in.fasta -o out.safetensors --steps 1 --source t.csv=0", "above 0"),
        ("pretrain in.fasta -o out.safetensors --steps 1 --attention two", "blocks by numbers"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(bench, monkeypatch, words, told):
    monkeypatch.chdir(bench.folder)
    code, out, err = run(*words.split())
    assert (code, out) == (2, b"")
    assert told in one_sentence(err)
    assert not bench.out.exists()


# Bad input: one sentence that names file and line.


BAD_FILES = [
    ("not a FASTA", b"once upon a time\n", [r"in\.fasta", "line 1"]),
    ("text before the first record", b"\n\nhello\n>a\nMKV\n", ["line 3", "hello"]),
    ("a picture", b"\x89PNG\r\n\x1a\n\0\0", ["PNG"]),
    ("a GenBank file", b"LOCUS       SCU49845\n", ["GenBank"]),
    ("an alignment", b">a\nMK-V\n", [r"record 'a'", "line 1", "--degap"]),
    ("a NUL byte", b">a\nMK\0V\n", ["line 2"]),
    ("no id", b">a\nMKV\n> b\nMKV\n", ["line 3"]),
    ("equal ids", b">a\nMKV\n>b\nMK\n>a\nMKL\n", ["line 5", "line 1", "--on-duplicate rename"]),
    ("a cut gzip", gzip.compress(b">a\nMKV\n" * 500)[:-9], [r"in\.fasta"]),
]


@pytest.mark.parametrize(("content", "told"), [c[1:] for c in BAD_FILES], ids=[c[0] for c in BAD_FILES])
def test_bad_input_is_one_sentence_and_exit_3_and_nothing_is_published(bench, content, told):
    bench.out.write_text("from before")
    for command in (bench.predict, bench.embed):
        code, out, err = command(bench.write("in.fasta", content))
        assert (code, out) == (3, b"")
        sentence = one_sentence(err)
        for words in told:
            assert re.search(words, sentence)
        assert bench.out.read_text() == "from before"
        assert not [path for path in bench.folder.iterdir() if path.name.startswith(".bioxfer")]


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_missing_file_is_told_before_a_backbone_loads(bench, monkeypatch, command):
    monkeypatch.setattr("bioxfer.backbones.load_backbone", lambda *_, **__: pytest.fail("too early"))
    code, _, err = getattr(bench, command)(bench.folder / "nope.fasta")
    assert code == 3
    assert "nope.fasta" in one_sentence(err)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--head", "fortune"], "fortune"),
        (["--head", "in.fasta"], "in.fasta"),
        (["--head", "taste.safetensors", "--model", "oracle"], "oracle"),
        (["--head", "taste.safetensors", "--model", "in.fasta"], "in.fasta"),
        (["--head", "taste.safetensors", "--model", "compact"], "fingerprint|trained on"),
        (["--head", "taste.safetensors", "--head", "taste.safetensors"], "once"),
    ],
)
def test_an_unknown_or_foreign_head_or_model_is_one_sentence(bench, monkeypatch, options, told):
    monkeypatch.chdir(bench.folder)
    code, _, err = run("predict", "in.fasta", "-o", "out.csv", *options)
    assert code == (2 if told == "once" else 3)
    assert re.search(told, one_sentence(err))
    assert not bench.out.exists()


# Rows.


def test_every_odd_sequence_has_its_row(bench):
    odd = {
        "lower": ("mkvlaw", "ok", 6, ""),
        "stop": ("MKVLAW*", "ok", 6, "one final * removed"),
        "rare": ("MUOBZX", "ok", 6, ""),
        "J": ("MJK", "ok", 3, "J at 2"),
        "digits": ("MK12V", "ok", 5, "2 residues became X"),
        "mask": ("MK<mask>V", "ok", 9, "2 residues became X (< at 3, > at 8)"),
        "copy": ("mkvlaw", "ok", 6, ""),
        "empty": ("", "skipped", 0, "empty sequence"),
        "dna": ("ACGTACGTACGTACGTACGTACGT", "ok", 24, "--translate cds"),
        "long": ("MKVLAW" * 20, "windowed", 120, "windows of 60"),
        "=1+1": ("MKV", "ok", 3, ""),
        "007": ("MKV", "ok", 3, ""),
        "../up/é": ("MKV", "ok", 3, ""),
    }
    source = bench.write("in.fasta", "".join(f">{name} x\n{c[0]}\n" for name, c in odd.items()))
    code, _, err = bench.predict(source)
    rows = bench.rows()
    assert code == 0
    assert [row["id"] for row in rows] == list(odd)
    for row, (_, status, length, message) in zip(rows, odd.values(), strict=True):
        assert (row["status"], row["length"]) == (status, str(length))
        assert message in row["message"] if message else not row["message"]
        empty = status == "skipped"
        for column in ("taste", "taste_score", "taste_nearest", "taste_flag"):
            assert (row[column] == "") == empty
    assert rows[0] | {"id": "copy"} == rows[6]
    assert "'dna'" in err
    assert "--translate cds" in err
    assert "--excel-safe" in err
    assert "13 records (11 ok, 1 skipped, 1 windowed)" in err


@pytest.mark.parametrize(
    "change",
    [
        bz2.compress,
        lzma.compress,
    ],
    ids=["bz2", "xz"],
)
def test_the_form_of_the_file_changes_nothing(bench, change):
    bench.predict(bench.fasta)
    wanted = bench.out.read_bytes()
    assert len(bench.rows()) == 6
    code, _, _ = bench.predict(bench.write("other.fasta", change(bench.fasta.read_bytes())))
    assert code == 0
    assert bench.out.read_bytes() == wanted


def test_options_for_odd_records(bench):
    source = bench.write("in.fasta", ">a\nMJK\n>b\nMKV\n")
    assert bench.predict(source, "--on-invalid", "skip").code == 0
    assert [row["status"] for row in bench.rows()] == ["skipped", "ok"]
    code, _, err = bench.predict(source, "--on-invalid", "error")
    assert code == 3
    assert "'J' is not an amino acid" in one_sentence(err)
    twice = bench.write("in.fasta", ">a\nMWK\n>a\nMKV\n")
    assert bench.predict(twice, "--on-duplicate", "rename").code == 0
    assert [(row["id"], row["message"]) for row in bench.rows()] == [("a", ""), ("a_2", "renamed from 'a'")]
    assert bench.predict(bench.write("in.fasta", ">a\nM-K.V\n"), "--degap").code == 0
    assert (bench.rows()[0]["length"], bench.rows()[0]["message"]) == ("3", "2 gaps removed")


@pytest.mark.parametrize(
    ("long", "code", "status", "message"),
    [
        ("window", 0, "windowed", "3 windows of 60"),
        ("truncate", 0, "truncated", "the first 60 of 130"),
        ("skip", 0, "skipped", "130 residues exceed"),
        ("error", 3, "", "130 residues exceed"),
    ],
)
def test_long_proteins_are_treated_as_asked(bench, long, code, status, message):
    source = bench.write("in.fasta", ">short\nMKV\n>long\n" + "MKVLAWGDES" * 13 + "\n")
    ended = bench.predict(source, "--long", long)
    assert ended.code == code
    if code:
        assert message in one_sentence(ended.err)
        assert "'long'" in ended.err
        assert not bench.out.exists()
    else:
        short, row = bench.rows()
        assert (short["status"], row["status"], row["length"]) == ("ok", status, "130")
        assert message in row["message"]


def test_coding_sequences_are_translated_on_request(bench):
    protein = fasta(proteins(1)).splitlines()[1]
    codon = dict(
        zip("AILMFVWGT", ("GCN", "ATH", "YTG", "ATG", "UUY", "gtn", "TGG", "GGN", "ACN"), strict=True)
    )
    coding = "".join(codon[residue] for residue in protein) + "TAA"
    source = bench.write("cds.fasta", f">p0\n{coding}\n>inner\nATGTAGAAA\n>cut\nATGG\n>protein\nMKFL\n")
    assert bench.predict(source, "--translate", "cds").code == 0
    first, inner, cut, foreign = bench.rows()
    assert (first["length"], first["status"]) == (str(len(protein)), "ok")
    assert first["message"] == f"translated from {len(coding)} nucleotides"
    assert (inner["length"], inner["status"]) == ("3", "ok")
    assert inner["message"].endswith("1 residue became X (* at 2)")
    assert (cut["status"], foreign["status"]) == ("skipped", "skipped")
    assert cut["message"] == "not translated: its length, 4, is not a multiple of three"
    assert "'F' at 3 is not a nucleotide" in foreign["message"]
    bench.predict(bench.write("p.fasta", f">p0\n{protein}\n"))
    plain = {name: value for name, value in first.items() if name not in ORIGIN_COLUMNS}
    assert {**bench.rows()[0], "message": ""} == {**plain, "message": ""}
    mitochondrial = bench.write("cds.fasta", ">a\nATGTGAAGA\n")
    assert bench.embed(mitochondrial, "--translate", "cds", "--genetic-code", "2").code == 0
    assert bench.rows()[0]["message"] == "translated from 9 nucleotides by genetic code 2"
    assert bench.rows()[0]["length"] == "2"


def test_a_failed_record_is_told_by_exit_4_and_the_table_is_complete(bench, monkeypatch):
    original = CompactBackbone.represent

    def represent(self, sequences, *, layers):
        found = original(self, sequences, layers=layers)
        for sequence, one in zip(sequences, found, strict=True):
            if sequence == "MWWW":
                one.residues.fill_(float("nan"))
        return found

    monkeypatch.setattr(CompactBackbone, "represent", represent)
    source = bench.write("in.fasta", ">a\nMKV\n>b\nMWWW\n>c\nMLL\n")
    for command in (bench.predict, bench.embed):
        code, _, err = command(source)
        assert code == 4
        assert [row["status"] for row in bench.rows()] == ["ok", "failed", "ok"]
        assert "not finite" in bench.rows()[1]["message"]
        assert "1 of 3 records failed" in err


# Forms of the output.


def test_every_table_format_says_the_same(bench):
    bench.predict(bench.fasta, "--probabilities")
    wanted = pd.read_csv(bench.out, keep_default_na=False)
    assert list(wanted.columns[-2:]) == ["taste_p_oily", "taste_p_salty"]
    readers = {
        "out.tsv": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False),
        "out.csv.gz": lambda path: pd.read_csv(path, keep_default_na=False),
        "out.tsv.gz": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False),
        "out.csv.xz": lambda path: pd.read_csv(path, keep_default_na=False),
        "out.parquet": pd.read_parquet,
    }
    for name, read in readers.items():
        assert bench.predict(bench.fasta, "--probabilities", out=bench.folder / name).code == 0
        found = read(bench.folder / name)
        pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
        assert pd.api.types.is_float_dtype(found["taste_score"]), name
    code, out, _ = bench.predict(bench.fasta, "--probabilities", out="-")
    assert (code, out) == (0, bench.out.read_bytes())


def test_stdin_and_stdout_stand_in_for_files(bench):
    bench.predict(bench.fasta)
    for content in (bench.fasta.read_bytes(), gzip.compress(bench.fasta.read_bytes())):
        code, out, err = bench.predict("-", out="-", stdin=content)
        assert (code, out) == (0, bench.out.read_bytes())
        assert err == "bioxfer: 6 records (6 ok)\n"
    code, out, err = bench.predict("-", out="-", stdin=b">a\nM-K\n")
    assert code == 3
    assert "<stdin>, line 1" in one_sentence(err)


def test_a_long_table_ranks_the_classes(bench):
    code, out, _ = bench.predict("-", "--format", "long", out="-", stdin=b">a\nMAILVFWAILVFWAGTAIL\n>b\n\n")
    rows = list(csv.DictReader(io.StringIO(out.decode())))
    assert code == 0
    assert list(rows[0]) == ["id", "length", "status", "message", "head", "rank", "label", "score"]
    assert [(row["id"], row["rank"], row["label"]) for row in rows] == [
        ("a", "1", "oily"),
        ("a", "2", "salty"),
        ("b", "", ""),
    ]
    assert float(rows[0]["score"]) + float(rows[1]["score"]) == pytest.approx(1, abs=2e-4)


def test_progress_is_shown_as_long_as_there_is_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        gone = False

        def isatty(self):
            return True

        def write(self, text):
            if self.gone:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("bioxfer.cli.terminal.time.monotonic", itertools.count().__next__)
    with show_progress(quiet=False) as advance:
        advance(3)
        terminal.gone = True
        advance(4)
    assert terminal.getvalue().startswith("\r3 proteins, ")


@pytest.mark.parametrize("variable", ["BIOXFER_CACHE", "TORCH_HOME"])
def test_the_home_of_nobody_is_one_sentence(bench, monkeypatch, variable):
    monkeypatch.setenv(variable, "~nosuchuser/x")
    assert run("--help").code == 0
    ended = bench.embed(bench.fasta) if variable == "BIOXFER_CACHE" else run("models", "list")
    assert ended.code == 2
    assert one_sentence(ended.err).startswith(
        "bioxfer: '~nosuchuser/x' begins with a home folder that does not exist"
    )


def test_a_signal_that_kept_nothing_from_ending_well_changes_nothing(monkeypatch):
    class Deaf:
        def __del__(self):  # what is raised here is swallowed
            signal.raise_signal(signal.SIGTERM)

    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    def command() -> None:
        Deaf()

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        with pytest.raises(SystemExit) as end:
            run_app(app, [])
    finally:
        for number, handler in before.items():  # children would inherit what is ignored
            signal.signal(number, handler)
    assert end.value.code == 0


def test_messages_go_to_stderr_as_much_as_wanted(bench):
    source = bench.write("in.fasta", ">dna\n" + "ACGT" * 10 + "\n")
    assert bench.predict(source, "--quiet").err == ""
    usual = bench.predict(source).err.splitlines()
    assert len(usual) == 2
    assert usual[1] == f"bioxfer: {bench.out}: 1 record (1 ok)"
    assert set(usual) < set(bench.predict(source, "--verbose").err.splitlines())
    assert logging.getLogger("bioxfer").handlers == []  # the tests left no handler behind


# Cache, network, signals, pipes.


def test_a_second_run_is_served_by_the_cache(bench, runs, monkeypatch):
    bench.predict(bench.fasta)
    first = bench.out.read_bytes()
    assert sum(map(len, runs)) == 6
    runs.clear()
    bench.predict(bench.fasta)
    assert (runs, bench.out.read_bytes()) == ([], first)
    assert bench.predict(bench.fasta, "--no-resume").code == 0
    assert (sum(map(len, runs)), bench.out.read_bytes()) == (6, first)
    monkeypatch.setenv("BIOXFER_CACHE", str(bench.folder / "new"))
    bench.predict(bench.fasta, "--no-resume")
    assert not (bench.folder / "new").exists()
    monkeypatch.setenv("BIOXFER_CACHE", str(bench.fasta))
    code, _, err = bench.predict(bench.fasta)
    assert code == 3
    assert "BIOXFER_CACHE" in one_sentence(err)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_head_on_own_weights_asks_for_them(bench, command):
    source = bench.write("new.csv", "id,sequence,label\na,MKV,oily\n")
    words = [source, "-o", bench.out, "--head", bench.head] if command == "predict" else [bench.head, source]
    code, _, err = run(command, *words)
    assert code == 3
    assert "'taste' was trained on weights called 'toy'; give them with --model FILE" in one_sentence(err)


# Training and judging.


def labelled(bench: Bench, *columns: str) -> Path:
    return bench.write("labelled.csv", table(proteins(60, seed=1), *columns))


@pytest.fixture
def _short_path(monkeypatch):
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1, 0.01))


@pytest.mark.usefixtures("_short_path")
def test_train_evaluate_show_and_predict_belong_together(bench):
    sequences = bench.write("train.fasta", fasta(proteins(60, seed=1)))
    labels = labelled(bench, "id", "label")
    made = bench.folder / "sweet.safetensors"
    common = ["--head", "linear", "--pool", "mean", "--model", bench.weights, "--cluster-by", "kmer"]
    code, out, err = run(
        *("train", sequences, "--labels", labels, "-o", made, *common),
        *("--licence", "CC0-1.0", "--intended-use", "Tests.", "--limit", "Toy proteins only."),
    )
    assert code == 0, err
    card = out.decode()
    for words in (
        "sweet: multiclass, linear head on toy",
        "train.fasta, labelled.csv, 60 proteins",
        "CC0-1.0",
    ):
        assert words in card
    for row in ("sweet", "majority", "composition", "dipeptides", "nearest"):
        assert re.search(rf"^{row} +\d\.\d{{3}}", card, re.MULTILINE), row
    assert "limit: Toy proteins only." in card
    assert run("heads", "show", made).out == out
    assert json.loads(run("heads", "show", made, "--json").out)["data"]["licence"] == "CC0-1.0"
    assert run("train", sequences, "--labels", labels, "-o", made, *common).code == 3  # it exists

    code, out, err = run(
        *("evaluate", made, sequences, "--labels", labels, "--model", bench.weights, "--cluster-by", "kmer")
    )
    assert code == 0
    rows = {row["metric"]: row for row in csv.DictReader(io.StringIO(out.decode()))}
    assert rows["proteins"]["value"] == rows["trained_on"]["value"] == "60"
    assert "60 of 60 proteins bear ids" in err
    assert float(rows["accuracy"]["low"]) <= float(rows["accuracy"]["value"]) <= 1

    source = bench.write("new.fasta", fasta(proteins(20, seed=2)))
    code, out, _ = run("predict", source, "-o", "-", "--head", made, "--model", bench.weights)
    found = [row["sweet"] for row in csv.DictReader(io.StringIO(out.decode()))]
    assert code == 0
    assert sum(f == r.label for f, r in zip(found, proteins(20, seed=2), strict=True)) >= 17


@pytest.mark.usefixtures("_short_path")
def test_train_reads_one_table_with_labels_and_split(bench):
    records = proteins(60, seed=1)
    sides = ["train", "valid", "test"]
    rows = [f"{r.id},{r.sequence},{r.label},{sides[(n // 2) % 3]}" for n, r in enumerate(records)]
    source = bench.write("all.csv", "\n".join(["id,sequence,label,split", *rows]) + "\n")
    made = bench.folder / "h.safetensors"
    code, out, err = run(
        *("train", source, "-o", made, "--split", "column", "--head", "nearest"),
        *("--model", bench.weights, "--cluster-by", "kmer"),
    )
    assert code == 0, err
    assert "20 for training, 20 held out" in out.decode()
    assert "left out by their split: 20 of 'test'" in err


def test_sequences_without_any_label_are_refused(bench):
    code, _, err = run("train", bench.fasta, "-o", bench.folder / "h.safetensors", "--model", bench.weights)
    assert code == 3
    assert "--labels" in one_sentence(err)


def test_a_label_that_the_head_does_not_know_is_refused(bench):
    source = bench.write("new.csv", "id,sequence,label\na,MKV,sour\n")
    code, _, err = run("evaluate", bench.head, source, "--model", bench.weights)
    assert code == 3
    assert "sour" in one_sentence(err)


def test_what_a_command_reads_it_does_not_replace(bench):
    made = bench.folder / "made.safetensors"
    source, kept = labelled(bench, "id", "sequence", "label"), bench.weights.read_bytes()
    for words in (
        ["train", source, "--model", bench.weights, "-o", bench.weights, "--overwrite"],
        ["pretrain", bench.fasta, "--steps", 1, "-o", made, "--checkpoint", made],
        ["pretrain", bench.fasta, "--steps", 1, "-o", made, "--checkpoint", bench.fasta],
    ):
        code, _, err = run(*words)
        assert code == 3
        assert re.search(r"output .* is the input", one_sentence(err))
    assert bench.weights.read_bytes() == kept
    assert bench.fasta.read_text() == fasta(proteins(6))
    assert not made.exists()


@pytest.mark.usefixtures("_short_path")
def test_train_and_evaluate_translate_too(bench):
    codon = {"A": "GCT", "D": "GAT", "E": "GAA", "F": "TTT", "G": "GGT", "I": "ATT", "K": "AAA", "L": "CTT",
             "M": "ATG", "N": "AAT", "Q": "CAA", "R": "CGT", "S": "TCT", "T": "ACT", "V": "GTT",
             "W": "TGG"}  # fmt: skip
    records = proteins(24, seed=1)
    rows = [f"{r.id},{''.join(map(codon.get, r.sequence))}TAA,{r.label}" for r in records]
    coding = bench.write("cds.csv", "\n".join(["id,sequence,label", *rows]) + "\n")
    plain = bench.write("plain.csv", table(records, "id", "sequence", "label"))
    made = {}
    for source, options in ((coding, ["--translate", "cds"]), (plain, [])):
        head = bench.folder / f"{source.stem}.safetensors"
        common = ["--model", bench.weights, "--cluster-by", "kmer"]
        code, _, err = run(
            *("train", source, "-o", head, "--name", "taste", "--head", "nearest", *common, *options)
        )
        assert code == 0, err
        card = json.loads(run("heads", "show", head, "--json").out)
        code, out, err = run("evaluate", head, source, *common, *options)
        assert code == 0, err
        made[source] = (card["data"]["sha256"], card["metrics"], out)
    assert made[coding] == made[plain]


def test_pretrain_writes_weights_that_embed(bench):
    made = bench.folder / "own.safetensors"
    sizes = ["--width", 64, "--layers", 1, "--steps", 2, "--batch-tokens", 512]
    code, out, err = run("pretrain", bench.fasta, "-o", made, *sizes, "--valid", bench.fasta)
    assert code == 0, err
    assert b"perplexity" in out
    assert run("embed", bench.fasta, "-o", bench.out, "--model", made).code == 0
    assert len(bench.rows()) == 6
    assert json.loads(run("models", "show", made).out)["steps"] == 2


# What is here.


def test_models_and_heads_are_listed(bench):
    code, out, _ = run("models", "list")
    rows = [line.split("\t") for line in out.decode().splitlines()]
    assert code == 0
    assert rows[0] == ["name", "family", "layers", "width", "parameters", "where"]
    assert ("compact", "embedded") in {(row[0], row[-1]) for row in rows}
    assert len(rows) == 14
    code, out, _ = run("models", "verify", bench.weights)
    assert code == 0
    assert out.startswith(str(bench.weights).encode())
    code, out, _ = run("heads", "list")
    assert code == 0
    assert [line.split("\t")[0] for line in out.decode().splitlines()] == ["name", *list_heads()]


def test_a_download_is_announced_and_its_place_printed(bench, monkeypatch):
    def fetch(name, *, progress, into, **options):
        progress(1_000_000, 30_000_000)
        progress(30_000_000, 30_000_000)
        return Path(into, f"{name}.pt")

    monkeypatch.setattr("bioxfer.backbones.download_backbone", fetch)
    code, out, err = run("models", "download", "esm2_t6_8M_UR50D", "--into", bench.folder)
    assert (code, out.decode()) == (0, f"{bench.folder}/esm2_t6_8M_UR50D.pt\n")
    assert one_sentence(err) == "bioxfer: fetching esm2_t6_8M_UR50D, 30 MB"


def test_models_show_prints_the_card(bench):
    assert json.loads(run("models", "show", bench.weights).out) == {"corpus": "none: random weights"}
    assert run("models", "show").code == 0
    code, _, err = run("models", "show", bench.fasta)
    assert code == 3
    assert "in.fasta" in one_sentence(err)


def test_threads_are_taken_as_given(bench, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert bench.embed(bench.fasta, "--threads", 1).code == 0
    assert 1 in asked


@pytest.mark.skipif(not list_heads(), reason="no ready heads in this installation")
def test_the_demo_predicts_with_every_ready_head(tmp_path):
    out = tmp_path / "predictions.csv"
    code, _, err = run("predict", DEMO, "-o", out, "--offline")
    found = pd.read_csv(out)
    assert code == 0
    assert "16 records (16 ok)" in err
    assert list(found["id"].str.split("|").str[2])[:2] == ["HBA_HUMAN", "HBB_HUMAN"]
    columns = [f"{name}{end}" for name in list_heads() for end in ("", "_score", "_nearest", "_flag")]
    assert list(found.columns) == ["id", "length", "status", "message", *columns]
    assert len(found) == 16
    columns.remove("melting_temperature_score")  # a number has no probability
    assert found[columns].notna().all(axis=None)


@pytest.mark.skipif(not list_heads(), reason="no ready heads in this installation")
@pytest.mark.parametrize("name", list_heads())
def test_ready_heads_show_their_cards(name):
    card = run("heads", "show", name).out.decode()
    assert card.startswith(f"{name}: ")
    assert "majority" in card


def test_the_toy_head_is_worth_asking():
    """What other tests rest on: it tells the classes apart."""
    assert head().card["metrics"]["accuracy"]["value"] > 0.8
