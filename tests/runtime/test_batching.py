"""The queue: bounded, in order of priority, early with a refusal, and indifferent to company."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, BusyError, InputError
from vsum_runtime.runtime.serve.request_queue import Batcher, ClosedError, QueueConfig


class Model:
    """Scores are the first feature; it waits while ``gate`` is shut, and keeps what it was asked."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.calls: list[list[float]] = []

    def __call__(self, videos: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        self.calls.append([float(rows[0, 0]) for rows in videos])
        self.entered.release()
        assert self.gate.wait(10)
        if any(rows[0, 0] < 0 for rows in videos):
            raise BackendError("below zero")
        return [rows[:, 0] for rows in videos]


@pytest.fixture
def model() -> Iterator[Model]:
    found = Model()
    yield found
    found.gate.set()


def video(value: float, n_steps: int = 3) -> NDArray[np.float32]:
    return np.full((n_steps, 2), value, dtype=np.float32)


def shut(model: Model, batcher: Batcher) -> None:
    """Make the only worker wait inside the model."""
    model.gate.clear()
    batcher.submit([video(0)])
    model.entered.acquire()


def test_requests_go_by_priority_then_by_arrival(model: Model) -> None:
    with Batcher(model, config=QueueConfig(workers=1)) as batcher:
        shut(model, batcher)
        tickets = [batcher.submit([video(i)], priority=p) for i, p in ((1, 9), (2, 0), (3, 5), (4, 1))]
        model.gate.set()
        for ticket in tickets:
            ticket.future.result(5)
    assert model.calls == [[0], [4], [2], [3], [1]]


def test_requests_run_together_up_to_the_steps_worth_it_and_come_back_apart(model: Model) -> None:
    with Batcher(model, batch_tokens=10, config=QueueConfig(workers=1)) as batcher:
        shut(model, batcher)
        tickets = [batcher.submit([video(i, n) for n in lengths]) for i, lengths in ((1, (2, 3)), (2, (4,)), (3, (5,)))]
        model.gate.set()
        answers = [[len(rows) for rows in ticket.future.result(5)] for ticket in tickets]
    assert answers == [[2, 3], [4], [5]]
    assert model.calls == [[0], [1, 1, 2], [3]]


def test_a_request_that_fails_does_not_fail_its_company(model: Model) -> None:
    with Batcher(model, batch_tokens=100, config=QueueConfig(workers=1)) as batcher:
        shut(model, batcher)
        good, bad = batcher.submit([video(1)]), batcher.submit([video(-1)])
        model.gate.set()
        np.testing.assert_array_equal(good.future.result(5)[0], [1, 1, 1])
        with pytest.raises(BackendError, match="below zero"):
            bad.future.result(5)


def test_a_full_queue_refuses_and_a_cancelled_request_frees_its_place(model: Model) -> None:
    with Batcher(model, config=QueueConfig(workers=1, max_requests=2)) as batcher:
        shut(model, batcher)
        first = batcher.submit([video(1)])
        batcher.submit([video(2)])
        with pytest.raises(BusyError, match="full: 2 requests"):
            batcher.submit([video(3)])
        assert first.future.cancel()
        assert batcher.n_waiting == 1
        assert first.videos == []
        batcher.submit([video(4)])
        model.gate.set()
    assert model.calls == [[0], [2], [4]]


def test_the_queue_is_bounded_in_steps_too_but_takes_one_long_video_alone(model: Model) -> None:
    with Batcher(model, config=QueueConfig(workers=1, max_steps=10)) as batcher:
        shut(model, batcher)
        batcher.submit([video(1, 50)])
        with pytest.raises(BusyError, match="50 steps wait"):
            batcher.submit([video(2, 1)])
        model.gate.set()


def test_what_is_expected_too_late_is_refused_at_once() -> None:
    def slow(videos: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        time.sleep(0.05)
        return [rows[:, 0] for rows in videos]

    with Batcher(slow, config=QueueConfig(workers=1)) as batcher:
        batcher.submit([video(0)]).future.result(5)
        waiting = [batcher.submit([video(i)]) for i in range(6)]
        began = time.monotonic()
        with pytest.raises(BusyError, match="after the timeout") as refused:
            batcher.submit([video(9)], timeout_s=0.1)
        assert time.monotonic() - began < 0.04
        assert refused.value.retry_after_s > 0
        batcher.submit([video(9)], timeout_s=0.5, priority=1).future.result(5)
        assert all(len(ticket.future.result(5)) == 1 for ticket in waiting)


def test_a_request_whose_deadline_passed_in_the_queue_is_not_run(model: Model) -> None:
    with Batcher(model, config=QueueConfig(workers=1)) as batcher:
        shut(model, batcher)
        late = batcher.submit([video(1)], timeout_s=0.01)
        time.sleep(0.02)
        model.gate.set()
        with pytest.raises(BusyError, match="deadline passed"):
            late.future.result(5)
    assert model.calls == [[0]]


def test_a_worker_survives_whatever_the_model_raises() -> None:
    def broken(videos: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        if videos[0][0, 0] == 0:
            raise SystemExit("gone")
        return [rows[:, 0] for rows in videos]

    with Batcher(broken, config=QueueConfig(workers=1)) as batcher:
        with pytest.raises(BackendError, match="SystemExit: gone"):
            batcher.submit([video(0)]).future.result(5)
        assert len(batcher.submit([video(1)]).future.result(5)) == 1


def test_closing_answers_what_waits_and_takes_no_more(model: Model) -> None:
    batcher = Batcher(model, config=QueueConfig(workers=1))
    shut(model, batcher)
    waiting = batcher.submit([video(1)])
    threading.Timer(0.05, model.gate.set).start()
    batcher.close()
    assert len(waiting.future.result(0)) == 1
    with pytest.raises(ClosedError):
        batcher.submit([video(2)])


def test_what_cannot_be_answered_within_the_grace_time_is_refused(model: Model) -> None:
    batcher = Batcher(model, config=QueueConfig(workers=1))
    shut(model, batcher)
    waiting = batcher.submit([video(1)])
    batcher.close(grace_s=0.01)
    with pytest.raises(BusyError, match="stopped"):
        waiting.future.result(0)


@pytest.mark.parametrize(("option", "message"), [({"priority": 11}, "priority"), ({"timeout_s": 0.0}, "timeout")])
def test_options_that_cannot_be_are_refused(model: Model, option: dict[str, float], message: str) -> None:
    with Batcher(model) as batcher, pytest.raises(InputError, match=message):
        batcher.submit([video(1)], **option)
