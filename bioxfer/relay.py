"""Relay items between two threads: read ahead of the work, write behind it.

The work itself always stays in the caller's thread, to which signals come and to
which torch's settings and SQLite's connections belong. Whichever side fails, the
other ends at its next item, and the error goes on in the caller's thread as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["ahead", "behind", "close"]

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = 1.0  # seconds that a reader is waited for at the end; a silent pipe may hold it for ever


def ahead(items: Iterable[T], *, weigh: Callable[[T], int], most: int) -> Generator[T, None, None]:
    """Draw items in a thread of its own, before they are asked for.

    Parameters
    ----------
    items : iterable
        Drawn in the other thread, from the moment that the first one is asked for.
    weigh : callable
        Weight of an item, in any unit.
    most : int
        No item is drawn while such a weight of them lies ready.

    Yields
    ------
    object
        The items in their order, then the error that ended them, if one did. Who
        takes no more closes this generator, and the thread ends at its next item.

    Examples
    --------
    >>> list(ahead("MKV", weigh=len, most=2))
    ['M', 'K', 'V']
    """
    lane = _Lane(weigh, most)

    def read() -> None:
        end = _End()
        try:
            lane.fill(items)
        except BaseException as error:
            end.error = error
        lane.handed.put(end)

    # A daemon, since a reader that waits for a silent pipe must not keep the process alive.
    reader = threading.Thread(target=read, name="bioxfer-reader", daemon=True)
    try:
        reader.start()
        yield from lane.drain()
    finally:
        lane.cancel()
        _join(reader, _PATIENCE)


def behind(
    items: Iterable[T],
    write: Callable[[Iterator[T]], R],
    *,
    weigh: Callable[[T], int],
    most: int,
    here: bool = False,
) -> R:
    """Draw items here, and let a writer take them in a thread of its own.

    Parameters
    ----------
    items : iterable
        Drawn in this thread, until they end or the writer does.
    write : callable
        Takes an iterator of the items, and runs in the other thread.
    weigh : callable
        Weight of an item, in any unit.
    most : int
        No item is drawn while the writer has such a weight of them before it.
    here : bool, optional
        Write in this thread after all, for a target that may block for ever, as a pipe.

    Returns
    -------
    object
        What the writer returned.

    Raises
    ------
    BaseException
        What the writer raised, before another item is drawn; or what the items raised,
        after the writer has ended without those that it had not yet taken.

    Examples
    --------
    >>> behind([3, 1, 2], sum, weigh=lambda item: 1, most=2)
    6
    """
    if here:
        try:
            return write(iter(items))
        finally:
            close(items)
    lane = _Lane(weigh, most)
    results: list[R] = []
    end = _End()

    def work() -> None:
        try:
            results.append(write(lane.drain()))
        except BaseException as error:
            end.error = error
        lane.taken.put(None)

    writer = threading.Thread(target=work, name="bioxfer-writer", daemon=True)
    try:
        writer.start()
        lane.fill(items)
        lane.handed.put(_End())
        writer.join()
    finally:
        lane.cancel()
        _join(writer, None)
        close(items)
    if end.error is not None:
        raise end.error
    return results[0]


def close(items: object) -> None:
    """End a generator now, and the threads behind it, rather than when its memory is collected."""
    if isinstance(items, Generator):
        items.close()


@dataclass(slots=True)
class _End:
    """The last thing handed over; carries the error of a side that broke off."""

    error: BaseException | None = None


class _Cancelled(BaseException):
    """The other side is gone; passes every ``except Exception`` of a writer."""


class _Lane(Generic[T]):
    """One side fills it, the other drains it; the weight that is under way has a bound.

    `SimpleQueue` alone, as a signal may interrupt it at any point: the locks of
    `threading.Condition`, and of `Queue` with it, could then stay taken.
    """

    def __init__(self, weigh: Callable[[T], int], most: int) -> None:
        self._weigh = weigh
        self._most = most
        self._cancelled = False
        self.handed: SimpleQueue[tuple[T, int] | _End] = SimpleQueue()
        self.taken: SimpleQueue[int | None] = SimpleQueue()  # weights given back; None where the taker left

    def fill(self, items: Iterable[T]) -> None:
        """Hand items over until they end or the other side has left."""
        room = self._most
        for item in items:
            weight = self._weigh(item)
            self.handed.put((item, weight))
            room -= weight
            while room <= 0 or not self.taken.empty():
                back = self.taken.get()
                if back is None:
                    return
                room += back

    def drain(self) -> Generator[T, None, None]:
        """Take items until the other side says that this was all."""
        while True:
            got = self.handed.get()
            if self._cancelled:
                raise _Cancelled
            if isinstance(got, _End):
                if got.error is not None:
                    raise got.error
                return
            item, weight = got
            yield item
            self.taken.put(weight)

    def cancel(self) -> None:
        """Wake both sides, and let them end."""
        self._cancelled = True
        self.handed.put(_End())
        self.taken.put(None)


def _join(thread: threading.Thread, seconds: float | None) -> None:
    if thread.ident is not None:  # None where a signal came before its start
        thread.join(seconds)
