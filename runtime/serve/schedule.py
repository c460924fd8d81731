"""Which request runs next, and which cannot be answered in time: no threads and no clock, so a simulation can drive it.

What a call takes is fitted to the latest calls: a fixed cost and a cost for each step. The fit leans to the low side,
and a request is refused only if even so its answer is late: one that was admitted in error is refused when its time is
over, one that was refused in error might have been answered.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BusyError

Rows = NDArray[np.float32]

PRIORITIES = 10
"""Priorities are 1 (first) to 10; 0 stands for the default, 5."""


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """Limits of one model's queue."""

    max_requests: int = 256
    """Requests that may wait; the next is refused."""
    max_steps: int = 500_000
    """Steps, over all videos of all requests, that may wait: what bounds the memory of the queue."""
    max_delay_s: float = 0.002
    """How long a batch that is not full waits for company; nothing waits where batches do not pay."""
    timeout_s: float = 30.0
    """Deadline of requests that name none."""
    workers: int = 2
    """Calls of the model at the same time."""


@dataclass(eq=False)
class Ticket:
    """One request in the queue."""

    videos: list[Rows]
    n_steps: int
    rank: int
    """Its priority, 1 to 10."""
    deadline: float
    """On the clock of ``time.monotonic``, as the three below."""
    arrived: float
    started: float = 0.0
    finished: float = 0.0
    future: Future[list[Rows]] = field(default_factory=Future)
    waiting: bool = True


@dataclass(eq=False)
class Call:
    """A call of the model that runs."""

    n_steps: int
    started: float


class CallTimes:
    """What a call of the model takes: a fixed cost and one per step, or per square of steps where that fits better."""

    _KEPT = 64
    _LOW = 0.3
    """Quantile of what pairs of calls say of a step. Where noise is larger than what steps cost the median may say
    anything; this then says 0."""

    def __init__(self) -> None:
        self.fixed_s = self.s_per_step = 0.0
        """Before the first call; ``s_per_step`` is for the steps to the power of ``power``."""
        self.power = 1
        self._calls: deque[tuple[int, float]] = deque(maxlen=self._KEPT)
        self._n_calls = 0

    def add(self, n_steps: int, seconds: float) -> None:
        self._calls.append((n_steps, seconds))
        self._n_calls += 1
        if self._n_calls <= 16 or not self._n_calls % 8:
            self._fit()

    def expected_s(self, n_steps: int) -> float:
        return self.fixed_s + float(n_steps) ** self.power * self.s_per_step

    def _fit(self) -> None:
        """Theil's incomplete method: calls in order of their steps, each paired with one half the list away."""
        steps, seconds = np.array(sorted(self._calls), dtype=np.float64).T
        seconds = np.maximum(seconds, 1e-9)
        half = (len(steps) + 1) // 2
        best = np.inf
        for power in (1, 2):
            sizes = steps**power
            more = sizes[half:] - sizes[: len(sizes) - half]
            slopes = (seconds[half:] - seconds[: len(sizes) - half])[more > 0] / more[more > 0]
            slope = max(0.0, float(np.quantile(slopes, self._LOW))) if slopes.size else 0.0
            fixed = max(0.0, float(np.median(seconds[:half] - slope * sizes[:half])))
            error = float(np.median(np.abs(fixed + slope * sizes - seconds) / seconds))
            if error < best:
                best, self.fixed_s, self.s_per_step, self.power = error, fixed, slope, power


class Schedule:
    """The waiting requests of one model, and its running calls. Times are on any one clock, given by the caller.

    Parameters
    ----------
    batch_tokens
        steps worth running together; 1 where requests run best alone
    """

    def __init__(self, config: QueueConfig, batch_tokens: int = 1) -> None:
        self.config = config
        self.call_times = CallTimes()
        self.n_waiting = 0
        self._batch_tokens = batch_tokens
        self._queue: list[tuple[int, int, Ticket]] = []  # priority, order of arrival; may hold tickets that left
        self._numbers = itertools.count()
        self._waiting = [[0, 0] for _ in range(PRIORITIES + 1)]  # by priority: requests, steps
        self._running: set[Call] = set()

    @property
    def n_running(self) -> int:
        return len(self._running)

    def add(self, ticket: Ticket, now: float) -> None:
        """Let a request wait.

        Raises
        ------
        BusyError
            the queue is full, or the answer is expected after the deadline although others run or wait now
        """
        n_steps = sum(steps for _, steps in self._waiting)
        full = self.n_waiting >= self.config.max_requests
        if full or (self.n_waiting and n_steps + ticket.n_steps > self.config.max_steps):
            raise BusyError(
                f"the queue is full: {self.n_waiting} requests with {n_steps} steps wait",
                retry_after_s=self._expected_end(ticket, now) - now,
            )
        if self._running or self.n_waiting:  # else nothing is to be lost, and a time to be learned
            end = self._expected_end(ticket, now)
            if end > ticket.deadline:
                raise BusyError(
                    f"the answer is expected in {end - now:.3f} s, after the timeout of {ticket.deadline - now:.3f} s",
                    retry_after_s=end - ticket.deadline,
                )
        self.n_waiting += 1
        self._waiting[ticket.rank][0] += 1
        self._waiting[ticket.rank][1] += ticket.n_steps
        heapq.heappush(self._queue, (ticket.rank, next(self._numbers), ticket))

    def leave(self, ticket: Ticket) -> None:
        """The ticket waits no more: it runs, or was cancelled."""
        if ticket.waiting:
            ticket.waiting = False
            self.n_waiting -= 1
            self._waiting[ticket.rank][0] -= 1
            self._waiting[ticket.rank][1] -= ticket.n_steps

    def take(self, batch: list[Ticket]) -> bool:
        """Move requests that run together to ``batch``; whether it shall wait for no more."""
        n_steps = sum(ticket.n_steps for ticket in batch)
        while self._queue and (not batch or n_steps + self._queue[0][2].n_steps <= self._batch_tokens):
            ticket = heapq.heappop(self._queue)[2]
            if ticket.future.set_running_or_notify_cancel():
                self.leave(ticket)
                batch.append(ticket)
                n_steps += ticket.n_steps
        return n_steps >= self._batch_tokens or bool(self._queue)

    def drain(self) -> list[Ticket]:
        """All that wait, who wait no more."""
        rest = [ticket for _, _, ticket in self._queue if ticket.waiting]
        self._queue.clear()
        for ticket in rest:
            self.leave(ticket)
        return rest

    def start(self, n_steps: int, now: float) -> Call:
        call = Call(n_steps, now)
        self._running.add(call)
        return call

    def end(self, call: Call) -> None:
        self._running.discard(call)

    def _expected_end(self, ticket: Ticket, now: float) -> float:
        """When the answer is expected: each call goes to the worker that is free first."""
        expected_s = self.call_times.expected_s
        free = [max(now, call.started + expected_s(call.n_steps)) for call in self._running]
        free += [now] * (self.config.workers - len(free))
        n_ahead, steps_ahead = map(sum, zip(*self._waiting[: ticket.rank + 1], strict=True))
        alone = sum(free) - now * len(free) + n_ahead * self.call_times.fixed_s
        alone += expected_s(steps_ahead + ticket.n_steps)
        if now + alone <= ticket.deadline:
            return now + alone  # one worker would do
        heapq.heapify(free)
        n_steps = 0  # of the call that is being put together
        for _, _, other in sorted(entry for entry in self._queue if entry[0] <= ticket.rank and entry[2].waiting):
            if free[0] >= other.deadline:
                continue  # it will be refused
            if n_steps and n_steps + other.n_steps > self._batch_tokens:
                heapq.heapreplace(free, free[0] + expected_s(n_steps))
                n_steps = 0
            n_steps += other.n_steps
        if n_steps:
            heapq.heapreplace(free, free[0] + expected_s(n_steps))
        return free[0] + expected_s(ticket.n_steps)
