"""Many waiting requests -> one call of the model after another, every request answered once.

A request is a few videos of any length. Where a model gains from batches (``batch_tokens`` above 1) requests that wait
together are run together, up to that many steps; elsewhere, as on a CPU but for recurrent networks, each runs alone on
one of some threads. Padding and its removal belong to ``runtime.calls``, so a request's answer does not depend on its
company.

The queue gives three promises: it is bounded, it refuses early what it expects to finish too late, and a request that
is cancelled gives back its place at once.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vsum_runtime.runtime.errors import BackendError, BusyError, InputError, VsumError


class ClosedError(BusyError):
    """This queue takes no more: its model is being replaced or removed, or the server stops."""


Rows = NDArray[np.float32]
Run = Callable[[list[Rows]], list[Rows]]

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


class Batcher:
    """A bounded queue before one model, and the threads that empty it.

    >>> with Batcher(lambda videos: [rows[:, 0] for rows in videos]) as batcher:
    ...     batcher.submit([np.ones((3, 8), np.float32)]).future.result()
    [array([1., 1., 1.], dtype=float32)]

    Parameters
    ----------
    run : list of float32 [T, D] -> list of float32 [T]   may be called from several threads
    batch_tokens : steps worth running together; 1 where requests run best alone
    """

    def __init__(self, run: Run, *, batch_tokens: int = 1, config: QueueConfig | None = None) -> None:
        self.config = config or QueueConfig()
        self.executions = 0
        """Calls of the model that ended well."""
        self._run, self._batch_tokens = run, batch_tokens
        self._queue: list[tuple[int, int, Ticket]] = []  # priority, order of arrival; may hold cancelled tickets
        self._numbers = itertools.count()
        self._changed = threading.Condition(threading.RLock())
        self._n_waiting = self._steps_running = 0
        self._steps_waiting = [0] * (PRIORITIES + 1)  # by priority
        self._s_per_step = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{i}", daemon=True) for i in range(self.config.workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_waiting(self) -> int:
        return self._n_waiting

    def submit(self, videos: Sequence[Rows], *, priority: int = 0, timeout_s: float | None = None) -> Ticket:
        """Queue one request; its ``future`` gives the scores, or may be cancelled.

        Parameters
        ----------
        videos : float32 [T, D] each
        priority : 1 (first) to 10, or 0 for the default, 5; equals are served in the order they came
        timeout_s : the answer is of no use after this

        Raises
        ------
        InputError   a priority or timeout that cannot be
        BusyError    the queue is full, or the answer is expected after the timeout
        ClosedError  the queue takes no more
        """
        if not 0 <= priority <= PRIORITIES:
            raise InputError(f"priority: expected 1 (first) to {PRIORITIES}, or 0 for the default, got {priority}")
        timeout_s = self.config.timeout_s if timeout_s is None else timeout_s
        if not timeout_s > 0:
            raise InputError(f"timeout: expected a time above zero, got {timeout_s} s")
        rank = priority or PRIORITIES // 2
        now = time.monotonic()
        n_steps = sum(len(rows) for rows in videos)
        ticket = Ticket(list(videos), n_steps, rank, now + timeout_s, now)
        with self._changed:
            if self._closing:
                raise ClosedError("the model is being removed or the server stops; try again")
            before = self._steps_running + sum(self._steps_waiting[: rank + 1])
            expected_s = (before + n_steps) * self._s_per_step / self.config.workers
            full = self._n_waiting >= self.config.max_requests
            n_steps_waiting = sum(self._steps_waiting)
            if full or (self._n_waiting and n_steps_waiting + n_steps > self.config.max_steps):
                raise BusyError(
                    f"the queue is full: {self._n_waiting} requests with {n_steps_waiting} steps wait",
                    retry_after_s=expected_s,
                )
            if expected_s > timeout_s:
                raise BusyError(
                    f"the answer is expected in {expected_s:.3f} s, after the timeout of {timeout_s:.3f} s",
                    retry_after_s=expected_s - timeout_s,
                )
            self._n_waiting += 1
            self._steps_waiting[rank] += n_steps
            heapq.heappush(self._queue, (rank, next(self._numbers), ticket))
            self._changed.notify()
        ticket.future.add_done_callback(lambda _: self._leave(ticket))
        return ticket

    def close(self, *, grace_s: float = 30.0) -> None:
        """Take no more, finish what waits within the grace time, refuse the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            rest = [ticket for _, _, ticket in self._queue]
            self._queue.clear()
        for ticket in rest:
            if ticket.future.set_running_or_notify_cancel():
                ticket.future.set_exception(BusyError("the server stopped before this request's turn"))

    def _work(self) -> None:
        while batch := self._take():
            self._answer(batch)

    def _take(self) -> list[Ticket]:
        """The next requests to run together; empty when there is nothing left to do."""
        with self._changed:
            batch: list[Ticket] = []
            n_steps = 0
            while True:
                while self._queue and (not batch or n_steps + self._queue[0][2].n_steps <= self._batch_tokens):
                    ticket = heapq.heappop(self._queue)[2]
                    if ticket.future.set_running_or_notify_cancel():
                        self._leave(ticket)
                        batch.append(ticket)
                        n_steps += ticket.n_steps
                if not batch:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                company_s = batch[0].arrived + self.config.max_delay_s - time.monotonic()
                if n_steps >= self._batch_tokens or self._queue or self._closing or company_s <= 0:
                    self._steps_running += n_steps
                    return batch
                self._changed.wait(company_s)

    def _leave(self, ticket: Ticket) -> None:
        """The ticket waits no more: it runs, or was cancelled."""
        with self._changed:
            if ticket.waiting:
                ticket.waiting = False
                self._n_waiting -= 1
                self._steps_waiting[ticket.rank] -= ticket.n_steps
            if ticket.future.cancelled():
                ticket.videos = []

    def _answer(self, batch: list[Ticket]) -> None:
        n_steps = sum(ticket.n_steps for ticket in batch)
        began = time.monotonic()
        for ticket in batch:
            ticket.started = began
        try:
            outcome = self._outcome(batch)
        finally:
            with self._changed:
                self._steps_running -= n_steps
        if len(batch) > 1 and isinstance(outcome, Exception):
            # One bad request must not fail its company, so each is run again alone.
            for ticket in batch:
                with self._changed:
                    self._steps_running += ticket.n_steps
                self._answer([ticket])
            return
        ended = time.monotonic()
        if not isinstance(outcome, Exception):
            with self._changed:
                self.executions += 1
                took = (ended - began) / n_steps
                self._s_per_step = 0.9 * self._s_per_step + 0.1 * took if self._s_per_step else took
        at = 0
        for ticket in batch:
            ticket.finished = ended
            n = len(ticket.videos)
            ticket.videos = []
            if isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome[at : at + n])
            at += n

    def _outcome(self, batch: list[Ticket]) -> list[Rows] | Exception:
        live = [ticket for ticket in batch if ticket.deadline > time.monotonic()]
        if not live:
            return BusyError("the deadline passed while the request waited")
        videos = [rows for ticket in batch for rows in ticket.videos]
        try:
            scores = self._run(videos)
            if [len(rows) for rows in scores] != [len(rows) for rows in videos]:
                raise BackendError("the model gave scores for other steps than it was asked for")
        except VsumError as error:
            return error
        except BaseException as error:  # whatever it is, the clients get an answer and the thread lives on
            return BackendError(f"the model failed: {type(error).__name__}: {error}")
        return scores
