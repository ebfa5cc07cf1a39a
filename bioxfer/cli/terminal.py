"""What a terminal sees of a command: messages, progress, one sentence for an error, and an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, Protocol

import typer

from bioxfer.errors import BioxferError

__all__ = ["EXIT_CODES", "report_records", "run_app", "show_progress", "start_messages"]

EXIT_CODES = (
    "Exit codes: 0 ok, 2 usage, 3 bad input, 4 some records failed (the output is complete all the same), "
    "130 and 143 interrupted by a signal."
)
"""Last line of every command's help."""

_SOME_FAILED = 4
_GOES_ON = "run the same command again to finish"

log = logging.getLogger("bioxfer")


class _Terminated(BaseException):
    """SIGTERM came; temporary files are removed on the way out."""


def start_messages(*, quiet: bool, verbose: bool = False) -> None:
    """Send messages to standard error: errors alone, or all but details, or all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bioxfer: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


@contextlib.contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Count proteins on the terminal; say nothing where standard error is none."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    done, start, shown = 0, time.monotonic(), 0.0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown > 0.1:  # seconds; more often than the eye follows costs time
            shown = now
            sys.stderr.write(f"\r{done} proteins, {done / max(now - start, 1e-9):.0f} a second ")
            sys.stderr.flush()

    try:
        yield advance
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")  # the line is cleared, the summary follows
            sys.stderr.flush()


def report_records(statuses: Counter[str], *, source: str, out: str) -> None:
    """Say what became of the records, and leave with an exit code of its own if some failed."""
    total = sum(statuses.values())
    if not total:
        log.warning("%s holds no sequence, so the output holds none either", source)
        return
    parts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    place = "" if out == "-" else f"{out}: "
    log.info("%s%d record%s (%s)", place, total, "s" * (total != 1), parts)
    if statuses["failed"]:
        log.error("%d of %d records failed; their messages say why", statuses["failed"], total)
        raise typer.Exit(_SOME_FAILED)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, turn every end it can come to into an exit code, and leave.

    Parameters
    ----------
    app : typer.Typer
        The commands.
    arguments : sequence of str, optional
        What follows the program's name; that of this process if not given.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    command: _Command = typer.main.get_command(app)
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        # Typer's own main() would swallow signals and closed pipes before they are seen here.
        with command.make_context("bioxfer", words) as context:
            command.invoke(context)
        _flush()
    except BioxferError as error:
        _leave(error.exit_code, str(error))
    except typer.Exit as end:
        _leave(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave(130, f"interrupted; {_GOES_ON}")
    except _Terminated:
        _leave(143, f"terminated; {_GOES_ON}")
    except BrokenPipeError:
        # The reader has had enough. What is still buffered goes nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _leave(0)
    except Exception as error:
        sentence = _usage_sentence(error)
        if sentence is None:
            raise
        _leave(2, sentence)
    _leave(0)


class _Command(Protocol):
    """What typer's command is, whichever package it takes it from."""

    def make_context(self, info_name: str | None, args: list[str]) -> Any: ...

    def invoke(self, ctx: Any) -> Any: ...


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _flush() -> None:
    sys.stdout.flush()  # a full disk or a closed pipe is met here, not at the interpreter's end


def _usage_sentence(error: Exception) -> str | None:
    """Put one of typer's complaints into a sentence; None if it is something else."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    said = " ".join(str(describe()).replace("Value error, ", "").split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bioxfer"
    return f"{said[:1].lower()}{said[1:]}; see {command} --help"


def _leave(code: int, sentence: str = "") -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):  # a second one changes nothing any more
        signal.signal(number, signal.SIG_IGN)
    if sentence:
        with contextlib.suppress(OSError):
            print(f"bioxfer: {sentence}", file=sys.stderr)
    sys.exit(code)
