"""Nothing let in: no code in data, no path in an id, no socket unasked for, no file where others may write.

The commands run in a process of their own under an audit hook, which sees every file, socket, program and
pickle whoever opens it. What a user reads of each refusal is test_faults.py's.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from test_architecture import MODULES, called, imported, name_of, package_of, tree_of
from toys import esm2_file, proteins, run, write_head, write_weights

from bioxfer import homology
from bioxfer.cache import shelter_compiler
from bioxfer.cli import app

# What the process of the commands does: see all that anyone opens, run each command, tell how it ended.
WATCHER = """
import json, os, sys
sys.dont_write_bytecode = True  # the interpreter's own files are not what is watched
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.")
WATCHED = ("socket.", "pickle.", "os.mkdir", "os.chmod", *PROGRAMS)

def watch(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        args = (os.fspath(args[0]) if not isinstance(args[0], int) else args[0], args[2])
    elif not event.startswith(WATCHED):
        return
    plain = [x if isinstance(x, (str, int, list, tuple)) else repr(x) for x in args]
    line = json.dumps([event, plain], default=repr)
    os.write(log, line.encode("utf-8", "surrogateescape") + b"\\n")
    if event.startswith("socket."):
        raise PermissionError("no sockets here")

sys.addaudithook(watch)
"""
COMMANDER = """
from bioxfer.cli import main
import bioxfer.solvers
bioxfer.solvers.PENALTIES = (0.1, 0.01)
os.umask(0o022)
codes = []
for words in json.load(open(sys.argv[2])):
    os.write(log, (json.dumps(["command", words]) + "\\n").encode())
    try:
        main(words)
    except SystemExit as end:
        codes.append(end.code or 0)
json.dump(codes, open(sys.argv[3], "w"))
"""

HOSTILE = [
    "../../x", "../out.csv", "/absolute", "C:\\x", "x" * 300, "A", "a", "\x01\x1b[2J", "tab\there",
    "line\nbreak", "-rf", "--threads=64", "-o/x", "~", "$(touch canary)", "`touch canary`",
    "; touch canary", "| touch canary", "nul.csv", ".", "..", "%2e%2e%2fx", "file:///x",
]  # fmt: skip


@dataclass(frozen=True)
class Session:
    """What a process did that ran some commands."""

    folder: Path
    codes: list[int]
    said: str
    events: list[tuple[list[str], str, list]]  # command, event, its arguments

    def of(self, *names: str) -> list[tuple[list[str], str, list]]:
        return [entry for entry in self.events if entry[1].startswith(names)]


def run_watched(folder: Path, commands: list[list[object]]) -> Session:
    """Run commands in a fresh process under the audit hook."""
    ground = folder.parents[2]
    log, asked, ended = (ground / name for name in ("events.jsonl", "commands.json", "codes.json"))
    log.write_bytes(b"")
    asked.write_text(json.dumps([[str(word) for word in words] for words in commands]))
    places = {"HOME": "home", "TMPDIR": "temporary", "BIOXFER_CACHE": "cache", "TORCH_HOME": "torch"}
    for name in places.values():
        (ground / name).mkdir(exist_ok=True)
    variables = {name: str(ground / place) for name, place in places.items()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BIOXFER_", "TORCH", "MPL", "XDG_"))}
    told = subprocess.run(
        [sys.executable, "-c", WATCHER + COMMANDER, log, asked, ended],
        cwd=folder,
        env={**kept, **variables, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr.decode(errors="replace")[-3000:]
    events, command = [], []
    for line in log.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        name, args = json.loads(line)
        if name == "command":
            command = args
        else:
            events.append((command, name, args))
    codes = json.loads(ended.read_text())
    for file in (log, asked, ended):
        file.unlink()
    return Session(folder, codes, told.stderr.decode(errors="replace"), events)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def prepare(ground: Path) -> Path:
    """Make a folder deep enough for ids that climb, with toys and proteins under hostile ids."""
    folder = ground / "one" / "two" / "three"
    folder.mkdir(parents=True)
    write_weights(folder)
    write_head(folder)
    records = proteins(len(HOSTILE) + 7)
    names = [*HOSTILE, *(record.id for record in records[len(HOSTILE) :])]
    named = [replace(record, id=name) for record, name in zip(records, names, strict=True)]
    (folder / "in.csv").write_text(as_csv(named, "id", "sequence", "label"))
    (folder / "bare.csv").write_text(as_csv(named, "id", "sequence"))
    (folder / "esm").mkdir()
    torch.save({"label": "p", "mean_representations": {6: torch.ones(3)}}, folder / "esm" / "p.pt")
    (folder / "source.csv").write_text(as_csv(proteins(24, seed=1), "id", "sequence", "label"))
    return folder


def as_csv(records: list, *columns: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(record, column) for column in columns] for record in records)
    return text.getvalue()


def every_command() -> list[list[str]]:
    """Each command once, on toys and on the embedded backbone."""
    toy, head, over = ["--model", "toy.safetensors"], ["--head", "taste.safetensors"], ["--overwrite"]
    kmer = ["--cluster-by", "kmer"]  # quicker than to start mmseqs, which split does
    return [
        ["predict", "bare.csv", "-o", "ready.csv", *over],
        ["predict", "bare.csv", "-o", "p.csv", *head, *toy, *over],
        ["embed", "bare.csv", "-o", "v.csv", *over],
        *(["embed", "bare.csv", "-o", f"v.{suffix}", *toy, *over] for suffix in ("npz", "csv.gz")),
        ["embed", "bare.csv", "-o", "r.npz", "--per-residue", *toy, *over],
        ["convert", "v.npz", "-o", "c.csv", "--fasta", "bare.csv", *over],
        ["convert", "esm", "-o", "c.npz", *over],
        ["embed", "bare.csv", "-o", "m.csv", "--shard", "1/1", *toy, *over],
        ["merge", "-o", "m.csv", "--input", "bare.csv", *over],
        ["train", "in.csv", "-o", "h.safetensors", "--head", "linear", *kmer, *toy, *over],
        [
            *("transfer", "in.csv", "--source", "source.csv", "-o", "t.safetensors", "--sizes", ""),
            *("--head", "linear", *kmer, *toy, *over),
        ],
        ["evaluate", "taste.safetensors", "in.csv", *toy],
        ["split", "in.csv", "-o", "s.csv", *over],
        [
            "pretrain",
            "bare.csv",
            "-o",
            "w.safetensors",
            "--steps",
            "2",
            "--width",
            "64",
            "--layers",
            "1",
            *over,
        ],
        ["models", "list"],
        ["models", "show"],
        ["models", "download", "compact"],
        ["models", "verify", "compact"],
        ["models", "verify", "toy.safetensors"],
        ["heads", "list"],
        ["heads", "show", "taste.safetensors"],
        ["heads", "plot", "taste.safetensors", "-o", "plot.svg", *over],
        ["doctor"],
    ]


MADE = {
    "ready.csv", "p.csv", "v.csv", "v.npz", "v.csv.gz", "r.npz", "c.csv", "c.npz", "h.safetensors",
    "t.safetensors", "s.csv", "w.safetensors", "plot.svg",
    "m.csv", "m-00001-of-00001.csv", "m-00001-of-00001.csv.json",
}  # fmt: skip


def commands_of(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    inner = getattr(group, "commands", None)
    if inner is None:
        yield path, group
    for name, command in (inner or {}).items():
        yield from commands_of(command, (*path, name))


COMMANDS = dict(commands_of(typer.main.get_command(app)))


def name_of_command(words: list[str]) -> tuple[str, ...]:
    return tuple(words[:2]) if tuple(words[:2]) in COMMANDS else (words[0],)


def with_offline(words: list[str]) -> list[str]:
    options = {parameter.name for parameter in COMMANDS[name_of_command(words)].params}
    return [*words, "--offline"] if "offline" in options else words


@pytest.fixture(scope="module", params=["plain", "offline"])
def session(request, tmp_path_factory) -> Session:
    """Every command, once as it is and once with --offline."""
    pytest.importorskip("matplotlib")
    ground = tmp_path_factory.mktemp("ground")
    folder = prepare(ground)
    before = tree(ground)
    commands = every_command()
    done = run_watched(folder, commands if request.param == "plain" else list(map(with_offline, commands)))
    assert done.codes == [0] * len(commands), done.said[-3000:]
    made = {name for name in tree(ground) - before if not name.startswith(("cache/", "home/", "torch/"))}
    # Of the folder of temporary files nothing is left, and no id has made a file anywhere.
    assert made == {f"one/two/three/{name}" for name in MADE} | {"cache", "home", "torch", "temporary"}
    assert tree(ground / "cache") == {"embeddings.sqlite", "compiled"}
    assert tree(ground / "torch") == set()
    return done


def test_every_command_is_among_them():
    assert {name_of_command(words) for words in every_command()} == set(COMMANDS)


def test_no_command_opens_a_socket(session):
    """Without --distributed, which asks for processes that talk by sockets; see test_distributed.py."""
    assert session.of("socket.") == []


def test_no_command_unpickles(session):
    assert session.of("pickle.") == []


def test_the_only_program_is_mmseqs_and_gets_nothing_of_the_users(session):
    for command, event, args in session.of("subprocess.", "os.system", "os.exec", "os.posix_spawn"):
        assert event in ("subprocess.Popen", "os.posix_spawn"), (command, event, args)
        words = args[1]
        if words[0] == "fc-list" and command[:2] == ["heads", "plot"]:  # matplotlib looks for fonts
            continue
        assert Path(words[0]).name == "mmseqs", (command, words)
        assert not any(name in word for word in words[1:] for name in HOSTILE if len(name) > 3), words
        assert command[0] in ("split", "evaluate", "doctor"), command


def test_what_is_made_is_not_writable_for_all(session):
    ground = session.folder.parents[2]
    for path in (*session.folder.iterdir(), *(ground / "cache").iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path
    for command, _, args in session.of("os.chmod"):
        assert not args[1] & 0o022, (command, args)


def test_temporary_files_cannot_be_foreseen(session):
    """In a folder that all share, whoever knows a name in advance can put a link there."""
    temporary = str(session.folder.parents[2] / "temporary")
    for command, event, args in session.of("open", "os.mkdir"):
        path = str(args[0])
        if Path(path).parent == Path(temporary):
            sure = args[1] == 0o700 if event == "os.mkdir" else args[1] & os.O_EXCL
            assert sure, (command, event, args)


def test_an_id_stands_in_no_path_that_is_opened(session):
    for command, _, args in session.of("open", "os.mkdir"):
        path = str(args[0])
        assert path.startswith((str(session.folder.parents[2]), "/dev/", "/proc/")) or "/" not in path, (
            command,
            path,
        )
        assert not any(name in path for name in HOSTILE if len(name) > 3), (command, path)


# Hostile files


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def hostile_files(folder: Path) -> list[str]:
    """Write the canary in every disguise; the names of the files."""
    canary = Canary(folder / "canary")
    pickled = pickle.dumps(canary)
    names = ["evil.safetensors", "evil.pt", "evil.csv", "evil.fasta", "evil.npz", "evil.parquet", "evil.ckpt",
             "evil.h5", "evil.h5ad"]  # fmt: skip
    for name in names:
        (folder / name).write_bytes(pickled)
    torch.save({"model": canary, "args": None}, folder / "zipped.pt")
    torch.save({"model": canary}, folder / "old.pt", _use_new_zipfile_serialization=False)
    np.save(folder / "array.npy", np.array([canary], dtype=object), allow_pickle=True)
    (folder / "array.npy").rename(folder / "array.safetensors")
    torch.save({"model": canary}, folder / "state.ckpt")
    header = json.dumps({"__metadata__": {"format": "bioxfer-compact-1", "card": pickled.hex()}}).encode()
    (folder / "header.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + pickled)
    (folder / "record.pt").write_bytes(esm2_file())
    (folder / "record.pt.sha256").write_bytes(pickled)
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".pt", ".ckpt"))


def test_code_in_hostile_files_is_never_run(tmp_path):
    folder = prepare(tmp_path)
    sound = {path.name for path in folder.iterdir()}
    files = [name for name in hostile_files(folder) if name not in sound]
    toy = ["--model", "toy.safetensors"]
    short = ["pretrain", "bare.csv", "-o", "w.safetensors", "--steps", "1", "--width", "64"]
    commands = []
    for name in files:
        commands += [
            ["embed", "bare.csv", "-o", "v.csv", "--model", name],
            ["predict", "bare.csv", "-o", "p.csv", "--head", name],
            ["predict", "bare.csv", "-o", "p.csv", "--head", "taste.safetensors", "--model", name],
            ["train", "in.csv", "-o", "h.safetensors", "--model", name],
            ["transfer", "in.csv", "--source", "source.csv", "-o", "t.safetensors", "--model", name],
            ["evaluate", name, "in.csv"],
            ["heads", "show", name],
            ["heads", "plot", name, "-o", "plot.svg"],
            ["models", "show", name],
            ["models", "verify", name, "--sha256", "0" * 64],
            ["models", "verify", name],
            [*short, "--checkpoint", name],
        ]
    for name in ("evil.csv", "evil.fasta", "evil.npz", "evil.parquet"):
        commands += [
            ["embed", name, "-o", "v.csv", *toy],
            ["train", "bare.csv", "--labels", name, "-o", "h.safetensors", *toy],
            ["split", name, "-o", "s.csv"],
            ["pretrain", name, "-o", "w.safetensors", "--steps", "1", "--width", "64"],
        ]
    (folder / "esm" / "q.pt").write_bytes((folder / "zipped.pt").read_bytes())
    for name in ("evil.csv", "evil.npz", "evil.parquet", "evil.h5", "evil.h5ad", "esm"):
        commands.append(["convert", name, "-o", "c.csv"])
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "evil.pt", tmp_path / "torch" / "hub" / "checkpoints" / "esm2_t6_8M_UR50D.pt")
    commands += [["embed", "bare.csv", "-o", "v.csv", "--model", "esm2_t6_8M_UR50D", "--offline"], ["doctor"]]
    (tmp_path / "cache").mkdir()
    shutil.copy(folder / "evil.pt", tmp_path / "cache" / "embeddings.sqlite")
    commands.append(["embed", "bare.csv", "-o", "v.csv", *toy])  # the cache is set aside
    before = tree(folder)
    done = run_watched(folder, commands)
    assert not (folder / "canary").exists()
    assert done.of("pickle.", "socket.", "os.system", "os.exec") == []
    assert "Traceback" not in done.said
    ends = {tuple(words): code for words, code in zip(map(tuple, commands), done.codes, strict=True)}
    for words, code in ends.items():
        # To verify a file is to hash it and see that it is whole; what it holds is seen when it is loaded.
        hashed = words[:2] == ("models", "verify") and words[2].endswith(".pt") and len(words) == 3
        assert code == (0 if words == tuple(commands[-1]) else 3) or hashed, (words, code)
    # Records of what was looked at may be there; nothing that a command was asked for is.
    made = tree(folder) - before
    assert {name for name in made if not name.endswith(".sha256")} == {"v.csv"}


def test_the_canary_sings_and_the_watcher_hears(tmp_path):
    """The tests above would pass on ones that cannot."""
    log = tmp_path / "log"
    log.touch()
    (tmp_path / "evil").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    code = (
        "import pickle, socket, tempfile\n"
        "pickle.load(open(sys.argv[2], 'rb'))\n"
        "open(sys.argv[2], 'a').close()\n"
        "try: socket.create_connection(('127.0.0.1', 9))\n"
        "except PermissionError: pass"
    )
    subprocess.run([sys.executable, "-c", WATCHER + code, log, tmp_path / "evil"], check=True)
    assert (tmp_path / "canary").is_dir()
    heard = [json.loads(line)[0] for line in log.read_text().splitlines()]
    assert {"pickle.find_class", "os.mkdir", "open", "socket.getaddrinfo"} <= set(heard)


# Other programs


def test_what_torch_compiles_is_not_kept_where_others_may_put_it_first(tmp_path, monkeypatch):
    """Torch loads libraries and pickles from that folder, by default one of a known name in /tmp."""
    monkeypatch.setenv("BIOXFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    shelter_compiler()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "compiled")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/my/own")
    shelter_compiler()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/my/own"


@pytest.mark.parametrize("whose", ["another's", "everybody's", "nobody's home"])
def test_where_the_cache_folder_is_not_the_users_alone_what_torch_compiles_is_kept_for_the_process(
    tmp_path, monkeypatch, whose
):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("BIOXFER_CACHE", str(cache) if whose != "nobody's home" else "~nosuchuser/x")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if whose == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: 4321)
    else:
        cache.chmod(0o777)
    shelter_compiler()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")  # as it was before


@pytest.mark.parametrize("how", ["split", "train"])
def test_mmseqs_sees_neither_ids_nor_paths_of_the_users(tmp_path, monkeypatch, how):
    """Its arguments are names of ours, relative to a folder of ours that only we can enter."""
    folder = prepare(tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("bioxfer.solvers.PENALTIES", (0.1,))
    asked = []

    class Pretence:
        returncode = 0

        def __init__(self, command, *, cwd, shell=False, **_):
            assert isinstance(command, list)
            assert not shell
            assert stat.S_IMODE(Path(cwd).stat().st_mode) == 0o700
            asked.append(command)
            lines = (Path(cwd) / "q.fasta").read_text().splitlines()
            heads = [line for line in lines if line.startswith(">")]
            assert heads == [f">s{number}" for number in range(len(heads))]
            (Path(cwd) / "hits.tsv").write_text("")

        def communicate(self):
            return "", ""

    monkeypatch.setattr(homology.subprocess, "Popen", Pretence)
    Path("-rf.csv").write_bytes(Path("in.csv").read_bytes())
    words = {
        "split": ["split", "-o", "s.csv", "--cluster-by", "mmseqs", "--", "-rf.csv"],
        "train": [
            *("train", "-o", "h.safetensors", "--model", "toy.safetensors", "--head", "linear"),
            *("--cluster-by", "mmseqs", "--", "-rf.csv"),
        ],
    }
    ended = run(*words[how])
    assert ended.code == 0, ended.err
    assert asked
    for command in asked:
        assert command[:2] == ["mmseqs", "easy-search"]
        assert command[2:6] in (
            ["q.fasta", "q.fasta", "hits.tsv", "tmp"],
            ["q.fasta", "r.fasta", "hits.tsv", "tmp"],
        )
        assert not [word for word in command if "rf.csv" in word or "/" in word]


# The sources; picklers, eval, unpacking and shells are test_architecture.py's


@pytest.fixture(params=MODULES, ids=name_of)
def module(request) -> Path:
    return request.param


# Module or function: why it has no place here.
NO_PLACE = {
    "yaml": "its loaders make objects",
    "tarfile": "its archives name paths outside, links and devices",
    "imp": "runs files",
    "runpy": "runs files",
    "code": "runs text",
    "xml": "expands entities without end",
    "pty": "starts programs",
    "telnetlib": "opens sockets",
    "smtplib": "opens sockets",
    "transformers": "runs code of model folders",
}
NO_CALL = {
    "compile": "makes code of text",
    "__import__": "takes its name from data",
    "importlib.import_module": "takes its name from data",
    "tempfile.mktemp": "its name can be taken before the file is made",
    "os.popen": "goes through a shell",
    "os.umask": "changes what other files may be read by",
    "subprocess.getoutput": "goes through a shell",
    "subprocess.getstatusoutput": "goes through a shell",
    "torch.hub.load_state_dict_from_url": "unpickles what it fetches",
    "torch.hub.download_url_to_file": "fetches without a check",
    "torch.ops.load_library": "runs a file",
    "urllib.request.urlopen": "also opens file: and ftp:",
    "urllib.request.urlretrieve": "also opens file: and ftp:",
}
READ_HERE = {("report/svg.py", "xml")}  # reads only what matplotlib has drawn just before
LAST_WORDS = {"extract": "an archive's member names its own path", "from_pretrained": "may run remote code"}


def test_nothing_dangerous_is_imported_or_called(module):
    tree = tree_of(module)
    for name in imported(tree, package_of(module)):
        first = name.split(".")[0]
        if (name_of(module), first) not in READ_HERE:
            assert first not in NO_PLACE, f"{name_of(module)}: {name} {NO_PLACE[first]}"
    for name, call in called(tree):
        place = f"{name_of(module)}, line {call.lineno}: {name}"
        assert name not in NO_CALL, f"{place} {NO_CALL[name]}"
        assert "." not in name or name.rsplit(".", 1)[-1] not in LAST_WORDS, place


def test_libraries_are_loaded_from_beside_the_sources_alone(module):
    for name, call in called(tree_of(module)):
        if name.rsplit(".", 1)[-1] in ("CDLL", "PyDLL", "LoadLibrary"):
            assert name_of(module) == "backbones/kernels.py", f"line {call.lineno}"


def test_programs_get_lists_and_no_shell(module):
    tree = tree_of(module)
    lists = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for name, call in called(tree):
        if not name.startswith("subprocess."):
            continue
        if name.rsplit(".", 1)[-1][0].isupper() and name != "subprocess.Popen":
            continue  # exceptions and constants
        first = call.args[0]
        place = f"{name_of(module)}, line {call.lineno}"
        assert isinstance(first, ast.List) or (isinstance(first, ast.Name) and first.id in lists), place
        assert not {"shell", "executable", "preexec_fn"} & {keyword.arg for keyword in call.keywords}, place
