"""Workers on one machine or many, through Ray Data: every part of an output is made by whoever is free.

The driver reads the input once, with all checks, and counts it. Each worker loads backbone and heads once
and keeps a reader of the input, which goes forward from part to part. Parts and marks are those of
`bioxfer.shards`, in blocks: what is finished is found by its mark, so nothing is made twice, and what a
worker had begun when it was killed is begun again by the one that takes its place. Ray passes no records
around, only the numbers of parts and what became of them.

Ray's processes talk to each other by TCP, on one machine too, and listen on all its addresses; a token made
for the run keeps others out (Ray 2.52 and later), and nothing is sent to another machine unless an address is
given. They unpickle what they send each other, and no file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bioxfer import errors
from bioxfer.errors import BioxferError, InputError, MissingExtraError, OutputError, UsageError, WorkerError
from bioxfer.jobs import Job, Loaded, prepare_part
from bioxfer.machine import look_at_processor
from bioxfer.sequences import SequenceRecord
from bioxfer.shards import Input, Shard, Tally, check_parts, finish_part

__all__ = ["PART_RECORDS", "Census", "Worker", "distribute", "take_census"]

logger = logging.getLogger("bioxfer")

PART_RECORDS = 5000
"""Records of a part, if nothing else is asked for."""

_PATIENCE = 10  # seconds until a cluster must have answered
_TRIES = 3  # times that a part is begun; one that ends its worker each time would do so for ever
_STORE = 100 * 2**20  # bytes of Ray's shared memory; it holds nothing but numbers of parts
_LONGEST = 25  # characters of a temporary folder; names of Ray's sockets have up to 82 more, and end at 107
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell Ray's makers about the cluster
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


# A proxy that there is not, for all but this machine.
_NO_WEB = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}


@dataclass(frozen=True)
class Census:
    """The input, as it was counted before the work.

    Attributes
    ----------
    total : Input
        All of it.
    parts : tuple of str
        Digest of the records of each part.
    block : int
        Records of a part, of the last one less.
    """

    total: Input
    parts: tuple[str, ...]
    block: int


def take_census(records: Iterable[SequenceRecord], block: int) -> Census:
    """Read all records, with the checks that reading makes, and digest them part by part."""
    whole, found = Tally(), []
    drawn = iter(records)
    while some := list(islice(drawn, block)):
        part = Tally()
        for record in some:
            whole.add(record)
            part.add(record)
        found.append(part.total.sha256)
    return Census(whole.total, tuple(found) or (Tally().total.sha256,), block)


class Worker:
    """Makes parts, one after the other; what Ray starts in each of its processes.

    Parameters
    ----------
    job : Job
        What is asked.
    census : Census
        The input.
    overwrite : bool
        Whether finished parts are made anew.
    run : str, optional
        Tells this run from earlier ones, whose tries do not count.
    folder : str, optional
        Where to work, as relative names of files are meant from there.
    command : str, optional
        What marks tell of how parts are made; that of the job if not given.
    web : mapping of str to str or None, optional
        Settings of proxies, which Ray's processes are started without.
    """

    def __init__(
        self,
        job: Job,
        census: Census,
        overwrite: bool,
        run: str = "",
        folder: str = "",
        command: str = "",
        web: Mapping[str, str | None] | None = None,
    ) -> None:
        _set_environment(web or {})
        self._run = run
        self._folder = folder
        self._command = command or f"{job.command_line()} --distributed --part-records {census.block}"
        self._job = job
        self._census = census
        self._overwrite = overwrite
        self._loaded: Loaded | None = None
        self._records: Iterator[SequenceRecord] = iter(())
        self._next: int | None = None  # part that the reader stands before
        self._heard = _Heard()
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.handlers[:] = [self._heard]

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Make the parts of a batch, of one number, and tell what became of them."""
        rows = [self._try(int(number)) for number in batch["item"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _try(self, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {"part": number, "pid": os.getpid(), "made": False, "error": "", "kind": ""}
        statuses: dict[str, int] = {}
        try:
            statuses, row["made"] = self.make(number)
        except Exception as error:  # Ray would wrap it, or try again what will not change
            known = isinstance(error, BioxferError) and type(error).__name__ in errors.__all__
            row["kind"] = type(error).__name__ if known else "WorkerError"
            said = str(error) if known else f"{type(error).__name__}: {error}"
            row["error"] = said if known else f"part {number} of {len(self._census.parts)}: {said}"
        row["statuses"] = ",".join(f"{name}={count}" for name, count in statuses.items())
        row["said"] = "\n".join(self._heard.take())
        return row

    def make(self, number: int) -> tuple[dict[str, int], bool]:
        """Make a part unless it is finished; give its records by status, and whether it was made."""
        if self._loaded is None:
            if self._folder:
                self._enter(self._folder)
            self._loaded = self._job.load()
        loaded, total = self._loaded, self._census.total
        shard = Shard(number, len(self._census.parts), self._census.block)
        part, mark, finished = prepare_part(loaded, shard, total, overwrite=self._overwrite)
        if finished:
            mark.check_input(part, total)
            return mark.statuses, False
        tries = self._count_tries(part)
        records = self._draw(number)
        mark = replace(mark, command=self._command)
        done = finish_part(part, mark, lambda: loaded.write(records, part), lambda: total)
        tries.unlink(missing_ok=True)
        return done.statuses, True

    def _enter(self, folder: str) -> None:
        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(
                f"a worker cannot enter {folder} ({error.strerror}); work in a folder that all machines see"
            ) from error

    def _count_tries(self, part: str) -> Path:
        """Take down that a part is begun, in a file that outlives this process."""
        path = Path(f"{part}.tries")
        try:
            earlier = path.read_text(encoding="ascii") if path.exists() else ""
            run, _, count = earlier.partition(" ")
            begun = int(count) if run == self._run and count.isdigit() else 0
            if begun == _TRIES:
                path.unlink()
                raise WorkerError(
                    f"{part} has ended its worker {_TRIES} times, for want of memory or a library's fault; "
                    "give each more memory (fewer --workers), or find the record with fewer --part-records"
                )
            if begun:
                logger.warning("%s is begun again, as the worker that had it has died", part)
            path.write_text(f"{self._run} {begun + 1}", encoding="ascii")
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; make room or choose another place"
            ) from error
        return path

    def _draw(self, number: int) -> list[SequenceRecord]:
        """Read the records of a part, going forward from where the reader stands."""
        block = self._census.block
        if self._next is None or number < self._next:
            self._records, self._next = self._job.read(), 1
        for _ in islice(self._records, (number - self._next) * block):
            pass
        self._next = None  # until they are read without an error
        found = list(islice(self._records, block))
        self._next = number + 1
        tally = Tally()
        for record in found:
            tally.add(record)
        if tally.total.sha256 != self._census.parts[number - 1]:
            self._next = None
            raise InputError(f"{self._job.source} has changed while it was being worked on; start again")
        return found


class _Heard(logging.Handler):
    """Keeps warnings for the driver, which says them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())

    def take(self) -> list[str]:
        found, self._said = self._said, []
        return found


def distribute(
    job: Job,
    *,
    workers: int | None = None,
    part_records: int = PART_RECORDS,
    address: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Counter[str]:
    """Have workers make all parts of a job's output that are not there.

    Parameters
    ----------
    job : Job
        What is asked. Its threads are those of each worker; if there is no number, they share the cores.
    workers : int, optional
        How many; one per machine, or per GPU for a job on ``cuda``, if not given.
    part_records : int, optional
        Records of a part.
    address : str, optional
        A Ray cluster that runs; one is started on this machine for as long as it takes if not given.
    overwrite : bool, optional
        Whether finished parts are made anew.
    progress : callable, optional
        Called with the number of records of each part when it is there.

    Returns
    -------
    Counter
        Records by status, all parts together.

    Raises
    ------
    UsageError
        A certain GPU is asked for.
    MissingExtraError
        Ray is not here.
    WorkerError
        Workers died again and again, or the cluster cannot be had.
    BioxferError
        As reading raises here, and as the work raises in a worker.
    """
    if job.device.startswith("cuda:"):
        raise UsageError(f"Ray gives each worker a GPU of its own, not {job.device}; say --device cuda")
    ray = _import_ray(address)
    check_parts(job.out, inputs=[job.source])
    web = {name: os.environ.get(name) for name in _NO_WEB} if address is None else None
    job, records = job.begin()
    census = take_census(records, part_records)
    count = len(census.parts)
    statuses: Counter[str] = Counter()
    made = 0
    with _cluster(ray, job, workers, count, address) as crew:
        size, threads = crew
        logger.info(
            "%d worker%s of %d thread%s; %d part%s of up to %d of %d records",
            *(size, "s" * (size != 1), threads, "s" * (threads != 1)),
            *(count, "s" * (count != 1), part_records, census.total.records),
        )
        command = f"{job.command_line()} --distributed --part-records {part_records}"
        sent = replace(job, threads=threads)
        rows = (
            ray.data.from_items(list(range(1, count + 1)), override_num_blocks=count)
            .map_batches(
                Worker,
                fn_constructor_args=(
                    sent,
                    census,
                    overwrite,
                    secrets.token_hex(8),
                    os.getcwd(),
                    command,
                    web,
                ),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=threads,
                num_gpus=1 if _on_gpu(job) else 0,
            )
            .iter_rows()
        )
        for row in _told(ray, rows):
            for said in filter(None, str(row["said"]).split("\n")):
                logger.warning("%s", said)
            if row["error"]:
                raise getattr(errors, str(row["kind"]))(row["error"])
            pairs = (each.split("=") for each in str(row["statuses"]).split(",") if each)
            found = Counter({name: int(number) for name, number in pairs})
            logger.debug("part %d of %d: worker %d", row["part"], count, row["pid"])
            statuses += found
            made += bool(row["made"])
            if progress is not None:
                progress(sum(found.values()))
    if made < count:
        logger.info("%d of %d parts were finished before", count - made, count)
    return statuses


def _told(ray: Any, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass on what workers tell; what Ray says of their deaths becomes a sentence."""
    try:
        yield from rows
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise WorkerError(
            f"the workers cannot go on ({type(error).__name__}: {said[0].strip()}); finished parts stay, run "
            "the same command again, with fewer --workers if they ran out of memory"
        ) from error


# --- Ray ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _cluster(
    ray: Any, job: Job, workers: int | None, parts: int, address: str | None
) -> Iterator[tuple[int, int]]:
    """Start a cluster here or connect to one; give the number of workers and of the threads of each."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet = {"configure_logging": False, "logging_level": logging.CRITICAL, "log_to_driver": False}
    usable = look_at_processor().usable
    with contextlib.ExitStack() as stack:
        restore_signals = stack.enter_context(_own_signals())
        stack.enter_context(_own_messages())
        try:
            if address is None:
                stack.enter_context(_without_web())
                folder = stack.enter_context(_temporary_folder())
                size = min(workers or _gpus_here(job), parts)
                threads = job.threads or max(1, usable // size)
                stack.callback(ray.shutdown)
                ray.init(
                    address="local",
                    num_cpus=size * threads,
                    include_dashboard=False,
                    object_store_memory=_STORE,
                    _node_ip_address="127.0.0.1",  # no other machine has any business with it
                    _temp_dir=folder,
                    **quiet,
                )
            else:
                _knock(address)
                stack.callback(ray.shutdown)
                ray.init(address=address, **quiet)
                size, threads = _share(ray, job, workers, parts)
        except BioxferError:
            raise
        except Exception as error:  # Ray raises this very class where its processes start too slowly
            here = "a Ray cluster cannot be started here"
            where = here if address is None else f"there is no Ray cluster at {address}"
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkerError(f"{where} ({said}); see ray.io, or make parts with --shard") from error
        restore_signals()
        yield size, threads


def _knock(address: str) -> None:
    """See that somebody listens there: where nobody does, Ray waits for minutes and ends without a word."""
    import socket

    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isascii() and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _share(ray: Any, job: Job, workers: int | None, parts: int) -> tuple[int, int]:
    """Share a cluster's cores among workers, a machine's among those that fall to it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [node for node in nodes if node.get("GPU" if _on_gpu(job) else "CPU")]
    if not machines:
        raise WorkerError("no machine of the Ray cluster has what --device asks for; choose another")
    gpus = sum(int(node.get("GPU", 0)) for node in machines)
    size = min(workers or (gpus if _on_gpu(job) else len(machines)), parts)
    cores = min(int(node.get("CPU", 1)) for node in machines)
    return size, job.threads or max(1, cores // -(-size // len(machines)))


def _gpus_here(job: Job) -> int:
    if not _on_gpu(job):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _on_gpu(job: Job) -> bool:
    return job.device == "cuda"


@contextlib.contextmanager
def _own_signals() -> Iterator[Callable[[], None]]:
    """Give what leaves to signals what they did before; Ray takes SIGTERM for its own."""
    held = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)

    try:
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def _without_web() -> Iterator[None]:
    """Let what starts now find no web.

    A process of Ray asks the addresses by which clouds tell a machine what it is, with its reports switched
    off too (`get_cluster_config_to_report` of Ray 2.60). Workers get their settings back, see `Worker`.
    """
    kept = {name: os.environ.get(name) for name in _NO_WEB}
    os.environ.update(_NO_WEB)
    try:
        yield
    finally:
        _set_environment(kept)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _own_messages() -> Iterator[None]:
    """Keep the error stream for this program: Ray's libraries write to it past Python's logging."""
    stream = sys.stderr
    try:
        number = stream.fileno()
    except (AttributeError, OSError):  # there is none, or it is no file
        yield
        return
    kept = os.dup(number)
    with open(kept, "w", encoding=stream.encoding, errors="backslashreplace", buffering=1) as own:
        handlers = [each for each in logger.handlers if getattr(each, "stream", None) is stream]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
        sys.stderr = own
        for each in handlers:
            each.stream = own  # type: ignore[attr-defined]
        try:
            yield
        finally:
            os.dup2(kept, number)
            sys.stderr = stream
            for each in handlers:
                each.stream = stream  # type: ignore[attr-defined]


# Ray ends this process without a word when its own are gone, and then nothing here can clean up.
_GUARD = """
import os, shutil, sys, time
if not os.read(0, 1):
    sys.stderr.write(sys.argv[2])
    for _ in range(100):  # until Ray's processes write no more
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        if not os.path.exists(sys.argv[1]):
            break
        time.sleep(0.1)
"""
_GONE = (
    "bioxfer: Ray's processes or this one were killed, for want of memory if by nobody; finished parts stay, "
    "run the same command again\n"
)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """Lend a folder of the user's own for Ray's sockets and logs; its usual one is shared by all users.

    A guard, a process that waits for the end of this one, removes it where this one cannot.
    """
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="bxray-", dir=usual if len(usual) <= _LONGEST else "/tmp")
    try:
        guard = subprocess.Popen(
            [sys.executable, "-ISc", _GUARD, folder, _GONE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=_file_number(sys.stderr),
            start_new_session=True,  # out of reach of Ctrl-C
        )
        try:
            yield os.path.join(folder, "r")  # Ray opens its own folder to everybody
        finally:
            with contextlib.suppress(BrokenPipeError):
                guard.communicate(b".")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _file_number(stream: IO[str] | None) -> int:
    try:
        return subprocess.DEVNULL if stream is None else stream.fileno()
    except OSError:  # it is no file
        return subprocess.DEVNULL


def _import_ray(address: str | None) -> Any:
    """Import Ray, which reads some of its settings then and never again."""
    os.environ.update(_QUIET)
    if address is None:
        # A cluster of this run's own knows its processes by a token that nobody else has.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Its workers step aside for whatever else runs (nice 15), which one process here does not either.
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("--distributed needs an extra package; pip install 'bioxfer[ray]'") from error
    return ray
