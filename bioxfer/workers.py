"""Threads that work off batches side by side, each on one core."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

__all__ = ["side_by_side"]

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2  # batches that may be under way or waiting for each worker; bounds memory


class _Left(SystemExit):
    """Raised in a worker whose results nobody waits for any more; threading keeps silent about it."""


def side_by_side(work: Callable[[T], R], items: Sequence[T], *, workers: int) -> Iterator[R]:
    """Compute ``work(item)`` of each item on several threads.

    They share the torch threads of the calling one, which keeps its number.

    Parameters
    ----------
    work : callable
        May be called by several threads at once.
    items : sequence
        What to work off.
    workers : int
        Number of threads.

    Yields
    ------
    object
        ``work(item)``, in the order of the items, while the next ones are being
        worked on. An error of ``work`` is raised in place of its result. When
        the generator is left early, by an error or a signal, its threads stop at
        the next step of their Python code and not only after their batch.
    """
    threads = torch.get_num_threads()
    tasks: SimpleQueue[_Task[T, R] | None] = SimpleQueue()
    ready: SimpleQueue[None] = SimpleQueue()
    left = threading.Event()
    arguments = (tasks, ready, left, max(1, threads // workers))
    crew = [threading.Thread(target=_serve, args=arguments, daemon=True) for _ in range(workers)]
    finished = False
    try:
        for thread in crew:
            thread.start()
        for _ in crew:
            ready.get()
        # torch takes the number last set for threads that are yet to come, so it is put back.
        torch.set_num_threads(threads)
        under_way: deque[_Task[T, R]] = deque()
        for item in items:
            if len(under_way) == _AHEAD * workers:
                yield under_way.popleft().result()
            task = _Task(work, item)
            under_way.append(task)
            tasks.put(task)
        while under_way:
            yield under_way.popleft().result()
        finished = True
    finally:
        if not finished:
            left.set()
        for thread in crew:
            if not finished and thread.ident is not None and thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(_Left)
                )
        for _ in crew:
            tasks.put(None)
        for thread in crew:
            if thread.ident is not None:
                thread.join()


class _Task(Generic[T, R]):
    """One item, and in time its result or error."""

    def __init__(self, work: Callable[[T], R], item: T) -> None:
        self._work = work
        self._item = item
        self._answer: SimpleQueue[tuple[R | None, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        try:
            self._answer.put((self._work(self._item), None))
        except _Left:
            raise
        except BaseException as error:  # whatever it is, it belongs to the caller
            self._answer.put((None, error))

    def result(self) -> R:
        result, error = self._answer.get()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def _serve(
    tasks: SimpleQueue[_Task[T, R] | None], ready: SimpleQueue[None], left: threading.Event, threads: int
) -> None:
    try:
        try:
            torch.get_num_threads()  # the first call of a thread takes the number last set anywhere
            torch.set_num_threads(threads)
        finally:
            ready.put(None)
        while (task := tasks.get()) is not None and not left.is_set():
            task.run()
    except _Left:
        pass
