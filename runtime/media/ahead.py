"""Work ahead: an iterator that runs in a thread of its own, a few items before whoever takes them.

This is how the stages overlap. Decoding, scaling and networks leave Python's lock while they work, so two stages on two
threads fill two processors; the bound on the items between them is the bound on memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ahead(items: Iterable[T], n_waiting: int) -> Iterator[Iterator[T]]:
    """Iterate over `items` in another thread, at most `n_waiting` finished items before the taker.

    An error among the items is raised where they are taken. When the block ends, however it ends, the thread is stopped
    at its next item and waited for, so that what `items` reads from may be closed.

    >>> with ahead(range(3), n_waiting=1) as numbers:
    ...     list(numbers)
    [0, 1, 2]
    """
    queue: Queue[tuple[bool, T | BaseException | None]] = Queue(n_waiting)
    stopped = Event()

    def work() -> None:
        try:
            for item in items:
                queue.put((True, item))
                if stopped.is_set():
                    return
            queue.put((False, None))
        except BaseException as error:
            queue.put((False, error))

    def taken() -> Iterator[T]:
        while True:
            more, item = queue.get()
            if not more:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc]

    thread = Thread(target=work, name="vsum-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        while thread.is_alive():
            try:  # make room for an item that waits to be put
                queue.get(timeout=0.01)
            except Empty:
                thread.join(0.01)
