"""What a terminal sees of a command: messages, progress, one sentence for an error, and an exit code."""

from __future__ import annotations

import contextlib
import errno
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

from bioxfer.cache import shelter_compiler
from bioxfer.errors import BioxferError

__all__ = ["EXIT_CODES", "report_records", "run_app", "show_download", "show_progress", "start_messages"]

EXIT_CODES = (
    "Exit codes: 0 ok, 2 usage, 3 bad input, 4 some records failed (the output is complete all the same), "
    "129, 130 and 143 ended by a signal."
)
"""Last line of every command's help."""

_SOME_FAILED = 4
_GOES_ON = "run it again, what it keeps (cache, checkpoint, parts) is not made twice"
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO}
_UNWRITABLE = "cannot write standard output: {}; make room or choose another place"

log = logging.getLogger("bioxfer")


_ENDS = {"SIGHUP": "hung up", "SIGINT": "interrupted", "SIGTERM": "terminated"}
_SAME_WISH = 5.0  # seconds in which a second signal only repeats the first
_CLEAR = "\r\x1b[K"


class _Ended(BaseException):
    """A signal came; temporary files are removed on the way out."""


class _Listener:
    """Hears the signals that end a process, and raises in the main thread.

    A second one while the first is on its way out would cut the removal of temporary files short, so it
    is heard only after a while, from somebody who will wait no longer.
    """

    def __init__(self) -> None:
        self._words: dict[int, str] = {}
        self.heard = 0
        self._time = 0.0

    def listen(self) -> None:
        """Begin, except for signals that the process was started to ignore, as by nohup."""
        for name, word in _ENDS.items():
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._words[number] = word
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.heard and now - self._time < _SAME_WISH:
            return
        self.heard, self._time = self.heard or number, now
        raise _Ended

    def leave(self, code: int, sentence: str = "") -> NoReturn:
        """Leave as the first signal says, if one came and kept the work from ending well; else as told."""
        for number in self._words:  # another one changes nothing any more
            signal.signal(number, signal.SIG_IGN)
        if self.heard and code:
            code, sentence = 128 + self.heard, f"{self._words[self.heard]}; {_GOES_ON}"
        _leave(code, sentence)


def start_messages(*, quiet: bool, verbose: bool = False) -> None:
    """Send messages to standard error: errors alone, or all but details, or all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bioxfer: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


@contextlib.contextmanager
def show_progress(*, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Count proteins on the terminal; say nothing where standard error is none."""
    if quiet or not _on_terminal():
        yield lambda count: None
        return
    done, start, shown = 0, time.monotonic(), 0.0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown > 0.1:  # seconds; more often than the eye follows costs time
            shown = now
            _show(f"\r{done} proteins, {done / max(now - start, 1e-9):.0f} a second ")

    try:
        yield advance
    finally:
        if shown:
            _show(_CLEAR)  # the summary follows


@contextlib.contextmanager
def show_download(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Tell that a download begins, and, on a terminal, how far it is."""
    begun, shown = False, 0.0

    def advance(have: int, total: int | None) -> None:
        nonlocal begun, shown
        whole = "" if total is None else f" of {total / 1e6:.0f}"
        now = time.monotonic()
        if not begun:
            begun = True
            log.info("fetching %s%s", name, "" if total is None else f", {total / 1e6:.0f} MB")
        elif now - shown > 0.1 and _on_terminal():  # seconds, as above
            shown = now
            _show(f"\r{have / 1e6:.0f}{whole} MB ")

    try:
        yield advance
    finally:
        if shown:
            _show(_CLEAR)


def report_records(statuses: Counter[str], *, source: str, out: str, whole: int = 0) -> None:
    """Say what became of the records, and leave with an exit code of its own if some failed.

    ``whole`` is the number of records of the input, where the output is a part.
    """
    total = sum(statuses.values())
    if whole and not total:
        log.info("%s: none of the %d records falls on this part", out, whole)
        return
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
    listener = _Listener()
    listener.listen()
    try:
        listener.leave(*_run(app, arguments))
    except _Ended:
        listener.leave(1)
    except Exception:
        if not listener.heard:
            raise
        listener.leave(1)  # what a library made of the signal's exception


def _run(app: typer.Typer, arguments: Sequence[str] | None) -> tuple[int, str]:
    """Run a command line; tell exit code and sentence."""
    shelter_compiler()
    command: _Command = typer.main.get_command(app)
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        # Typer's own main() would swallow signals and closed pipes before they are seen here.
        with command.make_context("bioxfer", words) as context:
            command.invoke(context)
    except BioxferError as error:
        return error.exit_code, str(error)
    except typer.Exit as end:
        return end.exit_code, ""
    except (KeyboardInterrupt, typer.Abort):  # where no signal of ours was heard
        return 130, f"interrupted; {_GOES_ON}"
    except BrokenPipeError:
        return 0, ""  # the reader has had enough
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            return 3, _UNWRITABLE.format(error.strerror)
        sentence = _usage_sentence(error)
        if sentence is None:
            raise
        return 2, sentence
    return 0, ""


class _Command(Protocol):
    """What typer's command is, whichever package it takes it from."""

    def make_context(self, info_name: str | None, args: list[str]) -> Any: ...

    def invoke(self, ctx: Any) -> Any: ...


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None where the process was started without one


def _show(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone where the process was told to outlive it
        sys.stderr.write(text)
        sys.stderr.flush()


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
    try:
        if sys.stdout is not None:  # as it is where a daemon was started without one
            sys.stdout.flush()  # a full disk or a closed pipe is met here, not at the interpreter's end
    except OSError as error:
        # What is still buffered goes nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if code == 0 and not isinstance(error, BrokenPipeError):
            code, sentence = 3, _UNWRITABLE.format(error.strerror)
    if sentence and sys.stderr is not None:  # print() would take None for standard output
        with contextlib.suppress(OSError):
            print(f"bioxfer: {sentence}", file=sys.stderr)
    sys.exit(code)
