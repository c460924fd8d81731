"""Work ahead: order, bound, errors and an end that waits for the thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vsum_runtime.runtime.media.ahead import ahead


def test_never_more_than_the_bound_are_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    with ahead(items(), n_waiting=2) as numbers:
        for taken, number in enumerate(numbers):
            time.sleep(0.01)
            assert number == taken
            assert len(made) <= taken + 1 + 2 + 1  # taken, waiting, and one in hand
    assert made == list(range(10))


def test_an_error_is_raised_where_the_items_are_taken() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("torn")

    with ahead(items(), n_waiting=4) as numbers:
        assert next(numbers) == 1
        with pytest.raises(OSError, match="torn"):
            next(numbers)


@pytest.mark.parametrize("n_taken", [0, 1, 3])
def test_leaving_early_stops_the_thread_and_waits_for_it(n_taken: int) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield (number := number + 1)
        finally:
            closed.set()

    with ahead(items(), n_waiting=1) as numbers:
        for _ in range(n_taken):
            next(numbers)
    assert closed.wait(1)
    assert not [thread for thread in threading.enumerate() if thread.name == "vsum-ahead"]
