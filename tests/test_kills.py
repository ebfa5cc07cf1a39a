"""Kills, signals, full disks, closed doors and broken pipes, met by the command line itself.

Most children are forked from a nursery, a process that has imported all a command needs: one costs
milliseconds instead of a second, so that there can be many. Some are fresh processes all the same.
`BIOXFER_KILLS` is the number of SIGKILLs for each of embed, predict and train.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from toys import fasta, open_folder, proteins, run, table, unprivileged, write_head, write_weights

import bioxfer

if os.name != "posix":
    pytest.skip("kills, forks and limits of POSIX", allow_module_level=True)
import resource

KILLS = int(os.environ.get("BIOXFER_KILLS", "14"))
PACKAGE = Path(bioxfer.__file__).parents[1]
PATIENCE = 300.0  # seconds for a child that nobody disturbs; a busy machine is slow
AT_ONCE = 15.0  # seconds from a signal to the end; one or two where nothing else is at work
OLD = b"from before"


# --- the nursery: runs as a program of its own ------------------------------------------------------------


def tend(number: int) -> None:
    """Fork a child for each request; one thread, nothing computed here."""
    line = socket.socket(fileno=number)
    while True:
        data, descriptors, _, _ = socket.recv_fds(line, 2**16, 3)
        if not data:
            return
        order = json.loads(data)
        if "wait" in order:
            answer: Any = wait(order["wait"], order["seconds"])
        elif "modules" in order:
            answer = len([learn(name) for name in order["modules"]])
        else:
            answer = os.fork()
            if not answer:
                line.close()
                live(order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(json.dumps(answer).encode())


def learn(name: str) -> None:
    with contextlib.suppress(Exception):
        importlib.import_module(name)


def wait(pid: int, seconds: float) -> int | None:
    """Status of an ended child, or None after these seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.001)


def live(order: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be a child: the console command with these words, and a plan to go wrong."""
    code = 70
    try:
        for target, descriptor in enumerate(descriptors[:2], start=1):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        bytes_ = order.get("bytes")
        if bytes_ is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))
        for name in order.get("plans", ()):
            PLANS[name]()
        events = 0

        def count(name: str, arguments: object) -> None:
            nonlocal events
            if name in ("open", "os.rename", "os.remove", "os.chmod", "sqlite3.connect"):
                events += 1
                if events == order.get("die_at"):
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        from bioxfer.cli import main

        announce(descriptors[2])
        try:
            main(order["words"])
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        if order.get("report"):
            Path(order["report"]).write_text(json.dumps({"events": events, "modules": list(sys.modules)}))
    finally:
        os._exit(code)


def announce(descriptor: int) -> None:
    """Close a descriptor once the command listens to signals."""
    import typer.main

    plain = typer.main.get_command

    def get_command(app: Any) -> Any:
        os.close(descriptor)
        return plain(app)

    typer.main.get_command = get_command


def dawdle() -> None:
    """Sleep in the backbone, as a larger one would compute."""
    from bioxfer.backbones.compact import CompactBackbone

    fast = CompactBackbone.represent

    def represent(self: Any, sequences: Any, *, layers: Any) -> Any:
        time.sleep(0.01)
        return fast(self, sequences, layers=layers)

    CompactBackbone.represent = represent  # type: ignore[method-assign]


def keep_every_step() -> None:
    """Write a checkpoint of a pretraining after every step."""
    import bioxfer.pretrain

    bioxfer.pretrain.pretrain.__kwdefaults__["checkpoint_minutes"] = 0.0


def shorten() -> None:
    """Fit few heads, as the toys' own training does."""
    import bioxfer.solvers
    import bioxfer.transfer
    import bioxfer.trunks

    bioxfer.solvers.PENALTIES = (0.1, 0.01)  # type: ignore[assignment]
    bioxfer.trunks.STEPS = (8, 8)
    bioxfer.trunks.JOINT_STOPS = (4,)  # type: ignore[assignment]
    bioxfer.transfer.LAMBDAS = (1.0,)  # type: ignore[assignment]


def nohup() -> None:
    """Be started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def worker_raises() -> None:
    """Fail in the backbone."""
    from bioxfer.backbones.compact import CompactBackbone

    fast, calls = CompactBackbone.represent, iter(range(1, 1000))

    def represent(self: Any, sequences: Any, *, layers: Any) -> Any:
        if next(calls) == 5:
            raise RuntimeError("the fifth batch")
        return fast(self, sequences, layers=layers)

    CompactBackbone.represent = represent  # type: ignore[method-assign]


def reader_raises() -> None:
    """Fail while the input is read, as a disk does."""
    import bioxfer.lines

    class Dying(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            if self.tell() > 3000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    bioxfer.lines._CHUNK = 1000
    bioxfer.lines.open = Dying  # type: ignore[attr-defined]


def writer_raises() -> None:
    """Fail while the tenth row is written."""
    import bioxfer.output

    append, calls = bioxfer.output.TableWriter._append, iter(range(1, 1000))

    def fail(self: Any, row: Any) -> None:
        if next(calls) == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, row)

    bioxfer.output.TableWriter._append = fail  # type: ignore[method-assign]


PLANS: dict[str, Callable[[], None]] = {
    "dawdle": dawdle,
    "keep_every_step": keep_every_step,
    "nohup": nohup,
    "reader_raises": reader_raises,
    "shorten": shorten,
    "worker_raises": worker_raises,
    "writer_raises": writer_raises,
}


# --- its customer -----------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a child ended; a negative code is the signal that killed it."""

    code: int
    out: bytes
    err: str


class Child:
    """One run of the command."""

    def __init__(self, nursery: Nursery, pid: int, out: int | None, err: int) -> None:
        self._nursery, self.pid, self._out, self._err = nursery, pid, out, err

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # not yet waited for, so the number is still its own

    def end(self, seconds: float = PATIENCE) -> Ended:
        code = self._nursery.ask({"wait": self.pid, "seconds": seconds})
        if code is None:
            self.send(signal.SIGKILL)
            self._nursery.ask({"wait": self.pid, "seconds": PATIENCE})
        told = [b"" if number is None else read_all(number) for number in (self._out, self._err)]
        assert code is not None, f"still at work after {seconds} s; it said {told[1]!r}"
        return Ended(code, told[0], told[1].decode())


def read_all(number: int) -> bytes:
    with os.fdopen(number, "rb") as pipe:
        return pipe.read()


class Nursery:
    """Forks children that have imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PACKAGE}:{Path(__file__).parent}"},
        )
        theirs.close()

    def ask(self, order: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        socket.send_fds(self._line, [json.dumps(order).encode()], descriptors)
        return json.loads(self._line.recv(2**16))

    def start(self, *words: object, cache: Path, out: int | None = None, **plan: Any) -> Child:
        """Begin a command; without `out`, a descriptor, its standard output is kept for the end."""
        kept, target = os.pipe() if out is None else (None, out)
        err, errors = os.pipe()
        listens, begun = os.pipe()
        environment = {"BIOXFER_CACHE": str(cache), "OMP_NUM_THREADS": "1", **plan.pop("environment", {})}
        order = {
            "words": [str(word) for word in words],
            "environment": environment,
            "folder": str(self._folder),
            **plan,
        }
        pid = self.ask(order, [target, errors, begun])
        os.close(errors)
        os.close(begun)
        if out is None:
            os.close(target)
        read_all(listens)  # nothing, and so it ends when the command listens
        return Child(self, pid, kept, err)

    def run(self, *words: object, cache: Path, **plan: Any) -> Ended:
        return self.start(*words, cache=cache, **plan).end()

    def learn(self, *words: object, cache: Path, **plan: Any) -> int:
        """Run a command to its good end, import what it imported, and count where it can be killed."""
        report = self._folder / "report.json"
        ended = self.run(*words, cache=cache, report=str(report), **plan)
        assert ended.code == 0, ended.err
        told = json.loads(report.read_text())
        for start in range(0, len(told["modules"]), 500):
            self.ask({"modules": told["modules"][start : start + 500]})
        return int(told["events"])

    def close(self) -> None:
        self._line.close()
        self._process.wait(PATIENCE)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


# --- what is run ------------------------------------------------------------------------------------------


class Work:
    """A folder with inputs, and commands on them that each write one file."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.folder = nursery, folder
        self.weights, self.head = write_weights(folder), write_head(folder)
        self.fasta = self._write("in.fasta", fasta(proteins(120)))
        self.labels = self._write("labels.csv", table(proteins(60, seed=1), "id", "sequence", "label"))
        self.source = self._write("source.csv", table(proteins(60, seed=5), "id", "sequence", "label"))
        self._known: dict[tuple[str, str], tuple[bytes, float, int]] = {}

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def words(self, command: str, out: Path) -> list[object]:
        """The command line, with a small batch, so that there are many."""
        model = ["-o", out, "--model", self.weights, "--overwrite", "--threads", 1]
        if command in ("embed", "predict"):
            words = [command, self.fasta, *model, "--batch-tokens", 300]
            return words if command == "embed" else [*words, "--head", self.head]
        if command == "pretrain":
            size = ["--width", 64, "--layers", 1, "--steps", 6, "--batch-tokens", 512]
            state = ["--checkpoint", out.with_name("state.safetensors"), "--overwrite", "--threads", 1]
            return [command, self.fasta, "-o", out, *size, *state]
        learning = [*model, "--cluster-by", "kmer", "--batch-tokens", 300]
        if command == "train":
            return [command, self.labels, *learning, "--head", "linear"]
        state = ["--checkpoint", out.with_name("state.safetensors"), "--sizes", "16", "--draws", 1]
        return [command, self.labels, "--source", self.source, *learning, *state]

    def place(self, name: str, suffix: str) -> Path:
        """An output of its own folder, with an older file in it."""
        folder = self.folder / name
        folder.mkdir()
        out = folder / f"out{suffix}"
        out.write_bytes(OLD)
        return out

    def whole(self, command: str, suffix: str) -> tuple[bytes, float, int]:
        """Bytes of an uninterrupted run, its seconds, and the places where it can be killed."""
        if (command, suffix) not in self._known:
            out = self.place(f"whole-{command}{suffix}", suffix)
            words, cache = self.words(command, out), out.parent / "cache"
            for _ in range(1 if command == "transfer" else 2):  # the second time without imports
                forget(out)
                start = time.monotonic()
                events = self.nursery.learn(*words, cache=cache, plans=PLANS_OF[command])
                seconds = time.monotonic() - start
            self._known[command, suffix] = out.read_bytes(), seconds, events
        return self._known[command, suffix]


PLANS_OF = {
    "embed": ["dawdle"],
    "predict": ["dawdle"],
    "train": ["dawdle", "shorten"],
    "transfer": ["shorten"],
    "pretrain": ["keep_every_step"],
}


@pytest.fixture(scope="module")
def work(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(nursery, tmp_path_factory.mktemp("work"))


def forget(out: Path) -> None:
    """Remove cache and checkpoint."""
    shutil.rmtree(out.with_name("cache"), ignore_errors=True)
    out.with_name("state.safetensors").unlink(missing_ok=True)


def strays(folder: Path) -> list[Path]:
    """Temporary files that were left behind."""
    return list(folder.rglob(".bioxfer*"))


def look_over(cache: Path) -> int:
    """Check that a cache can be read as it is, and count its values."""
    file = cache / "embeddings.sqlite"
    assert not list(cache.glob("*.damaged*"))
    if not file.exists():
        return 0
    connection = sqlite3.connect(file)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return 0
        return int(connection.execute("SELECT count(*) FROM bioxfer_embedding_1").fetchone()[0])
    finally:
        connection.close()


# --- killed -----------------------------------------------------------------------------------------------

SUFFIXES = {
    "embed": (".csv", ".npz", ".h5", ".parquet", ".csv.gz"),
    "predict": (".csv", ".parquet", ".csv.gz"),
    "train": (".safetensors",),
    "transfer": (".safetensors",),
    "pretrain": (".safetensors",),
}
LIVES = 4  # kills before a run is let through


def kill_again_and_again(work: Work, command: str, kills: int, *, seed: int = 0) -> Counter[str]:
    """SIGKILL a command at random moments, by the clock and by what it does to files, and resume it.

    Returns
    -------
    Counter
        Kills by what had been written at that moment.
    """
    dice = random.Random(f"{command} {seed}")
    phases: Counter[str] = Counter()
    saga = 0
    while phases.total() < kills:
        suffix = SUFFIXES[command][saga % len(SUFFIXES[command])]
        needed(suffix)
        wanted, seconds, events = work.whole(command, suffix)
        out = work.place(f"{command}-{seed}-{saga}", suffix)
        cache, words = out.parent / "cache", work.words(command, out)
        plan = {"cache": cache, "plans": PLANS_OF[command]}
        for life in range(min(LIVES, kills - phases.total())):
            before = set(strays(out.parent))
            if life % 2:
                ended = work.nursery.run(*words, **plan, die_at=dice.randint(1, events))
            else:
                child = work.nursery.start(*words, **plan)
                time.sleep(dice.random() ** 2 * seconds)  # early ones oftener, as what resumes is quicker
                child.send(signal.SIGKILL)
                ended = child.end()
            assert ended.code in (-signal.SIGKILL, 0), ended.err
            assert out.read_bytes() in ((OLD, wanted) if ended.code else (wanted,))
            known = look_over(cache)
            if ended.code:
                phases[phase(out, known, before)] += 1
            else:  # it was quicker; with all in its cache or checkpoint, so would be the next
                forget(out)
            out.write_bytes(OLD)
        left = strays(out.parent)
        ended = work.nursery.run(*words, **plan)
        assert ended.code == 0, ended.err
        assert "damaged" not in ended.err
        assert out.read_bytes() == wanted
        assert not strays(out.parent), f"{len(left)} were left by {LIVES} kills"
        saga += 1
    return phases


def needed(suffix: str) -> None:
    package = {".h5": "h5py", ".parquet": "pyarrow"}.get(suffix)
    if package:
        pytest.importorskip(package)


def phase(out: Path, known: int, before: set[Path]) -> str:
    if out.read_bytes() != OLD:
        return "output replaced"
    if set(strays(out.parent)) - before:
        return "output begun"
    state = out.with_name("state.safetensors").exists()
    return "checkpoint or cache begun" if known or state else "nothing written"


@pytest.mark.parametrize(
    ("command", "share"), [("embed", 1), ("predict", 1), ("train", 1), ("transfer", 0.2), ("pretrain", 0.4)]
)
def test_f20_killed_at_any_moment_and_resumed_it_ends_with_the_same_bytes(work, command, share):
    kills = round(KILLS * share)
    assert kill_again_and_again(work, command, kills).total() == kills


def test_f20_fresh_processes_killed_from_the_first_import_to_the_rename(work):
    dice = random.Random(3)
    wanted, _, _ = work.whole("embed", ".csv")
    out = work.place("fresh", ".csv")
    command = [sys.executable, "-m", "bioxfer", *map(str, work.words("embed", out))]
    environment = {**os.environ, "BIOXFER_CACHE": str(out.parent / "cache"), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run(command, cwd=PACKAGE, env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - start
    assert out.read_bytes() == wanted
    out.write_bytes(OLD)
    shutil.rmtree(out.parent / "cache")
    for place in range(max(3, KILLS // 5)):
        child = subprocess.Popen(command, cwd=PACKAGE, env=environment, stderr=subprocess.PIPE)
        time.sleep((place + dice.random()) / max(3, KILLS // 5) * seconds)
        child.kill()
        child.communicate()
        assert out.read_bytes() in (OLD, wanted)
        look_over(out.parent / "cache")
    out.write_bytes(OLD)
    subprocess.run(command, cwd=PACKAGE, env=environment, check=True, capture_output=True)
    assert out.read_bytes() == wanted
    assert not strays(out.parent)


# --- told to stop -----------------------------------------------------------------------------------------

TOLD = {
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (143, "terminated"),
    signal.SIGHUP: (129, "hung up"),
}
GOES_ON = "run it again, what it keeps (cache, checkpoint, parts) is not made twice"


SIGNALS = ("TERM", "INT", "HUP", "TERM TERM", "INT INT", "INT TERM", "HUP HUP TERM")


@pytest.mark.parametrize(
    ("command", "signals"),
    [(command, signals) for command in ("embed", "predict") for signals in SIGNALS]
    + [("train", signals) for signals in ("TERM", "INT TERM")],
)
def test_f26_signals_at_any_moment_end_it_with_one_sentence(work, command, signals):
    dice = random.Random(f"{command} {signals}")
    numbers = [getattr(signal, f"SIG{name}") for name in signals.split()]
    wanted, seconds, _ = work.whole(command, SUFFIXES[command][0])
    out = work.place(f"{command} {signals}", SUFFIXES[command][0])
    words, plan = work.words(command, out), {"cache": out.parent / "cache", "plans": PLANS_OF[command]}
    for _ in range(max(2, KILLS // 5) if command != "train" else 1):
        out.write_bytes(OLD)
        child = work.nursery.start(*words, **plan)
        time.sleep(dice.random() * 0.8 * seconds)
        for number in numbers:
            child.send(number)
            time.sleep(dice.choice((0, 0.002, 0.01)))
        ended = child.end(AT_ONCE)
        if ended.code == 0:  # it was quicker
            assert out.read_bytes() == wanted
            continue
        # of two that come at once, either may be heard first
        told = [(code, [f"bioxfer: {word}; {GOES_ON}"]) for code, word in map(TOLD.get, numbers)]
        assert (ended.code, ended.err.splitlines()[-1:]) in told
        assert "Traceback" not in ended.err
        assert "ignored" not in ended.err
        assert out.read_bytes() in (OLD, wanted)  # the signal may come when all is written
        assert not strays(out.parent)
        look_over(out.parent / "cache")
    ended = work.nursery.run(*words, **plan)
    assert (ended.code, out.read_bytes()) == (0, wanted)


def test_f26_a_signal_that_is_ignored_stays_so(work):
    wanted, _, _ = work.whole("embed", ".csv")
    out = work.place("nohup", ".csv")
    plans = [*PLANS_OF["embed"], "nohup"]
    child = work.nursery.start(*work.words("embed", out), cache=out.parent / "cache", plans=plans)
    time.sleep(0.1)
    child.send(signal.SIGHUP)
    assert child.end().code == 0
    assert out.read_bytes() == wanted


def test_f26_a_run_that_waits_for_the_cache_can_be_ended(work):
    out = work.place("locked", ".csv")
    cache = out.parent / "cache"
    words = work.words("embed", out)
    assert work.nursery.run(*words, cache=cache).code == 0
    out.write_bytes(OLD)
    holder = sqlite3.connect(cache / "embeddings.sqlite", isolation_level=None)
    holder.execute("DELETE FROM bioxfer_embedding_1")
    holder.execute("BEGIN IMMEDIATE")  # as another process that is stopped or slow
    child = work.nursery.start(*words, cache=cache)
    time.sleep(1)
    child.send(signal.SIGTERM)
    ended = child.end(AT_ONCE)
    holder.close()
    assert ended.code == 143, ended.err
    assert ended.err == f"bioxfer: terminated; {GOES_ON}\n"
    assert out.read_bytes() == OLD
    assert not strays(out.parent)


# --- no room ----------------------------------------------------------------------------------------------


def one_sentence(err: str, *, among: bool = False) -> str:
    """The last line, or the only one, with nothing of Python's own in any."""
    assert "Traceback" not in err
    assert "ignored" not in err
    lines = err.splitlines()
    assert lines, "no word of what is wrong"
    assert all(line.startswith("bioxfer: ") for line in lines)
    assert among or len(lines) == 1, err
    return lines[-1]


ROOM = {
    "embed": (".csv", ".tsv", ".csv.gz", ".csv.xz", ".npz", ".h5", ".parquet"),
    "predict": (".csv", ".csv.gz", ".parquet"),
    "train": (".safetensors",),
    "pretrain": (".safetensors",),
}


@pytest.mark.parametrize(
    ("command", "suffix"), [(command, suffix) for command, all_ in ROOM.items() for suffix in all_]
)
def test_f23_a_disk_that_fills_at_any_byte_is_one_sentence(work, command, suffix):
    needed(suffix)
    out = work.place(f"full-{command}{suffix}", suffix)
    words, plans = work.words(command, out), [plan for plan in PLANS_OF[command] if plan != "dawdle"]
    if command == "pretrain":
        words = [*words[: words.index("--checkpoint")], "--overwrite"]
    else:
        words.append("--no-resume")
    cache = out.parent / "cache"
    work.nursery.learn(*words, cache=cache, plans=plans)
    wanted = out.read_bytes()
    size = len(wanted)
    dice = random.Random(command + suffix)
    fills = [0, 1, size // 2, size - 1, *(dice.randrange(size) for _ in range(2))]
    for bytes_ in fills if command in ("embed", "predict") else fills[1:4]:
        out.write_bytes(OLD)
        ended = work.nursery.run(*words, cache=cache, plans=plans, bytes=bytes_)
        assert ended.code == 3, (bytes_, size, ended.err)
        told = one_sentence(ended.err, among=True)
        assert told == f"bioxfer: cannot write {out}: File too large; make room or choose another place"
        assert out.read_bytes() == OLD
        assert list(out.parent.iterdir()) == [out]
    if suffix != ".npz":  # whose numbers take a file of their own first
        ended = work.nursery.run(*words, cache=cache, plans=plans, bytes=size + 2**16)
        assert ended.code == 0, ended.err
        assert out.read_bytes() == wanted


def test_f23_a_full_disk_under_the_cache_is_one_sentence_and_finished_work_stays(work):
    wanted, _, _ = work.whole("embed", ".csv")
    known = 0
    for bytes_ in (0, 100, 5000, 20_000, 40_000):
        out = work.place(f"full-cache-{bytes_}", ".csv")
        cache = out.parent / "cache"
        plan = {"cache": cache}
        ended = work.nursery.run(*work.words("embed", out), **plan, bytes=bytes_)
        assert ended.code == 3, ended.err
        told = one_sentence(ended.err)
        assert told.startswith(f"bioxfer: the cache {cache / 'embeddings.sqlite'} cannot be used (")
        assert told.endswith("name another with BIOXFER_CACHE, or do without (--no-resume)")
        assert out.read_bytes() == OLD
        assert not strays(out.parent)
        known = max(known, look_over(cache))
        ended = work.nursery.run(*work.words("embed", out), **plan)
        assert (ended.code, out.read_bytes()) == (0, wanted), ended.err
    assert 0 < known < 120


@pytest.mark.parametrize("command", ["pretrain", "transfer"])
def test_f23_a_full_disk_under_the_checkpoint_is_one_sentence_and_the_old_one_stays(work, command):
    out = work.place(f"full-state-{command}", ".safetensors")
    state = out.with_name("state.safetensors")
    plan = {"cache": out.parent / "cache", "plans": PLANS_OF[command]}
    words = [*work.words(command, out), *(["--no-resume"] if command == "transfer" else [])]
    ended = work.nursery.run(*words, **plan, bytes=999)
    assert ended.code == 3, ended.err
    told = one_sentence(ended.err, among=True)
    assert told == f"bioxfer: cannot write {state}: File too large; make room or choose another place"
    assert list(out.parent.iterdir()) == [out]
    assert out.read_bytes() == OLD


# --- closed doors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["embed", "predict", "train", "split"])
def test_f42_a_folder_that_takes_no_file_is_told_before_the_work(command):
    with open_folder() as folder:
        words = simple_words(folder, command)
        assert run(*words, "--overwrite").code == 0  # imports, too, what nobody may read
        out = Path(words[words.index("-o") + 1])
        whole = out.read_bytes()
        out.parent.chmod(0o555)
        with unprivileged():
            code, _, err = run(*words, "--overwrite")
        assert code == 3
        told = one_sentence(err)
        assert told.endswith(f"cannot be written: folder {out.parent} is not writable; choose another")
        assert out.read_bytes() == whole
        assert list(out.parent.iterdir()) == [out]
        out.parent.chmod(0o777)


@pytest.mark.parametrize("place", ["closed/o.csv", "closed/more/o.csv"])
def test_f42_a_folder_that_may_not_be_entered_is_told_before_the_work(place):
    with open_folder() as folder:
        words = simple_words(folder, "predict")
        assert run(*words).code == 0
        words[words.index("-o") + 1] = folder / place
        (folder / "closed" / "more").mkdir(parents=True)
        (folder / "closed").chmod(0o600)
        with unprivileged():
            code, _, err = run(*words, "--overwrite")
        (folder / "closed").chmod(0o700)
        assert code == 3, err
        assert one_sentence(err).endswith("cannot be written: the way to it is closed to you; choose another")


@pytest.mark.parametrize("which", ["input", "head", "weights"])
def test_an_input_that_may_not_be_read_is_one_sentence(which):
    with open_folder() as folder:
        words = simple_words(folder, "predict")
        assert run(*words).code == 0
        closed = {"input": words[1], "head": words[-1], "weights": words[words.index("--model") + 1]}[which]
        Path(closed).chmod(0)
        with unprivileged():
            code, _, err = run(*words, "--overwrite", "--no-resume")
        assert code == 3, err
        told = one_sentence(err)
        assert str(closed) in told
        assert "Permission denied" in told


def test_a_cache_folder_that_takes_no_file_is_one_sentence(monkeypatch):
    with open_folder() as folder:
        words = simple_words(folder, "embed")
        assert run(*words).code == 0
        cache = folder / "cache"
        cache.mkdir()
        cache.chmod(0o555)
        monkeypatch.setenv("BIOXFER_CACHE", str(cache))
        with unprivileged():
            code, _, err = run(*words, "--overwrite")
        assert code == 3
        assert one_sentence(err).endswith("name another with BIOXFER_CACHE, or do without (--no-resume)")
        with unprivileged():
            assert run(*words, "--overwrite", "--no-resume").code == 0


def simple_words(folder: Path, command: str) -> list[object]:
    """A small command whose output lies in a folder of its own."""
    target = folder / "out"
    target.mkdir()
    target.chmod(0o777)
    labelled = folder / "labelled.csv"
    labelled.write_text(table(proteins(40, seed=1), "id", "sequence", "label"))
    if command == "split":
        return [command, labelled, "-o", target / "split.csv", "--cluster-by", "kmer"]
    words: list[object] = [command, labelled, "--model", write_weights(folder)]
    if command == "train":
        return [*words, "--cluster-by", "kmer", "--head", "linear", "-o", target / "out.safetensors"]
    words += ["-o", target / "out.csv"]
    return words if command == "embed" else [*words, "--head", write_head(folder)]


# --- several at one cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("writers", [2, 4])
@pytest.mark.parametrize("killed", [False, True])
def test_f24_writers_on_one_cache_all_end_right(work, writers, killed):
    dice = random.Random(writers)
    all_ = proteins(160)
    runs = []
    for number in range(writers):
        some = all_[number * 20 : number * 20 + 80]  # each shares most with its neighbours
        folder = work.folder / f"writers-{writers}-{killed}-{number}"
        folder.mkdir()
        source, alone, out = (folder / name for name in ("in.fasta", "alone.csv", "out.csv"))
        source.write_text(fasta(some))
        words = ["embed", source, "--model", work.weights, "--batch-tokens", 300, "--overwrite", "-o"]
        assert work.nursery.run(*words, alone, "--no-resume", cache=folder).code == 0
        runs.append(([*words, out], out, alone.read_bytes()))
    cache = work.folder / f"cache-{writers}-{killed}"
    for life in range(3 if killed else 1):
        children = [work.nursery.start(*words, cache=cache, plans=["dawdle"]) for words, _, _ in runs]
        for child in children if killed and life < 2 else ():
            time.sleep(dice.random() * 0.1)
            child.send(signal.SIGKILL)
        codes = {child.end().code for child in children}
        assert codes <= ({-signal.SIGKILL, 0} if killed and life < 2 else {0})
    for _, out, wanted in runs:
        assert out.read_bytes() == wanted
    assert look_over(cache) == 80 + 20 * (writers - 1)


# --- something inside breaks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "code", "told"),
    [
        ("worker_raises", 1, "RuntimeError: the fifth batch"),
        ("reader_raises", 3, "bioxfer: cannot read on in {source}: Input/output error"),
        ("writer_raises", 3, "bioxfer: cannot write {out}: No space left on device; make room or choose"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_f25_a_thread_that_dies_ends_the_run_with_its_cause(work, plan, code, told, threads):
    out = work.place(f"{plan}-{threads}", ".csv")
    words = [*work.words("embed", out), "--threads", threads]
    start = time.monotonic()
    ended = work.nursery.run(*words, cache=out.parent / "cache", plans=[plan])
    assert time.monotonic() - start < AT_ONCE
    assert ended.code == code
    assert ended.err.splitlines()[-1].startswith(told.format(source=work.fasta, out=out))
    assert code == 1 or one_sentence(ended.err)
    assert out.read_bytes() == OLD
    assert not strays(out.parent)
    look_over(out.parent / "cache")


UNREAD = "mmseqs easy-search wrote hits that cannot be read"
HITS = "s1\\ts0\\t0.9\\t0.9\\t0.9\\t50\\t30\\t30\\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo sorry >&2; exit 3", "mmseqs easy-search ended with status 3 (sorry)"),
        ("kill -9 $$", "mmseqs easy-search was killed by signal 9"),
        ("printf '\\377\\376 bad\\n' >&2; exit 1", "mmseqs easy-search ended with status 1 (\\xff\\xfe bad)"),
        ("exit 0", "mmseqs easy-search wrote no hits.tsv"),
        ("printf 'a b c\\n' > hits.tsv", UNREAD),
        ("printf 's1\\ts0\\tnan\\n' > hits.tsv", UNREAD),
        (f"printf '{HITS}' | sed s/s1/x1/ > hits.tsv", UNREAD),
        (f"printf '{HITS}' | sed s/s1/s9999/ > hits.tsv", UNREAD),
        (f"printf '{HITS}' | sed s/0.9/nan/ > hits.tsv", UNREAD),
        ("printf '\\377\\376' > hits.tsv", UNREAD),
        (None, "mmseqs cannot be started (Exec format error)"),
    ],
)
def test_a_search_program_that_fails_is_one_sentence(work, tmp_path, monkeypatch, script, told):
    others = "" if script is None else f":{os.environ['PATH']}"  # where the system would find the next
    monkeypatch.setenv("PATH", f"{fake_mmseqs(tmp_path, script)}{others}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    out = tmp_path / "split.csv"
    code, _, err = run("split", work.labels, "-o", out, "--cluster-by", "mmseqs")
    assert (code, out.exists()) == (3, False), err
    assert one_sentence(err) == f"bioxfer: {told}; use method 'kmer', which needs no mmseqs"
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


def fake_mmseqs(folder: Path, script: str | None) -> Path:
    """A program of this name; without a script it is none that the system can run."""
    program = folder / "bin" / "mmseqs"
    program.parent.mkdir()
    program.write_text("\x7fELF" if script is None else f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program.parent


def test_an_absent_search_program_is_one_sentence(work, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("split", work.labels, "-o", tmp_path / "split.csv", "--cluster-by", "mmseqs")
    assert code == 2
    assert one_sentence(err).startswith("bioxfer: method 'mmseqs' needs the program mmseqs on PATH; install")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_f26_a_signal_ends_the_search_program_and_what_it_started(work, tmp_path, name):
    # As mmseqs itself: a program that starts others, which write into the folder.
    steps = tmp_path / "steps"
    loop = f"while true; do mkdir -p tmp; echo . >> tmp/more; echo . >> '{steps}'; sleep 0.01; done"
    script = f"({loop}) 2>/dev/null & wait"
    folder = fake_mmseqs(tmp_path, script)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    words = ["split", work.labels, "-o", tmp_path / "split.csv", "--cluster-by", "mmseqs"]
    child = work.nursery.start(*words, cache=tmp_path, environment=environment)
    deadline = time.monotonic() + PATIENCE
    while not steps.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send(getattr(signal, name))
    ended = child.end(AT_ONCE)
    code, word = TOLD[getattr(signal, name)]
    assert (ended.code, ended.err) == (code, f"bioxfer: {word}; {GOES_ON}\n")
    assert not list(temporary.iterdir())
    made = steps.stat().st_size
    time.sleep(0.5)
    assert steps.stat().st_size == made, "what the program started goes on"


# --- a reader that has enough -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "embed IN -o -",
        "predict IN -o -",
        "predict IN -o - --format long",
        "heads list",
        "heads show HEAD",
        "models list",
        "--help",
        "train --help",
        "evaluate HEAD LABELS",
        "train LABELS -o OUT",
    ],
)
def test_f27_a_pipe_closed_anywhere_ends_it_quietly(work, words):
    dice = random.Random(words)
    out = work.folder / f"pipe-{dice.random()}.safetensors"
    names = {"IN": work.fasta, "HEAD": work.head, "LABELS": work.labels, "OUT": out}
    command = [names.get(word, word) for word in words.split()]
    if command[0] in ("embed", "predict", "evaluate", "train") and "--help" not in command:
        command += ["--model", work.weights, "--threads", 1]
    if command[0] == "predict":
        command += ["--head", work.head]
    if command[0] in ("evaluate", "train"):
        command += ["--cluster-by", "kmer"]
    if command[0] == "train":
        command += ["--head", "linear", "--overwrite"]
    cache = work.folder / "cache-of-pipes"
    for bytes_ in [0, 1, dice.randrange(20_000)][command[0] == "train" :]:
        pipe, theirs = os.pipe()
        child = work.nursery.start(*command, cache=cache, plans=["shorten"], out=theirs)
        os.close(theirs)
        left = bytes_
        while left and (got := len(os.read(pipe, left))):
            left -= got
        os.close(pipe)
        ended = child.end()
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
        assert "ignored" not in ended.err
        assert "roken" not in ended.err
    assert out.exists() == (words == "train LABELS -o OUT")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_do_no_harm(work, closed):
    wanted, _, _ = work.whole("embed", ".csv")
    out = work.place(f"closed {closed.count('&')} {closed[0]}", ".csv")
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "bioxfer", *work.words("embed", out)])
    environment = {**os.environ, "BIOXFER_CACHE": str(out.parent / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(f"{command} {closed}", shell=True, cwd=PACKAGE, env=environment, check=False)
    assert done.returncode == 0
    assert out.read_bytes() == wanted
    look_over(out.parent / "cache")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("embed IN -o - >&-", "cannot write standard output, which is closed; name a file"),
        ("embed - -o OUT <&-", "cannot read standard input, which is closed; name a file"),
        ("embed none.fasta -o OUT 2>&-", ""),
    ],
)
def test_a_closed_stream_that_is_needed_is_one_sentence(work, tmp_path, command, told):
    names = {"IN": work.fasta, "OUT": tmp_path / "out.csv"}
    words = " ".join(str(names.get(word, word)) for word in command.split())
    done = subprocess.run(
        f"'{sys.executable}' -m bioxfer {words} --model '{work.weights}' --no-resume",
        shell=True,
        cwd=PACKAGE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (f"bioxfer: {told}\n" if told else "")


if __name__ == "__main__":
    tend(int(sys.argv[1]))
