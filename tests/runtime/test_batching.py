"""The queue: bounded, in order of priority, early with a refusal, and indifferent to company."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, BusyError, InputError
from vsum_runtime.runtime.serve.request_queue import Batcher, ClosedError
from vsum_runtime.runtime.serve.schedule import Call, CallTimes, QueueConfig, Schedule, Ticket


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


@dataclass
class Outcome:
    """What a simulated server did with its requests."""

    n: int = 0
    refused: int = 0
    wrongly_refused: int = 0
    """Those that would have been answered in time."""
    hopeless: int = 0
    hopeless_refused: int = 0
    """At once, of those that could not be answered in time."""


def simulate(
    call_s: Callable[[int], float], load: float, workers: int, rng: np.random.Generator, n: int = 1000
) -> Outcome:
    """Requests of 1 to 20,000 steps with timeouts of 0.05 to 30 s, on a clock that only this function moves.

    An oracle that knows how long each call takes says of every request, as it comes, when it would be answered.

    Parameters
    ----------
    call_s : steps -> seconds a call truly takes, drawn anew each time
    load : work that comes, as a share of what the workers can do
    """
    steps = np.exp(rng.uniform(0, np.log(20_000), n)).astype(int)
    times = [call_s(int(each)) for each in steps]
    arrivals = np.cumsum(rng.exponential(float(np.mean(times)) / workers / load, n))
    timeouts = np.exp(rng.uniform(np.log(0.05), np.log(30), n))
    schedule, outcome = Schedule(QueueConfig(workers=workers, max_requests=n, max_steps=10**9)), Outcome(n)
    true_s: dict[Ticket, float] = {}
    running: list[tuple[float, int, Call]] = []
    numbers = itertools.count()

    def begin(now: float) -> None:
        while len(running) < workers:
            batch: list[Ticket] = []
            schedule.take(batch)
            if not batch:
                return
            if batch[0].deadline > now:  # as the server's threads do
                call = schedule.start(batch[0].n_steps, now)
                heapq.heappush(running, (now + true_s[batch[0]], next(numbers), call))

    def run_until(time_s: float) -> None:
        while running and running[0][0] <= time_s:
            now, _, call = heapq.heappop(running)
            schedule.end(call)
            schedule.call_times.add(call.n_steps, now - call.started)
            begin(now)

    waiting: list[Ticket] = []
    for n_steps, own_s, now, timeout_s in zip(steps, times, arrivals, timeouts, strict=True):
        run_until(now)
        ticket = Ticket([], int(n_steps), int(rng.integers(1, 11)), now + timeout_s, now)
        waiting = [other for other in waiting if other.waiting]
        free = [end for end, _, _ in running] + [now] * (workers - len(running))
        heapq.heapify(free)
        for other in sorted((o for o in waiting if o.rank <= ticket.rank), key=lambda o: (o.rank, o.arrived)):
            if free[0] < other.deadline:
                heapq.heapreplace(free, free[0] + true_s[other])
        hopeless = free[0] + own_s > ticket.deadline
        outcome.hopeless += hopeless
        try:
            schedule.add(ticket, now)
        except BusyError:
            outcome.refused += 1
            outcome.wrongly_refused += not hopeless
            outcome.hopeless_refused += hopeless
            continue
        true_s[ticket] = own_s
        waiting.append(ticket)
        begin(now)
    return outcome


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("load", [0.5, 6.0])
@pytest.mark.parametrize("costs", [(0.002, 1e-4, 0.0), (0.25, 1e-6, 0.0), (0.005, 0.0, 1e-8)])
def test_next_to_an_oracle_few_are_wrongly_refused_and_most_of_the_hopeless_are(
    costs: tuple[float, float, float], load: float, workers: int
) -> None:
    """Calls vary by a tenth, one of fifty takes five times as long. Hopeless requests that come when nothing runs are
    admitted all the same."""
    rng = np.random.default_rng(workers)

    def call_s(n_steps: int) -> float:
        fixed, per_step, per_square = costs
        usual = fixed + per_step * n_steps + per_square * n_steps**2
        return float(usual * rng.lognormal(0, 0.1) * (5 if rng.random() < 0.02 else 1))

    outcome = simulate(call_s, load, workers, rng)
    assert outcome.wrongly_refused <= 0.02 * outcome.n
    assert outcome.hopeless_refused >= 0.4 * outcome.hopeless


def test_one_slow_call_of_one_step_does_not_close_an_idle_server() -> None:
    schedule = Schedule(QueueConfig(workers=2))
    schedule.call_times.add(1, 0.25)
    schedule.add(Ticket([], 320, 5, deadline=10.0, arrived=0.0), 0.0)
    schedule.add(Ticket([], 320, 5, deadline=10.0, arrived=0.0), 0.0)
    assert schedule.n_waiting == 2


def test_a_long_video_on_one_worker_is_no_wait_where_another_is_free() -> None:
    schedule = Schedule(QueueConfig(workers=2))
    for n_steps in (1, 10, 100, 1000):
        schedule.call_times.add(n_steps, 0.01 + 0.001 * n_steps)
    schedule.start(40_000, now=0.0)
    schedule.add(Ticket([], 100, 5, deadline=0.2, arrived=0.0), 0.0)
    with pytest.raises(BusyError, match=r"expected in 0\.220 s"):
        schedule.add(Ticket([], 100, 5, deadline=0.2, arrived=0.0), 0.0)


def test_something_is_always_admitted_when_nothing_runs() -> None:
    schedule = Schedule(QueueConfig(workers=1))
    for n_steps in (1, 10, 100, 1000):
        schedule.call_times.add(n_steps, 10.0 * n_steps)
    schedule.add(Ticket([], 320, 5, deadline=0.001, arrived=0.0), 0.0)
    with pytest.raises(BusyError, match="expected in"):
        schedule.add(Ticket([], 320, 5, deadline=0.001, arrived=0.0), 0.0)


def test_cost_of_a_call_and_of_a_step_are_told_apart_whatever_single_calls_took() -> None:
    rng = np.random.default_rng(0)
    times = CallTimes()
    for n_steps in rng.integers(1, 2000, 200):
        times.add(int(n_steps), (0.02 + 1e-4 * n_steps) * (20 if rng.random() < 0.1 else 1))
    assert times.fixed_s == pytest.approx(0.02, rel=0.05)
    assert times.s_per_step == pytest.approx(1e-4, rel=0.05)


def test_an_answer_that_comes_after_its_deadline_is_refused_and_not_given(model: Model) -> None:
    with Batcher(model, config=QueueConfig(workers=1)) as batcher:
        model.gate.clear()
        late = batcher.submit([video(1)], timeout_s=0.01)
        model.entered.acquire()
        time.sleep(0.02)
        model.gate.set()
        with pytest.raises(BusyError, match="while it was computed"):
            late.future.result(5)
