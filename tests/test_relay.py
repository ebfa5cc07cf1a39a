"""What is relayed between threads keeps its order and errors, has a bound, and leaves no thread behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bioxfer.relay
from bioxfer.relay import ahead, behind

PACKAGE = str(Path(bioxfer.relay.__file__).parents[1])


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def one(item: object) -> int:
    return 1


def wait_for(told, *, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end
        time.sleep(0.001)


@settings(max_examples=60, deadline=None)
@given(items=st.lists(st.integers(0, 9)), most=st.integers(1, 12))
def test_order_is_kept(items, most):
    assert list(ahead(items, weigh=int, most=most)) == items
    assert behind(items, list, weigh=int, most=most) == items
    assert behind(items, list, weigh=int, most=most, here=True) == items


def test_nothing_is_drawn_before_the_first_is_asked_for():
    drawn = []
    items = ahead((drawn.append(n) or n for n in range(9)), weigh=one, most=3)
    time.sleep(0.01)
    assert drawn == []
    assert next(items) == 0
    items.close()


def test_reading_keeps_within_its_bound():
    drawn = []
    items = ahead((drawn.append(n) or n for n in range(99)), weigh=lambda n: 10, most=50)
    assert next(items) == 0
    wait_for(lambda: len(drawn) == 5)
    time.sleep(0.02)
    assert len(drawn) == 5
    next(items)
    wait_for(lambda: len(drawn) == 6)
    items.close()
    time.sleep(0.01)
    assert len(drawn) <= 7


def test_writing_keeps_within_its_bound():
    under_way, most = 0, 0

    def items():
        nonlocal under_way, most
        for n in range(200):
            under_way += 1
            most = max(most, under_way)
            yield n

    def write(taken):
        nonlocal under_way
        for _ in taken:
            time.sleep(0.0002)
            under_way -= 1

    behind(items(), write, weigh=one, most=5)
    assert under_way == 0
    assert most <= 7  # five before the writer, the one it has just finished and the one being made


def test_reading_and_writing_go_on_beside_the_work():
    def slowly(items):
        for item in items:
            time.sleep(0.004)
            yield item

    start = time.monotonic()
    worked = slowly(ahead(slowly(range(50)), weigh=one, most=5))
    assert behind(worked, lambda items: list(slowly(items)), weigh=one, most=5) == list(range(50))
    assert time.monotonic() - start < 0.45  # 0.6 one after the other


def fails_at(count: int, error: BaseException):
    yield from range(count)
    raise error


@pytest.mark.parametrize(
    "error", [ValueError("as if"), KeyboardInterrupt(), SystemExit(3), StopAsyncIteration()]
)
def test_an_error_of_the_source_comes_in_its_place_and_with_its_trace(error):
    taken = []
    with pytest.raises(type(error)) as caught:
        taken.extend(iter(ahead(fails_at(7, error), weigh=one, most=100)))
    assert caught.value is error
    assert "fails_at" in "".join(traceback.format_tb(caught.tb))
    taken.clear()
    for item in (items := ahead(fails_at(7, ValueError()), weigh=one, most=100)):
        taken.append(item)
        if item == 6:
            break
    assert taken == list(range(7))
    items.close()


@pytest.mark.parametrize("error", [ValueError("as if"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_while_writing_reaches_the_caller_and_stops_the_source(error):
    drawn = []

    def write(items):
        for item in items:
            if item == 5:
                raise error

    def items():
        for n in range(10_000):
            drawn.append(n)
            time.sleep(0.001)
            yield n

    with pytest.raises(type(error)) as caught:
        behind(items(), write, weigh=one, most=3)
    assert caught.value is error
    assert "write" in "".join(traceback.format_tb(caught.tb))
    assert len(drawn) < 100


@pytest.mark.parametrize("error", [ValueError("as if"), KeyboardInterrupt()])
def test_an_error_of_what_is_written_stops_the_writer_at_once(error):
    written, unwound = [], []

    def write(items):
        try:
            for item in items:
                time.sleep(0.05)
                written.append(item)
        except Exception:
            written.append("taken for an error of its own")
        finally:
            unwound.append(True)

    start = time.monotonic()
    with pytest.raises(type(error)) as caught:
        behind(fails_at(1000, error), write, weigh=one, most=10_000)
    assert caught.value is error
    assert time.monotonic() - start < 1
    assert len(written) <= 2
    assert unwound == [True]


def test_a_writer_that_has_enough_ends_it():
    assert behind(range(10**9), next, weigh=one, most=3) == 0


def test_who_takes_no_more_ends_the_reading():
    closed = []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    taking = ahead(items(), weigh=one, most=10)
    assert next(taking) == 1
    del taking
    wait_for(lambda: closed)


def test_a_reader_that_hears_nothing_is_left_behind(monkeypatch):
    monkeypatch.setattr(bioxfer.relay, "_PATIENCE", 0.05)
    release = threading.Event()

    def items():
        yield 1
        release.wait()

    taking = ahead(items(), weigh=one, most=10)
    next(taking)
    start = time.monotonic()
    taking.close()
    assert time.monotonic() - start < 1
    release.set()
    wait_for(lambda: all(thread.name != "bioxfer-reader" for thread in threading.enumerate()))


SIGNALLED = """
import sys, time
from bioxfer.relay import ahead, behind
def forever():
    while True:
        yield "x"
def work(items):
    for item in items:
        print("item", flush=True)
        if sys.argv[1] == "computing":
            time.sleep(60)
        yield item
def write(items):
    for item in items:
        time.sleep(0.3)
def silent():
    yield "x"
    time.sleep(3600)
source = silent() if sys.argv[1] == "reading" else forever()
try:
    behind(work(ahead(source, weigh=len, most=3)), write, weigh=len, most=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("state", ["computing", "reading", "writing"])
def test_f26_an_interrupt_ends_it_whatever_it_waits_for(state):
    child = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, state],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )
    assert child.stdout.readline() == b"item\n"
    time.sleep(0.3)
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=20)
    assert (child.returncode, told) == (130, b"")
    assert time.monotonic() - start < 3
