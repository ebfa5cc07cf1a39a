"""Workers through Ray: the bytes of one process, whoever dies. What needs no cluster is tested without."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import Bench, bits_stand_alone, fasta, one_sentence, proteins, run

import bioxfer
from bioxfer import distributed
from bioxfer.distributed import Census, Worker, take_census
from bioxfer.errors import InputError
from bioxfer.jobs import EmbedJob
from bioxfer.merging import merge_parts
from bioxfer.shards import Shard, find_parts, name_mark, name_part

PACKAGE = Path(bioxfer.__file__).parents[1]
PATIENCE = 200.0  # seconds; a cluster starts within ten where nothing else is at work
AT_ONCE = 20.0  # seconds from a signal to the end; two or three there

# Read at the start of every Python below: the toy backbone takes a while.
WATCH = """
import sys

def hear(event, found):
    if event == "socket.connect" and isinstance(found[1], tuple):
        with open({0!r}, "a") as file:
            print(found[1][0], file=file)
    elif event == "socket.getaddrinfo" and "metadata" in str(found[0]):
        with open({0!r}, "a") as file:
            print(found[0], file=file)

sys.addaudithook(hear)
"""
SLOW = """
import importlib.util, sys, time

class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "bioxfer.backbones.compact":
            return None
        sys.meta_path.remove(Slow)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            original = module.CompactBackbone.represent

            def represent(self, sequences, *, layers):
                time.sleep(0.4)
                return original(self, sequences, layers=layers)

            module.CompactBackbone.represent = represent

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Slow)
"""


@pytest.fixture(autouse=True)
def own_messages() -> Iterator[None]:
    """A worker takes the messages of its process; here they go back to where they went."""
    log = logging.getLogger("bioxfer")
    held = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = held


def make_job(bench: Bench, **options) -> EmbedJob:
    usual = {"source": str(bench.fasta), "out": str(bench.out), "model": str(bench.weights)}
    return EmbedJob(**{**usual, **options})


def changed() -> list:
    """Give the proteins of the bench, all but the first three with other residues."""
    records = proteins(6)
    return [*records[:3], *(replace(record, sequence=f"{record.sequence}K") for record in records[3:])]


def work(worker: Worker, *numbers: int) -> list[dict]:
    rows = []
    for number in numbers:
        row = worker({"item": [number]})
        rows.append({name: value for name, (value,) in row.items()})
    return rows


# A worker, without a cluster.


def test_the_census_digests_the_input_part_by_part():
    whole, other = take_census(proteins(7), 3), take_census([*proteins(6), *proteins(1, seed=5)], 3)
    assert (whole.total.records, len(whole.parts), whole.block) == (7, 3, 3)
    assert whole.parts[:2] == other.parts[:2]
    assert whole.parts[2] != other.parts[2]
    assert len(take_census([], 3).parts) == 1


def test_a_worker_makes_parts_in_any_order_and_reads_on_where_it_can(bench, monkeypatch):
    opened = []
    read = EmbedJob.read
    monkeypatch.setattr(EmbedJob, "read", lambda self: opened.append(1) or read(self))
    job = make_job(bench)
    worker = Worker(job, take_census(job.read(), 2), False)
    opened.clear()
    for numbers, times in (((1, 3), 1), ((2,), 2)):
        assert [row["error"] for row in work(worker, *numbers)] == [""] * len(numbers)
        assert len(opened) == times
    merge_parts(bench.out)
    assert [row["id"] for row in bench.rows()] == [f"p{number}" for number in range(6)]


def test_a_worker_has_the_settings_of_its_driver_again(bench, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    job = make_job(bench)
    Worker(job, take_census(job.read(), 2), False, web={"http_proxy": None, "no_proxy": "example.org"})
    assert "http_proxy" not in os.environ
    assert os.environ["no_proxy"] == "example.org"


def test_a_part_that_is_begun_again_is_told(bench):
    job = make_job(bench)
    part = name_part(job.out, Shard(1, 3))
    Path(f"{part}.tries").write_text("now 1")
    (row,) = work(Worker(job, take_census(job.read(), 2), False, run="now"), 1)
    assert row["said"] == f"{part} is begun again, as the worker that had it has died"
    (other,) = work(Worker(job, take_census(job.read(), 2), False, run="now"), 2)
    assert other["said"] == ""
    assert not Path(f"{part}.tries").exists()


def test_a_finished_part_is_not_made_again(bench, runs):
    job = make_job(bench)
    census = take_census(job.read(), 2)
    assert [row["made"] for row in work(Worker(job, census, False), 1, 2)] == [True, True]
    batches = len(runs)
    again = work(Worker(job, census, False), 1, 2, 3)
    assert [row["made"] for row in again] == [False, False, True]
    assert len(runs) == batches + 1
    assert {row["statuses"] for row in again} == {"ok=2"}
    assert [row["made"] for row in work(Worker(job, census, True), 1)] == [True]


def test_a_reader_that_failed_is_opened_again(bench, monkeypatch):
    job, read = make_job(bench), EmbedJob.read
    worker = Worker(job, take_census(job.read(), 2), False)

    def broken(self):
        yield next(read(self))
        raise InputError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(EmbedJob, "read", broken)
        (row,) = work(worker, 1)
        assert (row["kind"], row["error"]) == ("InputError", "the disk is gone")
    assert [row["error"] for row in work(worker, 1, 2)] == ["", ""]


def test_an_input_that_changes_meanwhile_is_found(bench):
    job = make_job(bench)
    census = take_census(job.read(), 2)
    bench.fasta.write_text(fasta(changed()))
    first, second = work(Worker(job, census, False), 1, 2)
    assert first["error"] == ""
    assert (second["kind"], "has changed while it was being worked on" in second["error"]) == (
        "InputError",
        True,
    )
    assert find_parts(bench.out) == [name_part(bench.out, Shard(1, 3, 2))]


def test_parts_of_another_input_are_refused(bench):
    job = make_job(bench)
    work(Worker(job, take_census(job.read(), 2), False), 1)
    bench.fasta.write_text(fasta(changed()))
    (row,) = work(Worker(job, take_census(job.read(), 2), False), 1)
    assert "was made from another input" in row["error"]


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"model": "absent"}, "UnknownModelError", "absent"),
        ({"layer": 9}, "UsageError", "has no layer 9"),
        ({"out": "/proc/no/out.csv"}, "OutputError", "out-00001-of-00003.csv"),
    ],
)
def test_an_error_is_told_and_not_raised_in_a_worker(bench, options, kind, told):
    job = make_job(bench, **options)
    (row,) = work(Worker(job, take_census(job.read(), 2), False), 1)
    assert row["kind"] == kind
    assert told in row["error"]


def test_a_fault_in_a_worker_names_the_part(bench, monkeypatch):
    from bioxfer.backbones.compact import CompactBackbone

    def fail(self, sequences, *, layers):
        raise RuntimeError("abacus broken")

    monkeypatch.setattr(CompactBackbone, "represent", fail)
    job = make_job(bench)
    (row,) = work(Worker(job, take_census(job.read(), 2), False), 2)
    assert (row["kind"], row["error"]) == ("WorkerError", "part 2 of 3: RuntimeError: abacus broken")


def test_warnings_reach_the_driver(bench):
    bench.fasta.write_text(">a\n" + "ACGT" * 20 + "\n")
    job = make_job(bench)
    (row,) = work(Worker(job, take_census(job.read(), 2), False), 1)
    assert "looks like nucleotides" in row["said"]


def test_a_part_that_ends_its_worker_again_and_again_is_given_up(bench, monkeypatch):
    job = make_job(bench)
    census = take_census(job.read(), 2)

    class Killed(BaseException):
        """What no handler sees, as SIGKILL."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "finish_part", die)
        for _ in range(3):
            with pytest.raises(Killed):
                work(Worker(job, census, False, "run"), 2)
        (row,) = work(Worker(job, census, False, "run"), 2)
        assert row["kind"] == "WorkerError"
        assert "out-00002-of-00003.csv has ended its worker 3 times" in row["error"]
        with pytest.raises(Killed):
            work(Worker(job, census, False, "run"), 2)
    assert work(Worker(job, census, False, "another run"), 2)[0]["error"] == ""
    assert not list(bench.folder.glob("*.tries"))


def test_the_command_in_the_mark_is_that_of_all_parts(bench):
    job = make_job(bench)
    work(Worker(job, take_census(job.read(), 2), False), 1, 2)
    ended = run("merge", "-o", bench.out)
    assert ended.code == 3
    assert one_sentence(ended.err).endswith(
        f"part 3 of 3 is missing; make it: {job.command_line()} --distributed --part-records 2"
    )


def test_a_census_is_what_a_worker_is_sent():
    assert set(Census.__dataclass_fields__) == {"total", "parts", "block"}  # and no record


# The driver, with workers in its own process in the place of a cluster.


class Stub:
    """As much of Ray as the driver uses."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.data = self
        self.exceptions = SimpleNamespace(RayError=TimeoutError)
        self.DataContext = SimpleNamespace(get_current=SimpleNamespace)
        self.error = error
        self.asked: dict[str, object] = {}

    def init(self, **options: object) -> None:
        self.asked |= options

    def shutdown(self) -> None:
        self.asked["shut down"] = True

    def ActorPoolStrategy(self, *, size: int) -> int:
        return size

    def from_items(self, items: list[int], *, override_num_blocks: int) -> Stub:
        self.items = items
        return self

    def map_batches(self, kind: type, *, fn_constructor_args: tuple, **options: object) -> Stub:
        self.asked |= options
        self.worker = kind(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict]:
        for item in self.items:
            yield from work(self.worker, item)
            if self.error is not None:
                raise self.error


@pytest.fixture
def stub(monkeypatch) -> Stub:
    found = Stub()
    monkeypatch.setattr(distributed, "_import_ray", lambda address: found)
    return found


def test_the_driver_counts_and_tells(bench, stub, caplog):
    bench.fasta.write_text(f">dna\n{'ACGT' * 20}\n>none\n\n" + fasta(proteins(3)))
    caplog.set_level("INFO", "bioxfer")
    counts: list[int] = []
    job = make_job(bench, threads=1)
    held = signal.getsignal(signal.SIGTERM)
    statuses = distributed.distribute(job, workers=9, part_records=2, progress=counts.append)
    assert statuses == {"ok": 3, "windowed": 1, "skipped": 1}
    assert counts == [2, 2, 1]
    assert "3 workers of 1 thread; 3 parts of up to 2 of 5 records" in caplog.text
    assert (stub.asked["compute"], stub.asked["num_cpus"], stub.asked["num_gpus"]) == (3, 1, 0)
    assert stub.asked["address"] == "local"
    assert stub.asked["include_dashboard"] is False
    assert stub.asked["shut down"]
    assert signal.getsignal(signal.SIGTERM) is held
    assert not os.path.exists(stub.asked["_temp_dir"])


def test_rays_folder_is_the_users_own_and_short_and_goes_whatever_happens(tmp_path):
    code = (
        "import os, sys; from bioxfer import distributed as d; w = d._temporary_folder(); f = w.__enter__();"
    )
    code += "print(f, oct(os.stat(os.path.dirname(f)).st_mode & 0o777)); sys.stdout.flush(); os._exit(1)"
    long = tmp_path / ("x" * 30)
    long.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "TMPDIR": str(long)},
        capture_output=True,
        text=True,
    )
    folder, mode = ended.stdout.split()
    assert len(folder) < 30
    assert mode == "0o700"
    assert "finished parts stay, run the same command again" in one_sentence(ended.stderr)
    began = time.monotonic()
    while os.path.exists(os.path.dirname(folder)):
        assert time.monotonic() - began < AT_ONCE
        time.sleep(0.05)


def test_relative_names_are_meant_from_where_the_driver_is(bench, stub, monkeypatch):
    monkeypatch.chdir(bench.folder)
    words = "embed", "in.fasta", "-o", "out.csv", "--model", bench.weights.name, "--distributed"
    assert run(*words).code == 0
    assert find_parts(bench.out)
    worker = Worker(make_job(bench), take_census([], 2), False, folder=str(bench.folder / "absent"))
    (row,) = work(worker, 1)
    assert (row["kind"], "a worker cannot enter" in row["error"]) == ("InputError", True)


def test_a_certain_gpu_cannot_be_asked_for(bench, stub):
    ended = bench.embed(bench.fasta, "--distributed", "--device", "cuda:1")
    assert ended.code == 2
    assert "say --device cuda" in one_sentence(ended.err)


@pytest.mark.parametrize("merge", [False, True])
def test_parts_are_merged_where_that_is_asked_for(bench, stub, merge):
    options = ["--distributed", "--part-records", "2", *(["--merge"] if merge else [])]
    assert bench.embed(bench.fasta, *options).code == 0
    assert bench.out.exists() == merge
    assert len(find_parts(bench.out)) == (0 if merge else 3)


def test_parts_of_an_earlier_division_are_not_merged(bench, stub):
    assert bench.embed(bench.fasta, "--distributed", "--part-records", "2").code == 0
    earlier = find_parts(bench.out)
    assert bench.embed(bench.fasta, "--distributed", "--part-records", "4", "--merge").code == 0
    assert len(bench.rows()) == 6
    assert find_parts(bench.out) == earlier
    ended = run("merge", "-o", bench.out, "--overwrite")
    assert ended.code == 0


def test_an_empty_input_is_merged(bench, stub):
    assert bench.embed(bench.write("none.fasta", ""), "--distributed", "--merge").code == 0
    assert bench.rows() == []
    assert not find_parts(bench.out)


def test_predictions_of_workers_are_those_of_one_process(bench, stub):
    assert bench.predict(bench.fasta, "--distributed", "--part-records", "4", "--merge").code == 0
    shared = bench.out.read_bytes()
    assert bench.predict(bench.fasta).code == 0
    if bits_stand_alone():
        assert bench.out.read_bytes() == shared


def test_what_workers_tell_of_an_error_is_raised_here(bench, stub):
    bench.fasta.write_text(fasta(proteins(4)) + ">odd\nMKJ\n")
    ended = bench.embed(bench.fasta, "--distributed", "--on-invalid", "error", "-q")
    assert ended.code == 3
    assert "'J' is not an amino acid (residue 3); use --on-invalid x" in one_sentence(ended.err)
    assert stub.asked["shut down"]


def test_what_ray_says_of_its_end_is_one_sentence(bench, stub):
    stub.error = TimeoutError("a long story\nThe actor died")
    ended = bench.embed(bench.fasta, "--distributed", "-q")
    assert ended.code == 3
    assert "the workers cannot go on (TimeoutError: The actor died)" in one_sentence(ended.err)


def test_a_cluster_that_is_not_there_is_one_sentence(bench, stub, monkeypatch):
    def fail(**options: object) -> None:
        raise ConnectionError("nobody answers\nat all")

    monkeypatch.setattr(stub, "init", fail)
    ended = bench.embed(bench.fasta, "--distributed", "--ray-address", "auto")
    assert ended.code == 3
    assert "there is no Ray cluster at auto (nobody answers)" in one_sentence(ended.err)


def test_a_cluster_that_starts_too_slowly_is_one_sentence(bench, stub, monkeypatch):
    def fail(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(stub, "init", fail)
    ended = bench.embed(bench.fasta, "--distributed")
    assert ended.code == 3
    assert "a Ray cluster cannot be started here (The current node timed out" in one_sentence(ended.err)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_one_sentence_at_once(bench, stub, address):
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        address = address.format(taken.getsockname()[1])
        ended = bench.embed(bench.fasta, "--distributed", "--ray-address", address)
    assert ended.code == 3
    assert f"there is no Ray cluster at {address} (" in one_sentence(ended.err)
    assert "refused" in ended.err


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [
        ("cpu", None, (2, 8)),
        ("cpu", 4, (4, 4)),
        ("cpu", 100, (50, 1)),
        ("cuda", None, (3, 4)),  # two workers on a machine of eight cores
    ],
)
def test_a_cluster_is_shared_among_workers(bench, device, asked, expected):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 1.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    size, threads = distributed._share(ray, make_job(bench, device=device), asked, 50)
    assert (size, threads) == expected


# What is refused before a cluster is started.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-", "-o", "out.csv"], "with --distributed every worker reads IN"),
        (["in.fasta", "-o", "-"], "parts are files, and - is none"),
        (
            ["in.fasta", "-o", "out.csv", "--offline", "--ray-address", "auto"],
            "--ray-address needs the network",
        ),
        (["in.fasta", "-o", "out.csv", "--workers", "0"], "--workers"),
        (["in.fasta", "-o", "in.fasta"], "cannot tell the table's format"),
    ],
)
def test_what_does_not_go_with_workers_is_told_before_the_work(bench, monkeypatch, options, told):
    monkeypatch.chdir(bench.folder)
    ended = run("embed", *options, "--distributed")
    assert ended.code in (2, 3)
    assert told in one_sentence(ended.err)


def test_without_ray_the_install_command_is_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_worker_niceness", *distributed._QUIET):
        monkeypatch.setenv(name, "")
    ended = bench.embed(bench.fasta, "--distributed")
    assert ended.code == 2
    assert "pip install 'bioxfer[ray]'" in one_sentence(ended.err)


# On a cluster of two workers.


@pytest.fixture
def ray_here(bench) -> None:
    pytest.importorskip("ray", reason="Ray is not here; pip install 'bioxfer[ray]'")
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes and sockets are looked up in /proc")


def start(bench: Bench, *words: object, first: str = "") -> subprocess.Popen:
    """Start a command of its own process group, whose standard output and error are pipes.

    Each Python process of it runs the lines ``first`` before anything else.
    """
    paths = [str(PACKAGE), os.environ.get("PYTHONPATH", "")]
    if first:
        (bench.folder / "first").mkdir(exist_ok=True)
        (bench.folder / "first" / "sitecustomize.py").write_text(first)
        paths.insert(0, str(bench.folder / "first"))
    return subprocess.Popen(
        [sys.executable, "-m", "bioxfer", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def words_of(bench: Bench, *options: object, records: int = 3) -> list[object]:
    common = "--model", bench.weights, "--distributed", "--workers", 2, "--threads", 1
    return ["embed", bench.fasta, "-o", bench.out, *common, "--part-records", records, *options]


def below(pid: int) -> set[int]:
    """Give the processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, new = set(), [pid]
    while new:
        new = [child for each in new for child in children.get(each, [])]
        found.update(new)
    return found


def addresses_of(pids: set[int]) -> tuple[set[str], set[str]]:
    """Give the own addresses of processes' TCP sockets, and those at the other end."""
    inodes = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(path)):
                    inodes.add(found[1])
    here, there = set(), set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in inodes:
                    here.add(as_address(fields[1]))
                    there.add(as_address(fields[2]))
    return here, there


def as_address(text: str) -> str:
    data = bytes.fromhex(text.partition(":")[0])
    data = b"".join(struct.pack("=I", number) for number in struct.unpack(f">{len(data) // 4}I", data))
    shown = socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
    return shown.removeprefix("::ffff:")


def test_addresses_are_read_as_the_system_writes_them():
    assert as_address("0100007F:1F90") == "127.0.0.1"
    assert as_address("0000000000000000FFFF00000100007F:0016") == "127.0.0.1"


@pytest.mark.usefixtures("ray_here")
@pytest.mark.skipif(not bits_stand_alone(), reason="vectors are equal to 1e-5 here, not to the last bit")
def test_two_workers_give_the_bytes_of_one_process_and_reach_no_other_machine(bench):
    records = proteins(13)
    records[4] = replace(records[4], sequence="")
    records[7] = replace(records[7], sequence=records[7].sequence * 4)
    bench.fasta.write_text(fasta(records))
    heard = bench.folder / "heard"
    child = start(bench, *words_of(bench, "--offline", "-v"), first=WATCH.format(str(heard)))
    here, there = set(), set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            own, other = addresses_of({child.pid, *below(child.pid)})
            here.update(own)
            there.update(other)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, err = child.communicate(timeout=PATIENCE)
    finally:
        ended.set()
        watcher.join()
    assert child.returncode == 0, err
    lines = err.splitlines()
    assert lines[0] == "bioxfer: 2 workers of 1 thread; 5 parts of up to 3 of 13 records"
    assert lines[-1] == f"bioxfer: {bench.out}: 13 records (11 ok, 1 skipped, 1 windowed)"
    assert all(line.startswith("bioxfer: ") for line in lines), err  # and nothing of Ray's own
    assert here, "the watch has seen no socket"
    assert there - here <= {"0.0.0.0", "::"}
    # Ray asks the cloud at once and in vain, before anybody could see a socket
    asked = set(heard.read_text().split())
    assert asked, "no Python process has told of a connection"
    assert asked <= {"127.0.0.1", "localhost", "::1"}
    assert not bench.out.exists()
    assert f"bioxfer merge -o {bench.out} joins them" in err
    assert run("merge", "-o", bench.out, "--input", bench.fasta).code == 0
    whole = bench.folder / "whole.csv"
    assert bench.embed(bench.fasta, out=whole).code == 0
    assert bench.out.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("ray_here")
@pytest.mark.skipif(not bits_stand_alone(), reason="vectors are equal to 1e-5 here, not to the last bit")
def test_a_worker_killed_in_the_middle_loses_nothing(bench):
    bench.fasta.write_text(fasta(proteins(24)))
    child = start(bench, *words_of(bench, "-v", "--merge", records=2), first=SLOW)
    said, killed = [], 0
    for line in child.stderr:
        said.append(line)
        if not killed and (found := re.search(r"part \d+ of 12: worker (\d+)", line)):
            killed = int(found[1])
            assert killed in below(child.pid)
            time.sleep(0.2)  # half of the next part
            os.kill(killed, signal.SIGKILL)
    assert child.wait(PATIENCE) == 0, said
    assert killed
    assert child.stdout.read() == ""
    assert len(re.findall(r"part \d+ of 12: worker", "".join(said))) == 12
    # what it had begun is begun again, and what it had finished and not told of is found
    assert len(re.findall(r"is begun again, as the worker that had it has died", "".join(said))) <= 1
    assert set(re.findall(r"(\d+) of 12 parts were finished before", "".join(said))) <= {"1"}
    whole = bench.folder / "whole.csv"
    assert bench.embed(bench.fasta, out=whole).code == 0
    assert bench.out.read_bytes() == whole.read_bytes()
    left = {path.name for path in bench.folder.iterdir()}
    assert left == {"in.fasta", "out.csv", "whole.csv", "first", bench.weights.name, bench.head.name}


@pytest.mark.usefixtures("ray_here")
def test_an_interrupted_run_ends_its_workers_and_goes_on_later(bench):
    bench.fasta.write_text(fasta(proteins(24)))
    child = start(bench, *words_of(bench, "-v", records=2), first=SLOW)
    said = []
    for line in child.stderr:
        said.append(line)
        if re.search(r"part \d+ of 12", line):
            break
    family = below(child.pid)
    assert family
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait(PATIENCE) == 130, "".join(said) + rest
    assert time.monotonic() - began < AT_ONCE
    assert rest.splitlines()[-1] == (
        "bioxfer: interrupted; run it again, what it keeps (cache, checkpoint, parts) is not made twice"
    )
    while alive := [pid for pid in family if not ended(pid)]:
        assert time.monotonic() - began < AT_ONCE, alive
        time.sleep(0.1)

    times = {
        part: os.stat(part).st_mtime_ns for part in find_parts(bench.out) if os.path.exists(name_mark(part))
    }
    assert 0 < len(times) < 12
    child = start(bench, *words_of(bench, "-v", records=2))
    _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, err
    assert f"{len(times)} of 12 parts were finished before" in err
    assert all(os.stat(part).st_mtime_ns == was for part, was in times.items())
    assert run("merge", "-o", bench.out, "--input", bench.fasta).code == 0


def ended(pid: int) -> bool:
    """Tell whether a process has ended and waits to be counted by whoever started it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
